"""Answers of an LMM: which tokens their characters come from, and what grounding them reads and costs."""

import copy
import dataclasses
import inspect
import pickle
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import SPECIAL, TEXTS, byte_level, metaspace, sentencepiece_model, tiny_deepseek
from transformers import LlamaTokenizer, LlamaTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from hglmm import phrases
from hglmm.datasets.core import Sample
from hglmm.errors import CheckpointError, DataError, SettingError
from hglmm.lmm.answers import Answer
from hglmm.lmm.frozen import FrozenLMM


def random_texts(count: int, seed: int) -> list[str]:
    "Strings over characters of one to four bytes."
    draw = random.Random(seed)
    characters = "abc  éß\u0301红杯鱼的🐟👍\u200d한"
    return ["".join(draw.choices(characters, k=draw.randint(1, 60))) for _ in range(count)]


# Tokenizers as they come with the LMMs, with small vocabularies

KINDS = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "sentencepiece": lambda folder: LlamaTokenizer(sentencepiece_model(folder), legacy=True),
    "sentencepiece, fast": lambda folder: LlamaTokenizerFast(sentencepiece_model(folder)),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def bytes_of(tokenizer, ids: list[int]) -> list[bytes]:
    "What every token stands for, from the vocabulary alone."
    byte_of, parts = {c: b for b, c in bytes_to_unicode().items()}, []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in SPECIAL:
            parts.append(b"")
        elif len(token) == 6 and token.startswith("<0x"):
            parts.append(bytes([int(token[3:5], 16)]))
        elif "<0x00>" in tokenizer.get_vocab():
            parts.append(token.replace("▁", " ").encode())
        else:
            parts.append(bytes(byte_of[c] for c in token))
    return parts


def expected_offsets(text: str, parts: list[bytes]) -> list[tuple[int, int]]:
    "The characters that each token has a byte of."
    dropped = len(b"".join(parts)) - len(text.encode())
    assert b"".join(parts) == b" " * dropped + text.encode()  # decoders drop spaces at the very beginning
    ends = np.cumsum([len(c.encode()) for c in text])
    place, ranges = -dropped, []
    for part in parts:
        start, place = max(place, 0), place + len(part)
        first = int(np.searchsorted(ends, start, "right"))
        ranges.append((first, int(np.searchsorted(ends, place - 1, "right")) + 1 if place > start else first))
    return ranges


@pytest.mark.parametrize("text", [*TEXTS, *random_texts(20, 0)], ids=range(30))
def test_every_token_covers_the_characters_it_has_a_byte_of(tokenizer, text):
    ids = ids_of(tokenizer, text)
    found, offsets = phrases.offsets_of(tokenizer, ids)
    assert found == tokenizer.decode(ids, clean_up_tokenization_spaces=False) and found.strip() == text.strip()
    assert offsets == expected_offsets(found, bytes_of(tokenizer, ids))


def check_cover(text: str, offsets: list[tuple[int, int]]) -> None:
    "Monotone, within the text, and no character without a token."
    assert offsets == sorted(offsets) and [b for _, b in offsets] == sorted(b for _, b in offsets)
    assert all(0 <= a <= b <= len(text) for a, b in offsets)
    assert set().union(*(range(a, b) for a, b in offsets)) == set(range(len(text)))


@pytest.mark.parametrize("text", random_texts(8, 1), ids=range(8))
def test_tokens_of_a_span_are_those_that_overlap_it(tokenizer, text):
    text, offsets = phrases.offsets_of(tokenizer, ids_of(tokenizer, text))
    check_cover(text, offsets)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            chosen = phrases.tokens_of_span(offsets, (start, end))
            assert chosen == [i for i, (a, b) in enumerate(offsets) if set(range(a, b)) & set(range(start, end))]
            assert set(range(start, end)) <= set().union(*(range(*offsets[i]) for i in chosen))


def test_broken_characters_are_covered_too(tokenizer):
    "An answer may be cut within a character, or hold bytes that never were one."
    draw = random.Random(2)
    fish = ids_of(tokenizer, "two 🐟 and 红")
    for ids in [*(fish[:n] for n in range(len(fish))), *(draw.choices(range(len(tokenizer)), k=40) for _ in range(20))]:
        text, offsets = phrases.offsets_of(tokenizer, ids)
        assert len(offsets) == len(ids)
        check_cover(text, offsets)


def test_special_tokens_cover_nothing(tokenizer):
    ids = ids_of(tokenizer, "a red mug")
    end = tokenizer.eos_token_id
    text, offsets = phrases.offsets_of(tokenizer, [end, *ids, end])
    plain, others = phrases.offsets_of(tokenizer, ids)
    assert text == plain and offsets == [(0, 0), *others, (len(text), len(text))]
    assert phrases.tokens_of_span(offsets, (0, len(text))) == [i + 1 for i in phrases.tokens_of_span(others, (0, len(text)))]


def test_slow_and_fast_tokenizers_agree(tmp_path):
    file = sentencepiece_model(tmp_path)
    slow, fast = LlamaTokenizer(file, legacy=True), LlamaTokenizerFast(file)
    for text in [*TEXTS, *random_texts(20, 3)]:
        for ids in (ids_of(slow, text.strip()), ids_of(fast, text.strip())):  # the slow one drops a second space at the beginning
            assert phrases.offsets_of(slow, ids) == phrases.offsets_of(fast, ids)


def test_the_work_grows_with_the_length(tokenizer, monkeypatch):
    "Tokens decoded per token of the answer; with every beginning decoded it would be half the answer's length."
    decoded = []
    decode = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids, **options: decoded.append(len(ids)) or decode(self, ids, **options))
    for text in ("a red mug and two fish. " * 100, "红色的杯子在桌子上，两条鱼。" * 40, "🐟 " * 200):
        ids = ids_of(tokenizer, text)
        decoded.clear()
        phrases.offsets_of(tokenizer, ids)
        assert len(ids) > 300 and sum(decoded) < 60 * len(ids)


# Grounding an answer: toy_llava, and DeepSeek-VL in miniature with random weights


@pytest.fixture(params=["toy_llava", "deepseek_vl"])
def lmm(request, tmp_path, monkeypatch) -> FrozenLMM:
    return FrozenLMM.load("toy_llava", device="cpu") if request.param == "toy_llava" else tiny_deepseek(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))


QUESTION = "What is in the image?"
FIELDS = ("attention", "text", "levels", "pixels")


def some_spans(answer: Answer) -> list[tuple[int, int]]:
    "The whole answer, its first character, and a stretch in the middle."
    length = len(answer.text)
    assert length > 4
    return [(0, length), (0, 1), (length // 3, 2 * length // 3)]


@torch.no_grad()
def step_by_step(lmm: FrozenLMM, answer: Answer) -> tuple[torch.Tensor, torch.Tensor]:
    "Attention (T, C, g*g) and hidden states (T, L, d) of an answer's tokens by transformers' eager attention, one token at a time."
    slow = type(lmm.causal_lm)._from_config(copy.deepcopy(lmm.causal_lm.config), attn_implementation="eager").eval()
    slow.load_state_dict(lmm.causal_lm.state_dict())
    prompt, attention, text = answer.context.prompt, [], []
    out = slow(inputs_embeds=prompt.embeddings[None], use_cache=True)
    for token in answer.tokens:
        assert int(out.logits[0, -1].argmax()) == token
        out = slow(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True, output_attentions=True, output_hidden_states=True)
        attention.append(torch.cat([layer[0, :, 0, prompt.columns] for layer in out.attentions]))
        text.append(torch.stack([state[0, 0] for state in out.hidden_states[1:]]))
    return torch.stack(attention), torch.stack(text)


def test_an_answer_is_grounded_by_the_rows_it_was_spoken_with(lmm, image):
    answer = lmm.answer(image, QUESTION, max_new_tokens=24)
    spans = some_spans(answer)
    features = lmm.encode_answer(answer, spans, tokens=True)
    attention, text = step_by_step(lmm, answer)
    for k, span in enumerate(spans):
        chosen = phrases.tokens_of_span(answer.offsets, span)
        assert torch.allclose(features.attention[k].flatten(1), attention[chosen].mean(0), atol=1e-5)
        assert torch.allclose(features.text[k], text[chosen].mean(0), atol=1e-4)
        assert torch.allclose(features.tokens[k], text[chosen], atol=1e-4)


class Passes:
    "Counts what runs: tokens of each pass of the decoder, and passes of the vision tower."

    def __init__(self, lmm: FrozenLMM):
        tower = lmm.model.tower if hasattr(lmm.model, "tower") else lmm.model.vision_tower
        self.decoder, self.tower = [], 0
        lmm.causal_lm.model.register_forward_hook(lambda module, args, kwargs, out: self.decoder.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True)
        tower.register_forward_hook(self._seen)

    def _seen(self, *_) -> None:
        self.tower += 1


def test_grounding_an_answer_costs_one_pass_over_it(lmm, image):
    answer = lmm.answer(image, QUESTION, max_new_tokens=24)
    passes = Passes(lmm)
    for _ in range(2):  # what was kept is not used up
        lmm.encode_answer(answer, some_spans(answer))
    assert passes.decoder == [len(answer.tokens)] * 2 and passes.tower == 0
    lmm.encode_answer(answer, [])
    assert len(passes.decoder) == 2 and passes.tower == 0


def test_without_its_context_an_answer_is_read_again(lmm, image):
    answer = lmm.answer(image, QUESTION, max_new_tokens=24)
    spans, stored = some_spans(answer), pickle.loads(pickle.dumps(answer))
    quick = lmm.encode_answer(answer, spans)
    unkept = lmm.answer(image, QUESTION, max_new_tokens=24, keep=False)
    assert answer.context is not None and stored.context is None and unkept.context is None and answer == unkept
    answer.forget()
    passes = Passes(lmm)
    for other in (answer, stored, unkept):
        again = lmm.encode_answer(other, spans)
        assert all(torch.allclose(getattr(quick, name), getattr(again, name), atol=1e-5) for name in FIELDS)
        assert again.letterbox == quick.letterbox
    assert passes.tower == 3 and len(passes.decoder) == 3 and passes.decoder[0] > len(answer.tokens) + lmm.recipe.grid**2


def test_a_longer_answer_does_not_change_what_came_before(lmm, image):
    "Cut at `max_new_tokens`, an answer is the beginning of the longer one, and so are its features."
    long, cut = (lmm.answer(image, QUESTION, max_new_tokens=n) for n in (24, 9))
    assert cut.tokens == long.tokens[:9] and cut.context.past[0][0].shape == long.context.past[0][0].shape
    end = min(len(cut.text), len(long.text)) - 1  # the last character may be incomplete
    a, b = (lmm.encode_answer(answer, [(0, 1)]) for answer in (cut, long))
    assert cut.text[:end] == long.text[:end] and phrases.tokens_of_span(cut.offsets, (0, 1)) == phrases.tokens_of_span(long.offsets, (0, 1))
    assert all(torch.allclose(getattr(a, name), getattr(b, name), atol=1e-5) for name in FIELDS)


def test_an_empty_answer(lmm, image, monkeypatch):
    first = lmm.answer(image, QUESTION, max_new_tokens=1).tokens[0]
    monkeypatch.setattr(type(lmm.tokenizer), "eos_token_id", first)
    answer = lmm.answer(image, QUESTION)
    assert answer.tokens == [] and answer.text == "" and answer.offsets == []
    with pytest.raises(DataError, match=r"characters \(0, 0\) do not lie in the answer ''"):
        lmm.encode_answer(answer, [(0, 0)])
    for _ in range(2):
        features = lmm.encode_answer(answer, [], tokens=True)
        recipe = lmm.recipe
        assert features.attention.shape == (0, recipe.channels, recipe.grid, recipe.grid) and features.text.shape == (0, recipe.layers, recipe.width)
        assert features.tokens == [] and features.levels.shape == (8, recipe.grid**2, recipe.width)
        answer.forget()


@pytest.mark.parametrize("span", [(-1, 2), (2, 2), (3, 1), (0, 10_000), (10_000, 10_001)])
def test_spans_outside_the_answer_are_refused(image, span):
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    answer = lmm.answer(image, QUESTION, max_new_tokens=9)
    with pytest.raises(DataError, match=rf"characters \({span[0]}, {span[1]}\) do not lie in the answer .* has {len(answer.text)}"):
        lmm.encode_answer(answer, [(0, 1), span])


def test_an_answer_ends_where_the_context_does(lmm, image):
    prompt = len(lmm.answer(image, QUESTION, max_new_tokens=1).context.prompt.embeddings)
    lmm.causal_lm.config.max_position_embeddings = prompt + 5
    answer = lmm.answer(image, QUESTION, max_new_tokens=24)
    assert len(answer.tokens) <= 5 and lmm.encode_answer(answer, [(0, 1)]).text.shape[0] == 1
    answer.forget()
    answer.tokens = answer.tokens[:1] * 6
    with pytest.raises(DataError, match=f"{prompt + 6} tokens long; .* at most {prompt + 5}"):
        lmm.encode_answer(answer, [(0, 1)])
    lmm.causal_lm.config.max_position_embeddings = prompt
    with pytest.raises(DataError, match="Split the text"):
        lmm.answer(image, QUESTION)


def test_a_cut_answer_says_so(image):
    "Whether it came to its end, at every length; what it says up to there is the same."
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    assert inspect.signature(lmm.answer).parameters["max_new_tokens"].default == 1024
    whole = lmm.answer(image, QUESTION)
    assert not whole.cut and 0 < len(whole.tokens) < 400 and pickle.loads(pickle.dumps(whole)) == whole
    for most, cut in ((len(whole.tokens) + 1, False), (len(whole.tokens), True), (1, True)):  # the end is a token too
        answer = lmm.answer(image, QUESTION, max_new_tokens=most)
        assert answer.cut is cut and answer.tokens == whole.tokens[:most] and pickle.loads(pickle.dumps(answer)).cut is cut
    prompt = len(whole.context.prompt.embeddings)
    for room, cut in ((len(whole.tokens) + 1, False), (len(whole.tokens), True)):  # in the LMM's context
        lmm.causal_lm.config.max_position_embeddings = prompt + room
        assert lmm.answer(image, QUESTION).cut is cut


@pytest.mark.parametrize("most", [0, -1, 2.5, "12", None, True])
def test_a_number_of_new_tokens_that_is_none(image, most):
    with pytest.raises(SettingError, match="max_new_tokens .*at least 1"):
        FrozenLMM.load("toy_llava", device="cpu").answer(image, QUESTION, max_new_tokens=most)


def test_a_tokenizer_without_an_end(image):
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    lmm.tokenizer.eos_token = None
    with pytest.raises(CheckpointError, match="names no end token"):
        lmm.answer(image, QUESTION)


def said(lmm: FrozenLMM, image: Image.Image, text: str) -> Answer:
    "The LMM is made to say something."
    answer = lmm.answer(image, QUESTION, max_new_tokens=1, keep=False)
    answer.tokens = ids_of(lmm.tokenizer, text)
    answer.text, answer.offsets = phrases.offsets_of(lmm.tokenizer, answer.tokens)
    return answer


def test_a_phrase_is_where_it_is_said_and_not_what_it_says(image):
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    answer = said(lmm, image, "a red mug and a red mug and a red mug")
    places = [m.span() for m in re.finditer("red mug", answer.text)]
    assert len(places) == 3
    chosen = [places[2], places[0], places[0], (0, len(answer.text)), places[1]]  # any order, twice, within another
    together = lmm.encode_answer(answer, chosen)
    for k, span in enumerate(chosen):
        alone = lmm.encode_answer(answer, [span])
        assert torch.allclose(together.attention[k], alone.attention[0], atol=1e-6) and torch.allclose(together.text[k], alone.text[0], atol=1e-5)
    assert torch.equal(together.attention[1], together.attention[2])
    for a, b in ((0, 1), (1, 4), (0, 4)):
        assert not torch.allclose(together.attention[a], together.attention[b], atol=1e-4)
    numpy_spans = lmm.encode_answer(answer, np.array(chosen))
    assert torch.equal(numpy_spans.attention, together.attention)


@pytest.mark.parametrize("span", ["ab", (0.0, 1.0), (0, 1, 2), (0,), 3, None, ("0", "1"), (None, 2), [[0, 1]]], ids=str)
def test_what_is_no_span(image, span):
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    answer = said(lmm, image, "a red mug")
    with pytest.raises(DataError, match="expected .first, one past the last. character"):
        lmm.encode_answer(answer, [(0, 1), span])


def test_any_picture_will_do(image, tmp_path):
    "Turned, transparent, grey, an array, a file: what a person would see is what the LMM sees."
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    expected = lmm.answer(image, QUESTION, max_new_tokens=8)
    image.save(tmp_path / "picture.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    for other in (np.asarray(image), tmp_path / "picture.png", str(tmp_path / "picture.png"), image.convert("RGBA"), Image.open(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png").copy()):
        answer = lmm.answer(other, QUESTION, max_new_tokens=8)
        assert answer == dataclasses.replace(expected, image=answer.image) and answer.image.mode == "RGB" and answer.image.size == image.size
        pixels, box = lmm.prepare(other)
        assert torch.equal(pixels, expected.context.pixels.cpu()) and box == expected.context.letterbox
    sample = Sample(Image.open(tmp_path / "turned.png"), [("a mug", 0)], np.ones((1, 60, 90), bool))
    features = lmm.encode([sample])[0]
    assert torch.equal(features.pixels, pixels) and features.image.size == (90, 60)
    with pytest.raises((DataError, SettingError), match="image|nowhere"):
        lmm.answer(3, QUESTION)
