"Answers of several pictures at once: those of one picture at a time, with the vocabulary's logits of the last position only."

from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from small_lmms import RECIPE_SIZES, TEXT_SIZES, llava_folder, tiny_deepseek
from transformers import MistralConfig, Qwen2Config

from hglmm import recipes
from hglmm.datasets import layout
from hglmm.datasets.reasonseg import question_prompt
from hglmm.errors import DataError, SettingError
from hglmm.lmm import answers as room
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.greedy import speak

DESCRIBE, MANY = "Please give me a detailed description of the image.", 24


@pytest.fixture(scope="module")
def toy() -> FrozenLMM:
    return FrozenLMM.load("toy_llava", device="cpu")


@pytest.fixture(scope="module")
def pictures(small_world) -> list[Image.Image]:
    data = layout.open_task("gcg", small_world, split="val")
    return [data[i].image for i in range(len(data))]


@pytest.fixture(scope="module", params=["toy_llava", "deepseek_vl", "mistral", "qwen2"])
def lmm(request, toy, tmp_path_factory) -> Iterator[FrozenLMM]:
    folder, kind = tmp_path_factory.mktemp("lmm"), request.param
    with pytest.MonkeyPatch.context() as patch:
        if kind == "toy_llava":
            yield toy
        elif kind == "deepseek_vl":
            yield tiny_deepseek(folder, patch)
        else:
            text = {"mistral": MistralConfig, "qwen2": Qwen2Config}[kind](**TEXT_SIZES, num_key_value_heads=2)
            yield FrozenLMM.load(recipes.replace("llava_1_5_7b", **RECIPE_SIZES, text_type=kind), llava_folder(folder / kind, text), "cpu")


def test_pictures_described_at_once_and_one_by_one(toy, pictures):
    together = toy.answers(pictures, DESCRIBE)
    assert len(pictures) >= 12 and len({len(one.tokens) for one in together}) > 3  # they end at different places
    assert together == [toy.answer(picture, DESCRIBE) for picture in pictures] and not any(one.cut for one in together)


def test_questions_of_different_lengths(lmm, pictures):
    "Padded in front, to the last number: texts, cuts, what is kept of the prompt, and the features of what was said."
    questions = ["What?", question_prompt("something that one can drink from"), "where is it", "Is there a mug?"]
    together = lmm.answers(pictures[:4], questions, max_new_tokens=MANY)
    assert len({len(one.prompt_ids) for one in together}) >= 3
    for one, picture, question in zip(together, pictures, questions, strict=False):
        alone = lmm.answer(picture, question, max_new_tokens=MANY)
        assert one == alone and one.tokens
        for ours, theirs in zip(one.context.past, alone.context.past, strict=True):
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
        spans = [(0, len(one.text)), (0, 1)]
        ours, theirs = lmm.encode_answer(one, spans), lmm.encode_answer(alone, spans)
        assert torch.allclose(ours.attention, theirs.attention, atol=1e-5) and torch.allclose(ours.text, theirs.text, atol=1e-4)
        assert torch.equal(ours.pixels, theirs.pixels) and torch.allclose(ours.levels, theirs.levels, atol=1e-4) and ours.letterbox == theirs.letterbox


def test_what_is_kept_of_an_answer_is_its_own(toy, pictures):
    "Not a view into what all had together: to forget one gives its memory back."
    one, other = toy.answers(pictures[:2], ["What?", "What is on the left?"], max_new_tokens=4)
    layers = [kept for answer in (one, other) for layer in answer.context.past for kept in layer]
    assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in [*layers, one.context.levels, one.context.pixels])
    assert layers[0].shape[2] == len(one.context.prompt.embeddings) < layers[-1].shape[2] == len(other.context.prompt.embeddings)
    assert [answer.context for answer in toy.answers(pictures[:2], "What?", max_new_tokens=4, keep=False)] == [None, None]


def test_the_vocabulary_is_asked_for_the_last_position_only(toy, pictures, monkeypatch):
    asked, seen, see = [], [], type(toy).see
    handle = toy.causal_lm.lm_head.register_forward_hook(lambda module, inputs, logits: asked.append(tuple(logits.shape)))
    monkeypatch.setattr(toy, "see", lambda pixels: (seen.append(len(pixels)), see(toy, pixels))[1], raising=False)
    try:
        toy.answers([pictures[0], pictures[1], pictures[0].copy()], ["What?", "What?", "Where is it?"], max_new_tokens=3)
    finally:
        handle.remove()
    words = toy.causal_lm.config.vocab_size
    assert asked == [(3, words)] * 3 and seen == [2]  # a picture that comes twice is looked at once
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert toy.causal_lm(ids).logits.shape == (1, 4, words)  # and afterwards it is the model it was


def test_no_more_at_once_than_there_is_room_for(toy, pictures, monkeypatch):
    expected, sizes = toy.answers(pictures[:5], "What?", max_new_tokens=8), []
    monkeypatch.setattr(room, "speak", lambda lm, prompts, *given: (sizes.append(len(prompts)), speak(lm, prompts, *given))[1])
    token = 2 * toy.recipe.layers * toy.recipe.width * 4  # bytes of its keys and values
    length = len(expected[0].context.prompt.embeddings) + 8
    for most, wanted in ((2 * length * token, [1, 2, 2]), (2 * length * token - 1, [1] * 5), (1, [1] * 5), (5 * length * token, [5]), (4 * length * token, [2, 3])):
        sizes.clear()
        monkeypatch.setattr(room, "CACHE", most)
        assert toy.answers(pictures[:5], "What?", max_new_tokens=8) == expected and sizes == wanted


def test_the_next_ones_are_asked_when_these_are_taken(toy, pictures, monkeypatch):
    sizes = []
    monkeypatch.setattr(room, "speak", lambda lm, prompts, *given: (sizes.append(len(prompts)), speak(lm, prompts, *given))[1])
    monkeypatch.setattr(room, "portions", lambda count, most: [slice(0, 2), slice(2, 4)])
    taken = []
    for one in toy.each_answer(pictures[:4], "What?", max_new_tokens=4):
        taken.append((one.context is not None, list(sizes)))
        one.forget()
    assert taken == [(True, [2]), (True, [2]), (True, [2, 2]), (True, [2, 2])]


def test_each_answer_ends_where_its_own_context_does(toy, pictures, monkeypatch):
    short, long = "What?", question_prompt("something that one can drink from")
    lengths = [len(one.context.prompt.embeddings) for one in toy.answers(pictures[:2], [short, long], max_new_tokens=1)]
    monkeypatch.setattr(toy.causal_lm.config, "max_position_embeddings", lengths[1] + 3)
    together = toy.answers(pictures[:2], [DESCRIBE, long])
    assert together == [toy.answer(picture, question) for picture, question in zip(pictures, [DESCRIBE, long], strict=False)]
    assert len(together[1].tokens) <= 3 < len(together[0].tokens)
    monkeypatch.setattr(toy.causal_lm.config, "max_position_embeddings", lengths[1])
    with pytest.raises(DataError, match=f"{lengths[1] + 1} tokens long"):
        toy.answers(pictures[:2], [short, long])


def test_nothing_to_answer_and_questions_that_do_not_fit(toy, pictures):
    assert toy.answers([], "What?") == toy.answers([], []) == []
    with pytest.raises(SettingError, match="questions: 1 of them for 2 pictures. Expected one for each"):
        toy.answers(pictures[:2], ["What?"])
    with pytest.raises(SettingError, match="max_new_tokens 0"):
        toy.answers(pictures[:2], "What?", max_new_tokens=0)


def test_a_padded_place_is_never_looked_at(toy, pictures, monkeypatch):
    "Whatever stands there."
    questions, pad = ["What?", question_prompt("something that one can drink from")], torch.nn.utils.rnn.pad_sequence
    expected = toy.answers(pictures[:2], questions, max_new_tokens=MANY)
    monkeypatch.setattr(torch.nn.utils.rnn, "pad_sequence", lambda prompts, batch_first: pad(prompts, batch_first, padding_value=3.0))
    assert toy.answers(pictures[:2], questions, max_new_tokens=MANY) == expected


def test_who_has_ended_leaves(toy, pictures, monkeypatch):
    "No word is read of a sequence that has come to its end."
    answers, sizes, forward = toy.answers(pictures[:5], DESCRIBE), [], toy.causal_lm.model.forward
    monkeypatch.setattr(toy.causal_lm.model, "forward", lambda **given: (sizes.append(given["inputs_embeds"].shape[:2]), forward(**given))[1])
    assert toy.answers(pictures[:5], DESCRIBE) == answers
    assert sizes[0][0] == 5 and all(tokens == 1 for _, tokens in sizes[1:])
    assert sum(rows for rows, _ in sizes[1:]) == sum(len(one.tokens) for one in answers)
