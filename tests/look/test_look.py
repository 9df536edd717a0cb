"Figures: a thing keeps its colour under its mask, the mask is seen on any ground, and looking costs no torch."

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hglmm.look.gallery import Item, gallery
from hglmm.look.grounding import BADGE, badges, grounding
from hglmm.look.pictures import PALETTE, colors, contrast, overlay

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "settings.ini").is_file())
REAL = ROOT.parent / "shared/conformance/coco_sample"
FAR = 9  # pixels of the result from a mask's edge: beyond its line and rims


def drawn_scenes() -> list[tuple[Image.Image, np.ndarray]]:
    "Noise with a slope of light, as photographs have them, and masks of many sizes: nested, adjoining, overlapping."
    random = np.random.default_rng(0)
    scenes = []
    for count in (1, 5, 9):
        light = np.linspace(60, 220, 160)[None, :, None] + random.normal(0, 25, (120, 160, 3)) + random.uniform(-40, 40, 3)
        masks = np.zeros((count, 120, 160), bool)
        for mask in masks:
            left, top = random.integers(0, 110), random.integers(0, 80)
            mask[top : top + random.integers(25, 60), left : left + random.integers(25, 70)] = True
        scenes.append((Image.fromarray(light.clip(0, 255).astype(np.uint8)), masks))
    return scenes


def photographs() -> list[tuple[Image.Image, np.ndarray]]:
    if not REAL.is_dir():
        pytest.skip("no ../shared/conformance/coco_sample here")
    listed, found = json.loads((REAL / "panoptic_examples.json").read_text()), []
    names = {image["id"]: image["file_name"] for image in listed["images"]}
    for entry in listed["annotations"]:
        segments = np.asarray(Image.open(REAL / "panoptic_examples" / entry["file_name"]).convert("RGB")).astype(int) @ (1, 256, 65536)
        image = Image.open(REAL / "input_images" / names[entry["image_id"]]).convert("RGB")
        found.append((image, np.stack([segments == segment["id"] for segment in entry["segments_info"]])))
    return found


def inner(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # bool (n, H, W)
    "What lies in a mask and far from the edges of all masks."
    large = [np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST).filter(ImageFilter.BoxBlur(FAR))) for mask in masks]
    edge = np.any([(mask > 0) & (mask < 255) for mask in large], axis=0)
    edge[:FAR], edge[-FAR:], edge[:, :FAR], edge[:, -FAR:] = True, True, True, True
    return np.stack([(mask == 255) & ~edge for mask in large])


@pytest.mark.parametrize("scenes", [drawn_scenes, photographs], ids=["drawn", "photographs"])
def test_things_keep_their_colours(scenes):
    compared = 0
    for image, masks in scenes():
        plain, shown = (np.asarray(overlay(image, some), int) for some in (masks[:0], masks))
        for place in inner(masks, plain.shape[1::-1]):
            if place.sum() >= 50:
                assert np.abs(shown[place].mean(0) - plain[place].mean(0)).max() < 2  # of 255
                compared += 1
    assert compared >= 8


def test_what_lies_in_no_mask_fades():
    image, masks = drawn_scenes()[0]
    plain, shown = (np.asarray(overlay(image, some), float) for some in (masks[:0], masks))
    outside = inner(~masks, plain.shape[1::-1])[0]
    assert np.ptp(shown[outside], axis=1).mean() < 0.6 * np.ptp(plain[outside], axis=1).mean()  # greyer
    assert shown[outside].std() < 0.8 * plain[outside].std()


@pytest.mark.parametrize("ground", ["#000000", "#FFFFFF", "#7F7F7F", *PALETTE])
def test_a_line_is_seen_on_any_ground(ground):
    half = np.zeros((1, 60, 60), bool)
    half[0, :, :30] = True
    for color in colors(14):
        across = np.asarray(overlay(Image.new("RGB", (60, 60), ground), half, [color], fade=0, outline=3, side=60))[30] / 255
        assert max(contrast(pixel, ground) for pixel in across[20:40]) >= 3
        assert any(np.abs(255 * pixel - [int(color[i : i + 2], 16) for i in (1, 3, 5)]).max() < 3 for pixel in across[20:31])  # in its own colour


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 400), (640, 4), (3000, 2000)], ids=str)
def test_masks_of_a_pixel_of_everything_and_of_nothing(size):
    one, every, none = np.zeros((3, size[1], size[0]), bool)
    one[size[1] // 2, size[0] // 3], every[:] = True, True
    image = Image.new("RGB", size, "#336699")
    for masks in ([one], [every], [one, every, none]):
        shown = np.asarray(overlay(image, np.stack(masks), side=300), int)
        for color, mask in zip(colors(len(masks)), masks, strict=True):
            there = np.abs(shown - [int(color[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) < 40
            assert there.any() == mask.any() or min(shown.shape[:2]) < 12  # no room for a line
    assert grounding(image, ["a", "b", "c"], np.stack([one, every, none]))._repr_png_()


def test_small_things_and_thin_parts_are_not_hidden():
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 20:60, 20:100] = masks[0, 60:110, 40:42] = True  # a table and its leg
    masks[1, 100:103, 130:133] = True
    image = Image.new("RGB", (160, 120), "#123456")
    wall = ~masks[1:]  # with a hole where the small thing is: the rim of that hole does not lie on it
    shown = np.asarray(overlay(image, np.concatenate([masks, wall])))
    assert (shown[4 * 101, 4 * 131 : 4 * 132] == (0x12, 0x34, 0x56)).all()
    shown = np.asarray(overlay(image, masks))
    assert (shown[4 * 70 : 4 * 105, 4 * 40 + 3 : 4 * 42 - 3] == (0x12, 0x34, 0x56)).all()
    assert (shown[4 * 101, 4 * 131 : 4 * 132] == (0x12, 0x34, 0x56)).all()


def test_many_numbers_stand_apart():
    random = np.random.default_rng(1)
    masks = np.zeros((40, 90, 120), bool)
    for mask in masks:
        left, top = random.integers(0, 115), random.integers(0, 85)
        mask[top : top + random.integers(1, 40), left : left + random.integers(1, 40)] = True
    places = np.array([(badge.x, badge.y) for badge in badges(masks, 6, 4.5)])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(40)
    assert apart.min() > 1.9 * BADGE and places.min() > BADGE and (places < np.array((6, 4.5)) - BADGE).all()


def test_a_large_picture_costs_what_is_shown():
    "Twelve megapixels: bytes that numpy holds, in a figure and for a large result, drawn once. (Drawn twice as large as the picture it took 2.2 GB.)"
    image, masks = Image.new("RGB", (4000, 3000), "grey"), np.zeros((3, 3000, 4000), bool)
    for k in range(3):
        masks[k, 200 : 900 + 300 * k, 400 * k : 1500 * (k + 1)] = True
    for shown, most in ((lambda: overlay(image, masks), 60), (lambda: overlay(image, masks, side=1700), 120)):
        tracemalloc.start()
        shown()
        held = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert held < most


def test_lines_of_a_large_result_are_as_wide_as_asked():
    "Drawn once and not reduced, they look as those of a small one, but for the edges of single pixels."
    masks = np.zeros((1, 60, 80), bool)
    masks[0, 15:45, 20:60] = True
    large, small = (np.asarray(overlay(Image.new("RGB", (80, 60), "white"), masks, ["#0072B2"], outline=side / 100, side=side).resize((800, 600), Image.Resampling.BOX), int) for side in (2400, 1600))
    assert np.abs(large - small).mean() < 1.5 and (np.abs(large - small).max(-1) > 60).mean() < 0.01


def test_text_lies_on_the_figure_and_apart():
    image, masks = drawn_scenes()[1]
    phrase = "the person that stands to the left of the one who holds what looks like an umbrella in the rain of a late afternoon"
    figures = [grounding(image, [phrase] * 5, masks, title=phrase, width=width) for width in (3, 4.5, 6.4)]
    figures.append(gallery([Item(image, phrase * times, mask, mask, phrase) for times, mask in enumerate(masks, start=1)], phrase))
    for figure in figures:
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
        assert all(-1 <= box.x0 and box.x1 <= figure.bbox.width + 1 and -1 <= box.y0 and box.y1 <= figure.bbox.height + 1 for box in boxes)
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_looking_needs_no_torch():
    rooms = "gallery", "grounding", "curves", "tables", "pictures"
    code = f"import sys; import {', '.join(f'hglmm.look.{room}' for room in rooms)}; print(sorted(m for m in ('torch', 'transformers', 'IPython', 'matplotlib.pyplot') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
