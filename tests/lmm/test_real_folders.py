"""Folders as users have them: the published settings and names (tests/published.py) with small sizes and seeded weights. Each is loaded, answers and grounds, with the features of the others; or is refused, in words.
What was found is held against the table in nbs/27_folders.ipynb.

    python tests/lmm/test_real_folders.py --write   # try everything, and put what was found into the notebook
"""

import contextlib
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import published  # noqa: E402
from published import FOLDERS, Published, Settings  # noqa: E402
from small_lmms import TEXT_SIZES, byte_level, sentencepiece_model, shake  # noqa: E402
from stored_table import StoredTable  # noqa: E402
from transformers import CONFIG_MAPPING, LlamaTokenizerFast, PreTrainedTokenizerFast  # noqa: E402

from hglmm import heads, recipes  # noqa: E402
from hglmm.datasets.core import Sample  # noqa: E402
from hglmm.errors import CheckpointError  # noqa: E402
from hglmm.grounder import Grounder  # noqa: E402
from hglmm.lmm import authors, deepseek_vision, deepseek_vl, llava  # noqa: E402
from hglmm.lmm.config import read_config  # noqa: E402
from hglmm.lmm.frozen import FrozenLMM  # noqa: E402
from hglmm.recognition import recognise  # noqa: E402

STORED = StoredTable(Path(__file__).resolve().parents[2] / "nbs/27_folders.ipynb", "tests/lmm/test_real_folders.py")
COMMAND = ".venv/bin/python tests/lmm/test_real_folders.py --write"
FIELDS = ("attention", "text", "levels", "pixels")
CLIP = "clip-vit-large-patch14-336"
IDS = [f"{case.where.rpartition('/')[2]} {case.when}: {case.differs}" for case in FOLDERS]

# Small sizes: three layers of language model, a grid of 4 x 4

TOWER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=24, num_attention_heads=2, image_size=56, patch_size=14, projection_dim=24)
SIGLIP = deepseek_vision.SIGLIP_SIZES["siglip_large_patch16_384"] | dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, patch_size=8)
SAM = deepseek_vision.SAM_SIZES["sam_b_downsample"] | dict(hidden_size=12, num_attention_heads=2, patch_size=8, output_channels=6, window_size=3, downsample_channels=(10, 16))
GROUPED = {"num_key_value_heads": 2}  # as Mistral has fewer of them than heads
SIDES = {"llava_1_5_7b": 56, "deepseek_vl_1_3b": 32, "deepseek_vl_7b": 64}  # of other recipes: 56


@contextlib.contextmanager
def small_towers() -> Iterator[None]:
    "While active, the towers that a name stands for are small."
    with (
        patch.dict(deepseek_vision.SIGLIP_SIZES, siglip_large_patch16_384=SIGLIP),
        patch.dict(deepseek_vision.SAM_SIZES, sam_b_downsample=SAM),
        patch.dict(authors.KNOWN, {CLIP: authors.CLIP_336 | TOWER}),
    ):
        yield


def small_recipe(name: str) -> recipes.Recipe:
    recipe = recipes.get(name)
    prompt = recipe.prompt if recipe.prompt.count(recipe.image_token) == 1 else recipe.image_token * 16 + recipe.prompt.rpartition(recipe.image_token)[2]
    return recipes.replace(recipe, layers=3, heads=4, width=32, grid=4, image_size=SIDES.get(name, 56), dtype="float32", prompt=prompt, head="training_free")


def small_tiles(settings: Settings) -> Settings:
    "The same with tiles of the small side."
    return settings | {k: [[v * 56 // 336 for v in pair] for pair in pairs] for k, pairs in settings.items() if k == "image_grid_pinpoints"}


def small(case: Published, words: int, image: int | None) -> Settings:
    "Its config.json with small sizes, and the tokens of a small tokenizer."
    config, sizes = small_tiles(json.loads(json.dumps(case.config))), TEXT_SIZES | {"vocab_size": words}
    if "language_config" in config:
        sides = {"image_size": SIDES[case.recipe]}
        params = config["vision_config"]["params"]
        params.update({"low_res_cfg": params["low_res_cfg"] | {"image_size": 32}, "high_res_cfg": params["high_res_cfg"] | sides} if "low_res_cfg" in params else sides)
        config["aligner_config"]["params"] |= {"input_dim": 16, "n_embed": 32}
        config["language_config"] |= sizes | {"num_key_value_heads": 4}
    elif "text_config" in config:
        config["text_config"] |= sizes | {k: v for k, v in (("head_dim", 8), ("num_key_value_heads", 4)) if k in config["text_config"]} | (GROUPED if config["text_config"]["model_type"] == "mistral" else {})
        config["vision_config"] |= TOWER
        config |= {k: v for k, v in (("image_token_index", image), ("image_token_id", image), ("vocab_size", words)) if k in config}
    else:
        config |= sizes | {"num_key_value_heads": 2 if config["num_key_value_heads"] < config["num_attention_heads"] else 4, "mm_hidden_size": 16}
    return config


# Tokenizers


def llama_tokenizer(room: Path) -> LlamaTokenizerFast:
    "Vicuna's kind, with `<image>` and `<pad>` behind its words, as llava-hf has them."
    tokenizer = LlamaTokenizerFast(sentencepiece_model(room))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def deepseek_tokenizer(room: Path, image: bool = True) -> PreTrainedTokenizerFast:
    tokenizer, said = byte_level(room), published.DEEPSEEK_TOKENS
    tokenizer.add_special_tokens({"bos_token": said["bos_token"], "eos_token": said["eos_token"], "pad_token": said["pad_token"]})
    if image:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image_placeholder>"]})
    return tokenizer


def respell(file: Path, how: str) -> None:
    "A tokenizer.json as newer libraries spell it."
    content = json.loads(file.read_text())
    content["model"] |= {"merges": [merge.split(" ") for merge in content["model"]["merges"]], "ignore_merges": False}
    if how == "unreadable":
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    file.write_text(json.dumps(content, ensure_ascii=False))


def write_tokenizer(case: Published, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    "The tokenizer's files, in the spelling and with the settings of the case."
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings.read_text()).items() if k in ("added_tokens_decoder", "additional_special_tokens")}
    said = case.beside["tokenizer_config.json"]
    settings.write_text(json.dumps((kept if case.tokenizer in ("old", "pairs", "no image", "unreadable") and "backend" not in said else {}) | said, ensure_ascii=False))
    if case.tokenizer == "model":
        (folder / "tokenizer.json").unlink()
        (folder / "added_tokens.json").unlink(missing_ok=True)
    if case.tokenizer in ("pairs", "unreadable"):
        respell(folder / "tokenizer.json", case.tokenizer)
    if case.tokenizer == "unreadable" or "backend" in said:
        (folder / "tokenizer.model").unlink(missing_ok=True)
    if "backend" in said:
        (folder / "special_tokens_map.json").unlink()


# Folders


def write_weights(case: Published, state: dict[str, torch.Tensor], folder: Path) -> None:
    "Weights in the files of the case, with the index that goes with several."
    count = len(case.weights)
    parts = {name: dict(list(state.items())[k::count]) for k, name in enumerate(case.weights)}
    for name, part in parts.items():
        torch.save(part, folder / name) if name.endswith(".bin") else save_file(part, folder / name, metadata={"format": "pt"})
    if count > 1 and not case.weights[0].startswith("adapter"):
        stem, suffix = re.fullmatch(r"(.*)-00001-of-\d+(\..*)", case.weights[0]).groups()
        total = sum(tensor.nbytes for tensor in state.values())
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": {k: name for name, part in parts.items() for k in part}}))


def clip_folder(folder: Path, tower: dict[str, torch.Tensor]) -> None:
    "openai/clip-vit-large-patch14-336: both of its models in one pickle."
    folder.mkdir()
    rest = {name: torch.ones(shape) for name, shape in published.of_clip(16, 1, words=7, text=8)}
    torch.save({k.removeprefix("vision_tower."): v for k, v in tower.items()} | {"vision_model.embeddings.position_ids": torch.arange(17)[None]} | rest, folder / "pytorch_model.bin")
    vision = published.CLIP | TOWER
    (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 8, "text_config": {"model_type": "clip_text_model"}, "vision_config": vision}))
    pictures = {k: v for k, v in published.CLIP_PICTURES.items() if k not in ("image_processor_type", "processor_class")} | {"feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))


class Workshop:
    "Makes folders: tokenizers and seeded weights once, everything else as a case says."

    def __init__(self, room: Path):
        self.room, self.states, self.tokenizers = room, {}, {}

    def tokenizer(self, case: Published) -> PreTrainedTokenizerFast:
        kind = "llama" if case.recipe.startswith(("llava", "vip")) else case.tokenizer if case.tokenizer == "no image" else "deepseek"
        if kind not in self.tokenizers:
            (self.room / f"{kind} tokenizer").mkdir()
            make = {"llama": llama_tokenizer, "deepseek": deepseek_tokenizer, "no image": lambda room: deepseek_tokenizer(room, image=False)}[kind]
            self.tokenizers[kind] = make(self.room / f"{kind} tokenizer")
        return self.tokenizers[kind]

    def llava_state(self, case: Published) -> dict[str, torch.Tensor]:
        "Seeded weights of a LLaVA, under the names of transformers 4.39; one for all folders of a recipe."
        if case.recipe not in self.states:
            tokenizer = self.tokenizer(case)
            first = next(one for one in FOLDERS if one.recipe == case.recipe and one.said is None)
            config = small(first, 64 * (len(tokenizer) // 64 + 1), tokenizer.convert_tokens_to_ids("<image>"))
            model = llava.MODELS[config["model_type"]](CONFIG_MAPPING[config["model_type"]].from_dict(config))
            shake(model)
            self.states[case.recipe] = {k: v.contiguous() for k, v in model.state_dict().items()}
        return self.states[case.recipe]

    def llava(self, case: Published, folder: Path) -> None:
        state, tokenizer = dict(self.llava_state(case)), self.tokenizer(case)
        words = len(state["language_model.lm_head.weight"])
        if case.names is published.as_authors:  # no rows for <image> and <pad>
            words = tokenizer.vocab_size
            state |= {k: v[:words].clone() for k, v in state.items() if k.endswith(("embed_tokens.weight", "lm_head.weight"))}
            state |= {f"language_model.model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.ones(4) for k in range(3)}
        tower = {k: v for k, v in state.items() if k.startswith("vision_tower.")}
        if case.tower != "inside":
            state = {k: v for k, v in state.items() if k not in tower}
        if case.tower == "beside":
            clip_folder(folder.parent / CLIP, tower)
        (folder / "config.json").write_text(json.dumps(small(case, words, tokenizer.convert_tokens_to_ids("<image>"))))
        write_weights(case, {case.names(k): v for k, v in state.items()}, folder)

    def deepseek(self, case: Published, folder: Path) -> None:
        tokenizer = self.tokenizer(case)
        config = small(case, len(tokenizer) + 16, None)
        (folder / "config.json").write_text(json.dumps(config))
        if config["model_type"] != "multi_modality":
            return
        if case.recipe not in self.states:
            torch.manual_seed(0)
            deepseek_vl.random_folder(self.room / case.recipe, config, tokenizer)
            state = load_file(self.room / case.recipe / "model-00001.safetensors")
            model = deepseek_vl.build(config)
            self.states[case.recipe] = state | {key: torch.ones(2) for key in deepseek_vl.unused_keys(model)}  # published, and of no use
        state = {k: v[: len(tokenizer) + 16] if k.endswith(("embed_tokens.weight", "lm_head.weight")) else v for k, v in self.states[case.recipe].items()}
        write_weights(case, {k: v.contiguous() for k, v in state.items()}, folder)

    def folder(self, case: Published) -> Path:
        "The folder of a case, in a room of its own."
        folder = Path(tempfile.mkdtemp(dir=self.room)) / case.where.rpartition("/")[2].replace(" ", "-")
        folder.mkdir()
        (self.deepseek if case.recipe.startswith("deepseek") else self.llava)(case, folder)
        write_tokenizer(case, self.tokenizer(case), folder)
        for name, content in case.beside.items():
            if name == "tokenizer_config.json":
                continue
            if name == "preprocessor_config.json" and case.recipe.startswith("deepseek"):
                content = content | {"image_size": SIDES[case.recipe]}
            (folder / name).write_text(json.dumps(small_tiles(content), ensure_ascii=False))
        return folder


# Trying


def sample() -> Sample:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    return Sample(image, [("a red mug", 0), ("and", None), ("two fish", 1)], np.ones((2, 60, 90), bool))


def works(case: Published, folder: Path):
    "Load it, ask it, ground with it; gives the features of two phrases."
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out or put elsewhere without a word
        lmm = FrozenLMM.load(small_recipe(case.recipe), folder, "cpu")
    shown, (features,) = sample(), lmm.encode([sample()])
    answer = lmm.answer(shown.image, "What is it?", max_new_tokens=3)
    assert 0 < len(answer.tokens) <= 3 and lmm.image_token not in answer.tokens
    assert lmm.encode_answer(answer, [(0, len(answer.text))]).attention.shape == (1, 12, 4, 4) if answer.text else True
    found = Grounder(lmm, heads.build(lmm.recipe).eval()).ground(shown.image, ["a red mug", "two fish"])
    assert found.masks.shape == (2, 60, 90)
    assert all(bool(getattr(features, name).isfinite().all()) for name in FIELDS)
    return features


def tried(case: Published, workshop: Workshop):
    "What is found, as the table says it; and the features, if it reads."
    folder = workshop.folder(case)
    try:
        features = works(case, folder)
    except CheckpointError as error:
        words = [part for part in (case.said, case.ask) if part and part in str(error)]
        return f"refused: {'. … '.join(words) if len(words) == 2 else str(error)[:120]}", str(error)
    return "reads", features


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def workshop(made) -> Iterator[Workshop]:
    with small_towers(), torch.random.fork_rng():
        yield made


@pytest.fixture(scope="module")
def found(made) -> dict[int, tuple]:
    with small_towers(), torch.random.fork_rng():
        return {k: tried(case, made) for k, case in enumerate(FOLDERS)}


@pytest.mark.parametrize("k", range(len(FOLDERS)), ids=IDS)
def test_it_reads_or_says_why_not(found, k):
    case, (said, what) = FOLDERS[k], found[k]
    assert said == ("reads" if case.said is None else f"refused: {case.said}. … {case.ask}"), what
    if case.said is None:
        first = next(what for other, (said, what) in found.items() if FOLDERS[other].recipe == case.recipe and said == "reads")
        for name in FIELDS:
            assert torch.equal(getattr(what, name), getattr(first, name)), name


# The published settings themselves


@pytest.mark.parametrize("k", [k for k, case in enumerate(FOLDERS) if case.said is None], ids=[name for name, case in zip(IDS, FOLDERS, strict=True) if case.said is None])
def test_the_published_settings_are_the_recipes(tmp_path, k):
    "With all sizes as published. The folder is known for what it is, and what its file leaves out is known."
    case = FOLDERS[k]
    folder = tmp_path / "lmm"
    folder.mkdir()
    for name, content in {"config.json": case.config, **case.beside}.items():
        (folder / name).write_text(json.dumps(content))
    recipe, where, head = recognise(folder)
    assert (recipe.name, where, head) == (case.recipe, folder, None)
    if case.recipe == "llava_1_5_7b":
        config = read_config(folder, tuple(llava.MODELS))
        text, vision = config.text_config, config.vision_config
        assert (text.num_hidden_layers, text.num_attention_heads, text.hidden_size, vision.hidden_act) == (recipe.layers, recipe.heads, recipe.width, "quick_gelu")
        assert (text.rms_norm_eps, text.rope_theta, text.max_position_embeddings, text.num_key_value_heads) == (1e-5, 10000.0, 4096, 32)


def test_the_authors_file_has_as_many_bytes_as_its_index_says(tmp_path):
    "Full size, without memory: names and sizes are theirs to the byte."
    (tmp_path / "config.json").write_text(json.dumps(published.AUTHORS))
    with init_empty_weights(include_buffers=False):
        model = llava.MODELS["llava"]._from_config(read_config(tmp_path, ("llava",)))
    sizes = {published.as_authors(name): tensor.numel() for name, tensor in model.state_dict().items() if not name.startswith("vision_tower.")}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.mm_projector.0.bias", "model.mm_projector.2.weight", "model.layers.9.self_attn.v_proj.weight", "model.norm.weight"} <= set(sizes)
    assert 2 * sum(sizes.values()) + 32 * 64 * 4 == published.AUTHORS_BYTES


# The authors' layout


AUTHORS = next(case for case in FOLDERS if case.tower == "beside" and case.said is None)


def test_the_tower_is_looked_for_in_several_places(workshop, tmp_path, monkeypatch):
    recipe, folder = small_recipe("llava_1_5_7b"), workshop.folder(AUTHORS)
    clip = folder.parent / CLIP
    lmm = FrozenLMM.load(recipe, folder, "cpu")
    assert lmm.tower == clip and "tower/pytorch_model.bin" in lmm.source["files"] and "tower/config.json" in lmm.source["files"]
    first = lmm.encode([sample()])[0]
    for place in (folder / CLIP, tmp_path / "checkpoints" / CLIP, tmp_path / "towers/mine"):
        place.parent.mkdir(exist_ok=True)
        clip = clip.rename(place)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "settings.ini").touch()  # a project
        one = recipes.replace(recipe, tower=str(place)) if place.name == "mine" else recipe
        again = FrozenLMM.load(one, folder, "cpu")
        assert again.tower.samefile(place) and torch.equal(again.encode([sample()])[0].levels, first.levels)
    with pytest.raises(CheckpointError, match="the vision tower is not in the weights"):
        FrozenLMM.load(recipe, folder, "cpu")
    with pytest.raises(CheckpointError, match="nobody/tower@v1 is not here.*asked the hub"):
        FrozenLMM.load(recipes.replace(recipe, tower="nobody/tower@v1"), folder, "cpu")


def test_the_towers_own_pictures_are_taken(workshop):
    folder = workshop.folder(AUTHORS)
    file = folder.parent / CLIP / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.25] * 3}))
    assert FrozenLMM.load(small_recipe("llava_1_5_7b"), folder, "cpu").mean.tolist() == [0.25] * 3


def test_every_weight_of_both_folders_is_accounted_for(workshop):
    folder = workshop.folder(AUTHORS)
    file = folder.parent / CLIP / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    for change, said in (
        ({"vision_model.embeddings.class_embedding": None}, "missing (1): vision_tower.vision_model.embeddings.class_embedding"),
        ({"vision_model.embeddings.other": torch.ones(2)}, "left over (1): vision_model.embeddings.other"),
        ({"vision_model.post_layernorm.weight": torch.ones(3)}, "wrong (1): vision_model.post_layernorm.weight has shape (3,)"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, file)
        with pytest.raises(CheckpointError) as caught:
            FrozenLMM.load(small_recipe("llava_1_5_7b"), folder, "cpu")
        assert said in str(caught.value)


def test_the_token_that_marks_the_picture_has_no_row(workshop):
    lmm = FrozenLMM.load(small_recipe("llava_1_5_7b"), workshop.folder(AUTHORS), "cpu")
    assert lmm.image_token == lmm.causal_lm.config.vocab_size == len(lmm.tokenizer) - 1 == lmm.model.config.image_token_index
    ids = lmm.tokenizer("USER: <image>\nWhat?")["input_ids"]
    phrase = torch.full((len(ids),), -1)
    phrase[-1] = 0
    assert lmm.features(lmm.prepare(sample().image)[0], torch.tensor(ids), phrase).attention.shape == (1, 12, 4, 4)
    # what their code does: cut at <image>, each piece on its own, the first token of a text once
    before, after = (lmm.tokenizer(text)["input_ids"] for text in ("USER: ", "\nWhat?"))
    assert ids == [*before, lmm.image_token, *after[1:]]


# The table in the notebook


def table(found: dict[int, tuple]) -> str:
    lines = ["| recipe | folder | revision or version | what it has | |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{c.recipe}` | {c.where} | {c.when} | {c.differs} | {found[k][0]} |" for k, c in enumerate(FOLDERS))])


def test_the_table_says_what_was_found(found):
    assert STORED.read() == table(found), f"{STORED.notebook.name} says something else. If that is meant, store it with: {COMMAND}"


def test_every_recipe_has_a_folder():
    assert {case.recipe for case in FOLDERS} | {"toy_llava"} >= set(recipes.RECIPES)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    with tempfile.TemporaryDirectory() as scratch, small_towers(), torch.random.fork_rng():
        workshop = Workshop(Path(scratch))
        STORED.write(table({k: tried(case, workshop) for k, case in enumerate(FOLDERS)}))
    print(STORED.read())
