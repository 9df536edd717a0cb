"""The toy world stays what it is: the same seeds give the same pictures, sayings and files, byte for byte.

The digests of scenes and sayings were taken before the world moved into `hglmm.toy`, those of files when quirks came into them (version 5). Of pictures and panoptic pngs they hold the pixels, as the bytes of a file depend on
the library that wrote it; Pillow 10.4, 11.3, 12.0 and 13.0 draw the same. Who changes the world on purpose raises `files.VERSION` and puts the new digests here.
"""

import hashlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from hglmm.datasets import toycoco
from hglmm.toy import files, formats, quirks, sayings, things, world

SCENES = {"train": "5b804578284ed56f", "val": "842d830af2d8b9ad", "test": "c09b51fdc2359b50"}  # of the first 20 pictures
SAYINGS = {"train": "b977b9b5073fb1ae", "val": "116a5d4a29c112e6", "test": "d6ea74efa0901e2a"}  # and of what is said about them
EASY = "cd2c7e63d7f3a6a5"  # pictures of one and two groups
FILES = {
    "GCG/GranDf/annotations/val_test/test_gcg_coco_caption_gt.json": "1a9f150ebb18d59c",
    "GCG/GranDf/annotations/val_test/test_gcg_coco_mask_gt.json": "20c0e036cd5385fb",
    "GCG/GranDf/annotations/val_test/val_gcg_coco_caption_gt.json": "9b9f0073ba594824",
    "GCG/GranDf/annotations/val_test/val_gcg_coco_mask_gt.json": "fc5235f7b6cc2373",
    "GCG/GranDf_HA_images/val_test/*.jpg": "d668f6e0e376fbde",
    "coco/annotations/panoptic_train2017.json": "60a13fdf0450b4b6",
    "coco/annotations/panoptic_train2017/*.png": "4e82c66e24e1b4dd",
    "coco/annotations/panoptic_val2017.json": "3297b031d3f0916e",
    "coco/annotations/panoptic_val2017/*.png": "a32175f6f20af1dc",
    "coco/annotations/png_coco_train2017.json": "cac5c851fbb41d00",
    "coco/annotations/png_coco_val2017.json": "12a382cfe03aff33",
    "coco/refcoco+/instances.json": "a889b0c307ee4106",
    "coco/refcoco+/refs(unc).p": "1e158324ee5c07c7",
    "coco/refcoco/instances.json": "a889b0c307ee4106",
    "coco/refcoco/refs(unc).p": "9b3618465add5ceb",
    "coco/refcocog/instances.json": "a889b0c307ee4106",
    "coco/refcocog/refs(umd).p": "cd2d49dfbba423f1",
    "coco/train2014/*.jpg": "6a1699ed7a26d1e2",
    "coco/train2017/*.jpg": "afcbe499b34f5a16",
    "coco/val2017/*.jpg": "2421767a43514a8f",
    "reason_seg/ReasonSeg/test/*.jpg": "f46362db0791df1c",
    "reason_seg/ReasonSeg/test/*.json": "fcbc4cbc7827c9f3",
    "reason_seg/ReasonSeg/train/*.jpg": "a8c9b2cde663166e",
    "reason_seg/ReasonSeg/train/*.json": "51b7e1f0f924631d",
    "reason_seg/ReasonSeg/val/*.jpg": "feddfa8847e19842",
    "reason_seg/ReasonSeg/val/*.json": "11859b9039525c67",
    "toycoco.json": "c734b0e8a8e2a095",
}
COUNTS = {"train": 7, "val": 14, "test": 5}  # with the first large picture of `val`, and the one without a mask


def digest(parts: list[bytes | str]) -> str:
    "The first 16 digits of the parts' sha256."
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:16]


def said_about(s: world.Scene, seed: int) -> str:
    "Everything the world can say about a picture."
    described = [(t.name, t.colour, t.size, t.texture, round(t.x, 6), round(t.y, 6), t.side, t.group) for t in s.things]
    referred = [sayings.expressions(s, i) for i in range(len(s.things))]
    asked = (s.stuff, sayings.plain_questions(s), sayings.reason_questions(s), referred)
    return f"{described!r}{asked!r}{sayings.as_text(sayings.narrative(s, np.random.default_rng(seed)))}"


@pytest.mark.parametrize("split", files.SPLITS)
def test_the_first_pictures_of_a_split(split: str) -> None:
    scenes = [files.split_scene(0, split, k) for k in range(20)]
    pixels = [part for s in scenes for part in (repr((s.image.size, s.image.mode)), s.image.tobytes(), s.labels.astype("<i4").tobytes())]
    assert digest(pixels) == SCENES[split], f"Pillow {PIL.__version__}, numpy {np.__version__}"
    assert digest([said_about(s, k) for k, s in enumerate(scenes)]) == SAYINGS[split]


def test_easy_pictures() -> None:
    assert digest([world.scene(777, 20_000_000 + k, most).image.tobytes() for k in range(5) for most in (1, 2)]) == EASY


def content(path: Path) -> bytes:
    "What must not change in a file: of a panoptic png the pixels, of a picture nothing (those of a scene are held above)."
    return b"" if path.suffix == ".jpg" else np.asarray(Image.open(path)).tobytes() if path.suffix == ".png" else path.read_bytes()


def test_every_file(tmp_path: Path) -> None:
    root = files.generate(tmp_path / "world", seed=0, counts=COUNTS)
    found: dict[str, list[bytes]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root)
        many = path.suffix in (".jpg", ".png") or "ReasonSeg" in name.parts
        found.setdefault(f"{name.parent}/*{name.suffix}" if many else str(name), []).extend([path.name.encode(), content(path)])
    assert {name: digest(parts) for name, parts in found.items()} == FILES


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    first, other = (files.generate(tmp_path / str(seed), seed, {"train": 1, "val": 1, "test": 1}) for seed in (0, 1))
    narratives = "coco/annotations/png_coco_val2017.json"
    assert (first / narratives).read_bytes() != (other / narratives).read_bytes()


def test_a_world_of_another_version_or_size_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(files, "_write_split", lambda *given, real=files._write_split: (drawn.append(given), real(*given))[1])
    root, counts = tmp_path / "world", {"train": 1, "val": 1, "test": 1}
    for expected in (3, 0):
        drawn.clear()
        assert files.ensure(root, counts=counts) == root and len(drawn) == expected
    monkeypatch.setattr(files, "VERSION", files.VERSION + 1)
    files.ensure(root, counts=counts)
    assert len(drawn) == 3
    files.ensure(root, counts={**counts, "val": 2})
    assert len(drawn) == 6 and len(list((root / "coco/val2017").iterdir())) == 3
    (root / "toycoco.json").write_text("{")
    files.ensure(root, counts=counts)
    assert len(drawn) == 9


def test_what_was_interrupted_does_not_look_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write_refs", stop)
    with pytest.raises(KeyboardInterrupt):
        files.ensure(tmp_path / "world", counts={"train": 1, "val": 1, "test": 1})
    assert not (tmp_path / "world").exists()


# the old door


def test_the_old_door_leads_to_every_name() -> None:
    for room in (things, world, sayings, formats, quirks, files):
        assert all(getattr(toycoco, name) is getattr(room, name) for name in room.__all__)
    assert files.__name__ == f"hglmm.toy.{toycoco.ROOMS[-1]}" and toycoco.split_scene(seed=0, split="val", index=314).image.size[0] <= toycoco.SQUARE
    with pytest.raises(ImportError, match="esnure"):
        from hglmm.datasets.toycoco import esnure  # noqa: F401


def test_what_is_replaced_at_the_door_is_replaced_behind_it(tmp_path: Path) -> None:
    real = files.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toycoco, "generate", lambda root, *_: root / "replaced")
        assert toycoco.ensure(tmp_path, counts={"train": 1}) == tmp_path / "replaced"
    assert files.generate is toycoco.generate is real
