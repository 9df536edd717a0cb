"""Benchmarks below a data root: RefCOCO's large files are read once for all splits and protocols, and nothing stale is used."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from hglmm.datasets import layout, places, refcoco
from hglmm.datasets.refcoco import PROTOCOLS, RefCOCO
from hglmm.errors import DataError

ALL = [(dataset, split, protocol) for dataset in places.REFS_FILE for split in layout.SPLITS[dataset] if split != "train" for protocol in PROTOCOLS]


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    "A data root of one's own to change."
    return Path(shutil.copytree(small_world, tmp_path / "world"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    "Which instances.json is read."
    read, real = [], refcoco.read_files
    monkeypatch.setattr(layout, "_kept", {})
    monkeypatch.setattr(layout, "read_files", lambda instances, refs: (read.append(Path(instances).parent.name), real(instances, refs))[1])
    return read


def same(a: RefCOCO, b: RefCOCO) -> bool:
    samples = [(a[i], b[i]) for i in range(len(a))]
    return len(a) == len(b) and all(x.id == y.id and x.pieces == y.pieces and np.array_equal(x.masks, y.masks) and x.info == y.info for x, y in samples)


def test_each_file_is_read_once_for_all_its_benchmarks(world: Path, reads: list[str]) -> None:
    opened = [layout.open_task("res", world, dataset=d, split=s, protocol=p) for d, s, p in ALL]
    assert reads == ["refcoco", "refcoco+", "refcocog"]
    for (dataset, split, protocol), data in zip(ALL, opened, strict=True):
        assert len(data) and same(data, RefCOCO(**places.refcoco_paths(world, dataset), split=split, protocol=protocol))
    assert len(layout.TrainingSet.open(world, ("refcoco",))) == len(RefCOCO(**places.refcoco_paths(world), split="train"))
    layout.open_refcoco(world, "refcoco", "testA")
    assert reads == ["refcoco", "refcoco+", "refcocog", "refcoco"]  # train, for itself


def test_what_is_kept_is_small(world: Path, reads: list[str]) -> None:
    layout.TrainingSet.open(world)
    assert not layout._kept  # nothing for a training's workers to copy
    layout.open_refcoco(world, "refcoco", "val")
    (files,) = layout._kept.values()
    every = json.loads((world / "coco/refcoco/instances.json").read_text())
    assert files.splits["train"] == [] and 0 < len(files.annotations) < len(every["annotations"]) / 2 and len(files.pictures) < len(every["images"]) / 2
    for k in range(4):
        shutil.copytree(world / "coco/refcoco", world / f"coco/copy{k}")
        layout.open_refcoco(world, "refcoco", "val", instances=world / f"coco/copy{k}/instances.json", refs=world / f"coco/copy{k}/refs(unc).p")
    assert len(layout._kept) == layout.KEPT and files not in layout._kept.values()


def test_a_file_that_has_changed_is_read_again(world: Path, reads: list[str]) -> None:
    before = layout.open_refcoco(world, "refcoco", "val")
    path = world / "coco/refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    changed = next(r for r in refs if r["split"] == "val")
    changed["sentences"][0]["raw"] = changed["sentences"][0]["raw"][::-1]  # as long as before
    stat = path.stat()
    path.write_bytes(pickle.dumps(refs, protocol=2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = layout.open_refcoco(world, "refcoco", "val")
    assert reads == ["refcoco"] * 2 and after[0].caption != before[0].caption
    path.unlink()
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: no such file"):
        layout.open_refcoco(world, "refcoco", "val")


def test_a_ref_to_nothing_is_still_an_error_from_what_is_kept(world: Path, reads: list[str]) -> None:
    path = world / "coco/refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    next(r for r in refs if r["split"] == "testB")["ann_id"] = 7
    path.write_bytes(pickle.dumps(refs))
    layout.open_refcoco(world, "refcoco", "val")
    with pytest.raises(DataError, match=r"refers to annotation 7, which is not in .*instances\.json"):
        layout.open_refcoco(world, "refcoco", "testB")
    assert reads == ["refcoco"]


def test_a_training_set_says_what_its_parts_say() -> None:
    class Part(list):
        skipped = 1

        def __init__(self, name: str, count: int):
            super().__init__(range(count))
            self.files, self.ids = [Path(name), Path("shared")], [f"{name}{k}" for k in range(count)]
            self.notes = {"masks without a pixel": count, name: 1}

    both = layout.TrainingSet([Part("a", 2), Part("b", 3)])
    assert both.files == [Path("a"), Path("shared"), Path("b")] and both.ids == ["a0", "a1", "b0", "b1", "b2"] and len(both) == 5
    assert both.notes == {"masks without a pixel": 5, "a": 1, "b": 1} and layout.TrainingSet([]).notes == {}


def test_the_ids_of_a_training_set_are_those_of_its_samples(world: Path) -> None:
    every = layout.TrainingSet.open(world)
    assert every.ids == [every[i].id for i in range(len(every))] and every.draw(1, 2).ids == every.ids
    assert {path.name for path in every.files} == {"instances.json", "refs(unc).p", "refs(umd).p", "png_coco_train2017.json", "panoptic_train2017.json"}
    assert len(every.files) == 8 and every.notes == {}
