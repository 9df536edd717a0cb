"Rollout and relevancy: against the plain way, with all attentions of all layers; and that nothing is left at the LMM."

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import FAMILIES, small_lmm, tiny_deepseek

from hglmm.errors import SettingError
from hglmm.explore import relevancy
from hglmm.explore.state import Exploration
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.full_attention import OpenAttention

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))


def explored(lmm: FrozenLMM, words: int = 8) -> Exploration:
    "An exploration that needs no head."
    return Exploration(SimpleNamespace(lmm=lmm, head=None), PICTURE, "What is on the table?", max_new_tokens=words)


@pytest.fixture(scope="module", params=FAMILIES)
def one(request, tmp_path_factory) -> Exploration:
    with pytest.MonkeyPatch.context() as patch:
        yield explored(small_lmm(request.param, tmp_path_factory.mktemp("lmm"), patch))


def plain(one: Exploration) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], slice, int]:
    "Logits and attentions (1, A, T, T) of the whole turn, with gradients; where the picture's cells are, and where it ends."
    lmm, answer = one.grounder.lmm, one.answer
    ids, cells = torch.tensor(answer.prompt_ids + answer.tokens), lmm.recipe.grid**2
    first = answer.prompt_ids.index(lmm.image_token)
    rest = ids[first + answer.prompt_ids.count(lmm.image_token) :]
    image = lmm.look([lmm.prepare(PICTURE)])[0].embeddings[None]
    embeddings = torch.cat([lmm.embed_tokens(ids[None, :first]), image, lmm.embed_tokens(rest[None])], 1).requires_grad_()
    found = lmm.causal_lm(inputs_embeds=embeddings, output_attentions=True, use_cache=False)
    return found.logits[0], found.attentions, slice(first, first + cells), first + image.shape[1]


def behind(one: Exploration) -> list[int]:
    "Words that see the picture: some of the prompt, the last ones, and the first, which is said from the picture's last cell."
    return [list(one.rows)[0], *list(one.rows)[2:4], *list(one.rows)[-3:]]


def ids_at(one: Exploration, rows: list[int], end: int) -> torch.Tensor:
    lmm = one.grounder.lmm
    after = len(one.answer.prompt_ids) - one.answer.prompt_ids[::-1].index(lmm.image_token)
    return torch.tensor([(one.answer.prompt_ids[after:] + one.answer.tokens)[row - end] for row in rows])


def close(found: torch.Tensor, expected: torch.Tensor, within: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() <= within * expected.abs().max())


def test_rollout_is_that_of_all_attentions(one):
    _, attentions, cells, end = plain(one)
    expected, product = [], np.eye(attentions[0].shape[-1])
    for layer in attentions:
        mixed = (layer.detach().double()[0].mean(0).numpy() + np.eye(len(product))) / 2
        assert not np.triu(mixed, 1).any()
        product = mixed / mixed.sum(1, keepdims=True) @ product
        expected.append(product)
    expected = torch.from_numpy(np.stack(expected))
    places = {"mean": lambda rows: rows.mean(1), "max": lambda rows: rows.amax(1), "last": lambda rows: rows[:, -1]}
    one.select(behind(one))
    rows = [end + one.rows[number] for number in behind(one)]
    for how, merge in places.items():
        one.choice.merge = how
        wanted = merge(expected[:, rows, cells])
        assert (one.rollouts().flatten(1) - wanted).abs().max() < 1e-5 and wanted.max() > 1e-3
        assert torch.equal(one.rollout(), one.rollouts()[-1])
    one.choice.merge = "mean"
    share = one.rollouts().flatten(1).sum(1)
    assert (share > 0).all() and (share <= 1).all()


def plain_relevancy(one: Exploration, rows: list[int]) -> torch.Tensor:  # (k, cells)
    "The method as it is written down: all attentions, all gradients, products of whole matrices."
    logits, attentions, cells, end = plain(one)
    said = [row - 1 for row in rows]
    target = logits[said].log_softmax(-1).gather(1, ids_at(one, rows, end)[:, None]).sum()
    whole = torch.eye(len(logits))
    for attention, slope in zip(attentions, torch.autograd.grad(target, attentions), strict=True):
        whole = whole + (slope * attention.detach())[0].clamp(min=0).mean(0) @ whole
    return (whole - torch.eye(len(logits)))[said, cells]


def test_relevancy_is_that_of_plain_autograd(one):
    end = len(one.turn()) - len(one.rows)
    for words in (behind(one), behind(one)[:1], behind(one)[-1:], behind(one)[1:3]):
        one.select(words)
        rows = plain_relevancy(one, [end + one.rows[number] for number in words])
        for how, wanted in (("mean", rows.mean(0)), ("max", rows.amax(0)), ("last", None)):
            one.choice.merge = how
            wanted = plain_relevancy(one, [end + one.rows[words[-1]]])[0] if wanted is None else wanted
            assert close(one.relevancy().flatten(), wanted) and wanted.max() > 0 and (one.relevancy() >= 0).all()
    one.choice.merge = "mean"


def test_words_are_read_in_portions(one, monkeypatch):
    one.select(behind(one))
    whole = one.relevancy()
    monkeypatch.setattr(relevancy, "WORDS", 2)
    one._remembered = (None, {})
    assert close(one.relevancy(), whole, 1e-5)


def test_nothing_is_left(one):
    lmm = one.grounder.lmm
    modules, kind = list(lmm.model.modules()), lmm.causal_lm.config._attn_implementation
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    before = lmm.encode_tokens(one.answer)[1]
    one.select(behind(one)[-2:])
    one._remembered = (None, {})
    one.relevancy(), one.rollout()
    assert not any(p.requires_grad or p.grad is not None for p in lmm.model.parameters())
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules] == hooks
    assert lmm.causal_lm.config._attn_implementation == kind and not lmm.model.training
    after = lmm.encode_tokens(one.answer)[1]
    assert torch.equal(before.attention, after.attention) and torch.equal(before.text, after.text)


def test_no_more_than_a_layer_is_held(one, monkeypatch):
    seen, attend = [], OpenAttention._attend

    def watched(self, *args, **kwargs):
        assert not any(weights() is not None for weights in seen), "a layer's attention outlives it"
        out = attend(self, *args, **kwargs)
        seen.append(weakref.ref(self.weights))
        return out

    monkeypatch.setattr(OpenAttention, "_attend", watched)
    one._remembered = (None, {})
    one.select(behind(one)[-2:])
    gc.collect()
    gc.disable()
    try:
        one.relevancy()
    finally:
        gc.enable()
    assert len(seen) == one.store.layers and not any(weights() is not None for weights in seen)


def test_an_error_leaves_nothing_either(one):
    lmm = one.grounder.lmm
    layer = lmm.causal_lm.model.layers[1]
    one.select(behind(one)[-1:])
    one._remembered = (None, {})
    for way in (one.relevancy, one.rollout):
        hook = layer.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            way()
        hook.remove()
        assert not any(module._forward_pre_hooks for module in lmm.causal_lm.modules()) and not torch.overrides._get_current_function_mode_stack()
    assert one.relevancy().any() and one.rollout().any()


# What is remembered


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Exploration:
    with pytest.MonkeyPatch.context() as patch:
        yield explored(tiny_deepseek(tmp_path_factory.mktemp("lmm"), patch))


def test_the_lmm_is_asked_once(tiny, monkeypatch):
    passes, towers = [], []
    monkeypatch.setattr(tiny.grounder.lmm, "see", lambda pixels, see=tiny.grounder.lmm.see: towers.append(0) or see(pixels))
    hook = tiny.grounder.lmm.causal_lm.model.register_forward_pre_hook(lambda *_: passes.append(0))
    tiny.ask(PICTURE, "What?", max_new_tokens=30)
    passes.clear(), towers.clear()
    words = list(tiny.rows)
    for which in ("a", "b"):
        tiny.select(words[-2:], which)
        assert tiny.rollout(which).any()
    assert len(passes) == len(towers) == 1 and torch.equal(tiny.rollout("a"), tiny.rollout("b"))
    tiny.select(words[:2], "b")
    assert not torch.equal(tiny.rollout("a"), tiny.rollout("b")) and len(passes) == 1
    for which in ("a", "b", "a", "b"):
        assert tiny.relevancy(which).any()
    assert len(passes) == 3 and len(towers) == 1 and not torch.equal(tiny.relevancy("a"), tiny.relevancy("b"))
    first = tiny.remembered_bytes
    for word in words:
        tiny.select([word])
        tiny.relevancy()
    assert len(words) > relevancy.KEPT and len(tiny._remembered[1]["relevancy"]) == relevancy.KEPT
    assert first < tiny.remembered_bytes < first + relevancy.KEPT * tiny.store.rows[0, 0].numel() * 4
    passes.clear()
    tiny.relevancy()
    assert not passes
    tiny.ask(PICTURE.rotate(90), "What?", max_new_tokens=4)
    assert tiny.remembered_bytes == 0 and not tiny.rollout().any() and not tiny.relevancy().any()  # nothing is chosen
    tiny.select(list(tiny.rows)[-1:])
    assert tiny.rollout().any() and len(towers) == 3
    hook.remove()


def test_settings_are_looked_at(tiny, monkeypatch):
    tiny.select(list(tiny.rows)[-2:])
    for way in (tiny.rollout, tiny.relevancy):
        tiny.choice.merge = "sum"
        with pytest.raises(SettingError, match="way to merge"):
            way()
        tiny.choice.merge = "mean"
    monkeypatch.setattr(tiny.grounder.lmm, "sharded", object())
    tiny._remembered = (None, {})
    with pytest.raises(SettingError, match="several processes share"):
        tiny.relevancy()


def test_ways_are_methods():
    assert all(callable(getattr(Exploration, name)) and "\n" not in said for name, said in relevancy.WAYS.items())


# Half precision, and weights elsewhere


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_says_about_the_same(tmp_path, monkeypatch, kind):
    "Also of a word of which the LMM is so certain that its gradients are too small for half precision."
    one = explored(tiny_deepseek(tmp_path, monkeypatch))
    model, head = one.grounder.lmm.model, one.grounder.lmm.causal_lm.get_output_embeddings()
    sure = plain(one)[0][-9:-1].softmax(-1).amax(-1).argmax() - 8  # counted from the end
    for larger, least in ((1, 1e-3), (40, 0)):
        one.select([list(one.rows)[sure]])
        one._remembered = (None, {})
        head.weight.data *= larger
        unsure = 1 - plain(one)[0][sure - 1].double().softmax(-1).max()
        exact = one.relevancy().flatten()
        model.to(getattr(torch, kind))
        one._remembered = (None, {})
        half = one.relevancy().flatten()
        model.float()
        assert (least < unsure < 1 if least else 0 < unsure < 1e-6) and half.dtype == torch.float32
        assert torch.corrcoef(torch.stack([half, exact]))[0, 1] > 0.99 and 0.5 < half.sum() / exact.sum() < 2


def test_weights_on_the_disk(tmp_path):
    whole, spread = FrozenLMM.load("toy_llava", device="cpu"), FrozenLMM.load("toy_llava", device_map={"": "cpu", "vision_tower": "disk", "language_model.model.layers.3": "disk"}, offload_folder=tmp_path)
    found = []
    for lmm in (whole, spread):
        one = explored(lmm)
        one.select(list(one.rows)[-3:])
        found.append((one.rollout(), one.relevancy()))
    assert all(close(there, here, 1e-6) for here, there in zip(*found, strict=True))
