"""The mask head against the published one: names, shapes, sizes and numbers (../shared/conformance, where present)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hglmm import heads, recipes
from hglmm.checkpoints import store
from hglmm.heads import loading
from hglmm.heads.official import official_names

CONFORMANCE = Path(__file__).resolve().parents[3] / "shared" / "conformance"
PUBLISHED = ("deepseek_vl_1_3b", "deepseek_vl_7b", "llava_1_5_7b")
TOLERANCE = 1e-3  # of the standard deviation of each array

pytestmark = pytest.mark.skipif(not CONFORMANCE.is_dir(), reason=f"no conformance material at {CONFORMANCE}")


def official_shapes(name: str) -> dict[str, list[int]]:
    "Every key and shape of an official head."
    return json.loads((CONFORMANCE / f"{name}.head_keys.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_official_key_is_translated_once_with_its_shape(name):
    official, names = official_shapes(name), official_names(name)
    assert set(official) == set(names)
    with torch.device("meta"):
        ours = heads.build(name).state_dict()
    used = {key: our_key for key, our_key in names.items() if our_key is not None}
    assert sorted(used.values()) == sorted(ours)
    assert {k: tuple(official[k]) for k in used} == {k: tuple(ours[our_key].shape) for k, our_key in used.items()}
    unused = [key for key, our_key in names.items() if our_key is None]
    assert all(key.startswith("cliplayer.") for key in unused) and len(unused) == (4 if name == "deepseek_vl_7b" else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_official_one(name):
    "Everything in the file, less what is never used: 6.70 M for 1.3B; 32.57 M less 20.98 M for 7B."
    shapes = official_shapes(name)
    whole = sum(math.prod(shape) for shape in shapes.values())
    unused = sum(math.prod(shape) for key, shape in shapes.items() if key.startswith("cliplayer."))
    with torch.device("meta"):
        ours = sum(tensor.numel() for tensor in heads.build(name).state_dict().values())
    assert ours == whole - unused
    stated = {"deepseek_vl_1_3b": (6.70, 0), "deepseek_vl_7b": (32.57, 20.98)}
    if name in stated:
        assert (round(whole / 1e6, 2), round(unused / 1e6, 2)) == stated[name]


def seeded_head(seeded, name: str):
    "Our head with the seeded official weights, by way of the translation."
    head = heads.build(name)
    stored = store.Stored(Path(f"seeded {name}"), seeded.seeded_state(official_shapes(name)))
    head.load_state_dict(loading.matching_weights(stored, head))
    return head.eval()


@pytest.fixture(scope="module")
def reference(seeded):
    "What the reference gave, and what our head gives on the same weights and inputs."
    prefix = "deepseek_vl_1_3b/"
    head = seeded_head(seeded, "deepseek_vl_1_3b")
    hidden = seeded.seeded_data(prefix + "hidden", (24, 12, 2048))
    text = torch.stack([hidden[:, :5].mean(1), hidden[:, 6:].mean(1)])
    attention = seeded.seeded_data(prefix + "att", (2, 384, 576)).softmax(-1).unflatten(2, (24, 24))
    levels = seeded.seeded_data(prefix + "levels", (8, 576, 2048))
    pixels = seeded.seeded_data(prefix + "pixels", (1, 3, 384, 384))
    with torch.no_grad():
        logits = head(attention, text, levels, pixels[0])
        embedding = head.embed_text(text)
        ours = {
            "logits": logits[:, ::4, ::4],
            "mean": logits.mean(),
            "std": logits.std(),
            "text": embedding,
            "dyn": head.lifg(embedding, levels[None], [2])[:, :, ::7, ::5, ::5],
            "shallow": head.lcb(pixels)[:, ::9, ::8, ::8],
        }
    with np.load(CONFORMANCE / "deepseek_vl_1_3b.head.npz") as stored:
        assert list(logits.shape) == stored["shape"].tolist()
        return {key: stored[key] for key in stored.files}, {key: value.numpy() for key, value in ours.items()}


@pytest.mark.parametrize("part", ["logits", "text", "dyn", "shallow", "mean", "std"])
def test_numbers_agree_with_the_reference(reference, part):
    expected, ours = reference[0][part], reference[1][part]
    scale = expected.std() if expected.size > 1 else reference[0]["logits"].std()
    assert expected.size == ours.size
    assert np.abs(expected.reshape(ours.shape) - ours).max() <= TOLERANCE * scale


@pytest.mark.parametrize(("name", "side"), [("llava_1_5_7b", 336), ("deepseek_vl_7b", 512)])
def test_large_heads_load_and_run(seeded, name, side):
    "All official keys go in (the 7B's unused ones too), and logits of the right size come out."
    recipe = recipes.get(name)
    head = seeded_head(seeded, name)
    g = recipe.grid
    attention = seeded.seeded_data(name + "/att", (1, recipe.channels, g * g)).softmax(-1).unflatten(2, (g, g))
    text = seeded.seeded_data(name + "/text", (1, recipe.layers, recipe.width))
    levels = seeded.seeded_data(name + "/levels", (8, g * g, recipe.width))
    pixels = seeded.seeded_data(name + "/pixels", (3, recipe.image_size, recipe.image_size))
    with torch.no_grad():
        logits = head(attention, text, levels, pixels)
    assert logits.shape == (1, side, side) and logits.isfinite().all() and logits.std() > 0
