"""Over two thousand annotation files and two hundred pictures with one thing changed in each: every one is read right, or refused by name.

"Right" means: what the change does not touch is as it was. A value that says the same in another type may be read as the same, nothing else may.
"""

import copy
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import Tiny

from hglmm.datasets.core import Sample
from hglmm.errors import DataError, HGLMMError

ODD = [None, True, False, 0, -1, 3, 10**20, -(10**400), 1.5, float("nan"), float("inf"), 1e308, "", " ", "7", "text", "caf\u00e9 \u4ec0", "half \ud800", "../x", "a\0b", "x" * 3000, [], [[]], [None], [7], [[1, 2], [3]], {}, {"a": 1}, {"size": [30, 40], "counts": [1]}]
SEEDS = {"res": 800, "png": 700, "gcg": 400, "reasonseg": 300}  # changed annotation files
Place = tuple[str | int, ...]  # keys and indices that lead to a value


def places(content: Any, here: Place = ()) -> Iterator[Place]:
    "All values of a file, the containers too."
    if here:
        yield here
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*here, key))


def value_at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def same_in_another_type(value: Any, chance: random.Random) -> Any:
    "`7` as `'7'`, `7.0`; `True` as `1`."
    if isinstance(value, bool):
        return chance.choice([int(value), float(value)])
    if isinstance(value, (int, float)):
        return chance.choice([str(value), float(value)])
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def changed(content: Any, place: Place, chance: random.Random) -> tuple[Any, str]:
    "A copy with one thing changed, and what was done."
    content = copy.deepcopy(content)
    *way, key = place
    holder = value_at(content, tuple(way))
    kind = chance.choice(["odd", "odd", "odd", "same", "gone", "twice", "wrapped"])
    if kind == "gone":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "same" and isinstance(holder[key], (str, int, float)):
        holder[key] = same_in_another_type(holder[key], chance)
    elif kind == "wrapped":
        holder[key] = [holder[key]]
    else:
        holder[key], kind = chance.choice(ODD), "odd"
    return content, kind


def pictures_of(record: Any) -> set[str]:
    "Ids of pictures that a record (or what a change made of it) speaks of."
    if not isinstance(record, dict):
        return set()
    found = {str(record[name]) for name in ("image_id", "id") if isinstance(record.get(name), (str, int, float))}
    if isinstance(record.get("ann_id"), (int, float)):
        found.add(str(record["ann_id"] // 10))
    return found | {str(record["id"])[:1]} if isinstance(record.get("id"), int) else found


def touched(tiny: Tiny, name: str, place: Place, after: Any) -> set[str] | None:
    "Pictures whose samples a change may touch; None: all."
    if tiny.task == "reasonseg":
        return {name.removesuffix(".json")}
    depth = 1 if isinstance(tiny.files[name], list) else 2
    if len(place) < depth or place[0] == "categories":
        return None
    record = tiny.files[name]
    for key in place[:depth]:
        record = record[key]
    found = pictures_of(record)
    try:
        found |= pictures_of(value_at(after, place[:depth]))
    except (KeyError, IndexError, TypeError):
        pass
    return {i.removesuffix(".0") for i in found}


def well_formed(sample: Sample) -> None:
    width, height = sample.image.size
    assert sample.image.mode == "RGB" and sample.masks.dtype == bool and sample.masks.shape[1:] == (height, width) and sample.masks.ndim == 3
    assert all(isinstance(text, str) and (k is None or 0 <= k < len(sample.masks)) for text, k in sample.pieces) and isinstance(sample.id, str)
    assert len(sample.phrases) == len(sample.masks)
    for text, _ in sample.pieces:
        text.encode()


def equal(a: Sample, b: Sample) -> bool:
    drop = {"category", "isthing"}  # of all samples, if a category is renamed
    told = [{k: v for k, v in s.info.items() if k not in drop and not isinstance(v, np.ndarray)} for s in (a, b)]
    return np.array_equal(np.asarray(a.image), np.asarray(b.image)) and a.pieces == b.pieces and np.array_equal(a.masks, b.masks) and a.id == b.id and told[0] == told[1]


def read_or_refused(tiny: Tiny, names: set[str], **options: Any) -> list[Sample] | None:
    "All samples of a dataset in which something is wrong; None if it was refused by the name of one of its files."
    try:
        dataset = tiny.open(**options)
        samples = []
        for i in range(len(dataset)):
            try:
                samples.append(dataset[i])
            except HGLMMError as error:
                assert any(name in str(error) for name in names), str(error)
        assert len(set(dataset.ids)) == len(dataset) and [s.id for s in samples] == [i for i in dataset.ids if i in {s.id for s in samples}]
        assert all(isinstance(count, int) and count > 0 for count in dataset.notes.values()) and isinstance(dataset.skipped, int)
    except HGLMMError as error:
        assert any(name in str(error) for name in names) and len(str(error)) < 1500, str(error)
        return None
    for sample in samples:
        well_formed(sample)
    return samples


def options_of(task: str, chance: random.Random) -> dict[str, Any]:
    if task == "res":
        return {"protocol": chance.choice(["hg", "standard", "split"])}
    return {"paraphrases": chance.random() < 0.5} if task == "reasonseg" else {}


@pytest.mark.parametrize("task", SEEDS)
def test_an_annotation_file_with_one_change(task: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path / task)
    names = {p.name for p in tiny.folder.iterdir()}
    whole = {str(o): list(map(tiny.open(**o).__getitem__, range(len(tiny.open(**o))))) for o in ({}, {"protocol": "hg"}, {"protocol": "standard"}, {"protocol": "split"}, {"paraphrases": True}, {"paraphrases": False}) if fits(task, o)}
    every = [(name, place) for name, content in tiny.files.items() for place in places(content)]
    refused = 0
    for seed in range(SEEDS[task]):
        chance = random.Random(f"{task} {seed}")
        name, place = chance.choice(every)
        content, kind = changed(tiny.files[name], place, chance)
        options = options_of(task, chance)
        tiny.write(name, content)
        try:
            samples = read_or_refused(tiny, names, **options)
        except Exception as error:
            raise AssertionError(f"{task} seed {seed}: {name} {place} {kind}: {value_at(tiny.files[name], place)!r:.80} changed") from error
        tiny.write(name, tiny.files[name])
        refused += samples is None
        untouched = touched(tiny, name, place, content)
        there = {s.id: s for s in whole[str(options)]}
        for sample in samples or []:
            if kind != "same" and (untouched is None or str(sample.info["image_id"]) in untouched or str(sample.info["image_id"])[-1] in untouched):
                continue
            assert sample.id in there and equal(sample, there[sample.id]), f"{task} seed {seed}: {name} {place} {kind}: sample {sample.id}"
    assert SEEDS[task] / 20 < refused < SEEDS[task]  # some of each


def fits(task: str, options: dict[str, Any]) -> bool:
    return set(options) <= {"res": {"protocol"}, "reasonseg": {"paraphrases"}}.get(task, set()) and bool(options) == (task in ("res", "reasonseg"))


@pytest.mark.parametrize("task", SEEDS)
def test_an_annotation_file_with_a_wrong_byte_or_cut_short(task: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path / task)
    names, chance = {p.name for p in tiny.folder.iterdir()}, random.Random(task)
    for name in tiny.files:
        whole = (tiny.folder / name).read_bytes()
        for i in range(120 // len(tiny.files)):
            broken = bytearray(whole)
            if i % 3:
                broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
            else:
                del broken[chance.randrange(len(broken)) :]
            (tiny.folder / name).write_bytes(broken)
            try:
                read_or_refused(tiny, names, **options_of(task, chance))
            except Exception as error:
                raise AssertionError(f"{task} {name} change {i}") from error
        (tiny.folder / name).write_bytes(whole)


def as_bytes(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def picture_changes(whole: bytes, chance: random.Random) -> tuple[bytes, bool]:
    "A changed picture file, and whether it still shows the same."
    picture, kind = Image.open(io.BytesIO(whole)).convert("RGB"), chance.randrange(9)
    if kind == 0:
        return whole[: chance.randrange(len(whole))], False
    if kind in (1, 2):
        broken = bytearray(whole)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        return bytes(broken), True  # a PNG has checksums: what is let through is whole
    if kind == 3:
        return as_bytes(picture, *chance.choice([("BMP",), ("TIFF",)])), True
    if kind == 4:
        return as_bytes(picture, "WEBP", lossless=True), True
    if kind == 5:
        return as_bytes(picture.convert(chance.choice(["RGBA", "P", "CMYK"])).convert("RGB").quantize(256), "PNG"), False
    if kind == 6:
        return as_bytes(picture.resize((chance.randrange(1, 60), chance.randrange(1, 60))), "PNG"), False
    if kind == 7:
        exif = Image.Exif()
        exif[0x0112] = chance.randrange(2, 9)
        return as_bytes(picture, "PNG", exif=exif), False
    return chance.choice([b"", b"\0" * 500, b"<html>", os.urandom(300), as_bytes(picture, "PNG") + b"more", as_bytes(picture, "JPEG")]), False


@pytest.mark.parametrize("task", SEEDS)
def test_a_changed_picture(task: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path / task)
    annotations = set(tiny.files)
    pictures = sorted(p for p in tiny.folder.iterdir() if p.name not in annotations)
    whole = {s.id: s for s in map(tiny.open().__getitem__, range(len(tiny.open())))}
    chance, failed = random.Random(task), 0
    for _ in range(60):
        path = chance.choice(pictures)
        content = path.read_bytes()
        after, same = picture_changes(content, chance)
        path.write_bytes(after)
        dataset = tiny.open()
        for i in range(len(dataset)):
            mine = path.name.split(".")[0] == Path(whole[dataset.ids[i]].info["file_name"]).stem
            try:
                sample = dataset[i]
            except DataError as error:
                assert mine and path.name in str(error), str(error)
                failed += 1
                continue
            well_formed(sample)
            assert np.array_equal(sample.masks, whole[sample.id].masks) or mine and "codes" not in path.name and sample.image.size != whole[sample.id].image.size
            assert equal(sample, whole[sample.id]) or mine and not same
        path.write_bytes(content)
    assert failed >= 10


NUMBER, FLAG, TEXT, NAME = "number", "flag", "text", "name"
KINDS = {  # what the loaders need, by file, list of records and field
    "instances.json": {("images", "id"): NUMBER, ("images", "height"): NUMBER, ("images", "width"): NUMBER, ("images", "file_name"): TEXT, ("annotations", "id"): NUMBER,
                       ("annotations", "image_id"): NUMBER, ("annotations", "category_id"): NUMBER, ("categories", "id"): NUMBER, ("categories", "name"): TEXT},
    "refs(unc).p": {("ref_id",): NUMBER, ("ann_id",): NUMBER, ("split",): TEXT, ("sentences", "raw"): TEXT, ("sentences", "sent"): TEXT, ("sentences", "sent_id"): NUMBER},
    "png.json": {("image_id",): NUMBER, ("segments", "utterance"): TEXT, ("segments", "plural"): FLAG},
    "panoptic.json": {("images", "id"): NUMBER, ("images", "file_name"): TEXT, ("categories", "id"): NUMBER, ("categories", "name"): TEXT, ("categories", "isthing"): FLAG, ("annotations", "image_id"): NUMBER,
                      ("annotations", "file_name"): TEXT, ("annotations", "segments_info", "id"): NUMBER, ("annotations", "segments_info", "category_id"): NUMBER, ("annotations", "segments_info", "area"): NUMBER},
    "caption.json": {("images", "id"): NAME, ("annotations", "image_id"): NAME, ("annotations", "caption"): TEXT},
    "mask.json": {("images", "id"): NAME, ("images", "height"): NUMBER, ("images", "width"): NUMBER, ("annotations", "image_id"): NAME, ("annotations", "iscrowd"): FLAG},
    "1.json": {("is_sentence",): FLAG, ("shapes", "label"): TEXT},
}  # fmt: skip
WRONG = {
    NUMBER: [None, True, 1.5, float("nan"), 10**20, "seven", "", [], [7], {}],
    FLAG: [None, 2, -1, "false", "", [], [True], {}, float("nan")],
    TEXT: [7, True, 1.5, [], ["text"], {}, "half \ud800"],
    NAME: [None, True, 1.5, [], ["sa_1"], {}, "half \ud800"],
}


@pytest.mark.parametrize("task", SEEDS)
def test_a_value_of_another_kind_is_refused_with_file_record_and_field(task: str, tmp_path: Path) -> None:
    tiny, options, tried = Tiny(task, tmp_path / task), {"protocol": "standard"} if task == "res" else {}, 0
    for name, content in tiny.files.items():
        for way, kind in KINDS.get(name, {}).items():
            every = [place for place in places(content) if tuple(k for k in place if isinstance(k, str)) == way]
            assert every, way
            for wrong in WRONG[kind][way[-1] == "sent_id" :]:  # a sentence may have no id
                changed = copy.deepcopy(content)
                *to, field = every[tried % len(every)]
                value_at(changed, tuple(to))[field] = wrong
                tiny.write(name, changed)
                with pytest.raises(HGLMMError) as refused:
                    tiny.open(**options)[0]
                message = str(refused.value)
                number = "".join(f"[{k}]" for k in to[-1:] if isinstance(k, int))
                assert name in message and field in message and number in message and len(message) < 800, (way, wrong, message)
                tried += 1
        tiny.write(name, content)
    assert tried > 8


@pytest.mark.parametrize(("task", "name", "records"), [("res", "instances.json", "images"), ("res", "instances.json", "annotations"), ("res", "instances.json", "categories"), ("png", "panoptic.json", "images"),
                                                       ("png", "panoptic.json", "annotations"), ("png", "panoptic.json", "categories"), ("gcg", "mask.json", "images")])  # fmt: skip
def test_two_records_of_one_id(task: str, name: str, records: str, tmp_path: Path) -> None:
    tiny = Tiny(task, tmp_path)
    whole = tiny.open()[0]
    content = copy.deepcopy(tiny.files[name])
    content[records].append(copy.deepcopy(content[records][0]))
    tiny.write(name, content)
    assert equal(tiny.open()[0], whole)  # which say the same
    odd = {"images": {"file_name": "2.png", "height": 31}, "annotations": {"category_id": 1, "file_name": "2.codes.png"}, "categories": {"name": "dog"}}[records]
    content[records][-1] |= odd
    tiny.write(name, content)
    with pytest.raises(DataError, match=f"{name}: {records}: .*(two records that differ|listed twice)"):
        tiny.open()
