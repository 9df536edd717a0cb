"""The head's own gradients against torch's: same logits to the bit, same gradients to 1e-5, for the whole head and for what could go wrong in a part."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hglmm import heads, recipes
from hglmm.heads import convolutions
from hglmm.losses import mask_loss

COUNTS = (3, 0, 1, 2)  # phrases of each picture


def made_up(recipe: recipes.Recipe, n: int) -> SimpleNamespace:
    "Random features of the right shapes."
    g = recipe.grid
    return SimpleNamespace(
        attention=torch.randn(n, recipe.channels, g * g).softmax(-1).unflatten(2, (g, g)), text=torch.randn(n, recipe.layers, recipe.width),
        levels=torch.randn(8, g * g, recipe.width), pixels=torch.randn(3, recipe.image_size, recipe.image_size),
    )  # fmt: skip


def step(head, features, masks) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    "Logits of a training step, and every gradient."
    torch.manual_seed(1)  # of the dropout
    head.zero_grad(set_to_none=True)
    drawn = head.draw(features)
    sum(mask_loss(one.logits, mask)["loss"] for one, mask in zip(drawn, masks, strict=True)).backward()
    return torch.cat([one.logits.detach().flatten() for one in drawn]), {name: p.grad for name, p in head.named_parameters()}


def joined(gradients) -> torch.Tensor:
    return torch.cat([one.flatten() for one in gradients.values()])


@pytest.fixture(scope="module")
def training():
    torch.manual_seed(0)
    recipe = recipes.get("toy_llava")
    head = heads.build(recipe).train()
    features = [made_up(recipe, n) for n in COUNTS]
    masks = [F.interpolate(torch.randn(max(n, 1), 1, 8, 8), size=(90, 90), mode="bilinear")[:n, 0] > 0 for n in COUNTS]
    return head, features, masks


def test_a_step_is_torchs_own_but_for_rounding(training, monkeypatch):
    "Each parameter's gradient; of one that is small (a bias before a BatchNorm has none but rounding) by a tenth of the size of all."
    logits, ours = step(*training)
    monkeypatch.setattr(convolutions, "by_products", lambda maps: False)
    own_logits, own = step(*training)
    assert torch.equal(logits, own_logits) and (joined(ours) - joined(own)).norm() <= 1e-5 * joined(own).norm()
    apart = {name: float((ours[name] - one).norm() / max(one.norm(), 0.1 * joined(own).norm())) for name, one in own.items()}
    assert max(apart.values()) <= 1e-5, apart


def nodes(result: torch.Tensor) -> set[str]:
    "Names of everything a result was computed by."
    seen, todo = set(), [result.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [other for other, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


def test_it_is_used_on_a_cpu_in_32_bits_and_nowhere_else(training):
    head, features, _ = training
    ours = {"DoubledBackward", "ByProductsBackward"}
    assert ours <= nodes(head(features)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not ours & nodes(head(features)[0])
        assert not ours & nodes(convolutions.doubled(torch.zeros(1, 2, 80, 80, requires_grad=True), convolutions.Convolution(2, 2)))
    assert not ours & nodes(heads.build(head.recipe).double()(features)[0])
    with torch.no_grad():
        assert head(features)[0].grad_fn is None


@pytest.mark.parametrize(("shape", "out"), [((1, 5, 12, 12), 7), ((3, 64, 24, 24), 64), ((1, 16, 81, 81), 8), ((2, 3, 66, 66), 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_layer_are_exact(shape, out, layout, monkeypatch):
    "Any number of channels, maps smaller and larger than a block, both layouts."
    torch.manual_seed(0)
    monkeypatch.setattr(convolutions, "LARGE", 1)
    convolution = convolutions.Convolution(shape[1], out)
    maps = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    for layer in (lambda m, c: c(m), convolutions.doubled):
        result = layer(maps, convolution)
        slopes = torch.randn(result.shape)
        found = torch.autograd.grad(result, (maps, convolution.weight, convolution.bias), slopes)
        exactly = [one.detach().double().requires_grad_() for one in (maps, convolution.weight, convolution.bias)]
        seen = exactly[0] if layer is not convolutions.doubled else convolutions.resize(exactly[0], 2 * shape[-1])
        exact = torch.autograd.grad(F.conv2d(seen, *exactly[1:], padding=1), exactly, slopes.double())
        assert max(float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)) < 2e-6
        assert all(one.shape == other.shape for one, other in zip(found, exact, strict=True))


def test_a_second_derivative_is_refused():
    maps, convolution = torch.randn(1, 2, 8, 8, requires_grad=True), convolutions.Convolution(2, 2)
    slope = torch.autograd.grad(convolutions.doubled(maps, convolution).square().sum(), maps, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
