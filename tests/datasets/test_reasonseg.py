"""ReasonSeg's scores and files against slow and independent ways to say the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_data import Tiny

from hglmm.datasets import layout
from hglmm.datasets.reasonseg import ReasonSeg, draw_polygon, draw_shapes
from hglmm.errors import DataError
from hglmm.metrics import reasonseg

CASES = Path(__file__).parents[3] / "shared" / "cases"
REAL = Path(__file__).parents[3] / "shared" / "conformance" / "real" / "reason_seg"


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


# --- one question a picture, or all its wordings ---


def test_one_wording_is_asked_or_all(tmp_path: Path) -> None:
    tiny = Tiny("reasonseg", tmp_path)
    tiny.files["2.json"] |= {"text": [" ", "the second", "the third"]}
    tiny.files["3.json"] |= {"text": []}
    for name in ("2.json", "3.json"):
        tiny.write(name, tiny.files[name])
    one, every = tiny.open(), tiny.open(paraphrases=True)
    assert one.ids == ["1/0", "2/1"] and every.ids == ["1/0", "1/1", "2/1", "2/2"] and (one.unasked, every.unasked) == (2, 0)
    assert [s.info["question"] for s in one] == ["what holds the tea of 1?", "the second"] and one.skipped == every.skipped == 2
    assert one.notes == every.notes == {"blank questions": 1, "pictures without a question": 1}
    for queries, ids in [("short", ["2/1"]), ("long", ["1/0"])]:
        assert ReasonSeg(tmp_path, queries).ids == ids and len(ReasonSeg(tmp_path, queries, paraphrases=True)) == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/conformance/real")
def test_real_questions_and_masks() -> None:
    test, val = ReasonSeg(REAL / "test"), ReasonSeg(REAL / "val")
    assert (len(test), test.unasked, len(ReasonSeg(REAL / "test", paraphrases=True)), test.notes, test.skipped) == (3, 10, 13, {}, 0) and len(val) == len(ReasonSeg(REAL / "val", paraphrases=True)) == 2
    assert [s.info["question"] for s in test] == [
        "the equipment that can assist disabled individuals in mobility", "It is too hard for the man to lift up, can you segment something that he should drop?",
        "If someone in the picture wanted to enjoy a drink without having to pour it themselves, what object could they use to easily take small sips at a time?",
    ]  # fmt: skip
    assert [s.info["long"] for s in test] == [False, True, True] and len(ReasonSeg(REAL / "test", "long")) == 2
    assert ReasonSeg(REAL / "test", "long", paraphrases=True)[11].info["question"].startswith("If someone needs to drink a beverage")
    assert [int(s.masks.sum()) for s in (*test, *val)] == [2_507_476, 219_669, 1_739_584, 1_699, 48_579] and val[0].info["ignore"].sum() == 3_998
    for sample, path in zip((*test, *val), (*test.files, *val.files), strict=True):  # and by COCO's own way to fill a polygon, which leaves the outline out
        width, height = sample.image.size
        shapes = json.loads(path.read_text())["shapes"]
        polygons = [np.ravel(s["points"]).tolist() for s in shapes if s["label"] == "target"]
        filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool) & ~sample.info["ignore"]
        assert (filled & sample.masks[0]).sum() / (filled | sample.masks[0]).sum() > (0.85 if path.stem.startswith("206674234") else 0.97)


# --- files as they come ---


@pytest.mark.parametrize(("encoding", "text"), [("gbk", "哪个可以坐？"), ("gbk", "the cup 杯子 here"), ("shift_jis", "どのコップ？"), ("cp1251", "что можно пить?"), ("big5", "哪個可以坐？"), ("euc_kr", "무엇을 마실까"), ("koi8_r", "что можно пить?"), ("mac_roman", "the café’s cup")])
def test_text_of_no_known_encoding_is_refused(encoding: str, text: str, tmp_path: Path) -> None:
    tiny = Tiny("reasonseg", tmp_path)
    (tmp_path / "2.json").write_bytes(json.dumps({**tiny.files["2.json"], "text": [text]}, ensure_ascii=False).encode(encoding))
    with pytest.raises(DataError, match=r"2\.json: (text|its text) .*neither UTF-8 nor cp1252.* Save the file as UTF-8|2\.json: its text is neither UTF-8 nor cp1252.*save it as UTF-8"):
        tiny.open()


@pytest.mark.parametrize("text", ["the man’s “red” cup – left…", "the café’s naïve façade", "20°C or 5€?", "déjà vu", "¿Qué es?", "plain"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16"])
def test_text_of_the_real_encodings_is_right(encoding: str, text: str, tmp_path: Path) -> None:
    tiny = Tiny("reasonseg", tmp_path)
    (tmp_path / "2.json").write_bytes(json.dumps({**tiny.files["2.json"], "text": [text]}, ensure_ascii=False).encode(encoding))
    assert tiny.open()[1].info["question"] == text and tiny.open().notes == {}


def test_what_else_lies_in_the_folder(tmp_path: Path) -> None:
    tiny = Tiny("reasonseg", tmp_path)
    whole = [s.masks.tolist() for s in tiny.open()]
    for name in ("._1.json", "._1.png", ".DS_Store", "Thumbs.db", "1.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "3.json").rename(tmp_path / "3.JSON")
    (tmp_path / "2.png").rename(tmp_path / "2.PNG")
    assert [s.masks.tolist() for s in tiny.open()] == whole and tiny.open().notes == {} and tiny.open().skipped == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "1.jpg")  # beside 1.png: the field's ending is .jpg
    assert tiny.open()[0].info["file_name"] == "1.jpg"
    (tmp_path / "4.json").mkdir()
    with pytest.raises(DataError, match=r"4\.json: a folder"):
        tiny.open()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_cases() -> None:
    with pytest.raises(DataError, match=r"a\.json: text .* neither UTF-8 nor cp1252"):
        ReasonSeg(CASES / "reasonseg_gbk/reason_seg/val")
    folder = CASES / "json_bom/reason_seg/val"
    assert [s.info["question"] for s in ReasonSeg(folder)] == json.loads((folder / "a.json").read_text(encoding="utf-8-sig"))["text"][:1]
    shapeless = ReasonSeg(CASES / "reasonseg_noshapes/reason_seg/test")
    assert shapeless.ids == ["a/0", "b/0"] and shapeless.notes == {"pictures without a shape": 1} and not shapeless[0].masks.any()
    assert ReasonSeg(CASES / "reasonseg_noshapes/reason_seg/test", paraphrases=True).notes == {"pictures without a shape": 1}


@pytest.mark.parametrize(("shapes", "note"), [
    ([], "pictures without a shape"),
    ([{"label": "flag", "points": [[1, 1], [9, 1], [9, 9]]}], "pictures without a shape"),
    ([{"label": "target", "shape_type": "point", "points": [[1, 1]]}, {"label": "target", "points": [[1, 1], [2, 2]]}], "pictures without a shape"),
    ([{"label": "ignore", "points": [[1, 1], [9, 1], [9, 9]]}], "pictures whose shapes are all to be ignored"),
    ([{"label": "ignore", "points": [[1, 1], [9, 1], [9, 9]]}, {"label": "target", "points": [[1, 1], [19, 1], [19, 19]]}], None),
])  # fmt: skip
def test_a_picture_without_an_answer_is_counted(shapes: list[dict], note: str | None, tmp_path: Path) -> None:
    tiny = Tiny("reasonseg", tmp_path)
    tiny.write("2.json", {**tiny.files["2.json"], "shapes": shapes})
    assert tiny.open().notes == ({note: 1} if note else {}) and tiny.open()[1].masks.any() == (note is None)
