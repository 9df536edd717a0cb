"""What is complete: the downloader and the doctor say the same, whatever lies in the folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hglmm.datasets.complete import lacks
from hglmm.datasets.doctor import Report, examine, parts_of
from hglmm.datasets.download import CATALOGUE, catalogue_table, lacking

OLD_PLACES = {"GCG/GranDf/annotations": "GCG/annotations", "GCG/GranDf_HA_images": "GCG/images/GranDf_HA_images", "reason_seg/ReasonSeg/val": "reason_seg/val"}


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    "A data root of one's own to break."
    return Path(shutil.copytree(small_world, tmp_path / "world"))


def first(folder: Path, kind: str = "*.jpg") -> Path:
    return sorted(folder.glob(kind))[0]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(path: Path) -> None:
    "As many files as before, one of them somebody's own."
    path.rename(path.with_name("holiday" + path.suffix))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {  # item -> what is done to what
    "coco_val2017, a picture gone": ("coco_val2017", lambda root: first(root / "coco/val2017").unlink()),
    "coco_val2017, a picture empty": ("coco_val2017", lambda root: emptied(first(root / "coco/val2017"))),
    "coco_val2017, a picture replaced": ("coco_val2017", lambda root: replaced(first(root / "coco/val2017"))),
    "coco_train2014, all pictures gone but one that nobody asks for": ("coco_train2014", lambda root: [p.unlink() for p in (root / "coco/train2014").iterdir()] and (root / "coco/train2014/a.jpg").write_bytes(b"a")),
    "panoptic, a PNG gone": ("panoptic", lambda root: first(root / "coco/annotations/panoptic_train2017", "*.png").unlink()),
    "panoptic, a PNG replaced": ("panoptic", lambda root: replaced(first(root / "coco/annotations/panoptic_train2017", "*.png"))),
    "panoptic, half a file": ("panoptic", lambda root: halved(root / "coco/annotations/panoptic_val2017.json")),
    "png, half a file": ("png", lambda root: halved(root / "coco/annotations/png_coco_val2017.json")),
    "png, an empty file": ("png", lambda root: emptied(root / "coco/annotations/png_coco_val2017.json")),
    "refcoco, half a pickle": ("refcoco", lambda root: halved(root / "coco/refcoco/refs(unc).p")),
    "refcoco+, an empty file": ("refcoco+", lambda root: emptied(root / "coco/refcoco+/instances.json")),
    "refcocog, a file gone": ("refcocog", lambda root: (root / "coco/refcocog/instances.json").unlink()),
    "grandf, half a file": ("grandf", lambda root: halved(root / "GCG/GranDf/annotations/val_test/test_gcg_coco_mask_gt.json")),
    "grandf, a file gone": ("grandf", lambda root: (root / "GCG/GranDf/annotations/val_test/val_gcg_coco_mask_gt.json").unlink()),
    "grandf_pictures, one gone": ("grandf_pictures", lambda root: first(root / "GCG/GranDf_HA_images/val_test").unlink()),
    "grandf_pictures, one replaced": ("grandf_pictures", lambda root: replaced(first(root / "GCG/GranDf_HA_images/val_test"))),
    "reasonseg, a picture gone": ("reasonseg", lambda root: first(root / "reason_seg/ReasonSeg/test").unlink()),
    "reasonseg, a picture empty": ("reasonseg", lambda root: emptied(first(root / "reason_seg/ReasonSeg/test"))),
    "reasonseg, half a question": ("reasonseg", lambda root: halved(first(root / "reason_seg/ReasonSeg/test", "*.json"))),
}  # fmt: skip


def faulty_items(report: Report, root: Path) -> set[str]:
    "Items of the catalogue behind what the doctor does not find whole."
    bad = {f.part for f in report.findings if f.state in ("broken", "missing") or f.benchmark == "pictures" and f.state != "ok"}
    found = {f"coco_{part.removeprefix('coco/')}" for part in bad if part.startswith("coco/")}
    for part in parts_of(root):
        if part.name in bad:
            found |= set(part.items.values())
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_doctor_and_downloader_agree(world: Path, damage: str) -> None:
    assert {name: lacking(item, world) for name, item in CATALOGUE.items() if lacking(item, world)} == {}
    item, act = DAMAGES[damage]
    act(world)
    incomplete = {name for name, known in CATALOGUE.items() if lacking(known, world)}
    report = examine(world, samples=None)
    assert incomplete == {item} and item in faulty_items(report, world), report
    assert [line[0] for line in catalogue_table(world).lines if line[2] != "complete"] == [item]


def test_foreign_files_are_not_counted(world: Path) -> None:
    for folder in ("coco/val2017", "coco/train2014", "coco/annotations/panoptic_val2017", "GCG/GranDf_HA_images/val_test", "reason_seg/ReasonSeg/val"):
        for name in ("holiday.jpg", "holiday.png", "notes.txt", "._000000200000.jpg", "Thumbs.db"):
            (world / folder / name).write_bytes(b"rubbish")
    assert not any(lacking(item, world) for item in CATALOGUE.values())
    report = examine(world, samples=None)
    assert {f.part for f in report.findings if f.state != "ok"} <= {"reasonseg val"}  # pictures without a question there
    assert next(f.found for f in report.findings if f.part == "coco/val2017") == "20 pictures"


def test_other_places_are_complete_too(world: Path) -> None:
    for usual, other in OLD_PLACES.items():
        (world / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(world / usual, world / other)
    assert not any(lacking(item, world) for item in CATALOGUE.values())
    first(world / "reason_seg/val").unlink()
    (world / "GCG/annotations/val_test/val_gcg_coco_mask_gt.json").unlink()
    assert list(lacking(CATALOGUE["reasonseg"], world)) == ["reason_seg/ReasonSeg/val"]
    assert lacking(CATALOGUE["grandf"], world) == {"GCG/GranDf/annotations/val_test/val_gcg_coco_mask_gt.json": f"{world}/GCG/annotations/val_test/val_gcg_coco_mask_gt.json: not there"}


def test_without_annotations_the_published_number_counts(tmp_path: Path) -> None:
    folder = tmp_path / "coco/val2017"
    folder.mkdir(parents=True)
    for k in range(4_999):
        (folder / f"{k:012}.jpg").write_bytes(b"picture")
    (folder / "holiday.jpg").write_bytes(b"picture")
    (folder / "000000004999.jpg").touch()
    assert lacking(CATALOGUE["coco_val2017"], tmp_path) == {"coco/val2017": f"{folder}: 4,999 files of 5,000"}
    assert "coco/val2017: 4,999, published 5,000" in next(f.note for f in examine(tmp_path).findings if f.part == "coco/val2017")
    (folder / "000000004999.jpg").write_bytes(b"picture")
    assert lacking(CATALOGUE["coco_val2017"], tmp_path) == {}
    assert next(f.state for f in examine(tmp_path).findings if f.part == "coco/val2017") == "ok"


def test_the_pictures_of_refcoco_are_all_that_it_asks_for(world: Path) -> None:
    """Many have only the pictures that are referred to; nothing has to be fetched for them, until other expressions are there."""
    (world / "toycoco.json").unlink()
    assert lacks(world, "coco/train2014", 82_783) == ""
    content = json.loads((world / "coco/refcocog/instances.json").read_text())
    content["images"].append({**content["images"][0], "id": 7, "file_name": "COCO_train2014_000000000007.jpg"})
    (world / "coco/refcocog/instances.json").write_text(json.dumps(content))
    assert lacks(world, "coco/train2014", 82_783).endswith("names are not there, the first is COCO_train2014_000000000007.jpg.")


def test_a_long_list_is_read_quickly(tmp_path: Path) -> None:
    """Names are found without parsing: other content, even half a file, is no hindrance."""
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val2017").mkdir()
    (tmp_path / "coco/annotations/panoptic_val2017.json").write_text('{"images": [{"file_name": "1.jpg"}, {"file_name" :  "a \\"b\\".jpg"}, {"file_name": null}, {"file_name": "1.png"')
    for name in ("1.jpg", 'a "b".jpg'):
        (tmp_path / "coco/val2017" / name).write_bytes(b"picture")
    assert lacks(tmp_path, "coco/val2017", 5_000) == ""
