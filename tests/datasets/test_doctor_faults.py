"""Data roots that nobody would make on purpose: every part of the doctor's report stands by itself, and says file and fault."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hglmm.datasets import checks, complete, layout, places, toycoco
from hglmm.datasets.doctor import BENCHMARKS, Report, examine, main
from hglmm.errors import SettingError

REFS = "coco/refcoco/refs(unc).p"
INSTANCES = "coco/refcoco/instances.json"
NARRATIVES = "coco/annotations/png_coco_val2017.json"
PANOPTIC = "coco/annotations/panoptic_val2017.json"
CAPTIONS = "GCG/GranDf/annotations/val_test/val_gcg_coco_caption_gt.json"
MASKS = "GCG/GranDf/annotations/val_test/val_gcg_coco_mask_gt.json"
QUESTIONS = "reason_seg/ReasonSeg/val"
PART = {REFS: "refcoco", INSTANCES: "refcoco", NARRATIVES: "png val", PANOPTIC: "png val", CAPTIONS: "gcg val", MASKS: "gcg val", QUESTIONS: "reasonseg val"}


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "So small that it can be looked at a hundred times."
    return toycoco.generate(tmp_path_factory.mktemp("data") / "world", counts={"train": 3, "val": 6, "test": 6})


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path) -> Path:
    "A data root of one's own to break."
    return Path(shutil.copytree(tiny_world, tmp_path / "world"))


def state_of(report: Report, part: str) -> tuple[str, str]:
    (finding,) = [f for f in report.findings if f.part == part]
    return finding.state, finding.note


def only_this_is_broken(report: Report, part: str) -> str:
    "The note of a part that is broken, if all others are as they were."
    assert {f.part for f in report.findings if f.state != "ok"} == {part}, report
    assert report.status() == 1 and not next(good for name, good in report.usable.items() if part.startswith(name) or name == "res" and "refcoco" in part)
    state, note = state_of(report, part)
    assert state == "broken"
    return note


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "a").touch()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def written(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


BOM = b"\xef\xbb\xbf"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a folder": a_folder, "a link to nothing": a_link_to_nothing, "a link to itself": a_link_to_itself, "empty": written(b""), "text": written(b"hello"),
    "a page": written(b"<!DOCTYPE html><html>Please log in</html>"), "null": written(b"null"), "a number": written(b"7"), "a list of nulls": written(b"[null, null]"),
    "nested": written(b"[" * 100_000), "nul": written(b"\0" * 5000), "bytes": written(bytes(range(256))), "a cut byte order mark": written(BOM + b"{"),
    "NaN": written(b"NaN"), "a text": written(b'"[]"'), "an object of lists": written(b'{"images": {}, "annotations": [[]], "categories": 3}'),
}  # fmt: skip


@pytest.mark.parametrize("file", [REFS, INSTANCES, NARRATIVES, PANOPTIC, CAPTIONS, MASKS])
def test_what_may_stand_in_a_files_place(world: Path, file: str) -> None:
    whole = (world / file).read_bytes()
    for name, damage in DAMAGES.items():
        damage(world / file)
        note = only_this_is_broken(examine(world, samples=0), PART[file])
        assert Path(file).name in note and "Error: " not in note.replace("DataError", ""), (name, note)
        shutil.rmtree(world / file) if (world / file).is_dir() else (world / file).unlink()
        (world / file).write_bytes(whole)
    assert {f.state for f in examine(world).findings} == {"ok"}


@pytest.mark.parametrize("content", [3, [], [None], [[]], {"a": 1}, [{"split": []}], [{"split": None, "ref_id": {}, "ann_id": [1], "sentences": "said"}], [object], "text", b"bytes"])
def test_pickles_of_another_kind(world: Path, content: object) -> None:
    (world / REFS).write_bytes(pickle.dumps(content))
    assert "refs(unc).p" in only_this_is_broken(examine(world), "refcoco")


@pytest.mark.parametrize(("folder", "parts"), [("coco/val2017", {"png val"}), ("GCG/GranDf_HA_images/val_test", {"gcg val", "gcg test"}), (QUESTIONS, {"reasonseg val"})])
def test_what_may_stand_in_a_folders_place(world: Path, folder: str, parts: set[str]) -> None:
    (world / folder).rename(world / "moved")
    for damage in (lambda p: p.write_text("a file"), lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to(p)):
        damage(world / folder)
        report = examine(world)
        assert {f.part for f in report.findings if f.state != "ok"} == parts | ({folder} if folder.startswith("coco") else set())
        assert all(state_of(report, part)[0] == "broken" and folder in state_of(report, part)[1] for part in parts)
        (world / folder).unlink()
    (world / folder).symlink_to(world / "moved")  # links that lead somewhere are fine
    assert {f.state for f in examine(world).findings} == {"ok"}


def test_an_empty_folder_is_as_good_as_none(world: Path) -> None:
    shutil.rmtree(world / QUESTIONS)
    (world / QUESTIONS).mkdir()
    report = examine(world)
    state, note = state_of(report, "reasonseg val")
    assert state == "missing" and f"{QUESTIONS}: an empty folder" in note and "github.com/dvlab-research/LISA" in note and report.status(BENCHMARKS) == 0
    for path in (world / "coco/val2017").iterdir():
        path.unlink()
    report = examine(world)
    assert state_of(report, "png val")[0] == "broken" and "coco/val2017: an empty folder" in state_of(report, "png val")[1]


def test_pictures_that_are_empty_or_links_to_nothing(world: Path) -> None:
    first, second, *_ = sorted((world / "coco/val2017").iterdir())
    first.write_bytes(b"")
    second.unlink()
    second.symlink_to("nowhere")
    report = examine(world, samples=0)
    for part, state in (("png val", "broken"), ("coco/val2017", "odd")):
        found = state_of(report, part)
        assert found[0] == state and "coco/val2017: 2 of the" in found[1] and f"are empty or no files, the first is {first.name}" in found[1]


def test_folders_that_may_not_be_listed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: object) -> object:
        if "GranDf_HA_images" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = examine(world)
    assert {f.part for f in report.findings if f.state != "ok"} == {"gcg val", "gcg test"}
    assert state_of(report, "gcg val") == ("broken", "GCG/GranDf_HA_images/val_test: cannot be listed (Permission denied). Look at its permissions.")


def test_files_that_may_not_be_read(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == Path(NARRATIVES).name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    note = only_this_is_broken(examine(world), "png val")
    assert "png_coco_val2017.json" in note and "Permission denied" in note


def test_what_nobody_thought_of_is_said_with_its_place(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(checks, "draw_shapes", stumble)
    report = examine(world, ["gcg", "reasonseg"])
    state, note = state_of(report, "reasonseg test")
    assert state == "broken" and "reason_seg/ReasonSeg/test/" in note and ".json: ZeroDivisionError: of all things" in note
    assert state_of(report, "gcg test")[0] == "ok"
    monkeypatch.setattr(places, "not_read", stumble)
    report = examine(world, ["gcg"])
    assert [f.state for f in report.findings] == ["broken"] * 2 and "val_gcg_coco_caption_gt.json" in state_of(report, "gcg val")[1]


def test_a_sample_that_nobody_thought_of(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checks.GranDf, "__getitem__", stumble)
    state, note = state_of(examine(world, ["gcg"]), "gcg val")
    assert state == "broken" and note.startswith("gcg val, sample 0") and "MemoryError" in note


def test_an_enormous_picture(world: Path) -> None:
    picture = sorted((world / QUESTIONS).glob("*.jpg"))[0]
    picture.unlink()
    Image.new("1", (20_000, 10_000)).save(picture.with_suffix(".png"))
    report = examine(world, samples=None)
    assert {f.part for f in report.findings if f.state == "broken"} <= {"reasonseg val"}  # read, or refused by name
    state, note = state_of(report, "reasonseg val")
    assert state == "ok" or picture.stem in note


def test_leftovers_of_other_systems(world: Path) -> None:
    for folder in (QUESTIONS, "coco/val2017", "coco/train2014", "GCG/GranDf_HA_images/val_test", "coco/annotations"):
        for name in ("._000000200000.jpg", ".DS_Store", "Thumbs.db", "._a.json"):
            (world / folder / name).write_bytes(b"\0\5\26\7")
    report = examine(world)
    assert {f.state for f in report.findings} == {"ok"}, report


def test_a_root_that_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data.zip").write_text("a file")
    (tmp_path / "link").symlink_to("nowhere")
    for name, what in (("data.zip", "is a file, expected a folder"), ("link", "no such folder"), ("none", "no such folder")):
        assert main([str(tmp_path / name)]) == 1
        assert f"{tmp_path / name}: {what}" in capsys.readouterr().err
    assert examine(tmp_path / "data.zip").status() == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b'{"counts": null}', b'{"counts": {"train": "many", "val": 1, "test": 1}}', b"\xff\xfe", b'{"counts": {"train": 1e999, "val": 1, "test": 1}}'])
def test_a_strange_toycoco_json_says_nothing(world: Path, content: bytes) -> None:
    (world / "toycoco.json").write_bytes(content)
    report = examine(world, samples=1)
    assert report.status(BENCHMARKS) == 0 and state_of(report, "coco/val2017")[1].endswith("published 5,000")


def test_a_toycoco_that_leads_back_to_itself(world: Path) -> None:
    (world / "toycoco").symlink_to(world)
    assert {f.state for f in examine(world, samples=1).findings} == {"ok"}


@pytest.mark.parametrize("given", [{"samples": -1}, {"seed": -3}])
def test_numbers_that_are_none(world: Path, given: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="expected whole numbers from 0 on"):
        examine(world, **given)
    with pytest.raises(SystemExit) as stopped:
        main([str(world), *(text for name, value in given.items() for text in (f"--{name}", str(value)))])
    assert stopped.value.code == 2


# What is counted


def test_both_numbers_of_reasonseg(world: Path) -> None:
    files = sorted((world / QUESTIONS).glob("*.json"))
    for file, texts in zip(files, (["a", "b", " ", "c"], ["", " "], []), strict=False):
        file.write_text(json.dumps({**json.loads(file.read_text()), "text": texts}))
    (finding,) = [f for f in examine(world, ["reasonseg"]).findings if f.part == "reasonseg val"]
    count = len(files)
    assert finding.found == f"{count - 2} pictures with a question, {count} questions with paraphrases"
    assert finding.state == "odd" and "2 pictures without a question" in finding.note
    assert len(layout.open_reasonseg(world)) == count - 2 and len(layout.open_reasonseg(world, paraphrases=True)) == count


def test_pictures_without_a_shape(world: Path) -> None:
    file = sorted((world / QUESTIONS).glob("*.json"))[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "shapes": []}))
    state, note = state_of(examine(world, ["reasonseg"], samples=0), "reasonseg val")
    assert state == "odd" and "1 picture without a shape" in note and "visible pixel" not in note


def test_objects_without_a_visible_pixel(world: Path) -> None:
    content = json.loads((world / INSTANCES).read_text())
    content["annotations"][-1]["segmentation"] = [[-50, -50, -40, -50, -40, -40]]
    (world / INSTANCES).write_text(json.dumps(content))
    state, note = state_of(examine(world, ["res"], samples=None), "refcoco")
    assert state == "odd" and "1 object without a visible pixel" in note


@pytest.mark.parametrize(("file", "field"), [(REFS, "raw"), (NARRATIVES, "utterance"), (CAPTIONS, "caption")])
def test_text_read_in_a_wrong_encoding(world: Path, file: str, field: str) -> None:
    """Saved as UTF-8 by a program that took it for cp1252: nothing fails, so it has to be said."""
    content = pickle.loads((world / file).read_bytes()) if file == REFS else json.loads((world / file).read_text())
    record = {REFS: lambda: content[-1]["sentences"][0], NARRATIVES: lambda: content[0]["segments"][0], CAPTIONS: lambda: content["annotations"][0]}[file]()
    record[field] = "der grüne Apfel".encode().decode("cp1252")
    (world / file).write_bytes(pickle.dumps(content) if file == REFS else json.dumps(content).encode())
    state, note = state_of(examine(world), PART[file])
    assert state == "odd" and "1 " in note and "garbled (read in a wrong encoding)" in note


def test_refs_that_are_not_used(world: Path) -> None:
    refs = pickle.loads((world / REFS).read_bytes())
    val = [r for r in refs if r["split"] == "val"]
    val[0]["sentences"] = []
    (world / REFS).write_bytes(pickle.dumps([*refs, {**val[1], "ref_id": 1}]))
    (finding,) = [f for f in examine(world, ["res"]).findings if f.part == "refcoco"]
    assert f"val {len(val) + 1} (2 not used)" in finding.found


def test_what_a_toycoco_is_held_against(world: Path) -> None:
    assert complete.known_counts(world)["png val"] == 6 and complete.known_counts(world / "coco")["refcoco testA"] == 1_975
