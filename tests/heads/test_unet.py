"F-LMM's U-Net: parity with the published one (../shared/conformance, where present), and training like any other head."

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hglmm import heads, recipes
from hglmm.datasets import layout
from hglmm.heads import loading
from hglmm.heads.official import official_names
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import training

CONFORMANCE = Path(__file__).resolve().parents[3] / "shared" / "conformance"
TOLERANCE = 1e-3  # of the standard deviation
RECIPE = recipes.replace("deepseek_vl_1_3b", head="unet")
TOY = recipes.replace("toy_llava", head="unet")

needs_conformance = pytest.mark.skipif(not CONFORMANCE.is_dir(), reason=f"no conformance material at {CONFORMANCE}")


def official(name: str) -> dict[str, list[int]]:
    return json.loads((CONFORMANCE / name).read_text())


@needs_conformance
def test_every_official_key_is_translated_once_with_its_shape():
    shapes, names = official("deepseek_vl_1_3b.flmm_unet_keys.json"), official_names(RECIPE)
    with torch.device("meta"):
        ours = heads.build(RECIPE).state_dict()
    assert set(shapes) == set(names) and sorted(names.values()) == sorted(ours)
    assert {k: tuple(shape) for k, shape in shapes.items()} == {k: tuple(ours[name].shape) for k, name in names.items()}


@needs_conformance
def test_logits_agree_with_the_reference(seeded, tmp_path):
    "By way of an official file with SAM parts and LMM weights in it."
    state = seeded.seeded_state(official("deepseek_vl_1_3b.flmm_unet_keys.json") | official("flmm_sam_keys.json"))
    torch.save({"state_dict": state | {"deepseek_vl.language_model.norm.weight": torch.ones(8)}}, tmp_path / "flmm.pth")
    head = loading.load_head(tmp_path / "flmm.pth", RECIPE)
    attention = seeded.seeded_data("deepseek_vl_1_3b/unet_att", (2, 384, 576)).softmax(-1).unflatten(2, (24, 24))
    with torch.no_grad():
        logits = head(attention).numpy()
    with np.load(CONFORMANCE / "deepseek_vl_1_3b.flmm_unet.npz") as stored:
        expected = stored["logits"]
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= TOLERANCE * expected.std()


def test_it_trains_in_place_of_the_other_head(small_world, tmp_path):
    lmm, data = FrozenLMM.load(TOY), layout.TrainingSet.open(small_world)
    trainer = training.Trainer(training.Run(TOY, 3, batch_size=2, lr=1e-3, log_every=1), lmm, data, tmp_path)
    before = {k: v.clone() for k, v in trainer.head.state_dict().items()}
    trainer.fit()
    saved = loading.load_head(tmp_path / "head", "toy_llava")
    assert saved.kind == "unet" and len(training.read_log(tmp_path)) == 3
    assert all(not torch.equal(v, before[k]) for k, v in saved.state_dict().items())
