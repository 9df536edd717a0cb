"""Full-size LMMs with random weights on a GPU: all four tasks on ten pictures, a training step, memory and time against the forecast, CUDA against CPU.

Without a GPU these are skipped, and what they do is done by a small model on the CPU.
"""

import dataclasses

import numpy as np
import pytest
import torch

from hglmm import heads, recipes
from hglmm.datasets import layout
from hglmm.lmm.frozen import FrozenLMM
from hglmm.noun_phrases import parser_name
from hglmm.runs import forecast, plan_check, tasks
from hglmm.runs.benchmarks import Benchmark
from hglmm.runs.blueprints import random_lmm
from hglmm.runs.speed import example

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; none was found here")
FULL = ("deepseek_vl_1_3b", "deepseek_vl_7b", "llava_1_5_7b")
SMALL = recipes.replace(
    "toy_llava", sizes=recipes.HeadSizes(
        text_width=12, level_widths=(8, 8, 12), dynamic_width=4, detail_width=8, attention_width=8, fused_width=8, stage_sizes=(16, 8, 4, 2), width=8, output_width=4,
    ),
)  # fmt: skip
PICTURES, WORDS = 10, 12


def opened(world, task: str) -> Benchmark:
    "The first pictures of a task."
    options = {"res": {"dataset": "refcoco", "split": "val"}, "reasonseg": {"split": "val"}}.get(task, {"split": "val"})
    return Benchmark(task, task, str(world), "", options, PICTURES)


def answered(lmm: FrozenLMM, head: torch.nn.Module, world, task: str, batch: int, pictures: int) -> list[list[dict]]:
    "The records of a task."
    job = tasks.Job(lmm.recipe.name, "", [], batch_size=batch, question="Please describe .", max_new_tokens=WORDS)
    job.__dict__["models"] = (lmm, head)
    data = opened(world, task).open()
    samples = [data[i] for i in range(min(pictures, len(data)))]
    return [row for k in range(0, len(samples), batch) for row in tasks.TASKS[task](job, samples[k : k + batch], None)]


def check(lmm: FrozenLMM, world, batch: int, pictures: int = PICTURES) -> None:
    "All four tasks give finite records for every picture."
    torch.manual_seed(0)
    head = heads.build(lmm.recipe).eval().to(lmm.device)
    for task in tasks.TASKS:
        if task == "gcg" and not has_parser():
            continue
        found = answered(lmm, head, world, task, batch, pictures)
        assert len(found) == min(pictures, len(layout.open_task(task, world, **opened(world, task).options)))
        assert all(0 <= row["iou"] <= 1 for rows in found for row in rows if "iou" in row)


def has_parser() -> bool:
    try:
        return bool(parser_name())
    except Exception:
        return False


def test_a_small_one_does_all_that_on_the_cpu(small_world):
    check(random_lmm(SMALL), small_world, batch=2, pictures=3)


@GPU
@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_all_four_tasks(name, small_world):
    check(random_lmm(name, "cuda"), small_world, batch=4)


@GPU
@pytest.mark.slow
@pytest.mark.parametrize("task", ["res", "train"])
@pytest.mark.parametrize("name", FULL)
def test_forecast_and_what_happens(name, task):
    check = plan_check.Check("plan", name, task=task, device="cuda", pictures=4, repeats=3)
    told, real = plan_check.apart(check), plan_check.apart(dataclasses.replace(check, do="measure"))
    print(f"{name} {task}: memory {told['memory'] / 1e9:.2f} GB foretold (with {forecast.CONTEXT / 1e9} for CUDA), {real['memory'] / 1e9:.2f} measured; {told['seconds']:.3f} s foretold, {real['seconds']:.3f} measured")
    assert told["memory"] - forecast.CONTEXT == pytest.approx(real["memory"], rel=0.15)
    assert told["seconds"] == pytest.approx(real["seconds"], rel=0.3)


@GPU
def test_cuda_and_cpu_agree():
    here, there = random_lmm(SMALL), random_lmm(SMALL)
    there.model.load_state_dict(here.model.state_dict())
    there.model.to("cuda")
    ours, theirs = (lmm.encode([example(3, 20)])[0].to("cpu") for lmm in (here, there))
    for name in ("attention", "text", "levels"):
        assert np.allclose(getattr(ours, name).numpy(), getattr(theirs, name).numpy(), atol=1e-3), name
