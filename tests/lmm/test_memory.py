"""What the datasets cost in memory when many workers read them.

A DataLoader's workers are forks of one process and share its memory until somebody writes to it. Reading a Python object writes to it: its reference
count changes, and the page it lies on is copied. A dataset that keeps 500 MB of annotations as Python objects so ends up in every worker.

    python tests/lmm/test_memory.py 150 8      # for annotation files of 150 MB and 8 workers; sizes in MB
"""

import json
import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hglmm.datasets.png import PNG
from hglmm.datasets.refcoco import RefCOCO

MB = 2**20
SIDE = 8  # of the one picture that all samples share
SEGMENTS = (1, 2, 3, 4)


def memory() -> tuple[float, float]:
    "MB of this process that no other one shares, and its whole memory with every shared page counted by share (PSS)."
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {name: int(size) / 1024 for name, size, _ in lines}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Pss:"]


def picture(folder: Path) -> None:
    "The picture and its panoptic PNG: four quarters."
    ids = np.repeat(np.repeat(np.array(SEGMENTS, np.uint8).reshape(2, 2), SIDE // 2, 0), SIDE // 2, 1)
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(folder / "0.png")
    Image.fromarray(np.stack([ids, ids, ids], -1)).save(folder / "0.jpg")


def png(folder: Path, megabytes: float) -> PNG:
    "Narratives of that size in the file, and the panoptic annotations of their pictures."
    words = [f"in the corner number {k} of this picture I can see a thing " for k in range(20)]
    texts = [{"utterance": w, "segment_ids": [str(SEGMENTS[k % 4])] if k % 2 else [], "plural": False, "noun": bool(k % 2)} for k, w in enumerate(words)]
    count = int(megabytes * MB / len(json.dumps({"image_id": "100000", "annotator_id": 100, "caption": "".join(words), "segments": texts})))
    narratives = [{"image_id": str(i), "annotator_id": i % 100, "caption": "".join(words), "segments": texts} for i in range(count)]
    (folder / "png.json").write_text(json.dumps(narratives))
    segments = [{"id": i, "category_id": 1, "area": SIDE**2 // 4, "bbox": [0, 0, 4, 4], "iscrowd": 0} for i in SEGMENTS]
    content = {
        "images": [{"id": i, "file_name": "0.jpg", "height": SIDE, "width": SIDE} for i in range(count)],
        "annotations": [{"image_id": i, "file_name": "0.png", "segments_info": segments} for i in range(count)],
        "categories": [{"id": 1, "name": "corner", "isthing": 1}],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    return PNG(folder / "png.json", folder / "panoptic.json", folder, folder)


def refcoco(folder: Path, megabytes: float) -> RefCOCO:
    "Object masks of that size in the file, every one referred to three times."
    random = np.random.default_rng(0)
    outline = [[round(float(v), 2) for v in random.uniform(0, SIDE, 120)]]
    count = int(megabytes * MB / len(json.dumps({"id": 100000, "image_id": 100000, "category_id": 1, "segmentation": outline})))
    content = {
        "images": [{"id": i, "file_name": "0.jpg", "height": SIDE, "width": SIDE} for i in range(count)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "segmentation": outline} for i in range(count)],
        "categories": [{"id": 1, "name": "corner"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    said = [{"raw": f"the thing in the corner number {k}", "sent": "", "tokens": [], "sent_id": k} for k in range(3)]
    refs = [{"ref_id": i, "ann_id": i, "image_id": i, "split": "train", "sentences": said} for i in range(count)]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return RefCOCO(folder / "instances.json", folder / "refs(unc).p", folder, "train")


def read_everything(dataset: Any, all_here: Any, report: Any) -> None:
    "A worker: read every sample, and report the memory it had to itself before and after, and its share of all."
    before, _ = memory()
    for i in range(len(dataset)):
        dataset[i]
    all_here.wait()  # no worker has gone: what is shared counts as shared
    after, share = memory()
    report.put((after - before, share))
    all_here.wait()


def measure(dataset: Any, workers: int) -> dict[str, float]:
    "MB that the process holds, that a worker adds by reading everything, and that all of them take together."
    _, alone = memory()
    fork = multiprocessing.get_context("fork")
    all_here, report = fork.Barrier(workers + 1), fork.Queue()
    started = [fork.Process(target=read_everything, args=(dataset, all_here, report)) for _ in range(workers)]
    for process in started:
        process.start()
    all_here.wait()
    found = [report.get() for _ in started]
    together = memory()[1] + sum(share for _, share in found)
    all_here.wait()
    for process in started:
        process.join()
    return {"alone": alone, "added by a worker": max(added for added, _ in found), "together": together}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_a_worker_does_not_copy_the_annotations() -> None:
    megabytes = 8  # annotations as Python objects would add 17 (png) and 53 (refcoco) to each worker; to work at all takes about 2
    # in a process of its own: pytest's would be garbage-collected in the workers, and so copied
    done = subprocess.run([sys.executable, __file__, str(megabytes), "2"], capture_output=True, text=True, timeout=300, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["dataset"] for f in found] == ["png", "refcoco"] and all(f["samples"] > 2000 for f in found)
    assert all(f["added by a worker"] < megabytes / 2 for f in found), found


def main(megabytes: float = 150, workers: int = 8) -> None:
    "Measure both kinds of dataset; a line of JSON each."
    for make in (png, refcoco):
        with tempfile.TemporaryDirectory() as folder:
            picture(Path(folder))
            dataset = make(Path(folder), megabytes)
            dataset[0]  # Pillow's readers load at their first use, and are no annotations
            found = {name: round(value) for name, value in measure(dataset, workers).items()}
            print(json.dumps({"dataset": make.__name__, "samples": len(dataset), **found}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
