"""Data roots with one thing changed at random: the doctor reports on all parts, names the file, and its exit status is right."""

import json
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hglmm.datasets import layout, toycoco
from hglmm.datasets.doctor import examine
from hglmm.errors import HGLMMError

CASES = 300
DATA = "coco/annotations/{}_val2017.json"
FILES = {  # annotation file -> benchmark
    "coco/refcoco/instances.json": "res", "coco/refcoco/refs(unc).p": "res", DATA.format("panoptic"): "png", DATA.format("png_coco"): "png",
    "GCG/GranDf/annotations/val_test/val_gcg_coco_caption_gt.json": "gcg", "GCG/GranDf/annotations/val_test/val_gcg_coco_mask_gt.json": "gcg",
    "reason_seg/ReasonSeg/val/*.json": "reasonseg",
}  # fmt: skip
VALUES = (None, True, False, 0, -1, 1.5, 1e300, float("nan"), 10**30, "", "text", "7", "é\u4e2d\0", [], [[]], [None], {}, {"a": 1}, [1, 2, 3], [[1, 2, 3, 4, 5, 6]], "../../a.jpg")


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toycoco.generate(tmp_path_factory.mktemp("data") / "world", counts={"train": 2, "val": 3, "test": 3})


def places_in(content: Any) -> Iterator[tuple[Any, Any]]:
    "Every container in plain data with each of its keys or indices."
    entries = list(content.items()) if isinstance(content, dict) else list(enumerate(content)) if isinstance(content, list) else []
    for key, value in entries:
        yield content, key
        yield from places_in(value)


def one_value(content: Any, draw: random.Random) -> str:
    "Change or remove one value; what was done."
    holder, key = draw.choice(list(places_in(content)))
    was = holder[key]
    if draw.random() < 0.2:
        del holder[key]
        return f"{key}: {was!r:.40} removed"
    holder[key] = draw.choice([*VALUES, [was], str(was), {"a": was}])
    return f"{key}: {was!r:.40} -> {holder[key]!r:.40}"


def some_bytes(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    at, kind = draw.randrange(len(content)), draw.choice(["cut", "byte", "inserted", "mark", "utf-16"])
    if kind == "utf-16":
        return content.decode("latin1").encode("utf-16"), kind
    changed = {"cut": content[:at], "byte": content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :], "mark": b"\xef\xbb\xbf" + content}
    return changed.get(kind, content[:at] + bytes([draw.randrange(256)]) * 3 + content[at:]), f"{kind} at {at}"


def on_disk(path: Path, draw: random.Random) -> str:
    kind = draw.choice(["removed", "folder", "link", "empty"])
    path.unlink()
    {"removed": lambda: None, "folder": path.mkdir, "link": lambda: path.symlink_to("nowhere"), "empty": path.touch}[kind]()
    return kind


def change(path: Path, draw: random.Random) -> str:
    "One change of an annotation file; what was done."
    way = draw.random()
    if way < 0.7:
        read, write = (pickle.loads, pickle.dumps) if path.suffix == ".p" else (json.loads, lambda content: json.dumps(content).encode())
        content = read(path.read_bytes())
        done = one_value(content, draw)
        path.write_bytes(write(content))
        return done
    if way < 0.9:
        content, done = some_bytes(path.read_bytes(), draw)
        path.write_bytes(content)
        return done
    return on_disk(path, draw)


OPEN: dict[str, Callable[[Path], list]] = {
    "res": lambda root: [layout.open_refcoco(root, "refcoco", split) for split in layout.SPLITS["refcoco"]],
    "png": lambda root: [layout.open_png(root, "val")],
    "gcg": lambda root: [layout.open_grandf(root, "val")],
    "reasonseg": lambda root: [layout.open_reasonseg(root, "val")],
}


def loaders_refuse(root: Path, benchmark: str) -> bool:
    "Does a loader raise an error of ours, at opening or for any sample? Another error is a failure here."
    try:
        for dataset in OPEN[benchmark](root):
            for i in range(len(dataset)):
                dataset[i]
    except HGLMMError:
        return True
    return False


def test_one_change_anywhere(tiny_world: Path) -> None:
    draw, refused, wrong = random.Random(8), 0, []
    for case in range(CASES):
        pattern = draw.choice(list(FILES))
        path, benchmark = sorted(tiny_world.glob(pattern))[0], FILES[pattern]
        whole = path.read_bytes()
        done = f"case {case}: {path.name}, {change(path, draw)}"
        report = examine(tiny_world, [benchmark], samples=None)
        bad = [f for f in report.findings if f.state == "broken"]
        mine = {"res": "refcoco"}.get(benchmark, f"{benchmark} val")
        part = next(f for f in report.findings if f.part == mine)
        left_out = {f.part for f in bad} - {mine}
        if left_out or re.search(r"\b(?!Data)\w+Error: ", part.note) or (part.state == "broken" and path.stem.partition("_gcg")[0] not in part.note):
            wrong.append((done, report))
        if loaders_refuse(tiny_world, benchmark) and part.state not in ("broken", "missing"):
            wrong.append((done, "loaders refuse it", report))
        if (report.status([benchmark]) == 1) != bool(bad) and part.state != "missing":
            wrong.append((done, "status", report))
        refused += part.state == "broken"
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert not wrong, (len(wrong), wrong[:5])
    assert CASES * 0.3 < refused < CASES * 0.9  # changes that matter, and changes that do not
    assert {f.state for f in examine(tiny_world, samples=None).findings} == {"ok"}
