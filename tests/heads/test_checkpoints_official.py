"Official checkpoints: what is in the wild loads and says what it is; what is broken, wrong or hostile is refused by name, and nothing of it runs."

import builtins
import logging
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hglmm import heads, recipes
from hglmm.checkpoints import store, torch_files
from hglmm.errors import CheckpointError
from hglmm.heads import loading
from hglmm.heads.files import kind_of
from hglmm.heads.official import official_names

TOY_UNET = recipes.replace("toy_llava", head="unet")
KINDS = [kind for kind in heads.HEADS if official_names(recipes.replace("toy_llava", head=kind))]
BIAS = {"hg": "lcb.proj.bias", "unet": "mask_head.encoder.0.0.convs.0.gn.bias", "unet_sam": "sam.model.mask_decoder.output_upscaling.0.bias"}  # one of each, official


def official(recipe) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    "A fresh head, and its weights under official names."
    head = heads.build(recipe)
    state = head.state_dict()
    names = official_names(recipe)
    return head, {key: state[ours].clone() if ours else torch.ones(3, 3) for key, ours in names.items()}


@pytest.fixture(scope="module")
def hg():
    return official("toy_llava")


@pytest.fixture(scope="module")
def unet():
    return official(TOY_UNET)


@pytest.fixture(scope="module", params=KINDS)
def any_kind(request):
    return official(recipes.replace("toy_llava", head=request.param))


@pytest.fixture
def away():
    "Makes objects of a class that is gone when the file is read."
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    assert "mmengine" not in sys.modules
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    HistoryBuffer = type("HistoryBuffer", (), {"__module__": names[-1], "mean": lambda self: 0})
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = names[-1], "HistoryBuffer.mean"
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    yield HistoryBuffer
    for name in names:
        sys.modules.pop(name, None)


def same(head, other) -> bool:
    mine, theirs = head.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def refused(path, recipe="toy_llava") -> str:
    with pytest.raises(CheckpointError) as caught:
        loading.load_head(path, recipe)
    assert str(path) in str(caught.value)
    return str(caught.value)


# what is in the wild


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_as_mmengine_writes_it(away, tmp_path, caplog, zipped, protocol):
    caplog.set_level(logging.INFO, "hglmm")
    head = heads.build("toy_llava")
    buffer = away()
    buffer._log_history, buffer._max_length, buffer._statistics = np.arange(5.0), 1000, {"mean": away.mean}
    optimizer = torch.optim.AdamW(head.parameters())
    sum(p.sum() for p in head.parameters()).backward()
    optimizer.step()
    state = head.state_dict()
    weights = {key: state[ours] for key, ours in official_names("toy_llava").items()}
    content = {
        "meta": {"cfg": "model = dict()", "seed": np.int64(1), "epoch": 4, "iter": 1000, "dataset_meta": None, "time": "20240101_000000"},
        "state_dict": OrderedDict(weights | {f"llava.language_model.{k}.weight": torch.ones(20, 20) for k in range(3)}),
        "message_hub": {"log_scalars": OrderedDict(loss=buffer), "runtime_info": {"lr": np.float64(1e-4), "steps": np.array([1, 2])}, "resumed_keys": {}},
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [{"base_values": [1e-4], "last_step": 1, "done": {1}}],
        "random": [torch.get_rng_state(), np.random.get_state(), np.random.default_rng(0)],
    }
    torch.save(content, tmp_path / "iter_1000.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    loaded = loading.load_head(tmp_path / "iter_1000.pth", "toy_llava")
    assert same(loaded, head) and not loaded.training
    assert not any(name.startswith("mmengine") for name in sys.modules)
    said = caplog.text
    assert "HG-LMM head for toy_llava" in said and "3 tensors of the frozen LMM (llava.*)" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["deepseek_vl_1_3b", "deepseek_vl_7b", "llava_1_5_7b"])
def test_kind_and_model_are_known_by_names_and_shapes(tmp_path, name, kind):
    recipe = recipes.replace(name, head=kind)
    with torch.device("meta"):
        shapes = heads.build(recipe).state_dict() | {None: torch.ones(1)}
    stored = store.Stored(tmp_path, {key: shapes[ours] for key, ours in official_names(recipe).items()})
    assert kind_of(stored) == kind and loading._guessed(stored).name == name


NEXT = ("llava_1_6_mistral_7b", "llava_1_6_vicuna_7b")


@pytest.mark.parametrize("kind", ["unet", "unet_sam"])
def test_flmm_on_llava_next(tmp_path, caplog, kind):
    "Twice the maps, of heads that were published for both language models in files of one size."
    caplog.set_level(logging.INFO, "hglmm")
    head, weights = official(recipes.replace(NEXT[0], head=kind))
    frozen = {"llava.image_newline": torch.ones(4), "llava.language_model.model.norm.weight": torch.ones(4)}
    path = tmp_path / "flmm.pth"
    torch.save({"state_dict": weights | frozen}, path)
    for name in NEXT:
        assert same(loading.load_head(path, name), head)
    assert "set aside: 2 tensors of the frozen LMM (llava.*)" in caplog.text
    key = "mask_head.encoder.0.0.convs.0.conv.weight"
    assert weights[key].shape == (64, 2 * 32 * 32, 3, 3) and f"several resemble it equally: {', '.join(NEXT)}" in refused(path, None)
    said = refused(path, "llava_1_5_7b")
    assert key in said and "(64, 2048, 3, 3), expected (64, 1024, 3, 3)" in said
    for changed, said in (({k: v for k, v in weights.items() if k != key}, f"missing (1): {key}"), (weights | {"mask_head.encoder.9.more": torch.ones(2)}, "left over (1): mask_head.encoder.9.more")):
        torch.save({"state_dict": changed | frozen}, path)
        assert said in refused(path, NEXT[0])


def test_a_head_of_ones_own_is_not_taken_for_a_published_one(tmp_path):
    "Four LMMs are of LLaVA-1.5-7B's size. Official files are of one of them, ours may be of any."
    save_file(heads.build("vip_llava_7b").state_dict(), tmp_path / "ours.safetensors")
    assert "several resemble it equally: llava_1_5_7b, llava_1_6_mistral_7b, llava_1_6_vicuna_7b, vip_llava_7b" in refused(tmp_path / "ours.safetensors", None)


@pytest.mark.parametrize("place", ["entry", "folder", "step"])
def test_deepspeed(hg, tmp_path, place):
    head, weights = hg
    content = {"module": OrderedDict(weights), "ds_version": "0.14", "buffer_names": ["a"], "optimizer": None}
    folder = {"entry": tmp_path, "folder": tmp_path / "iter_1.pth", "step": tmp_path / "run" / "iter_1.pth"}[place]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    path = {"entry": folder / "mp_rank_00_model_states.pt", "folder": folder, "step": tmp_path / "run"}[place]
    assert same(loading.load_head(path, "toy_llava"), head)
    if place == "folder":
        torch.save(content, folder / "mp_rank_01_model_states.pt")
        assert "2 files" in refused(folder)


def test_flmm(unet, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hglmm")
    head, weights = unet
    path = tmp_path / "flmm.pth"
    torch.save({"state_dict": weights | {"llava.norm.weight": torch.ones(4)}}, path)
    for recipe in ("toy_llava", TOY_UNET, None):
        assert same(loading.load_head(path, recipe), head)
    assert "F-LMM head (U-Net) for toy_llava" in caplog.text


def test_flmm_with_its_refiner_and_without(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hglmm")
    whole = recipes.replace("toy_llava", head="unet_sam")
    head, weights = official(whole)
    path = tmp_path / "flmm.pth"
    torch.save({"state_dict": weights | {"llava.norm.weight": torch.ones(4)}}, path)
    for recipe in ("toy_llava", whole, None):
        assert same(loading.load_head(path, recipe), head)
    said = caplog.text
    assert "F-LMM head (U-Net and SAM refiner) for toy_llava" in said and "set aside: 1 tensors of the frozen LMM" in said
    assert same(loading.load_head(path, TOY_UNET), head.unet)
    assert f"{137 + 3} tensors of the SAM refiner" in caplog.text
    save_file(head.state_dict(), tmp_path / "ours.safetensors")
    assert same(loading.load_head(tmp_path / "ours.safetensors"), head)
    assert "holds a head of kind 'unet_sam', the recipe asks for 'unet'" in refused(tmp_path / "ours.safetensors", TOY_UNET)


def test_half_precision_is_converted_and_said(any_kind, tmp_path):
    head, weights = any_kind
    torch.save({"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}}, tmp_path / "half.pth")
    with pytest.warns(UserWarning, match="float16; converted to float32"):
        loaded = loading.load_head(tmp_path / "half.pth", "toy_llava")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and loaded.kind == head.kind


# what is broken or wrong


@pytest.mark.parametrize("recipe", ["toy_llava", None])
def test_keys_and_shapes_are_accounted_for(any_kind, tmp_path, recipe):
    (head, weights), path = any_kind, tmp_path / "wrong.pth"
    bias = BIAS[head.kind]
    length = len(weights[bias])

    def wrong(change: torch.Tensor | str | None, **more: torch.Tensor) -> str:
        "What is said of a file with another bias, or none, and more keys."
        torch.save({"state_dict": {k: v for k, v in (weights | {bias: change} | more).items() if v is not None}}, path)
        return refused(path, recipe)

    assert f"missing (1): {bias}" in wrong(None)
    assert "left over (1): lcb.extra" in wrong(weights[bias], **{"lcb.extra": torch.ones(1)})
    renamed = wrong(None, **{f"{bias}.renamed": weights[bias]})
    assert f"missing (1): {bias}" in renamed and f"left over (1): {bias}.renamed" in renamed
    assert f"{bias} is (3,), expected ({length},)" in wrong(torch.ones(3))
    assert f"NaN or infinite (1): {bias}" in wrong(torch.full((length,), torch.nan))
    assert f"wrong number type (1): {bias}" in wrong(torch.ones(length, dtype=torch.int64))
    assert bias in wrong("text")
    assert "does not fit in its storage" in wrong(torch.ones(1).expand(length))


def test_attributes_of_dicts_are_left_out(hg, tmp_path):
    "State dicts carry `_metadata`; anything else hung on them is ignored just the same."
    head, weights = hg
    weights = OrderedDict(weights)
    content = OrderedDict(state_dict=weights)
    weights._metadata, weights.values, content.get = {"": {"version": 1}}, 1, 2
    torch.save(content, tmp_path / "odd.pth")
    assert same(loading.load_head(tmp_path / "odd.pth", "toy_llava"), head)


def test_the_wrong_head_is_refused(hg, unet, tmp_path):
    torch.save({"state_dict": hg[1]}, tmp_path / "hg.pth")
    assert "wrong shape" in refused(tmp_path / "hg.pth", "deepseek_vl_1_3b")
    assert "the recipe asks for 'unet'" in refused(tmp_path / "hg.pth", TOY_UNET)
    torch.save({"state_dict": unet[1]}, tmp_path / "unet.pth")
    assert "mask_head.encoder.0.0.convs.0.conv.weight is (32, 20, 3, 3)" in refused(tmp_path / "unet.pth", "deepseek_vl_1_3b")
    whole = recipes.replace("toy_llava", head="unet_sam")
    for name in ("unet.pth", "hg.pth"):
        assert "the recipe asks for 'unet_sam'" in refused(tmp_path / name, whole)
    torch.save({"state_dict": official(whole)[1]}, tmp_path / "whole.pth")
    assert "mask_head.encoder.0.0.convs.0.conv.weight is (32, 20, 3, 3), expected (64, 1024, 3, 3)" in refused(tmp_path / "whole.pth", "llava_1_5_7b")
    torch.save({"state_dict": {"llava.norm.weight": torch.ones(2)}}, tmp_path / "lmm.pth")
    assert "no head" in refused(tmp_path / "lmm.pth")
    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}}, tmp_path / "resnet.pth")
    assert "left over (1): conv1.weight" in refused(tmp_path / "resnet.pth")
    assert "resemble the head of none" in refused(tmp_path / "resnet.pth", None)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no weights" in refused(tmp_path / "list.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file(any_kind, tmp_path, zipped, share):
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": any_kind[1]}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cut short" in refused(path)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "page.pth"
    path.write_bytes(b"<!doctype html><title>404</title>")
    assert "cannot be read" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("code.txt", "no weights here")
    assert "not one of torch.save" in refused(path)


# what is hostile


class Bomb:
    "Pickles as a call."

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class Boom(Exception):
    "A bomb that went off."


def bombs(sign: str) -> dict[str, object]:
    "Things a hostile pickle does; each would make a folder."
    command = f"__import__('os').mkdir({sign!r})"
    return {
        "system": Bomb(os.system, f"mkdir {sign}"),
        "mkdir": Bomb(os.mkdir, sign),
        "builtins.eval": Bomb(builtins.eval, command),
        "builtins.exec": Bomb(builtins.exec, command),
        "builtins.__import__": Bomb(builtins.__import__, "os"),
        "subprocess.Popen": Bomb(subprocess.Popen, ["mkdir", sign]),
        "subprocess.check_output": Bomb(subprocess.check_output, ["mkdir", sign]),
        "runpy": Bomb(__import__("runpy").run_path, sign),
        "builtins.getattr": Bomb(getattr, dict, "fromkeys"),
        "torch.serialization.load": Bomb(torch.load, sign),
        "numpy.save": Bomb(np.save, sign, 1),
        "torch.storage._load_from_bytes": Bomb(torch.storage._load_from_bytes, b""),
    }


NAMES = list(bombs("x"))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare0", "bare4", *KINDS])
@pytest.mark.parametrize("named", NAMES)
def test_a_hostile_pickle_is_named_and_nothing_runs(tmp_path, named, form):
    sign, path = tmp_path / "sign", tmp_path / "hostile.pth"
    bomb = bombs(str(sign))[named]
    content = {"state_dict": {BIAS.get(form, BIAS["hg"]): bomb if form in KINDS else torch.ones(64)}, "message_hub": {"log": bomb}}
    if form.startswith("bare"):
        path.write_bytes(pickle.dumps(bomb, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    said = refused(path)
    assert named.rpartition(".")[2] in said and "Nothing was run" in said
    assert not sign.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'mkdir SIGN'\ntR.",
        b"c__builtin__\neval\n(S'__import__(\"os\").mkdir(\"SIGN\")'\ntR.",
        b"ccommands\ngetoutput\n(S'mkdir SIGN'\ntR.",
        b"(S'mkdir SIGN'\nios\nsystem\n.",
        b"\x80\x04\x8c\x13torch.serialization\x8c\tos.system\x93\x8c\nmkdir SIGN\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x16os.path.os.system.call\x93.",
        b"csome_package.tools\nrun_it\n(S'mkdir SIGN'\ntR.",
        b"cbuiltins\ngetattr\n(csome_package\nModule\nS'__globals__'\ntR.",
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_hand_written_pickles(tmp_path, program, inside):
    sign, path = tmp_path / "s", tmp_path / "hostile.pth"
    room = os.fsencode(sign)
    program = program.replace(b"\x8c\nmkdir SIGN", b"\x8c" + bytes([len(b"mkdir " + room)]) + b"mkdir " + room).replace(b"SIGN", room)
    if inside:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
    else:
        path.write_bytes(program)
    assert "Nothing was run" in refused(path)
    assert not sign.exists()


def test_stand_ins_take_anything_and_do_nothing(tmp_path):
    "Calls, states, items and attributes of classes that nobody has; also ones that want to be tensors."
    program = b"csome.package\nThing\n(S'a'\nI1\ntR(dS'x'\nI1\nsb."
    path = tmp_path / "odd.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    assert isinstance(torch_files.read(path), torch_files.StandIn) and "some" not in sys.modules
    for program in (b"ctorch._utils\n_rebuild_tensor_v2\n(S'x'\nI0\n(I2\nt(I1\ntI00\nNtR.", b"(S'storage'\nctorch\nFloatStorage\nS'../../x'\nS'cpu'\nI9\ntQ."):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"(dS'state_dict'\n(dS'lcb.proj.bias'\n" + program[:-1] + b"ss.")
        refused(path)
