"Kept features: the same training to the bit, found for nothing but what they are of, within their bound, and never in the way."

import copy
import errno
import json
import os
import shutil
import sys
import time
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import quick_lmm
from torch import Tensor

from hglmm import fingerprints, recipes
from hglmm.checkpoints import states
from hglmm.datasets import layout
from hglmm.datasets.core import Subset
from hglmm.errors import SettingError
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import feature_cache, training, training_plan
from hglmm.runs.feature_cache import FeatureCache
from hglmm.runs.feature_files import Room


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    "Load the LMM of these tests."
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("quick")
        recipe = quick_lmm(folder, patch).recipe
        yield lambda **options: FrozenLMM.load(recipe, folder / "lmm", device="cpu", **options)


@pytest.fixture(scope="module")
def lmm(load):
    return load()


@pytest.fixture(scope="module")
def data(small_world):
    return layout.TrainingSet.open(small_world, ("png",))


@pytest.fixture(scope="module")
def samples(data):
    return [data[i] for i in range(4)]


def trainer(lmm, data, folder, steps=6, **changes):
    folder.mkdir(exist_ok=True)
    settings = {"recipe": lmm.recipe, "seed": 3, "batch_size": 1, "lr": 1e-3, "save_every": 100, "log_every": 1, **changes}
    return training.Trainer(training.Run(steps=steps, **settings), lmm, data, folder)


@pytest.fixture
def features(tmp_path, monkeypatch):
    "Where runs keep them."
    monkeypatch.setenv("HGLMM_FEATURES", str(tmp_path / "features"))
    return tmp_path / "features"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def equal(mine, theirs, tokens=False):
    "Two readings of a picture, all of it."
    tensors = [name for name, value in vars(theirs).items() if isinstance(value, Tensor)]
    assert set(tensors) == {"attention", "text", "levels", "pixels"} and mine.letterbox == theirs.letterbox and mine.image.tobytes() == theirs.image.tobytes()
    words = zip(mine.tokens, theirs.tokens, strict=True) if tokens else [(torch.zeros(1), torch.zeros(1))] * (mine.tokens == theirs.tokens)
    return all(getattr(mine, name).dtype == getattr(theirs, name).dtype and torch.equal(getattr(mine, name), getattr(theirs, name)) for name in tensors) and all(
        torch.equal(a, b) for a, b in words
    )


# --- the same numbers


@pytest.fixture(scope="module")
def without(lmm, data, tmp_path_factory):
    "A head after two epochs of three samples, one at a time, without a cache."
    return trainer(lmm, Subset(data, range(3)), tmp_path_factory.mktemp("without") / "run").fit().state_dict()


@pytest.mark.parametrize("mode", ["rows", "levels"])
def test_training_is_the_same_to_the_bit(mode, lmm, data, tmp_path, features, without, capsys):
    few = Subset(data, range(3))
    run = trainer(lmm, few, tmp_path / "run", feature_cache=mode)
    assert same(run.fit().state_dict(), without)
    assert run.cache.counts == {"misses": 3, "written": 3, "hits": 3} and len(files(features)) == 3
    said = capsys.readouterr().out
    assert f"feature cache ({mode}): 3 of 3 samples repeat" in said and "3 hits, 3 misses, 3 written" in said
    again = trainer(lmm, few, tmp_path / "again", steps=1, feature_cache=mode)
    again.fit()
    assert again.cache.counts == {"hits": 1}  # of another run


def test_off_keeps_nothing(lmm, data, tmp_path, features):
    run = trainer(lmm, Subset(data, range(2)), tmp_path / "run", steps=1)
    run.fit()
    assert run.cache is None and not features.exists()


def test_what_was_kept_before_changes_nothing(lmm, data, tmp_path, features):
    "Batches of two, from nothing and with a part of them already there, which was read in other company."
    few = Subset(data, range(4))
    cold = trainer(lmm, few, tmp_path / "cold", steps=2, batch_size=2, feature_cache="rows").fit().state_dict()
    shutil.rmtree(features)
    run = trainer(lmm, few, tmp_path / "warm", steps=2, batch_size=2, feature_cache="rows")
    run.cache.encode([data[3], data[0], data[1]])
    assert same(run.fit().state_dict(), cold) and run.cache.counts == {"misses": 4, "written": 4, "hits": 3}


def test_a_run_of_batches_does_not_change_how_it_reads(lmm, data, tmp_path, features):
    few = Subset(data, range(4))
    trainer(lmm, few, tmp_path / "two", steps=1, batch_size=2).fit()
    with pytest.raises(SettingError, match="lmm_batch: recorded 2, now 1"):
        trainer(lmm, few, tmp_path / "two", steps=1, batch_size=2, feature_cache="rows").resume()
    trainer(lmm, few, tmp_path / "one", steps=1).fit()
    assert trainer(lmm, few, tmp_path / "one", steps=1, feature_cache="levels", cache_gb=7).resume()  # to the bit the same


@pytest.mark.parametrize("mode", ["rows", "levels"])
def test_tokens_are_kept_for_heads_that_ask(mode, lmm, samples, tmp_path):
    cache = FeatureCache(lmm, tmp_path, 10**9, mode)
    for _ in range(2):
        assert all(equal(mine, lmm.encode([one], tokens=True)[0], tokens=True) for one, mine in zip(samples, cache.encode(samples, tokens=True), strict=True))
    assert all(one.tokens is None for one in cache.encode(samples)) and cache.counts == {"misses": 8, "written": 8, "hits": 4}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_as_it_is(dtype, load, samples, tmp_path):
    half = load(dtype=dtype)
    cache = FeatureCache(half, tmp_path, 10**9, "levels")
    for _ in range(2):
        assert equal(cache.encode(samples[:1])[0], half.encode(samples[:1])[0])
    assert cache.counts["hits"] == 1


def test_a_sharded_lmm_is_refused(lmm, data, tmp_path, monkeypatch):
    whole = training_plan.of_lmm(lmm)["weights"]
    monkeypatch.setattr(lmm, "sharded", SimpleNamespace(weights=whole, take=lambda: None))  # as `sharding.shard` leaves it
    with pytest.raises(SettingError, match="feature_cache is 'rows', and the LMM is sharded"):
        trainer(lmm, data, tmp_path / "run", feature_cache="rows")
    assert trainer(lmm, data, tmp_path / "off").cache is None


# --- what repeats


def test_sentences_are_drawn_anew_or_once(lmm, small_world, tmp_path):
    cache = {once: FeatureCache(lmm, tmp_path / str(once), 10**9) for once in (False, True)}
    for once in cache:
        data = layout.TrainingSet.open(small_world, ("refcoco", "png"), draw_once=once)
        for epoch in range(2):
            drawn = data.draw(epoch, 5)
            for one in (drawn[0], drawn[len(drawn) - 1]):  # referring expressions, a narrative
                assert equal(cache[once].encode([one])[0], lmm.encode([one])[0])
    assert cache[False].counts == {"passed": 2, "misses": 1, "written": 1, "hits": 1}
    assert cache[True].counts == {"misses": 2, "written": 2, "hits": 2}


def test_drawn_once_is_another_run(lmm, small_world, tmp_path):
    data = layout.TrainingSet.open(small_world, ("refcoco",), draw_once=True)
    trainer(lmm, data, tmp_path / "run", steps=1, draw_once=True).fit()
    with pytest.raises(SettingError, match="draw_once: recorded true, now false"):
        trainer(lmm, data, tmp_path / "run", steps=1).resume()


def test_nothing_is_kept_where_nothing_is_said(lmm, samples, tmp_path):
    bare = copy.copy(samples[0])
    bare.pieces, bare.masks = [("A picture.", None)], bare.masks[:0]
    cache = FeatureCache(lmm, tmp_path, 10**9)
    assert not len(cache.encode([bare])[0].attention) and cache.counts == {"passed": 1} and not files(tmp_path)


# --- what a file is found by


def other_weights(lmm, patch):
    next(lmm.model.parameters()).data.view(-1)[0] += 1


def other_tokenizer(lmm, patch):
    tokenizer = lmm.tokenizer
    patch.setattr(lmm, "tokenizer", lambda text, **options: {"input_ids": [*tokenizer(text, **options)["input_ids"], 7]})


def other_pixels(lmm, patch):
    prepare = lmm.prepare
    patch.setattr(lmm, "prepare", lambda image: (prepare(image)[0] + 0.1, prepare(image)[1]))


def changed(**fields):
    def change(lmm, patch):
        lmm.recipe = recipes.replace(lmm.recipe, **fields)

    return change


def other_code(lmm, patch):
    patch.setattr(feature_cache, "reading_code", lambda lmm: [Path(feature_cache.__file__)])


def other_precision(lmm, patch):
    patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")


CHANGES = {
    "weights": other_weights, "tokenizer": other_tokenizer, "pixels": other_pixels, "prompt": changed(prompt="<image_placeholder>" * 64 + "Describe it."), "code": other_code, "precision": other_precision,
    "turn": changed(instruction="USER: {input} ASSISTANT: "), "vision layers": changed(vision_layers=(0, 1, 2, 3, 4, 5, 6, 6)), "shape": changed(layers=4),
    "config": lambda lmm, patch: patch.setattr(lmm, "source", {"files": {"config.json": {"size": 9, "digest": "other"}}}),
    "versions": lambda lmm, patch: patch.setattr(fingerprints, "versions", lambda: {"torch": "9.0"}), "dtype": lambda lmm, patch: lmm.model.half(),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_read_otherwise_is_not_found(what, lmm, samples, tmp_path, monkeypatch):
    own = copy.deepcopy(lmm)
    before = feature_cache.of_reading(own, "rows")
    cache = FeatureCache(own, tmp_path, 10**9)
    cache.encode(samples[:1])
    assert FeatureCache(own, tmp_path, 10**9).home == cache.home
    CHANGES[what](own, monkeypatch)
    now = feature_cache.of_reading(own, "rows")
    assert now != before and FeatureCache(own, tmp_path, 10**9).home != cache.home
    fields = {"weights": "lmm", "config": "lmm", "tokenizer": "lmm", "pixels": "lmm", "prompt": "turn", "vision layers": "lmm", "dtype": "precision"}
    assert now[fields.get(what, what)] != before[fields.get(what, what)]  # by the part that says so, not by chance


def test_modes_and_devices_do_not_share(lmm, monkeypatch):
    rows = feature_cache.of_reading(lmm, "rows")
    assert fingerprints.differences(rows, feature_cache.of_reading(lmm, "levels")) == ['kept: recorded "rows", now "levels"']
    monkeypatch.setattr(type(lmm), "device", property(lambda self: torch.device("meta")))
    assert feature_cache.of_reading(lmm, "rows")["precision"] != rows["precision"]


def test_comments_may_change_and_code_may_not(tmp_path):
    path, found = tmp_path / "code.py", []
    for text in ("x = 1", "# why\nx  =  1\n", "x = 2"):
        path.write_text(text)
        found.append(feature_cache.of_code([path]))
    assert found[0] == found[1] != found[2]


def test_all_of_the_lmms_code_counts(lmm):
    names = {path.relative_to(Path(feature_cache.__file__).parents[1]).as_posix() for path in feature_cache.reading_code(lmm)}
    assert {"lmm/frozen.py", "lmm/taps.py", "lmm/llava.py", "lmm/features.py", "phrases.py", "user_text.py", "geometry.py", "datasets/pictures.py"} <= names


def another_picture(sample):
    sample.image = sample.image.copy()
    sample.image.putpixel((0, 0), tuple(255 - value for value in sample.image.getpixel((0, 0))))


def another_size(sample):
    sample.image = sample.image.resize((sample.image.height, sample.image.width)) if sample.image.height != sample.image.width else sample.image.crop((0, 0, *sample.image.size[:1], sample.image.height - 1))


def another_text(sample):
    sample.pieces = [("Well,", None), *sample.pieces]


def another_phrase(sample):
    sample.pieces = [(text, None if k == 0 else k and k - 1) for text, k in sample.pieces]
    sample.masks = sample.masks[1:]


@pytest.mark.parametrize("change", [another_picture, another_size, another_text, another_phrase])
def test_another_sample_is_not_found(change, lmm, samples, tmp_path):
    cache, other = FeatureCache(lmm, tmp_path, 10**9), copy.copy(samples[0])
    cache.encode(samples[:1])
    change(other)
    assert equal(cache.encode([other])[0], lmm.encode([other])[0]) and cache.counts["misses"] == 2


def test_the_same_bytes_in_another_shape_are_another_picture(samples):
    flat = copy.copy(samples[0])
    flat.image = Image.frombytes("RGB", (1, flat.image.width * flat.image.height), flat.image.tobytes())
    assert feature_cache.of_sample(flat) != feature_cache.of_sample(samples[0])
    fewer = copy.copy(samples[0])
    fewer.masks = fewer.masks[:-1]
    assert feature_cache.of_sample(fewer) != feature_cache.of_sample(samples[0])


def test_masks_and_names_do_not_matter(lmm, samples, tmp_path):
    cache, other = FeatureCache(lmm, tmp_path, 10**9), copy.copy(samples[0])
    other.masks, other.id = ~other.masks, "other"
    cache.encode([samples[0], other])
    assert cache.counts == {"misses": 1, "written": 1, "hits": 1}


# --- files that are not what they were


def cut(path, others):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, others):
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 4
    path.write_bytes(content)


def flip_header(path, others):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"text"', b'"tex_"', 1))


def another_samples(path, others):
    shutil.copy(next(other for other in others if other != path), path)


@pytest.mark.parametrize("damage", [cut, flip, flip_header, another_samples, lambda path, others: path.write_bytes(b"")])
def test_a_damaged_file_is_computed_anew(damage, lmm, samples, tmp_path):
    cache = FeatureCache(lmm, tmp_path, 10**9)
    cache.encode(samples[:2])
    path = cache.place(feature_cache.of_sample(samples[0]))
    damage(path, files(tmp_path))
    with pytest.warns(UserWarning, match=f"{path.name}: not what was written .* computed anew"):
        assert equal(cache.encode(samples[:1])[0], lmm.encode(samples[:1])[0])
    assert cache.counts["damaged"] == 1 and cache.counts["hits"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(cache.encode(samples[:1])[0], lmm.encode(samples[:1])[0])  # mended
    assert cache.counts["hits"] == 1


# --- room


def age(folder, seconds=30 * 86_400):
    "As if an earlier run had written all of it, in the order of the names."
    for k, path in enumerate(files(folder)):
        os.utime(path, (time.time() - seconds + k,) * 2)


def test_the_oldest_are_dropped_and_the_bound_holds(lmm, samples, tmp_path):
    FeatureCache(lmm, tmp_path, 10**9).encode(samples)
    age(tmp_path)
    old, size = files(tmp_path), held(tmp_path)
    cache = FeatureCache(lmm, tmp_path, size)
    cache.encode([next(one for one in samples if cache.place(feature_cache.of_sample(one)) == old[0])])  # used again, so now the youngest
    assert cache.counts == {"hits": 1}
    more = copy.copy(samples[0])
    another_text(more)
    cache.encode([more])
    assert old[0].exists() and not old[1].exists() and cache.room.dropped >= 1 and held(tmp_path) <= size and cache.counts["written"] == 1


def test_what_the_run_needs_again_stays(lmm, samples, tmp_path):
    FeatureCache(lmm, tmp_path / "measure", 10**9).encode(samples)
    bound = int(0.8 * held(tmp_path / "measure"))
    cache = FeatureCache(lmm, tmp_path / "features", bound)
    with pytest.warns(UserWarning, match=r"cache_gb .* is used up.*every epoch") as said:
        for _ in range(2):
            assert all(equal(mine, lmm.encode([one])[0]) for one, mine in zip(samples, cache.encode(samples), strict=True))
    assert len(said) == 1 and 0 < cache.counts["written"] < 4 and cache.counts["hits"] == cache.counts["written"]
    assert held(tmp_path / "features") <= bound


def test_what_may_be_wanted_later_in_this_epoch_stays(tmp_path):
    "Files of the run's own kind, from yesterday; those of an hour ago of another kind go."
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    for folder, age in ((own, 86_400), (theirs, 3600)):
        folder.mkdir()
        (folder / "0.safetensors").write_bytes(bytes(100))
        os.utime(folder / "0.safetensors", (time.time() - age,) * 2)
    room = Room(tmp_path, 200, own)
    assert room.take(100) and (own / "0.safetensors").exists() and not (theirs / "0.safetensors").exists()
    (own / "1.safetensors").write_bytes(bytes(100))
    assert not room.take(100) and (own / "0.safetensors").exists()


def test_an_adapter_of_a_notebook_is_refused(lmm, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nowhere", types.ModuleType("nowhere"))
    own = copy.copy(lmm)
    own.__class__ = type("Own", (type(lmm),), {"__module__": "nowhere"})
    with pytest.raises(SettingError, match="Own is made in a notebook"):
        FeatureCache(own, tmp_path, 10**9).home  # noqa: B018


def test_other_kinds_go_first(tmp_path):
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    for k, folder in enumerate((own, theirs, own, theirs)):
        folder.mkdir(exist_ok=True)
        (folder / f"{k}.safetensors").write_bytes(bytes(100))
        os.utime(folder / f"{k}.safetensors", (k, k))
    room, left = Room(tmp_path, 400, own), []
    for _ in range(4):
        assert room.take(100)
        left.append([path.stem for path in sorted(files(tmp_path), key=lambda path: path.stem)])
        (own / f"new{len(left)}.safetensors").write_bytes(bytes(100))
    assert [[name for name in names if name.isdigit()] for names in left] == [["0", "2", "3"], ["0", "2"], ["2"], []]
    assert not room.take(100) and room.full


@pytest.mark.parametrize("writers", [2, 3])
def test_several_writers_stay_within_the_bound(writers, tmp_path):
    "In turns drawn by chance, each knowing only what it saw when it last looked."
    draw = np.random.default_rng(writers)
    rooms, bound = [Room(tmp_path, 40_000, tmp_path, writers) for _ in range(writers)], 40_000
    looks = []
    for room in rooms:
        look = room.look
        room.look = lambda size, look=look: looks.append(size) or look(size)
    for k in range(220):
        size = int(draw.integers(200, 500))
        if draw.choice(rooms, p=[0.8] + [0.2 / (writers - 1)] * (writers - 1)).take(size):
            (tmp_path / f"{k}.safetensors").write_bytes(bytes(size))
        assert held(tmp_path) <= bound
    assert all(room.full for room in rooms) and held(tmp_path) > 0.8 * bound and len(looks) < 150


def test_what_another_writer_may_still_write_is_left_to_it(tmp_path):
    slow, quick = (Room(tmp_path, 40_000, tmp_path, 2) for _ in range(2))
    assert slow.take(400)  # of a portion of 1000
    (tmp_path / "slow.safetensors").write_bytes(bytes(400))
    for k in range(200):
        if quick.take(500):
            (tmp_path / f"{k}.safetensors").write_bytes(bytes(500))
    assert quick.full and slow.take(600) and held(tmp_path) + 600 <= 40_000


def test_a_file_that_vanishes_is_no_fault(lmm, samples, tmp_path, monkeypatch):
    "Dropped by another process at any moment."
    cache = FeatureCache(lmm, tmp_path, 10**9)
    cache.encode(samples[:1])
    files(tmp_path)[0].unlink()
    assert equal(cache.encode(samples[:1])[0], lmm.encode(samples[:1])[0]) and cache.counts["misses"] == 2
    touch = os.utime
    monkeypatch.setattr(os, "utime", lambda path, *times: Path(path).unlink() or touch(path, *times))
    assert equal(cache.encode(samples[:1])[0], lmm.encode(samples[:1])[0]) and cache.counts["hits"] == 1
    stat = Path.stat
    cache.encode(samples[1:3])
    gone = files(tmp_path)[0]

    def vanishing(self, **options):
        if self == gone:
            raise FileNotFoundError(str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", vanishing)
    assert len(list(cache.room.files())) == 1


# --- a disk that does not take it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_said_once(number, lmm, data, tmp_path, features, without, monkeypatch):
    write, done = Path.write_bytes, []

    def full(self, content):
        if self.suffix == ".safetensors" and features in self.parents:
            if len(done) == 1:
                write(self, content[:1000])
                raise OSError(number, os.strerror(number))
            done.append(self)
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    run = trainer(lmm, Subset(data, range(3)), tmp_path / "run", feature_cache="rows")
    with pytest.warns(UserWarning, match=os.strerror(number)) as said:
        head = run.fit()
    assert len([one for one in said if "cannot be written" in str(one.message)]) == 1
    assert ("The disk is full" in str(said[0].message)) == (number != errno.EROFS)
    assert same(head.state_dict(), without) and run.cache.counts == {"misses": 5, "written": 1, "hits": 1}  # what is there is used
    assert [path.name.startswith(".") for path in features.rglob("*.safetensors")] == [False]


def test_a_place_that_is_no_folder_is_said_once(lmm, samples, tmp_path):
    (tmp_path / "features").write_text("somebody's")
    cache = FeatureCache(lmm, tmp_path / "features", 10**9)
    with pytest.warns(UserWarning, match="cannot be written") as said:
        for _ in range(2):
            assert equal(cache.encode(samples[:1])[0], lmm.encode(samples[:1])[0])
    assert len(said) == 1 and cache.counts == {"misses": 2}


# --- what is said before


@pytest.mark.parametrize("mode", ["rows", "levels"])
def test_the_size_that_is_foretold(mode, data, tmp_path):
    toy = FrozenLMM.load("toy_llava", device="cpu")  # a file's head is little beside its tensors
    cache, few = FeatureCache(toy, tmp_path, 10**9, mode), Subset(data, range(6))
    one = cache.probe([few[0], few[1]], False)
    assert not files(tmp_path)  # before anything is written
    expected = one["phrase"] * sum(len(few[i].masks) for i in range(6)) + one["sample"] * 6
    cache.encode([few[i] for i in range(6)])
    assert held(tmp_path) == pytest.approx(expected, rel=0.02)
    assert one["phrase"] == 20 * 16 * 16 * 4 + 4 * 160 * 4  # of the recipe
    assert 0 < one["left"] < one["seconds"]


def test_what_is_foretold_of_what_repeats(lmm, small_world, tmp_path):
    cache = FeatureCache(lmm, tmp_path, 10**5)
    mixed, once = (layout.TrainingSet.open(small_world, ("refcoco", "png"), draw_once=once) for once in (False, True))
    told = cache.foretell(mixed)
    count = len(mixed.parts[1])
    phrases = sum(mixed.parts[1].count_phrases(i) for i in range(count))
    assert f"{count} of {len(mixed)} samples repeat, with {phrases} phrases" in told and "where 0 files" in told and "% of them, the rest is computed in every epoch" in told
    assert f"{len(once)} of {len(once)} samples repeat" in FeatureCache(lmm, tmp_path, 10**12).foretell(once)
    assert "no sample of this training set repeats" in cache.foretell(layout.TrainingSet.open(small_world, ("refcoco",)))


def test_the_parameters_of_a_run():
    settings = training_plan.asked({"feature_cache": "levels", "cache_gb": 2.5, "draw_once": True})
    run = training_plan.plan(settings, 100)
    assert (run.feature_cache, run.cache_gb, run.draw_once) == ("levels", 2.5, True)
    assert training_plan.plan(training_plan.asked({"feature_cache": False}), 100).feature_cache == "off"  # papermill makes False of off
    with pytest.raises(SettingError, match="feature_cache"):
        training_plan.asked({"feature_cache": "all"})


# --- two processes


@pytest.mark.slow
def test_two_processes_share_a_cache(zygote, small_world, tmp_path):
    "Through the program itself: the second run finds what the first one's processes kept, and its head is the same."
    words = ["-p", "max_steps", "2", "-p", "batch_size", "1", "-p", "device", "cpu", "-p", "benchmarks", "[refcoco]", "-p", "data", str(small_world), "-p", "draw_once", "True"]
    environment, found = {**os.environ, "HGLMM_RUNS": str(tmp_path / "runs"), "HGLMM_FEATURES": str(tmp_path / "features")}, {}
    for name in ("cold", "warm"):
        status, said = zygote.run("ranks", "2", "train", *words, "-p", "name", name, "-r", "feature_cache", "rows", timeout=300, environment=environment)
        assert status == 0, said
        found[name] = said, states.read(tmp_path / "runs" / name / states.LAST)["head"]
    assert same(found["cold"][1], found["warm"][1]) and len(files(tmp_path / "features")) == 4
    for rank in range(2):
        assert f"feature cache of process {rank}: 0 hits, 2 misses, 2 written" in found["cold"][0]
        assert f"feature cache of process {rank}: 2 hits, 0 misses" in found["warm"][0]


@pytest.mark.slow
def test_how_training_is_measured(run_notebook, small_world):
    status, said, runs = run_notebook("bench_training", name="bench", data=str(small_world), batch=1, steps=2, processes="[]")
    assert status == 0, said
    report = json.loads((runs / "bench/training.json").read_text())
    assert set(report["steps"]) == {"off", "cold", "rows", "levels", "head alone"} and report["steps"]["head alone"]["times the head alone"] == 1
    assert report["steps"]["levels"]["kept, MB a picture"] > report["steps"]["rows"]["kept, MB a picture"] > 0 and (runs / "bench/training.png").stat().st_size
