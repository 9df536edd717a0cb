"The grounder as people call it: from any folder, with any picture and phrase, with heads wherever they lie. Right, or an error that says what to do."

import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hglmm import Grounder, paths, recipes
from hglmm.datasets import toycoco
from hglmm.errors import HGLMMError, SettingError
from hglmm.heads import files as head_files
from hglmm.lmm.answers import Answer
from hglmm.lmm.frozen import FrozenLMM
from hglmm.look import grounding as look
from hglmm.phrases import offsets_of

PHRASES, QUESTION = ["the yellow mug", "the grass"], "Please give me a description of the image."


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder.load("toy_llava", device="cpu")


@pytest.fixture(scope="module")
def scene() -> toycoco.Scene:
    return toycoco.split_scene(seed=0, split="val", index=314)


# from any folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "Working directory in somebody's own nbdev project."
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = their_library\nnbs_path = nbs\n")
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    return tmp_path / "nbs"


def test_what_ships_is_found_from_any_folder(elsewhere):
    assert paths.project_root() == elsewhere  # their settings.ini makes no project of ours
    assert Grounder.load("toy_llava", device="cpu").head.kind == "hg"
    assert Grounder.load("checkpoints/toy_llava", "checkpoints/toy_head", device="cpu").lmm.recipe.name == "toy_llava"
    assert toycoco.ensure.__module__ and paths.projects()[0] not in elsewhere.parents


def test_toycoco_is_not_drawn_anew_outside_the_project(elsewhere, monkeypatch):
    asked = []
    monkeypatch.setattr(toycoco, "generate", lambda root, *_: asked.append(root) or root)
    assert (toycoco.ensure(counts={"train": 1}) == asked[0]) and asked == [paths.projects()[0] / "data/toycoco"]


def test_a_package_without_its_project_says_so(elsewhere, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", elsewhere / "site-packages/hglmm")
    with pytest.raises(SettingError, match="Run in a checkout of hglmm, or install it again"):
        paths.shipped("checkpoints/toy_llava")
    with pytest.raises(ValueError, match="checkout of hglmm"):
        Grounder.load("toy_llava", device="cpu")


@pytest.mark.parametrize("text, ours", [
    ("", True), ("[DEFAULT]\nlib_name = hglmm\n", True), ("[DEFAULT]\nlib_name=hglmm", True), ("[DEFAULT]\nlib_name = hglmm_tools\n", False),
    ("[General]\nsize = 3\n", False), ("\xff\xfe not text", False), ("[DEFAULT]\n# lib_name = hglmm\nlib_name = other\n", False),
])  # fmt: skip
def test_whose_settings_ini_it_is(tmp_path, text, ours):
    (tmp_path / "settings.ini").write_bytes(text.encode("latin1"))
    (tmp_path / "deep/down").mkdir(parents=True)
    assert (paths.project_root(tmp_path / "deep/down") == tmp_path) == ours


def test_places_of_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.places("~/heads")[0] == tmp_path / "heads" and paths.places("~nobody_of_that_name/x")[0].name == "x"
    assert paths.places(os.fspath(tmp_path)) == [tmp_path]


# what goes in


def test_any_picture(grounder, scene, tmp_path):
    path = tmp_path / "photo.png"
    scene.image.save(path)
    array = np.asarray(scene.image)
    alpha = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    masks = grounder.ground(scene.image, PHRASES).masks
    assert masks.shape == (2, scene.image.height, scene.image.width) and masks[0].any() and not masks[0].all()
    said = grounder.chat(scene.image, QUESTION).text
    for picture in (str(path), path, path.read_bytes(), array, alpha, array / np.float32(255), Image.open(path), scene.image.convert("RGBA"), path.open("rb")):
        assert (grounder.ground(picture, PHRASES).masks == masks).all()
    for picture in (str(path), array, path.read_bytes()):
        reply = grounder.chat(picture, QUESTION)
        assert reply.text == said and reply.image.size == scene.image.size
    grey = grounder.ground(array[..., 0], PHRASES)
    assert grey.image.mode == "RGB" and grey.masks.shape == masks.shape


def test_a_picture_from_the_home_folder(grounder, scene, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    scene.image.save(tmp_path / "photo.png")
    assert grounder.ground("~/photo.png", "the mug").masks.any() == grounder.ground(scene.image, "the mug").masks.any()


@pytest.mark.parametrize("tag, turn", {3: Image.ROTATE_180, 6: Image.ROTATE_90, 8: Image.ROTATE_270, 5: Image.TRANSPOSE, 2: Image.FLIP_LEFT_RIGHT}.items())
def test_a_turned_photo_is_seen_upright(grounder, scene, tmp_path, tag, turn):
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = tag
    scene.image.transpose(turn).save(path, exif=exif, quality=95)
    upright = grounder.ground(scene.image, PHRASES).masks
    for picture in (path, path.read_bytes(), Image.open(path)):
        found = grounder.ground(picture, PHRASES)
        assert found.image.size == scene.image.size == grounder.chat(picture, QUESTION).image.size
        assert min((a & b).sum() / (a | b).sum() for a, b in zip(found.masks, upright, strict=True)) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_pictures_of_odd_shapes(grounder, size):
    found = grounder.ground(Image.new("RGB", size, "red"), ["the mug", "the mug"])
    assert found.masks.shape == (2, size[1], size[0]) and (found.masks[0] == found.masks[1]).all()
    assert found._repr_png_().startswith(b"\x89PNG")
    assert grounder.chat(Image.new("RGB", size, "red"), "what is it?", max_new_tokens=2).image.size == size


@pytest.mark.parametrize("picture", [
    "https://example.org/photo.jpg", "file:///photo.jpg", "data:image/png;base64,AAAA", b"photo.jpg", b"", b"\x89PNG\r\n", "", "no/such.jpg", ".", None, 3, ["a.jpg"],
    np.zeros((3, 64, 96), np.uint8), np.zeros((2, 64, 96, 3), np.uint8), np.zeros((64, 96, 3)) + 200, np.zeros((64, 96, 3), np.int64), np.zeros((0, 9, 3), np.uint8), np.full((4, 4), np.nan),
    torch.zeros(3, 64, 96),
], ids=lambda p: f"{type(p).__name__}-{str(getattr(p, 'shape', p))[:24]}")  # fmt: skip
def test_what_is_no_picture(grounder, picture, no_model):
    for ask in (lambda: grounder.ground(picture, "the mug"), lambda: grounder.chat(picture, "what is it?")):
        with pytest.raises(HGLMMError) as caught:
            ask()
        assert len(str(caught.value)) > 30


@pytest.fixture
def no_model(monkeypatch):
    "The LMM must not be asked."
    for name in ("encode", "answer"):
        monkeypatch.setattr(FrozenLMM, name, lambda *_, **__: pytest.fail("asked the LMM"))


@pytest.mark.parametrize("phrases", [[], "", "  ", ["the mug", ""], [3], 3, None, ["the mug", None], [["the mug"]], {"the mug": 1}, {"the mug"}, b"the mug", [b"the mug"], iter([]), "\ud83d", [float("nan")]])
def test_what_is_no_phrase(grounder, scene, phrases, no_model):
    with pytest.raises(SettingError, match="phrase"):
        grounder.ground(scene.image, phrases)


def test_phrases_come_in_many_ways(grounder, scene):
    masks = grounder.ground(scene.image, PHRASES).masks
    for phrases in (tuple(PHRASES), (p for p in PHRASES), np.array(PHRASES), dict.fromkeys(PHRASES).keys()):
        if isinstance(phrases, type({}.keys())):
            with pytest.raises(SettingError):  # a set, which has no order of its own
                grounder.ground(scene.image, phrases)
            continue
        found = grounder.ground(scene.image, phrases)
        assert (found.masks == masks).all() and found.phrases == PHRASES and found.spans is None
    one = grounder.ground(scene.image, PHRASES[0])
    assert one.phrases == PHRASES[:1] and one.masks.shape[0] == 1


@pytest.mark.parametrize("options", [
    {"question": ""}, {"question": " "}, {"question": None}, {"question": 3}, {"question": ["what?"]}, {"question": "\udcff?"}, {"max_new_tokens": 0}, {"max_new_tokens": -1}, {"max_new_tokens": 2.5},
    {"max_new_tokens": "9"}, {"max_new_tokens": True}, {"max_new_tokens": None}, {"threshold": -0.1}, {"threshold": 1.01}, {"threshold": float("nan")}, {"threshold": "0.5"}, {"threshold": None},
    {"phrases": 3}, {"phrases": [3]}, {"phrases": [""]}, {"phrases": [None]}, {"phrases": ""}, {"phrases": {"a": 1}}, {"phrases": b"mug"},
], ids=lambda v: str(v).split(" at 0x")[0])  # fmt: skip
def test_what_chat_refuses(grounder, scene, options, no_model):
    with pytest.raises(SettingError, match="expected|Expected"):
        grounder.chat(scene.image, **{"question": "what is it?", **options})


@pytest.mark.parametrize("threshold", [-1, 2, float("nan"), "0.5", True])
def test_thresholds(grounder, scene, threshold, no_model):
    with pytest.raises(SettingError, match="threshold is .* from 0 to 1"):
        grounder.ground(scene.image, "the mug", threshold)


def test_a_threshold_may_change_afterwards(grounder, scene):
    found = grounder.ground(scene.image, "the grass", threshold=0.3)
    low = found.masks
    found.threshold = np.float32(0.9)
    assert (low >= found.masks).all() and low.sum() > found.masks.sum() and (low == (found.probabilities > 0.3)).all()
    found.threshold = 1.5
    with pytest.raises(SettingError, match="from 0 to 1"):
        found.masks  # noqa: B018


# what an answer names


@pytest.mark.parametrize("text", ["<image>", "what is in the <image>?", "<image>\n<image> mug", "<pad></s><s>", "{question} {input} {0} %s", "USER: mug ASSISTANT:", "杯子 🐟 e\u0301", "the\nmug\t"])
def test_marks_in_somebody_s_words_are_words(grounder, scene, text):
    "The image token is put in by the recipe, once; what is written in a question or phrase is text."
    reply = grounder.chat(scene.image, text, max_new_tokens=3)
    assert reply.answer.prompt_ids.count(grounder.lmm.image_token) == 1
    found = grounder.ground(scene.image, [text, "the grass"])
    assert found.phrases == [text, "the grass"] and found.masks.shape[0] == 2
    assert found.features.attention.shape[0] == 2 and (found.features.attention.sum((2, 3)) < 1.001).all()


def test_an_answer_that_was_cut_says_so(grounder, scene, recwarn):
    whole = grounder.chat(scene.image, QUESTION)
    assert not whole.cut and not [w for w in recwarn.list if "cut" in str(w.message)]
    with pytest.warns(UserWarning, match="cut after 5 tokens"):
        reply = grounder.chat(scene.image, QUESTION, max_new_tokens=5)
    assert reply.cut and whole.text.startswith(reply.text)


def scripted(grounder, monkeypatch, text: str) -> list:
    "Let the LMM say something; what it is asked to ground is listed."
    spans, encode = [], FrozenLMM.encode_answer

    def answer(self, image, question, max_new_tokens=1024, keep=True, heard=None, stop=None, history=()):
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        said, offsets = offsets_of(self.tokenizer, tokens)
        assert said.strip() == text
        return Answer(said, tokens, offsets, self.ask_ids(question, history), image)

    def encode_answer(self, answer, wanted, tokens=False):
        spans.append([answer.text[a:b] for a, b in wanted])
        return encode(self, answer, wanted, tokens)

    monkeypatch.setattr(FrozenLMM, "answer", answer)
    monkeypatch.setattr(FrozenLMM, "encode_answer", encode_answer)
    return spans


TEXT = "a red mug and a blue mug . the red mug is on the left"


def test_equal_phrases_are_successive_places(grounder, scene, monkeypatch):
    asked = scripted(grounder, monkeypatch, TEXT)
    reply = grounder.chat(scene.image, "what?", phrases=["mug", "red mug", "mug", "red mug", "mug"])
    assert reply.spans == [(6, 9), (2, 9), (21, 24), (31, 38), (35, 38)] == reply.grounding.spans
    assert asked == [["mug", "red mug", "mug", "red mug", "mug"]] and reply.grounding.phrases == asked[0]
    one_by_one = [grounder.chat(scene.image, "what?", phrases=[span]).grounding.probabilities[0] for span in reply.spans]
    assert np.allclose(reply.grounding.probabilities, one_by_one, atol=1e-4)
    assert not np.allclose(one_by_one[0], one_by_one[2], atol=1e-3)  # another place, another mask


def test_the_order_asked_is_the_order_given(grounder, scene, monkeypatch):
    asked = scripted(grounder, monkeypatch, TEXT)
    forth = grounder.chat(scene.image, "what?", phrases=["a red mug", "the left"])
    back = grounder.chat(scene.image, "what?", phrases=["the left", "a red mug"])
    assert back.spans == forth.spans[::-1] == [(45, 53), (0, 9)] and asked == [["a red mug", "the left"], ["the left", "a red mug"]]
    assert np.allclose(back.grounding.probabilities, forth.grounding.probabilities[::-1], atol=1e-4)


@pytest.mark.parametrize("phrases, spans", [
    ("mug", [(6, 9)]), ((6, 9), [(6, 9)]), ([(6, 9)], [(6, 9)]), ([[6, 9]], [(6, 9)]), (np.array([[6, 9], [2, 5]]), [(6, 9), (2, 5)]), ((np.int64(6), 9), [(6, 9)]), (("mug", "mug"), [(6, 9), (21, 24)]),
    (iter(["mug", (0, 5)]), [(6, 9), (0, 5)]), ([(0, 53)], [(0, 53)]), ([(6, 9), (6, 9)], [(6, 9), (6, 9)]), ("ed mu", [(3, 8)]), ("the", [(27, 30)]), ([], []), (np.str_("mug"), [(6, 9)]),
], ids=lambda v: str(v).split(" at 0x")[0])  # fmt: skip
def test_texts_and_spans(grounder, scene, monkeypatch, phrases, spans):
    scripted(grounder, monkeypatch, TEXT)
    reply = grounder.chat(scene.image, "what?", phrases=phrases)
    assert reply.spans == spans and (reply.grounding is None) == (not spans)
    if spans:
        assert reply.grounding.phrases == [TEXT[a:b] for a, b in spans] and len(reply.grounding.masks) == len(spans)


@pytest.mark.parametrize("phrases, said", [
    (["mug"] * 4, "asked for 4 times and stands 3 times"), ("cup", "does not stand in the answer"), (["mug", "cup"], "does not stand"), ("Mug", "does not stand"), ([(9, 6)], "no stretch"), ((0, 99), "no stretch"),
    ([(-3, 9)], "no stretch"), ([(1, 2)], "no stretch"), ([(0.0, 3.0)], "no stretch"), ([(1, 2, 3)], "no stretch"), ([()], "no stretch"), ([("a", "mug")], "no stretch"), ((3, 3), "no stretch"), ([[["mug"]]], "no stretch"),
], ids=str)  # fmt: skip
def test_what_does_not_stand_in_the_answer(grounder, scene, monkeypatch, phrases, said):
    scripted(grounder, monkeypatch, TEXT)
    with pytest.raises(SettingError, match=said):
        grounder.chat(scene.image, "what?", phrases=phrases)


def shown(reply, monkeypatch) -> list:
    "The pieces of text that a reply's figure is made of."
    seen, draw = [], look.grounding
    monkeypatch.setattr(look, "grounding", lambda *a, **k: seen.append(k["pieces"]) or draw(*a, **k))
    assert reply._repr_png_().startswith(b"\x89PNG")
    return seen[0]


@pytest.mark.parametrize("phrases", [["mug", "mug"], ["the left", "a red mug"], ["a red mug", "red", "mug", "mug"], ["red mug and", "mug and a blue"], [(0, 53), (21, 24)], [(6, 9), (6, 9)], ["ug and a bl"]], ids=str)
def test_the_figure_shows_what_was_said(grounder, scene, monkeypatch, phrases):
    scripted(grounder, monkeypatch, TEXT)
    reply = grounder.chat(scene.image, "what?", phrases=phrases)
    pieces = shown(reply, monkeypatch)
    assert "".join(text for text, _ in pieces) == reply.text == TEXT
    for k, (a, b) in enumerate(reply.spans):
        assert "".join(text for text, owner in pieces if owner == k or (isinstance(owner, tuple) and k in owner)) == TEXT[a:b]
    drawn = [re.sub(r"^[\d,]+  ", "", text.get_text()) for axes in reply.figure().axes[1:] for text in axes.texts]
    assert "".join(drawn).replace(" ", "") == TEXT.replace(" ", "")


def test_a_short_answer_is_grounded_as_a_whole(grounder, scene, monkeypatch):
    asked = scripted(grounder, monkeypatch, "the red mug")
    reply = grounder.chat(scene.image, "what?")
    assert asked == [["the red mug"]] and reply.spans == [(0, 11)] and shown(reply, monkeypatch) == [("the red mug", 0)]
    scripted(grounder, monkeypatch, TEXT)
    none = grounder.chat(scene.image, "what?", phrases=[])
    assert none.grounding is None and none.spans == [] and none.figure() is None and none._repr_png_() is None and repr(none) == TEXT


def test_the_spaces_around_an_answer(grounder, scene):
    "toy_llava begins its answers with a space, which is no part of the text that is shown and counted in."
    reply = grounder.chat(scene.image, QUESTION, phrases=(0, 5))
    assert reply.answer.text != reply.text == reply.answer.text.strip() and reply.grounding.phrases == [reply.text[:5]]
    again = grounder.chat(scene.image, QUESTION, phrases=reply.text[:5].strip())
    assert np.allclose(again.grounding.probabilities, reply.grounding.probabilities, atol=1e-4) or reply.text[:5] != reply.text[:5].strip()


# which head, which LMM


def test_the_head_is_looked_at_before_the_lmm_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(FrozenLMM, "load", lambda *_, **__: pytest.fail("loaded the LMM"))
    head = paths.shipped("checkpoints/toy_head")
    for arguments, said in (
        (("llava_1_5_7b", head), "made for recipe 'toy_llava', asked for 'llava_1_5_7b'"), (("toy_llava", tmp_path / "none"), "no such file or folder"), (("toy_llava", tmp_path), "no weights"),
        (("llava_1_5_7b",), "comes without a trained head"), (("toy_llava", paths.shipped("checkpoints/toy_llava")), "is missing"), (("toy_llava", "nobody/nothing"), "not to be had from the hub"),
        ((recipes.replace("toy_llava", prompt="<image> What?"),), "prompt is "), (("toy_llava", 3), "expected a folder or file"), (("toy_llava", ""), "expected a folder or file"), ((3,), "expected a recipe"),
        (("toy_llava", None, "gpu"), "is not one torch knows"), (("toy_llava", None, "cuda:99"), "GPU"),
    ):  # fmt: skip
        with pytest.raises(HGLMMError, match=re.escape(said)):
            Grounder.load(*arguments)


def test_heads_by_any_path(tmp_path, monkeypatch, scene, grounder):
    head = paths.shipped("checkpoints/toy_head")
    shutil.copytree(head, tmp_path / "runs/mine/head")
    shutil.copy(head / "model.safetensors", tmp_path / "bare.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    masks = grounder.ground(scene.image, "the mug").masks
    for arguments in (("toy_llava", "~/runs/mine/head"), ("toy_llava", tmp_path / "runs/mine"), ("~/runs/mine",), (tmp_path / "runs/mine/head",), (str(tmp_path / "bare.safetensors"),), ("toy_llava", tmp_path / "bare.safetensors")):
        assert (Grounder.load(*arguments, device="cpu").ground(scene.image, "the mug").masks == masks).all(), arguments


def test_what_comes_from_the_hub(monkeypatch):
    "Heads by owner/name, of a revision; an LMM that comes from the hub gets the same."
    asked, loaded = [], []
    monkeypatch.setattr(head_files, "fetch", lambda name, files, advice, **how: asked.append((name, how)) or paths.shipped("checkpoints/toy_head"))
    monkeypatch.setattr(FrozenLMM, "load", lambda recipe, path, *_, **how: loaded.append((recipe.lmm, path, how)) or SimpleNamespace(device="cpu"))
    far = recipes.replace("toy_llava", lmm="me/toy_llava")
    Grounder.load(far, "checkpoints/toy_head", revision="v1")
    Grounder.load(far, "me/head", revision="v1")
    Grounder.load("toy_llava", head="me/head", revision="v1")  # the LMM is here, and is not asked for a revision
    Grounder.load("toy_llava", head="me/head@v2", device="cpu")
    assert asked == [("me/head", {"revision": "v1"})] * 2 + [("me/head", {"revision": "v2"})]
    assert loaded == [("me/toy_llava", None, {"revision": "v1"})] * 2 + [("checkpoints/toy_llava", None, {})] * 2
    with pytest.raises(SettingError, match="revision='v1' says which of the hub's versions to fetch"):
        Grounder.load("toy_llava", revision="v1")


def test_the_shipped_head_belongs_to_its_lmm(tmp_path, recwarn):
    folder = tmp_path / "toy_llava"
    shutil.copytree(paths.shipped("checkpoints/toy_llava"), folder)
    Grounder.load(folder, device="cpu")
    assert not [w for w in recwarn.list if "other weights" in str(w.message)]
    state = load_file(folder / "model.safetensors")
    save_file({key: tensor + 0.01 for key, tensor in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="other weights than .* Give a head of its own"):
        Grounder.load(folder, device="cpu")
    recwarn.clear()
    Grounder.load(folder, "checkpoints/toy_head", device="cpu")
    assert not [w for w in recwarn.list if "other weights" in str(w.message)]
