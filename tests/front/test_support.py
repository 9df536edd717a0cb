"""What works with what: LMM x head checkpoint x task, each tried for real on the smallest model of its kind, and held against the table in nbs/26_support.ipynb.

    python tests/front/test_support.py --write   # try everything, and put what was found into the notebook; where a GPU is, on it as well
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    MistralConfig,
    SamConfig,
    SamModel,
    SamVisionConfig,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stored_table import StoredTable  # noqa: E402

from hglmm import heads, recipes
from hglmm.datasets import toycoco
from hglmm.errors import CheckpointError
from hglmm.grounder import Grounder
from hglmm.heads import loading
from hglmm.heads.official import official_names
from hglmm.lmm import deepseek_vision, deepseek_vl, llava
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.hub import find_weights
from hglmm.recognition import recognise
from hglmm.runs import benchmarks, evaluation, speed, tasks

STORED = StoredTable(Path(__file__).resolve().parents[2] / "nbs/26_support.ipynb", "tests/front/test_support.py")
COMMAND = ".venv/bin/python tests/front/test_support.py --write"

CHECKPOINTS = {"hg": "hglmm, folder", "hg.pth": "HG-LMM, `.pth`", "unet.pth": "F-LMM, `.pth`, U-Net", "unet_sam.pth": "F-LMM, `.pth`, U-Net and SAM", "training_free": "hglmm, folder, without training"}
TASKS = {"RES": "res", "PNG": "png", "GCG": "gcg", "ReasonSeg": "reasonseg", "chat": "chat"}
BOTH = "CPU, GPU"
SPOKEN_WORDS = 3  # of an answer: few enough for `chat` to ground it as a whole

# The smallest of each kind: two layers of language model, a grid of 8 x 8, and of the vision towers as many blocks as the recipe taps.

SIZES = dict(layers=2, heads=2, width=32, grid=8, dtype="float32", sizes__width=16)
LLAVA_NAMES = ("llava_1_5_7b", "llava_1_5_13b", "llava_1_6_vicuna_7b", "llava_1_6_mistral_7b", "vip_llava_7b")
SMALL = {
    "toy_llava": recipes.get("toy_llava"),
    **{name: recipes.replace(name, image_size=112, sizes__stage_sizes=(28, 14, 7, 4), **SIZES) for name in LLAVA_NAMES},
    "deepseek_vl_1_3b": recipes.replace(
        "deepseek_vl_1_3b", image_size=128, sizes__stage_sizes=(32, 16, 8, 4), prompt="<image_placeholder>" * 64 + "Please describe .", **SIZES
    ),
    "deepseek_vl_7b": recipes.replace(
        "deepseek_vl_7b", image_size=256, sizes__stage_sizes=(32, 16, 8, 4), prompt="<image_placeholder>" * 64 + "Please describe .", **SIZES
    ),
}
NOUNS = "mug chair table dog cat book lamp plate fork spoon bottle window door ball car tree house hat shoe clock".split()
SIGLIP, SAM = "siglip_large_patch16_384", "sam_b_downsample"
SMALL_SIGLIP = {**deepseek_vision.SIGLIP_SIZES[SIGLIP], **dict(hidden_size=16, intermediate_size=32, num_attention_heads=2)}
SMALL_SAM = {
    **deepseek_vision.SAM_SIZES[SAM],
    **dict(hidden_size=12, num_attention_heads=2, output_channels=6, window_size=3, downsample_channels=(10, 16)),
}


def tokenizer_for(recipe: recipes.Recipe):
    "A word a token. Nouns, so that an answer of random words names something."
    return speed.word_tokenizer([recipe.instruction, recipe.prompt, *NOUNS], recipe.image_token)


def silent(output: torch.Tensor) -> torch.Tensor:
    "A vocabulary head that says no special token: the first four ids of `word_tokenizer`."
    output[:4] = 0
    return output


def deepseek_folder(recipe: recipes.Recipe, folder: Path) -> None:
    tokenizer = tokenizer_for(recipe)
    config = speed.deepseek_config(recipe)
    if recipe.name == "deepseek_vl_7b":
        low = dict(model_name=SIGLIP, image_size=128, pixel_mean=[0.5] * 3, pixel_std=[0.5] * 3)
        high = dict(model_name=SAM, image_size=recipe.image_size, pixel_mean=[0.48, 0.46, 0.41], pixel_std=[0.27, 0.26, 0.28])
        config["vision_config"] = dict(cls="HybridVisionTower", params=dict(concat_type="tuple", high_res_cfg=high, low_res_cfg=low))
        config["aligner_config"]["params"]["projector_type"] = "low_high_hybrid_split_mlp_gelu"
    config["language_config"]["vocab_size"] = len(tokenizer)
    deepseek_vl.random_folder(folder, config, tokenizer)
    state = load_file(folder / "model-00001.safetensors")
    silent(state["language_model.lm_head.weight"])
    save_file(state, folder / "model-00001.safetensors", metadata={"format": "pt"})


def llava_folder(recipe: recipes.Recipe, folder: Path) -> None:
    tokenizer = tokenizer_for(recipe)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=24, num_attention_heads=2, image_size=recipe.image_size, patch_size=14)
    text = {"llama": LlamaConfig, "mistral": MistralConfig}[recipe.text_type](
        vocab_size=len(tokenizer), hidden_size=recipe.width, intermediate_size=48, num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads,
    )  # fmt: skip
    fields = dict(image_token_index=tokenizer.convert_tokens_to_ids(recipe.image_token), pad_token_id=0)
    if recipe.tiles:
        fields["image_grid_pinpoints"] = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
    config = CONFIG_MAPPING[recipe.model_type](vision_config=vision.to_dict(), text_config=text.to_dict(), **fields)
    model = llava.MODELS[recipe.model_type](config)
    for weight in (model.language_model.lm_head.weight, *([model.image_newline] if recipe.tiles else [])):
        torch.nn.init.normal_(weight)
    silent(model.language_model.lm_head.weight.data)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(crop_size=recipe.image_size, size=recipe.image_size).save_pretrained(folder)


def lmm_folder(recipe: recipes.Recipe, room: Path) -> str:
    "A small LMM of the recipe's family in the hub's layout; toy_llava is small as it ships."
    if recipe.name == "toy_llava":
        return find_weights(recipe.lmm)
    torch.manual_seed(0)
    (deepseek_folder if recipe.family == "deepseek_vl" else llava_folder)(recipe, room / recipe.name)
    return str(room / recipe.name)


def sam_folder(folder: Path) -> Path:
    "A SAM with a small image encoder."
    vision = SamVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, window_size=3, global_attn_indexes=[1])
    SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 128})).save_pretrained(folder)
    return folder


def head_checkpoint(recipe: recipes.Recipe, kind: str, folder: Path) -> Path:
    "A head with random weights as it is found in the wild: our folder, or a `.pth` with everything a training run leaves in it."
    recipe = recipes.replace(recipe, head=kind.removesuffix(".pth"))
    torch.manual_seed(0)
    head = heads.build(recipe)
    if not kind.endswith(".pth"):
        return loading.save_head(head, folder / kind)
    state = head.state_dict()
    official = {key: state[ours] if ours else torch.zeros(3) for key, ours in official_names(recipe).items()}
    frozen = {f"{'deepseek_vl' if recipe.family == 'deepseek_vl' else 'llava'}.language_model.model.norm.weight": torch.ones(8)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": official | frozen, "meta": {"epoch": 4}, "message_hub": {}, "optimizer": {"state": {}}}, folder / kind)
    return folder / kind


# F-LMM's authors published heads for these LMMs too: what lies beside the weights, as published
ABSENT = {
    "MGM-2B, MGM-7B, MGM-HD-7B": {"config.json": '{"model_type": "mgm", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}'},
    "HPT-Air, HPT-Air-1.5": {"config.json": "", "llm/config.json": "{}", "projector/config.json": "{}", "visual_encoder/config.json": "{}"},
}
NOT_THERE = "not in transformers 4.39.1"


def refusal(files: dict[str, str], folder: Path) -> str:
    "A cell of the table for an LMM that cannot be loaded."
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    try:
        recognise(folder)
    except CheckpointError as error:
        return f"no: {NOT_THERE}" if NOT_THERE in str(error) else tried(lambda: recognise(folder))
    return "yes"


# Trying


def benchmark_works(job: tasks.Job, task: str, world: Path, records: Path) -> None:
    "Two samples of a benchmark, measured as an evaluation measures them."
    benchmark = benchmarks.Benchmark("support", task, str(world), str(records), {"dataset": "refcoco"} if task == "res" else {}, limit=2)
    found = tasks.measure(job, benchmark, benchmark.open())
    evaluation.check_failures(found, 2)
    table = found.table()
    if task == "gcg":
        assert any(table["mask"]), "no phrase of an answer was grounded"
    else:
        assert len(table["iou"]) >= 2 and all(0 <= iou <= 1 for iou in table["iou"]), "no overlap was measured"


def chat_works(job: tasks.Job, world: Path) -> None:
    "A question, an answer, and a mask for it."
    picture = benchmarks.Benchmark("support", "png", str(world), "").open()[0].image
    reply = Grounder(*job.models).chat(picture, "What is in the image?", max_new_tokens=SPOKEN_WORDS)
    assert reply.grounding is not None, "the answer was not grounded"
    assert reply.grounding.masks.shape == (1, picture.height, picture.width), "the mask does not fit the picture"


def tried(attempt: Callable[[], None]) -> str:
    "`yes`, or the reason why not: the beginning of what the error says."
    try:
        attempt()
    except Exception as error:
        reason = re.split(r"[.:;(]\s|\n", str(error))[0] or type(error).__name__
        return f"no: {reason[:80].replace('|', '/')}"
    return "yes"


@contextlib.contextmanager
def small_models(room: Path) -> Iterator[None]:
    "While active, recipes, towers and SAM are the small ones."
    sam = sam_folder(room / "sam")
    with (
        patch.dict(recipes.RECIPES, SMALL),
        patch.dict(deepseek_vision.SIGLIP_SIZES, {SIGLIP: SMALL_SIGLIP}),
        patch.dict(deepseek_vision.SAM_SIZES, {SAM: SMALL_SAM}),
        patch.dict(os.environ, HGLMM_SAM=str(sam)),
    ):
        yield


def measured(room: Path, world: Path, device: str = "cpu", seen: str = "CPU") -> str:
    "The table, as Markdown."
    lines = ["| LMM | head | " + " | ".join(TASKS) + " | seen on |", "|" + " --- |" * (3 + len(TASKS))]
    with small_models(room), torch.random.fork_rng():
        for name, recipe in SMALL.items():
            lmm = lmm_folder(recipe, room)
            for kind, title in CHECKPOINTS.items():
                head = str(head_checkpoint(recipe, kind, room / f"{name} heads"))
                job = tasks.Job(name, head, benchmarks=[], lmm=lmm, device=device, question="What is it?", max_new_tokens=SPOKEN_WORDS)
                cells = []
                for task in TASKS.values():
                    records = room / f"{name} {kind} {task}"
                    cells.append(tried(lambda: chat_works(job, world) if task == "chat" else benchmark_works(job, task, world, records)))  # noqa: B023
                lines.append(f"| `{name}` | {title} | " + " | ".join([*cells, seen]) + " |")
        for name, files in ABSENT.items():
            cells = [refusal(files, room / name)] * len(TASKS)
            lines.append(f"| {name} | F-LMM, `.pth`, U-Net and SAM | " + " | ".join([*cells, "not tried"]) + " |")
    return "\n".join(lines)


def of_a_cpu(table: str) -> str:
    "A table that was made with a GPU, as it is without."
    return table.replace(f"| {BOTH} |", "| CPU |")


@pytest.fixture(scope="module")
def table(tmp_path_factory, small_world) -> str:
    return measured(tmp_path_factory.mktemp("support"), small_world)


@pytest.mark.slow
def test_the_table_says_what_works(table):
    known = of_a_cpu(STORED.read())
    rows = zip(known.split("\n"), table.split("\n"), strict=False)
    changed = "\n".join(f"  stored   {old}\n  measured {new}" for old, new in rows if old != new)
    assert known == table, f"{STORED.notebook.name} no longer says what works:\n{changed}\nIf that is meant, store it with: {COMMAND}"


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the table was tried on a CPU alone")
def test_the_table_on_a_gpu(table, tmp_path, small_world):
    assert measured(tmp_path, small_world, "cuda") == table


def test_every_recipe_is_tried():
    assert set(SMALL) == set(recipes.RECIPES) and {kind.removesuffix(".pth") for kind in CHECKPOINTS} == set(heads.HEADS)
    assert set(tasks.TASKS) < set(TASKS.values())


def test_those_that_are_not_there(tmp_path):
    "Neither by transformers, nor here; and it is said."
    assert {refusal(files, tmp_path / name) for name, files in ABSENT.items()} == {f"no: {NOT_THERE}"}
    assert not {"mgm", "mini_gemini", "hpt"} & {*CONFIG_MAPPING.keys()}
    assert all(any(line.startswith(f"| {name} |") for line in STORED.read().split("\n")) for name in ABSENT)


def test_what_fails_is_told_in_a_few_words():
    def fail(error: Exception) -> None:
        raise error

    assert tried(lambda: None) == "yes"
    assert tried(lambda: fail(ValueError("a|b is no such thing: here. And more"))) == "no: a/b is no such thing"
    assert tried(lambda: fail(NotImplementedError())) == "no: NotImplementedError"


def test_the_small_models_are_gone_afterwards(tmp_path):
    with small_models(tmp_path):
        assert recipes.get("deepseek_vl_7b").layers == 2
        assert FrozenLMM.load("llava_1_5_7b", lmm_folder(SMALL["llava_1_5_7b"], tmp_path), "cpu").recipe.grid == 8
    assert recipes.get("deepseek_vl_7b").layers == 30 and deepseek_vision.SIGLIP_SIZES[SIGLIP]["hidden_size"] == 1024


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    with tempfile.TemporaryDirectory() as scratch:
        world = toycoco.generate(Path(scratch) / "world", counts={"train": 4, "val": 4, "test": 4})
        found = measured(Path(scratch), world)
        if torch.cuda.is_available() and measured(Path(scratch) / "gpu", world, "cuda") == found:
            found = found.replace("| CPU |", f"| {BOTH} |")
        STORED.write(found)
    print(STORED.read())
