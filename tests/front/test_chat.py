"Talking about a picture: what of an answer is grounded, then and later, over several turns, listened to and stopped."

import pickle
import warnings

import numpy as np
import pytest
from test_grounder import QUESTION, TEXT, scripted

from hglmm import noun_phrases as names
from hglmm.datasets import toycoco
from hglmm.datasets.reasonseg import question_prompt
from hglmm.errors import SettingError
from hglmm.grounder import Grounder
from hglmm.lmm.frozen import FrozenLMM


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder.load("toy_llava", device="cpu")


@pytest.fixture(scope="module")
def scene() -> toycoco.Scene:
    return toycoco.split_scene(seed=0, split="val", index=314)


def test_the_noun_phrases_of_an_answer_are_grounded(grounder, scene, monkeypatch):
    asked = scripted(grounder, monkeypatch, TEXT)
    reply = grounder.chat(scene.image, "what?")
    assert asked == [["a red mug", "a blue mug", "the red mug"]] and reply.grounding.phrases == asked[0]
    assert reply.spans == [(0, 9), (14, 24), (27, 38)] == [(p.start, p.end) for p in names.noun_phrases(TEXT)]
    assert len(reply.grounding.masks) == 3 and reply._repr_png_().startswith(b"\x89PNG")


def test_without_a_parser_nothing_is_grounded_and_it_says_so(grounder, scene, monkeypatch):
    scripted(grounder, monkeypatch, TEXT)

    def missing(name: str | None = None) -> None:
        raise SettingError(f"noun phrases need spaCy. {names.INSTALL}")

    monkeypatch.setattr(names, "load_parser", missing)
    with pytest.warns(UserWarning, match="pip install 'hglmm\\[gcg\\]'.*phrases="):
        reply = grounder.chat(scene.image, "what?")
    assert reply.text == TEXT and reply.grounding is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grounder.chat(scene.image, "what?", phrases=["mug"]).spans == [(6, 9)] and reply.ground("mug").spans == [(6, 9)]
        scripted(grounder, monkeypatch, "the red mug")
        assert grounder.chat(scene.image, "what?").spans == [(0, 11)]


def test_more_is_grounded_later_without_asking_again(grounder, scene, monkeypatch):
    phrases, more = ["a yellow mug", "the left"], [(0, 5), "mug"]
    both = grounder.chat(scene.image, QUESTION, phrases=[*phrases, *more])
    reply = grounder.chat(scene.image, QUESTION, phrases=phrases)
    assert reply.answer.context is None
    monkeypatch.setattr(FrozenLMM, "answer", lambda *_, **__: pytest.fail("asked again"))
    passes = []
    handle = grounder.lmm.causal_lm.model.register_forward_hook(lambda *_: passes.append(1))
    later = reply.ground(more, threshold=0.4)
    handle.remove()
    assert len(passes) == 1 and later.spans == both.spans[2:] and later.threshold == 0.4 and reply.spans == both.spans[:2]
    assert np.allclose(later.probabilities, both.grounding.probabilities[2:], atol=1e-4) and (reply.ground(more).masks == both.grounding.masks[2:]).all()
    assert reply.ground().spans == [(p.start, p.end) for p in names.noun_phrases(reply.text)] and reply.ground([]) is None
    with pytest.raises(SettingError, match="does not stand in the answer"):
        reply.ground("zebra")
    with pytest.raises(SettingError, match="from 0 to 1"):
        reply.ground("mug", threshold=2)


def test_a_stored_reply_has_no_lmm(grounder, scene):
    reply = grounder.chat(scene.image, "what is the background?")
    stored = pickle.loads(pickle.dumps(reply))
    assert stored.text == reply.text and stored.turns == reply.turns and stored.grounder is None
    with pytest.raises(SettingError, match="reply.grounder"):
        stored.ground()
    stored.grounder = grounder
    assert np.allclose(stored.ground().probabilities, reply.grounding.probabilities, atol=1e-4)


def test_a_conversation(grounder, scene):
    first = grounder.chat(scene.image, QUESTION, phrases=[])
    second = grounder.chat(np.asarray(scene.image), "what is the background?", history=first)
    third = grounder.chat(scene.image, "what is on the left?", history=second, max_new_tokens=8, phrases=[])
    assert third.turns == [(QUESTION, first.text), ("what is the background?", second.text), ("what is on the left?", third.text)] and third.turns[:2] == second.turns
    assert third.answer.prompt_ids == grounder.lmm.ask_ids("what is on the left?", second.turns) and third.answer.prompt_ids.count(grounder.lmm.image_token) == 1
    by_hand = grounder.chat(scene.image, "what is the background?", history=first.turns)
    assert by_hand.answer == second.answer and (by_hand.grounding.masks == second.grounding.masks).all()
    with pytest.raises(SettingError, match="another picture"):
        grounder.chat(scene.image.rotate(90), "what?", history=first)
    with pytest.raises(SettingError, match="history"):
        grounder.chat(scene.image, "what?", history="what?")


def test_what_was_not_answered_is_no_turn(grounder, scene):
    first = grounder.chat(scene.image, "what is the background?")
    nothing = grounder.chat(scene.image, QUESTION, history=first, stop=lambda: True)
    assert nothing.text == "" and nothing.stopped and nothing.turns == first.turns and nothing.ground() is None
    assert grounder.chat(scene.image, "what?", history=nothing, phrases=[], max_new_tokens=2).history == first.turns


def test_heard_and_stopped(grounder, scene, recwarn):
    heard, whole = [], grounder.chat(scene.image, QUESTION, phrases=[])
    reply = grounder.chat(scene.image, QUESTION, heard=heard.append, stop=lambda: len(heard) == 5)
    assert reply.stopped and not reply.cut and reply.grounding is None and not whole.stopped
    assert len(heard) == 5 and heard[-1] == reply.text == " ".join(whole.text.split()[: len(reply.text.split())]) and all(whole.text.startswith(text) for text in heard)
    assert not [w for w in recwarn.list if "cut" in str(w.message)]
    assert reply.ground(whole.text[:5]).spans == [(0, 5)] and reply.answer.context is None


def test_a_question_whose_answer_is_a_thing(grounder, scene, monkeypatch):
    "As ReasonSeg asks and grounds it."
    asked = scripted(grounder, monkeypatch, "the red mug on the left")
    reply = grounder.chat(scene.image, "something to drink from", brief=True)
    assert asked == [["the red mug on the left"]] and reply.question == question_prompt("something to drink from")
    assert reply.answer.prompt_ids == grounder.lmm.ask_ids(reply.question) and reply.turns == [(reply.question, "the red mug on the left")]
    assert grounder.chat(scene.image, "something to drink from").grounding.phrases == ["the red mug"]
    assert grounder.chat(scene.image, "something to drink from", phrases="mug", brief=True).spans == [(8, 11)]


# several pictures


@pytest.fixture(scope="module")
def three(scene):
    return [scene.image, scene.image.rotate(180), scene.image.resize((90, 60))]


def test_several_pictures(grounder, three, monkeypatch):
    alone, sizes, encode = [grounder.ground(image, ["the yellow mug", "the grass"]) for image in three], [], FrozenLMM.encode
    monkeypatch.setattr(FrozenLMM, "encode", lambda self, samples, **options: sizes.append(len(samples)) or encode(self, samples, **options))
    together = grounder.ground([*three, three[0], three[0]], ["the yellow mug", "the grass"], threshold=0.4)
    assert sizes == [4, 1] and len(together) == 5
    for one, other in zip(together, [*alone, alone[0], alone[0]], strict=True):
        assert one.image.size == other.image.size and one.phrases == other.phrases and one.threshold == 0.4
        assert np.allclose(one.probabilities, other.probabilities, atol=1e-4)
    assert grounder.ground(three[:1], "the grass")[0].phrases == ["the grass"] and grounder.ground([], "the grass") == []


def test_each_picture_has_its_phrases(grounder, three):
    found = grounder.ground(tuple(three), [["the grass"], "the mug", ("a ball", "the sky", "a ball")])
    assert [one.phrases for one in found] == [["the grass"], ["the mug"], ["a ball", "the sky", "a ball"]]
    assert np.allclose(found[1].probabilities, grounder.ground(three[1], "the mug").probabilities, atol=1e-4)


@pytest.mark.parametrize("phrases, said", [([["a"], ["b"]], "2 lists for 3 pictures"), ([["a"], [], ["b"]], "found none"), ([["a"], [3], ["b"]], "phrase 0"), ([], "found none"), (None, "Expected a text")])
def test_phrases_that_fit_no_pictures(grounder: Grounder, three, phrases, said, monkeypatch):
    monkeypatch.setattr(FrozenLMM, "encode", lambda *_, **__: pytest.fail("asked the LMM"))
    with pytest.raises(SettingError, match=said):
        grounder.ground(three, phrases)
    with pytest.raises(SettingError, match="picture 1"):
        grounder.ground([three[0], 3], "the mug")
