"LLaVAs as other versions and LLaVA's authors write them: names of weights, fields of configurations. And models of another kind than the recipe's."

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_lmms import RECIPE_SIZES, TEXT_SIZES, llava_folder
from transformers import BertConfig, LlamaConfig, MistralConfig, Qwen2Config

from hglmm import recipes
from hglmm.datasets.core import Sample
from hglmm.errors import CheckpointError
from hglmm.lmm.frozen import FrozenLMM

SMALL = recipes.replace("llava_1_5_7b", **RECIPE_SIZES)  # is still called llava_1_5_7b: a LLaVA on LLaMA
FIELDS = ("attention", "text", "levels", "pixels")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "As transformers 4.39 writes it."
    return llava_folder(tmp_path_factory.mktemp("llava") / "home", LlamaConfig(**TEXT_SIZES, rope_theta=500.0), tower_layers=24)


@pytest.fixture(scope="module")
def sample() -> Sample:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    return Sample(image, [("a red mug", 0), ("and", None), ("two fish", 1)], np.ones((2, 60, 90), bool))


@pytest.fixture(scope="module")
def expected(home, sample):
    return FrozenLMM.load(SMALL, home, "cpu").encode([sample])[0]


@pytest.fixture
def folder(home, tmp_path) -> Path:
    "A copy to change."
    return Path(shutil.copytree(home, tmp_path / "llava"))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def write(folder: Path, state: dict[str, torch.Tensor], files: int = 1, pickled: bool = False) -> None:
    "The weights anew, in one file or in several with an index."
    for file in folder.glob("model*"):
        file.unlink()
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    shards = {f"{stem}-{k:05}-of-{files:05}{suffix}": dict(list(state.items())[k::files]) for k in range(files)}
    shards = {f"{stem}{suffix}": state} if files == 1 else shards
    for name, shard in shards.items():
        torch.save(shard, folder / name) if pickled else save_file(shard, folder / name, metadata={"format": "pt"})
    if files > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": {k: name for name, shard in shards.items() for k in shard}}))


def edit(file: Path, **changes) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def newer(key: str) -> str:
    "transformers 4.52 and later."
    key = key.replace("language_model.lm_head", "lm_head") if "lm_head" in key else key.replace("language_model.model.", "model.language_model.")
    return key if key.startswith(("model.", "lm_head")) else f"model.{key}"


def newest(key: str) -> str:
    "And without the tower's inner name."
    return newer(key).replace("vision_tower.vision_model.", "vision_tower.")


def authors(key: str) -> str:
    key = key.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head").replace("vision_tower.", "model.vision_tower.vision_tower.")
    return key.replace("multi_modal_projector.linear_1", "model.mm_projector.0").replace("multi_modal_projector.linear_2", "model.mm_projector.2")


def assert_same(ours, theirs) -> None:
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in FIELDS)


STORED = {"one file": {}, "files": dict(files=3), "pickle": dict(pickled=True), "pickles": dict(pickled=True, files=2)}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("rename", [newer, newest, authors], ids=lambda f: f.__name__)
def test_names_of_other_versions_are_read(folder, sample, expected, rename, stored):
    state = state_of(folder)
    renamed = {rename(k): v for k, v in state.items()}
    assert len(renamed) == len(state) and not set(renamed) & set(state)
    write(folder, renamed, **STORED[stored])
    assert_same(FrozenLMM.load(SMALL, folder, "cpu").encode([sample])[0], expected)


@pytest.mark.parametrize("rename", [newer, authors], ids=lambda f: f.__name__)
def test_they_can_be_spread(folder, tmp_path, sample, expected, rename):
    write(folder, {rename(k): v for k, v in state_of(folder).items()}, files=3)
    parts = {"": "cpu", "vision_tower": "disk", "language_model.model.layers.1": "disk", "language_model.lm_head": "disk"}
    spread = FrozenLMM.load(SMALL, folder, device_map=parts, offload_folder=tmp_path / "parts")
    found = spread.encode([sample])[0]
    assert all(torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-6) for name in FIELDS)
    assert {n.split(".")[0] for n, p in spread.model.named_parameters() if p.is_meta} == {"vision_tower", "language_model"}


def test_every_key_is_accounted_for(folder):
    state = {newer(k): v for k, v in state_of(folder).items()}
    key = "model.language_model.layers.1.mlp.up_proj.weight"
    write(folder, {k: v for k, v in state.items() if k != key} | {"model.language_model.layers.1.mlp.other.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match="missing \\(1\\): language_model.model.layers.1.mlp.up_proj.weight; left over \\(1\\): model.language_model.layers.1.mlp.other.weight"):
        FrozenLMM.load(SMALL, folder, "cpu")
    write(folder, state | {authors("language_model.model.norm.weight"): torch.ones(32)})
    with pytest.raises(CheckpointError, match=r"left over \(1\): model\.(language_model\.)?norm\.weight"):  # the same weight twice
        FrozenLMM.load(SMALL, folder, "cpu")
    write(folder, state | {key: torch.ones(3, 3)})
    with pytest.raises(CheckpointError, match=rf"wrong \(1\): {re.escape(key)} has shape \(3, 3\)"):
        FrozenLMM.load(SMALL, folder, "cpu")


def test_weights_without_the_tower(folder):
    state = {authors(k): v for k, v in state_of(folder).items() if not k.startswith("vision_tower")}
    write(folder, state)
    with pytest.raises(CheckpointError, match="the vision tower is not in the weights.*llava-hf/llava-1.5-7b-hf"):
        FrozenLMM.load(SMALL, folder, "cpu")


@pytest.mark.parametrize("kind", ["llava", "llava_llama", "llava_mistral"])
def test_the_authors_configuration_without_a_projector_that_is_known(folder, kind):
    (folder / "config.json").write_text(json.dumps({
        "model_type": kind, "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 3, "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }))  # fmt: skip
    with pytest.raises(CheckpointError, match="as its authors publish it, with mm_projector_type 'linear'.*llava-hf"):
        FrozenLMM.load(SMALL, folder, "cpu")


TEXT_TIED = dict(tie_word_embeddings=True)
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.mark.parametrize("device_map", [None, {"": "cpu", EMBEDDING.removesuffix(".weight"): "disk"}], ids=["memory", "disk"])
def test_a_head_that_is_the_embedding(folder, tmp_path, sample, device_map):
    state = state_of(folder)
    with pytest.raises(CheckpointError, match=f"missing \\(1\\): {HEAD}"):
        write(folder, {k: v for k, v in state.items() if k != HEAD})
        FrozenLMM.load(SMALL, folder, "cpu")
    write(folder, {**state, HEAD: state[EMBEDDING].clone()})
    whole = FrozenLMM.load(SMALL, folder, "cpu").answer(sample.image, "What?", max_new_tokens=8)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=text | TEXT_TIED)
    for rename in (str, newer):
        write(folder, {rename(k): v for k, v in state.items() if k != HEAD})
        options = dict(device="cpu") if device_map is None else dict(device_map=device_map, offload_folder=tmp_path / "parts")
        lmm = FrozenLMM.load(SMALL, folder, **options)
        assert lmm.answer(sample.image, "What?", max_new_tokens=8) == whole
        assert device_map is not None or torch.equal(lmm.causal_lm.lm_head.weight, state[EMBEDDING])
    write(folder, state)
    with pytest.raises(CheckpointError, match="two that differ"):
        FrozenLMM.load(SMALL, folder, "cpu")


def test_todays_configuration_means_the_same(folder, sample, expected):
    "Renamed fields get their old names: with a default base of the positions, other features."
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "dtype": "float32", "head_dim": 8, "layer_types": ["full_attention"] * 3}
    del text["rope_theta"]
    edit(folder / "config.json", text_config=text, image_token_index=None, image_token_id=config["image_token_index"], image_seq_length=576, torch_dtype=None, dtype="float32",
         vision_feature_layer=[-2], multimodal_projector_bias=True, transformers_version="5.0.0")  # fmt: skip
    pictures = json.loads((folder / "preprocessor_config.json").read_text()) | {"image_processor_type": "CLIPImageProcessorFast", "device": None, "data_format": "channels_first"}
    (folder / "processor_config.json").write_text(json.dumps({
        "image_processor": pictures, "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14, "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }))  # fmt: skip
    (folder / "preprocessor_config.json").unlink()
    lmm = FrozenLMM.load(SMALL, folder, "cpu")
    assert lmm.causal_lm.config.rope_theta == 500.0
    assert_same(lmm.encode([sample])[0], expected)
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    assert_same(FrozenLMM.load(SMALL, folder, "cpu").encode([sample])[0], expected)


def text_edit(**changes):
    def change(folder: Path) -> None:
        edit(folder / "config.json", text_config=json.loads((folder / "config.json").read_text())["text_config"] | changes)

    return change


def config_edit(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


@pytest.mark.parametrize(
    "change, said",
    [
        (text_edit(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}), "config.json: positions scaled as 'llama3'"),
        (text_edit(rope_scaling={"rope_type": "yarn", "factor": 8.0}), "config.json: positions scaled as 'yarn'"),
        (text_edit(head_dim=16), "heads of 16 numbers"),
        (text_edit(model_type="qwen3"), "KeyError: 'qwen3'"),
        (text_edit(hidden_size="wide"), "cannot|recipe"),
        (config_edit(vision_feature_layer=[-2, -5]), "more than one layer"),
        (config_edit(multimodal_projector_bias=False), "without biases"),
        (config_edit(quantization_config={"load_in_4bit": True}), "quantised weights"),
        (config_edit(image_token_id=5), "name two tokens"),
        (config_edit(image_token_index=5), "'<image>' is 38[0-9] for the tokenizer and 5 in config.json"),
        (text_edit(vocab_size=300), "the tokenizer gives ids up to 38[0-9], config.json says the model has 300"),
        (config_edit(vision_config="clip"), "vision_config is 'clip'"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not readable as JSON"),
        (lambda folder: edit(folder / "preprocessor_config.json", image_mean="grey"), "preprocessor_config.json: image_mean"),
    ],
)
def test_what_cannot_be_computed_is_refused(folder, change, said):
    change(folder)
    with pytest.raises(CheckpointError, match=said):
        FrozenLMM.load(SMALL, folder, "cpu")


# Of another kind than the recipe's, with the sizes of the recipe


@pytest.mark.parametrize(
    "text, kind, said",
    [
        (MistralConfig(**TEXT_SIZES, num_key_value_heads=2), "llava_next", "model_type 'llava_next' in config.json; recipe 'llava_1_5_7b' is for 'llava'"),
        (LlamaConfig(**TEXT_SIZES), "llava_next", "model_type 'llava_next' in config.json; recipe 'llava_1_5_7b' is for 'llava'"),
        (MistralConfig(**TEXT_SIZES, num_key_value_heads=2), "llava", "model_type 'mistral' in its language model in config.json; recipe 'llava_1_5_7b' is for 'llama'"),
        (Qwen2Config(**TEXT_SIZES, num_key_value_heads=2), "llava", "model_type 'qwen2' in its language model"),
    ],
    ids=["llava_next on mistral", "llava_next", "mistral", "qwen2"],
)
def test_a_model_of_another_kind_is_refused_by_name(tmp_path, sample, text, kind, said):
    "They have the recipe's sizes and would be asked in its turn, which is not theirs."
    folder = llava_folder(tmp_path / "other", text, kind)
    with pytest.raises(CheckpointError, match=said):
        FrozenLMM.load(SMALL, folder, "cpu")
    own = recipes.replace(SMALL, name="my_own", instruction="[INST] {input} [/INST]", model_type=kind, text_type=text.model_type)
    assert FrozenLMM.load(own, folder, "cpu").encode([sample])[0].attention.shape == (2, 12, 24, 24)
    wrong = recipes.replace(own, model_type="llava" if kind == "llava_next" else "llava_next")
    with pytest.raises(CheckpointError, match="model_type"):
        FrozenLMM.load(wrong, folder, "cpu")


@pytest.mark.parametrize("name", ["llava_1_5_7b", "toy_llava", "deepseek_vl_1_3b"])
def test_a_bert_is_refused_by_name(tmp_path, name):
    BertConfig(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model_type '?bert"):
        FrozenLMM.load(name, tmp_path, "cpu")
