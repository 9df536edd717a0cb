"""ReasonSeg's scores and files against slow and independent ways to say the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hglmm.datasets import layout
from hglmm.datasets.reasonseg import ReasonSeg, draw_polygon, draw_shapes
from hglmm.metrics import reasonseg


def case(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "A predicted mask, the truth and what to ignore, odd ones among them."
    shape = (1, *random.integers(1, 9, size=2))
    predicted, truth = (random.random(shape) < random.choice([0.1, 0.5, 0.9]) for _ in range(2))
    ignore = random.random(shape) < random.choice([0, 0, 0.3])
    kind = random.integers(8)
    if kind == 0:
        predicted[:] = False
    if kind in (0, 1) and random.random() < 0.5:
        truth[:] = False
    if kind == 2:
        ignore[:] = True
    if kind == 3:
        ignore = truth.copy()
    if kind == 4:
        predicted = truth.copy()
    return predicted, truth, ignore


def pixel_by_pixel(predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray) -> tuple[int, int]:
    "Intersection and union, as slowly as it can be written."
    shared = together = 0
    for y in range(truth.shape[1]):
        for x in range(truth.shape[2]):
            if not ignore[0, y, x]:
                shared += int(predicted[0, y, x] and truth[0, y, x])
                together += int(predicted[0, y, x] or truth[0, y, x])
    return shared, together


def test_scores_against_counting_pixel_by_pixel() -> None:
    random = np.random.default_rng(0)
    intersections, unions, total, each = [], [], [0, 0], []
    for _ in range(1000):
        masks = case(random)
        intersection, union = reasonseg.overlap(*masks)
        shared, together = pixel_by_pixel(*masks)
        assert (intersection.tolist(), union.tolist()) == ([shared], [together])
        intersections, unions = [*intersections, *intersection], [*unions, *union]
        total = [total[0] + shared, total[1] + together]
        each.append(1.0 if together == 0 else shared / (together + 1e-5))
    assert sum(u == 0 for u in unions) > 50 and sum(i == u > 0 for i, u in zip(intersections, unions, strict=True)) > 50
    found = reasonseg.scores(intersections, unions)
    assert abs(found["gIoU"] - 100 * sum(each) / 1000) < 1e-9 and abs(found["cIoU"] - 100 * total[0] / total[1]) < 1e-9


def inside(x: float, y: float, points: list[tuple[float, float]]) -> bool:
    "Does the outline wind around the point an odd number of times? By shooting a ray to the right."
    crossings = 0
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
            crossings += 1
    return crossings % 2 == 1


@pytest.mark.parametrize("seed", range(20))
def test_polygons_against_shooting_rays(seed: int) -> None:
    random = np.random.default_rng(seed)
    width, height = (int(v) for v in random.integers(20, 60, size=2))
    points = [tuple(p) for p in random.uniform(-10, 70, size=(int(random.integers(3, 9)), 2)).tolist()]
    whole = [(int(x), int(y)) for x, y in points]
    mask = draw_polygon(points, (width, height))
    truth = np.array([[inside(x, y, whole) for x in range(width)] for y in range(height)])
    edges = np.zeros_like(truth)
    for (ax, ay), (bx, by) in zip(whole, whole[1:] + whole[:1], strict=True):
        for t in np.linspace(0, 1, 400):
            x, y = ax + t * (bx - ax), ay + t * (by - ay)
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            edges[max(y0, 0) : max(y0 + 2, 0), max(x0, 0) : max(x0 + 2, 0)] = True
    assert (mask == truth)[~edges].all() and not (truth & ~mask).any()  # the outline may add pixels, never take one


@pytest.mark.parametrize("seed", range(10))
def test_shapes_are_drawn_from_large_to_small(seed: int) -> None:
    random = np.random.default_rng(seed)
    boxes = [sorted(random.integers(0, 30, 2).tolist()) + sorted(random.integers(0, 20, 2).tolist()) for _ in range(6)]
    labels = random.choice(["target", "ignore", "my IGNORE area", "flag", "Flag", "dog"], size=6).tolist()
    shapes = [{"label": k, "points": [[a, c], [b, c], [b, d], [a, d]]} for k, (a, b, c, d) in zip(labels, boxes, strict=True)]
    truth = np.zeros((20, 30), int)
    for y in range(20):
        for x in range(30):
            over = [((b - a + 1) * (d - c + 1), i) for i, (a, b, c, d) in enumerate(boxes) if a <= x <= b and c <= y <= d and labels[i].lower() != "flag"]
            if over:
                truth[y, x] = 255 if "ignore" in labels[min(over)[1]].lower() else 1
    assert (draw_shapes(shapes, (30, 20), "") == truth).all()


def write(folder: Path, name: str, content: dict, size: tuple[int, int] = (40, 30), exif: int = 1) -> None:
    tags = Image.Exif()
    tags[0x0112] = exif  # orientation
    Image.new("RGB", size, "white").save(folder / f"{name}.jpg", exif=tags)
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    triangle = {"label": "target", "points": [[2, 20], [25, 38], [2, 38]]}
    write(tmp_path, "a", {"text": ["what?"], "is_sentence": False, "shapes": [triangle]}, size=(40, 30), exif=6)
    sample = ReasonSeg(tmp_path)[0]
    assert sample.image.size == (30, 40) and sample.masks.shape == (1, 40, 30) and sample.masks[0, 38, 2:26].all() and sample.info["ignore"].shape == (40, 30)


def test_toycocos_questions_have_their_answer_in_the_picture(small_world: Path) -> None:
    everything = [layout.open_reasonseg(small_world, split) for split in ("train", "val", "test")]
    short, long = (layout.open_reasonseg(small_world, "val", queries=queries) for queries in ("short", "long"))
    assert len(short) + len(long) == len(everything[1]) and min(len(short), len(long)) > 0
    assert all(not s.info["long"] for s in short) and all(s.info["long"] for s in long)
    for sample in (sample for data in everything for sample in data):
        assert sample.masks.shape == (1, *sample.image.size[::-1]) and sample.masks.dtype == bool and 20 < sample.masks.sum() < sample.masks.size / 2
        assert sample.info["question"] == sample.phrases[0] and sample.info["ignore"].dtype == bool
    assert len({s.id for s in everything[0]}) == len(everything[0])
