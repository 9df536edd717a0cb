"An LMM that two processes share: it reads and speaks to the bit as one that each has for itself, and neither ever has it all."

import os
from pathlib import Path

import pytest
import torch

from hglmm.checkpoints import states
from hglmm.heads import loading
from hglmm.runs import training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(zygote, small_world, tmp_path_factory) -> list[dict]:
    "What each of two processes saw; both are started once, for all tests."
    folder = tmp_path_factory.mktemp("shared")
    status, said = zygote.run("ranks", "2", "shared", str(small_world), str(folder), timeout=300, environment={**os.environ, "HGLMM_RUNS": str(folder)})
    assert status == 0, said
    return [{**torch.load(folder / f"rank{rank}.pt", weights_only=True), "runs": folder, "said": said} for rank in range(2)]


def test_each_has_about_half_of_it_before_and_after(found):
    for one in found:
        assert 0.5 < one["before"] <= 0.55 and one["after"] == one["before"]


@pytest.mark.parametrize("which", ["toy_llava", "hybrid", "llava_next"])
def test_they_read_the_same_whichever_way_they_go(found, which):
    "Batches of unequal length and number, without a phrase, answers of unequal lengths; with one tower, with two, and with tiles."
    for one in found:
        assert one[which] and all(one[which].values()), one[which]
    assert len(found[1][which]) == 6


def test_who_needs_nothing_lends(found):
    assert all(one["lent"] > 0 for one in found)


def test_an_error_on_one_process_keeps_nobody_waiting(found):
    assert all(one["error"] for one in found)


def test_what_cannot_be_shared_out(found):
    again, mapped = found[0]["refused"]
    assert "sharded already" in again and "shard_lmm and device_map exclude each other" in mapped


def test_a_head_learns_the_same_beside_it(found):
    "Portions are unequal (3 pictures a step for 2 processes), and in the second step one process has no phrase."
    runs: Path = found[0]["runs"]
    assert "in each of 2 processes, which share the LMM" in found[0]["said"]
    state, head = states.read(runs / "shared" / states.LAST), loading.load_head(runs / "shared" / "head").state_dict()
    assert state["step"] == 3 and [line["step"] for line in training.read_log(runs / "shared")] == [3]
    looked, whole = (training.read_log(runs / name)[-1]["validation"] for name in ("shared", "whole"))
    assert looked == whole and looked["PNG val"]["phrases"] > 3
    for one in found:  # trained with the whole LMM in each process
        assert all(torch.equal(head[name], value) for name, value in one["head"].items() if value.is_floating_point())


def test_it_is_the_same_run_with_and_without(found):
    "Where one is gone on with does not matter: the shared LMM is known by the whole one's weights."
    assert all(one["alike"] for one in found)
