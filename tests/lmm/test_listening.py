"Answers that are listened to while they are spoken, and stopped."

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import TEXTS, byte_level, metaspace, small_lmm
from test_answers import ids_of, random_texts

from hglmm.lmm.frozen import FrozenLMM
from hglmm.phrases import INCOMPLETE, TextSoFar, offsets_of

QUESTION, MOST = "What is in the image?", 12
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["toy_llava", "deepseek_vl", "mistral"])
def lmm(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield small_lmm(request.param, tmp_path_factory.mktemp("lmm"), patch)


class After:
    "Says stop when it has been asked so many times."

    def __init__(self, times: int):
        self.times, self.asked = times, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.times


def test_what_is_heard_is_the_answer_as_it_grows(lmm):
    whole, heard, never = lmm.answer(IMAGE, QUESTION, MOST), [], After(10_000)
    assert lmm.answer(IMAGE, QUESTION, MOST, heard=heard.append, stop=never) == whole and not whole.stopped
    assert len(heard) == len(whole.tokens) > 4 and never.asked == len(whole.tokens) + (not whole.cut)
    assert all(after.startswith(before) for before, after in zip(heard, heard[1:], strict=False)) and len(set(heard)) > 2
    if INCOMPLETE not in whole.text:  # random weights say any bytes
        assert heard[-1] == whole.text and [whole.text[:b] for _, b in whole.offsets] == heard


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_a_stopped_answer_is_the_beginning(lmm, tokens):
    whole, heard, stop = lmm.answer(IMAGE, QUESTION, MOST), [], After(tokens)
    passes, handle = [], lmm.causal_lm.model.register_forward_hook(lambda *_: passes.append(1))
    answer = lmm.answer(IMAGE, QUESTION, MOST, heard=heard.append, stop=stop)
    handle.remove()
    assert answer.tokens == whole.tokens[:tokens] and (answer.text, answer.offsets) == offsets_of(lmm.tokenizer, answer.tokens)
    assert answer.stopped and not answer.cut and len(heard) == tokens and stop.asked == tokens + 1 and len(passes) == tokens
    if tokens:
        for _ in range(2):
            found = lmm.encode_answer(answer, [(0, 1)])
            assert torch.allclose(found.attention, lmm.encode_answer(whole, [(0, 1)]).attention, atol=1e-5)
            answer.forget()
    else:
        assert answer.text == "" and len(lmm.encode_tokens(answer)[0]) < len(lmm.encode_tokens(whole)[0])


def test_at_its_limit_it_is_cut_and_nobody_is_asked(lmm):
    stop = After(3)
    answer = lmm.answer(IMAGE, QUESTION, 3, stop=stop)
    assert answer.cut and not answer.stopped and stop.asked == 3 and len(answer.tokens) == 3


def test_an_answer_that_ends_is_not_stopped(lmm, monkeypatch):
    whole, heard = lmm.answer(IMAGE, QUESTION, MOST), []
    end = next(n for n, token in enumerate(whole.tokens) if n and token not in whole.tokens[:n])
    monkeypatch.setattr(type(lmm.tokenizer), "eos_token_id", whole.tokens[end])
    answer = lmm.answer(IMAGE, QUESTION, MOST, heard=heard.append, stop=After(end + 1))
    assert answer.tokens == whole.tokens[:end] and not answer.stopped and not answer.cut and len(heard) == end


def test_from_a_thread_of_its_own(lmm):
    whole, event, found = lmm.answer(IMAGE, QUESTION, MOST), threading.Event(), []

    def heard(text: str) -> None:
        found.append((threading.current_thread(), text))
        if len(found) == 2:
            event.set()

    def work() -> None:
        found.append(lmm.answer(IMAGE, QUESTION, heard=heard, stop=event.is_set))

    before = threading.active_count()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    answer = found.pop()
    assert answer.stopped and answer.tokens == whole.tokens[:2] and {one for one, _ in found} == {thread} and threading.active_count() == before
    assert not any(tensor.requires_grad for layer in answer.context.past for tensor in layer)


def test_what_a_listener_raises_comes_through():
    def heard(text: str) -> None:
        raise ZeroDivisionError(text)

    with pytest.raises(ZeroDivisionError):
        FrozenLMM.load("toy_llava", device="cpu").answer(IMAGE, QUESTION, MOST, heard=heard)


@pytest.mark.parametrize("kind", [byte_level, metaspace])
def test_the_work_grows_with_the_length(kind, tmp_path, monkeypatch):
    tokenizer, decoded = kind(tmp_path), []
    decode = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids, **options: decoded.append(len(ids)) or decode(self, ids, **options))
    for text in ("a red mug and two fish. " * 100, "红色的杯子在桌子上，两条鱼。" * 40, "🐟 " * 200):
        ids, so_far = ids_of(tokenizer, text), TextSoFar(tokenizer)
        decoded.clear()
        for n in range(len(ids)):
            so_far.after(ids[: n + 1])
        assert len(ids) > 300 and sum(decoded) < 20 * len(ids)


@pytest.mark.parametrize("kind", [byte_level, metaspace])
def test_no_half_characters(kind, tmp_path):
    tokenizer = kind(tmp_path)
    for text in [*TEXTS, *random_texts(20, 5)]:
        ids, so_far = ids_of(tokenizer, text), TextSoFar(tokenizer)
        shown = [so_far.after(ids[: n + 1]) for n in range(len(ids))]
        whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert not any(INCOMPLETE in one for one in shown) and all(whole.startswith(one) for one in shown)
        assert all(b.startswith(a) for a, b in zip(shown, shown[1:], strict=False)) and [*shown, ""][-1 if not ids else len(ids) - 1] == whole
        ends = [n for n in range(len(ids)) if whole.startswith(tokenizer.decode(ids[: n + 1], clean_up_tokenization_spaces=False))]
        assert all(shown[n] == tokenizer.decode(ids[: n + 1], clean_up_tokenization_spaces=False) for n in ends)  # nothing waits that is whole


def test_bytes_that_are_none_are_shown_once_something_follows(tmp_path):
    tokenizer = metaspace(tmp_path)
    stray, word = tokenizer.convert_tokens_to_ids("<0xFF>"), ids_of(tokenizer, "mug")
    so_far = TextSoFar(tokenizer)
    assert [INCOMPLETE in so_far.after(ids) for ids in (word, [*word, stray], [*word, stray, *word])] == [False, False, True]
