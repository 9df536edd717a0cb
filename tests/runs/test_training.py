"Training: the same seed gives the same head, a stopped run goes on as if nothing had happened, and grounding comes from the LMM."

import errno
import json
import math
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
from small_lmms import quick_lmm

from hglmm import fingerprints, heads, recipes
from hglmm.checkpoints import states
from hglmm.datasets import layout
from hglmm.datasets.core import Subset
from hglmm.errors import CheckpointError, DataError, SettingError
from hglmm.heads import loading
from hglmm.lmm.features import swap_phrases
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import launch, training, training_data, training_plan


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    "Load the LMM of these tests."
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("quick")
        recipe = quick_lmm(folder, patch).recipe
        yield lambda place=folder / "lmm", **options: FrozenLMM.load(recipe, place, device="cpu", **options)


@pytest.fixture(scope="module")
def lmm(load):
    return load()


@pytest.fixture(scope="module")
def data(small_world):
    return layout.TrainingSet.open(small_world)


def trainer(lmm, data, folder, steps=6, **changes):
    folder.mkdir(exist_ok=True)
    settings = {"recipe": lmm.recipe, "seed": 3, "batch_size": 2, "lr": 1e-3, "save_every": 2, "log_every": 1, **changes}
    return training.Trainer(training.Run(steps=steps, **settings), lmm, data, folder)


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


def test_workers_read_and_prepare_and_change_no_bit(lmm, data, tmp_path, monkeypatch, undisturbed):
    one, own, prepare = trainer(lmm, data, tmp_path / "run", workers=1), os.getpid(), type(lmm).prepare
    assert one.fingerprint  # for which a picture is prepared here

    def elsewhere(self, image):
        assert os.getpid() != own, "prepared by the process that trains"
        return prepare(self, image)

    monkeypatch.setattr(type(lmm), "prepare", elsewhere)
    monkeypatch.setattr(training_data, "_room_for", lambda *_: True)  # which tries one here
    assert same(weights(one.fit()), undisturbed[1])


def test_what_is_prepared_for_a_gpu_is_pinned(lmm, data, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    ready = next(training_data.shares(data, 2, 1, prepare=lmm.prepare)).samples
    assert not pinned and data[0].pin_memory().prepared is None
    for sample in ready:
        again = sample.pin_memory()
        assert again.prepared[0] is pinned[-1] is sample.prepared[0] and again.prepared[1] is sample.prepared[1] and again.image is sample.image
    assert len(pinned) == 2


def test_the_saved_head_is_the_trained_one(undisturbed):
    folder, trained = undisturbed
    assert same(weights(loading.load_head(folder / "head")), trained)


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
    swapped = swap_phrases(features)
    for mine, other, got in zip(features, [*features[1:], features[0]], swapped, strict=True):
        assert torch.equal(got.levels, mine.levels) and torch.equal(got.pixels, mine.pixels)
        assert len(got.attention) == len(mine.attention) and torch.equal(got.attention[0], other.attention[0])


# --- steps that are not finite


def sound(trainer):
    "Is nothing that is kept NaN or infinite?"
    return not list(states.not_finite({"head": trainer.head.state_dict(), "optimizer": trainer.optimizer.state_dict()}))


def poison_features(monkeypatch, lmm, bad):
    "Features of the samples that `bad` says are NaN."
    encode = type(lmm).encode

    def poisoned(samples, tokens=False):
        features = encode(lmm, samples, tokens)
        for one, sample in zip(features, samples, strict=True):
            if bad(sample):
                one.levels.fill_(math.nan)
        return features

    monkeypatch.setattr(lmm, "encode", poisoned)


def poison_gradient(run, steps, value=math.nan):
    "The loss stays finite, the gradient of one weight does not."
    weight = run.head.lcb.projection.weight
    weight.register_hook(lambda gradient: gradient * value if run.step in steps else gradient)


def test_a_poisoned_sample_is_left_out(lmm, data, tmp_path, monkeypatch):
    run = trainer(lmm, data, tmp_path / "run", steps=4, log_every=2)
    order = training_data.epoch_order(len(data), 0, 3)
    victim = data[order[2]]  # in the second step
    poison_features(monkeypatch, lmm, lambda sample: sample.id == victim.id)
    with pytest.warns(UserWarning, match=r"step 2: loss nan.*left out \(1 so far\)") as said:
        run.fit()
    assert any(f"samples {victim.id}" in str(one.message) or f", {victim.id}" in str(one.message) for one in said)
    assert run.step == 4 and run.skipped == 1 and sound(run)
    lines = training.read_log(tmp_path / "run")
    assert [(line["step"], line["skipped"]) for line in lines] == [(2, 1), (4, 1)] and all(math.isfinite(line["loss"]) for line in lines)
    assert all(v.isfinite().all() for v in loading.load_head(tmp_path / "run/head").state_dict().values())  # the BatchNorms' statistics too


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_gradient_changes_nothing(value, lmm, data, tmp_path):
    run = trainer(lmm, data, tmp_path / "run")
    run.train_step([data[0], data[1]])
    before = {**weights(run.head), **{f"{k}.{n}": v.clone() for k, s in run.optimizer.state_dict()["state"].items() for n, v in s.items()}}
    poison_gradient(run, {1}, value)
    with pytest.warns(UserWarning, match="not finite"):
        losses = run.train_step([data[2], data[3]])
    after = {**weights(run.head), **{f"{k}.{n}": v for k, s in run.optimizer.state_dict()["state"].items() for n, v in s.items()}}
    assert losses["loss"].isfinite() and run.skipped == 1 and run.step == 2
    assert same(before, after)  # weights, running statistics, moments and their count
    run.train_step([data[4], data[5]])
    assert run.skipped == 1 and run.in_a_row == 0 and not same(before, weights(run.head) | {k: v for k, v in before.items() if k[0].isdigit()})


def test_many_in_a_row_stop_the_run(lmm, data, tmp_path):
    run = trainer(lmm, data, tmp_path / "run", steps=40, save_every=2)
    poison_gradient(run, {1, *range(3, 40)})
    with pytest.warns(UserWarning), pytest.raises(SettingError, match=f"{training.MOST_SKIPPED} steps in a row .* norm of the gradient nan.*Lower `lr`"):
        run.fit()
    assert run.skipped == 1 + training.MOST_SKIPPED and sound(run)  # the one before, alone, did not count
    again = trainer(lmm, data, tmp_path / "run", steps=40, save_every=2)
    assert again.resume() and again.step == 10 and again.skipped == 8 and again.in_a_row == 7 and sound(again)  # one more is one too many
    assert not (tmp_path / "run/head").exists()


def test_a_run_without_a_single_good_step_fails(lmm, data, tmp_path):
    run = trainer(lmm, data, tmp_path / "run", steps=3)
    poison_gradient(run, {0, 1, 2})
    with pytest.warns(UserWarning), pytest.raises(SettingError, match="3 steps in a row"):
        run.fit()


def test_nan_is_never_saved(lmm, data, tmp_path):
    run = trainer(lmm, data, tmp_path / "run")
    run.train_step([data[0]])
    run.save()
    before = (tmp_path / "run/state.pt").read_bytes()
    moment = next(iter(run.optimizer.state_dict()["state"].values()))["exp_avg_sq"]
    moment.view(-1)[0] = math.inf
    with pytest.raises(CheckpointError, match="exp_avg_sq"):
        run.save()
    moment.view(-1)[0] = 0
    with torch.no_grad():
        next(run.head.parameters()).view(-1)[0] = math.nan
    with pytest.raises(CheckpointError, match="holds NaN or infinity in head"):
        run.save()
    assert (tmp_path / "run/state.pt").read_bytes() == before and not (tmp_path / "run/state.previous.pt").exists()


# --- the last two states


def half_done(lmm, data, folder, after=4):
    "A run that was stopped after so many steps, with two states."
    first = trainer(lmm, data, folder)

    def stop(line):
        if line["step"] == after + 1:
            raise Stopped

    first.on_log = stop
    with pytest.raises(Stopped):
        first.fit()
    return folder


@pytest.fixture(scope="module")
def stopped(lmm, data, tmp_path_factory):
    "A run folder with the states of steps 2 and 4. Tests work on copies."
    return half_done(lmm, data, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture
def folder(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_nan(path):
    state = torch.load(path, weights_only=True)
    next(iter(state["head"].values())).view(-1)[0] = math.nan
    torch.save(state, path)


@pytest.mark.parametrize("damage", [damage_half, damage_bit, damage_nan, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_state_is_passed_over(damage, lmm, data, folder, undisturbed):
    damage(folder / "state.pt")
    run = trainer(lmm, data, folder)
    with pytest.warns(UserWarning, match=r"state\.pt.*Going on from the state before it, state\.previous\.pt"):
        assert run.resume() and run.step == 2
    run.save()  # does not make the damaged one the one before
    assert [states.read(folder / name)["step"] for name in (states.LAST, states.BEFORE)] == [2, 2]
    assert same(weights(run.fit()), undisturbed[1])
    assert states.read(folder / states.LAST)["step"] == 6


def test_two_damaged_states_are_an_error(lmm, data, folder):
    damage_half(folder / "state.pt")
    (folder / "state.previous.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read.*state\.previous\.pt: cannot be read.*Delete"):
        trainer(lmm, data, folder).resume()


@pytest.mark.parametrize("moment", ["while writing", "between the renamings"])
def test_killed_while_it_saves(moment, lmm, data, tmp_path, monkeypatch, undisturbed):
    "The process ends in its second save; the run goes on from the first."
    save, rename, count = torch.save, os.replace, []

    def torn(state, part):
        count.append(part)
        if len(count) == 2:
            part.write_bytes(b"half")
            raise Stopped
        save(state, part)

    def stop(source, target):
        if str(target).endswith("state.pt") and str(source).endswith(".part.pt"):
            count.append(target)
            if len(count) == 2:
                raise Stopped
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", torn) if moment == "while writing" else patched.setattr(os, "replace", stop)
        with pytest.raises(Stopped):
            trainer(lmm, data, tmp_path / "run").fit()
    (tmp_path / "run/.state.0123.part.pt").write_bytes(b"what a kill leaves that nothing can clean up after")
    run = trainer(lmm, data, tmp_path / "run")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run.resume() and run.step == 2
    assert bool(said) == (moment == "between the renamings")
    assert same(weights(run.fit()), undisturbed[1])
    assert not list((tmp_path / "run").glob(".*"))


def test_states_of_older_versions_are_refused(lmm, data, folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    (folder / "state.previous.pt").unlink()
    torch.save({name: state[name] for name in ("head", "optimizer", "step", "seconds")} | {"random": torch.get_rng_state(), "run": "{}"}, folder / "state.pt")
    with pytest.raises(CheckpointError, match="does not hold position, generators, fingerprint, versions.*older versions"):
        trainer(lmm, data, folder).resume()


def test_other_versions_are_said(lmm, data, folder, monkeypatch):
    monkeypatch.setattr(fingerprints, "versions", lambda: {"torch": "9.0"})
    with pytest.warns(UserWarning, match='torch: recorded .*, now "9.0"'):
        assert trainer(lmm, data, folder).resume()


# --- what a run depends on


class Told:
    "A training set that says what it was read from."

    def __init__(self, data, files):
        self.data, self.files, self.ids = data, files, [f"{k:03d}" for k in range(len(data))]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i]


@pytest.fixture
def told(data, tmp_path):
    file = tmp_path / "coco/refcoco/instances.json"
    file.parent.mkdir(parents=True)
    file.write_text("[1, 2, 3]")
    return Told(data, [file])


def one_step(lmm, data, folder, **changes):
    "A run of two steps with the state of its first."
    run = trainer(lmm, data, folder, steps=2, save_every=1, **changes)
    run.begin()
    run.train_step([data[0]])
    run.save()
    return run


def test_replaced_annotations_are_noticed(lmm, told, tmp_path):
    one_step(lmm, told, tmp_path / "run")
    os.utime(told.files[0], (1, 1))
    assert trainer(lmm, told, tmp_path / "run", steps=2).resume()
    moved = tmp_path / "other disk/refcoco/instances.json"
    moved.parent.mkdir(parents=True)
    shutil.move(told.files[0], moved)
    told.files = [moved]
    assert trainer(lmm, told, tmp_path / "run", steps=2).resume()  # a copied data root is the same data
    moved.write_text("[1, 2, 4]")
    with pytest.raises(SettingError, match=r"data\.files\.instances\.json: another content of the same size"):
        trainer(lmm, told, tmp_path / "run", steps=2).resume()


def change_text(path, old, new):
    "Other words in an annotation file, at the same length."
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def test_a_copied_data_root_fits_and_a_changed_one_does_not(lmm, small_world, tmp_path):
    names = ("refcoco", "png")
    one_step(lmm, layout.TrainingSet.open(small_world, names), tmp_path / "run")
    world = shutil.copytree(small_world, tmp_path / "world", copy_function=shutil.copyfile)  # with new times
    assert trainer(lmm, layout.TrainingSet.open(world, names), tmp_path / "run", steps=2).resume()
    change_text(world / "coco/annotations/png_coco_train2017.json", b"the", b"one")
    with pytest.raises(SettingError, match=r"data\.files\.png_coco_train2017\.json: another content of the same size\)"):
        trainer(lmm, layout.TrainingSet.open(world, names), tmp_path / "run", steps=2).resume()


def test_other_samples_are_noticed(lmm, told, tmp_path):
    one_step(lmm, told, tmp_path / "run")
    told.ids[7] = "other"
    with pytest.raises(SettingError, match=r"data\.samples: another content of the same number"):
        trainer(lmm, told, tmp_path / "run", steps=2).resume()
    told.ids = [*told.ids, "one more"]
    with pytest.raises(SettingError, match=r"data\.samples: recorded \d+ samples, now \d+"):
        trainer(lmm, told, tmp_path / "run", steps=2).resume()


def test_png_does_not_go_on_with_refcoco(lmm, small_world, tmp_path):
    png, refcoco = (layout.TrainingSet.open(small_world, (name,)) for name in ("png", "refcoco"))
    one_step(lmm, png, tmp_path / "run", benchmarks=("png",))
    with pytest.raises(SettingError, match=r'benchmarks: recorded \["png"\], now \["refcoco"\]'):
        trainer(lmm, refcoco, tmp_path / "run", steps=2, benchmarks=("refcoco",)).resume()
    with pytest.raises(SettingError, match=r"data\.samples"):  # and were it not for the name
        trainer(lmm, refcoco, tmp_path / "run", steps=2, benchmarks=("png",)).resume()


CHANGES = {
    "lr": (dict(lr=2e-3), "lr: recorded 0.001, now 0.002"),
    "seed": (dict(seed=4), "seed: recorded 3, now 4"),
    "batch": (dict(batch_size=4), "batch_size: recorded 2, now 4"),
    "control": (dict(shuffle_phrases=True), "shuffle_phrases: recorded false, now true"),
    "recipe": (dict(recipe=dict(vision_layers=(3, 6, 9, 12, 15, 18, 20, 20))), "recipe.vision_layers: recorded"),
    "schedule": (dict(recipe=dict(schedule__weight_decay=0.1)), "recipe.schedule.weight_decay: recorded 0.01, now 0.1"),
    "prompt": (dict(recipe=dict(prompt="<image_placeholder>" * 64 + "Name it.")), "recipe.prompt: recorded"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_is_another_run(change, lmm, data, folder):
    changes, message = CHANGES[change]
    changes = {name: recipes.replace(lmm.recipe, **value) if name == "recipe" else value for name, value in changes.items()}
    with pytest.raises(SettingError) as error:
        trainer(lmm, data, folder, **changes).resume()
    assert message in str(error.value)


def test_another_precision_is_another_run(lmm, load, data, tmp_path):
    one_step(lmm, data, tmp_path / "run", autocast="bfloat16")
    with pytest.raises(SettingError, match='autocast: recorded "bfloat16", now "off"'):
        trainer(lmm, data, tmp_path / "run", steps=2, autocast="off").resume()
    half = load(dtype="bfloat16")
    with pytest.raises(SettingError, match='lmm.dtype: recorded "float32", now "bfloat16"'):
        trainer(half, data, tmp_path / "run", steps=2, autocast="bfloat16").resume()


def test_settings_of_no_consequence_may_change(lmm, data, folder):
    assert trainer(lmm, data, folder, workers=1, save_every=3, log_every=5, keep_states=4).resume()


def test_other_weights_are_another_run(data, folder, load):
    other = load()
    with torch.no_grad():
        other.causal_lm.model.layers[2].mlp.up_proj.weight.mul_(1.01)  # as after some more training
    with pytest.raises(SettingError, match=r"lmm\.weights: another content of the same shape"):
        trainer(other, data, folder).resume()


def test_another_configuration_is_another_run(lmm, data, folder, load, tmp_path):
    "The same weights, read with another base of the rotations."
    place = Path(shutil.copytree(lmm.source["path"], tmp_path / "lmm"))
    config = json.loads((place / "config.json").read_text())
    config["language_config"]["rope_theta"] = 5e5
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match=r"lmm\.config"):
        trainer(load(place), data, folder).resume()


def test_another_tokenizer_or_picture_is_another_run(data, folder, load, monkeypatch):
    other = load()
    prepare, tokenizer = other.prepare, other.tokenizer
    monkeypatch.setattr(other, "prepare", lambda image: (prepare(image)[0] + 0.01, prepare(image)[1]))
    monkeypatch.setattr(other, "tokenizer", lambda text, **options: {"input_ids": [*tokenizer(text, **options)["input_ids"], 7]})
    with pytest.raises(SettingError, match=r"lmm\.token ids: .*lmm\.pixels: "):
        trainer(other, data, folder).resume()


def test_config_says_what_was_run(lmm, data, tmp_path):
    run = trainer(lmm, data, tmp_path / "run", steps=2, save_every=1)
    run.settings = {"data": tmp_path, "name": "run"}
    run.begin()
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["program"] == "train" and config["settings"] == {"data": str(tmp_path), "name": "run"} and config["run"]["lr"] == 1e-3
    assert config["fingerprint"] == run.fingerprint and config["fingerprint"]["lmm"]["dtype"] == "float32"
    assert config["fingerprint"]["autocast"] == config["precision"] in ("bfloat16", "off") and config["run"]["autocast"] == "auto"
    assert config["versions"]["torch"] == fingerprints.versions()["torch"] and config["device"].startswith("cpu") and "resumed" not in config
    run.train_step([data[0]])
    run.save()
    again = trainer(lmm, data, tmp_path / "run", steps=2, save_every=1)
    again.resume()
    again.fit()
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["first_step"] == 0 and [entry["step"] for entry in config["resumed"]] == [1] and config["settings"]["name"] == "run"


def test_curves_of_an_earlier_try_are_not_mixed_in(lmm, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text('{"step": 99, "loss": 0.1}\n')
    trainer(lmm, data, tmp_path / "run", steps=1).fit()
    assert [line["step"] for line in training.read_log(tmp_path / "run")] == [1]


def test_nothing_to_train_on_is_said(lmm, data, tmp_path):
    with pytest.raises(DataError, match="the training set is empty"):
        trainer(lmm, Subset(data, []), tmp_path / "run").fit()


def test_a_recipe_that_is_not_the_lmms_is_refused(lmm, data, tmp_path):
    with pytest.raises(SettingError, match="layers: run 5, LMM 3"):
        trainer(lmm, data, tmp_path / "run", recipe=recipes.replace(lmm.recipe, layers=5))


def test_a_state_that_may_not_be_read_is_left_where_it_is(lmm, data, folder, monkeypatch):
    def forbid(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(states.zipfile, "ZipFile", forbid)
    with pytest.raises(SettingError, match=r"state\.pt: may not be read by this user"):
        trainer(lmm, data, folder).resume()
    assert (folder / states.LAST).exists()


# --- a step is of a global batch


def gradient_of(run, samples, total):
    "The gradient of one portion, weighed as a part of a batch."
    run.head.zero_grad()
    (run.portion_loss(samples)["loss"] * len(samples) / total).backward()
    return [parameter.grad.clone() for parameter in run.trained]


def without_dropout(run):
    for module in run.head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return run


@pytest.mark.parametrize("portion", [2, 1])
def test_pictures_of_a_global_batch_count_alike(portion, lmm, data, tmp_path, monkeypatch):
    "Three pictures in portions of two and one, or three of one: the mean over pictures, however they are cut."
    samples = [data[0], data[1], data[len(data) - 1]]
    run = without_dropout(trainer(lmm, data, tmp_path / "run", batch_size=portion, global_batch=3))
    cut = [samples[k : k + portion] for k in range(0, 3, portion)]
    parts = [gradient_of(run, part, 3) for part in cut]
    expected = [torch.stack(ones).sum(0) for ones in zip(*parts, strict=True)]
    each = [run.portion_loss(part)["loss"].detach() * len(part) / 3 for part in cut]
    found = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, most: found.extend(p.grad.clone() for p in parameters) or torch.tensor(1.0))
    run.head.zero_grad()
    losses = run.train_step(samples, total=3)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert torch.allclose(losses["loss"], sum(each)) and run.step == 1


@pytest.mark.parametrize("kind", ["hg", "unet"])
def test_pictures_without_phrases_change_no_number_into_nan(kind, lmm, data, tmp_path):
    "In a portion of their own, and beside others."
    run = trainer(lmm, data, tmp_path / "run", recipe=recipes.replace(lmm.recipe, head=kind), batch_size=1, global_batch=2)
    bare = data[0]
    bare.pieces, bare.masks = [("A picture.", None)], bare.masks[:0]
    for samples in ([bare], [bare, data[1]], []):
        losses = run.train_step(samples, total=2)
        assert all(value.isfinite() for value in losses.values()) and run.skipped == 0
    assert sound(run) and float(losses["loss"]) == 0


def test_a_run_says_its_global_batch_and_keeps_to_it(lmm, data, tmp_path):
    run = trainer(lmm, data, tmp_path / "run", steps=3, save_every=1, batch_size=1, global_batch=2)
    assert run.fit() is run.head and run.position == 6
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["run"]["global_batch"] == 2 and config["processes"] == 1 and training_plan.begun_with(tmp_path / "run") == 2
    with pytest.raises(SettingError, match="global_batch: recorded 2, now 3"):
        trainer(lmm, data, tmp_path / "run", steps=3, batch_size=1, global_batch=3).resume()
    assert training_plan.begun_with(tmp_path) == 0


def test_more_processes_than_pictures_are_refused(lmm, data, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "size", lambda: 3)
    with pytest.raises(SettingError, match="global_batch is 2, for 3 processes: some would have nothing to do"):
        trainer(lmm, data, tmp_path / "run", global_batch=2)


def test_more_states_are_kept(lmm, data, tmp_path):
    trainer(lmm, data, tmp_path / "run", steps=4, save_every=1, batch_size=1, keep_states=3).fit()
    assert [states.read(tmp_path / "run" / name)["step"] for name in states.names(3)] == [4, 4, 3]  # the finished run is saved once more


# --- asked to end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_saves_first(number, lmm, data, tmp_path, undisturbed, capsys):
    def end(*_):
        raise Stopped

    before = signal.signal(signal.SIGTERM, end)  # a process of its own would be gone
    try:
        first = trainer(lmm, data, tmp_path / "run", save_every=100)
        first.on_log = lambda line: line["step"] == 3 and signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped):
            first.fit()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "did so after step 4 of 6. Its state is saved" in capsys.readouterr().out
    second = trainer(lmm, data, tmp_path / "run", save_every=100)
    assert second.resume() and second.step == 4
    assert same(weights(second.fit()), undisturbed[1])
    assert [line["step"] for line in training.read_log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_asked_to_end_after_the_last_step_it_saves_all_the_same(lmm, data, tmp_path, undisturbed, monkeypatch):
    "Where trackers upload what they have, people press Ctrl-C."
    leave = training.Diary.__exit__

    def impatient(self, *error):
        leave(self, *error)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training.Diary, "__exit__", impatient)
    with pytest.raises(KeyboardInterrupt):
        trainer(lmm, data, tmp_path / "run", save_every=100).fit()
    assert same(weights(loading.load_head(tmp_path / "run/head")), undisturbed[1]) and states.read(tmp_path / "run" / states.LAST)["step"] == 6


def test_a_full_disk_is_said_and_the_state_before_stays(lmm, data, folder, monkeypatch):
    "torch makes a RuntimeError of it that names neither the file nor the disk."

    def full(state, part):
        part.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 192 vs 86")

    run, before = trainer(lmm, data, folder), states.read(folder / states.LAST)["step"]
    run.resume()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"the state cannot be written, .* GB are free; the one before is kept") as error:
        run.fit()
    assert error.value.errno == errno.EIO and str(folder / states.LAST) in str(error.value) and states.read(folder / states.LAST)["step"] == before


def test_the_log_is_there_at_every_moment(lmm, data, folder, monkeypatch):
    "Resumed, it is written anew without what is done again; a power cut meanwhile leaves the old one."
    lines = (folder / "log.jsonl").read_text()

    def cut(*_):
        raise Stopped

    run = trainer(lmm, data, folder)
    run.resume()
    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(Stopped):
        run.begin()
    assert (folder / "log.jsonl").read_text() == lines


def test_readers_prepare_only_what_shared_memory_holds(lmm, data, monkeypatch):
    class Usage:
        free = 64 << 20

    monkeypatch.setattr(training_data.shutil, "disk_usage", lambda place: Usage)
    assert training_data._room_for(lmm.prepare, data[0], 8) and not training_data._room_for(lmm.prepare, data[0], 10_000)
    prepared = [next(training_data.shares(data, size, 1, prepare=lmm.prepare, workers=1)).samples[0].prepared for size in (2,)]
    Usage.free = 1000
    assert prepared[0] is not None and next(training_data.shares(data, 2, 1, prepare=lmm.prepare, workers=1)).samples[0].prepared is None


def test_losses_hold_nothing_but_themselves(lmm, data, tmp_path, monkeypatch):
    run = trainer(lmm, data, tmp_path / "run")
    for name, value in {"size": lambda: 2, "rank": lambda: 0, "add_up": lambda row: row}.items():
        monkeypatch.setattr(launch, name, value)
    losses = run.add_up(torch.ones(5))
    assert losses.untyped_storage().nbytes() == 20


def test_processes_find_a_folder_that_was_given_from_here(tmp_path, monkeypatch):
    (tmp_path / "here/weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HGLMM_RUNS", str(tmp_path / "runs"))
    asked = []
    monkeypatch.setattr(training.processes, "torchrun", lambda module, words, *more: asked.append(json.loads(Path(words[0]).read_text())))
    monkeypatch.setattr(loading, "load_head", lambda folder: None)
    settings = training_plan.asked({"name": "run", "lmm_path": "weights"})
    training.train_on(2, settings, tmp_path)
    assert asked[0]["lmm_path"] == str(tmp_path / "here/weights")


def test_a_batch_that_is_more_than_all_makes_no_fewer_passes():
    settings = training_plan.asked({"name": "run", "batch_size": 40, "epochs": 8.0})
    assert training_plan.plan(settings, 10).steps == 8


def test_lines_that_were_cut_short_are_dropped(lmm, data, folder):
    log = folder / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 6, "lo')
    assert [line["step"] for line in training.read_log(folder)] == [1, 2, 3, 4, 5]
    run = trainer(lmm, data, folder)
    assert run.resume() and run.step == 4
    run.fit()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]  # the fifth once, though it was done twice


# --- one process


@pytest.mark.parametrize(
    "left",
    [{"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}],
    ids=lambda left: "-".join(left),
)
def test_what_an_outer_job_left_means_nothing(left, lmm, data, tmp_path, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    run = trainer(lmm, data, tmp_path / "run", autocast="off")
    assert run.run.global_batch == 2 and run.precision == "off" and launch.size() == 1
    assert os.environ[next(iter(left))] == left[next(iter(left))]  # others may need it


SEVERAL = [
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"},
    {"WORLD_SIZE": "8"}, {"LOCAL_RANK": "3"}, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_SIZE": "2"}, {"MV2_COMM_WORLD_SIZE": "2"},
    {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
]  # fmt: skip


@pytest.mark.parametrize("left", SEVERAL, ids=lambda left: "-".join(left))
def test_several_that_do_the_same_are_refused(left, lmm, data, tmp_path, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="training is on one process here, and the environment speaks of several") as error:
        launch.one_process()
    for name in set(left) - {"SLURM_PROCID"}:
        assert f"{name}={left[name]}" in str(error.value) and name in str(error.value).partition("`unset ")[2]
    with pytest.raises(SettingError, match="training is on one process here"):  # a script under torchrun that has not joined
        trainer(lmm, data, tmp_path)


@pytest.mark.parametrize("left", [{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "0"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}], ids=lambda left: "-".join(left))
def test_what_means_one_process_is_fine(left, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    launch.one_process()


# --- the same to the bit


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradients(head, features, samples):
    "Of every parameter, for one batch."
    torch.manual_seed(1)  # dropout
    head.zero_grad()
    training.batch_loss(head.draw(features), samples)["loss"].backward()
    return {name: parameter.grad.clone() for name, parameter in head.named_parameters()}


@pytest.mark.parametrize("kind", ["hg", "unet"])
def test_gradients_are_the_same_thirty_times(kind, data, two_threads):
    samples = [max((data[k] for k in range(len(data) - 20, len(data))), key=lambda sample: len(sample.masks))]
    assert len(samples[0].masks) >= 5  # sums of two have only one order; a picture with many phrases shows most, alone in its batch
    features = FrozenLMM.load("toy_llava", device="cpu").encode(samples)  # large enough to be shared out among threads
    torch.manual_seed(0)
    head = heads.begin(recipes.replace("toy_llava", head=kind)).train()
    first = gradients(head, features, samples)
    different = sum(not same(gradients(head, features, samples), first) for _ in range(29))
    assert different == 0, f"{different} of 29 repetitions differ"


@pytest.mark.parametrize("kind", ["hg", "unet"])
def test_no_operation_of_a_head_refuses_to_be_deterministic(kind, lmm, data):
    head = heads.begin(recipes.replace(lmm.recipe, head=kind)).train()
    torch.use_deterministic_algorithms(True)
    try:
        found = gradients(head, lmm.encode([data[0]]), [data[0]])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_deterministic_is_asked_of_torch(lmm, data, tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert not torch.are_deterministic_algorithms_enabled()
    trainer(lmm, data, tmp_path / "plain")
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        trainer(lmm, data, tmp_path / "run", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
