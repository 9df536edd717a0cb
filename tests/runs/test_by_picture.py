"Evaluation goes by pictures: what is said about one is measured together, read ahead, and the records are those of one sample at a time."

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_data import FILES, Tiny

from hglmm.datasets import layout, refcoco
from hglmm.datasets.core import Sample, Subset
from hglmm.errors import DataError, SettingError
from hglmm.lmm import answers, frozen
from hglmm.runs import evaluation, tasks
from hglmm.runs.benchmarks import Benchmark
from hglmm.runs.records import Records

STANDARD = {"dataset": "refcoco", "split": "val", "protocol": "standard"}


class Alone:
    "A dataset that does not say which samples are of one picture."

    def __init__(self, data: Any):
        self.data, self.files, self.ids = data, data.files, data.ids

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Sample:
        return self.data[i]


@pytest.fixture(scope="module")
def models() -> tuple:
    return tasks.Job("toy_llava", "checkpoints/toy_head", [], device="cpu").models


@pytest.fixture
def measured(small_world, tmp_path, models) -> Callable:
    "The records of a benchmark, measured with the shipped model and head."

    def measure(task: str, name: str, options: dict, data: Any = None, process: int = 0, processes: int = 1, limit: int = 0, **settings: Any) -> Records:
        benchmark = Benchmark(name, task, str(small_world), str(tmp_path / name), options, limit)
        job = tasks.Job("toy_llava", "checkpoints/toy_head", [benchmark], device="cpu", question="Please give me a detailed description of the image.", **settings)
        job.__dict__["models"] = models
        return tasks.measure(job, benchmark, benchmark.data if data is None else data(benchmark.data), process, processes)

    return measure


def columns(records: Records) -> dict[str, list]:
    return {name: column.tolist() for name, column in records.table().items()}


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("protocol", refcoco.PROTOCOLS)
def test_a_dataset_knows_the_picture_of_each_sample(task, protocol, tmp_path):
    if task != "res" and protocol != "hg":
        pytest.skip("protocols are of RES")
    data = Tiny(task, tmp_path / task).open(**({"protocol": protocol} if task == "res" else {"paraphrases": True} if task == "reasonseg" else {}))
    known = [data[i].info["image_id"] for i in range(len(data))]
    assert data.image_ids == known and Subset(data, [1, 0]).image_ids == known[1::-1]
    if protocol == "standard" or task == "reasonseg":
        assert len(set(known)) < len(known)


def test_sentences_are_measured_together_and_the_records_are_the_same(measured, monkeypatch):
    "RES `standard`: the masks of one sentence at a time, but for a pixel whose probability is the threshold to the sixth digit."
    together = columns(measured("res", "together", STANDARD, limit=40))
    monkeypatch.setattr(frozen, "distinct_pictures", lambda images: (images, list(range(len(images)))))
    alone = columns(measured("res", "alone", STANDARD, Alone, limit=40, batch_size=1))
    assert len(together["sample"]) == 40 > len(set(together["picture"]))
    counted = ("intersection", "union", "iou", "correct")
    assert {name: column for name, column in together.items() if name not in counted} == {name: column for name, column in alone.items() if name not in counted}
    assert np.abs(np.subtract(together["intersection"], alone["intersection"])).sum() <= 2 and np.abs(np.subtract(together["union"], alone["union"])).sum() <= 2


def test_however_the_work_is_split_the_table_is_the_same(measured, tmp_path):
    whole = columns(measured("res", "one", STANDARD, limit=50, batch_size=2))
    for process in (1, 0):
        measured("res", "two", STANDARD, None, process, 2, limit=50, batch_size=2)
    assert columns(Records(tmp_path / "two")) == whole
    measured("res", "cut", STANDARD, limit=50, batch_size=2)
    (path,) = (tmp_path / "cut").glob("records-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:20])  # within a picture
    assert columns(measured("res", "cut", STANDARD, limit=50, batch_size=2)) == whole


def test_each_picture_is_opened_prepared_and_seen_once(measured, models, small_world, monkeypatch):
    lmm, counts, threads = models[0], {"opened": 0, "prepared": 0, "seen": 0}, set()
    opened, prepare, see = refcoco.open_annotated, type(lmm).prepare, type(lmm).see

    def count(what: str, result: Any, number: int = 1) -> Any:
        counts[what] += number
        threads.add((what, threading.current_thread().name.startswith("reader")))
        return result

    monkeypatch.setattr(refcoco, "open_annotated", lambda *given: count("opened", opened(*given)))
    monkeypatch.setattr(type(lmm), "prepare", lambda self, image: count("prepared", prepare(self, image)))
    monkeypatch.setattr(type(lmm), "see", lambda self, pixels: count("seen", see(self, pixels), len(pixels)))
    records = measured("res", "counted", STANDARD, limit=30)
    pictures = len(set(records.table()["picture"]))
    assert counts == {"opened": pictures, "prepared": pictures, "seen": pictures} and pictures < 15
    assert threads == {("opened", True), ("prepared", True), ("seen", False)}
    data = layout.open_refcoco(small_world, "refcoco", "val", "standard")
    first, second = data[0].image, data[1].image
    assert first is not second and first == second  # a sample's picture is its own to draw on


def test_a_picture_that_cannot_be_prepared_fails_and_the_others_do_not(tmp_path):
    class Six:
        image_ids = ["a", "a", "b", "b", "c", "c"]

        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> Sample:
            return Sample(Image.new("RGB", (2 + i // 2, 2)), [], np.zeros((0, 2, 2), bool), f"s{i}", {"image_id": self.image_ids[i]})

    def prepare(image: Image.Image) -> tuple[int, int]:
        if image.width == 3:
            raise DataError("no room for it")
        return image.size

    def measure(samples: list[Sample]) -> list[list[dict]]:
        if any(sample.prepared is None and sample.image.width == 3 for sample in samples):
            raise DataError("not prepared")
        return [[{"prepared": sample.prepared is not None, "batch": len(samples)}] for sample in samples]

    records = Records(tmp_path)
    evaluation.evaluate(measure, Six(), records, batch_size=3, prepare=prepare)
    assert [(f.index, f.error) for f in records.failures()] == [(2, "DataError: no room for it"), (3, "DataError: not prepared")]
    table = records.table()
    assert table["index"].tolist() == [0, 1, 4, 5] and table["prepared"].tolist() == [True, False, True, False]


def test_the_control_takes_another_pictures_phrases(measured, models, monkeypatch):
    "Also where the next sample is of the same picture."
    given, swap = [], tasks.inference.swap_phrases

    def swapped(features: list) -> list:
        given.append((features, swap(features)))
        return given[-1][1]

    monkeypatch.setattr(tasks.inference, "swap_phrases", swapped)
    measured("res", "control", STANDARD, limit=48, batch_size=2, shuffle_phrases=True)
    assert len(given) > 1
    for features, control in given:
        donors = [next(one for one in features if np.array_equal(one.text[0], other.text[0])) for other in control]
        several = len({id(one.levels) for one in features}) > 1
        assert all((donor.levels is not mine.levels) == several for donor, mine in zip(donors, features, strict=True))


@pytest.mark.parametrize("task, options", [("gcg", {}), ("reasonseg", {"paraphrases": True})])
def test_answers_of_several_pictures_make_the_same_records(task, options, measured, models, monkeypatch):
    sizes, speak = [], answers.speak
    monkeypatch.setattr(answers, "speak", lambda lm, prompts, *given: (sizes.append(len(prompts)), speak(lm, prompts, *given))[1])
    together = columns(measured(task, "together", {"split": "val", **options}, limit=10, batch_size=8))
    assert max(sizes) >= 8 and len(sizes) < 5
    assert columns(measured(task, "alone", {"split": "val", **options}, limit=10, batch_size=1)) == together


def test_the_picture_that_is_kept_is_not_taken_for_another(small_world):
    "What a dataset keeps of the picture it opened last goes by the picture."
    data = layout.open_refcoco(small_world, "refcoco", "val", "standard")
    first = [i for i, picture in enumerate(data.image_ids) if picture == data.image_ids[0]]
    other = next(i for i in range(len(data)) if i not in first)
    assert data[0].image != data[other].image and data[0].image == data[first[-1]].image


class Crowded:
    "Pictures with twenty sentences each."

    def __init__(self, pictures: int, broken: tuple[int, ...] = ()):
        self.image_ids, self.broken = [k // 20 for k in range(20 * pictures)], broken

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Sample:
        if self.image_ids[i] in self.broken:
            raise DataError(f"picture {self.image_ids[i]} is cut short")
        return Sample(Image.new("RGB", (4, 2)), [], np.zeros((0, 2, 4), bool), f"s{i}", {"image_id": self.image_ids[i]})


def one_row(samples: list[Sample]) -> list[list[dict]]:
    return [[{"batch": len(samples)}] for _ in samples]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_one_broken_picture_stops_nothing_however_much_is_said_about_it(batch_size, tmp_path):
    records = Records(tmp_path)
    evaluation.evaluate(one_row, Crowded(4, broken=(0,)), records, batch_size=batch_size)
    assert len(records.failures()) == 20 and len(records.indices()) == 60
    with pytest.raises(DataError, match="the last by DataError: picture 15 is cut short. The evaluation was stopped"):
        evaluation.evaluate(one_row, Crowded(40, broken=tuple(range(16))), Records(tmp_path / "many"), batch_size=batch_size)


def test_what_is_measured_against_others_is_never_measured_alone(tmp_path):
    "A control of one sample would be given its own phrase, and score as if there were none."

    def measure(samples: list[Sample]) -> list[list[dict]]:
        if len(samples) > 1:
            raise RuntimeError("out of memory")
        return one_row(samples)

    records = Records(tmp_path / "control")
    evaluation.evaluate(measure, Crowded(1), records, batch_size=2, alone=False)
    assert not records.indices() and {f.error for f in records.failures()} == {"RuntimeError: out of memory"}
    records = Records(tmp_path / "usual")
    evaluation.evaluate(measure, Crowded(1), records, batch_size=2)
    assert len(records.indices()) == 20 and not records.failures()


def test_a_control_wants_others(measured, monkeypatch):
    with pytest.raises(SettingError, match="batch_size is 1, expected at least 2"):
        measured("res", "control", STANDARD, limit=4, batch_size=1, shuffle_phrases=True)
    seen = []
    monkeypatch.setattr(evaluation, "evaluate", lambda *given, **named: seen.append(named["alone"]))
    measured("res", "shuffled", STANDARD, limit=4, batch_size=2, shuffle_phrases=True), measured("res", "plain", STANDARD, limit=4)
    assert seen == [False, True]


def test_a_failed_batch_does_not_hold_its_tensors(tmp_path):
    "While samples are tried one by one, what the batch had made must be gone."
    held = []

    class Large: ...

    def measure(samples: list[Sample]) -> list[list[dict]]:
        large = Large()
        if len(samples) > 1:
            held.append(weakref.ref(large))
            raise RuntimeError("out of memory")
        assert held[0]() is None, "the batch's frame is alive"
        return one_row(samples)

    records = Records(tmp_path)
    evaluation.evaluate(measure, Crowded(1), records)
    assert not records.failures()


def test_what_is_on_record_keeps_its_predictions(measured, monkeypatch):
    "A batch of which one sample failed is measured again as a whole, and only that sample's predictions are new."
    records = measured("png", "kept", {"split": "val"}, limit=4, batch_size=4, keep="probabilities")
    files = {path.name: path.read_bytes() for path in (records.folder / "probabilities").iterdir()}
    assert len(files) == 4
    name = next(iter(records.done()))
    keep = tasks.Keep(records.folder, "probabilities", 0.5, frozenset(records.done()))
    keep(name, np.ones((1, 4, 4), np.float32), ["another"])
    assert {path.name: path.read_bytes() for path in (records.folder / "probabilities").iterdir()} == files
    seen = []
    monkeypatch.setattr(evaluation, "evaluate", lambda measure, *given, **named: seen.append(measure))
    monkeypatch.setitem(tasks.TASKS, "png", lambda job, samples, keep: seen.append(keep.done))
    measured("png", "kept", {"split": "val"}, limit=4, batch_size=2, keep="probabilities")
    seen[0]([])
    assert seen[1] == records.done()
