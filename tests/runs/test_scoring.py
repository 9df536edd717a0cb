"Masks that are there already: what an evaluation kept, and anybody's files, against evaluations and against each other."

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hglmm import noun_phrases
from hglmm.datasets import layout, places
from hglmm.errors import DataError, HGLMMError, SettingError
from hglmm.metrics import gcg
from hglmm.runs import predictions, scoring, tasks, workers
from hglmm.runs.benchmarks import Benchmark
from hglmm.runs.compare import compare
from hglmm.runs.measured import read_run
from hglmm.runs.records import Records
from hglmm.runs.scores import res_scores
from hglmm.runs.tasks import Job

OPTIONS = {
    "RES hg": ("res", {"dataset": "refcoco", "split": "val", "protocol": "hg"}),
    "RES standard": ("res", {"dataset": "refcocog", "split": "val", "protocol": "standard"}),
    "PNG": ("png", {"split": "val"}),
    "GCG": ("gcg", {"split": "val"}),
    "ReasonSeg": ("reasonseg", {"split": "val"}),
}


def parses() -> bool:
    try:
        noun_phrases.load_parser()
    except SettingError:
        return False
    return True


def job_of(world: Path, folder: Path, threshold: float, **options) -> Job:
    "All tasks, three samples each."
    folder.mkdir()
    names = [name for name in OPTIONS if (name != "GCG" or parses()) and not (name == "GCG" and options.get("keep") == "masks")]
    benchmarks = [Benchmark(name, OPTIONS[name][0], str(world), str(folder / name.replace(" ", "-")), OPTIONS[name][1], limit=3) for name in names]
    return Job("toy_llava", "checkpoints/toy_head", benchmarks, device="cpu", batch_size=2, threshold=threshold, max_new_tokens=30, question="Describe the picture.", **options)


def table(folder: Path) -> dict[str, list]:
    return {name: column.tolist() for name, column in Records(folder).table().items()}


@pytest.fixture(scope="module")
def runs(small_world, tmp_path_factory) -> Path:
    "The same evaluation three times: with probabilities; at another threshold, with masks and without."
    root = tmp_path_factory.mktemp("kept")
    for name, threshold, keep in (("probabilities", 0.5, "probabilities"), ("masks", 0.271, "masks"), ("second", 0.271, "")):
        workers.run(job_of(small_world, root / name, threshold, keep=keep), root / name)
    return root


def test_another_threshold_is_another_run(runs, tmp_path):
    scored = scoring.score_all(tmp_path, runs / "probabilities", 0.271)
    assert len(scored) == len(OPTIONS) - (not parses())
    for one in scored:
        name = one.records.folder.name
        assert table(one.records.folder) == table(runs / "second" / name) != table(runs / "probabilities" / name)
        assert one.records.folder.parent == tmp_path
        if one.benchmark.task != "gcg":
            assert scoring.scores_of(one) == scoring.scores_of(dataclasses.replace(one, records=Records(runs / "second" / name)))
        noted = [line for path in one.records.folder.glob("records-*") for line in path.read_text().splitlines()]
        assert len({(row["sample"], row["phrase"]) for row in map(json.loads, noted)}) == len(noted)
    again = {one.benchmark.title: table(one.records.folder) for one in scoring.score_all(tmp_path, runs / "probabilities", 0.271)}
    assert again == {one.benchmark.title: table(one.records.folder) for one in scored}  # nothing is noted twice
    with pytest.raises(SettingError, match="threshold: recorded 0.271, now 0.3"):
        scoring.score_all(tmp_path, runs / "probabilities", 0.3)


def test_the_runs_own_threshold_gives_the_runs_own_table(runs, tmp_path):
    for one in scoring.score_all(tmp_path, runs / "probabilities", 0.5):
        assert table(one.records.folder) == table(runs / "probabilities" / one.records.folder.name)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "GCG"])
def test_kept_masks_are_scored_as_the_run_was(name, runs, small_world, tmp_path):
    folder, (task, options) = runs / "masks" / name.replace(" ", "-"), OPTIONS[name]
    (scored,) = scoring.score_all(tmp_path, folder / "masks", task=task, data=str(small_world), limit=3, **options)
    assert table(scored.records.folder) == table(folder) == table(runs / "second" / folder.name)
    settings = json.loads((scored.records.folder / "config.json").read_text())
    assert settings["predictions"]["path"] == str(folder / "masks") and settings["predictions"]["missing"] == "error" and len(settings["predictions"]["digest"]) == 16
    merged = tmp_path / "all.jsonl"  # other files, the same predictions: the records that are there are continued
    merged.write_text("\n".join(path.read_text() for path in sorted((folder / "masks").iterdir(), reverse=True)))
    assert predictions.digest(predictions.read_predictions(merged)) == settings["predictions"]["digest"]


def test_masks_of_a_run_have_one_threshold(runs, tmp_path):
    with pytest.raises(DataError, match=r"did not keep its probabilities.*can be scored as predictions"):
        scoring.score_all(tmp_path, runs / "masks", 0.3)


def test_compare_reads_what_was_scored(runs, small_world, tmp_path):
    for name, threshold in (("first", 0.5), ("copy", 0.5)):
        for one in scoring.score_all(tmp_path / name, runs / "probabilities", threshold):
            if one.benchmark.task != "gcg":
                scoring.note(tmp_path / name, one)
    measured = {name: {t: m for t, m in read_run(tmp_path / name).items() if m.task != "gcg"} for name in ("first", "copy")}
    measured["run"] = {t: m for t, m in read_run(runs / "probabilities").items() if m.task != "gcg"}
    lines = compare(measured).lines
    assert len(lines) >= 4 and all(len(set(line.values.values())) == 1 for line in lines if not np.isnan(next(iter(line.values.values()))))


# What is kept, and when


def test_a_samples_file_lies_there_before_its_record(small_world, tmp_path, monkeypatch):
    seen, add = [], Records.add

    def watched(self, sample_id, index, rows):
        seen.append(predictions.file_of(self.folder / "probabilities", sample_id, ".npz").is_file())
        return add(self, sample_id, index, rows)

    monkeypatch.setattr(Records, "add", watched)
    job = dataclasses.replace(job_of(small_world, tmp_path / "run", 0.5, keep="probabilities"))
    for benchmark in job.benchmarks[:3]:
        tasks.measure(job, benchmark, benchmark.open())
    assert len(seen) == 9 and all(seen)


def test_a_sample_that_cannot_be_kept_is_not_recorded(small_world, tmp_path, monkeypatch):
    job = job_of(small_world, tmp_path / "run", 0.5, keep="masks")
    benchmark = job.benchmarks[0]
    victim, encode = benchmark.open()[1], predictions.paths.writing
    full = predictions.file_of(Path(benchmark.folder) / "masks", victim.id, ".json")

    def writing(path):
        if path == full:
            raise OSError("No space left on device")
        return encode(path)

    monkeypatch.setattr(predictions.paths, "writing", writing)
    records = tasks.measure(job, benchmark, benchmark.open())
    assert victim.id not in records.done() and "No space left" in records.failures()[0].error and len(records.done()) == 2
    monkeypatch.undo()
    assert not tasks.measure(job, benchmark, benchmark.open()).failures() and full.is_file()


def test_two_workers_keep_what_one_keeps(runs, small_world, tmp_path):
    job = job_of(small_world, tmp_path / "run", 0.5, keep="probabilities")
    job = dataclasses.replace(job, benchmarks=job.benchmarks[:1])
    workers.run(job, tmp_path / "run", processes=2)
    ours, theirs = (sorted((folder / "RES-hg/probabilities").iterdir()) for folder in (tmp_path / "run", runs / "probabilities"))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 3
    for path, other in zip(ours, theirs, strict=True):
        with np.load(path) as first, np.load(other) as second:
            assert (first["levels"] == second["levels"]).all() and first["sample"] == second["sample"]


def test_keeping_is_part_of_the_settings(small_world, tmp_path):
    job = job_of(small_world, tmp_path / "run", 0.5)
    benchmark = job.benchmarks[0]
    tasks.measure(job, benchmark, benchmark.open())
    with pytest.raises(SettingError, match="keep"):  # half of the samples would lack their files
        tasks.measure(dataclasses.replace(job, keep="masks"), benchmark, benchmark.open())
    described = Benchmark("GCG", "gcg", str(small_world), str(tmp_path / "gcg"), {"split": "val"}, 1)
    with pytest.raises(SettingError, match="whose records hold the masks anyway"):
        tasks.measure(dataclasses.replace(job, keep="masks"), described, described.open())


def copied(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def first_npz(run: Path) -> Path:
    return next((run / "RES-hg/probabilities").iterdir())


def other_size(path: Path) -> None:
    with np.load(path) as content:
        np.savez_compressed(path, levels=content["levels"][:, 1:], sample=content["sample"])


def other_sample(path: Path) -> None:
    with np.load(path) as content:
        np.savez_compressed(path, levels=content["levels"], sample=np.array("nobody"))


def one_phrase_more(path: Path) -> None:
    with np.load(path) as content:
        np.savez_compressed(path, levels=np.concatenate([content["levels"]] * 2), sample=content["sample"])


def other_data(run: Path) -> None:
    path = next((run / "RES-hg").glob("records-*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "sample": f"{row['sample']}0"}) + "\n" for row in rows))


FAULTS = {
    "other data": (other_data, "sample 0 is recorded as"),
    "gone": (lambda run: first_npz(run).unlink(), "no such file, but sample"),
    "half": (lambda run: first_npz(run).write_bytes(first_npz(run).read_bytes()[:300]), "cannot be read"),
    "empty": (lambda run: first_npz(run).write_bytes(b""), "cannot be read"),
    "no zip": (lambda run: first_npz(run).write_bytes(b"PK\x03\x04" + b"x" * 500), "cannot be read"),
    "pickle": (lambda run: np.savez(first_npz(run), levels=np.array([{}], object), sample=np.array("7")), "cannot be read"),
    "other arrays": (lambda run: np.savez(first_npz(run), masks=np.zeros((1, 2, 2))), "cannot be read"),
    "floats": (lambda run: np.savez(first_npz(run), levels=np.zeros((1, 2, 2)), sample=np.array("7")), "expected uint16"),
    "size": (lambda run: other_size(first_npz(run)), "expected uint16"),
    "sample": (lambda run: other_sample(first_npz(run)), "for sample 'nobody'"),
    "phrases": (lambda run: one_phrase_more(first_npz(run)), "phrases of sample"),
    "unfinished": (lambda run: next((run / "RES-hg").glob("records-*.jsonl")).write_text(""), "3 of 3 samples are not measured"),
    "settings": (lambda run: (run / "RES-hg/config.json").write_text("{"), "config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_probabilities_are_named(fault, runs, tmp_path):
    change, message = FAULTS[fault]
    run = copied(runs / "probabilities", tmp_path / "run")
    change(run)
    with pytest.raises(DataError, match=message) as caught:
        scoring.score_all(tmp_path / "new", run, 0.3)
    assert str(run / "RES-hg") in str(caught.value)
    assert not any((tmp_path / "new").glob("RES-hg/records-*"))


def test_a_run_with_failures_is_scored_with_them(runs, tmp_path):
    run = copied(runs / "probabilities", tmp_path / "run")
    path = next((run / "PNG").glob("records-*.jsonl"))
    rows = [line for line in path.read_text().splitlines() if json.loads(line)["index"] != 1]
    path.write_text("\n".join(rows) + "\n")
    (run / "PNG/failed-00000.jsonl").write_text(json.dumps({"index": 1, "error": "DataError: cut short"}) + "\n")
    for _ in range(2):
        scored = {one.benchmark.title: one for one in scoring.score_all(tmp_path / "new", run, 0.5)}
        failures = scored["PNG"].records.failures()
        assert [f.index for f in failures] == [1] and "cut short" in failures[0].error
        assert sum(len(path.read_text().splitlines()) for path in (tmp_path / "new/PNG").glob("failed-*")) == 1


# Anybody's files


def entry(sample, /, **changes) -> dict:
    return {"sample": sample.id, "masks": [predictions.encode(mask) for mask in sample.masks], **changes}


def without(content: dict, name: str) -> dict:
    return {key: value for key, value in content.items() if key != name}


HOSTILE = {  # what becomes of the file of the second sample: a text, bytes, or an entry; what the error says
    "a list in a list": (lambda s: [[entry(s)]], "expected an object"),
    "null": (lambda s: None, "expected an object"),
    "a number": (lambda s: 7, "expected an object"),
    "no sample": (lambda s: without(entry(s), "sample"), "no field 'sample'"),
    "no masks": (lambda s: without(entry(s), "masks"), "no field 'masks'"),
    "sample null": (lambda s: entry(s, sample=None), "sample is None"),
    "sample true": (lambda s: entry(s, sample=True), "sample is True"),
    "sample list": (lambda s: entry(s, sample=[s.id]), "sample is ["),
    "sample float": (lambda s: entry(s, sample=7.5), "sample is 7.5"),
    "masks null": (lambda s: entry(s, masks=None), "masks is None"),
    "masks object": (lambda s: entry(s, masks={"0": 1}), "masks is {"),
    "a mask less": (lambda s: entry(s, masks=entry(s)["masks"][1:]), "masks for sample"),
    "a mask more": (lambda s: entry(s, masks=entry(s)["masks"] * 2), "masks for sample"),
    "mask null": (lambda s: entry(s, masks=[None] * len(s.masks)), "mask 0 of sample"),
    "mask polygon": (lambda s: entry(s, masks=[[[1, 1, 5, 1, 5, 5]]] * len(s.masks)), "mask 0 of sample"),
    "mask text": (lambda s: entry(s, masks=["PPYo0"] * len(s.masks)), "mask 0 of sample"),
    "mask size": (lambda s: entry(s, masks=[predictions.encode(m[:-1]) for m in s.masks]), "mask 0 of sample"),
    "mask turned": (lambda s: entry(s, masks=[predictions.encode(np.pad(m, ((0, 1), (0, 0))).T) for m in s.masks]), "mask 0 of sample"),
    "no counts": (lambda s: entry(s, masks=[{"size": list(m.shape)} for m in s.masks]), "mask 0 of sample"),
    "no size": (lambda s: entry(s, masks=[without(predictions.encode(m), "size") for m in s.masks]), "mask 0 of sample"),
    "counts end": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": predictions.encode(m)["counts"] + "P"} for m in s.masks]), "mask 0 of sample"),
    "counts odd": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": "\x00\x7f\u2603"} for m in s.masks]), "mask 0 of sample"),
    "counts huge": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": [10**30]} for m in s.masks]), "mask 0 of sample"),
    "counts negative": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": [m.size + 5, -5]} for m in s.masks]), "mask 0 of sample"),
    "counts short": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": [m.size - 1]} for m in s.masks]), "mask 0 of sample"),
    "counts floats": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": [m.size * 1.0]} for m in s.masks]), "mask 0 of sample"),
    "counts number": (lambda s: entry(s, masks=[{"size": list(m.shape), "counts": 5} for m in s.masks]), "mask 0 of sample"),
    "size text": (lambda s: entry(s, masks=[{**predictions.encode(m), "size": "128x128"} for m in s.masks]), "mask 0 of sample"),
    "phrases": (lambda s: entry(s, phrases=["something else"] * len(s.masks)), "in this order"),
    "phrases number": (lambda s: entry(s, phrases=[1, 2]), "expected a list of texts"),
    "answer number": (lambda s: entry(s, answer=7), "answer is 7"),
    "broken JSON": (lambda s: json.dumps(entry(s))[:-5], "not valid JSON"),
    "empty file": (lambda s: "", "not valid JSON"),
    "empty list": (lambda s: [], "1 of 3 samples are not predicted"),
    "deep": (lambda s: "[" * 100_000, "not valid JSON"),
    "latin": (lambda s: json.dumps({"sample": s.id, "masks": [], "note": "é"}, ensure_ascii=False).encode("latin-1"), "UTF-8|utf-8"),
    "other split": (lambda s: entry(s, sample="999"), "does not have, e.g. '999'"),
    "twice": (lambda s: [entry(s), entry(s)], "is predicted already, in"),
}


@pytest.fixture(scope="module")
def asked_of(small_world) -> tuple[dict, list]:
    options = OPTIONS["RES hg"][1]
    data = layout.open_task("res", small_world, **options)
    return {"task": "res", "data": str(small_world), "limit": 3, **options}, [data[i] for i in range(3)]


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_predictions_are_named(fault, asked_of, tmp_path):
    options, samples = asked_of
    (tmp_path / "theirs").mkdir()
    content = [entry(samples[0]), HOSTILE[fault][0](samples[1]), entry(samples[2])]
    for k, one in enumerate(content):
        raw = one if isinstance(one, bytes) else (one if isinstance(one, str) else json.dumps(one)).encode()
        (tmp_path / f"theirs/{k}.json").write_bytes(raw)
    with pytest.raises(HGLMMError) as caught:
        scoring.score_all(tmp_path / "run", tmp_path / "theirs", **options)
    assert any(message in str(caught.value) for message in HOSTILE[fault][1].split("|"))
    assert str(tmp_path / "theirs") in str(caught.value)
    assert ("1.json" in str(caught.value)) == (fault not in ("other split", "empty list"))
    assert not list((tmp_path / "run").rglob("records-*"))


def test_a_line_that_is_broken_is_named(asked_of, tmp_path):
    options, samples = asked_of
    path = tmp_path / "theirs.jsonl"
    for odd in ("{", "null", "[1]", '{"sample": 1}'):
        path.write_text("\n".join([json.dumps(entry(samples[0])), odd, json.dumps(entry(samples[1]))]), encoding="utf-8")
        with pytest.raises(DataError, match="theirs.jsonl, line 2"):
            scoring.score_all(tmp_path / "run", path, **options)


def test_where_predictions_lie(asked_of, tmp_path):
    options, samples = asked_of
    for path, message in ((tmp_path / "nowhere", "no such file or folder"), (tmp_path, "not a single .json or .jsonl file in it; found")):
        (tmp_path / "x.txt").write_text("hello")
        with pytest.raises(DataError, match=message):
            scoring.score_all(tmp_path / "run", path, **options)
    whole = entry(samples[0])
    (tmp_path / "._a.json").write_bytes(b"\0\5\26\7")
    (tmp_path / "a.json").write_text(json.dumps([whole, entry(samples[1])]), encoding="utf-8-sig")
    (tmp_path / "b.JSONL").write_text(json.dumps(entry(samples[2], sample=int(samples[2].id), extra={"score": 0.5})) + "\r\n")
    (tmp_path / "folder.json").mkdir()
    (scored,) = scoring.score_all(tmp_path / "run", tmp_path, **options)
    assert scoring.scores_of(scored)["toycoco refcoco val (hg)"][0]["cIoU"] == 100
    for k, encoding in enumerate(("utf-16", "utf-8-sig")):
        path = tmp_path / f"{k}.jsonl"
        path.write_text("\n".join(json.dumps(entry(sample)) for sample in samples), encoding=encoding)
        assert list(predictions.read_predictions(path)) == [sample.id for sample in samples]


def test_missing_predictions_count_as_empty_only_if_asked(asked_of, tmp_path):
    options, samples = asked_of
    path = tmp_path / "one.json"
    path.write_text(json.dumps(entry(samples[0])))
    with pytest.raises(DataError, match="2 of 3 samples are not predicted"):
        scoring.score_all(tmp_path / "run", path, **options)
    (scored,) = scoring.score_all(tmp_path / "run", path, missing="empty", **options)
    table = scored.records.table()
    first = table["index"] == 0
    assert (table["iou"][first] == 1).all() and (table["iou"][~first] == 0).all() and len(table["iou"]) == sum(len(s.masks) for s in samples)
    assert json.loads((scored.records.folder / "config.json").read_text())["predictions"]["missing"] == "empty"
    assert scored.empty == 2 and scoring.note(tmp_path / "run", scored)
    assert json.loads((tmp_path / "run/scores.json").read_text())["empty"] == {"toycoco refcoco val (hg)": 2}


@pytest.mark.parametrize("changes, message", [
    ({"task": ""}, "unknown task ''"), ({"task": "png"}, "has no effect on task 'png'"), ({"split": "vall"}, "vall"), ({"protocol": "hgg"}, "hgg"),
    ({"missing": "skip"}, "Valid: error, empty"), ({"threshold": 0.3}, "masks have none"), ({"data": "nowhere"}, "expected a data root"),
])  # fmt: skip
def test_settings_that_do_not_fit(changes, message, asked_of, tmp_path):
    options, samples = asked_of
    (tmp_path / "all.json").write_text(json.dumps([entry(s) for s in samples]))
    with pytest.raises(HGLMMError, match=message):
        scoring.score_all(tmp_path / "run", tmp_path / "all.json", **{**options, **changes})


def test_what_is_asked_can_be_answered(small_world, tmp_path):
    benchmark = scoring.benchmark_of("reasonseg", str(small_world), tmp_path, limit=4)
    assert scoring.write_asked(benchmark, tmp_path / "asked.jsonl") == 4
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    data = benchmark.open()
    assert [one["phrases"] for one in asked] == [[data[i].info["question"]] for i in range(4)]
    answers = [{"sample": one["sample"], "masks": [{"size": one["size"], "counts": [0, one["size"][0] * one["size"][1]]}], "answer": "all"} for one in asked]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    (scored,) = scoring.score_all(tmp_path, tmp_path / "answers.json", task="reasonseg", data=str(small_world), limit=4)
    table = scored.records.table()
    assert (table["intersection"] == table["truth"]).all() and set(table["answer"]) == {"all"}


# GCG in GLaMM's format


def glamm(world: Path, folder: Path, count: int) -> list[dict]:
    "Predictions by hand: the people's own words and masks; half of the masks; a mask without a phrase; nothing."
    data = layout.open_task("gcg", world, split="val")
    folder.mkdir()
    made = []
    for k, sample in enumerate(data[i] for i in range(count)):
        said = gcg.to_prediction(sample.id, sample.info["caption"], sample.phrases, sample.masks)
        if k % 4 == 1:
            said["phrases"], said["pred_masks"] = said["phrases"][:1], said["pred_masks"][:1]
        if k % 4 == 2:
            said["phrases"] = said["phrases"][:-1]
        if k % 4 == 3:
            said = {**said, "caption": "", "phrases": [], "pred_masks": []}
        made.append(said)
    gcg.write_predictions(folder, made)
    return made


def same_words(first: list[str], second: list[str]) -> np.ndarray:
    return np.array([[float(a == b or not a) for b in second] for a in first]).reshape(len(first), len(second))  # an empty text is like any other


METRICS = ("AP50", "AP", "mIoU", "Recall")


def test_a_folder_in_glamms_format(small_world, tmp_path):
    made = glamm(small_world, tmp_path / "theirs", 8)
    (scored,) = scoring.score_all(tmp_path / "run", tmp_path / "theirs", task="gcg", data=str(small_world), limit=8)
    found = scoring.note(tmp_path / "run", scored, same_words, METRICS)["toycoco GCG val"]
    truth = places.grandf_paths(small_world, "val")
    expected = gcg.evaluate(tmp_path / "theirs", truth["mask_json"], truth["caption_json"], same_words, METRICS, {one["image_id"] for one in made})
    assert found == (expected.scores, expected.intervals()) and 0 < found[0]["Recall"] < 100 and 0 < found[0]["mIoU"] < 100
    noted = json.loads((tmp_path / "run/scores.json").read_text())
    assert sum(text == "" and mask != "" for text, mask in zip(scored.records.table()["text"], scored.records.table()["mask"], strict=True)) == 2
    assert noted["scores"]["toycoco GCG val"] == expected.scores and noted["pictures"]["toycoco GCG val"] == 8
    assert [group for group, _, _ in scoring.extremes(scored, 1)] == ["best", "median", "worst"]
    (one,) = scoring.score_all(tmp_path / "first", tmp_path / "theirs", task="gcg", data=str(small_world), limit=2, missing="empty")
    assert scoring.described_scores(one, same_words, METRICS).each["image_id"].tolist() == [p["image_id"] for p in made[:2]]
    with pytest.raises(DataError, match="1 of 9 samples are not predicted"):
        scoring.score_all(tmp_path / "nine", tmp_path / "theirs", task="gcg", data=str(small_world), limit=9)


@pytest.mark.skipif(not parses(), reason="no parser for noun phrases")
def test_descriptions_at_another_threshold(runs, small_world, tmp_path):
    (scored,) = (one for one in scoring.score_all(tmp_path, runs / "probabilities", 0.271) if one.benchmark.task == "gcg")
    truth = places.grandf_paths(small_world, "val")
    second = tasks.gcg_predictions(Records(runs / "second/GCG").table())
    expected = gcg.evaluate(second, truth["mask_json"], truth["caption_json"], same_words, METRICS, {one["image_id"] for one in second})
    assert scoring.described_scores(scored, same_words, METRICS).scores == expected.scores


# The program


@pytest.mark.slow
def test_the_program_on_a_run(run_notebook, runs, small_world):
    status, said, folder = run_notebook("score", name="rescored", predictions=runs / "probabilities", threshold=0.271, metrics="[AP50, mIoU]")
    assert status == 0, said
    scores = json.loads((folder / "rescored/scores.json").read_text())["scores"]
    expected = res_scores(Records(runs / "second/RES-hg").table())[0]
    assert scores["RES hg"] == expected and "ReasonSeg, short" in scores and "RES hg: 0 failed" in said
    assert set(read_run(folder / "rescored")) == set(read_run(runs / "second"))


@pytest.mark.slow
def test_the_program_lists_what_is_asked(run_notebook, small_world):
    status, said, folder = run_notebook("score", name="asked", task="res", data=small_world, protocol="standard", limit=2)
    assert status == 0, said
    assert len((folder / "asked/asked.jsonl").read_text().splitlines()) == 2 and "2 samples are asked for in" in said
