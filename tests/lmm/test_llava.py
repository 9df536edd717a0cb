"""LLaVAs as the hub has them: LLaVA-1.5, and others that need only a recipe. Small, with random weights, in the published layout."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_lmms import RECIPE_SIZES, TEXT_SIZES, Hostile, llava_folder
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from hglmm import recipes
from hglmm.datasets.core import Sample
from hglmm.errors import CheckpointError, DataError, SettingError
from hglmm.lmm import llava
from hglmm.lmm.features import Features
from hglmm.lmm.frozen import FrozenLMM
from hglmm.phrases import tokenize_pieces

LLAVA_1_5 = recipes.replace("llava_1_5_7b", **RECIPE_SIZES)
MISTRAL = recipes.replace(LLAVA_1_5, name="small_mistral", instruction="[INST] {input} [/INST]")
QWEN2 = recipes.replace(LLAVA_1_5, name="small_qwen2", instruction="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n")
LLAMA_TEXT = LlamaConfig(**TEXT_SIZES, max_position_embeddings=4096, rms_norm_eps=1e-5)
MISTRAL_TEXT = MistralConfig(**TEXT_SIZES, num_key_value_heads=2, max_position_embeddings=4096, sliding_window=800)
QWEN2_TEXT = Qwen2Config(**TEXT_SIZES, num_key_value_heads=2, max_position_embeddings=4096)
FIELDS = ("attention", "text", "levels", "pixels")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    "Checkpoints that tests only read."
    room = tmp_path_factory.mktemp("llavas")
    texts = dict(llama=LLAMA_TEXT, mistral=MISTRAL_TEXT, qwen2=QWEN2_TEXT)
    return {name: llava_folder(room / name, text) for name, text in texts.items()} | {"next": llava_folder(room / "next", MISTRAL_TEXT, "llava_next")}


@pytest.fixture
def broken(folders, tmp_path) -> Path:
    "A checkpoint to be damaged."
    return Path(shutil.copytree(folders["llama"], tmp_path / "llava"))


def load(folder: Path, recipe: recipes.Recipe = LLAVA_1_5, **options) -> FrozenLMM:
    return FrozenLMM.load(recipe, folder, **({} if "device_map" in options else {"device": "cpu"}), **options)


@functools.cache
def loaded(folder: Path, recipe: recipes.Recipe = LLAVA_1_5) -> FrozenLMM:
    "For tests that only read."
    return load(folder, recipe)


@pytest.fixture(scope="module")
def sample() -> Sample:
    "A wide picture and two phrases."
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 255, (100, 200, 3), dtype=np.uint8))
    pieces = [("There is", None), ("a red mug", 0), ("and", None), ("two fish 🐟", 1), (".", None)]
    return Sample(image, pieces, np.ones((2, 100, 200), bool))


def assert_same(a: Features, b: Features, atol: float = 1e-5) -> None:
    for name in FIELDS:
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=atol), name


def by_transformers(lmm: FrozenLMM, folder: Path, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    "Attention (n, C, g*g) and text (n, L, d) from transformers' own forward of the whole model, with eager attention."
    slow = llava.MODELS["llava"].from_pretrained(folder, attn_implementation="eager").eval()
    tokens = tokenize_pieces(lmm.tokenizer, lmm.recipe.instruction.format(input=lmm.recipe.prompt), sample.pieces, len(sample.masks))
    ids, cells = torch.tensor([tokens.input_ids]), lmm.recipe.grid**2
    with torch.no_grad():
        pixels = lmm.prepare(sample.image)[0][None]
        out = slow(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), output_attentions=True, output_hidden_states=True)
    first = tokens.input_ids.index(lmm.image_token)
    phrase_of = torch.tensor(tokens.phrase_ids[:first] + [-1] * cells + tokens.phrase_ids[first + 1 :])
    every = torch.cat(out.attentions, 1)[0]
    attention = torch.stack([every[:, phrase_of == k, first : first + cells].mean(1) for k in range(tokens.phrases)])
    text = torch.stack([torch.stack([h[0, phrase_of == k].mean(0) for h in out.hidden_states[1:]]) for k in range(tokens.phrases)])
    return attention, text


@pytest.mark.parametrize("name, recipe", [("llama", LLAVA_1_5), ("mistral", MISTRAL), ("qwen2", QWEN2)])
def test_features_are_transformers_own(folders, sample, name, recipe):
    lmm = loaded(folders[name], recipe)
    features = lmm.encode([sample])[0]
    attention, text = by_transformers(lmm, folders[name], sample)
    assert features.attention.shape == (2, 12, 24, 24) and float(attention.std()) > 1e-5
    assert torch.allclose(features.attention.flatten(2), attention, atol=1e-6)
    assert torch.allclose(features.text, text, atol=1e-4)


@pytest.mark.parametrize("name, recipe", [("llama", LLAVA_1_5), ("mistral", MISTRAL), ("qwen2", QWEN2), ("next", MISTRAL)])
def test_answers_of_every_kind(folders, sample, name, recipe):
    lmm = loaded(folders[name], recipe)
    answer = lmm.answer(sample.image, "What is there?", max_new_tokens=12)
    quick = lmm.encode_answer(answer, [(0, len(answer.text)), (0, 1)])
    answer.forget()
    assert quick.attention.shape == (2, 12, 24, 24) and 0 < len(answer.tokens) <= 12
    assert_same(quick, lmm.encode_answer(answer, [(0, len(answer.text)), (0, 1)]))


@torch.no_grad()
def test_levels_are_the_blocks_of_the_method(folders, sample):
    "Outputs of CLIP's blocks 3, 6, ..., 23 (0-based) without the class token; the LMM's own embedding is block 22's."
    lmm = loaded(folders["llama"])
    tower = lmm.model.vision_tower.vision_model
    pixels = lmm.prepare(sample.image)[0][None]
    hidden, outputs = tower.pre_layrnorm(tower.embeddings(pixels)), []
    for block in tower.encoder.layers:
        hidden = block(hidden, None, None)[0]
        outputs.append(lmm.model.multi_modal_projector(hidden[:, 1:]))
    own, levels = lmm.see(pixels)
    assert len(outputs) == 24 and own.shape == (1, 576, 32) and levels.shape == (1, 8, 576, 32)
    assert torch.allclose(own, outputs[22], atol=1e-5)
    assert torch.allclose(levels, torch.stack([outputs[k] for k in (3, 6, 9, 12, 15, 18, 20, 23)], 1), atol=1e-5)


def test_a_picture_is_letterboxed_not_cropped(folders, sample):
    lmm = loaded(folders["llama"])
    pixels, box = lmm.prepare(sample.image)
    assert pixels.shape == (3, 336, 336) and box.resized == (336, 168)
    bars = torch.cat([pixels[:, :84], pixels[:, 252:]], 1)
    assert bars.abs().max() < 0.02 and pixels[:, 84:252].std() > 0.1  # the processor's mean colour
    left = Image.fromarray(np.where(np.arange(200)[None, :, None] < 5, 255, np.asarray(sample.image)).astype(np.uint8))
    assert not torch.equal(lmm.prepare(left)[0], pixels)  # a centre crop would not see it


def test_the_turn_is_llavas(folders):
    lmm = loaded(folders["llama"])
    assert lmm.ask("What?") == "USER: <image>\nWhat? ASSISTANT:"
    ids = lmm.tokenizer(lmm.recipe.instruction.format(input=lmm.recipe.prompt))["input_ids"]
    assert ids.count(lmm.image_token) == 1 and ids[0] == lmm.tokenizer.bos_token_id
    assert "Please give me a description of the image. ASSISTANT:" in lmm.tokenizer.decode(ids)


def test_the_base_resolution_of_llava_next(folders, tmp_path, sample):
    "The same weights without the row separator, as a LLaVA."
    state = {k: v for file in folders["next"].glob("*.safetensors") for k, v in load_file(file).items()}
    lmm = loaded(folders["next"], MISTRAL)
    assert type(lmm.model).__name__ == "LlavaNextForConditionalGeneration" and lmm.unused == ["image_newline"] and "image_newline" in state
    folder = Path(shutil.copytree(folders["mistral"], tmp_path / "same"))
    for file in folder.glob("model*"):
        file.unlink()
    save_file({k: v for k, v in state.items() if k != "image_newline"}, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(lmm.encode([sample])[0], load(folder, MISTRAL).encode([sample])[0], atol=1e-6)


def test_a_sliding_window_is_not_silently_ignored(folders, sample):
    "transformers 4.39.1 leaves the window out with SDPA; within it that makes no difference."
    lmm = loaded(folders["mistral"], MISTRAL)
    assert lmm.reach == 800 and loaded(folders["qwen2"], QWEN2).reach == loaded(folders["llama"]).reach == 4096
    long = Sample(sample.image, [("a red mug " * 100, 0)], sample.masks[:1])
    with pytest.raises(DataError, match="reads at most 800"):
        lmm.encode([long])


# What is refused


def edit(file: Path, **changes) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def rename_a_key(folder: Path, in_index: bool = True) -> None:
    state, index = load_file(first_shard(folder)), folder / "model.safetensors.index.json"
    key = min(state)
    state["vision_tower.other"] = state.pop(key)
    save_file(state, first_shard(folder), metadata={"format": "pt"})
    if in_index:
        index.write_text(index.read_text().replace(f'"{key}"', '"vision_tower.other"'))


def truncate(folder: Path) -> None:
    with open(first_shard(folder), "r+b") as file:
        file.truncate(5000)


def drop_image_token(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.write_text(file.read_text().replace("<image>", "<picture>"))


@pytest.mark.parametrize(
    "damage, said",
    [
        (rename_a_key, "missing \\(1\\): .*; left over \\(1\\): vision_tower.other"),
        (lambda folder: rename_a_key(folder, in_index=False), "missing \\(1\\): "),
        (truncate, "cannot be loaded as a LLaVA model"),
        (lambda folder: first_shard(folder).unlink(), "cannot be loaded as a LLaVA model"),
        (drop_image_token, "does not know '<image>'"),
        (lambda folder: edit(folder / "config.json", model_type="llama"), "model_type 'llama' in config.json; expected one of llava, llava_next"),
        (lambda folder: edit(folder / "config.json", vision_config=dict(image_size=336, patch_size=14, num_hidden_layers=12)), "the tower in .* has 12"),
        (lambda folder: edit(folder / "config.json", vision_config=dict(image_size=224, patch_size=14)), "image_size: recipe 336, weights 224"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: [file.unlink() for file in folder.glob("token*")], "the tokenizer cannot be loaded"),
    ],
    ids=["renamed", "in a file", "truncated", "shard", "image token", "model type", "tower", "image size", "processor", "tokenizer"],
)
def test_broken_folders_are_refused(broken, damage, said):
    damage(broken)
    with pytest.raises(CheckpointError, match=said):
        load(broken)


def test_tables_of_older_files_are_let_be(broken, sample):
    "Positions and rotary frequencies were once stored; transformers makes them itself."
    before = load(broken).encode([sample])[0]
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    extra = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(577)[None]}
    extra |= {f"language_model.model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.ones(4) for k in range(3)}
    save_file(load_file(first_shard(broken)) | extra, first_shard(broken), metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(extra, first_shard(broken).name)
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(broken).encode([sample])[0], before, atol=0)


def test_a_hostile_pickle_is_not_executed(broken, tmp_path):
    for file in broken.glob("model*"):
        file.unlink()
    torch.save({"image_newline": Hostile(tmp_path / "executed")}, broken / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load(broken)
    assert not (tmp_path / "executed").exists()


# Spread over devices. Here: memory and disk, which takes the same hooks as several GPUs

SPREAD = {"": "cpu", "vision_tower": "disk", "language_model.model.layers.1": "disk", "language_model.model.embed_tokens": "disk", "language_model.lm_head": "disk"}


@pytest.mark.parametrize("name", ["llama", "mistral", "next"])
def test_a_spread_model_gives_the_same(folders, tmp_path, sample, name):
    recipe = LLAVA_1_5 if name == "llama" else MISTRAL
    whole, spread = loaded(folders[name], recipe), load(folders[name], recipe, device_map=SPREAD, offload_folder=tmp_path / "offload")
    offloaded = [p.is_meta for p in spread.model.vision_tower.parameters()] + [p.is_meta for p in spread.causal_lm.model.layers[1].parameters()]
    assert all(offloaded) and not any(p.is_meta for p in spread.causal_lm.model.layers[0].parameters())
    assert spread.device == torch.device("cpu") and spread.dtype == torch.float32
    ours, theirs = (lmm.encode([sample, sample], tokens=True)[1] for lmm in (spread, whole))
    assert_same(ours, theirs, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.tokens, theirs.tokens, strict=True))
    ours, theirs = (lmm.answer(sample.image, "What?", max_new_tokens=6) for lmm in (spread, whole))
    assert ours == theirs
    assert_same(spread.encode_answer(ours, [(0, 1)]), whole.encode_answer(theirs, [(0, 1)]), atol=1e-6)


@pytest.mark.parametrize("device_map", ["auto", "sequential", {"": "cpu"}], ids=str)
def test_maps_that_fit_into_memory(folders, tmp_path, sample, device_map):
    lmm = load(folders["llama"], device_map=device_map, offload_folder=tmp_path)
    assert_same(lmm.encode([sample])[0], loaded(folders["llama"]).encode([sample])[0].to(lmm.device), atol=1e-5)


@pytest.mark.parametrize(
    "device_map, said",
    [
        ("atuo", "Did you mean 'auto'"),
        ({"": "cpu", "language_model.model.layer.1": "cpu"}, "Did you mean 'language_model.model.layers.1'"),
        ({"": "cpu", "vision_tower": "cuda:9"}, "'vision_tower' shall go to 'cuda:9', which is no device of this machine"),
        ({"language_model": "cpu"}, "says nothing of"),
        ({"": "cpu", "vision_tower": "disk"}, "offload_folder"),
        ({"": "cpu", "language_model.model.layers.0.mlp": "disk"}, "splits 'language_model.model.layers.0'"),
    ],
    ids=["name", "module", "device", "uncovered", "folder", "split"],
)
def test_bad_maps_are_refused(folders, device_map, said):
    with pytest.raises(SettingError, match=said):
        load(folders["llama"], device_map=device_map)
    with pytest.raises(SettingError, match="leave out device"):
        FrozenLMM.load(LLAVA_1_5, folders["llama"], device="cpu", device_map=device_map)


def test_toy_llava_can_be_spread_too(tmp_path, sample):
    spread = FrozenLMM.load("toy_llava", device_map={"": "cpu", "vision_tower": "disk", "language_model.model.layers.3": "disk"}, offload_folder=tmp_path)
    assert_same(spread.encode([sample])[0], FrozenLMM.load("toy_llava", device="cpu").encode([sample])[0], atol=1e-6)
