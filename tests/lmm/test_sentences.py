"Many sentences about one picture: the features of one sentence at a time, at the cost of one reading of the picture."

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import RECIPE_SIZES, TEXT_SIZES, llava_folder, tiny_deepseek
from transformers import MistralConfig, Qwen2Config

from hglmm import heads, inference, recipes
from hglmm.datasets.core import Sample
from hglmm.errors import DataError
from hglmm.lmm import frozen, prefix
from hglmm.lmm.features import Features
from hglmm.lmm.frozen import FrozenLMM

FAMILIES = ("toy_llava", "deepseek_vl", "mistral", "qwen2")


@pytest.fixture(scope="module", params=FAMILIES)
def lmm(request, tmp_path_factory) -> Iterator[FrozenLMM]:
    folder, kind = tmp_path_factory.mktemp("lmm"), request.param
    with pytest.MonkeyPatch.context() as patch:
        if kind == "toy_llava":
            yield FrozenLMM.load("toy_llava", device="cpu")
        elif kind == "deepseek_vl":
            yield tiny_deepseek(folder, patch)
        else:
            text = {"mistral": MistralConfig, "qwen2": Qwen2Config}[kind](**TEXT_SIZES, num_key_value_heads=2)
            recipe = recipes.replace("llava_1_5_7b", **RECIPE_SIZES, text_type=kind)
            yield FrozenLMM.load(recipe, llava_folder(folder / kind, text), "cpu")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 90, 3), dtype=np.uint8))


def about(image: Image.Image, *phrases: str, name: str = "") -> Sample:
    pieces = [piece for k, phrase in enumerate(phrases) for piece in ((phrase, k), (".", None))] or [("nothing.", None)]
    return Sample(image, pieces, np.zeros((len(phrases), image.height, image.width), bool), name)


def sentences() -> list[Sample]:
    "Ten samples of three pictures, mixed: equal ones, one that begins another, one without a phrase, one alone with its picture."
    a, b, c = picture(0), picture(1), picture(2)
    return [
        about(a, "the red mug"), about(b, "a key"), about(a.copy(), "the red mug on the left"), about(a, "the red mug"), about(b, "two fish", "a mug"),
        about(c, "the man"), about(a), about(b, "a"), about(a, "a mug", "the red", "two fish"), about(a, "it"),
    ]  # fmt: skip


def apart(ours: Features, theirs: Features) -> float:
    "The largest difference, of the largest value of each feature."
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in ("attention", "text", "levels", "pixels")] + list(zip(ours.tokens, theirs.tokens, strict=True))
    assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs) and ours.letterbox == theirs.letterbox
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-9)) for x, y in pairs if x.numel())


class Passes:
    "What is computed: pictures that the tower sees, and tokens of each row of the decoder."

    def __init__(self, lmm: FrozenLMM, monkeypatch: pytest.MonkeyPatch):
        self.pictures, self.rows, see, decode = 0, [], type(lmm).see, lmm.causal_lm.model.forward

        def seen(pixels):
            self.pictures += len(pixels)
            return see(lmm, pixels)

        def decoded(**given):
            self.rows.append(tuple(given["inputs_embeds"].shape[:2]))
            return decode(**given)

        monkeypatch.setattr(lmm, "see", seen, raising=False)
        monkeypatch.setattr(lmm.causal_lm.model, "forward", decoded)


def test_sentences_of_one_picture_have_the_features_they_have_alone(lmm):
    samples = sentences()
    together = lmm.encode(samples, tokens=True)
    alone = [lmm.encode([sample], tokens=True)[0] for sample in samples]
    assert all(apart(ours, theirs) < 1e-5 for ours, theirs in zip(together, alone, strict=True))
    assert all(np.array_equal(ours.image, sample.image) for ours, sample in zip(together, samples, strict=True))
    shared = [[a.levels is b.levels for b in together] for a in together]
    assert shared == [[np.array_equal(a.image, b.image) for b in samples] for a in samples]
    assert all(one.tokens is None for one in lmm.encode(samples[:3]))


def test_a_phrase_may_lie_in_what_sentences_have_in_common(lmm):
    samples = [about(picture(0), "the red mug", "a key"), about(picture(0), "the red mug", "a mug"), about(picture(0), "the red mug")]
    for some in (samples, samples[:1] * 2):
        for ours, sample in zip(lmm.encode(some, tokens=True), some, strict=True):
            assert apart(ours, lmm.encode([sample], tokens=True)[0]) < 1e-5


def test_more_than_a_row_has_room_for(lmm, monkeypatch):
    samples = sentences()
    together = lmm.encode(samples, tokens=True)
    monkeypatch.setattr(prefix, "ROOM", 12)
    several = lmm.encode(samples, tokens=True)
    assert all(apart(ours, theirs) < 1e-5 for ours, theirs in zip(several, together, strict=True))
    passes = Passes(lmm, monkeypatch)
    lmm.encode(samples)
    assert passes.pictures == 3 and passes.rows[0][0] > 3


def test_where_every_picture_is_another_nothing_is_different(lmm, monkeypatch):
    "One pass of the decoder, without a mask: what `encode` did before it knew of rows."
    samples = [about(picture(k), "the red mug", *["two fish"] * (k % 2)) for k in range(4)]

    def never(*_):
        raise AssertionError("no row is needed")

    monkeypatch.setattr(frozen, "blocks", never)
    given = []
    decode = lmm.causal_lm.model.forward
    monkeypatch.setattr(lmm.causal_lm.model, "forward", lambda **kwargs: (given.append(set(kwargs)), decode(**kwargs))[1])
    found = lmm.encode(samples, tokens=True)
    assert given == [{"inputs_embeds", "past_key_values", "use_cache"}]
    assert len({id(one.levels) for one in found}) == 4


def test_a_picture_is_seen_once_and_the_prompt_read_once(lmm, monkeypatch):
    image, cells = picture(0), lmm.recipe.grid**2
    samples = [about(image, "the red mug"), about(image.copy(), "a key"), about(image, "the red mug")]
    ids = [len(frozen.phrase_tokens.tokenize_pieces(lmm.tokenizer, lmm.recipe.instruction.format(input=lmm.recipe.prompt), s.pieces, 1, (lmm.recipe.image_token,)).input_ids) for s in samples]
    passes = Passes(lmm, monkeypatch)
    lmm.encode(samples[:1])
    (_, alone) = passes.rows.pop()
    lmm.encode(samples)
    ((rows, tokens),) = passes.rows
    assert passes.pictures == 2 and rows == 1
    assert cells < alone < tokens < alone + sum(ids) - ids[0] and tokens < alone + 20 * 2


def test_the_longest_sentence_must_fit_and_not_the_row(lmm, monkeypatch):
    image = picture(0)
    samples = [about(image, "the red mug on the left", name=str(k)) for k in range(12)] + [about(image, "a key")]
    passes = Passes(lmm, monkeypatch)
    lmm.encode(samples[:1])
    alone = passes.rows.pop()[1]
    monkeypatch.setattr(lmm.causal_lm.config, "max_position_embeddings", alone)
    assert len(lmm.encode(samples)) == 13
    with pytest.raises(DataError, match=rf"{alone + 1} tokens long|{alone + 2} tokens long"):
        lmm.encode([*samples, about(image, "the red mug on the left mug")])


def test_what_was_prepared_ahead_is_not_prepared_again(lmm, monkeypatch):
    samples = sentences()
    expected = lmm.encode(samples)
    for sample in samples:
        sample.prepared = lmm.prepare(sample.image)
    monkeypatch.setattr(type(lmm), "prepare", None)
    for ours, theirs in zip(lmm.encode(samples), expected, strict=True):
        assert torch.equal(ours.text, theirs.text) and ours.letterbox == theirs.letterbox


@pytest.mark.parametrize("kind", ["hg", "unet"])
def test_a_head_looks_at_a_picture_once_for_all_its_sentences(kind):
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    torch.manual_seed(0)
    head = heads.build(recipes.replace("toy_llava", head=kind)).eval()
    features, seen, draw = lmm.encode(sentences()), [], head.draw
    alone = [inference.probabilities(head, [one])[0] for one in features]
    head.draw = lambda pictures: (seen.append([len(one.attention) for one in pictures]), draw(pictures))[1]
    together = inference.probabilities(head, features)
    assert seen == [[7, 4, 1]]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max(initial=0) < 1e-5
