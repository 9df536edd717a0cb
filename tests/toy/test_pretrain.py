"nbs/runs/pretrain_toy.ipynb at a tiny size: what it writes loads, generates, can be measured again and gone on with."

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaForConditionalGeneration

from hglmm import recipes
from hglmm.lmm import toy_tower  # noqa: F401  (makes the toy tower known to transformers)
from hglmm.lmm.frozen import FrozenLMM
from hglmm.toy.world import scene

ROOT = Path(__file__).parents[2]
TINY = {
    "tower_pictures": 64, "pictures": 64, "width": 32, "layers": 2, "heads": 2, "tokenizer_pictures": 30, "save_every": 3, "limit": 1, "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def papermill(zygote):
    "Run the notebook in a project of its own, so that nothing lands in ours; its exit status and everything it said."

    def run(folder: Path, **parameters) -> tuple[int, str]:
        (folder / "settings.ini").touch()  # makes it a project's root
        words = ["--log-output", "--no-progress-bar", "--cwd", str(folder), str(ROOT / "nbs/runs/pretrain_toy.ipynb"), str(folder / "out.ipynb")]
        words += [text for name, value in parameters.items() for text in ("-p", name, str(value))]
        return zygote.run("papermill", *words, cwd=folder, environment={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, papermill) -> Path:
    "The folder of a project in which a tiny model was trained."
    folder = tmp_path_factory.mktemp("pretrain")
    status, said = papermill(folder, out="model", name="tiny", **TINY)
    assert status == 0, said
    return folder


@pytest.mark.slow
def test_the_folder_is_in_the_hubs_layout(trained: Path) -> None:
    out = trained / "model"
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"README.md", "training.json"} <= names and not list(trained.glob("**/*.part"))
    model = LlavaForConditionalGeneration.from_pretrained(out)
    assert model.config.text_config.num_hidden_layers == 2 and model.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("USER: <image>\nwhat is this? ASSISTANT:")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(model.config.image_token_index) == 1
    assert tokenizer("a red")["input_ids"][1:] == tokenizer(" a red", add_special_tokens=False)["input_ids"]
    picture = scene(0, 0).image.resize((128, 128))
    pixels = CLIPImageProcessor.from_pretrained(out)(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 128, 128) and pixels.min() >= -1 and pixels.max() <= 1
    said = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), pixel_values=pixels, max_new_tokens=3)
    assert said.shape[1] > len(ids)


@pytest.mark.slow
def test_it_is_a_frozen_lmm(trained: Path) -> None:
    lmm = FrozenLMM.load(recipes.replace("toy_llava", width=32, layers=2, heads=2), path=trained / "model", device="cpu")
    answer = lmm.answer(scene(0, 1).image, "what is the background?", max_new_tokens=4)
    assert 0 < len(answer.tokens) <= 4


@pytest.mark.slow
def test_the_run_is_recorded(trained: Path) -> None:
    facts = json.loads((trained / "model/training.json").read_text())
    assert [run["pictures"] for run in facts["runs"]] == [64] and facts["tower_pictures"] == 64 and facts["seed"] == 0
    run = trained / "runs/tiny"
    assert {"tower.safetensors", "tower.jsonl", "language_states", "language.jsonl", "scores.json"} <= {path.name for path in run.iterdir()}
    card = (trained / "model/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "| plain questions, all (" in card and "{" not in card.split("```")[-1]


@pytest.mark.slow
def test_measured_again_without_training(trained: Path, papermill) -> None:
    weights = (trained / "model/model.safetensors").read_bytes()
    first = (trained / "model/README.md").read_text()
    (trained / "model/README.md").unlink()
    status, said = papermill(trained, out="model", name="again", evaluate_only=True, limit=1, threads=1)
    assert status == 0, said
    assert (trained / "model/README.md").read_text() == first
    assert (trained / "model/model.safetensors").read_bytes() == weights
    assert not (trained / "runs/again/language.jsonl").exists()


@pytest.mark.slow
def test_going_on_with_a_saved_model(trained: Path, papermill) -> None:
    status, said = papermill(trained, resume_from="model", name="more", **{**TINY, "pictures": 16, "questions": 2, "warmup": 1, "decay": 1, "tower_tuning": 0})
    assert status == 0, said
    out = trained / "runs/more/toy_llava"
    facts = json.loads((out / "training.json").read_text())
    assert [(run["pictures"], run["questions"]) for run in facts["runs"]] == [(64, 6), (16, 2)] and facts["tower_pictures"] == 64
    before, after = (load_file(p / "model.safetensors") for p in (trained / "model", out))
    tower = next(k for k in before if k.startswith("vision_tower.blocks"))
    head = "language_model.lm_head.weight"
    assert torch.equal(before[tower], after[tower]) and not torch.equal(before[head], after[head])
    assert not (trained / "runs/more/tower.jsonl").exists()


@pytest.mark.slow
def test_a_folder_that_is_something_else_is_not_replaced(trained: Path, papermill) -> None:
    (trained / "mine").mkdir()
    (trained / "mine/notes.txt").write_text("keep me")
    status, said = papermill(trained, out="mine", name="tiny", **TINY)
    assert status != 0 and "is no toy_llava, it would be replaced" in said
    assert (trained / "mine/notes.txt").read_text() == "keep me"


@pytest.mark.slow
def test_killed_and_started_again(trained: Path, papermill, tmp_path: Path) -> None:
    (tmp_path / "settings.ini").touch()
    words = [text for name, value in {**TINY, "out": "model", "name": "tiny"}.items() for text in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs/runs/pretrain_toy.ipynb"), str(tmp_path / "out.ipynb"), "--cwd", str(tmp_path), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait = time.monotonic() + 120
    while not (tmp_path / "runs/tiny/tower_states/state.pt").exists():
        assert run.poll() is None and time.monotonic() < wait
        time.sleep(0.01)
    victims = [*run.children(recursive=True), run]
    for process in victims:
        process.kill()
    psutil.wait_procs(victims, timeout=20)
    assert not (tmp_path / "model").exists()
    status, said = papermill(tmp_path, out="model", name="tiny", **TINY)
    assert status == 0, said
    assert (tmp_path / "model/model.safetensors").read_bytes() == (trained / "model/model.safetensors").read_bytes()
    status, said = papermill(tmp_path, out="model", name="tiny", **{**TINY, "pictures": 80})
    assert status != 0 and "begun with pictures 64 and not 80" in said
