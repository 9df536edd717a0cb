"""The evaluation notebooks as programs, run in this process: what is asked, what a resumed run depends on, what is said when nothing can be measured."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch

from hglmm import devices, inference, recipes
from hglmm.datasets import layout, refcoco, toycoco
from hglmm.datasets.core import Sample
from hglmm.errors import DataError, SettingError
from hglmm.geometry import Letterbox
from hglmm.heads import loading
from hglmm.heads.base import MaskHead
from hglmm.runs import evaluation, scores, tasks
from hglmm.runs.benchmarks import choose
from hglmm.runs.parameters import read_parameters
from hglmm.runs.records import Records

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    "Eight pictures to measure on."
    return toycoco.generate(tmp_path_factory.mktemp("data") / "world", counts={"train": 4, "val": 8, "test": 4})


@pytest.fixture
def world(tiny, tmp_path) -> Path:
    "A copy that may be broken."
    return Path(shutil.copytree(tiny, tmp_path / "world"))


@pytest.fixture
def program(tmp_path, monkeypatch, tiny):
    "Run the code of a notebook in nbs/runs with parameters; its variables."
    monkeypatch.setenv("HGLMM_RUNS", str(tmp_path / "runs"))

    def run(notebook: str, upto: str = "", /, drawn: bool = False, **parameters: Any) -> dict[str, Any]:
        if not drawn:  # figures take most of the time
            monkeypatch.setattr("hglmm.look.gallery.gallery", lambda items, title: None)
            monkeypatch.setattr("hglmm.look.grounding.grounding", lambda *_, **__: None)
        cells = [cell.source for cell in nbformat.read(ROOT / f"nbs/runs/{notebook}.ipynb", 4).cells if cell.cell_type == "code"]
        given = {"data": str(tiny), "name": "run", "device": "cpu", **parameters}
        injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
        seen, space = [], {"display": lambda *_: None}
        monkeypatch.setattr("hglmm.runs.parameters.parameters", lambda **allowed: read_parameters(seen, space, **allowed))
        for cell in [cells[0], injected, *cells[1:]]:
            seen.append(cell)
            exec(compile(cell, f"{notebook}.ipynb", "exec"), space)
            if upto and upto in space:
                break
        return space

    return run


def scores_of(tmp_path: Path, name: str = "run") -> dict[str, Any]:
    return json.loads((tmp_path / "runs" / name / "scores.json").read_text())


# --- what is asked


@pytest.mark.parametrize(
    "notebook, parameters, message",
    [
        ("eval_res", {"datasets": ["refcocog"], "splits": ["testA"]}, "none of the chosen datasets has the split 'testA': refcocog has train, val, test"),
        ("eval_res", {"datasets": ["refcoco", "refcoco+"], "splits": ["val", "test"]}, "has the split 'test': refcoco has train, val, testA, testB; refcoco\\+ has"),
        ("eval_res", {"splits": []}, "parameter 'splits' is an empty list"),
        ("eval_res", {"datasets": []}, "parameter 'datasets' is an empty list"),
        ("eval_res", {"protocols": []}, "parameter 'protocols' is an empty list"),
        ("eval_res", {"splits": "[]"}, "parameter 'splits' is an empty list"),
        ("eval_res", {"autocast": "bf16"}, "autocast"),
        ("eval_reasonseg", {"splits": []}, "parameter 'splits' is an empty list"),
        ("eval_reasonseg", {"queries": "medium"}, "queries"),
        ("eval_gcg", {"metrics": []}, "parameter 'metrics' is an empty list"),
        ("eval_png", {"dtype": "float8"}, "dtype"),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_parameters_cell(notebook, parameters, message, program, tmp_path):
    with pytest.raises(SettingError, match=message):
        program(notebook, "workers", **parameters)
    assert not (tmp_path / "runs").exists()


def test_a_dataset_without_the_split_is_left_out_aloud(program, capsys):
    space = program("eval_res", "job", datasets=["refcocog", "refcoco"], splits=["val", "testA"], protocols=["hg", "split"])
    assert list(space["benchmarks"]) == [
        "toycoco refcocog val (hg)", "toycoco refcocog val (split)", "toycoco refcoco val (hg)", "toycoco refcoco val (split)",
        "toycoco refcoco testA (hg)", "toycoco refcoco testA (split)",
    ]  # fmt: skip
    assert "is left out" not in capsys.readouterr().out
    program("eval_res", "job", datasets=["refcocog", "refcoco"], splits=["testA"])
    assert "refcocog is left out: it has none of the splits testA (refcocog has train, val, test" in capsys.readouterr().out


def test_titles_name_the_data(world, program):
    real = world.with_name("data")
    world.rename(real)
    (real / "toycoco.json").unlink()
    assert list(program("eval_res", "job", data=str(real), datasets=["refcoco"], protocols=["hg"])["benchmarks"]) == ["refcoco val (hg)"]
    assert program("eval_png", "title", data=str(real))["title"] == "PNG val"
    assert program("eval_png", "title")["title"] == "toycoco PNG val"
    for asked, words in (({"queries": "long"}, " (long queries)"), ({"paraphrases": True}, " (all paraphrases)"), ({}, "")):
        assert list(program("eval_reasonseg", "job", splits=["test"], **asked)["benchmarks"]) == [f"toycoco ReasonSeg test{words}"]


def test_precision_and_revision_reach_the_job_and_the_records(program, tmp_path):
    job = program("eval_png", "job", revision="abc", autocast="auto", dtype="bfloat16")["job"]
    assert (job.revision, job.autocast, job.dtype) == ("abc", "auto", "bfloat16")
    program("eval_png", "records", limit=2, autocast="bfloat16", dtype="bfloat16")
    noted_settings = json.loads((tmp_path / "runs/run/val/config.json").read_text())
    assert noted_settings["dtype"] == noted_settings["autocast"] == "bfloat16"
    run = json.loads((tmp_path / "runs/run/config.json").read_text())
    assert run["job"]["autocast"] == "bfloat16" and run["job"]["benchmarks"][0]["limit"] == 2 and {"torch", "transformers", "python"} <= run["versions"].keys()
    with pytest.raises(SettingError, match="dtype: recorded \"bfloat16\", now \"float32\"; autocast: recorded \"bfloat16\", now \"off\""):
        program("eval_png", limit=2)


def edited(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_one_wording_of_a_question_is_asked_unless_all_are_asked_for(world, program, tmp_path):
    for path in (world / "reason_seg").rglob("test/*.json"):
        edited(path, lambda content: content["text"].extend(["and again?", "once more?"]))
    pictures = len(list((world / "reason_seg").rglob("test/*.json")))
    tables = {all_: program("eval_reasonseg", data=str(world), splits=["test"], paraphrases=all_)["tables"] for all_ in (False, True)}
    first, every = (next(iter(tables[all_].values())) for all_ in (False, True))
    assert len(first["question"]) == pictures and "and again?" not in first["question"] and len(every["question"]) >= 3 * pictures
    assert len(np.unique(every["picture"])) == pictures
    kept = scores_of(tmp_path)  # both stand there, under their own titles
    assert kept["pictures"]["toycoco ReasonSeg test"] == kept["pictures"]["toycoco ReasonSeg test (all paraphrases)"] == pictures
    assert kept["samples"]["toycoco ReasonSeg test"] == pictures and kept["samples"]["toycoco ReasonSeg test (all paraphrases)"] == len(every["question"])
    assert {p.name for p in (tmp_path / "runs/run").iterdir() if p.is_dir()} == {"test", "test-all-paraphrases"}


def test_what_is_odd_about_the_data_is_said_and_noted(world, program, tmp_path, capsys):
    (path, *_) = sorted((world / "reason_seg").rglob("val/*.json"))
    edited(path, lambda content: content.update(shapes=[]))
    program("eval_reasonseg", data=str(world), splits=["val"])
    assert "pictures without a shape: 1" in capsys.readouterr().out
    assert scores_of(tmp_path)["notes"]["toycoco ReasonSeg val"]["pictures without a shape"] == 1
    objects = layout.open_refcoco(world, "refcoco", "val")
    edited(world / "coco/refcoco/instances.json", lambda content: [
        a.update(segmentation=[[500, 500, 510, 500, 510, 510]]) for a in content["annotations"] if a["image_id"] == int(objects[0].info["image_id"])
    ])  # fmt: skip
    program("eval_res", data=str(world), name="res", datasets=["refcoco"], protocols=["hg"])
    notes = scores_of(tmp_path, "res")["notes"]["toycoco refcoco val (hg)"]
    assert len(notes) == 2 and set(notes.values()) == {len(objects[0].phrases)}  # what the files say, and what was measured
    assert all(f"{what}: {count}" in capsys.readouterr().out for what, count in list(notes.items())[:1])


@pytest.mark.parametrize("notebook, parameters", [("eval_png", {}), ("eval_reasonseg", {}), ("eval_gcg", {"metrics": ["mIoU"]})])
def test_the_head_computes_in_the_precision_asked_for(notebook, parameters, program, monkeypatch):
    used, real = set(), devices.autocast
    monkeypatch.setattr(devices, "autocast", lambda on, name="auto": (used.add(name), real(on, name))[1])
    for name in ("off", "bfloat16"):
        used.clear()
        program(notebook, limit=1, name=name, autocast=name, **parameters)
        assert used == {name}


# --- limits and failures


def columns(records: Records) -> dict[str, list]:
    return {name: column.tolist() for name, column in records.table().items()}


def test_a_limit_may_be_raised_and_lowered(program, tmp_path):
    whole = columns(program("eval_png", "records", name="whole")["records"])
    for limit in (2, 5, 3, 1000):
        space = program("eval_png", limit=limit)
        count = min(limit, 8) or 8
        assert space["records"].indices() == set(range(count)) and len(space["benchmark"].data) == count
        assert columns(space["records"]) == {name: [v for v, i in zip(column, whole["index"], strict=True) if i < count] for name, column in whole.items()}
        kept = scores_of(tmp_path)
        assert kept["samples"] == {"toycoco PNG val": count} and kept["limit"] == {"toycoco PNG val": limit}
        assert kept["scores"]["toycoco PNG val"] == scores.png_scores(space["table"])[0]


def spoil(world: Path, pictures: int) -> None:
    for path in sorted((world / "coco/val2017").glob("*.jpg"))[8 - pictures : 8]:
        path.write_bytes(path.read_bytes()[:200])


def test_a_run_with_tolerated_failures_can_be_run_again(world, program, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "MANY", 2)
    spoil(world, 3)
    found = []
    for _ in range(3):
        space = program("eval_png", data=str(world), max_failed=0.4, batch_size=1, split="val")
        found.append((columns(space["records"]), scores_of(tmp_path)))
    assert found[0] == found[1] == found[2] and found[0][1]["failed"] == {"toycoco PNG val": 3}
    with pytest.raises(DataError, match=r"(?s)3 of 8 samples failed, more than the allowed share of 0\.3; .*sample 5: DataError: .*cut short"):
        program("eval_png", data=str(world), max_failed=0.3, batch_size=1)


def test_a_run_in_which_most_fail_is_stopped_early(monkeypatch, tmp_path):
    class Broken:
        asked = 0

        def __len__(self) -> int:
            return 100

        def __getitem__(self, i: int) -> Sample:
            Broken.asked += 1
            raise DataError(f"picture {i} is cut short")

    with pytest.raises(DataError, match="16 of the first 16 samples failed, the last by DataError: picture 15 is cut short. The evaluation was stopped"):
        evaluation.evaluate(lambda samples: [[] for _ in samples], Broken(), Records(tmp_path / "a"), batch_size=4)
    assert Broken.asked <= 20  # a batch is read ahead
    evaluation.evaluate(lambda samples: [[] for _ in samples], Broken(), Records(tmp_path / "b"), batch_size=4, allowed=1.0)
    assert len(Records(tmp_path / "b").failures()) == 100


@pytest.mark.parametrize("notebook", ["eval_png", "eval_reasonseg"])
def test_a_first_try_that_fails_altogether_says_why(notebook, world, program):
    for path in [*(world / "coco/val2017").glob("*.jpg"), *(world / "reason_seg").rglob("val/*.jpg")]:
        path.unlink()
    with pytest.raises(DataError, match=r"(?s)nothing was measured: all \d samples failed:\n  sample 0: DataError: .*no (such )?picture"):
        program(notebook, data=str(world), max_failed=1.0)


@pytest.mark.parametrize("notebook, parameters", [
    ("eval_res", {"datasets": ["refcoco"], "protocols": ["hg"]}), ("eval_png", {"shuffle_phrases": True}), ("eval_reasonseg", {}), ("eval_gcg", {"metrics": ["AP50", "mIoU"]}),
])  # fmt: skip
def test_one_sample_is_enough(notebook, parameters, program, tmp_path):
    space = program(notebook, drawn=True, limit=1, **parameters)
    (title, *_) = scores_of(tmp_path)["scores"]
    assert title.startswith("toycoco ") and scores_of(tmp_path)["samples"][title] == 1 and len(space["job"].benchmarks) == 1


def test_a_sample_that_nobody_tried_is_not_passed_over(tmp_path):
    records = Records(tmp_path)
    records.add("a", 0, [{"iou": 1.0}])
    records.fail(1, ValueError("no"))
    assert evaluation.check_failures(records, 2, 0.5) == 1
    with pytest.raises(DataError, match="2 of 4 samples were neither measured nor failed"):
        evaluation.check_failures(records, 4, 0.5)


# --- what a resumed run depends on


def test_scores_stand_under_their_titles(program, tmp_path):
    for split in ("val", "train"):
        program("eval_png", split=split, limit=2)
    program("eval_reasonseg", limit=2, splits=["test"])
    kept = scores_of(tmp_path)
    assert {"toycoco PNG val", "toycoco PNG train", "toycoco ReasonSeg test"} <= kept["scores"].keys()
    assert kept["threshold"]["toycoco PNG val"] == 0.5 and kept["threshold"]["toycoco ReasonSeg test"] == 0.3
    assert kept["data_name"]["toycoco PNG val"] == "toycoco" and kept["dtype"]["toycoco PNG val"] == "float32" and kept["autocast"]["toycoco PNG train"] == "off"


def test_the_folder_of_another_run_is_refused(program, tmp_path):
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/config.json").write_text('{"program": "train"}')
    with pytest.raises(SettingError, match="is the folder of another run. Give the evaluation another name"):
        program("eval_png")


def test_records_of_an_older_version_are_not_continued(program, tmp_path):
    program("eval_png", "records", limit=2)
    path = tmp_path / "runs/run/val/config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({name: settings[name] for name in ("task", "benchmark", "data", "recipe", "head", "threshold", "shuffle_phrases")}))
    with pytest.raises(SettingError, match="these records are of format 1, this version of hglmm writes format 2"):
        program("eval_png", limit=2)


@pytest.fixture
def job(world, tmp_path) -> tasks.Job:
    chosen = choose("png", world, tmp_path / "run", [{"split": "val"}], limit=2)
    return tasks.Job("toy_llava", "checkpoints/toy_head", list(chosen.values()), device="cpu")


def go_on(job: tasks.Job) -> None:
    "As a new run would: nothing is open, nothing loaded."
    job = dataclasses.replace(job, benchmarks=[dataclasses.replace(one) for one in job.benchmarks])
    for benchmark in job.benchmarks:
        tasks.measure(job, benchmark, benchmark.data)


def other_weights(folder: Path) -> None:
    "Change one number among the weights."
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_other_weights_of_the_lmm_are_noticed(job, tmp_path):
    folder = Path(shutil.copytree(ROOT / "checkpoints/toy_llava", tmp_path / "lmm"))
    job = dataclasses.replace(job, lmm=str(folder))
    go_on(job)
    go_on(job)
    other_weights(folder)
    with pytest.raises(SettingError, match=r"lmm\.files.*safetensors: another content of the same size"):
        go_on(job)


def test_another_head_is_noticed(job, tmp_path):
    folder = Path(shutil.copytree(ROOT / "checkpoints/toy_head", tmp_path / "head"))
    job = dataclasses.replace(job, head=str(folder))
    go_on(job)
    other_weights(folder)
    with pytest.raises(SettingError, match="head: recorded"):
        go_on(job)


def test_a_recipe_that_was_edited_is_noticed(job, monkeypatch):
    go_on(job)
    monkeypatch.setitem(recipes.RECIPES, "toy_llava", recipes.replace("toy_llava", schedule__lr=1.0))
    go_on(job)  # what only training looks at does not count
    monkeypatch.setitem(recipes.RECIPES, "toy_llava", recipes.replace("toy_llava", question="{question} <image>"))
    with pytest.raises(SettingError, match=r"recipe_digest\.question: recorded .*, now \"\{question\} <image>\""):
        go_on(job)


def test_another_parser_is_noticed(job, tmp_path, monkeypatch):
    chosen = choose("gcg", job.benchmarks[0].root, tmp_path / "run", [{"split": "val"}], limit=1)
    job = dataclasses.replace(job, benchmarks=list(chosen.values()), question="What is this?", max_new_tokens=8)
    go_on(job)
    monkeypatch.setattr(tasks, "parser_name", lambda: "en_other 1.0")
    with pytest.raises(SettingError, match='parser: recorded .*, now "en_other 1.0"'):
        go_on(job)


def test_another_sam_is_noticed(job, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import SamConfig, SamModel, SamVisionConfig

    from hglmm import heads

    vision = SamVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=96, window_size=3, global_attn_indexes=[1])
    SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 96})).save_pretrained(tmp_path / "sam")
    torch.manual_seed(0)
    loading.save_head(heads.begin(recipes.replace("toy_llava", head="unet_sam"), tmp_path / "sam"), tmp_path / "head")
    job = dataclasses.replace(job, head=str(tmp_path / "head"), sam=str(tmp_path / "sam"))
    go_on(job)
    go_on(job)
    assert json.loads((tmp_path / "run/val/config.json").read_text())["head_kind"] == "unet_sam"
    other_weights(tmp_path / "sam")
    with pytest.raises(SettingError, match=r"sam\.files\.model\.safetensors: another content of the same size"):
        go_on(job)


def test_other_data_at_the_same_place_is_noticed(job, world):
    go_on(job)
    path = world / "coco/annotations/png_coco_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content[::-1]))
    with pytest.raises(SettingError, match=r"data_files.*png_coco_val2017\.json"):
        go_on(job)


def test_samples_are_held_against_the_dataset_one_by_one(job, tmp_path):
    go_on(job)
    (benchmark,) = job.benchmarks
    records = Records(benchmark.folder)
    tasks.check_samples(records, benchmark.whole)
    path = next(Path(benchmark.folder).glob("records-*.jsonl"))
    name = records.samples()[1]
    path.write_text(path.read_text().replace(f'"sample": "{name}"', '"sample": "other"'))
    with pytest.raises(SettingError, match=f"place 1 was measured as sample 'other', the dataset has '{name}' there"):
        go_on(job)


# --- intervals are drawn over pictures


def by_hand(table: dict[str, np.ndarray], score) -> tuple[float, float]:
    "The interval, draw by draw: whole pictures with all that was said about them."
    rows = {name: np.flatnonzero(table["picture"] == name) for name in np.unique(table["picture"])}
    names, random, values = list(rows), np.random.default_rng(0), []
    for _ in range(1000):
        drawn = np.concatenate([rows[names[k]] for k in random.integers(len(names), size=len(names))])
        values.append(score({name: column[drawn] for name, column in table.items()}))
    return tuple(np.quantile(values, (0.025, 0.975)))


@pytest.fixture(scope="module")
def crowded() -> dict[str, np.ndarray]:
    "Records of ten pictures with six phrases each, all of a picture equally good."
    random = np.random.default_rng(3)
    picture = np.repeat([f"p{k}" for k in range(10)], 6)
    union = random.integers(100, 2000, 60)
    iou = np.repeat(random.uniform(0.1, 0.9, 10), 6)
    shared = (union * iou).astype(int)
    truth = {"isthing": random.random(60) < 0.5, "plural": random.random(60) < 0.3, "long": random.random(60) < 0.5, "correct": random.random(60)}
    return {"picture": picture, "sample": np.array([f"s{k}" for k in range(60)]), "union": union, "intersection": shared, "iou": shared / union, **truth}


def test_intervals_of_all_tasks_are_drawn_over_pictures(crowded):
    np.testing.assert_allclose(scores.res_scores(crowded)[1]["mIoU"], by_hand(crowded, lambda t: 100 * t["iou"].mean()))
    np.testing.assert_allclose(scores.res_scores(crowded)[1]["cIoU"], by_hand(crowded, lambda t: 100 * t["intersection"].sum() / t["union"].sum()))
    np.testing.assert_allclose(scores.png_scores(crowded)[1]["all"], by_hand(crowded, lambda t: 100 * t["iou"].mean()))
    np.testing.assert_allclose(scores.png_scores(crowded)[1]["pixel acc"], by_hand(crowded, lambda t: 100 * t["correct"].mean()))
    np.testing.assert_allclose(scores.reasonseg_scores(crowded)[1]["overall"]["cIoU"], by_hand(crowded, lambda t: 100 * t["intersection"].sum() / t["union"].sum()))
    category = {**crowded, "category": np.array(["mug"] * 60)}
    np.testing.assert_allclose(scores.by_category(category)[1]["mug"]["mIoU"], by_hand(crowded, lambda t: 100 * t["iou"].mean()))


@pytest.mark.parametrize("task, options", [("res", {"dataset": "refcoco", "protocol": "standard"}), ("res", {"dataset": "refcocog", "protocol": "hg"}), ("png", {})])
def test_a_record_says_which_picture_it_is_of(task, options, tiny):
    "Several samples of one picture are one picture: told by the files, not by the samples."
    data = layout.open_task(task, tiny, split="val", **options)
    rows = [row for i in range(len(data)) for row in evaluation.rows_of(data[i], data[i].masks)]
    instances = json.loads((tiny / "coco/refcoco/instances.json").read_text())
    known = {str(image["id"]) for image in instances["images"]} | {str(int(path.stem)) for path in (tiny / "coco/val2017").glob("*.jpg")}
    assert {row["picture"] for row in rows} <= known
    if options.get("protocol") == "standard":
        assert len({row["picture"] for row in rows}) < len(data)


# --- files are opened once


@pytest.mark.parametrize(
    "notebook, parameters, benchmarks, files", [("eval_res", {"splits": ["val", "testA", "test"]}, 12, 3), ("eval_reasonseg", {"splits": ["val", "test"]}, 2, 0)]
)
def test_each_benchmark_is_opened_once_a_run(notebook, parameters, benchmarks, files, program, monkeypatch):
    "And the annotations of all COCO, which the splits and protocols of a dataset share, are read once a dataset."
    opened, read, real, reader = [], [], layout.open_task, refcoco.read_files
    monkeypatch.setattr(layout, "_kept", {})  # what other tests have read
    monkeypatch.setattr(layout, "open_task", lambda task, root, **options: (opened.append((task, str(options))), real(task, root, **options))[1])
    monkeypatch.setattr(layout, "read_files", lambda *paths: (read.append(paths), reader(*paths))[1])
    program(notebook, limit=1, **parameters)
    assert len(opened) == len(set(opened)) == benchmarks and len(read) == files


@pytest.mark.parametrize("side", [64, 128, 512])
@pytest.mark.parametrize(("width", "height"), [(200, 120), (90, 310), (640, 480)])
def test_the_order_is_square_cut_sigmoid_picture(width, height, side):
    "METHOD section 5, for heads that draw below, at and above the square's side, in half precision too; written out pixel by pixel."

    def enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        "Bilinear, align_corners false."
        for axis, count in zip((-2, -1), size, strict=True):
            of = maps.shape[axis]
            at = np.clip((np.arange(count) + 0.5) * of / count - 0.5, 0, of - 1)
            low = np.floor(at).astype(int)
            share = (at - low).reshape((-1, 1) if axis == -2 else (-1,))
            maps = np.take(maps, low, axis) * (1 - share) + np.take(maps, np.minimum(low + 1, of - 1), axis) * share
        return maps

    class Drawing(MaskHead):
        recipe = recipes.get("toy_llava")

        def forward(self, features: list[Any]) -> list[torch.Tensor]:
            return [logits]

    torch.manual_seed(side)
    logits, box = (6 * torch.randn(2, side, side)).bfloat16(), Letterbox.fit(width, height, 128)
    left, top, right, bottom = box.pad
    square = enlarged(logits.double().numpy(), (128, 128))[:, top : 128 - bottom, left : 128 - right]
    expected = enlarged(1 / (1 + np.exp(-square)), (height, width))
    found = inference.probabilities(Drawing(), [SimpleNamespace(letterbox=box, levels=torch.zeros(1))])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("given", ["~/run", "~/run/head", "~/run/head/model.safetensors"])
def test_heads_are_found_where_the_grounder_finds_them(given, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(ROOT / "checkpoints/toy_head", tmp_path / "run/head")
    _, head = tasks.Job("toy_llava", given, []).models
    assert head.kind == "hg" and not head.training
