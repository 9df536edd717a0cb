"The paper's table: filled, killed and gone on with, on two processes, and with everything that may be missing."

import csv
import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamModel, SamVisionConfig

from hglmm import heads, recipes
from hglmm.errors import HGLMMError
from hglmm.heads import loading
from hglmm.heads.training_free import TrainingFreeHead
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import paper, training
from hglmm.runs.paper_list import read_list, wanted
from hglmm.runs.paper_scores import Means, compared
from hglmm.runs.paper_tables import tables_of
from hglmm.runs.records import Records, _samples
from hglmm.runs.tasks import TASKS
from hglmm.runs.training_data import open_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("tables.html", "tables.md", "tables.tex", "tables.csv")
FEW = {"splits": ["val"], "protocols": ["hg"], "limit": 3, "batch_size": 2, "pictures": 1, "device": "cpu", "text_encoder": "offline"}
KILLED = """
import os
from hglmm.runs import predictions, records
add, call, count = records.Records.add, predictions.Keep.__call__, []

def counted(do, name):
    def done(self, *given, **more):
        count.append(name)
        if count.count(name) > int(os.environ[name]):
            os.kill(os.getpid(), 9)
        return do(self, *given, **more)
    return done

records.Records.add, predictions.Keep.__call__ = counted(add, "ADDS"), counted(call, "KEPT")
"""


@pytest.fixture(scope="module")
def checkpoints(small_world, tmp_path_factory) -> dict[str, dict[str, str]]:
    "A row of each kind: the head that ships, a U-Net and one with a random SAM after a few steps, two of the LMM's own heads."
    room = tmp_path_factory.mktemp("heads")
    torch.manual_seed(0)
    vision = SamVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, window_size=3, global_attn_indexes=[1])
    SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 128}, initializer_range=0.1)).save_pretrained(room / "sam")
    lmm, data = FrozenLMM.load("toy_llava", device="cpu"), open_data(small_world, ["refcoco+"])
    for kind in ("unet", "unet_sam"):
        run = training.Run(recipes.replace("toy_llava", head=kind), 2, batch_size=2, lr=1e-3, log_every=1, sam=str(room / "sam") if kind == "unet_sam" else "")
        loading.save_head(training.Trainer(run, lmm, data, room / f"{kind}_run").fit(), room / kind)
    loading.save_head(heads.build(recipes.replace("toy_llava", head="training_free")).choose([(1, 1), (1, 2)], 0.8), room / "training_free")
    rows = {kind: {"recipe": "toy_llava", "kind": kind, "head": str(room / kind)} for kind in ("unet", "unet_sam", "training_free")}
    rows["unet_sam"]["sam"] = str(room / "sam")
    return {"hg": {"recipe": "toy_llava", "kind": "hg", "head": "checkpoints/toy_head"}, **rows}


@pytest.fixture(scope="module")
def make(zygote, small_world):
    "Run the program in a folder of runs: exit status, what it said, the run's folder."

    def run(runs: Path, rows: list, environment: dict[str, str] | None = None, **parameters) -> tuple[int, str, Path]:
        runs.mkdir(exist_ok=True)
        told = {"name": "paper", "data": str(small_world), "checkpoints": rows, **FEW, **parameters}
        words = [str(ROOT / "nbs/runs/paper.ipynb"), str(runs / "paper.ipynb"), "--log-output", "--no-progress-bar", "--cwd", str(ROOT)]
        words += [text for key, value in told.items() for text in ("-y", f"{key}: {json.dumps(value)}")]
        return *zygote.run("papermill", *words, environment={**os.environ, "HGLMM_RUNS": str(runs), **(environment or {})}), runs / "paper"

    return run


def read(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    "The CSV file by row, benchmark and score."
    with open(folder / "tables.csv", newline="", encoding="utf-8") as file:
        return {(line["row"], line["benchmark"], line["score"]): line for line in csv.DictReader(file)}


def written(folder: Path, *more: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*TABLES, "gallery.png", *more)}


@pytest.fixture(scope="module")
def whole(checkpoints, make, tmp_path_factory):
    "The table of all four kinds and all four tasks, by a run that nothing happened to; one row more has no checkpoint."
    rows, room = [*checkpoints.values(), {"recipe": "toy_llava", "kind": "unet", "name": "better"}], tmp_path_factory.mktemp("whole")
    status, said, folder = make(room, rows, {"PATH": str(room)})  # without Java, which takes a quarter of a minute for each row
    assert status == 0, said
    return folder, said


def test_the_table_is_whole(whole, checkpoints):
    folder, said = whole
    found, titles = read(folder), [f"toycoco {name}" for name in ("refcoco val (hg)", "refcoco+ val (hg)", "refcocog val (hg)", "PNG val", "GCG val", "ReasonSeg val")]
    for kind in checkpoints:
        for title, score in zip(titles, ("cIoU", "mIoU", "cIoU", "all", "mIoU", "gIoU"), strict=True):
            line = found[f"toy_llava-{kind}", title, score]
            assert line["what"] == "measured" and 0 <= float(line["low"]) <= float(line["value"]) <= float(line["high"]) <= 100, (kind, title)
    assert len({found[f"toy_llava-{kind}", "toycoco PNG val", "all"]["value"] for kind in checkpoints}) == 4
    assert {line["what"] for (row, *_), line in found.items() if row == "better"} == {"hole"} and "24 of 30 benchmarks are measured" in said
    for score in ("METEOR", "CIDEr"):
        assert "no `java` on the PATH" in found["toy_llava-hg", "toycoco GCG val", score]["why"] and "no checkpoint" in found["better", "toycoco GCG val", "mIoU"]["why"]
    assert "no checkpoint is given for this row. nbs/runs/train.ipynb trains one" in found["better", "toycoco PNG val", "all"]["why"]
    for name in TABLES:
        text = (folder / name).read_text(encoding="utf-8")
        assert all(row.replace("_", "\\_") in text or row in text for row in ("toy_llava-training_free", "better")), name
        assert "Nobody has published numbers" in text or name.endswith("csv")
        assert "is not the same" not in text
    assert all(load in said for load in ("toy_llava-hg, res: 3 of 3 benchmarks to measure", "better: no checkpoint"))


def test_a_row_is_what_its_evaluation_measures(whole, run_notebook, small_world):
    "By the evaluation notebook, alone."
    status, said, runs = run_notebook("eval_png", name="png_alone", data=small_world, head="checkpoints/toy_head", limit=3, batch_size=2, device="cpu")
    assert status == 0, said
    alone = json.loads((runs / "png_alone/scores.json").read_text())
    ours = json.loads((whole[0] / "toy_llava-hg/png/scores.json").read_text())
    assert alone["scores"] == ours["scores"] and alone["intervals"] == ours["intervals"]
    assert Records(runs / "png_alone/val").table()["intersection"].tolist() == Records(whole[0] / "toy_llava-hg/png/val").table()["intersection"].tolist()


def test_reproduce_says_what_it_was_made_of(whole, checkpoints):
    folder, _ = whole
    said = (folder / "reproduce.md").read_text(encoding="utf-8")
    for path in folder.glob("*/*/*/config.json"):
        recorded = json.loads(path.read_text())
        assert recorded["head"] in said and recorded["recipe"] in said
        digests = [one["digest"] for files in (recorded["lmm"]["files"], recorded["data_files"], (recorded["sam"] or {"files": {}})["files"]) for one in files.values()]
        assert digests and not [one for one in digests if one not in said], path
    assert "| better | toycoco PNG val | all | no checkpoint is given" in said and "commit of hglmm" in said
    assert all(f"`{name}`" in said for name in FEW) and (folder / "paper.yaml").is_file()


# killed, and on two processes


@pytest.fixture(scope="module")
def two(checkpoints, make, tmp_path_factory):
    "A smaller table that nothing happened to: its rows, its tasks, its folder."
    rows, asked = [checkpoints["hg"], checkpoints["unet_sam"]], {"tasks": ["png", "reasonseg"], "limit": 5}
    status, said, folder = make(tmp_path_factory.mktemp("two"), rows, **asked)
    assert status == 0, said
    return rows, asked, folder


def counts(folder: Path) -> Counter:
    "How often each sample is on record."
    return Counter((path.parent, rows[0]["sample"]) for path in folder.rglob("records-*.jsonl") for _, _, rows in _samples(path))


def test_killed_and_started_again_it_gives_the_same(two, make, tmp_path):
    "Killed while it measures both rows together, while it measures the second alone, while it draws; then to the end."
    rows, asked, undisturbed = two
    for adds, kept in ((3, 9), (9, 9), (99, 1)):
        status, said, folder = make(tmp_path / "runs", rows, {"FIRST": KILLED, "ADDS": str(adds), "KEPT": str(kept)}, **asked)
        assert status == -9, said
        assert not (folder / "tables.csv").exists()
    before = counts(folder)
    status, said, folder = make(tmp_path / "runs", rows, **asked)
    assert status == 0, said
    assert written(folder, "reproduce.md") == written(undisturbed, "reproduce.md")
    assert before and set(counts(folder).values()) == {1} and counts(folder) == before  # all was measured before the last kill
    assert before.total() == counts(undisturbed).total() == 20


def test_two_processes_give_the_same(two, make, tmp_path):
    rows, asked, undisturbed = two
    status, said, folder = make(tmp_path / "runs", rows, num_processes=2, **asked)
    assert status == 0, said
    assert written(folder) == written(undisturbed)
    assert (folder / "toy_llava-hg/png/worker-00001.log").exists() and len(list((folder / "toy_llava-hg/png/val").glob("records-*.jsonl"))) == 2


def test_what_other_runs_measured_is_taken_over(two, make, tmp_path):
    "Two of four are there already, under another name and of a part of the samples; the tables are the same, and nothing is loaded for what is whole."
    rows, asked, undisturbed = two
    shutil.copytree(undisturbed / "toy_llava-hg/png", tmp_path / "runs/png_of_old")
    shutil.copytree(undisturbed / "toy_llava-unet_sam/reasonseg", tmp_path / "runs/questions")
    (cut,) = (tmp_path / "runs/questions/val").glob("records-*.jsonl")
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:2]))
    status, said, folder = make(tmp_path / "runs", rows, **asked)
    assert status == 0, said
    assert "toy_llava-hg, png: 0 of 1" in said and "toy_llava-hg, reasonseg: 1 of 1" in said and "toy_llava-unet_sam, reasonseg: 1 of 1" in said
    assert {name: (folder / name).read_bytes() for name in TABLES} == {name: (undisturbed / name).read_bytes() for name in TABLES}
    report = (folder / "reproduce.md").read_text()
    assert "| toy_llava-hg | toycoco PNG val | png_of_old/val | 5 |" in report and "| toy_llava-unet_sam | toycoco ReasonSeg val | questions/val | 2 |" in report
    status, said, _ = make(tmp_path / "apart", [rows[0]], reuse=False, **{**asked, "tasks": ["png"]})
    assert status == 0 and "toy_llava-hg, png: 1 of 1" in said


# what may be missing


def test_what_is_missing_is_a_hole_and_the_rest_goes_on(checkpoints, make, small_world, tmp_path):
    world = shutil.copytree(small_world, tmp_path / "world")
    (world / "coco/annotations/png_coco_val2017.json").unlink()
    broken = shutil.copytree(checkpoints["unet"]["head"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-100])
    toy = {"recipe": "toy_llava"}
    rows = [
        checkpoints["training_free"], {**toy, "kind": "hg", "head": "runs/nowhere/head"}, {"recipe": "deepseek_vl_1_3b", "kind": "hg", "head": "checkpoints/toy_head"},
        {**toy, "kind": "unet", "head": str(broken)}, {**checkpoints["unet_sam"], "sam": str(tmp_path / "no_sam")}, {**toy, "kind": "hg", "head": checkpoints["unet"]["head"], "name": "unlike"},
        {**checkpoints["hg"], "lmm": str(tmp_path / "no_lmm"), "name": "lost"},
    ]  # fmt: skip
    status, said, folder = make(tmp_path / "runs", rows, data=str(world), tasks=["png", "reasonseg"])
    assert status == 0, said
    found = read(folder)
    assert found["toy_llava-training_free", "toycoco ReasonSeg val", "gIoU"]["what"] == "measured" and len({line["row"] for line in found.values()}) == 7
    why = {row: line["why"] for (row, title, _), line in found.items() if title == "toycoco ReasonSeg val" and line["what"] == "hole"}
    expected = {
        "toy_llava-hg": "runs/nowhere/head: no such file or folder", "deepseek_vl_1_3b-hg": "deepseek", "toy_llava-unet": str(broken), "toy_llava-unet_sam": "no_sam", "unlike": "holds a head of kind 'unet', the row says 'hg'",
        "lost": "no_lmm",
    }  # fmt: skip
    assert set(why) == set(expected) and not [row for row, part in expected.items() if part not in why[row]], why
    gone = found["toy_llava-training_free", "toycoco PNG val", ""]
    assert gone["what"] == "hole" and "png_coco_val2017.json" in gone["why"]
    for name in TABLES:
        assert "holds a head of kind" in (folder / name).read_text(encoding="utf-8")
    assert "png_coco_val2017.json" in (folder / "reproduce.md").read_text() and (folder / "gallery.png").stat().st_size > 10_000


@pytest.mark.parametrize("wrong, said", [
    ({"checkpoints": [{"recipe": "toy_lava", "kind": "hg"}]}, "Did you mean 'toy_llava'?"), ({"checkpoints": [{"recipe": "toy_llava", "kind": "hg", "haed": "x"}]}, "Did you mean 'head'?"),
    ({"tasks": ["ress"]}, "Did you mean 'res'?"), ({"splits": ["testA"], "tasks": ["png"]}, "nothing to measure"), ({"chekpoints": []}, "Did you mean 'checkpoints'?"),
])  # fmt: skip
def test_what_is_mistyped_stops_the_run_before_it_begins(wrong, said, make, tmp_path):
    status, heard, folder = make(tmp_path / "runs", wrong.pop("checkpoints", []), **wrong)
    assert status != 0 and said in heard and not folder.exists()


def plan_of(rows: list, world: Path, folder: Path, tasks: list[str] = ("png",), **more) -> paper.Plan:
    return paper.Plan(read_list(rows), wanted(tasks, ["val"], ["hg"]), world, folder, 3, 2, "cpu", pictures=0, **more)


def test_a_head_that_fails_is_a_hole_and_no_other_is(checkpoints, small_world, tmp_path, monkeypatch):
    "Measured together with one that works."
    real = TrainingFreeHead.forward
    monkeypatch.setattr(TrainingFreeHead, "forward", lambda self, *given: (_ for _ in ()).throw(RuntimeError("out of memory")))
    plan = plan_of([checkpoints["hg"], checkpoints["training_free"]], small_world, tmp_path / "paper")
    filling = paper.fill(plan)
    assert set(filling.done) == {("toy_llava-hg", "toycoco PNG val")} and "out of memory" in filling.holes["toy_llava-training_free", "toycoco PNG val"]
    assert len(Records(tmp_path / "paper/toy_llava-hg/png/val").indices()) == 3
    monkeypatch.setattr(TrainingFreeHead, "forward", real)
    again = paper.fill(plan)  # mended: what failed is tried again
    assert not again.holes and len(again.done) == 2


def test_an_lmm_that_cannot_be_loaded_leaves_its_rows_empty(checkpoints, small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(FrozenLMM, "load", staticmethod(lambda *given, **more: (_ for _ in ()).throw(HGLMMError("no room for it"))))
    filling = paper.fill(plan_of([checkpoints["hg"], checkpoints["training_free"]], small_world, tmp_path / "paper"))
    assert not filling.done and set(filling.holes.values()) == {"no room for it"}


def test_published_numbers_stand_below_what_they_can_be_held_against(checkpoints, small_world, tmp_path):
    "On data that is not drawn, of a whole benchmark; beside a part of it there is a note instead."
    world = shutil.copytree(small_world, tmp_path / "world")
    (world / "toycoco.json").unlink()
    plan = plan_of([checkpoints["training_free"]], world, tmp_path / "paper", ["res"])
    for limit in (0, 3):
        filling = paper.fill(dataclasses.replace(plan, limit=limit))
        scores = compared(filling, Means([]))
        first, second = tables_of(filling.plan, scores)
        known = first.published.get("F-LMM LLaVA-1.5-7B (arXiv 2406.05821)")
        assert [cell.value for cell in known or []] == ([75.2, 63.7, 67.1] if limit == 0 else []) and not second.published  # papers have no mIoU
        assert ("refcoco val (hg): no published numbers beside cIoU: 3 of 12 samples are measured." in scores.comparison.notes) == (limit == 3)
        assert [cell.text for cell in first.rows["toy_llava-training_free"]] != ["–"] * 3


def test_another_head_in_the_same_place_is_not_mixed_in(checkpoints, small_world, tmp_path):
    "Its records are of the old one: a hole that says so, until the table gets another name."
    home = shutil.copytree(checkpoints["training_free"]["head"], tmp_path / "head")
    row = {**checkpoints["training_free"], "head": str(home)}
    assert not paper.fill(plan_of([row], small_world, tmp_path / "paper")).holes
    loading.save_head(heads.build(recipes.replace("toy_llava", head="training_free")), home)
    (why,) = paper.fill(plan_of([row], small_world, tmp_path / "paper")).holes.values()
    assert "these records were made with other settings (head:" in why
    assert not paper.fill(plan_of([row], small_world, tmp_path / "other", others=tmp_path)).taken


def test_all_that_toycoco_has_is_asked_by_default():
    asked = wanted(list(TASKS))
    assert sum(map(len, asked.values())) == 29
