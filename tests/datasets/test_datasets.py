"""The loaders on real annotations, where they are at hand, and on tiny ones with every oddity that files have."""

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_data
from PIL import Image
from tiny_data import Tiny, packed, plain, read_all

from hglmm import Grounder, inference
from hglmm.datasets import files, refcoco
from hglmm.datasets.core import Subset
from hglmm.datasets.grandf import GranDf
from hglmm.datasets.panoptic import Panoptic
from hglmm.datasets.png import PNG
from hglmm.errors import DataError
from hglmm.runs import evaluation
from hglmm.runs.scores import png_scores

CASES = Path(__file__).parents[3] / "shared" / "cases"
REAL = Path(__file__).parents[3] / "shared" / "conformance" / "real"
COCO = Path(__file__).parents[3] / "shared" / "conformance" / "coco_sample"
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
    masks = inference.predict(grounder.lmm, grounder.head, [sample])[0]
    assert masks.shape == sample.masks.shape
    table = {name: np.array([row[name] for row in evaluation.rows_of(sample, masks)]) for name in ("iou", "isthing", "plural", "correct", "picture")}
    scores, intervals = png_scores(table)
    assert 0 <= scores["all"] <= 100 and set(intervals) == set(scores)


# --- referring expressions: three protocols, and the draw of training ---


def by_hand(tiny: Tiny, protocol: str) -> list[tuple[str, list[str], list[int]]]:
    "Id, sentences and refs of every sample, written as METHOD says it."
    refs, found = tiny.files["refs(unc).p"], []
    if protocol == "standard":
        return [(f"{r['image_id']}/{r['ref_id']}/{k}", [s["sent"]], [r["ref_id"]]) for r in refs for k, s in enumerate(r["sentences"])]
    order = list(dict.fromkeys(r["ann_id"] for r in refs))  # in the order of the first ref, with what the last one says
    last = {ann: [r for r in refs if r["ann_id"] == ann][-1] for ann in order}
    if protocol == "split":
        return [(f"{r['image_id']}/{ann}", [r["sentences"][0]["raw"].lower()], [r["ref_id"]]) for ann, r in last.items()]
    for image in dict.fromkeys(last[ann]["image_id"] for ann in order):
        here = [last[ann] for ann in order if last[ann]["image_id"] == image]
        found.append((str(image), [r["sentences"][0]["raw"].lower() for r in here], [r["ref_id"] for r in here]))
    return found


@pytest.mark.parametrize("protocol", ["hg", "standard", "split"])
def test_protocols_of_referring_expressions(protocol: str, tmp_path: Path) -> None:
    tiny = Tiny("res", tmp_path)
    tiny.files["refs(unc).p"][3]["sentences"][0] |= {"raw": "The BIG cup!", "sent": "big cup"}
    tiny.write("refs(unc).p", tiny.files["refs(unc).p"])
    data = tiny.open(protocol=protocol)
    expected = by_hand(tiny, protocol)
    assert [(s.id, s.phrases, s.info["ref_id"]) for s in read_all(data)] == expected and data.ids == [i for i, _, _ in expected]
    texts = [text for _, phrases, _ in expected for text in phrases]
    assert ("an old ref" in texts) == ("big cup" in texts) == (protocol == "standard") and ("the big cup!" in texts) == (protocol != "standard")
    assert data.skipped == (0 if protocol == "standard" else 1)
    for sample in read_all(data):
        said = {s["sent_id"]: s for r in tiny.files["refs(unc).p"] for s in r["sentences"]}
        asked = [said[i]["sent" if protocol == "standard" else "raw"] for i in sample.info["sent_id"]]
        assert [a.lower() for a in asked] == sample.phrases and [a // 10 for a in sample.info["ann_id"]] == [sample.info["image_id"]] * len(sample.masks)


def test_a_draw_takes_the_same_sentences_whatever_the_protocol(tmp_path: Path) -> None:
    tiny = Tiny("res", tmp_path)
    refs = tiny.files["refs(unc).p"]
    order = list(dict.fromkeys(r["ann_id"] for r in refs))
    last = {ann: [r for r in refs if r["ann_id"] == ann][-1] for ann in order}
    for epoch in range(20):
        random = np.random.default_rng([7, epoch])
        expected: dict[int, list[str]] = {}
        for ann in order:
            sentences = last[ann]["sentences"]
            expected.setdefault(ann // 10, []).append(sentences[int(random.integers(len(sentences)))]["raw"].lower())
        for protocol in ("hg", "standard", "split"):
            drawn = tiny.open(protocol=protocol).draw(epoch, 7)
            assert [s.phrases for s in read_all(drawn)] == list(expected.values()) and drawn.ids == ["1", "2", "3"]


def test_sentences_that_cannot_be_asked(tmp_path: Path) -> None:
    tiny = Tiny("res", tmp_path)
    refs = copy.deepcopy(tiny.files["refs(unc).p"])
    refs[3]["sentences"] = [{"raw": "?", "sent": " ", "sent_id": 30}, {"raw": "cup", "sent": "cup", "sent_id": 31}]
    refs[4]["sentences"] = [{"raw": " ", "sent": "", "sent_id": 40}]
    tiny.write("refs(unc).p", refs)
    standard, hg = tiny.open(protocol="standard"), tiny.open()
    assert "2/3/0" not in standard.ids and "2/3/1" in standard.ids and standard.notes == {"refs without a sentence": 1, "blank sentences": 1}
    assert hg.ids == ["1", "2"] and hg[1].phrases == ["?"] and hg.notes == {"refs without a sentence": 1}
    del refs[3]["sentences"][1]["sent"]
    tiny.write("refs(unc).p", refs)
    assert tiny.open()[1].phrases == ["?"]  # nobody needs it there
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: ref 3, 'cup': no field `sent`"):
        tiny.open(protocol="standard")


def test_splits_share_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny("res", tmp_path)
    refs = copy.deepcopy(tiny.files["refs(unc).p"])
    refs[3]["split"] = "testA"
    tiny.write("refs(unc).p", refs)
    reads = []
    monkeypatch.setattr(refcoco, "read_json", lambda path, *fields: reads.append(path) or files.read_json(path, *fields))
    shared = refcoco.read_files(tmp_path / "instances.json", tmp_path / "refs(unc).p")
    opened = [refcoco.RefCOCO.from_files(shared, tmp_path, split, protocol) for split in ("val", "testA") for protocol in refcoco.PROTOCOLS]
    assert len(reads) == 1 and [len(d) for d in opened] == [2, 6, 3, 1, 1, 1] and opened[3][0].id == "2"


# --- masks, however they are written ---


@pytest.mark.parametrize("kind", ["packed", "plain", "list of packed", "list of plain", "bytes of text", "two halves"])
def test_run_lengths_in_every_form(kind: str, tmp_path: Path) -> None:
    tiny = Tiny("gcg", tmp_path)
    left, top, right, bottom = tiny_data.BOXES[1][0]
    box, halves = (left, top, right, bottom), [(left, top, 9, bottom), (7, top, right, bottom)]
    form = {"packed": packed(box), "plain": plain(box), "list of packed": [packed(box)], "list of plain": [plain(box)], "bytes of text": dict(packed(box)), "two halves": [packed(halves[0]), plain(halves[1])]}[kind]
    masks = copy.deepcopy(tiny.files["mask.json"])
    masks["annotations"][0]["segmentation"] = form
    tiny.write("mask.json", masks)
    assert (tiny.open()[0].masks[0] == tiny_data.mask_of(box).astype(bool)).all()
    for wrong in ([packed(box), {"size": [30, 40], "counts": [7]}], [packed(box), None], [[[3, 4], [15, 4], [15, 14]]], [3, 4, 15, 4, 15, 14], [[3, 4, 15, 4, 15, None]], [[3, 4, 15, 4, 15, "14"]], "text", {"size": [30, 40]}):
        masks["annotations"][0]["segmentation"] = wrong
        tiny.write("mask.json", masks)
        with pytest.raises(DataError, match=r"mask\.json: image 'sa_1', mask 0: no usable mask"):
            tiny.open()[0]


def test_what_has_no_pixel_is_counted(tmp_path: Path) -> None:
    tiny = Tiny("res", tmp_path / "res")
    instances = copy.deepcopy(tiny.files["instances.json"])
    instances["annotations"][0]["segmentation"] = [[100, 5, 120, 5, 120, 20, 100, 20]]
    instances["annotations"][2]["segmentation"] = {"size": [30, 40], "counts": [1200]}
    instances["annotations"][3]["segmentation"] = [[5, 5.1, 20, 5.1, 20, 5.2, 5, 5.2]]  # between two rows of pixels
    tiny.write("instances.json", instances)
    assert tiny.open().notes == tiny.open(protocol="standard").notes == {"objects without a visible pixel": 3} and not tiny.open()[0].masks[0].any()
    tiny = Tiny("gcg", tmp_path / "gcg")
    masks = copy.deepcopy(tiny.files["mask.json"])
    masks["annotations"][1]["segmentation"] = {"size": [30, 40], "counts": [1200]}
    tiny.write("mask.json", masks)
    assert tiny.open().notes == {"masks without a visible pixel": 1}


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_case_empty_truth() -> None:
    coco = CASES / "empty_truth" / "coco"
    data = refcoco.RefCOCO(coco / "refcoco/instances.json", coco / "refcoco/refs(unc).p", coco / "train2014", "val")
    assert data.notes == {"objects without a visible pixel": 1}


# --- what every dataset says of itself ---


@pytest.mark.parametrize("task", tiny_data.FILES)
def test_files_ids_and_notes(task: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path)
    data = tiny.open()
    assert sorted(p.name for p in data.files) == sorted(tiny.files) and all(p.exists() for p in data.files)
    whole = [s.id for s in read_all(data)]
    assert data.ids == whole and len(set(whole)) == len(whole) >= 3 and data.notes == {} and isinstance(data.skipped, int)
    few = Subset(data, [2, 0])
    assert (few.ids, few.files, few.notes) == ([whole[2], whole[0]], data.files, {}) and few[0].id == whole[2]
    for picture in tmp_path.glob("*.png"):
        picture.unlink()
    assert tiny.open().ids == whole and tiny.open().notes == {}  # no picture is opened for it


def test_narratives_need_no_annotator(tmp_path: Path) -> None:
    tiny = Tiny("png", tmp_path)
    told = [{k: v for k, v in n.items() if k != "annotator_id"} for n in tiny.files["png.json"]] + [tiny.files["png.json"][0], tiny.files["png.json"][1], {**tiny.files["png.json"][1], "annotator_id": None}]
    whole = list(read_all(tiny.open()))
    tiny.write("png.json", told)
    data = tiny.open()
    assert data.ids == ["1", "2", "3", "1/5", "2/6", "2/6/6"]  # the last one is the sixth, and that name was taken
    assert [s.pieces for s in read_all(data)][:3] == [s.pieces for s in whole]


# --- text ---


def as_python_2(refs: list[dict], encoding: str) -> bytes:
    "A pickle whose text is bytes, as Python 2 wrote its `str`."

    def short(text: str) -> bytes:
        content = text.encode(encoding)
        return b"U" + bytes([len(content)]) + content

    def value(v: object) -> bytes:
        if isinstance(v, dict):
            return b"}(" + b"".join(value(k) + value(x) for k, x in v.items()) + b"u"
        if isinstance(v, list):
            return b"](" + b"".join(map(value, v)) + b"e"
        return short(v) if isinstance(v, str) else b"J" + int(v).to_bytes(4, "little", signed=True)

    return b"\x80\x02" + value(refs) + b"."


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "the café’s “red” cup — left"), ("utf-8", "左边的杯子"), ("utf-8", "naïve"), ("latin1", "the café"), ("cp1252", "the man’s “cup”…"), ("cp1252", "déjà vu – élan")])
def test_byte_strings_of_old_pickles(encoding: str, text: str, tmp_path: Path) -> None:
    tiny = Tiny("res", tmp_path)
    refs = copy.deepcopy(tiny.files["refs(unc).p"])
    refs[4]["sentences"][0] |= {"raw": text, "sent": text}
    (tmp_path / "refs(unc).p").write_bytes(as_python_2(refs, encoding))
    assert tiny.open()[2].phrases == [text.lower()] and tiny.open(protocol="standard")[-1].phrases == [text]
    assert tiny.open().notes == {}


@pytest.mark.parametrize(("encoding", "text"), [("gbk", "左边的杯子"), ("shift_jis", "左のコップ"), ("cp1251", "левая чашка"), ("euc_kr", "왼쪽 컵"), ("koi8_r", "левая чашка"), ("big5", "左邊的杯子")])
def test_byte_strings_of_no_known_encoding_are_refused(encoding: str, text: str, tmp_path: Path) -> None:
    tiny = Tiny("res", tmp_path)
    refs = copy.deepcopy(tiny.files["refs(unc).p"])
    refs[4]["sentences"][0]["raw"] = text
    (tmp_path / "refs(unc).p").write_bytes(as_python_2(refs, encoding))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: a text is neither UTF-8 nor cp1252"):
        tiny.open()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("task", tiny_data.FILES)
def test_byte_order_marks_and_utf16(task: str, encoding: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path)
    whole = [(s.id, s.pieces, s.masks.tolist()) for s in read_all(tiny.open())]
    for name, content in tiny.files.items():
        if name.endswith(".json"):
            (tmp_path / name).write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert [(s.id, s.pieces, s.masks.tolist()) for s in read_all(tiny.open())] == whole


@pytest.mark.parametrize("task", ["res", "png", "gcg"])
def test_json_of_another_encoding_is_refused(task: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path)
    for name, content in tiny.files.items():
        if name.endswith(".json"):
            (tmp_path / name).write_bytes(json.dumps([content, "café"], ensure_ascii=False).encode("cp1252"))
            with pytest.raises(DataError, match=f"{name}: its text is not UTF-8.*save it as UTF-8"):
                tiny.open()
            tiny.write(name, content)


def test_text_that_was_read_in_a_wrong_encoding_before_is_counted(tmp_path: Path) -> None:
    twice = "the café’s cup".encode().decode("cp1252")
    for task, name, change in [("res", "refs(unc).p", lambda c: c[3]["sentences"][0].update(raw=twice)), ("png", "png.json", lambda c: c[0]["segments"][0].update(utterance=twice)), ("gcg", "caption.json", lambda c: c["annotations"][1].update(caption=twice)), ("reasonseg", "2.json", lambda c: c.update(text=[twice]))]:
        tiny = Tiny(task, tmp_path / task)
        change(tiny.files[name])
        tiny.write(name, tiny.files[name])
        (note, count), *_ = tiny.open().notes.items()
        assert count == 1 and "garbled" in note


# --- files that are none ---


@pytest.mark.parametrize("task", tiny_data.FILES)
def test_an_annotation_file_that_is_none(task: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path)
    for name, content in tiny.files.items():
        path = tmp_path / name
        deep = b"[" * 100_000 if name.endswith(".json") else b"(" * 100_000
        for odd in (None, "folder", "pipe", b"", b"\0" * 300, b"<!DOCTYPE html>", b"null", b"7", deep, b"\xff\xfe" + b"\0\xd8" * 5):
            path.unlink()
            if odd == "folder":
                path.mkdir()
            elif odd == "pipe":
                os.mkfifo(path)
            elif odd is None:
                path.symlink_to(tmp_path / "nowhere")
            else:
                path.write_bytes(odd)
            with pytest.raises(DataError, match=re.escape(name)):
                tiny.open()
            path.rmdir() if path.is_dir() else path.unlink()
            tiny.write(name, content)


def test_what_is_nested_too_deeply(tmp_path: Path) -> None:
    for task, name, field in [("res", "instances.json", "segmentation"), ("gcg", "mask.json", "segmentation"), ("png", "png.json", "segment_ids"), ("gcg", "caption.json", "labels"), ("reasonseg", "1.json", "points")]:
        tiny = Tiny(task, tmp_path / task)
        content = json.dumps(tiny.files[name])
        for depth in (50, *range(900, 1000, 3)):  # Python's own limit is near, and where it is met depends on who calls
            broken = content.replace(f'"{field}": ', f'"{field}": ' + "[" * depth + "]" * depth + ', "was": ', 1)
            (tmp_path / task / name).write_text(broken)
            with pytest.raises(DataError, match=name):
                tiny.open()[0]
        tiny.write(name, tiny.files[name])


def test_a_mask_too_deep_to_be_kept(tmp_path: Path) -> None:
    Tiny("res", tmp_path)
    shared = refcoco.read_files(tmp_path / "instances.json", tmp_path / "refs(unc).p")
    deep: list = []
    for _ in range(50_000):  # Python 3.13 goes 5,000 deep without a word
        deep = [deep]
    shared.annotations[11] = (1, 47, deep)  # as newer Pythons read it
    with pytest.raises(DataError, match=r"instances\.json: a `segmentation` is nested"):
        refcoco.RefCOCO.from_files(shared, tmp_path, "val")


# --- real files ---


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/conformance/real")
def test_real_captions_of_grandf(tmp_path: Path) -> None:
    data = GranDf(REAL / "val_gcg_coco_caption_gt.json", REAL / "val_gcg_coco_mask_gt.json", tmp_path)
    assert len(data) == 20 and data.skipped == 0 and data.notes == {} and data.ids[:3] == ["sa_8365570", "sa_122035", "psg_285759"]
    for described in data.descriptions:
        height, width = described.size
        Image.new("1", (width, height)).save(tmp_path / f"{described.image_id}.jpg", "PNG")
    samples = {s.id: s for s in read_all(data)}
    assert sum(len(s.masks) for s in samples.values()) == 76 and all(len(s.masks) == len(s.phrases) and s.masks.any((1, 2)).all() for s in samples.values())
    said = samples["sa_4125606"]
    assert said.phrases == ["A building", "a courtyard", "flagpoles", "a pool", "A birdbath sculpture", "a clear sky"] and said.masks.shape == (6, 1500, 2250)
    assert "".join(text for text, _ in said.pieces) == said.info["caption"] and said.pieces[0] == ("A building", 0)
    cut = samples["ref_352869"]  # labels that were cut out of the caption at the wrong characters follow as pieces of their own
    assert cut.pieces == [("A TV is situated along the wall behind a desk. The desk has a laptop on it.", None), ("ated along the wall behind a desk", 0)]
    assert samples["ref_16758"].phrases == ["a green tractor with black tires is also on the sa"] and samples["ref_16758"].pieces[-1][1] == 0
    misspelt = samples["sa_3140914"]
    assert misspelt.pieces[-1] == ("a huge brown and white buidilng", 3) and misspelt.phrases[1] == "a city path"
    assert samples["ref_464056"].phrases == ["all white round pudding dish", "black container with the dark substance in it", "one kept in front of the dish having a creamish liquid", "spoon on right side"]
    two = next(d for d in data.descriptions if d.image_id == "psg_285759")
    assert two.captions[1] == "Cars on a street below a bridge." and samples["psg_285759"].info["caption"] == two.captions[0] and len(samples["psg_285759"].phrases) == 7
