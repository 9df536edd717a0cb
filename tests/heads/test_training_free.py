"The head without training: what it draws, that it is a head like any other, and that nobody trains it."

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from hglmm import heads, inference, recipes
from hglmm.errors import CheckpointError, SettingError
from hglmm.geometry import Letterbox
from hglmm.heads import loading
from hglmm.heads.training_free import BINS, STEEPNESS, TrainingFreeHead, gaussian, ious, tally
from hglmm.runs import training_plan

TOY = recipes.replace("toy_llava", head="training_free")


@pytest.fixture
def head() -> TrainingFreeHead:
    chosen = TrainingFreeHead(TOY).choose([(1, 1), (3, 4)], spread=0.8).eval()
    chosen.line[:2] = torch.tensor([0.3, 16.0])
    return chosen


def test_there_and_back(head, tmp_path):
    closed = torch.zeros(16, 16, dtype=torch.bool)
    closed[0, :3] = True
    head.choose([(1, 1), (3, 4)], 0.8, closed)
    folder = loading.save_head(head, tmp_path / "head", heads=head.chosen)
    again = heads.load_head(folder)
    assert type(again) is TrainingFreeHead and again.chosen == [(1, 1), (3, 4)] and again.recipe == TOY
    assert json.loads((folder / "config.json").read_text())["heads"] == [[1, 1], [3, 4]]
    attention = torch.rand(3, 20, 16, 16)
    assert torch.equal(again(attention), head(attention)) and again.open_cells.sum() == 16 * 16 - 3 and again.line.tolist() == pytest.approx([0.3, 16, 0.8])
    bare = loading.load_head(folder / "model.safetensors")  # says neither its kind nor its recipe
    assert type(bare) is TrainingFreeHead and bare.recipe.name == "toy_llava" and torch.equal(bare(attention), head(attention))
    with pytest.raises(CheckpointError, match="training_free"):
        loading.load_head(folder, recipes.replace("toy_llava", head="unet"))
    with pytest.raises(CheckpointError, match="does not fit|made for recipe"):
        loading.load_head(folder, "deepseek_vl_1_3b")


def test_a_map_counts_by_where_not_by_how_much(head):
    attention = torch.rand(2, 20, 16, 16)
    faint = attention.clone()
    faint[:, 6] *= 1e-5  # (1, 1)
    assert torch.allclose(head(faint), head(attention), atol=1e-4)
    other = attention.clone()
    other[:, [c for c in range(20) if c not in (6, 19)]] = 7.0
    assert torch.equal(head(other), head(attention))
    assert torch.equal(head(attention.half().float()), head(attention.half()))  # kept in half precision, reckoned in single
    assert head(torch.zeros(1, 20, 16, 16)).eq(-0.3 * 16).all()  # nothing is seen: no mask, no NaN


def test_the_view_by_hand(head):
    "Each map smoothed, by its maximum, averaged: written once more, plainly."
    attention = torch.rand(1, 20, 16, 16)
    weights = np.exp(-0.5 * (np.subtract.outer(np.arange(16), np.arange(16)) / 0.8) ** 2)
    weights /= weights.sum(1, keepdims=True)
    smooth = [weights @ attention[0, c].numpy() @ weights.T for c in (6, 19)]
    expected = sum(one / one.max() for one in smooth) / 2
    assert np.allclose(head.view(attention)[0], expected, atol=1e-5)
    assert np.allclose(head(attention)[0], 16 * (expected - 0.3), atol=1e-4)
    assert np.allclose(gaussian(16, 0.8), weights, atol=1e-6)


def test_closed_cells_say_nothing(head):
    attention, closed = torch.rand(1, 20, 16, 16), torch.zeros(16, 16, dtype=torch.bool)
    closed[2, 3] = True
    head.choose([(1, 1)], closed=closed)
    without = head(attention)
    attention[:, :, 2, 3] = 100.0
    assert torch.equal(head(attention), without) and not torch.equal(head.choose([(1, 1)])(attention), without)


def test_pictures_of_any_number_of_phrases(head):
    pictures = [SimpleNamespace(attention=torch.rand(n, 20, 16, 16), letterbox=Letterbox.fit(200, 100, 128)) for n in (3, 0, 2)]
    for one, logits in zip(pictures, head(pictures), strict=True):
        assert logits.shape == (len(one.attention), 16, 16) and torch.equal(logits, head(one.attention))
    assert [tuple(one.logits.shape) for one in head.draw(pictures)] == [(3, 64, 128), (0, 64, 128), (2, 64, 128)]


def test_the_line_is_the_best_there_is(head):
    torch.manual_seed(0)
    views, boxes = torch.rand(12, 16, 16), [Letterbox.fit(96, 128, 128)] * 12
    masks = [(box.crop(view) + 0.3 * torch.randn(128, 96)) > 0.62 for view, box in zip(views, boxes, strict=True)]
    inside, outside = tally(views, boxes, masks)
    assert inside.sum() == sum(int(mask.sum()) for mask in masks) and (inside + outside).sum() == 12 * 96 * 128
    found = head.draw_line(inside, outside)

    def mean_iou(line: float) -> float:
        drawn = [box.crop(view) >= line for view, box in zip(views, boxes, strict=True)]
        return float(np.mean([(one & mask).sum() / (one | mask).sum() for one, mask in zip(drawn, masks, strict=True)]))

    assert found == pytest.approx(max(mean_iou(k / BINS) for k in range(BINS)), abs=1e-3) and mean_iou(float(head.line[0])) == pytest.approx(found, abs=1e-3)
    values, truth = (torch.cat(parts) for parts in zip(*((box.crop(view).flatten(), mask.flatten()) for view, box, mask in zip(views, boxes, masks, strict=True)), strict=True))
    losses = {s: float(binary_cross_entropy_with_logits(s * (values - head.line[0]), truth.float())) for s in STEEPNESS}
    assert float(head.line[1]) == min(losses, key=losses.get) not in (STEEPNESS[0], STEEPNESS[-1])
    assert torch.allclose(ious(inside, outside).mean(0)[[20, 50, 70]], torch.tensor([mean_iou(k) for k in (0.2, 0.5, 0.7)]), atol=2e-3)


def test_it_is_drawn_as_evaluation_draws(head):
    "A threshold of a half is the line."
    box = Letterbox.fit(128, 128, 128)
    one = SimpleNamespace(attention=torch.rand(2, 20, 16, 16), levels=torch.zeros(1), letterbox=box)
    (likely,) = inference.probabilities(head, [one])
    assert likely.shape == (2, 128, 128) and ((likely > 0.5) == (box.crop(head.view(one.attention)) > 0.3).numpy()).mean() > 0.999


def test_nobody_trains_it():
    with pytest.raises(SettingError, match="nothing to train.*choose one of hg, unet, unet_sam"):
        heads.begin(TOY)
    assert training_plan.allowed()["head"] == [kind for kind in heads.HEADS if kind != "training_free"]
    with pytest.raises(SettingError, match="'training_free'"):
        training_plan.asked({"head": "training_free"})
