"Validation: an evaluation's numbers while a head learns, on any number of processes; nothing that is learnt depends on it; the best head is kept, and survives."

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import tracking
from PIL import Image

from hglmm import fingerprints, recipes
from hglmm.checkpoints import states
from hglmm.datasets import layout
from hglmm.datasets.core import Subset
from hglmm.errors import DataError, SettingError
from hglmm.heads import loading
from hglmm.lmm.frozen import FrozenLMM
from hglmm.paths import shipped
from hglmm.runs import benchmarks, evaluation, scores, tasks, training, training_plan, validation

NAMES = ("refcoco", "png")


@pytest.fixture(scope="module")
def lmm():
    return FrozenLMM.load("toy_llava", device="cpu")


@pytest.fixture(scope="module")
def go(lmm, small_world):
    "A run of four steps that looks at two pictures of each part after the second and the last."

    def make(folder, on_log=None, held_out=None, **changes):
        settings = {"steps": 4, "seed": 3, "batch_size": 1, "lr": 1e-3, "save_every": 3, "log_every": 1, "validate_every": 2, "validate_pictures": 2, **changes}
        run = training.Run("toy_llava", benchmarks=NAMES, **settings)
        held_out = validation.hold_out(small_world, run) if held_out is None else held_out
        trainer = training.Trainer(run, lmm, layout.TrainingSet.open(small_world, NAMES), folder, on_log, held_out=held_out)
        trainer.head.load_state_dict(learnt)  # one that draws something
        return trainer

    learnt = loading.load_head(shipped("checkpoints/toy_head")).state_dict()
    return make


@pytest.fixture(scope="module")
def undisturbed(go, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    go(folder).fit()
    return folder


def looks(folder):
    return [line for line in training.read_log(folder) if "validation" in line]


def same(a, b):
    "Nested values, tensors to the bit."
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict | list | tuple):
        pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) else list(zip(a, b, strict=True))
        return len(a) == len(b) and all(same(*pair) for pair in pairs)
    return a == b


def content(folder):
    state = states.read(folder / states.LAST)
    return {name: state[name] for name in ("head", "optimizer", "step", "position", "generators", "best", "validated")}


def test_what_is_learnt_does_not_depend_on_it(go, undisturbed, tmp_path):
    go(tmp_path / "run", validate_every=0).fit()
    with_, without = content(undisturbed), content(tmp_path / "run")
    assert all(same(with_[name], without[name]) for name in ("head", "optimizer", "position", "generators"))
    assert not looks(tmp_path / "run") and not (tmp_path / "run" / validation.BEST).exists() and without["best"] == {}
    assert with_["validated"] == 4 and [line["step"] for line in looks(undisturbed)] == [2, 4]
    assert fingerprints.differences(*(json.loads(states.read(folder / states.LAST)["fingerprint"]) for folder in (undisturbed, tmp_path / "run"))) == []


def test_one_line_a_step_and_what_there_is_to_see(undisturbed):
    log = training.read_log(undisturbed)
    assert [line["step"] for line in log] == [1, 2, 3, 4] and all("loss" in line for line in log)
    line = log[-1]
    assert line["looked_at"] == 4 and line["failed"] == 0 and line["validation_seconds"] > 0
    assert line["score"] == (line["mIoU"] + line["AR"]) / 2
    assert Image.open(undisturbed / validation.MASKS).width > 300


def test_the_numbers_are_those_of_an_evaluation(go, small_world, tmp_path):
    run = go(tmp_path / "run", validate_pictures=4, steps=2)
    run.fit()
    options = {"res": {"dataset": "refcoco", "split": "val", "protocol": "hg"}, "png": {"split": "val"}}
    chosen = [one for task, option in options.items() for one in benchmarks.choose(task, small_world, tmp_path / "eval", [option]).values()]
    job = tasks.Job("toy_llava", str(tmp_path / "run/head"), chosen, device="cpu", batch_size=1)
    found = looks(tmp_path / "run")[-1]
    for one in chosen:
        of = {"res": scores.res_scores, "png": scores.png_scores}[one.task]
        expected, intervals = of(tasks.measure(job, one, Subset(one.whole, [0, 3, 6, 9])).table())
        ours = found["validation"][benchmarks.title_of(one.task, "", one.options)]
        assert {name: ours[name] for name in expected if np.isfinite(expected[name])} == {name: value for name, value in expected.items() if np.isfinite(value)}
        assert ours["interval"] == list(intervals[validation.FIRST[one.task]])
    assert found["cIoU"] == found["validation"]["refcoco val (hg)"]["cIoU"] > 20 and found["AR"] == found["validation"]["PNG val"]["all"] > 20


def test_the_best_head_is_kept_and_the_last_one_too(undisturbed, go, tmp_path):
    state, (first, last) = states.read(undisturbed / states.LAST), looks(undisturbed)
    best = max((first, last), key=lambda line: line["score"])
    assert state["best"]["step"] == best["step"] == last["best"] and state["best"]["score"] == best["score"]
    kept = loading.load_head(undisturbed / validation.BEST).state_dict()
    assert same(dict(kept), dict(state["best"]["head"]))
    assert same(dict(loading.load_head(undisturbed / "head").state_dict()), dict(state["head"]))
    assert json.loads((undisturbed / validation.BEST / "config.json").read_text())["validation"] == {"step": best["step"], "score": best["score"]}


def test_a_worse_head_does_not_take_its_place(go, tmp_path, monkeypatch, capsys):
    given, summary = iter((40.0, 20.0)), validation.summary
    monkeypatch.setattr(validation, "summary", lambda *told: {**summary(*told), "score": next(given)})
    seen = []
    run = go(tmp_path / "run", lambda line: seen.append({k: v.clone() for k, v in run.head.state_dict().items()}) if "validation" in line else None, steps=2, validate_every=1, validate_pictures=1)
    run.fit()
    kept = loading.load_head(tmp_path / "run" / validation.BEST).state_dict()
    assert same(dict(kept), seen[0]) and not same(dict(kept), seen[1])
    assert "the last head (step 2, in head) scores 20.0, the best one (step 1, in head_best) 40.0" in capsys.readouterr().out


# --- stopped and gone on with


class PowerCut(Exception):
    pass


def test_a_power_cut_after_a_look(go, undisturbed, tmp_path):
    "The state of step 3 knows the best of step 2; the look after step 4 is lost and done again."

    def cut(line):
        if line["step"] == 4 and "validation" in line:
            raise PowerCut

    with pytest.raises(PowerCut):
        go(tmp_path / "run", cut).fit()
    (tmp_path / "run" / validation.BEST / "model.safetensors").write_bytes(b"of a time that did not come to be")
    again = go(tmp_path / "run")
    assert again.resume() and again.step == 3 and (again.best["step"], again.validated) == (2, 2)
    again.fit()
    assert same(content(tmp_path / "run"), content(undisturbed))
    assert same(dict(loading.load_head(tmp_path / "run" / validation.BEST).state_dict()), dict(content(undisturbed)["best"]["head"]))
    assert [{**line, "validation_seconds": 0, "seconds": 0} for line in looks(tmp_path / "run")] == [{**line, "validation_seconds": 0, "seconds": 0} for line in looks(undisturbed)]


def test_asked_to_end_in_the_midst_of_a_look(go, undisturbed, tmp_path, monkeypatch):
    "It does not look to the end; what it missed it does first when it goes on."
    see, seen = training.Trainer.see, []

    def ask(self, samples):
        seen.append(samples)
        signal.raise_signal(signal.SIGINT)
        return see(self, samples)

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "see", ask)
        with pytest.raises((KeyboardInterrupt, training.launch.Stopped)):
            go(tmp_path / "run").fit()
    assert len(seen) == 1 and not looks(tmp_path / "run")
    state = states.read(tmp_path / "run" / states.LAST)
    assert (state["step"], state["validated"], state["best"]) == (2, 0, {})
    again = go(tmp_path / "run")
    assert again.resume()
    again.fit()
    assert same(content(tmp_path / "run"), content(undisturbed)) and [line["step"] for line in looks(tmp_path / "run")] == [2, 4]


def test_an_earlier_try_leaves_no_best_head(go, tmp_path):
    (tmp_path / "run" / validation.BEST).mkdir(parents=True)
    go(tmp_path / "run", steps=1).fit()
    assert not (tmp_path / "run" / validation.BEST).exists()


def test_other_pictures_are_another_measure(go, undisturbed, small_world):
    run = go(undisturbed, validate_pictures=1)
    assert run.resume() and run.best
    with pytest.warns(UserWarning, match="other pictures are held out than before: the best head is searched anew"):
        run.settle_best()
    assert run.best == {} and (undisturbed / validation.BEST / "model.safetensors").exists()


# --- what goes wrong


class Broken(Subset):
    "A sample cannot be read."

    bad = 1

    def __getitem__(self, i):
        if i == self.bad:
            raise DataError("the picture is torn")
        return super().__getitem__(i)


def broken(held_out):
    return [validation.HeldOut(one.title, one.task, Broken(one.data.dataset, one.data.indices)) for one in held_out]


def test_a_sample_that_fails_is_named_and_left_out(go, undisturbed, tmp_path):
    run = go(tmp_path / "run")
    names = [part.data.ids[1] for part in run.held_out]
    run.held_out = broken(run.held_out)
    with pytest.warns(UserWarning, match="leaves out 2 of 4 samples") as said:
        run.fit()
    words = " ".join(str(one.message) for one in said)
    assert all(f"sample {name} of" in words for name in names) and "DataError: the picture is torn" in words
    line = looks(tmp_path / "run")[-1]
    assert line["step"] == 4 and line["failed"] == 2 and line["looked_at"] == 2 and "score" in line
    assert same(content(tmp_path / "run")["head"], content(undisturbed)["head"])


def test_a_part_of_which_nothing_is_left_makes_no_score(go, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "measure_batch", lambda see, read: [(i, "", None, OSError("gone")) for i, *_ in read])
    run = go(tmp_path / "run", steps=2)
    with pytest.warns(UserWarning, match="leaves out 4 of 4 samples"):
        run.fit()
    line = looks(tmp_path / "run")[-1]
    assert "score" not in line and line["validation"] == {"refcoco val (hg)": {}, "PNG val": {}} and run.best == {}
    assert "not enough for a score" in validation.verdict([line])


def test_no_val_split_is_said_once(go, lmm, small_world, tmp_path):
    run = training.Run("toy_llava", 2, batch_size=2, validate_every=1, benchmarks=NAMES)
    with pytest.warns(UserWarning, match="There is no validation, and `head_best` will not be written") as said:
        held_out = validation.hold_out(tmp_path / "nowhere", run)
    assert held_out == [] and len(said) == 1
    go(tmp_path / "run", held_out=held_out, steps=2).fit()
    assert not looks(tmp_path / "run") and (tmp_path / "run/head").exists()
    assert validation.hold_out(tmp_path / "nowhere", training.Run("toy_llava", 2, validate_every=3, benchmarks=NAMES)) == []  # too short for a look: nothing is opened


# --- several processes


@pytest.mark.slow
def test_three_processes_see_what_one_sees(zygote, small_world, go, tmp_path):
    "One of them has no batch; another lacks the narratives' val split; a third is asked to end."
    other = tmp_path / "other"
    other.mkdir()
    status, said = zygote.run("ranks", "3", "look", str(small_world), str(other), str(tmp_path / "several"), timeout=300, environment=dict(os.environ))
    assert status == 0, said
    assert said.count("process 1 has") + said.count("There is no validation") >= 1 and said.count("not held out") == 1, said
    alone = go(tmp_path / "alone", batch_size=2, global_batch=3)
    alone.step, told = 2, []
    assert len(alone.held_out) == 2
    alone.folder.mkdir()
    alone.validate(type("Diary", (), {"tell": staticmethod(lambda line, values, pictures: told.append(line))}))
    found = [json.loads((tmp_path / f"several/{rank}.json").read_text()) for rank in range(3)]
    assert [len(one["own"]) for one in found] == [2, 2, 0]
    assert [len(one["told"]) for one in found] == [1, 0, 0]
    expected = {**told[0], "validation_seconds": 0}
    assert {**found[0]["told"][0], "validation_seconds": 0} == expected
    assert [one["left"] for one in found] == [[], [], []]  # a part that one of them lacks is nobody's
    assert [one["stopped"] for one in found] == [True] * 3 and states.read(tmp_path / "several/run" / states.LAST)["validated"] == 2


# --- trackers


class Fake(tracking.GeneralTracker):
    name, requires_logging_directory, heard = "wandb", False, []

    def __init__(self, project, **options):
        super().__init__()
        self.heard.append(("init", project, options))

    tracker = None

    @tracking.on_main_process
    def store_init_configuration(self, values):
        tracking.logger.debug("without an Accelerator this is an error")
        self.heard.append(("settings", values))

    def log(self, values, step=None):
        self.heard.append((step, values))

    def log_images(self, values, step=None):
        self.heard.append((step, {name: [one.shape for one in ones] for name, ones in values.items()}))

    def finish(self):
        self.heard.append(("finish",))


def test_other_trackers_are_accelerates(go, tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, "wandb"])
    monkeypatch.setattr(Fake, "heard", [])
    go(tmp_path / "run", trackers=("wandb", "tensorboard"), steps=2).fit()
    (_, project, options), (_, settings), *heard, last = Fake.heard
    assert project == "hglmm" and options == {"name": "run", "dir": str(tmp_path / "run")} and settings["lr"] == 1e-3 and last == ("finish",)
    assert [step for step, _ in heard] == [1, 2, 2, 2] and "loss" in heard[0][1] and "validation/mIoU" in heard[2][1] and "PNG val/all" in heard[2][1]
    assert list(heard[3][1]) == ["validation"] and len(heard[3][1]["validation"][0]) == 3
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_trackers_that_are_not_there_are_said_before_anything_is_loaded():
    with pytest.raises(SettingError, match="'wandb' is not installed here"):
        training_plan.plan(training_plan.asked({"trackers": ["wandb"]}), 10)
    with pytest.raises(SettingError, match="wandbb"):
        training_plan.asked({"trackers": ["wandbb"]})
    run = training_plan.plan(training_plan.asked({"validate_every": 7, "validate_pictures": 0}), 100)
    assert (run.validate_every, run.validate_pictures, run.trackers) == (7, 0, ("tensorboard",))


def test_the_paths_of_a_run_know_its_best_head(undisturbed):
    assert loading.load_head(undisturbed).state_dict().keys() == loading.load_head(Path(undisturbed) / validation.BEST).state_dict().keys()
    assert recipes.get("toy_llava").name == loading.load_head(undisturbed / validation.BEST).recipe.name
