"Runs side by side: the program on real records, and its intervals against draws made by hand."

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hglmm import compare
from hglmm.errors import DataError, SettingError
from hglmm.records import Records

PICTURES, REPEATS, SEED = 24, 60, 5


def write(run: Path, title: str, task: str, gain: float, data: str = "/data", processes: int = 1, skip: int = -1, **settings) -> None:
    "Records of a run whose skill on each picture is that of all other runs plus its gain."
    world, own = np.random.default_rng(0), np.random.default_rng(list(run.name.encode()))
    folder = run / re.sub(r"\W+", "-", title.replace("+", "plus")).strip("-")
    settings = {"task": task, "benchmark": title, "data": data, "recipe": "toy_llava", "head": run.name, "threshold": 0.5, **settings}
    pens = [Records(folder, process, settings) for process in range(processes)]
    for index in range(PICTURES):
        phrases, hard = int(world.integers(1, 4)), world.uniform(0.1, 0.8)
        union, isthing, plural = world.integers(50, 3000, phrases), world.random(phrases) < 0.6, world.random(phrases) < 0.3
        shared = (union * np.clip(hard + own.normal(gain, 0.1, phrases), 0, 1)).astype(int)
        rows = [
            {"intersection": i, "union": u, "iou": float(i / u), "truth": u, "picture": f"p{index}", "correct": 0.9, "isthing": a, "plural": b}
            for i, u, a, b in zip(shared.tolist(), union.tolist(), isthing.tolist(), plural.tolist(), strict=True)
        ]
        if task != "png":
            rows = [{k: v for k, v in row.items() if k not in ("isthing", "plural")} for row in rows]
        if index != skip:
            pens[index % processes].add(f"s{index}", index, rows)


def by_hand(first: Path, second: Path, score) -> tuple[float, float]:
    "The paired interval, from the files, picture by picture and draw by draw."
    pictures = []
    for folder in (first, second):
        found: dict[str, list[dict]] = {}
        for path in folder.glob("records-*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                found.setdefault(line["picture"], []).append(line)
        pictures.append(found)
    names, random, differences = sorted(pictures[0]), np.random.default_rng(SEED), []
    for _ in range(REPEATS):
        drawn = [names[k] for k in random.integers(len(names), size=len(names))]
        before, after = (score([row for name in drawn for row in found[name]]) for found in pictures)
        differences.append(after - before)
    return tuple(np.quantile(differences, (0.025, 0.975)))


def c_iou(rows: list[dict]) -> float:
    return 100 * sum(row["intersection"] for row in rows) / sum(row["union"] for row in rows)


def things(rows: list[dict]) -> float:
    values = [row["iou"] for row in rows if row["isthing"] or row["plural"]]
    return 100 * sum(values) / len(values)


@pytest.mark.slow
def test_the_program_compares_runs(run_notebook, tmp_path):
    for name, gain in (("plain", 0.0), ("better", 0.05)):
        write(tmp_path / name, "refcoco+ testA (hg)", "res", gain, processes=1 + (gain > 0))
        write(tmp_path / name, "PNG val", "png", gain)
    given = f"'[{tmp_path / 'plain'}, {tmp_path / 'better'}]'"  # as text, which is how -p passes it
    status, said, runs = run_notebook("compare", runs=given, name="compared", repeats=REPEATS, seed=SEED)
    assert status == 0, said
    assert {p.name for p in (runs / "compared").iterdir()} == {"compare.csv", "compare.json", "compare.png"}
    rows = {(r["benchmark"], r["score"], r["run"]): r for r in csv.DictReader((runs / "compared/compare.csv").open())}
    assert len(rows) == 2 * (5 + 7)
    for title, slug, name, score in (("refcoco+ testA (hg)", "refcocoplus-testA-hg", "cIoU", c_iou), ("PNG val", "PNG-val", "things", things)):
        row, low_high = rows[title, name, "better"], by_hand(tmp_path / "plain" / slug, tmp_path / "better" / slug, score)
        np.testing.assert_allclose([float(row["difference_low"]), float(row["difference_high"])], low_high, atol=1e-9)
        assert row["excludes_zero"] == str(not low_high[0] <= 0 <= low_high[1])
        assert float(row["difference"]) == pytest.approx(float(row["value"]) - float(rows[title, name, "plain"]["value"]))
    assert "F-LMM DeepSeek-VL-1.3B 70.8 (arXiv 2406.05821)" in rows["refcoco+ testA (hg)", "cIoU", "plain"]["published"]
    assert rows["refcoco+ testA (hg)", "mIoU", "plain"]["published"] == "" and "LISA" not in said
    assert "65.7" in rows["PNG val", "all", "plain"]["published"] and "better − plain" in said
    saved = json.loads((runs / "compared/compare.json").read_text())
    assert saved["runs"] == ["plain", "better"]
    assert {n["protocol"] for line in saved["lines"] if line["task"] == "res" for n in line["published"]} == {"hg"}


@pytest.mark.slow
def test_a_folder_without_records_stops_the_program(run_notebook, tmp_path):
    write(tmp_path / "plain", "PNG val", "png", 0.0)
    (tmp_path / "head").mkdir()
    status, said, _ = run_notebook("compare", runs=f"[{tmp_path / 'plain'}, {tmp_path / 'head'}]", name="wrong")
    assert status != 0 and f"{tmp_path / 'head'}: no records in it" in said


def compared(tmp_path: Path, *runs: str, **options) -> compare.Comparison:
    return compare.compare({run: compare.read_run(tmp_path / run) for run in runs}, repeats=20, **options)


def test_how_the_work_was_split_changes_nothing(tmp_path):
    for processes in (1, 3):
        write(tmp_path / str(processes) / "run", "PNG val", "png", 0.0, processes=processes)
    comparison = compared(tmp_path, "1/run", "3/run")
    assert all(line.differences["3/run"] == (0, 0, 0) for line in comparison.lines if np.isfinite(line.values["1/run"]))
    assert all(line.pictures == PICTURES for line in comparison.lines)


def test_a_missing_picture_is_an_error_unless_common_only(tmp_path):
    write(tmp_path / "whole", "PNG val", "png", 0.0)
    write(tmp_path / "part", "PNG val", "png", 0.0, skip=3)
    for runs in (("whole", "part"), ("part", "whole")):
        with pytest.raises(DataError, match=r"part/PNG-val: \d phrases of other runs are not in it, e.g. phrase 0 of sample s3"):
            compared(tmp_path, *runs)
        assert {line.pictures for line in compared(tmp_path, *runs, common_only=True).lines} == {PICTURES - 1}


@pytest.mark.parametrize(
    "title, changed, error, message",
    [
        ("refcoco val (hg)", {"threshold": 0.3}, SettingError, r"other/refcoco-val-hg: threshold is 0.3, but 0.5 in .*first/refcoco-val-hg"),
        ("refcoco val (standard)", {}, DataError, r"other: 'refcoco val \(hg\)' is not in it, but in first"),
        ("refcoco val (hg)", {"task": "png"}, SettingError, "task is 'png', but 'res'"),
        ("refcoco val (hg)", {"task": "segmentation"}, SettingError, r"task in .*config.json: 'segmentation'"),
    ],
    ids=["threshold", "protocol", "task", "unknown_task"],
)
def test_unlike_runs_are_refused(title, changed, error, message, tmp_path):
    write(tmp_path / "first", "refcoco val (hg)", "res", 0.0)
    write(tmp_path / "other", title, **{"task": "res", **changed}, gain=0.0)
    with pytest.raises(error, match=message):
        compared(tmp_path, "first", "other")


def test_other_data_is_refused(tmp_path):
    write(tmp_path / "first", "PNG val", "png", 0.0)
    write(tmp_path / "other", "PNG val", "png", 0.0)
    path = tmp_path / "other/PNG-val/records-00000.jsonl"
    path.write_text(re.sub(r'"truth": \d+', '"truth": 7', path.read_text(), count=1))
    with pytest.raises(DataError, match="other/PNG-val: sample s0, phrase 0 has the truth 7, .* did not see the same data"):
        compared(tmp_path, "first", "other")


def test_records_without_a_task_are_told_by_their_columns(tmp_path):
    for task, folder in (("png", "val"), ("res", "refcoco-val-hg")):
        write(tmp_path / "old", folder, task, 0.0)
        config = tmp_path / "old" / folder / "config.json"
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k not in ("task", "benchmark")}))
    assert {title: one.task for title, one in compare.read_run(tmp_path / "old").items()} == {"PNG val": "png", "RES refcoco-val-hg": "res"}


def test_toycoco_has_no_published_numbers(tmp_path, small_world):
    for run, data in (("named", "data/toycoco"), ("elsewhere", str(small_world)), ("real", "/data")):
        write(tmp_path / run, "refcoco val (standard)", "res", 0.0, data=data)
        comparison = compared(tmp_path, run)
        assert [n.method for n in comparison.lines[0].published] == (["LISA-7B, fine-tuned", "GLaMM-7B"] if run == "real" else [])
        assert (compare.NOTES["toy"] in repr(comparison)) == (run != "real")


def test_reasoning_segmentation_is_paired(tmp_path):
    pytest.importorskip("hglmm.metrics.reasonseg")
    for run, gain in (("first", 0.0), ("second", 0.3)):
        write(tmp_path / run, "ReasonSeg val", "reasonseg", gain, threshold=0.3)
    lines = {line.score: line for line in compared(tmp_path, "first", "second").lines}
    assert set(lines) == {"gIoU", "cIoU"} and all(line.differences["second"][1] > 0 for line in lines.values())
    assert [n.value for n in lines["gIoU"].published] == [52.9, None]


def test_grounded_conversation_is_taken_from_scores(tmp_path):
    for run, value in (("first", 30.0), ("second", 31.5)):
        write(tmp_path / run, "GCG val", "gcg", 0.0)
        (tmp_path / run / "scores.json").write_text(json.dumps({"scores": {"AP50": value, "mIoU": 60.0}, "intervals": {"AP50": [value - 1, value + 1]}}))
    comparison = compared(tmp_path, "first", "second")
    assert comparison.lines[0].values == {"first": 30.0, "second": 31.5} and comparison.lines[0].differences == {}
    assert [n.value for n in comparison.lines[1].published] == [66.3, None] and compare.NOTES["gcg"] in comparison.notes
    assert len(compare.forest(comparison).axes) == 1
    (tmp_path / "second/scores.json").unlink()
    with pytest.raises(DataError, match="second/scores.json: no such file"):
        compared(tmp_path, "first", "second")
