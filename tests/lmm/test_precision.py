"What half precision may and may not cost: the attention rows of an LMM in float16 or bfloat16 against float64, from its own queries and keys."

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hglmm.datasets.core import Sample
from hglmm.lmm import taps
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.taps import AttentionTap, TextTap, phrase_rows
from hglmm.phrases import tokenize_pieces

HALF = [torch.float16, torch.bfloat16]
COLUMNS, SPANS, TOKENS = torch.arange(4, 20), [[25, 26, 27], [30], [31, 32, 33, 39]], 40


def drawn(dtype: torch.dtype, size: float, heads: int = 4, keys: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    "Queries (2, heads, T, 16) and keys (2, keys, T, 16)."
    draw = torch.Generator().manual_seed(0)
    return tuple((size * torch.randn(2, n, TOKENS, 16, generator=draw)).to(dtype) for n in (heads, keys))


def exact_rows(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:  # (n, A, c)
    "The softmax in float64, all of it."
    k = k.repeat_interleave(len(q) // len(k), 0)
    hidden = torch.ones(TOKENS, TOKENS).triu(1).bool()
    full = (q.double() @ k.double().mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf).softmax(-1)
    return torch.stack([full[:, span][:, :, COLUMNS].mean(1) for span in SPANS])


def tapped(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> AttentionTap:
    values = torch.zeros_like(k)
    with AttentionTap([phrase_rows(SPANS, COLUMNS)] * 2) as tap:
        F.scaled_dot_product_attention(q, k, values, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])
    return tap


def additive(dtype: torch.dtype) -> torch.Tensor:
    "As transformers hides what comes later: the lowest number of the dtype."
    return torch.zeros(2, 1, TOKENS, TOKENS, dtype=dtype).masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), torch.finfo(dtype).min)


@pytest.mark.parametrize("keys", [4, 2, 1], ids="{} key heads".format)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "is_causal"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", [1, 4, 300], ids="size {}".format)  # 300: scores of a million, which float16 does not have, and its lowest number does not hide
def test_rows_are_those_of_float64(dtype, size, masked, keys):
    q, k = drawn(dtype, size, keys=keys)
    tap = tapped(q, k, additive(dtype) if masked else None)
    for b in range(2):
        found, exact = tap.attention(b), exact_rows(q[b], k[b])
        assert found.dtype == torch.float32 and bool(found.isfinite().all())
        assert float((found - exact).abs().max()) < (1e-5 if size < 100 else 0.02)  # of values up to 1; float32 knows scores of a million to 0.06
    if size == 300:
        assert not torch.isfinite(q.half()[0] @ k.half()[0].repeat_interleave(4 // keys, 0).mT).all()


def test_heads_are_taken_in_groups(monkeypatch):
    "However few keys fit at once."
    for keys in (4, 2):
        q, k = drawn(torch.bfloat16, 2, keys=keys)
        whole = tapped(q, k, None).attention(0)
        for at_once in (1, 2 * TOKENS * 16, 3 * TOKENS * 16):
            monkeypatch.setattr(taps, "KEYS", at_once)
            assert torch.allclose(tapped(q, k, None).attention(0), whole, atol=1e-7)
        monkeypatch.undo()


def test_repeated_keys_are_not_copied(monkeypatch):
    "With one key head for 64 query heads, the float32 copy is of one."
    q, k = drawn(torch.bfloat16, 1, heads=64, keys=1)
    sizes, to_float = [], torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: sizes.append(self.numel()) or to_float(self))
    taps.softmax_rows(q[0][:, :3], k[0], torch.zeros(1, 3, TOKENS), 0.25, phrase_rows([[0, 1, 2]], COLUMNS))
    assert max(sizes) <= max(k[0].numel(), 64 * 3 * 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_the_rows(dtype):
    "Training runs under autocast; what is read is read in float32 all the same."
    q, k = drawn(torch.float32, 4)
    chosen, bias = phrase_rows(SPANS, COLUMNS), additive(torch.float32)[0]
    rows = chosen.rows
    with torch.autocast("cpu", dtype):
        found = taps.softmax_rows(q[0][:, rows], k[0], taps._bias(bias[None], False, 0, rows, TOKENS), 0.25, chosen)
    assert float((found - exact_rows(q[0], k[0])).abs().max()) < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_mean_over_a_phrase_is_one(dtype, autocast):
    "A third is 0.334 in bfloat16: the mean of three equal states was not that state."

    class Layer(torch.nn.Module):
        def forward(self, x):
            return x

    value = 255.0 if dtype == torch.bfloat16 else 2047.0  # as close to the next number as numbers are, measured by their size
    layer, state = Layer(), torch.full((1, 16, 4), value, dtype=dtype)
    for span in (range(1, 1 + length) for length in range(1, 15)):
        with TextTap([Layer(), Layer()], layer, [phrase_rows([list(span)], torch.arange(2))]) as tap, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            tap.modules[0](state)
            layer(state)
        assert tap.text(0).dtype == dtype and torch.equal(tap.text(0), torch.full((1, 2, 4), value, dtype=dtype))


class Calls(TorchFunctionMode):
    "Keeps what the LMM gives to its attention."

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.seen.append((args[0].clone(), args[1].clone()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_lmm_in_half_precision(dtype):
    "toy_llava: all that is lost against float64 on its own queries and keys is float32's error."
    lmm = FrozenLMM.load("toy_llava", device="cpu", dtype=dtype)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    sample = Sample(image, [("a red mug", 0), ("and", None), ("two fish", 1)], np.ones((2, 60, 90), bool))
    with Calls() as calls:
        features = lmm.encode([sample])[0]
    assert len(calls.seen) == 4 and {q.dtype for q, _ in calls.seen} == {getattr(torch, dtype)}
    said = tokenize_pieces(lmm.tokenizer, lmm.recipe.instruction.format(input=lmm.recipe.prompt), sample.pieces, 2)
    first, cells = said.input_ids.index(lmm.image_token), lmm.recipe.grid**2
    phrase_of = torch.tensor(said.phrase_ids[:first] + [-1] * cells + said.phrase_ids[first + 1 :])
    hidden = torch.ones(len(phrase_of), len(phrase_of)).triu(1).bool()
    worst = 0.0
    for layer, (q, k) in enumerate(calls.seen):
        full = (q[0].double() @ k[0].double().mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf).softmax(-1)
        exact = torch.stack([full[:, phrase_of == k][:, :, first : first + cells].mean(1) for k in range(2)])
        found = features.attention[:, 5 * layer : 5 * layer + 5].flatten(2)
        worst = max(worst, float((found - exact).abs().max() / exact.max()))
    assert worst < 1e-5
