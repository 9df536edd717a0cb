"Four benchmarks of three tiny pictures, written from plain Python data, so that a test can change any value of any file."

import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from hglmm.datasets.core import Sample
from hglmm.datasets.grandf import GranDf
from hglmm.datasets.png import PNG
from hglmm.datasets.reasonseg import ReasonSeg
from hglmm.datasets.refcoco import RefCOCO

WIDTH, HEIGHT = 40, 30
BOXES = {1: [(3, 4, 15, 14), (20, 6, 36, 24)], 2: [(8, 8, 30, 20)], 3: [(2, 2, 12, 26)]}  # things of each picture
NOTHING = 9  # a segment id: what is not a thing


def outline(box: tuple[int, int, int, int]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom + 0.5]


def mask_of(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def packed(box: tuple[int, int, int, int]) -> dict[str, Any]:
    "Run lengths as text."
    found = coco_mask.encode(mask_of(box))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def plain(box: tuple[int, int, int, int]) -> dict[str, Any]:
    "Run lengths as numbers."
    flat = np.concatenate([[0], mask_of(box).ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def draw(image_id: int) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), (90 + 40 * image_id, 120, 60))
    for k, box in enumerate(BOXES[image_id]):
        ImageDraw.Draw(picture).rectangle(box, fill=(200, 40 + 90 * k, 180))
    return picture


def segment_id(image_id: int, k: int) -> int:
    return 1000 * image_id + k


def codes(image_id: int) -> Image.Image:
    "The panoptic PNG."
    ids = np.full((HEIGHT, WIDTH), NOTHING)
    for k, box in enumerate(BOXES[image_id]):
        ids[mask_of(box) > 0] = segment_id(image_id, k)
    return Image.fromarray(np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8))


def said(ref_id: int, *texts: str) -> list[dict[str, Any]]:
    return [{"raw": t.capitalize(), "sent": t, "tokens": t.split(), "sent_id": 10 * ref_id + k} for k, t in enumerate(texts)]


def res_files() -> dict[str, Any]:
    segmentations = {11: [outline(BOXES[1][0])], 12: [outline(BOXES[1][1]), [1, 2, 3]], 21: packed(BOXES[2][0]), 31: plain(BOXES[3][0])}
    annotations = [{"id": i, "image_id": i // 10, "category_id": 47, "iscrowd": 0, "area": 9.5, "bbox": [1, 2, 3, 4], "segmentation": s} for i, s in segmentations.items()]
    refs = [(0, 11, "an old ref"), (1, 12, "right cup", "tall cup"), (2, 11, "left cup", "small one"), (3, 21, "the big cup"), (4, 31, "the cup at the edge")]
    return {
        "instances.json": {
            "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in BOXES],
            "annotations": annotations, "categories": [{"id": 47, "name": "cup", "supercategory": "kitchen"}],
        },
        "refs(unc).p": [{"ref_id": r, "ann_id": a, "image_id": a // 10, "category_id": 47, "split": "val", "sentences": said(r, *texts), "file_name": "x.jpg"} for r, a, *texts in refs],
    }  # fmt: skip


def png_files() -> dict[str, Any]:
    def text(utterance: str, *ids: int, plural: bool = False) -> dict[str, Any]:
        return {"utterance": utterance, "segment_ids": [str(i) for i in ids], "plural": plural, "noun": bool(ids)}

    told = [
        {"image_id": "1", "annotator_id": 5, "caption": "", "segments": [text("There are "), text("two cups", 1000, 1001, plural=True), text(" on "), text("the grass", NOTHING), text(".")]},
        {"image_id": "2", "annotator_id": 6, "caption": "", "segments": [text("A cup", 2000), text(" stands there.")]},
        {"image_id": "3", "annotator_id": 7, "caption": "", "segments": [text("the thin cup", 3000), text(" and "), text("grass", NOTHING)]},
        {"image_id": "3", "annotator_id": 8, "caption": "", "segments": [text("A fine day.")]},
    ]
    infos = {
        i: [{"id": NOTHING, "category_id": 193, "area": HEIGHT * WIDTH, "iscrowd": 0}]
        + [{"id": segment_id(i, k), "category_id": 47, "area": int(mask_of(b).sum()), "iscrowd": 0} for k, b in enumerate(boxes)]
        for i, boxes in BOXES.items()
    }
    return {
        "png.json": told,
        "panoptic.json": {
            "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in BOXES],
            "categories": [{"id": 47, "name": "cup", "isthing": 1}, {"id": 193, "name": "grass-merged", "isthing": 0}],
            "annotations": [{"image_id": i, "file_name": f"{i}.codes.png", "segments_info": infos[i]} for i in BOXES],
        },
    }


def gcg_files() -> dict[str, Any]:
    names = {1: "sa_1", 2: "ref_2", 3: "psg_3"}
    captions = {1: ("A red cup beside a tall cup.", ["A red cup", "a tall cup"]), 2: ("One big cup.", ["One big cup"]), 3: ("A cup at the edge.", ["A cup"])}
    images = [{"id": name, "height": HEIGHT, "width": WIDTH, "file_name": f"{name}.jpg"} for name in names.values()]
    masks = [{"id": 10 * i + k, "image_id": names[i], "category_id": 1, "iscrowd": 0, "segmentation": (packed, plain)[k](box)} for i, boxes in BOXES.items() for k, box in enumerate(boxes)]
    return {
        "caption.json": {"images": images, "annotations": [{"id": i, "image_id": names[i], "caption": c, "labels": labels} for i, (c, labels) in captions.items()]},
        "mask.json": {"images": copy.deepcopy(images), "annotations": masks, "categories": [{"id": 1, "name": "object"}]},
    }


def reasonseg_files() -> dict[str, Any]:
    files = {}
    for i, boxes in BOXES.items():
        shapes = [{"label": "target", "shape_type": "polygon", "points": [list(p) for p in zip(outline(b)[::2], outline(b)[1::2], strict=True)]} for b in boxes]
        shapes += [{"label": "ignore", "shape_type": "rectangle", "points": [[1, 1], [5, 5]]}]
        files[f"{i}.json"] = {"text": [f"what holds the tea of {i}?", "and in other words?"], "is_sentence": i != 2, "shapes": shapes, "imagePath": f"{i}.png", "version": "5.0.1"}
    return files


FILES = {"res": res_files, "png": png_files, "gcg": gcg_files, "reasonseg": reasonseg_files}
PICTURES = {
    "res": {f"{i}.png": draw for i in BOXES}, "png": {f"{i}.png": draw for i in BOXES} | {f"{i}.codes.png": codes for i in BOXES},
    "gcg": {"sa_1.jpg": draw, "ref_2.jpg": draw, "psg_3.jpg": draw}, "reasonseg": {f"{i}.png": draw for i in BOXES},
}  # fmt: skip


@dataclass
class Tiny:
    "A benchmark in a folder."

    task: str
    folder: Path
    files: dict[str, Any] = field(init=False)  # what its annotation files say

    def __post_init__(self) -> None:
        self.files = FILES[self.task]()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            self.write(name, content)
        for name, picture in PICTURES[self.task].items():
            number = next(int(c) for c in name if c.isdigit())
            picture(number).save(self.folder / name, "PNG")

    def write(self, name: str, content: Any) -> None:
        "One annotation file; JSON's own odd values (NaN, half a surrogate pair) included."
        raw = pickle.dumps(content, protocol=2) if name.endswith(".p") else json.dumps(content).encode()
        (self.folder / name).write_bytes(raw)

    def open(self, **options: Any) -> Any:
        "The dataset."
        f = self.folder
        if self.task == "res":
            return RefCOCO(f / "instances.json", f / "refs(unc).p", f, "val", **options)
        if self.task == "png":
            return PNG(f / "png.json", f / "panoptic.json", f, f)
        return GranDf(f / "caption.json", f / "mask.json", f) if self.task == "gcg" else ReasonSeg(f, **options)


def read_all(dataset: Any) -> Iterator[Sample]:
    for i in range(len(dataset)):
        yield dataset[i]
