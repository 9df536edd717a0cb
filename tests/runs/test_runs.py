"The papermill programs, run for real and small: training, evaluation, and what they say when something is wrong."

import json
import shutil

import nbformat
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow_heads")]


@pytest.fixture(scope="module")
def trained(narrow_heads, run_notebook, small_world):
    "A head after a few steps, by the training notebook."
    status, said, runs = run_notebook("train", name="trained", data=small_world, max_steps=4, batch_size=4, save_every=2)
    assert status == 0, said
    return runs / "trained"


def test_training_leaves_a_whole_run_folder(trained):
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4 and log[-1]["loss"] > 0
    assert {p.name for p in trained.iterdir()} == {"config.json", "head", "log.jsonl", "state.pt", "state.previous.pt", "tensorboard"}
    config = json.loads((trained / "config.json").read_text())
    assert config["settings"]["max_steps"] == 4 and config["settings"]["name"] == "trained" and config["fingerprint"]["lmm"]["dtype"] == "float32"
    assert {"refcoco/instances.json", "png_coco_train2017.json"} <= set(config["fingerprint"]["data"]["files"])
    assert {p.name for p in (trained / "head").iterdir()} == {"config.json", "model.safetensors"}
    assert list((trained / "tensorboard").iterdir())


def test_training_again_changes_nothing(trained, run_notebook, small_world):
    before = (trained / "head/model.safetensors").read_bytes()
    status, said, _ = run_notebook("train", name="trained", data=small_world, max_steps=4, batch_size=4, save_every=2)
    assert status == 0 and "resumed at step 4" in said
    assert (trained / "head/model.safetensors").read_bytes() == before


def test_training_with_what_is_there(run_notebook, small_world, tmp_path, monkeypatch):
    "A data root without PNG: all benchmarks are refused before the LMM is loaded, RefCOCO alone works to the last cell."
    world = shutil.copytree(small_world, tmp_path / "world")
    for path in (world / "coco/annotations").glob("*.json"):
        path.unlink()
    monkeypatch.setenv("HGLMM_DATA", str(world))
    few = dict(max_steps=2, batch_size=2, save_every=1, dtype="bfloat16", autocast="off")
    status, said, _ = run_notebook("train", name="all", **few)
    assert status != 0 and "png_coco_train2017.json" in said and "frozen LMM" not in said, said
    status, said, runs = run_notebook("train", name="refcoco", benchmarks="[refcoco]", validate_every=2, validate_pictures=2, **few)
    assert status == 0, said
    assert "1 looks at what is held out took" in said and (runs / "refcoco/head_best/model.safetensors").exists() and (runs / "refcoco/validation.png").exists()
    assert f"HGLMM_DATA={world}" in said and "bfloat16, autocast of the head off" in said and "from refcoco val" in said
    config = json.loads((runs / "refcoco/config.json").read_text())
    assert config["settings"]["data_root"] == str(world) and config["precision"] == "off" and config["fingerprint"]["lmm"]["dtype"] == "bfloat16"


def test_res_evaluation(trained, run_notebook, small_world):
    parameters = dict(name="res", data=small_world, head=trained / "head", datasets="[refcoco, refcocog]", splits="[val, test, testA]", limit=5)
    status, said, runs = run_notebook("eval_res", **parameters)
    assert status == 0, said
    scores = json.loads((runs / "res/scores.json").read_text())["scores"]
    splits = [f"toycoco {d} ({p})" for d in ("refcoco val", "refcoco testA", "refcocog val", "refcocog test") for p in ("hg", "standard")]
    assert sorted(scores) == sorted(splits)
    assert all(0 <= s["mIoU"] <= 100 for s in scores.values())
    executed = nbformat.read(next(runs.glob("eval_res-*.ipynb")), 4)
    pictures = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    assert pictures, "the executed notebook is the report: it shows a gallery"
    records = {p: p.read_bytes() for p in (runs / "res").rglob("records-*.jsonl")}
    assert run_notebook("eval_res", **parameters)[0] == 0  # again: nothing is measured twice
    assert records == {p: p.read_bytes() for p in (runs / "res").rglob("records-*.jsonl")}


def test_png_evaluation(trained, run_notebook, small_world):
    status, said, runs = run_notebook("eval_png", name="png", data=small_world, head=trained / "head", limit=5)
    assert status == 0, said
    scores = json.loads((runs / "png/scores.json").read_text())["scores"]["toycoco PNG val"]
    assert {"all", "things", "stuff", "singulars", "plurals", "acc@0.5", "pixel acc"} == set(scores)


def broken(world, where, change):
    "A copy of a world with one file changed."
    shutil.copytree(world, where)
    change(where)
    return where


def cut(path):
    "Cut a file in half."
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {
    "missing_file": (lambda w: (w / "coco/annotations/png_coco_val2017.json").unlink(), ("png_coco_val2017.json", "no such file")),
    "broken_json": (lambda w: cut(w / "coco/annotations/panoptic_val2017.json"), ("panoptic_val2017.json", "not valid JSON")),
    "truncated_image": (lambda w: cut(sorted((w / "coco/val2017").glob("*.jpg"))[3]), ("000000200003.jpg", "cut short")),
    "missing_image": (lambda w: sorted((w / "coco/val2017").glob("*.jpg"))[3].unlink(), ("000000200003.jpg", "no such picture")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_data_stops_the_run_and_is_named(fault, trained, run_notebook, small_world, tmp_path):
    change, messages = FAULTS[fault]
    world = broken(small_world, tmp_path / "world", change)
    status, said, _ = run_notebook("eval_png", name=f"png-{fault}", data=world, head=trained / "head", limit=5)
    assert status != 0
    for message in messages:
        assert message in said, said


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"recipe": "toy_lava"}, "Did you mean 'toy_llava'?"),
        ({"learning_rate": 1}, "unknown parameter 'learning_rate'"),
        ({"benchmarks": "[]"}, "parameter 'benchmarks' is an empty list"),
        ({"data": "nowhere"}, "expected a data root"),
        ({"lmm_path": "nowhere"}, "no such folder"),
    ],
    ids=["unknown_recipe", "misspelled_parameter", "no_benchmark", "no_data", "no_weights"],
)
def test_wrong_settings_stop_the_run(parameters, message, run_notebook, small_world):
    status, said, _ = run_notebook("train", **{"name": "wrong", "data": small_world, "max_steps": 1, **parameters})
    assert status != 0
    assert message in said, said
