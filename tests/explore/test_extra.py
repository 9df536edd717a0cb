"""The extra that the widgets need: without it their state works, and whoever asks for a widget hears what to install."""

import importlib
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from hglmm import noun_phrases
from hglmm.errors import SettingError
from hglmm.explore.chat import Chat
from hglmm.explore.explorer import Explorer
from hglmm.grounder import Grounder


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder.load("toy_llava", device="cpu")


def test_without_anywidget(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hglmm.explore.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    from hglmm import explore

    assert importlib.import_module("hglmm.explore.state").Exploration and importlib.import_module("hglmm.explore.conversation").Conversation
    for name in ("Explorer", "Chat"):
        with pytest.raises(SettingError, match=r"hglmm\[explore\]"):
            getattr(explore, name)


@pytest.fixture
def no_parser(monkeypatch):
    "spaCy is not there."

    def missing(*_):
        raise SettingError("noun phrases need spaCy. Install it.")

    monkeypatch.setattr(noun_phrases, "load_parser", missing)


def test_without_a_parser_words_are_still_chosen_and_the_page_says_why(no_parser, grounder):
    explorer = Explorer(grounder, Image.new("RGB", (60, 40), "red"))
    assert explorer.session["phrases"] == [] and len(explorer.choice["a"]) == 1 and "Install it" in explorer.status["text"]
    chat = Chat(grounder, Image.new("RGB", (60, 40), "red"))
    chat.ask("Please give me a description of the image.")
    assert len(chat.session["turns"]) == 1 and ("Install it" in chat.status["text"] or chat.session["turns"][0]["spans"])


def test_widgets_on_one_lmm_ask_it_one_after_the_other(grounder):
    explorer, chat = Explorer(grounder), Chat(grounder)
    assert explorer.state.lock is chat.talk.lock
    with explorer.state.lock:
        work = threading.Thread(target=chat.ask, args=("What?", Image.new("RGB", (60, 40))), daemon=True)
        work.start()
        work.join(0.5)
        assert work.is_alive() and not chat.talk.replies
    work.join(60)
    assert len(chat.talk.replies) == 1


def test_what_is_changed_while_an_answer_is_on_its_way_is_refused(grounder):
    chat = Chat(grounder, Image.new("RGB", (60, 40)))
    chat.ask("What?")
    said, go = [], threading.Event()
    chat.send = lambda answer, buffers=(): said.append(answer)
    chat.put = lambda question, **_: go.wait(20) and "answered"
    chat._answer({"kind": "ask", "seq": 1, "question": "long"}, [])
    for kind, more in (("fresh", {}), ("picture", {"name": "x", "width": 1, "height": 1}), ("sample", {"number": 0, "phrase": 0}), ("ground", {"turn": 0, "start": 0, "end": 1})):
        chat._answer({"kind": kind, "seq": 2, **more}, [b""])
        assert "on its way" in said[-1]["error"], kind
    go.set()
    chat._asking.join(20)
    assert len(chat.talk.replies) == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2), (3000, 2000)])
def test_pictures_of_any_shape(grounder, size):
    explorer = Explorer(grounder, Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)))
    said = []
    explorer.send = lambda answer, buffers=(): said.append((answer, list(buffers)))
    explorer._answer({"kind": "mask", "seq": 1, "words": explorer.choice["a"], "by": None}, [])
    answer, (steps,) = said[0]
    assert max(answer["width"], answer["height"]) <= 1024 and len(steps) == answer["width"] * answer["height"] and len(answer["area"]) == 101
    assert np.isclose(answer["area"][50], explorer.state.mask().mean()) and explorer._repr_mimebundle_()[0]["image/png"]
