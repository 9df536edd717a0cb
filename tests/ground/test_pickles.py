"One reader of pickles: what RefCOCO's references, heads and LMMs come in. Whatever a file asks for, it is named, and nothing runs. More of it in test_checkpoints_official."

import builtins
import contextlib
import importlib
import os
import pickle
import subprocess
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from hglmm.checkpoints import torch_files
from hglmm.datasets import safe_pickle
from hglmm.errors import CheckpointError, HGLMMError
from hglmm.heads import loading
from hglmm.lmm import weights

READERS = {
    "refs": ("refs(unc).p", safe_pickle.load),
    "head": ("head.pth", loading.load_head),
    "lmm": ("pytorch_model.bin", lambda path: list(weights.tensors_of(path))),
    "names": ("pytorch_model.bin", weights.keys_of),
}


class Bomb:
    "Pickles as a call."

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def bombs(sign: Path) -> dict[str, object]:
    "Each would make a folder, or import something."
    return {
        "mkdir": Bomb(os.mkdir, str(sign)),
        "system": Bomb(os.system, f"mkdir {sign}"),
        "builtins.eval": Bomb(eval, f"__import__('os').mkdir({str(sign)!r})"),
        "subprocess.Popen": Bomb(subprocess.Popen, ["mkdir", str(sign)]),
        "tempfile.TemporaryDirectory": Bomb(tempfile.TemporaryDirectory, None, "sign", str(sign.parent)),  # a class
        "import_module": Bomb(importlib.import_module, "antigravity"),
        "builtins.getattr": Bomb(getattr, dict, "fromkeys"),
        "builtins.map": Bomb(map, builtins.print, ["a"]),
        "load": Bomb(torch.load, str(sign)),
        "numpy.save": Bomb(np.save, str(sign), 1),
    }


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    name, read = READERS[request.param]
    return tmp_path / name, read


def refused(path: Path, read) -> str:
    with pytest.raises(HGLMMError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("named", bombs(Path("x")))
def test_a_hostile_pickle_of_any_protocol(reader, named, protocol, tmp_path):
    path, read = reader
    path.write_bytes(pickle.dumps([{"a": 1}, bombs(tmp_path / "sign")[named]], protocol))
    said = refused(path, read)
    assert named in said and "Nothing was run" in said and not list(tmp_path.glob("sign*"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("named", bombs(Path("x")))
def test_a_hostile_lmm(named, zipped, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a.weight": torch.ones(2), "b": bombs(tmp_path / "sign")[named]}, path, _use_new_zipfile_serialization=zipped)
    for kind in ("lmm", "names"):
        said = refused(path, READERS[kind][1])
        assert named in said and "Nothing was run" in said and not list(tmp_path.glob("sign*"))


def test_a_file_leaves_nothing_behind_for_the_next(tmp_path):
    "A pickle may set attributes of what its names give it, also of functions that read the next file."
    names = [name.rpartition(".")[::2] for name, given in torch_files.GIVEN.items() if callable(given)]
    for module, name in names:
        for state in (b"(dS'more'\nI1\ns", b"(N(dS'__defaults__'\n(I1\ntst"):
            path = tmp_path / "hostile.pth"
            path.write_bytes(b"c" + f"{module}\n{name}\n".encode() + state + b"b.")
            refused(path, torch_files.read)
    content = {"weight": torch.arange(3.0), "range": range(3), "bytes": b"\xe9", "size": torch.Size([1]), "dict": OrderedDict(a=1), "set": {1}}
    torch.save(content, tmp_path / "a.pth")
    found = torch_files.read(tmp_path / "a.pth")
    assert found["weight"].load().tolist() == [0, 1, 2] and found["bytes"] == b"\xe9" and found["dict"] == {"a": 1} and found["set"] == {1}


STATE = {"odd": torch.randn(3, 5), "half": torch.randn(7).half(), "turned": torch.randn(4, 6).T, "count": torch.tensor(3), "none": torch.ones(0, 3), "one": torch.ones(1, dtype=torch.bool)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_an_lmm_of_any_protocol(zipped, protocol, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for extra in range(8):  # files before torch 1.6 begin their numbers anywhere
        torch.save(STATE | {"x" * (extra + 1): torch.ones(1)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        found = dict(weights.tensors_of(path))
        assert list(found) == weights.keys_of(path) and len(found) == len(STATE) + 1
        for name, tensor in STATE.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) and found[name].data_ptr() % tensor.element_size() == 0
        path.unlink()


def own_memory() -> int:
    "Of this process, in MB: what it would not share with another that maps the same files."
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux tells it")
def test_weights_are_mapped_and_not_copied(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({f"{k}.weight": torch.ones(8, 1024, 1024) for k in range(4)}, path)  # 128 MB
    before = own_memory()
    found = dict(weights.tensors_of(path))
    assert all(tensor.sum() == 8 * 2**20 for tensor in found.values())
    assert own_memory() - before < 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux tells it")
def test_of_an_old_file_only_what_is_wanted_is_read(tmp_path):
    torch.save({"state_dict": {"llava.weight": torch.ones(64, 1024, 1024), "lifg.weight": torch.ones(3)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    before = own_memory()
    assert torch_files.read(tmp_path / "old.pth")["state_dict"]["lifg.weight"].load().tolist() == [1, 1, 1]
    assert own_memory() - before < 20


def test_what_is_not_weights_alone(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for content in ({"state_dict": STATE}, {"a": torch.ones(1), "epoch": 3}, {"a": torch.ones(1), "b": np.ones(2)}, [torch.ones(1)], {1: torch.ones(1)}, torch.nn.Linear(1, 1)):
        torch.save(content, path)
        for kind in ("lmm", "names"):
            assert "something else than tensors by name" in refused(path, READERS[kind][1])


def hand_made(path: Path, count: int, stored: int = 8, claimed: int | None = None, shape: bytes = b"(I2\nt", stride: bytes = b"(I1\nt", first: int = 0, then: bytes = b"", kind: bytes | None = None, order: bytes = b"little", **archived) -> Path:
    "A file of torch with one tensor `a`, told by hand; `claimed` is what the archive's list says of its bytes, `kind` is another type of number, `then` is done with the tensor."
    storage = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI%d\ntQ" % count
    program = b"(dS'a'\nctorch._utils\n_rebuild_tensor_v%d\n" % (3 if kind else 2) + storage + b"I%d\n%s%sI00\nN%stR%ss." % (first, shape, stride, kind or b"", then)
    with zipfile.ZipFile(path, "w", **archived) as archive:
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", np.arange(stored // 4, dtype=np.float32).tobytes())
        if claimed is not None:
            archive.filelist[-1].file_size = archive.filelist[-1].compress_size = claimed
    return path


def test_a_tensor_that_is_not_where_it_is_said_to_be(tmp_path):
    path, read = tmp_path / "pytorch_model.bin", READERS["lmm"][1]
    assert dict(read(hand_made(path, count=2)))["a"].tolist() == [0, 1] and dict(read(hand_made(path, count=9)))["a"].tolist() == [0, 1]
    assert dict(read(hand_made(path, count=2, stored=16, first=2)))["a"].tolist() == [2, 3]
    for odd in (dict(first=1), dict(shape=b"(I3\nt"), dict(stride=b"(I2\nt"), dict(stride=b"(I0\nt"), dict(shape=b"(I1000000000\nt", stride=b"(I0\nt"), dict(stored=0), dict(stored=4)):
        assert "does not fit in its storage '0'" in refused(hand_made(path, count=2, **odd), read)
    assert dict(read(hand_made(path, count=2, kind=b"ctorch\nint32\n")))["a"].tolist() == [0, 0x3F800000]
    for odd in (dict(first=-1), dict(shape=b"(I-2\nt"), dict(stride=b"(I-1\nt"), dict(shape=b"(I2\nI2\nt"), dict(shape=b"(F2.0\nt")):
        assert "impossible shape" in refused(hand_made(path, count=2, **odd), read)
    assert dict(read(hand_made(path, count=0, stored=0, shape=b"(I0\nI3\nt", stride=b"(I3\nI1\nt")))["a"].shape == (0, 3)
    for then in (b"(N(dS'shape'\n(I1000\ntstb", b"(dS'shape'\n(I1000\ntsb"):  # another shape, behind the check
        assert dict(read(hand_made(path, count=2, then=then)))["a"].tolist() == [0, 1]
    for odd in (dict(shape=b"(I0\nL100000000000000000000000000000L\nt", stride=b"(I1\nI1\nt"), dict(shape=b"(I0\nL1000000000000000000L\nt", stride=b"(I1\nL1000000000000000000L\nt")):
        with contextlib.suppress(CheckpointError):  # nothing is no harm; what it must not do is fail in another way
            assert dict(read(hand_made(path, count=2, **odd)))["a"].numel() == 0
    assert "compressed" in refused(hand_made(path, count=2, compression=zipfile.ZIP_DEFLATED), read)
    assert "big-endian" in refused(hand_made(path, count=2, order=b"big"), read)
    large = 10**6 * 4
    assert "cut short within storage '0'" in refused(hand_made(path, count=10**6, claimed=large, shape=b"(I1000000\nt"), read)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02K\x01", b"PK\x03\x04" + b"x" * 100, b"\x80\x02]q\x00(X\xff\xff\xff\x7f", b"\x80\x02h\x05.", b"\x80\x63."])
def test_what_is_broken(kind, content, tmp_path):
    name, read = READERS[kind]
    (tmp_path / name).write_bytes(content)
    assert "cut short" in refused(tmp_path / name, read)
