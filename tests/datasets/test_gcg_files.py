"""GCG's files as they are in the world: real captions with their odd labels, and predictions files with whatever may be wrong in them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFORMANCE

from hglmm.datasets.grandf import cut_caption, read_descriptions
from hglmm.errors import DataError, HGLMMError, SettingError
from hglmm.metrics import captions, gcg

REAL = [CONFORMANCE / f"real/val_gcg_coco_{kind}_gt.json" for kind in ("mask", "caption")]
MASKS_ONLY = ("AP50", "AP", "mIoU", "Recall")


def equal(first: list[str], second: list[str]) -> np.ndarray:
    "Cosines of an encoder that knows nothing but equal texts."
    return np.array([[float(a == b) for b in second] for a in first]).reshape(len(first), len(second))


def without_java() -> str:
    try:
        captions.check_java()
    except SettingError as error:
        return str(error)
    return ""


needs_java = pytest.mark.skipif(bool(without_java()), reason=without_java())
needs_real = pytest.mark.skipif(not REAL[0].exists(), reason=f"no real annotation files at {REAL[0].parent}")


# Real captions: 20 pictures, 21 captions (psg_285759 has two), 76 labels of each picture's first one, 76 masks (made up)


@pytest.fixture(scope="module")
def perfect() -> list[dict]:
    "What people said, as if an LMM had said it."
    mask_json, caption_json = REAL
    found = []
    for one in read_descriptions(caption_json, mask_json):
        found.append({"image_id": one.image_id, "caption": one.captions[0], "phrases": list(one.labels), "pred_masks": list(one.masks)})
    return found


@needs_real
def test_perfect_predictions_of_real_files_score_100(perfect):
    result = gcg.evaluate(perfect, *REAL, equal, MASKS_ONLY)
    assert result.scores == dict.fromkeys(MASKS_ONLY, 100.0)
    assert len(perfect) == 20 and result.each["labels"].sum() == result.each["matched"].sum() == sum(len(p["phrases"]) for p in perfect) == 76


@needs_real
@needs_java
def test_perfect_captions_of_real_files(perfect):
    """METEOR takes the best of several captions of a picture, CIDEr their mean: psg_285759 says only the first of its two.
    In capitals and without punctuation it is the same to both; said nothing, it is worth nothing."""
    result = gcg.evaluate(perfect, *REAL, equal, ("METEOR", "CIDEr"))
    assert result.scores["METEOR"] == pytest.approx(100) and (result.each["METEOR"] == 1).all()
    ids = result.each["image_id"].tolist()
    both = ids.index("psg_285759")
    others = np.delete(result.each["CIDEr"], both)
    assert others == pytest.approx(10) and 5 <= result.each["CIDEr"][both] < 6  # 10 for one of its captions, next to nothing for the other
    loud = [{**p, "caption": p["caption"].upper().replace(".", " ").replace(",", " ")} for p in perfect]
    mixed = gcg.evaluate([{**p, "caption": ""} if k % 2 else p for k, p in enumerate(loud)], *REAL, equal, ("METEOR", "CIDEr")).each  # every second one says nothing
    silent = np.arange(len(perfect)) % 2 == 1
    for name in ("METEOR", "CIDEr"):
        assert mixed[name][~silent] == pytest.approx(result.each[name][~silent]) and not mixed[name][silent].any()


@needs_real
def test_one_picture_less_costs_its_share(perfect):
    "sa_4116634 has 9 of the 76 labels. Without its prediction: recall 67/76, mIoU 19/20; and one with nothing said is the same as none."
    place = next(i for i, p in enumerate(perfect) if p["image_id"] == "sa_4116634")
    nothing = [*perfect[:place], {**perfect[place], "caption": "", "phrases": [], "pred_masks": []}, *perfect[place + 1 :]]
    scores = gcg.scores(nothing, *REAL, similarity=equal, metrics=MASKS_ONLY)
    assert scores["Recall"] == pytest.approx(100 * 67 / 76) and scores["mIoU"] == pytest.approx(95)
    assert scores["AP50"] == pytest.approx(100 * 89 / 101)  # precision 1 up to a recall of 67/76 = 0.881: 89 of the 101 points 0, 0.01 ... 1
    with pytest.warns(UserWarning, match="1 of 20 pictures have no prediction and count as empty: sa_4116634"):
        assert gcg.scores([*perfect[:place], *perfect[place + 1 :]], *REAL, similarity=equal, metrics=MASKS_ONLY) == scores


@needs_real
def test_odd_labels_of_real_files_are_kept_as_they_are(perfect):
    "Stray blanks, another case, words cut in the middle, misspelt ones: none is lost to recall, none is drawn over another in a picture."
    labels = {p["image_id"]: p["phrases"] for p in perfect}
    assert labels["sa_4125606"][0] == "A building " and " seen on a mounted bicycle" in labels["ref_313164"] and "ated along the wall behind a desk" in labels["ref_352869"]
    assert len(labels["psg_285759"]) == 7  # those of its first caption
    for prediction in perfect:
        pieces = cut_caption(prediction["caption"], prediction["phrases"])
        assert sorted(k for _, k in pieces if k is not None) == list(range(len(prediction["phrases"])))
        said = "".join(text for text, k in pieces if k is None or text in prediction["caption"])
        assert said.startswith(prediction["caption"][:20])
        for text, k in pieces:
            if k is not None and text in prediction["caption"]:
                assert text.lower().strip() == prediction["phrases"][k].lower().strip()
    upper = [{**p, "phrases": [f"  {text.upper()} " for text in p["phrases"]]} for p in perfect]

    def careless(first: list[str], second: list[str]) -> np.ndarray:
        return equal([text.strip().lower() for text in first], [text.strip().lower() for text in second])

    assert gcg.scores(upper, *REAL, similarity=careless, metrics=("Recall",)) == {"Recall": 100}
    assert gcg.scores(upper, *REAL, similarity=equal, metrics=("Recall",))["Recall"] == 0


@needs_real
def test_real_files_with_other_types_of_ids(perfect, tmp_path):
    "Numbers for ids in one file and texts in the other, and a byte order mark: the same scores."
    ids = {p["image_id"]: 1000 + i for i, p in enumerate(perfect)}
    files = []
    for path, kind in zip(REAL, (str, int), strict=True):
        content = json.loads(path.read_text())
        for record, field in [(r, "id") for r in content["images"]] + [(r, "image_id") for r in content["annotations"]]:
            record[field] = kind(ids[record[field]])
        files.append(tmp_path / path.name)
        files[-1].write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    for kind in (int, str):
        predictions = [{**p, "image_id": kind(ids[p["image_id"]])} for p in perfect]
        assert gcg.scores(predictions, *files, similarity=equal, metrics=MASKS_ONLY) == dict.fromkeys(MASKS_ONLY, 100.0)
    gcg.write_predictions(tmp_path / "said", predictions)
    (tmp_path / "said/1003.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "said/1003.json").read_bytes())
    assert gcg.scores(tmp_path / "said", *files, similarity=equal, metrics=MASKS_ONLY) == dict.fromkeys(MASKS_ONLY, 100.0)


# Predictions with something wrong in them


@pytest.fixture(scope="module")
def small(small_world) -> tuple[list[dict], Path, Path]:
    "Predictions of three pictures, and the truth's files."
    from hglmm.datasets.places import grandf_paths

    truth = grandf_paths(small_world, "val")
    described = read_descriptions(truth["caption_json"], truth["mask_json"])[:3]
    drawn = json.loads(Path(truth["mask_json"]).read_text())
    said = [{"image_id": d.image_id, "caption": d.captions[0], "phrases": list(d.labels), "pred_masks": json.loads(json.dumps(list(d.masks)))} for d in described]
    assert drawn["annotations"] and all(p["pred_masks"] for p in said)
    return said, truth["mask_json"], truth["caption_json"]


def scored(predictions, small, **options) -> dict[str, float]:
    said, mask_json, caption_json = small
    return gcg.evaluate(predictions, mask_json, caption_json, equal, MASKS_ONLY, {p["image_id"] for p in said}, **options).scores


BROKEN = [
    ("image_id", None, "field 'image_id' is null: expected text or a whole number"),
    ("image_id", 1.5, "field 'image_id' is a number: expected text or a whole number"),
    ("image_id", True, "field 'image_id' is true or false"),
    ("image_id", "elsewhere", "image 'elsewhere' is predicted but not in the split"),
    ("image_id", -7, "image '-7' is predicted but not in the split"),
    ("caption", None, "field 'caption' is null: expected text"),
    ("caption", ["a mug"], "field 'caption' is a list: expected text"),
    ("phrases", "a mug", "field 'phrases' is text: expected a list"),
    ("phrases", None, "field 'phrases' is null: expected a list"),
    ("phrases", ["a mug", None], "expected texts, the 2. is null"),
    ("phrases", [["a mug"]], "expected texts, the 1. is a list"),
    ("pred_masks", None, "field 'pred_masks' is null: expected a list"),
    ("pred_masks", {"size": [1, 1]}, "field 'pred_masks' is an object: expected a list"),
    ("pred_masks", [None], "mask 0: expected run lengths that fill the picture"),
    ("pred_masks", ["0"], "mask 0: expected run lengths"),
    ("pred_masks", [{"size": [2, 2], "counts": [4]}], r"mask 0: expected run lengths that fill the picture, .* found size \[2, 2\]"),
    ("pred_masks", [{"size": ["a", "b"], "counts": "0"}], "mask 0: expected run lengths"),
    ("pred_masks", [{"size": 7, "counts": "0"}], "mask 0: expected run lengths"),
    ("pred_masks", [{"counts": "0"}], "mask 0: expected run lengths"),
    ("pred_masks", [{"size": None, "counts": None}], "mask 0: expected run lengths"),
]


@pytest.mark.parametrize("field, value, message", BROKEN)
def test_what_is_wrong_with_a_prediction_is_said(field, value, message, small, tmp_path):
    said = copy.deepcopy(small[0])
    said[1][field] = value
    (tmp_path / "said.json").write_text(json.dumps(said))
    for given, source in ((said, "predictions"), (tmp_path / "said.json", "said.json")):
        with pytest.raises(DataError, match=message) as raised:
            scored(given, small)
        assert source in str(raised.value)
    if field != "image_id":  # in a folder it is the file's name that counts
        gcg.write_predictions(tmp_path / "each", said)
        with pytest.raises(DataError, match=message) as raised:
            scored(tmp_path / "each", small)
        assert "each" in str(raised.value) and said[1]["image_id"] in str(raised.value)


@pytest.mark.parametrize("field", ["image_id", "caption", "phrases", "pred_masks"])
def test_a_missing_field_is_named(field, small, tmp_path):
    said = copy.deepcopy(small[0])
    del said[2][field]
    (tmp_path / "said.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match=rf"said.json\[2\]: no field '{field}'"):
        scored(tmp_path / "said.json", small)


def test_predictions_twice_are_named(small, tmp_path):
    said = copy.deepcopy(small[0])
    (tmp_path / "said.json").write_text(json.dumps([*said, said[0]]))
    with pytest.raises(DataError, match=f"said.json: image '{said[0]['image_id']}' is predicted twice"):
        scored(tmp_path / "said.json", small)


def test_other_ways_to_write_the_same(small, tmp_path):
    "Run lengths as lists, a folder with a Mac's leftovers, an object around each prediction, ids as file names: all score alike."
    expected = scored(small[0], small)
    assert expected == dict.fromkeys(MASKS_ONLY, 100.0)
    from pycocotools import mask as coco_mask

    lists = copy.deepcopy(small[0])
    for code in (code for p in lists for code in p["pred_masks"]):
        flat = coco_mask.decode(code).flatten(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, len(flat)]).tolist()
        code["counts"] = runs if flat[0] == 0 else [0, *runs]
    assert scored(lists, small) == expected
    gcg.write_predictions(tmp_path / "each", small[0])
    (tmp_path / "each" / f"._{small[0][0]['image_id']}.json").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "each/.DS_Store").write_bytes(b"\0")
    wrapped = tmp_path / "each" / f"{small[0][1]['image_id']}.json"
    wrapped.write_text(json.dumps({small[0][1]["image_id"]: {k: v for k, v in small[0][1].items() if k != "image_id"}}))
    assert scored(tmp_path / "each", small) == expected and len(gcg.read_predictions(tmp_path / "each")) == 3


@pytest.mark.parametrize("given", [None, 7, 1.5])
def test_what_is_no_prediction_at_all(given, small):
    with pytest.raises(SettingError, match="predictions: expected a folder, a .json file or a list"):
        scored(given, small)


def test_paths_without_predictions(small, tmp_path):
    with pytest.raises(DataError, match="none.json: no such file"):
        scored(tmp_path / "none.json", small)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no prediction in it"):
        scored(tmp_path / "empty", small)
    for content in ("", "{", "nonsense", '"text"', "7"):
        (tmp_path / "odd.json").write_text(content)
        with pytest.raises(DataError, match="odd.json"):
            scored(tmp_path / "odd.json", small)


def places(value, path=()):
    "Every place in a JSON document."
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(document, path, value):
    "The document with another value at a place."
    if not path:
        return value
    document = copy.deepcopy(document)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


ODD = (None, True, -1, 10**30, 1.5, "", "7", "\ud800", [], [None], ["a"], {}, {"a": 1}, [[0, 0]])


@pytest.mark.filterwarnings("ignore:.*no prediction and count as empty")
def test_no_single_change_ends_in_a_bare_exception(small, tmp_path):
    "Every place of a predictions file, every other kind of value: a score, or an error of ours that names the file."
    said = copy.deepcopy(small[0][:2])
    path, refused, scores = tmp_path / "said.json", 0, 0
    cases = [(place, value) for place in places(said) for value in ODD]
    assert len(cases) > 300
    for place, value in cases:
        path.write_text(json.dumps(changed(said, place, value)))
        try:
            found = scored(path, small)
        except HGLMMError as error:
            assert str(path) in str(error), (place, value, error)
            refused += 1
        else:
            assert all(0 <= score <= 100 for score in found.values()), (place, value, found)
            scores += 1
    assert refused > 100 and scores > 20
