"""toycoco's files are as untidy as the real ones, and say what they said: the same looks at both, where the real ones are at hand."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFORMANCE
from PIL import Image

from hglmm.datasets import layout, places
from hglmm.datasets.doctor import BENCHMARKS, Report, examine
from hglmm.datasets.download import CATALOGUE, lacking
from hglmm.datasets.grandf import find_labels, read_descriptions
from hglmm.datasets.reasonseg import ReasonSeg
from hglmm.metrics import gcg
from hglmm.toy import files, quirks, world

REAL = CONFORMANCE / "real"
COUNTS = {"train": 40, "val": 60, "test": 40}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Large enough for every quirk."
    return files.generate(tmp_path_factory.mktemp("data") / "world", counts=COUNTS)


@pytest.fixture(params=["toy", "real"])
def described(request: pytest.FixtureRequest, toy: Path) -> dict[str, Path]:
    "GranD-f's two files: ours, and a sample of the real ones."
    if request.param == "toy":
        return places.grandf_paths(toy, "val")
    if not REAL.is_dir():
        pytest.skip(f"no real annotation files at {REAL}")
    return {f"{kind}_json": REAL / f"val_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask")}


@pytest.fixture(params=["toy", "real"])
def asked(request: pytest.FixtureRequest, toy: Path) -> Path:
    "ReasonSeg's test."
    if request.param == "real" and not REAL.is_dir():
        pytest.skip(f"no real annotation files at {REAL}")
    return toy / files.QUESTIONS / "test" if request.param == "toy" else REAL / "reason_seg/test"


def test_ids_and_file_names_of_grandf(described: dict[str, Path]) -> None:
    content = {kind: json.loads(described[f"{kind}_json"].read_text()) for kind in ("caption", "mask")}
    kinds = {
        "sa": r"sa_\d+\.jpg", "psg": r"GranD-f/coco_2017/train2017/\d{12}\.jpg", "ref": r"GranD-f/coco_2014/train2014/COCO_train2014_\d{12}\.jpg",
    }  # fmt: skip
    for image in content["caption"]["images"]:
        kind, number = image["id"].split("_")
        assert re.fullmatch(kinds[kind], image["file_name"]), image
        assert {"sa": image["file_name"] == f"sa_{number}.jpg", "ref": image["file_name"].endswith(f"{number}.jpg")}.get(kind, not image["file_name"].endswith(f"{number}.jpg"))
    assert {image["id"].split("_")[0] for image in content["caption"]["images"]} == set(kinds) and content["mask"]["images"] == content["caption"]["images"]
    for annotations in (content["caption"]["annotations"], content["mask"]["annotations"]):
        assert [a["id"] for a in annotations] == list(range(len(annotations)))
        seen, order = list(dict.fromkeys(a["image_id"] for a in annotations)), [image["id"] for image in content["caption"]["images"]]
        assert seen != [i for i in order if i in seen]  # the annotations are not in the order of the pictures


def test_labels_and_captions_of_grandf(described: dict[str, Path]) -> None:
    every = read_descriptions(described["caption_json"], described["mask_json"])
    assert {len(d.captions) for d in every} >= {1, 2}
    labels = [(label, d.captions[0], place) for d in every for label, place in zip(d.labels, find_labels(d.captions[0], d.labels), strict=True)]
    stray = [place for label, _, place in labels if label != label.strip()]
    other_case = [label for label, caption, place in labels if place and caption[slice(*place)] != label.strip()]
    cut = [label for label, caption, place in labels if not place and label.strip().lower() in caption.lower()]
    other_words = [label for label, caption, place in labels if not place and label.strip().lower() not in caption.lower()]
    assert any(stray) and other_case and cut and other_words
    assert len(stray) + len(other_case) + len(cut) + len(other_words) < 0.4 * len(labels)  # most are as one would wish


def test_wordings_of_reasonsegs_test(asked: Path) -> None:
    once, every = ReasonSeg(asked), ReasonSeg(asked, paraphrases=True)
    for path in once.files:
        content = json.loads(path.read_text())
        assert list(content) == ["text", "is_sentence", "shapes"] and len(set(content["text"])) == len(content["text"]) in ((5, 6) if content["is_sentence"] else (1,))
    assert {long for _, _, _, long in once.questions} == {False, True} and len(every) == len(once) + once.unasked > len(once) == len(once.files)


def test_only_test_asks_in_several_wordings(toy: Path) -> None:
    for split in ("train", "val"):
        assert all(len(json.loads(path.read_text())["text"]) == 1 for path in (toy / files.QUESTIONS / split).glob("*.json"))


def test_every_benchmark_has_a_few_large_pictures(toy: Path) -> None:
    "What is where in them is what is where in the scene, each pixel so many times."
    opened = {
        "png": layout.open_png(toy, "val"), "gcg": layout.open_grandf(toy, "val"), "train": layout.open_png(toy, "train"),
        "res": layout.open_refcoco(toy, "refcoco", "train"), "reasonseg": layout.open_reasonseg(toy, "val"),
    }  # fmt: skip
    large = {name: [s for s in (data[i] for i in range(len(data))) if max(s.image.size) > world.SQUARE] for name, data in opened.items()}
    assert all(0 < len(samples) < 0.15 * len(opened[name]) for name, samples in large.items()), {name: len(samples) for name, samples in large.items()}
    for sample in (sample for samples in large.values() for sample in samples):
        times = max(sample.image.size) // world.SQUARE
        assert max(sample.image.size) == times * world.SQUARE <= 640 and sample.masks.shape[1:] == sample.image.size[::-1]
        small = sample.masks[:, times // 2 :: times, times // 2 :: times]
        agree = sample.masks == small.repeat(times, 1).repeat(times, 2)
        assert agree.mean() > 0.99 and small.any((1, 2)).all()  # outlines cut corners
    share = [quirks.draw_times(np.random.default_rng(k)) > 1 for k in range(2000)]
    assert 0.015 < np.mean(share) < 0.035


def test_a_large_picture_lies_the_same_in_every_folder(toy: Path) -> None:
    for image in json.loads((toy / "coco/annotations/panoptic_val2017.json").read_text())["images"]:
        size, number = (image["width"], image["height"]), image["id"]
        named = [toy / "coco/val2017" / image["file_name"], toy / f"coco/train2014/COCO_train2014_{number:012d}.jpg", toy / f"coco/annotations/panoptic_val2017/{number:012d}.png"]
        assert {Image.open(path).size for path in named} == {size}


def found(report: Report, part: str) -> tuple[str, str, str]:
    (one,) = [f for f in report.findings if f.part == part]
    return one.state, one.found, one.note


def test_the_doctor_says_what_is_there_and_is_not_alarmed(toy: Path, tmp_path: Path) -> None:
    report = examine(toy, samples=None)
    assert {f.state for f in report.findings} == {"ok"} and report.status(BENCHMARKS) == 0
    every = read_descriptions(**{kind: places.grandf_paths(toy, "val")[kind] for kind in ("caption_json", "mask_json")})
    several, apart = sum(len(d.captions) > 1 for d in every), sum(place is None for d in every for place in find_labels(d.captions[0], d.labels))
    assert found(report, "gcg val")[1] == f"60 descriptions, {several} pictures with several, {apart} phrases in other words than theirs" and min(several, apart) > 1
    assert found(report, "png val")[1] == "60 narratives, 1 of them without a phrase"
    once, every = (len(layout.open_reasonseg(toy, "test", paraphrases=all_)) for all_ in (False, True))
    assert found(report, "reasonseg test")[1] == f"{once} pictures with a question, {every} questions with paraphrases"
    assert found(report, "reasonseg val")[1].endswith(", 1 picture without a shape") and found(report, "reasonseg val")[2].startswith("in reason_seg")
    assert all(lacking(CATALOGUE[item], toy) == {} for item in ("grandf", "grandf_pictures", "reasonseg"))


def test_what_is_not_known_to_be_odd_is_odd(toy: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(toy, tmp_path / "world", ignore=shutil.ignore_patterns("coco", "GCG")))
    path = next(p for p in sorted((root / files.QUESTIONS / "val").glob("*.json")) if json.loads(p.read_text())["shapes"])
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "shapes": []}))
    assert found(examine(root, ["reasonseg"]), "reasonseg val")[0] == "odd" and "2 pictures without a shape" in found(examine(root, ["reasonseg"]), "reasonseg val")[2]
    path.write_text(whole)
    written = json.loads((root / "toycoco.json").read_text())
    for known in ({}, {"reasonseg test, pictures without a shape": 1}):
        (root / "toycoco.json").write_text(json.dumps({**written, "known": known}))
        assert found(examine(root, ["reasonseg"]), "reasonseg val")[0] == "odd"


def test_one_picture_of_val_is_without_a_mask(toy: Path) -> None:
    late = files.forgotten(0, COUNTS["val"])
    number = files.picture_id("val", late)
    png, described, asked = layout.open_png(toy, "val"), layout.open_grandf(toy, "val"), layout.open_reasonseg(toy, "val")
    assert number not in png.image_ids and png.skipped == 1 and len(png) == COUNTS["val"] - 1
    assert [i for i, d in enumerate(described.descriptions) if not d.masks] == [late] and described[late].masks.shape[0] == 0 and described[late].info["caption"]
    assert [s.info["image_id"] for s in asked if not s.masks.any()] == [f"{number:012d}"]
    assert all(files.forgotten(seed, files.SPLITS["val"]) is not None for seed in range(5))


def test_perfect_predictions_score_100(toy: Path) -> None:
    truth = places.grandf_paths(toy, "val")
    said = [
        {"image_id": d.image_id, "caption": d.captions[0], "phrases": list(d.labels), "pred_masks": list(d.masks)}
        for d in read_descriptions(truth["caption_json"], truth["mask_json"])
    ]  # fmt: skip
    same = gcg.scores(said, truth["mask_json"], truth["caption_json"], lambda a, b: np.array([[float(x == y) for y in b] for x in a]).reshape(len(a), len(b)), ("AP50", "mIoU", "Recall"))
    assert same == {"AP50": 100, "Recall": 100, "mIoU": pytest.approx(100 * 59 / 60)}  # nothing overlaps with nothing
