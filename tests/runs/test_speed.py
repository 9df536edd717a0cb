"The extraction benchmark: as a program on toy_llava, and its two ways on a DeepSeek-VL in miniature."

import json
import os
import subprocess
import sys

import pytest
import torch

from hglmm import recipes
from hglmm.lmm import deepseek_vision
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import speed

SMALL = recipes.replace(
    "deepseek_vl_1_3b", layers=3, heads=4, width=32, grid=4, image_size=32, dtype="float32", prompt="<image_placeholder>" * 16 + "Please describe .",
)  # fmt: skip


@pytest.fixture
def tiny_tower(monkeypatch):
    "The name of a SigLIP small enough to test with."
    siglip = deepseek_vision.SIGLIP_SIZES["siglip_large_patch16_384"]
    small = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, patch_size=8)
    monkeypatch.setitem(deepseek_vision.SIGLIP_SIZES, "tiny_siglip", {**siglip, **small})
    return "tiny_siglip"


@pytest.mark.slow
def test_the_program(run_notebook):
    status, said, runs = run_notebook("bench_extract", recipe="toy_llava", name="bench", repeats=2, threads=1)
    assert status == 0, said[-3000:]
    found = json.loads((runs / "bench/bench.json").read_text())
    assert (runs / "bench/bench.png").stat().st_size > 5000
    assert set(found["rows"]) == set(speed.WAYS) and all(one["largest"] < 1e-3 for one in found["difference"].values())
    for one in found["found"].values():
        assert one["masks"] == [4, 480, 640] and len(one["readings"]) == 2 and one["threads"] == 1
        assert one["peak"] > one["loaded"] > one["weights"] == 4 * one["parameters"]
    assert found["ratios"]["reading, MB"] == pytest.approx(found["rows"]["taps"]["reading, MB"] / found["rows"]["all maps"]["reading, MB"])
    assert 0 < found["ratios"]["reading, MB"] < 1


def test_the_program_refuses_what_it_cannot_make(run_notebook, tmp_path):
    status, said, _ = run_notebook("bench_extract", recipe="llava_1_5_7b", folder=str(tmp_path / "none"))
    assert status != 0 and "Give the folder of a downloaded one" in said


def test_both_ways_read_the_same_from_a_made_checkpoint(tiny_tower, tmp_path):
    folder = speed.made_folder(SMALL, tmp_path / "made", tower=tiny_tower)
    stamp = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lmm, sample = FrozenLMM.load(SMALL, speed.made_folder(SMALL, folder), device="cpu"), speed.example(5, 30)
    assert stamp == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}  # a folder that is there is used as it is
    taps, maps = (way(lmm, sample) for way in speed.WAYS.values())
    assert taps.attention.shape == (5, 12, 4, 4) and taps.levels.shape == (8, 16, 32)
    assert all(one["largest"] < 1e-3 for one in speed.difference(vars(taps), vars(maps)).values())
    assert lmm.tokenizer.unk_token_id not in lmm.tokenizer(sample.caption)["input_ids"]


def test_a_seed_makes_the_same_checkpoint_again(tiny_tower, tmp_path):
    one, two = (speed.made_folder(SMALL, tmp_path / name, tower=tiny_tower) for name in "ab")
    assert (one / "model-00001.safetensors").read_bytes() == (two / "model-00001.safetensors").read_bytes()


def test_a_difference_shows():
    torch.manual_seed(0)
    features = {name: torch.randn(2, 50) for name in speed.FEATURES}
    moved = features | {"text": features["text"].clone()}
    moved["text"][0, 0] += 3 * moved["text"].std()
    found = speed.difference(features, moved)
    assert found["levels"] == {"largest": 0, "typical": 0}
    assert 2 < found["text"]["largest"] < 4 and 0.2 < found["text"]["typical"] < 0.4  # 3 at one of 100 places


@pytest.mark.slow
def test_how_a_busy_machine_is_measured(run_notebook, small_world):
    status, said, runs = run_notebook("bench_busy", name="busy", data=small_world, policies="[hglmm]", steps=1, pictures=1, loops=1)
    assert status == 0, said
    found = json.loads((runs / "busy/busy.json").read_text())["hglmm"]
    assert found["times as long"] == found["beside busy loops, s"] / found["alone, s"] > 0


@pytest.mark.slow
def test_how_a_step_of_the_head_is_measured(run_notebook):
    status, said, runs = run_notebook("bench_head", name="head", cases="[toy_4_pictures]", threads="[1]", rounds=1, steps=1)
    assert status == 0, said
    found = json.loads((runs / "head/bench_head.json").read_text())
    assert list(found["rows"]) == [f"toy_4_pictures, 1 threads: {way}" for way in ("torch", "head", "kept")]
    assert found["rows"]["toy_4_pictures, 1 threads: torch"]["times as fast"] == 1
    assert all(one["logits"] == 0 and 0 < one["gradient"] < 1e-5 for one in found["difference"]["toy_4_pictures, 1 threads"].values())


def test_threads_do_not_spin_unless_somebody_says_so():
    ask = [sys.executable, "-c", "import hglmm, os; print(os.environ.get('GOMP_SPINCOUNT'))"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for given, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")):
        assert subprocess.run(ask, env={**bare, **given}, capture_output=True, text=True).stdout.strip() == expected


@pytest.mark.slow
def test_how_sentences_about_one_picture_are_measured(run_notebook, small_world):
    status, said, runs = run_notebook("bench_sentences", name="sentences", data=small_world, most=2, pictures=1, repeats=1)
    assert status == 0, said[-3000:]
    found = json.loads((runs / "sentences/sentences.json").read_text())
    assert (runs / "sentences/sentences.png").stat().st_size > 5000
    assert list(found["rows"]) == ["1", "2"] and set(found["features"]) == set(found["masks"]) == set(found["difference"]) == {"one by one", "a batch", "one row"}
    assert all(value < 1e-3 for value in found["difference"]["one row"].values())
    row, whole = found["rows"]["2"], found["whole"]
    assert row["one row, times as fast"] == pytest.approx(row["one by one, s"] / row["one row, s"])
    assert whole["pictures"] == 1 and whole["sentences"] > 1 and whole["pixels that differ, at least"] <= 2 and whole["times as fast"].keys() == whole["one by one"].keys()


@pytest.mark.slow
def test_how_answers_at_once_are_measured(run_notebook, small_world):
    status, said, runs = run_notebook("bench_answers", name="answers", data=small_world, most=2, pictures=2, repeats=1, max_new_tokens=6)
    assert status == 0, said[-3000:]
    found = json.loads((runs / "answers/answers.json").read_text())
    assert (runs / "answers/answers.png").stat().st_size > 5000
    assert found["same"] == {"generate": 2, "one by one": 2, "at once": 2} and max(found["tokens"]) <= 6
    row = found["rows"]["2"]
    assert row["at once, times as fast"] == pytest.approx(row["generate, s"] / row["at once, s"])
    assert found["gcg"]["fields that differ"] == [] and found["gcg"]["phrases"] >= 2
