"""The loaders on real COCO annotations, where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from hglmm import Grounder, evaluation
from hglmm.datasets.panoptic import Panoptic
from hglmm.datasets.png import PNG
from hglmm.errors import DataError

COCO = Path(__file__).parents[2] / "shared" / "conformance" / "coco_sample"
needs_coco = pytest.mark.skipif(not COCO.exists(), reason="needs ../shared/conformance")


@pytest.fixture
def png() -> PNG:
    return PNG(COCO / "png_coco_sample.json", COCO / "panoptic_examples.json", COCO / "panoptic_examples", COCO / "input_images")


@needs_coco
def test_panoptic_areas_equal_the_files() -> None:
    panoptic = Panoptic(COCO / "panoptic_examples.json", COCO / "panoptic_examples")
    assert len(panoptic) == 2
    for image_id in (142238, 439180):
        segments = panoptic.segments(image_id)
        masks = panoptic.masks(image_id, [[i] for i in segments])
        assert masks.sum((1, 2)).tolist() == [s.area for s in segments.values()]
        assert masks.sum(0).max() == 1


@needs_coco
def test_panoptic_categories_are_cocos() -> None:
    listed = json.loads((COCO / "panoptic_coco_categories.json").read_text())
    panoptic = Panoptic(COCO / "panoptic_examples.json", COCO / "panoptic_examples")
    assert panoptic.categories == {c["id"]: (c["name"], bool(c["isthing"])) for c in listed}


@needs_coco
def test_narrative_is_read_and_the_ungrounded_one_skipped(png: PNG) -> None:
    assert len(png) == 1 and png.skipped == 1
    sample = png[0]
    narrative = json.loads((COCO / "png_coco_sample.json").read_text())[0]
    assert "".join(text for text, _ in sample.pieces) == narrative["caption"]
    assert sample.phrases == ["horses", "the grass", "two trucks", "a gravel path", "many trees", "the sky."]
    assert sample.info["plural"] == [True, False, True, False, False, False]
    assert sample.info["isthing"] == [True, False, True, False, False, False]
    assert sample.info["file_name"] == "000000439180.jpg" and sample.image.size == (640, 360)


@needs_coco
def test_phrase_masks_are_unions_of_their_segments(png: PNG) -> None:
    sample, segments = png[0], png.panoptic.segments(439180)
    grounded = [s["segment_ids"] for s in json.loads((COCO / "png_coco_sample.json").read_text())[0]["segments"] if s["segment_ids"]]
    assert sample.masks.shape == (6, 360, 640) and sample.masks.dtype == bool
    assert sample.masks.sum((1, 2)).tolist() == [sum(segments[int(i)].area for i in ids) for ids in grounded]
    assert np.all(sample.masks.sum(0) <= 1)


@needs_coco
def test_a_segment_of_another_picture_is_named(tmp_path: Path) -> None:
    narratives = json.loads((COCO / "png_coco_sample.json").read_text())
    narratives[0]["segments"][1]["segment_ids"] = ["16757838"]  # the ball of 142238
    (tmp_path / "png.json").write_text(json.dumps(narratives))
    png = PNG(tmp_path / "png.json", COCO / "panoptic_examples.json", COCO / "panoptic_examples", COCO / "input_images")
    with pytest.raises(DataError, match=r"png\.json.*panoptic_examples\.json: image 439180: no segment 16757838"):
        png[0]


@needs_coco
def test_a_real_narrative_goes_through_the_toy_model(png: PNG) -> None:
    grounder, sample = Grounder.load("toy_llava"), png[0]
    features = grounder.lmm.encode([sample])[0]
    assert len(features.attention) == 6 and features.attention.isfinite().all()
    masks = evaluation.predict(grounder.lmm, grounder.head, [sample])[0]
    assert masks.shape == sample.masks.shape
    table = {name: np.array([row[name] for row in evaluation.rows_of(sample, masks)]) for name in ("iou", "isthing", "plural", "correct", "picture")}
    scores, intervals = evaluation.png_scores(table)
    assert 0 <= scores["all"] <= 100 and set(intervals) == set(scores)
