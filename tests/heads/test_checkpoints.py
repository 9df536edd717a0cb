"Where people's heads lie and how they are called there: each is read, or the error says what to give instead. Official files are in test_checkpoints_official."

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from hglmm import heads, paths, recipes
from hglmm.errors import CheckpointError, SettingError
from hglmm.heads import files as head_files
from hglmm.heads import loading
from hglmm.heads.files import find_head
from hglmm.heads.official import official_names

SHIPPED = paths.shipped("checkpoints/toy_head")
STATE = load_file(SHIPPED / "model.safetensors")
PUBLISHED = [kind for kind in heads.HEADS if official_names(recipes.replace("toy_llava", head=kind))]  # kinds that somebody else has files of
PREFIXES = ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "_fsdp_wrapped_module.", "model.", "head.", "mask_head.", "model.head._orig_mod.", "net.module."]


def is_shipped(head) -> bool:
    mine = head.state_dict()
    return mine.keys() == STATE.keys() and all(torch.equal(mine[key], STATE[key]) for key in mine)


def refused(path, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        loading.load_head(path, *arguments)
    said = str(caught.value)
    assert str(Path(path)) in said and "damaged" not in said
    return said


def save(content, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


# wrappers


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers(prefix, tmp_path):
    named = {prefix + key: tensor for key, tensor in STATE.items()}
    files = [save(named, tmp_path / "a.pth"), save({"state_dict": named, "epoch": 3}, tmp_path / "b.ckpt"), save(named, tmp_path / "c.safetensors")]
    files += [save({"model": {"state_dict": named}}, tmp_path / "d.pt"), save(named, tmp_path / "e/pytorch_model.bin").parent]
    for path in files:
        for recipe in (None, "toy_llava"):
            assert is_shipped(loading.load_head(path, recipe)), path


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "model."])
def test_wrappers_around_official_names(kind, prefix, tmp_path):
    recipe = recipes.replace("toy_llava", head=kind)
    head = heads.build(recipe)
    state = head.state_dict()
    named = {prefix + official: state[ours] for official, ours in official_names(recipe).items()} | {f"{prefix}llava.norm.weight": torch.ones(2)}
    again = loading.load_head(save({"state_dict": named}, tmp_path / "a.pth"))
    assert again.kind == kind and all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())


def test_what_is_compiled_or_wrapped_for_real(tmp_path):
    head = heads.build("toy_llava")
    averaged = AveragedModel(torch.nn.DataParallel(head))
    part = heads.build("toy_llava")
    part.load_state_dict(head.state_dict())
    part.lifg = torch.compile(part.lifg)
    for model in (torch.compile(head), torch.nn.DataParallel(head), averaged, part):
        state = model.state_dict()
        assert state.keys() != head.state_dict().keys()
        again = loading.load_head(save(state, tmp_path / "a.pth")).state_dict()
        assert all(torch.equal(again[key], tensor) for key, tensor in head.state_dict().items())


def test_names_that_are_not_of_one_kind(tmp_path):
    keys = list(STATE)
    half = {("module." if k % 2 else "") + key: STATE[key] for k, key in enumerate(keys)}
    said = refused(save(half, tmp_path / "half.pth"), "toy_llava")
    assert "under 'module.'" in said and "without a prefix" in said
    one = STATE | {f"module.{keys[0]}": STATE[keys[0]].clone()}
    assert "1 under 'module.'" in refused(save(one, tmp_path / "one.safetensors"))
    first, rest = keys[-1].split(".", 1)
    assert f"more than once, with a wrapper's prefix and without: {keys[-1]}" in refused(save(STATE | {f"{first}._orig_mod.{rest}": STATE[keys[-1]]}, tmp_path / "twice.pth"))


def test_complaints_use_the_names_in_the_file(tmp_path):
    named = {f"module.{key}": tensor for key, tensor in STATE.items()}
    named["module.lcb.projection.bias"] = torch.ones(3)
    named["module.extra"] = torch.ones(3)
    said = refused(save(named, tmp_path / "a.pth"), "toy_llava")
    assert "module.lcb.projection.bias is (3,)" in said and "left over (1): module.extra" in said
    official = {f"module.{key}": STATE[ours] for key, ours in official_names("toy_llava").items()} | {"module.lcb.proj.bias": torch.ones(3)}
    assert "module.lcb.proj.bias is (3,)" in refused(save(official, tmp_path / "b.pth"), "toy_llava")


# folders


def test_folders_with_weights_alone(tmp_path):
    assert is_shipped(loading.load_head(save(STATE, tmp_path / "zero/pytorch_model.bin").parent, "toy_llava"))
    assert is_shipped(loading.load_head(tmp_path / "zero"))
    assert is_shipped(loading.load_head(save({"state_dict": STATE}, tmp_path / "one/iter_300.pth").parent))
    shutil.copy(SHIPPED / "config.json", tmp_path / "zero")
    recipe = recipes.as_dict(recipes.replace("toy_llava", name="named_inside"))
    (tmp_path / "zero/config.json").write_text(json.dumps({"format": 1, "head": "hg", "recipe": recipe}))
    assert loading.load_head(tmp_path / "zero").recipe.name == "named_inside"
    save(STATE, tmp_path / "many/iter_100.pth"), save(STATE, tmp_path / "many/iter_200.pth")
    said = refused(tmp_path / "many")
    assert "iter_100.pth, iter_200.pth" in said and "Name one" in said


def test_weights_in_several_files(tmp_path):
    keys = list(STATE)
    for suffix, name in ((".bin", "pytorch_model"), (".safetensors", "model")):
        folder = tmp_path / name
        parts = {f"{name}-0000{k + 1}-of-00002{suffix}": {key: STATE[key] for key in keys[k::2]} for k in range(2)}
        for part, state in parts.items():
            save(state, folder / part)
        index = folder / f"{name}{suffix}.index.json"
        index.write_text(json.dumps({"weight_map": {key: part for part, state in parts.items() for key in state}}))
        assert is_shipped(loading.load_head(folder, "toy_llava"))
        save(STATE, folder / list(parts)[0])
        assert "in another file" in refused(folder)
        (folder / list(parts)[0]).unlink()
        assert f"not there: {list(parts)[0]}" in refused(folder)
        for content in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../a.bin"}}', '{"weight_map": {"a": 3}}'):
            index.write_text(content)
            refused(folder)


def test_a_run_that_is_done_and_one_that_is_not(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "run/head")
    for config in (None, '{"recipe_name": "toy_llava", "steps": 3}'):  # runs have a config.json too
        if config:
            (tmp_path / "run/config.json").write_text(config)
        save({"head": STATE, "optimizer": {}, "step": 3}, tmp_path / "run/state.pt")
        assert is_shipped(loading.load_head(tmp_path / "run")) and loading.load_head(tmp_path / "run").recipe.name == "toy_llava"
    state = {"head": STATE, "optimizer": {}, "step": 3, "seconds": 1.0, "random": torch.get_rng_state(), "run": "{}"}
    path = save(state, tmp_path / "half/state.pt")
    for config in (False, True):
        if config:
            (tmp_path / "half/config.json").write_text("{}")
        for place in (path, path.parent):
            said = refused(place, "toy_llava")
            assert "a training state" in said and str(path.parent / "head") in said and "(half)" in said
    shutil.copy(path, path.with_name("state.before.pt"))
    assert "a training state" in refused(path.parent)


def test_what_is_no_head_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "found nothing" in refused(tmp_path / "empty")
    (tmp_path / "empty/notes.txt").touch()
    assert "found notes.txt" in refused(tmp_path / "empty")
    assert "field 'format' is missing" in refused(paths.shipped("checkpoints/toy_llava"))  # an LMM
    torch.save(heads.build("toy_llava"), tmp_path / "whole.pth")
    assert "torch.save(head.state_dict(), path)" in refused(tmp_path / "whole.pth")
    assert "Expected named tensors" in refused(save({"epoch": 3, "state_dict": {}}, tmp_path / "no.pth"))
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
        assert "git lfs pull" in refused(tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    for path in ("model.safetensors", "a.pth", "a", "a.txt"):
        assert "no such" in refused(tmp_path / path)


def test_a_config_with_a_byte_order_mark(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "head")
    config = tmp_path / "head/config.json"
    config.write_text("\ufeff" + config.read_text(), encoding="utf-8")
    assert is_shipped(loading.load_head(tmp_path / "head"))


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(SHIPPED, tmp_path / "heads/mine")
    assert is_shipped(loading.load_head("~/heads/mine")) and find_head("~/heads/mine") == tmp_path / "heads/mine"


# what a head was trained with


@pytest.mark.parametrize("field, value", [("prompt", "<image>\nWhat is this?"), ("instruction", "[INST] {input} [/INST]"), ("image_token", "<img>"), ("grid", 8), ("vision_layers", (0, 1, 2, 3, 4, 5, 6, 6))])
def test_another_turn_is_refused(field, value):
    other = recipes.replace("toy_llava", **{field: value})
    said = refused(SHIPPED, other)
    assert f"{field} is " in said and repr(value) in said and "expected" in said
    assert is_shipped(loading.load_head(SHIPPED / "model.safetensors", other)) if field != "grid" else True  # a bare file does not say


@pytest.mark.parametrize("field, value", [("question", "<image> {question}"), ("lmm", "checkpoints/other_llava")])
def test_what_is_said(field, value):
    with pytest.warns(UserWarning, match=f"was trained with {field} ") as caught:
        loading.load_head(SHIPPED, recipes.replace("toy_llava", **{field: value}))
    assert repr(value) in str(caught[0].message) and repr(getattr(recipes.get("toy_llava"), field)) in str(caught[0].message)


def test_what_is_not_worth_a_word(recwarn):
    for changes in ({"dtype": "float16"}, {"schedule__lr": 1.0}, {"lmm": "/data/models/toy_llava"}, {"name": "mine"}, {}):
        loading.load_head(SHIPPED, recipes.replace("toy_llava", **changes))
    loading.load_head(SHIPPED)
    assert not recwarn.list


def test_long_prompts_are_shortened(tmp_path):
    head = heads.build("deepseek_vl_1_3b")
    loading.save_head(head, tmp_path)
    said = refused(tmp_path, recipes.replace("deepseek_vl_1_3b", prompt="<image_placeholder>" * 576 + "Describe it."))
    assert "'<image_placeholder> x 576, Please give me a description of the image.', expected '<image_placeholder> x 576, Describe it.'" in said and len(said) < 700


@pytest.mark.parametrize("kind", list(heads.HEADS))
def test_several_recipes_for_one_bare_file(monkeypatch, tmp_path, kind):
    monkeypatch.setitem(recipes.RECIPES, "a_twin", recipes.replace("toy_llava", name="a_twin", prompt="<image>\nWhat is it?"))
    monkeypatch.setitem(recipes.RECIPES, "z_twin", recipes.replace("toy_llava", name="z_twin", instruction="[{input}]"))
    path = save(heads.build(recipes.replace("toy_llava", head=kind)).state_dict(), tmp_path / "a.safetensors")
    assert "several resemble it equally: a_twin, toy_llava, z_twin" in refused(path)
    assert loading.load_head(path, "z_twin").recipe.name == "z_twin"


# where a head is looked for


@pytest.mark.parametrize("where", ["checkpoints/no_head", "./mine/head", "mine", "me/head.pth", "a/b/c", "/nowhere/head", "x" * 400, "a\0b"])
def test_a_path_that_is_not_there(where, monkeypatch):
    monkeypatch.setattr(head_files, "fetch", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        find_head(where)
    assert where[:10] in str(caught.value)


@pytest.mark.parametrize("where", [None, 3, "", "  ", ["a"], b"a"])
def test_what_is_no_path(where):
    with pytest.raises(SettingError, match="expected a folder or file, or owner/name on the hub"):
        find_head(where)


def test_names_on_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(head_files, "fetch", lambda name, files, advice, **how: asked.append((name, files, how)) or SHIPPED)
    for where, revision in (("me/head", None), ("me/head", "v1"), ("me/head@v2", "v1"), ("me/head@refs/pr/3", None)):
        assert find_head(where, revision) == SHIPPED
    files = ["config.json", "model.safetensors"]
    assert asked == [("me/head", files, how) for how in ({}, {"revision": "v1"}, {"revision": "v2"}, {"revision": "refs/pr/3"})]
    find_head("checkpoints/toy_head")
    assert len(asked) == 4  # it is here


def test_a_hub_that_is_not_reached():
    with pytest.raises(CheckpointError, match="nobody/nothing: no such file or folder here, and not to be had from the hub"):
        find_head("nobody/nothing", local_files_only=True)
