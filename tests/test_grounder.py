"The grounder as people call it: from any folder, with any picture and phrase, with heads wherever they lie. Right, or an error that says what to do."

import os

import pytest

from hglmm import Grounder, launch
from hglmm.datasets import toycoco
from hglmm.errors import SettingError


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder.load("toy_llava", device="cpu")


# from any folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "Working directory in somebody's own nbdev project."
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = their_library\nnbs_path = nbs\n")
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    return tmp_path / "nbs"


def test_what_ships_is_found_from_any_folder(elsewhere):
    assert launch.project_root() == elsewhere  # their settings.ini makes no project of ours
    assert Grounder.load("toy_llava", device="cpu").head.kind == "hg"
    assert Grounder.load("checkpoints/toy_llava", "checkpoints/toy_head", device="cpu").lmm.recipe.name == "toy_llava"
    assert toycoco.ensure.__module__ and launch.projects()[0] not in elsewhere.parents


def test_toycoco_is_not_drawn_anew_outside_the_project(elsewhere, monkeypatch):
    asked = []
    monkeypatch.setattr(toycoco, "generate", lambda root, *_: asked.append(root) or root)
    assert (toycoco.ensure(counts={"train": 1}) == asked[0]) and asked == [launch.projects()[0] / "data/toycoco"]


def test_a_package_without_its_project_says_so(elsewhere, monkeypatch):
    monkeypatch.setattr(launch.errors, "__file__", str(elsewhere / "site-packages/hglmm/errors.py"))
    with pytest.raises(SettingError, match="Run in a checkout of hglmm, or install from one"):
        launch.shipped("checkpoints/toy_llava")
    with pytest.raises(ValueError, match="checkout of hglmm"):
        Grounder.load("toy_llava", device="cpu")


@pytest.mark.parametrize("text, ours", [
    ("", True), ("[DEFAULT]\nlib_name = hglmm\n", True), ("[DEFAULT]\nlib_name=hglmm", True), ("[DEFAULT]\nlib_name = hglmm_tools\n", False),
    ("[General]\nsize = 3\n", False), ("\xff\xfe not text", False), ("[DEFAULT]\n# lib_name = hglmm\nlib_name = other\n", False),
])  # fmt: skip
def test_whose_settings_ini_it_is(tmp_path, text, ours):
    (tmp_path / "settings.ini").write_bytes(text.encode("latin1"))
    (tmp_path / "deep/down").mkdir(parents=True)
    assert (launch.project_root(tmp_path / "deep/down") == tmp_path) == ours


def test_places_of_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert launch.places("~/heads")[0] == tmp_path / "heads" and launch.places("~nobody_of_that_name/x")[0].name == "x"
    assert launch.places(os.fspath(tmp_path)) == [tmp_path]
