"Turns that came before: their tokens, what is said after them, and grounding it."

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import small_lmm
from test_user_text import deepseek_kind, metaspace_kind, slow_kind, toy_kind

from hglmm.errors import DataError, SettingError
from hglmm.lmm.deepseek_vl import DeepSeekVL
from hglmm.lmm.frozen import FrozenLMM
from hglmm.phrases import offsets_of
from hglmm.user_text import special_tokens

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
BEFORE, QUESTION = [("What is in the image?", "a red mug."), ("Where?", " on the table ")], "What colour is it?"
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."
)
LLAVA = "USER: <image>\nWhat is in the image? ASSISTANT: a red mug.</s>USER: Where? ASSISTANT: on the table</s>USER: What colour is it? ASSISTANT:"
DEEPSEEK = (
    SYSTEM + "\n\nUser: <image_placeholder>What is in the image?\n\nAssistant: a red mug.{end}User: Where?\n\nAssistant: on the table{end}User: What colour is it?\n\nAssistant:"
)


def speaker(kind, folder) -> FrozenLMM:
    "An LMM of which only the tokenizer is there."
    tokenizer, recipe, more, pad = kind(folder)
    if more and more[0] not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": more, "pad_token": pad})
    lmm = object.__new__(DeepSeekVL if recipe.family == "deepseek_vl" else type("Plain", (FrozenLMM,), {name: None for name in FrozenLMM.__abstractmethods__}))
    lmm.recipe, lmm.tokenizer = recipe, tokenizer
    return lmm


@pytest.mark.parametrize("kind, written", [(toy_kind, LLAVA), (metaspace_kind, LLAVA), (slow_kind, LLAVA), (deepseek_kind, DEEPSEEK.replace("{end}", "<｜end▁of▁sentence｜>"))])
def test_a_conversation_is_written_as_its_lmm_reads_it(kind, written, tmp_path):
    lmm = speaker(kind, tmp_path)
    ids = lmm.ask_ids(QUESTION, BEFORE)
    assert ids == lmm.tokenizer(written)["input_ids"] and lmm.ask_ids(QUESTION, tuple(map(list, BEFORE))) == ids
    counts = [ids.count(lmm.tokenizer.convert_tokens_to_ids(name)) for name in (lmm.recipe.image_token, lmm.tokenizer.eos_token)]
    assert counts == [1, 2] and lmm.ask_ids(QUESTION, []) == lmm.ask_ids(QUESTION) != ids


@pytest.mark.parametrize("kind", [toy_kind, metaspace_kind, slow_kind, deepseek_kind])
@pytest.mark.parametrize("where", [0, 1, 2, 3, 4])
def test_marks_are_words_in_every_turn(kind, where, tmp_path):
    lmm = speaker(kind, tmp_path)
    special, more = special_tokens(lmm.tokenizer, (lmm.recipe.image_token,)), {lmm.tokenizer.unk_token_id}
    plain = [i for i in lmm.ask_ids(QUESTION, BEFORE) if i in special.values() and i not in more]
    for name in special:
        said = [text for turn in BEFORE for text in turn] + [QUESTION]
        said[where] += f" the {name} tag"
        ids = lmm.ask_ids(said[4], [(said[0], said[1]), (said[2], said[3])])
        assert [i for i in ids if i in special.values() and i not in more] == plain, name
        words = lmm.tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" ", "")
        if lmm.tokenizer.unk_token_id not in ids:
            assert all(text.replace(" ", "") in words for text in said), name


@pytest.fixture(scope="module", params=["toy_llava", "deepseek_vl", "mistral"])
def lmm(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield small_lmm(request.param, tmp_path_factory.mktemp("lmm"), patch)


def by_hand(lmm: FrozenLMM, most: int) -> list[int]:
    "Tokens that follow the conversation, by a forward pass over all of it for each."
    written = LLAVA if lmm.recipe.family == "llava" else DEEPSEEK.replace("{end}", lmm.tokenizer.eos_token)
    ids = lmm.tokenizer(written)["input_ids"]
    place, said = ids.index(lmm.image_token), []
    with torch.no_grad():
        picture, words = lmm.see(lmm.prepare(IMAGE)[0][None])[0][0], lmm.embed_tokens(torch.tensor(ids))
        sequence = torch.cat([words[:place], picture, words[place + 1 :]])
        while len(said) < most and said[-1:] != [lmm.tokenizer.eos_token_id]:
            said.append(int(lmm.causal_lm(inputs_embeds=sequence[None]).logits[0, -1].argmax()))
            sequence = torch.cat([sequence, lmm.embed_tokens(torch.tensor(said[-1:]))])
    return [i for i in said if i != lmm.tokenizer.eos_token_id]


def test_the_answer_follows_all_that_was_said(lmm):
    answer = lmm.answer(IMAGE, QUESTION, 8, history=BEFORE)
    assert answer.tokens == by_hand(lmm, 8) and answer.text == offsets_of(lmm.tokenizer, answer.tokens)[0]
    assert answer.prompt_ids == lmm.ask_ids(QUESTION, BEFORE) and answer.prompt_ids != lmm.answer(IMAGE, QUESTION, 1).prompt_ids


def test_the_last_answer_is_grounded(lmm):
    answer = lmm.answer(IMAGE, QUESTION, 8, history=BEFORE)
    spans, alone = [(0, len(answer.text)), (0, 1)], dataclasses.replace(answer, context=None, prompt_ids=lmm.ask_ids(QUESTION))
    quick = lmm.encode_answer(answer, spans)
    tokens, each = lmm.encode_tokens(answer)
    rows = [token.row for token in tokens if token.part == "answer"]
    assert [token.id for token in tokens if token.part == "answer"] == answer.tokens
    assert torch.allclose(each.attention[rows].float().mean(0), quick.attention[0], atol=2e-3)
    prompt = "".join(token.text for token in tokens if token.part == "prompt")
    assert prompt.count("a red mug.") == prompt.count(QUESTION) == 1 and sum(token.id == lmm.tokenizer.eos_token_id for token in tokens) >= 2
    answer.forget()
    again = lmm.encode_answer(answer, spans)
    assert torch.allclose(quick.attention, again.attention, atol=1e-5) and torch.allclose(quick.text, again.text, atol=1e-4)
    assert not torch.allclose(quick.attention, lmm.encode_answer(alone, spans).attention, atol=1e-4)  # what came before is seen


@pytest.mark.parametrize("wrong", ["What?", ["ab"], [("What?", "")], [("What?", None)], [("What?",)], [("a", "b", "c")], None, 3])
def test_what_is_no_turn(wrong):
    with pytest.raises(SettingError, match="history"):
        FrozenLMM.load("toy_llava", device="cpu").answer(IMAGE, QUESTION, history=wrong)


def test_a_conversation_that_is_too_long(lmm):
    with pytest.raises(DataError, match="leave out earlier turns"):
        lmm.answer(IMAGE, QUESTION, history=[("What?", "a mug " * 100)] * (lmm.reach // 100))
