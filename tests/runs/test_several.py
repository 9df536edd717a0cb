"Training on several processes: it is the same run as on one, and goes on to the bit where it was killed."

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from hglmm.checkpoints import states
from hglmm.heads import loading
from hglmm.runs import training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow_heads")]


@pytest.fixture(scope="module")
def ranks(narrow_heads, zygote, tmp_path_factory, request):
    "Run a function of tests/ranks.py on several processes, with runs in a folder of their own: did it end well, what was said."
    runs = tmp_path_factory.mktemp("runs")

    def run(count: int, function: str, *words: object, **environment: str) -> tuple[bool, str]:
        status, said = zygote.run("ranks", str(count), function, *map(str, words), timeout=300, environment={**os.environ, "HGLMM_RUNS": str(runs), **environment})
        return status == 0, said

    run.folder = runs
    return run


# --- one step


@pytest.fixture(scope="module")
def steps(ranks, small_world, tmp_path_factory):
    "What some steps come to on one, two and three processes."
    found = {}
    for count in (1, 3):
        folder = tmp_path_factory.mktemp(f"steps{count}")
        good, said = ranks(count, "first_steps", small_world, folder, 2)
        assert good, said
        found[count] = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    return found


def test_steps_are_those_of_one_process(steps):
    "The same pictures, each a portion of its own: sums may differ in the last digits, nothing else may."
    (one,), several = steps[1], steps[3][0]
    for alone, shared in zip(one["gradients"][0], several["gradients"][0], strict=True):  # of the first step: after it, Adam makes much of last digits
        assert torch.allclose(alone, shared, atol=1e-5 * float(alone.abs().max() + 1e-3))
    for name in training.LOSSES:
        assert one["losses"][0][name] == pytest.approx(several["losses"][0][name], rel=1e-5) and one["losses"][1][name] == pytest.approx(several["losses"][1][name], rel=1e-4)


def test_all_processes_have_the_same_head(steps):
    "Weights and, where they are numbers with a fraction, the statistics of BatchNorms."
    first, *others = (one["head"] for one in steps[3])
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first if first[name].is_floating_point())


def test_a_process_without_phrases_adds_nothing_and_waits_for_nobody(ranks, small_world, tmp_path):
    good, said = ranks(3, "first_steps", small_world, tmp_path, 2, PHRASELESS="1")
    assert good, said
    heads = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["head"] for rank in range(3)]
    assert all(value.isfinite().all() for value in heads[0].values())
    assert all(torch.equal(heads[0][name], heads[2][name]) for name in heads[0] if heads[0][name].is_floating_point())


# --- killed and gone on with

WORDS = ("-p", "max_steps", 4, "-p", "save_every", 2, "-p", "batch_size", 1, "-p", "device", "cpu", "-p", "benchmarks", "[png]", "-p", "validate_every", 2, "-p", "validate_pictures", 4)
BATCH = ("-p", "global_batch", 3)


def content(folder: Path) -> dict:
    "All of the last state that must be the same."
    state = states.read(folder / states.LAST)
    return {name: state[name] for name in ("head", "optimizer", "step", "position", "generators", "skipped", "best", "validated")}


def same(a, b) -> bool:
    "Nested values, tensors to the bit."
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def go(ranks, small_world):
    "Train under a name on so many processes."
    return lambda count, name, *words, **environment: ranks(count, "train", "-p", "name", name, "-p", "data", small_world, *WORDS, *words, **environment)


@pytest.fixture(scope="module")
def undisturbed(ranks, go):
    "A run on three processes: its folder, and what was said."
    good, said = go(3, "undisturbed", *BATCH)
    assert good, said
    return ranks.folder / "undisturbed", said


def test_a_run_on_three_processes_leaves_what_a_run_leaves(undisturbed):
    folder, said = undisturbed
    assert {path.name for path in folder.iterdir()} == {"config.json", "head", "head_best", "log.jsonl", "state.pt", "state.previous.pt", "tensorboard", "validation.png"}
    assert "in each of 3 processes" in said and said.count("training the head: 4/4 (100%)") == 1  # one of them speaks
    assert [line["step"] for line in training.read_log(folder)] == [2, 4] and said.count("validation, 4 pictures: the last head (step 4") == 1
    state = states.read(folder / states.LAST)
    assert (state["step"], state["position"], len(state["generators"])) == (4, 12, 3)
    assert not same(state["generators"][0], state["generators"][1])  # each drops out other numbers
    assert same(dict(loading.load_head(folder / "head").state_dict()), dict(state["head"]))
    config = json.loads((folder / "config.json").read_text())
    assert config["processes"] == 3 and config["run"]["global_batch"] == 3


@pytest.fixture(scope="module")
def killed(ranks, go):
    "The same run, of which the second process was killed in its third step; a copy of it too."
    good, said = go(3, "killed", *BATCH, FAULT="1:2:9")
    assert not good and "PeerLost: process 0 of 3: another process of this run has ended" in said, said
    assert states.read(ranks.folder / "killed" / states.LAST)["step"] == 2
    return ranks.folder / "killed", shutil.copytree(ranks.folder / "killed", ranks.folder / "copy")


def test_killed_on_three_processes_it_goes_on_to_the_bit(go, undisturbed, killed):
    good, said = go(3, "killed", *BATCH, "-p", "workers", 1)
    assert good and "resumed at step 2" in said and "going on with" not in said, said
    assert same(content(killed[0]), content(undisturbed[0]))


def test_it_goes_on_with_another_number_of_processes(go, undisturbed, killed):
    "The batch it was begun with is kept though nobody names it; what changes is said."
    good, said = go(2, "copy")
    assert good and "written by 3 process(es), going on with 2" in said and "global batch (3)" in said, said
    state, before = states.read(killed[1] / states.LAST), states.read(undisturbed[0] / states.LAST)
    assert (state["step"], state["position"], len(state["generators"])) == (4, 12, 2) and not same(state["head"], before["head"])
    config = json.loads((killed[1] / "config.json").read_text())
    assert config["processes"] == 3 and config["resumed"][-1]["processes"] == 2 and config["run"]["global_batch"] == 3


def test_one_that_is_asked_to_end_lets_all_save(ranks, go):
    "Not at the next save: `save_every` is 2, and it is asked in the first step."
    good, said = go(3, "asked", *BATCH, FAULT="1:0:15")
    assert not good and "did so after step 1 of 4. Its state is saved" in said and "Stopped: " in said, said
    state = states.read(ranks.folder / "asked" / states.LAST)
    assert (state["step"], state["position"]) == (1, 3)


def test_another_machine_with_other_data_is_noticed(ranks, small_world):
    good, said = ranks(2, "other_data", small_world)
    assert not good and "process 1 does not do the same as process 0" in said and "data.samples" in said, said
