"Training: the same seed gives the same head, a stopped run goes on as if nothing had happened, and grounding comes from the LMM."

import pytest
import torch

from hglmm import checkpoints, recipes, training
from hglmm.datasets import layout
from hglmm.errors import SettingError
from hglmm.lmm.frozen import FrozenLMM


@pytest.fixture(scope="module")
def lmm():
    return FrozenLMM.load("toy_llava")


@pytest.fixture(scope="module")
def data(small_world):
    return layout.TrainingSet.open(small_world)


def trainer(lmm, data, folder, steps=6, **changes):
    folder.mkdir(exist_ok=True)
    settings = {"seed": 3, "batch_size": 2, "lr": 1e-3, "save_every": 2, "log_every": 1, **changes}
    return training.Trainer(training.Run(recipes.get("toy_llava"), steps, **settings), lmm, data, folder)


def weights(head):
    return {k: v.clone() for k, v in head.state_dict().items()}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def undisturbed(lmm, data, tmp_path_factory):
    "A finished run: its folder and its weights."
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return folder, weights(trainer(lmm, data, folder).fit())


def test_same_seed_same_weights(lmm, data, tmp_path, undisturbed):
    assert same(weights(trainer(lmm, data, tmp_path / "again").fit()), undisturbed[1])
    assert not same(weights(trainer(lmm, data, tmp_path / "other", seed=4).fit()), undisturbed[1])


def test_the_saved_head_is_the_trained_one(undisturbed):
    folder, trained = undisturbed
    assert same(weights(checkpoints.load_head(folder / "head")), trained)


class Stopped(Exception):
    "Stands for a power cut."


def test_a_stopped_run_goes_on(lmm, data, tmp_path, undisturbed):
    first = trainer(lmm, data, tmp_path / "run")

    def stop(line):
        if line["step"] == 3:
            raise Stopped

    first.on_log = stop
    with pytest.raises(Stopped):
        first.fit()
    second = trainer(lmm, data, tmp_path / "run")
    assert second.resume() and second.step == 2  # the last checkpoint
    assert same(weights(second.fit()), undisturbed[1])
    lines = training.read_log(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_other_settings_are_not_resumed(lmm, data, undisturbed):
    with pytest.raises(SettingError, match="lr: recorded 0.001, now 0.002"):
        trainer(lmm, data, undisturbed[0], lr=2e-3).resume()


def test_only_the_head_learns(lmm, data, tmp_path):
    before = {k: v.clone() for k, v in lmm.model.state_dict().items()}
    trainer(lmm, data, tmp_path / "run", steps=1).fit()
    assert same(before, lmm.model.state_dict())
    assert not any(p.requires_grad for p in lmm.model.parameters())


def test_swapped_phrases_are_another_pictures(lmm, data):
    batch = [data[0], data[5], data[9]]
    features = lmm.encode(batch)
    swapped = training.swap_phrases(features)
    for mine, other, got in zip(features, [*features[1:], features[0]], swapped, strict=True):
        assert torch.equal(got.levels, mine.levels) and torch.equal(got.pixels, mine.pixels)
        assert len(got.attention) == len(mine.attention) and torch.equal(got.attention[0], other.attention[0])
