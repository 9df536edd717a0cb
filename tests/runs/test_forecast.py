"Memory and hours, known before: counts against real tensors, warnings and what they advise, the command, and the programs that ask."

import dataclasses
import json
import runpy

import pytest
import torch
from small_lmms import tiny_deepseek

from hglmm import heads, recipes
from hglmm.errors import SettingError
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import forecast, machine, needs, plan_check
from hglmm.runs.feature_cache import FeatureCache
from hglmm.runs.needs import Ask
from hglmm.runs.speed import example
from hglmm.runs.tally import Count, tally, without_numbers

NARROW = recipes.replace(
    "toy_llava", sizes=recipes.HeadSizes(
        text_width=12, level_widths=(8, 8, 12), dynamic_width=4, detail_width=8, attention_width=8, fused_width=8, stage_sizes=(16, 8, 4, 2), width=8, output_width=4,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> FrozenLMM:
    return FrozenLMM.load("toy_llava", device="cpu")


@pytest.fixture(scope="module")
def counted() -> needs.Needs:
    return needs.needs(Ask(NARROW, "res", batch_size=2, phrases=3, words=12))


def test_what_is_made_is_counted_and_what_was_there_is_not():
    with without_numbers():
        there = torch.empty(1000)
        _, count = tally(lambda: [there + 1, there.view(10, 100), (there * 2).sum()])
    assert count.left == 4000 + 4 and count.highest == 8000 + 4 and count.calls == 3 and count.products == 0


def test_attention_is_counted_without_its_maps():
    with without_numbers(), torch.no_grad():
        q = torch.empty(1, 4, 300, 32)
        _, count = tally(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert count.products == 4 * 4 * 300 * 300 * 32 and count.highest < 4 * 300 * 300 * 4


def test_bytes_are_those_of_the_real_ones(toy, counted):
    features = toy.encode([example(3, 12, seed=k) for k in range(2)])
    made = sum(one.attention.nbytes + one.text.nbytes + one.levels.nbytes for one in features)
    assert counted.parts["LMM"] == sum(p.nbytes for p in toy.model.parameters())
    assert counted.parts["head"] == sum(p.nbytes for p in heads.build(NARROW).parameters())
    seen = made + sum(2 * one.pixels.nbytes for one in features)
    assert seen <= counted.parts["pictures and features"] < 1.2 * seen


def test_both_towers_of_a_folder_are_counted(tmp_path, monkeypatch):
    lmm = tiny_deepseek(tmp_path, monkeypatch, hybrid=True)
    blueprint, size, largest, source = needs._blueprint(lmm.recipe, "float32", str(tmp_path / "lmm"))
    assert size == sum(p.nbytes for p in lmm.model.parameters()) > largest and str(tmp_path) in source
    with without_numbers():
        features, _, reading = needs.read(blueprint, 1, 2, 6)
    assert features[0].levels.shape == (8, 16, 32) and reading.products > 0


def test_a_batch_takes_so_many_times_what_a_picture_does(counted):
    more = needs.needs(Ask(NARROW, "res", batch_size=4, phrases=3, words=12))
    assert more.parts["pictures and features"] == 2 * counted.parts["pictures and features"] and more.parts["LMM"] == counted.parts["LMM"]
    assert 1.8 < more.memory / (more.parts["LMM"] + more.parts["head"] + (counted.memory - counted.parts["LMM"] - counted.parts["head"])) < 2.1 or more.memory > counted.memory
    assert more.reading.products == pytest.approx(counted.reading.products, rel=0.01)  # of one picture


def test_a_training_step_takes_more_than_drawing(counted):
    step = needs.needs(Ask(NARROW, "train", batch_size=2, phrases=3, words=12))
    own = counted.parts["head"]
    assert step.parts["head, with what its optimizer keeps"] == 3 * own
    assert step.drawing.products > 2 * counted.drawing.products and step.drawing.highest > counted.drawing.highest


def test_half_precision_halves_weights_and_spreading_shares_them():
    whole, half = (needs.needs(Ask(NARROW, "res", dtype=dtype, batch_size=1, phrases=1, words=5)).parts["LMM"] for dtype in ("float32", "float16"))
    assert whole == 2 * half
    lmm, size, largest, _ = needs._blueprint(NARROW, "float32", "")
    assert needs._weights(Ask(NARROW, "train", gpus=4, shard_lmm=True), size, largest) == -(-size // 4) + largest
    assert needs._weights(Ask(NARROW, "res", gpus=4, device_map=True), size, largest) == -(-size // 4)
    assert needs._weights(Ask(NARROW, "res", gpus=4), size, largest) == size


def test_answers_need_room_for_keys_and_values(toy):
    ask = Ask(NARROW, "gcg", batch_size=2, phrases=2, words=10, max_new_tokens=40)
    found = needs.needs(ask)
    context = toy.answer(example().image, "What?", 4).context
    length = len(context.prompt.embeddings)
    one = sum(keys.nbytes + values.nbytes for keys, values in context.past) // length
    assert found.at_once == 2 and found.parts["keys and values of answers"] == 2 * one * (2 * (256 + needs.AROUND) + 40)
    assert needs.needs(dataclasses.replace(ask, task="res")).parts.keys() == found.parts.keys() - {"keys and values of answers"}


@pytest.mark.parametrize("mode", ["rows", "levels"])
def test_the_feature_cache_takes_what_it_says(toy, tmp_path, mode):
    sample = example(3, 12)
    kept = FeatureCache(toy, tmp_path, 10**9, mode).kept(toy.encode([sample])[0])
    ask = Ask(NARROW, "train", batch_size=1, phrases=3, words=12, samples=1000, epochs=3, feature_cache=mode, repeats=0.5)
    found = forecast.foretell(ask, machine.said(1e12), gpu=False)
    assert found.disk == 500 * (sum(tensor.nbytes for tensor in kept.values()) + 2048)
    assert found.seconds < dataclasses.replace(found, ask=dataclasses.replace(ask, feature_cache="off")).seconds


def test_hours_follow_samples_and_devices(counted):
    ask = Ask(NARROW, "res", batch_size=2, phrases=3, words=12, samples=1000)
    one = forecast.Forecast(ask, counted, machine.Machine(1e9))
    assert one.seconds == pytest.approx(1000 * (counted.seeing + counted.reading + counted.drawing).products / 1e9)
    assert dataclasses.replace(one, ask=dataclasses.replace(ask, gpus=4)).seconds == pytest.approx(one.seconds / 4)
    assert dataclasses.replace(one, ask=dataclasses.replace(ask, gpus=4, device_map=True)).seconds == pytest.approx(one.seconds)
    timed = dataclasses.replace(one, machine=machine.Machine(1e9, timed={"preparing": 0.0, "seeing": 0.0, "reading": 2.0, "drawing": 1.0}))
    assert timed.seconds == pytest.approx(3000)
    assert machine.Machine(1e9, words=1e6, calls=0.5).word(2_000_000, Count(calls=2)) == 3


@pytest.mark.parametrize(("changes", "share", "said"), [
    ({}, 0.6, "batch_size=1"), ({"batch_size": 1}, 0.85, "dtype='float16'"), ({"batch_size": 1, "gpus": 8, "task": "train"}, 0.85, "shard_lmm=True"),
    ({"batch_size": 1, "gpus": 8}, 0.85, "device_map='auto'"), ({"batch_size": 1}, 0.01, "more or larger devices"),
])  # fmt: skip
def test_a_run_that_cannot_fit_is_told_what_helps(changes, share, said):
    wide = recipes.replace(NARROW, dtype="float32" if "float16" in said else "float16")
    ask = Ask(wide, **{"task": "res", "batch_size": 16, "phrases": 2, "words": 10, **changes})
    found = dataclasses.replace(forecast.foretell(ask, gpu=False), process=0)
    if "batch" not in said:  # the LMM is what counts, as in one of full size
        heavy = {"LMM": 100 * found.needs.parts["LMM"]}
        shrink = lambda one: dataclasses.replace(one, parts={**one.parts, "LMM": 100 * one.parts["LMM"]})  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forecast, "needs", lambda other: shrink(needs.needs(other)))
            found = dataclasses.replace(found, needs=dataclasses.replace(found.needs, parts={**found.needs.parts, **heavy}))
            tight = dataclasses.replace(found, ask=dataclasses.replace(ask, memory=share * found.memory))
            text = forecast.warning(tight)
    else:
        text = forecast.warning(dataclasses.replace(found, ask=dataclasses.replace(ask, memory=share * found.memory)))
    assert said in text and "on each device" in text
    assert not forecast.warning(dataclasses.replace(found, ask=dataclasses.replace(ask, memory=1.1 * found.memory)))


def test_programs_are_warned_and_never_stopped(monkeypatch):
    assert forecast.warn(NARROW, "train", "cpu", batch_size=2) is None  # plain that it fits: nothing is counted
    monkeypatch.setattr(forecast, "memory_of", lambda _: 10**7)
    with pytest.warns(UserWarning, match="may not fit.*It goes on nevertheless"):
        assert not forecast.warn(NARROW, "res", "cpu", batch_size=2, path="").fits
    monkeypatch.setattr(forecast, "needs", lambda _: 1 / 0)
    with pytest.warns(UserWarning, match="could not be counted"):
        assert forecast.warn(NARROW, "res", "cpu") is None
    monkeypatch.setattr(forecast, "memory_of", lambda _: 0)
    assert forecast.warn(NARROW, "res", "cpu") is None  # not known


def test_the_command(capsys, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "narrow", dataclasses.replace(NARROW, name="narrow"))
    words = ["narrow", "train", "--flops", "1e12", "--words", "10", "--phrases", "2", "--samples", "3600"]
    assert forecast.main([*words, "--memory", "40"]) == 0
    said = capsys.readouterr().out
    assert "3,600 samples of 2 phrases and 10 tokens" in said and "assumed: 40% of the 1 TFLOP/s" in said and "with feature_cache='rows'" in said
    assert forecast.main([*words, "--memory", "0.1"]) == 1
    assert "It will not fit." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        forecast.main(["narrow", "sing"])


def test_hglmm_plan_is_that_command(monkeypatch, capsys):
    cli = runpy.run_module("hglmm.cli", run_name="cli")
    with pytest.raises(SystemExit) as ended:
        cli["main"](["plan", "--help"])
    assert ended.value.code == 0 and "hglmm plan" in capsys.readouterr().out and cli["MODULES"]["plan"] == "hglmm.runs.forecast"


def test_sizes_that_are_published_make_the_published_number_of_weights():
    "LLaVA-1.5-7B has 7.06 billion, of which none is here."
    _, size, _, source = needs._blueprint(recipes.get("llava_1_5_7b"), "float16", "")
    assert source == "the sizes that were published" and size == 2 * 7_063_427_072
    with pytest.raises(SettingError, match="no folder with a config.json"):
        needs._blueprint(recipes.get("llava_1_5_7b"), "float16", "/nowhere")


def test_forecast_and_measurement_side_by_side():
    found = plan_check.measure(plan_check.Check("measure", NARROW, phrases=2, words=10))
    assert json.loads(json.dumps(found))["memory"] > found["weights"] and found["seconds"] == found["reading"] + found["drawing"]
