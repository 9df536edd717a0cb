"What was found, as others write it: boxes, run lengths, files. And what a grounding holds on to."

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from hglmm import Grounder
from hglmm.datasets import toycoco
from hglmm.errors import SettingError
from hglmm.grounding import Grounding
from hglmm.lmm.features import Features


def made(masks: np.ndarray, phrases: list[str], **options) -> Grounding:
    "A grounding of masks that were drawn."
    n, high, wide = masks.shape
    features = Features(torch.zeros(n, 20, 16, 16), torch.zeros(n, 4, 160), torch.zeros(8, 256, 160), torch.zeros(3, 128, 128), tokens=[torch.zeros(3, 4, 160)] * n)
    return Grounding(Image.new("RGB", (wide, high), "white"), phrases, np.where(masks, np.float32(0.9), np.float32(0.1)), features, **options)


@pytest.fixture
def drawn() -> Grounding:
    "A block, an empty mask, a pixel in a corner, everything, and noise."
    masks = np.zeros((5, 30, 40), bool)
    masks[0, 5:12, 8:20] = masks[2, 29, 39] = masks[3] = True
    masks[4] = np.random.default_rng(0).random((30, 40)) > 0.5
    return made(masks, ["a block", "nothing", "a/corner\\..", "红 all", "a block"], spans=[(0, 7), (8, 15), (1, 2), (3, 4), (0, 7)])


def test_boxes_hold_their_masks(drawn):
    assert drawn.boxes[:4] == [(8.0, 5.0, 20.0, 12.0), (0.0, 0.0, 0.0, 0.0), (39.0, 29.0, 40.0, 30.0), (0.0, 0.0, 40.0, 30.0)]
    for (left, top, right, bottom), one, mask in zip(drawn.boxes, drawn.rle, drawn.masks, strict=True):
        assert np.allclose(coco_mask.toBbox(one), (left, top, right - left, bottom - top))  # pycocotools has width and height
        kept = mask.copy()
        kept[int(top) : int(bottom), int(left) : int(right)] = False
        assert not kept.any() and all(isinstance(side, float) for side in (left, top, right, bottom))


def test_run_lengths_are_read_by_pycocotools(drawn):
    stored = json.loads(json.dumps(drawn.rle))
    assert all(one["size"] == [30, 40] and isinstance(one["counts"], str) for one in stored)
    assert (coco_mask.decode(stored).astype(bool).transpose(2, 0, 1) == drawn.masks).all()
    assert np.allclose(drawn.scores, [0.9, 0, 0.9, 0.9, 0.9])
    drawn.threshold = 0.95
    assert drawn.boxes == [(0.0,) * 4] * 5 and drawn.scores == [0.0] * 5 and coco_mask.area(drawn.rle).sum() == 0


def test_what_is_saved(drawn, tmp_path):
    file = drawn.save(tmp_path / "a" / "b")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert (content["width"], content["height"], content["threshold"]) == (40, 30, 0.5) and file.parent == tmp_path / "a/b"
    assert [one["phrase"] for one in content["phrases"]] == drawn.phrases and [tuple(one["span"]) for one in content["phrases"]] == drawn.spans
    names = [one["mask"] for one in content["phrases"]]
    assert names == ["mask_01_a_block.png", "mask_02_nothing.png", "mask_03_a_corner.png", "mask_04_all.png", "mask_05_a_block.png"]
    for name, mask in zip(names, drawn.masks, strict=True):
        stored = np.asarray(Image.open(file.parent / name))
        assert stored.dtype == np.uint8 and (stored == mask * 255).all()
    assert [tuple(one["box"]) for one in content["phrases"]] == drawn.boxes and [one["rle"] for one in content["phrases"]] == drawn.rle
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(["figure.png", "grounding.json", *names]) and Image.open(file.parent / "figure.png").size[0] > 100


def test_a_failed_save_leaves_nothing_half(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drawn.save(tmp_path)
    assert not [path for path in tmp_path.iterdir() if "part" in path.name or path.name == "grounding.json"]
    drawn.threshold = 3
    with pytest.raises(SettingError, match="threshold"):
        drawn.save(tmp_path / "other")
    assert not list((tmp_path / "other").glob("mask*"))


def held(grounding: Grounding) -> int:
    "Bytes of a grounding's tensors, whole storages."
    tensors = [value for value in vars(grounding.features).values() if isinstance(value, torch.Tensor)] + (grounding.features.tokens or [])
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def test_what_is_kept():
    "Attention and hidden states of the phrases, and nothing of the tower's."
    grounder, scene = Grounder.load("toy_llava", device="cpu"), toycoco.split_scene(0, "val", 314)
    found = grounder.ground(scene.image, ["the yellow mug", "the grass"])
    text, attention = found.features.text, found.features.attention
    assert attention.shape == (2, 20, 16, 16) and text.shape == (2, 4, 160) and held(found) <= attention.nbytes + text.nbytes
    assert found.features.letterbox.picture == scene.image.size
    moved = found.to("cpu")
    assert moved.phrases == found.phrases and (moved.masks == found.masks).all() and held(moved) <= held(found)
    assert found.to(torch.device("meta")).features.attention.device.type == "meta"  # as on any other device
    reply = grounder.chat(scene.image, "what is the background?")
    assert held(reply.grounding) <= reply.grounding.features.attention.nbytes + reply.grounding.features.text.nbytes and reply.answer.context is None
