"""The data doctor on data that is whole, and broken in the ways downloads come broken."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hglmm.datasets import complete, doctor, layout
from hglmm.datasets.doctor import BENCHMARKS, Report, examine

REFS = ("refcoco", "refcoco+", "refcocog")


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    "A data root of one's own to break."
    return Path(shutil.copytree(small_world, tmp_path / "world"))


def change_json(path: Path, change: Callable[[object], object]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def found(report: Report, part: str) -> tuple[str, str]:
    "State and note of a part."
    (finding,) = [f for f in report.findings if f.part == part]
    return finding.state, finding.note


def test_a_whole_tree_is_usable(small_world: Path) -> None:
    report = examine(small_world)
    assert report.usable == dict.fromkeys(BENCHMARKS, True) and report.status(BENCHMARKS) == 0
    assert {f.state for f in report.findings} == {"ok"} and len(report.findings) == 3 + 3 + 2 + 2 + 3
    assert "40 narratives" in next(f.found for f in report.findings if f.part == "png train")


def test_an_empty_tree_says_where_to_get_everything(tmp_path: Path) -> None:
    report = examine(tmp_path)
    assert report.usable == dict.fromkeys(BENCHMARKS, False) and report.status() == 1
    assert {f.state for f in report.findings} == {"missing"}
    for part, page, path in [
        ("refcoco+", "github.com/lichengunc/refer", "coco/refcoco+/refs(unc).p"),
        ("png val", "bcv-uniandes.github.io", "coco/annotations/png_coco_val2017.json"),
        ("gcg test", "huggingface.co/datasets/MBZUAI/GranD-f", "GCG/GranDf/annotations/val_test/test_gcg_coco_mask_gt.json"),
        ("reasonseg val", "github.com/dvlab-research/LISA", "reason_seg/ReasonSeg/val"),
        ("coco/train2017", "cocodataset.org", "coco/train2017"),
    ]:
        assert page in found(report, part)[1] and path in found(report, part)[1]


def test_one_benchmark_alone_is_enough(small_world: Path, tmp_path: Path) -> None:
    shutil.copytree(small_world / "reason_seg/ReasonSeg/val", tmp_path / "reason_seg/ReasonSeg/val")
    report = examine(tmp_path)
    assert report.usable == {"res": False, "png": False, "gcg": False, "reasonseg": True} and report.status() == 0
    assert report.status(["png"]) == 1 and found(report, "reasonseg test")[0] == "missing"
    state, note = found(report, "reasonseg val")
    assert state == "odd" and note.endswith("published 200")


OTHER_PLACES = {  # what users have on disk -> where it may lie as well
    "GCG/GranDf/annotations/val_test": ("GCG/annotations/val_test", "GCG/GranDf/val_test"),
    "GCG/GranDf_HA_images/val_test": ("GCG/images/GranDf_HA_images/val_test", "GCG/GranDf/GranDf_HA_images/val_test"),
    "reason_seg/ReasonSeg/val": ("reason_seg/val",),
}


@pytest.mark.parametrize(("usual", "other"), [(usual, other) for usual, others in OTHER_PLACES.items() for other in others])
def test_a_tree_of_another_project(world: Path, usual: str, other: str) -> None:
    """Each thing by itself at its other place, the rest where HG-LMM has it; then in both."""
    parts = ("reasonseg val",) if "reason" in usual else ("gcg val", "gcg test")
    before = {part: found(examine(world, ["gcg", "reasonseg"]), part)[1] for part in parts}
    assert all(usual in note for note in before.values())
    (world / other).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(world / usual, world / other)
    report = examine(world)
    assert {f.state for f in report.findings} == {"ok"} and report.status(BENCHMARKS) == 0
    assert all(found(report, part)[1] == note.replace(usual, other) for part, note in before.items())
    opened = layout.open_reasonseg(world) if "reason" in usual else layout.open_grandf(world)
    assert len(opened) and opened[0].masks.any()
    (world / usual).mkdir(parents=True)
    (world / usual / "._a.json").write_bytes(b"\0\5\26\7")  # a folder of leftovers is no place
    assert {f.state for f in examine(world).findings} == {"ok"}
    shutil.copytree(world / other, world / usual, dirs_exist_ok=True)
    report = examine(world, ["gcg", "reasonseg"])
    for part, note in before.items():
        assert found(report, part)[0] == "odd" and found(report, part)[1].startswith(f"{note}; not read, since the place above comes first: {other}")
    assert report.status(["gcg", "reasonseg"]) == 0


def test_val_in_one_tree_and_test_in_the_other(world: Path) -> None:
    for kind in ("caption", "mask"):
        name = f"test_gcg_coco_{kind}_gt.json"
        (world / "GCG/annotations/val_test").mkdir(parents=True, exist_ok=True)
        (world / "GCG/GranDf/annotations/val_test" / name).rename(world / "GCG/annotations/val_test" / name)
    report = examine(world, ["gcg"])
    assert {f.state for f in report.findings} == {"ok"} and "in GCG/annotations/val_test, GCG/GranDf_HA" in found(report, "gcg test")[1]
    (world / "GCG/annotations/val_test/test_gcg_coco_mask_gt.json").rename(world / "GCG/GranDf/annotations/val_test/test_gcg_coco_mask_gt.json")
    state, note = found(examine(world, ["gcg"]), "gcg test")  # a caption file here and a mask file there is not mixed
    assert state == "broken" and "GCG/GranDf/annotations/val_test/test_gcg_coco_caption_gt.json" in note and "Also looked in GCG/annotations/val_test" in note


def test_the_refs_of_another_split_rule(world: Path) -> None:
    (world / "coco/refcoco/refs(unc).p").rename(world / "coco/refcoco/refs(google).p")
    report = examine(world, ["res"])
    state, note = found(report, "refcoco")
    assert state == "broken" and "coco/refcoco/refs(unc).p" in note and "There is refs(google).p" in note
    assert not report.usable["res"] and report.status() == 1 and [found(report, d)[0] for d in REFS] == ["broken", "ok", "ok"]


@pytest.mark.parametrize("into", ["refcoco", "refcoco+"])
def test_refcocogs_refs_in_anothers_folder(world: Path, into: str) -> None:
    shutil.copy(world / "coco/refcocog/refs(umd).p", world / f"coco/{into}/refs(unc).p")
    state, note = found(examine(world, ["res"]), into)
    assert state == "broken" and f"coco/{into}/refs(unc).p" in note and "expected train, val, testA, testB" in note


def test_refs_of_annotations_that_are_not_there(world: Path) -> None:
    change_json(world / "coco/refcocog/instances.json", lambda content: {**content, "annotations": content["annotations"][:-20]})
    state, note = found(examine(world, ["res"]), "refcocog")
    assert state == "broken" and "refcocog/refs(umd).p: ref" in note and "refcocog/instances.json" in note


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("coco/refcoco/instances.json", "refcoco"),
        ("coco/refcocog/refs(umd).p", "refcocog"),
        ("coco/annotations/png_coco_val2017.json", "png val"),
        ("coco/annotations/panoptic_train2017.json", "png train"),
        ("GCG/GranDf/annotations/val_test/test_gcg_coco_mask_gt.json", "gcg test"),
        ("GCG/GranDf/annotations/val_test/val_gcg_coco_caption_gt.json", "gcg val"),
    ],
)
def test_a_file_that_is_cut_short(world: Path, path: str, part: str) -> None:
    file = world / path
    file.write_bytes(file.read_bytes()[:-300])
    report = examine(world)
    state, note = found(report, part)
    assert state == "broken" and path in note and "cut short" in note and report.status() == 1
    assert [f.part for f in report.findings if f.state == "broken"] == [part]


def test_a_question_that_is_cut_short(world: Path) -> None:
    file = sorted((world / "reason_seg/ReasonSeg/test").glob("*.json"))[1]
    file.write_bytes(file.read_bytes()[:-5])
    state, note = found(examine(world, ["reasonseg"]), "reasonseg test")
    assert state == "broken" and f"reason_seg/ReasonSeg/test/{file.name}: not valid JSON" in note


@pytest.mark.parametrize(
    ("folder", "parts"),
    [
        ("coco/train2014", REFS),
        ("coco/val2017", ("png val",)),
        ("coco/annotations/panoptic_train2017", ("png train",)),
        ("GCG/GranDf_HA_images/val_test", ("gcg val", "gcg test")),
    ],
)
def test_pictures_that_are_missing(world: Path, folder: str, parts: tuple[str, ...]) -> None:
    for path in sorted((world / folder).iterdir())[::3]:
        path.unlink()
    report = examine(world)
    for part in parts:
        state, note = found(report, part)
        assert state == "broken" and re.match(rf"{re.escape(folder)}: \d+ of the \d+ files that .*json names are not there, the first is \w+\.\w+", note), note
    shutil.rmtree(world / folder)
    report = examine(world)
    assert all(found(report, part)[0] == "broken" and folder in found(report, part)[1] for part in parts)
    assert {f.part for f in report.findings if f.state == "broken"} == set(parts)


def test_questions_without_their_picture(world: Path) -> None:
    picture = sorted((world / "reason_seg/ReasonSeg/val").glob("*.jpg"))[2]
    picture.unlink()
    state, note = found(examine(world, ["reasonseg"]), "reasonseg val")
    assert state == "broken" and f"{picture.stem}.json: there is no picture {picture.name}" in note


def test_a_picture_that_is_cut_short(world: Path) -> None:
    picture = sorted((world / "coco/val2017").iterdir())[0]
    picture.write_bytes(picture.read_bytes()[:800])
    assert found(examine(world, samples=None), "png val")[0] == "broken"
    state, note = found(examine(world, ["png"], samples=None), "png val")
    assert state == "broken" and f"coco/val2017/{picture.name}: cannot be read as a picture" in note
    skipped = [seed for seed in range(20) if found(examine(world, ["png"], samples=3, seed=seed), "png val")[0] == "ok"]
    assert 0 < len(skipped) < 20  # a sample of 3 out of 12 finds it now and then; the seed decides


def test_every_tenth_polygon_is_broken(world: Path) -> None:
    def spoil(content: dict) -> dict:
        for annotation in content["annotations"][::10]:
            annotation["segmentation"] = [[1.0, 2.0, 3.0]]
        return content

    change_json(world / "coco/refcoco+/instances.json", spoil)
    report = examine(world, ["res"], samples=0)  # without drawing a single one
    state, note = found(report, "refcoco+")
    assert state == "broken" and re.search(r"refcoco\+/instances\.json: \d+ of \d+ masks of split train cannot be drawn, the first is annotation \d+'s", note)


def test_a_mask_of_another_picture(world: Path) -> None:
    def spoil(content: dict) -> dict:
        content["annotations"][3]["segmentation"]["size"] = [7, 7]
        return content

    change_json(world / "GCG/GranDf/annotations/val_test/val_gcg_coco_mask_gt.json", spoil)
    state, note = found(examine(world, ["gcg"], samples=0), "gcg val")
    assert state == "broken" and "val_gcg_coco_mask_gt.json: image" in note and "cannot be drawn" in note


def test_narratives_of_another_panoptic_file(world: Path) -> None:
    annotations = world / "coco/annotations"
    shutil.copy(annotations / "panoptic_val2017.json", annotations / "panoptic_train2017.json")
    state, note = found(examine(world, ["png"]), "png train")
    assert state == "broken" and "panoptic_train2017.json: no annotation for image" in note


def test_segments_that_do_not_fit_their_png(world: Path) -> None:
    file = sorted((world / "coco/annotations/panoptic_val2017").iterdir())[0]
    pixels = np.array(Image.open(file))
    pixels[:3, :3] = pixels[-1, -1]
    pixels[0, 0] = pixels[0, -1] = (1, 2, 3)  # a segment that the JSON file does not know
    Image.fromarray(pixels).save(file)
    state, note = found(examine(world, ["png"], samples=None), "png val")
    assert state == "broken" and re.search(rf"{file.name}: segment \d+ has [\d,]+ pixels, .*panoptic_val2017\.json says", note)


def test_other_counts_are_odd_but_usable(world: Path) -> None:
    change_json(world / "coco/annotations/png_coco_val2017.json", lambda narratives: narratives[:-2])
    report = examine(world)
    assert found(report, "png val") == ("odd", "png val: 10, published 12") and report.usable["png"] and report.status() == 0
    (world / "toycoco.json").unlink()  # now it is held against the real numbers
    report = examine(world)
    assert found(report, "coco/train2014") == ("odd", "coco/train2014: 60, published 82,783")
    assert re.fullmatch(r"refcoco train: \d+, published 42,404; refcoco val: .*1,810", found(report, "refcoco")[1]) and report.status(BENCHMARKS) == 0


def test_hostile_refs_are_named_and_nothing_runs(world: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(world / "boom"),)

    (world / "coco/refcoco/refs(unc).p").write_bytes(pickle.dumps([Bomb()]))
    state, note = found(examine(world, ["res"]), "refcoco")
    assert state == "broken" and "refs(unc).p" in note and "Nothing was run" in note and not (world / "boom").exists()


def test_files_are_read_once_and_directories_listed_once(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, listed = [], []
    real, real_listing = Path.read_bytes, complete.sizes_in
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), real(path))[1])
    monkeypatch.setattr(complete, "sizes_in", lambda folder: (listed.append(folder), real_listing(folder))[1])
    examine(small_world, ["res", "png", "gcg"])
    large = [path for path in read if path.suffix in (".json", ".p")]
    assert len(large) == len(set(large)) == 3 * 2 + 2 * 2 + 2 * 2 and len(listed) == len(set(listed)) == 3 + 2 + 1


def test_a_hundred_thousand_names_are_listed_quickly(tmp_path: Path) -> None:
    folder = tmp_path / "coco/train2017"
    folder.mkdir(parents=True)
    first = folder / "000000000000.jpg"
    first.write_bytes(b"picture")
    for k in range(1, 20_000):  # links: quicker to make than files
        os.link(first, folder / f"{k:012}.jpg")
    start = time.perf_counter()
    report = examine(tmp_path, ["png"])
    assert time.perf_counter() - start < 3 and found(report, "coco/train2017") == ("odd", "coco/train2017: 20,000, published 118,287")


def doctor_says(module: str, *arguments: str) -> tuple[int, str]:
    "Exit status and output of the command line."
    done = subprocess.run([sys.executable, "-m", f"hglmm.datasets.{module}", *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_command_line(world: Path) -> None:
    code, said = doctor_says("doctor", str(world), "--require", "res,png,gcg,reasonseg")
    assert code == 0 and said.rstrip().endswith("res, png, gcg, reasonseg.") and "coco/val2017     ok" in said and "Warning" not in said
    (world / "coco/refcoco/instances.json").write_text("{")
    assert doctor_says("doctor", str(world), "--only", "res")[0] == 1
    code, said = doctor_says("layout", str(world), "--only", "png", "reasonseg", "--samples", "2")  # its old name
    assert code == 0 and "refcoco" not in said and f"Usable below {world}: png, reasonseg." in said and "Warning" not in said


def test_the_exit_status(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(world / "GCG")
    assert doctor.main([str(world), "--all"]) == 0
    assert doctor.main([str(world), "--require", "gcg", "res"]) == 1 and "huggingface.co/datasets/MBZUAI/GranD-f" in capsys.readouterr().out
    (world / "coco/refcoco/instances.json").write_text("{")
    assert doctor.main([str(world)]) == 1
    assert [doctor.main([str(world), "--only", name, "--samples", "2"]) for name in BENCHMARKS] == [1, 0, 1, 0]
    with pytest.raises(SystemExit) as stopped:
        doctor.main([str(world), "--only", "pgn"])
    assert stopped.value.code == 2 and "Did you mean 'png'?" in capsys.readouterr().err
    assert doctor.main([str(tmp_path / "nowhere")]) == 1 and "no such folder" in capsys.readouterr().err


def test_toycoco_is_the_one_that_runs_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine("toycoco", ["gcg"]).root == examine("data/toycoco", ["gcg"]).root
    monkeypatch.setenv("HGLMM_DATA", "toycoco")
    assert examine(only=["gcg"]).root.parts[-2:] == ("data", "toycoco")


def test_a_toycoco_in_the_data_root_counts(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    world.rename(root / "toycoco")
    report = examine(root)
    assert report.usable["toycoco"] and report.status() == 0 and report.status(["res"]) == 1
    (root / "toycoco/coco/refcoco/instances.json").write_text("{")
    report = examine(root)
    assert found(report, "toycoco")[0] == "broken" and "refcoco/instances.json" in found(report, "toycoco")[1] and report.status() == 1


def test_it_shows_as_a_table(world: Path) -> None:
    (world / "coco/refcoco/instances.json").write_text("{")
    report = examine(world, samples=0)
    page, text = report._repr_html_(), repr(report)
    assert page.count("<tr>") == 1 + len(report.findings) and "coco/refcoco/instances.json: not valid JSON" in page
    lines = text.splitlines()
    assert len(lines) == 3 + len(report.findings) and lines[-1].startswith("Usable below") and str(world) not in "".join(lines[:-1])
    assert len({line.index(f.state) for line, f in zip(lines[2:-1], report.findings, strict=True)}) == 1  # aligned
