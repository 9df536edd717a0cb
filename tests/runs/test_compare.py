"Runs side by side: the program on real records, and its intervals against draws made by hand."

import contextlib
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hglmm.errors import DataError, HGLMMError, SettingError
from hglmm.runs import compare_table, measured, score_files
from hglmm.runs.compare import NOTES, compare
from hglmm.runs.records import Records

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


def compared(tmp_path: Path, *runs: str, **options) -> compare_table.Comparison:
    return compare({run: measured.read_run(tmp_path / run) for run in runs}, repeats=20, **options)


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
    assert {title: one.task for title, one in measured.read_run(tmp_path / "old").items()} == {"PNG val": "png", "RES refcoco-val-hg": "res"}


def test_toycoco_has_no_published_numbers(tmp_path, small_world):
    for run, data in (("named", "data/toycoco"), ("elsewhere", str(small_world)), ("real", "/data")):
        write(tmp_path / run, "refcoco val (standard)", "res", 0.0, data=data)
        comparison = compared(tmp_path, run)
        assert [n.method for n in comparison.lines[0].published] == (["LISA-7B, fine-tuned", "GLaMM-7B"] if run == "real" else [])
        assert (NOTES["toy"] in repr(comparison)) == (run != "real")


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
    assert [n.value for n in comparison.lines[1].published] == [66.3, None] and NOTES["gcg"] in comparison.notes
    assert len(compare_table.forest(comparison).axes) == 1
    (tmp_path / "second/scores.json").unlink()
    with pytest.raises(DataError, match="second/scores.json: no such file"):
        compared(tmp_path, "first", "second")


# What was recorded decides


def real_settings(**changed) -> dict:
    "What an evaluation of the real data records, as far as a comparison looks at it."
    return {"limit": 0, "samples": PICTURES, "sam": "", "head_kind": "hg", "dtype": "float32", "autocast": "off", "device": "cuda", **changed}


def test_heads_of_another_kind_stand_side_by_side(tmp_path):
    "hg beside unet_sam is what this project is about: head, its kind and SAM may differ, also in runs from before the kind was recorded."
    write(tmp_path / "hg", "refcoco val (hg)", "res", 0.0, sam="")
    write(tmp_path / "refined", "refcoco val (hg)", "res", 0.02, sam="/models/sam-vit-large")
    write(tmp_path / "new", "refcoco val (hg)", "res", 0.02, **real_settings(sam="facebook/sam-vit-large", head_kind="unet_sam"))
    lines = compared(tmp_path, "hg", "refined", "new").lines
    assert [line.score for line in lines] == ["cIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9"] and set(lines[0].differences) == {"refined", "new"}
    write(tmp_path / "newest", "refcoco val (hg)", "res", 0.02, **real_settings(sam={"path": "/sam", "files": {"model.safetensors": 7}}, head_kind="unet_sam"))
    assert all(len(compared(tmp_path, *runs).lines) == 5 for runs in (("refined", "new"), ("new", "newest"), ("newest", "hg"), ("newest", "refined")))


@pytest.mark.parametrize("name", ["threshold", "question", "parser", "dataset", "split", "protocol", "limit", "samples", "data", "data_name", "benchmark", "max_new_tokens"])
@pytest.mark.parametrize("value", [[0.5], {"a": 1}, None, "x", 1.5, True], ids=repr)
def test_settings_of_another_type_end_in_no_bare_exception(name, value, tmp_path):
    "A config.json that somebody edited: compared, or refused by an error of ours."
    write(tmp_path / "whole", "refcoco val (hg)", "res", 0.0, **real_settings())
    write(tmp_path / "edited", "refcoco val (hg)", "res", 0.0, **real_settings(**{name: value}))
    for runs in (("edited",), ("whole", "edited"), ("edited", "whole")):
        with contextlib.suppress(HGLMMError):
            assert len(compared(tmp_path, *runs).lines) == 5
    write_gcg(tmp_path / "spoken", cut=True)
    path = tmp_path / "spoken/val/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with contextlib.suppress(HGLMMError):
        assert compared(tmp_path, "spoken").lines


def test_titles_are_names_and_fields_decide(tmp_path):
    fields = {"dataset": "refcoco", "split": "val"}
    write(tmp_path / "old", "refcoco val (hg)", "res", 0.0)
    write(tmp_path / "new", "RefCOCO, validation", "res", 0.0, **fields, protocol="hg")
    write(tmp_path / "other", "refcoco val (hg)", "res", 0.0, **fields, protocol="standard")
    assert compared(tmp_path, "old", "new").lines[0].benchmark == "refcoco val (hg)"
    with pytest.raises(SettingError, match="protocol is 'standard', but 'hg'"):
        compared(tmp_path, "old", "other")
    write(tmp_path / "toy", "refcoco val (hg)", "res", 0.0, data="/data/toycoco")
    with pytest.raises(SettingError, match="toycoco is True, but False in .*old/refcoco-val-hg"):
        compared(tmp_path, "old", "toy")


@pytest.mark.parametrize("name, ours, theirs", [("dtype", "float32", "bfloat16"), ("autocast", "off", "bfloat16"), ("device", "cpu", "cuda"), ("something_new", 1, 2)])
def test_what_may_differ_is_said(name, ours, theirs, tmp_path):
    for run, value in (("first", ours), ("second", theirs)):
        write(tmp_path / run, "PNG val", "png", 0.0, **real_settings(**{name: value}))
    assert f"PNG val: {name} is not the same: {ours!r} in first, {theirs!r} in second." in compared(tmp_path, "first", "second").notes
    assert not any("not the same" in note for note in compared(tmp_path, "first").notes)


def test_other_words_for_the_same_object_are_other_data(tmp_path):
    for run, word in (("first", "a mug"), ("other", "the cup")):
        write(tmp_path / run, "refcoco val (hg)", "res", 0.0)
        path = tmp_path / run / "refcoco-val-hg/records-00000.jsonl"
        path.write_text(path.read_text().replace('"intersection"', f'"text": "{word}", "intersection"'))
    with pytest.raises(DataError, match="has the text the cup, but a mug in .* did not see the same data"):
        compared(tmp_path, "first", "other")


WHOLE = {"refcoco val (hg)": "res", "PNG val": "png", "ReasonSeg val": "reasonseg"}


@pytest.mark.parametrize("title, task", WHOLE.items())
def test_published_numbers_stand_beside_the_whole_benchmark(title, task, tmp_path):
    threshold = {"reasonseg": 0.3}.get(task, 0.5)
    write(tmp_path / "whole", title, task, 0.0, **real_settings(threshold=threshold))
    found = compared(tmp_path, "whole")
    assert any(line.published for line in found.lines) and found.notes == [NOTES["published"]]


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"threshold": 0.35}, "threshold 0.35 (published: "),
        ({"limit": 24, "samples": 24}, "only the first 24 samples were asked for"),
        ({"limit": 24}, "only the first 24 samples were asked for"),
        ({"samples": 1500}, "24 of 1500 samples are measured"),
        ({"shuffle_phrases": True}, "the control with shuffled phrases"),
    ],
    ids=["threshold", "limit", "limit_alone", "unfinished", "shuffled"],
)
@pytest.mark.parametrize("title, task", WHOLE.items())
def test_published_numbers_are_left_out_where_records_speak_against_them(title, task, changed, reason, tmp_path):
    threshold = {"reasonseg": 0.3}.get(task, 0.5)
    write(tmp_path / "whole", title, task, 0.0, **real_settings(threshold=threshold))
    write(tmp_path / "part", title, task, 0.0, **real_settings(**{"threshold": threshold, **changed}))
    runs = [("part",)] if "threshold" in changed else [("part",), ("whole", "part"), ("part", "whole")]
    for names in runs:
        found = compared(tmp_path, *names)
        assert not any(line.published for line in found.lines) and NOTES["published"] not in found.notes
        assert any(f"{title}: no published numbers beside" in note and reason in note for note in found.notes), found.notes
        assert "arXiv" not in repr(found) and "arXiv" not in found._repr_html_()


def test_failed_samples_and_common_pictures_are_not_the_whole_benchmark(tmp_path):
    write(tmp_path / "whole", "PNG val", "png", 0.0, **real_settings())
    write(tmp_path / "part", "PNG val", "png", 0.0, skip=3, **real_settings())
    Records(tmp_path / "part/PNG-val").fail(3, ValueError("broken"))
    found = compared(tmp_path, "part")
    assert found.lines[0].published == [] and "PNG val: no published numbers beside all: 1 samples failed." in found.notes
    common = compared(tmp_path, "whole", "part", common_only=True)
    assert any("only what all runs have is compared" in note for note in common.notes) and common.lines[0].published == []


def test_what_was_not_recorded_is_said(tmp_path):
    write(tmp_path / "old", "PNG val", "png", 0.0)
    found = compared(tmp_path, "old")
    assert found.lines[0].published and "PNG val: not recorded, so take it on trust that published numbers are of the same: limit." in found.notes


# GCG

QUESTION = "Please give me a detailed description of the image."


def write_gcg(run: Path, split: str = "val", pictures: int = 6, score: float = 40.0, recall: bool = True, cut: bool = False, **changed) -> None:
    "Records and scores of a GCG run; what is not a setting is a fact in scores.json."
    facts = {"encoder": "bert-base-uncased" if recall else "", "parser": "en_core_web_sm 3.8.0", "pictures": pictures, "failed": 0}
    facts |= {name: changed.pop(name) for name in (*facts, "samples") if name in changed}
    settings = {"task": "gcg", "benchmark": f"GCG {split}", "data": "/data", "recipe": "toy_llava", "head": run.name, "threshold": 0.5, "question": QUESTION}
    records = Records(run / split, 0, {**settings, "max_new_tokens": 1024, **real_settings(samples=pictures), **changed})
    for index in range(pictures):
        rows = [{"picture": f"p{index}", "caption": "a mug", "cut": cut and index == 2, "text": "a mug" if index else "", "mask": "{}" if index else ""}]
        records.add(f"p{index}", index, rows)
    records.close()
    score_files.note(run, f"GCG {split}", {"METEOR": score, "AP50": score, "mIoU": score, **({"Recall": score} if recall else {})}, {"AP50": (score - 1, score + 1)}, **facts)


def test_val_then_test_under_one_name_keeps_both(tmp_path):
    for split, score in (("val", 40.0), ("test", 50.0)):
        write_gcg(tmp_path / "run", split, score=score)
        write_gcg(tmp_path / split, split, score=score + 1)
    found = {(line.benchmark, line.score): line for line in compared(tmp_path, "run").lines}
    assert found["GCG val", "METEOR"].values == {"run": 40.0} and found["GCG test", "METEOR"].values == {"run": 50.0}
    assert [n.value for n in found["GCG val", "METEOR"].published] == [16.2, None] and found["GCG test", "METEOR"].published == []
    both = compared(tmp_path, "val", "run", common_only=True)
    assert {(line.benchmark, line.values["run"]) for line in both.lines} == {("GCG val", 40.0)}


def test_scores_that_do_not_say_of_what_they_are(tmp_path):
    "As it was until now: one flat file, written over by the second split."
    for split in ("val", "test"):
        write_gcg(tmp_path / "old", split)
    (tmp_path / "old/scores.json").write_text(json.dumps({"scores": {"METEOR": 15.0}, "intervals": {}, "failed": 0, "encoder": "bert-base-uncased", "pictures": 6}))
    with pytest.raises(DataError, match="old/scores.json: its scores are of one benchmark and it does not say which"):
        compared(tmp_path, "old")


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"encoder": "all-MiniLM-L6-v2"}, SettingError, "encoder is 'all-MiniLM-L6-v2', but 'bert-base-uncased' in"),
        ({"parser": "en_core_web_trf 3.8.0"}, SettingError, "parser is 'en_core_web_trf 3.8.0', but"),
        ({"pictures": 4}, DataError, "4 pictures, but 6 in .* e.g. p4 is in one of them only"),
        ({"question": "What is there?"}, SettingError, r"question is 'What is there\?', but"),
        ({"max_new_tokens": 256}, SettingError, "max_new_tokens is 256, but 1024"),
        ({"threshold": 0.3}, SettingError, "threshold is 0.3, but 0.5"),
    ],
    ids=["encoder", "parser", "pictures", "question", "tokens", "threshold"],
)
def test_unlike_descriptions_are_refused(changed, error, message, tmp_path):
    write_gcg(tmp_path / "first")
    write_gcg(tmp_path / "other", **changed)
    for common in (False, True):
        with pytest.raises(error, match=f"other/val: {message}"):
            compared(tmp_path, "first", "other", common_only=common)


def test_scores_of_fewer_pictures_than_are_measured_are_refused(tmp_path):
    "The evaluation was continued and stopped before it wrote its scores."
    write_gcg(tmp_path / "run", pictures=6)
    score_files.note(tmp_path / "run", "GCG val", {"METEOR": 15.0}, pictures=3)
    with pytest.raises(DataError, match="scores of 'GCG val' are of 3 pictures, but 6 are measured"):
        compared(tmp_path, "run")


def test_a_lower_limit_after_a_higher_one(tmp_path):
    "The records of the higher limit stay; the scores are of the first three pictures, and are compared with those of a run that has no more."
    write_gcg(tmp_path / "lowered", pictures=6)
    score_files.note(tmp_path / "lowered", "GCG val", {"METEOR": 15.0}, pictures=3, limit=3, encoder="", parser="en_core_web_sm 3.8.0")
    write_gcg(tmp_path / "small", pictures=3)
    for runs in (("lowered", "small"), ("small", "lowered")):
        line = compared(tmp_path, *runs).lines[0]
        assert (line.score, line.pictures, line.values["lowered"]) == ("METEOR", 3, 15.0)
    assert any("3 of 6 samples are measured" in note for note in compared(tmp_path, "lowered").notes)


@pytest.mark.parametrize(
    "changed, beside",
    [
        ({}, {"METEOR", "AP50", "mIoU", "Recall"}),
        ({"encoder": "bert-base-uncased (/models/bert)"}, {"METEOR", "AP50", "mIoU", "Recall"}),
        ({"encoder": "all-MiniLM-L6-v2"}, {"METEOR", "AP50", "mIoU"}),
        ({"recall": False}, {"METEOR", "AP50", "mIoU"}),
        ({"question": "What is there?"}, set()),
        ({"threshold": 0.4}, set()),
        ({"max_new_tokens": 256}, {"METEOR", "AP50", "mIoU", "Recall"}),  # none was cut: a larger limit would have changed nothing
        ({"max_new_tokens": 256, "cut": True}, set()),
        ({"max_new_tokens": 512, "cut": True}, {"METEOR", "AP50", "mIoU", "Recall"}),
        ({"samples": 2500}, {"METEOR", "AP50", "mIoU", "Recall"}),  # the records' own settings come first
        ({"limit": 6}, set()),
        ({"data": "/data/toycoco"}, set()),
    ],
)
def test_where_published_scores_of_descriptions_belong(changed, beside, tmp_path):
    write_gcg(tmp_path / "run", **changed)
    found = compared(tmp_path, "run")
    assert {line.score for line in found.lines if line.published} == beside


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("val/config.json", "[1]", "config.json: expected a JSON object"),
        ("val/config.json", '{"task": ["gcg"]}', r"task in .*config.json"),
        ("val/config.json", "{", "config.json: not valid JSON"),
        ("scores.json", "[]", "scores.json: expected a JSON object"),
        ("scores.json", '{"scores": {"METEOR": "15"}}', "expected a number for each name"),
        ("scores.json", '{"scores": {"METEOR": 15}, "intervals": {"METEOR": [1]}}', "expected a low and a high number"),
        ("scores.json", '{"scores": {}}', "no scores of 'GCG val' in it"),
    ],
)
def test_files_of_a_run_that_are_no_such_files(name, content, message, tmp_path):
    write_gcg(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises((DataError, SettingError), match=message):
        compared(tmp_path, "run")


def test_a_byte_order_mark_changes_nothing(tmp_path):
    write_gcg(tmp_path / "run")
    before = repr(compared(tmp_path, "run"))
    for path in (tmp_path / "run/scores.json", tmp_path / "run/val/config.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert repr(compared(tmp_path, "run")) == before
