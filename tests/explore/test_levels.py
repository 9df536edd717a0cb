"Attention within vision towers, against what transformers and the tower's own queries and keys say."

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import small_lmm, tiny_deepseek

from hglmm.explore import levels
from hglmm.explore.state import Exploration
from hglmm.lmm.frozen import FrozenLMM

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
CELL = (1, 2)


def explored(lmm: FrozenLMM) -> Exploration:
    return Exploration(SimpleNamespace(lmm=lmm, head=None), PICTURE, "What?", max_new_tokens=1)


def test_clip(tmp_path, monkeypatch):
    one = explored(small_lmm("mistral", tmp_path, monkeypatch))
    with torch.no_grad():
        expected = one.grounder.lmm.model.vision_tower(one.features.pixels[None], output_attentions=True).attentions
    place = 1 + 1 * 24 + 2
    wanted = torch.stack([layer[0].mean(0)[place, 1:].view(24, 24) for layer in expected])
    found = one.tower_attention(CELL)
    assert found.shape == (24, 24, 24) and (found - wanted).abs().max() < 1e-3 * wanted.max() and (found.flatten(1).sum(1) < 1).all()
    assert one.similar(CELL).shape == (8, 24, 24)


@pytest.mark.parametrize("hybrid", [False, True], ids=["one tower", "two towers"])
def test_siglip(tmp_path, monkeypatch, hybrid):
    one = explored(tiny_deepseek(tmp_path, monkeypatch, hybrid))
    tower, side = one.grounder.lmm.model.tower, one.grounder.lmm.recipe.grid
    layers, given, calls = (tower.low if hybrid else tower).layers, [], []
    hooks = [layer.self_attn.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs.get("hidden_states", *args)), with_kwargs=True) for layer in layers]
    hooks.append(tower.register_forward_pre_hook(lambda *_: calls.append(0)))
    found = one.tower_attention(CELL)
    wanted = []
    for layer, x in zip(layers, given, strict=True):
        q, k = (project(x).detach()[0].unflatten(-1, (2, -1)).transpose(0, 1).double() for project in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        wanted.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(0)[side + 2].view(side, side))
    assert found.shape == (24, side, side) and (found - torch.stack(wanted)).abs().max() < 1e-3
    assert torch.allclose(found.flatten(1).sum(1), torch.ones(24), atol=5e-3)
    assert not torch.equal(one.tower_attention((0, 0)), found) and len(calls) == 1  # the tower saw the picture once
    assert one.remembered_bytes == 24 * side**4 * 2
    assert one.similar(CELL).shape == (8, side, side) and one.similar(CELL)[:, 1, 2].allclose(torch.ones(8))
    for hook in hooks:
        hook.remove()


def test_half_precision_is_compared_in_float32():
    draw = torch.Generator().manual_seed(0)
    given = torch.randn(3, 9, 400, generator=draw) + 4  # all alike, as levels behind a projector are
    half = levels.cosines(given.bfloat16(), 4)
    assert half.dtype == torch.float32 and (half - levels.cosines(given, 4)).abs().max() < 1e-3
    assert (half[:, [0, 1, 2, 3, 5, 6, 7, 8]] < 1).all() and torch.allclose(half[:, 4], torch.ones(3))


def test_ways_are_methods():
    assert all(callable(getattr(Exploration, name)) and "\n" not in said for name, said in levels.WAYS.items())
