"A folder with an LMM is known by all its config.json says, with the defaults it leaves out: right, or an error that lists what would fit. Nothing is loaded."

import json

import pytest

from hglmm import recipes
from hglmm.errors import CheckpointError, SettingError
from hglmm.recognition import facts_of, recognise

CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
VICUNA = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": VICUNA, "vision_config": CLIP, "image_token_index": 32000}
SIGLIP = {"cls": "CLIPVisionTower", "model_type": "vision", "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}}
HYBRID = {"cls": "HybridVisionTower", "model_type": "vision", "params": {"high_res_cfg": {"image_size": 1024}, "low_res_cfg": {"image_size": 384}, "concat_type": "tuple"}}
SMALL = {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16, "vocab_size": 102400}
DEEPSEEK_1B = {"model_type": "multi_modality", "vision_config": SIGLIP, "language_config": SMALL, "aligner_config": {}}
DEEPSEEK_7B = DEEPSEEK_1B | {"vision_config": HYBRID, "language_config": {"model_type": "llama", "num_hidden_layers": 30, "vocab_size": 102400}}
LLAMA_3 = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128320}


def without(content: dict, *names: str) -> dict:
    return {key: value for key, value in content.items() if key not in names}


def folder_of(tmp_path, content) -> str:
    (tmp_path / "lmm").mkdir()
    (tmp_path / "lmm/config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / "lmm"


KNOWN = {
    "as llava-hf publishes it": (LLAVA, "llava_1_5_7b"),
    "as newer transformers write it": (without(LLAVA, "image_token_index") | {"image_token_id": 32000, "text_config": VICUNA | {"rope_scaling": {"rope_type": "default"}, "head_dim": 128, "num_key_value_heads": 32}}, "llava_1_5_7b"),
    "a language model that does not say which": (LLAVA | {"text_config": without(VICUNA, "model_type")}, "llava_1_5_7b"),
    "no part at all, all of it is the default": ({"model_type": "llava"}, "llava_1_5_7b"),
    "null is left out too": (LLAVA | {"text_config": VICUNA | {"num_hidden_layers": None, "num_key_value_heads": None}}, "llava_1_5_7b"),
    "LLaVA-1.5-13B": (LLAVA | {"text_config": VICUNA | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40}}, "llava_1_5_13b"),
    "LLaVA-1.6-Mistral": (LLAVA | {"model_type": "llava_next", "text_config": {"model_type": "mistral", "vocab_size": 32064}}, "llava_1_6_mistral_7b"),
    "LLaVA-1.6-Vicuna": (LLAVA | {"model_type": "llava_next"}, "llava_1_6_vicuna_7b"),
    "ViP-LLaVA": (LLAVA | {"model_type": "vipllava"}, "vip_llava_7b"),
    "1.3B": (DEEPSEEK_1B, "deepseek_vl_1_3b"),
    "7B, whose file leaves out width and heads": (DEEPSEEK_7B, "deepseek_vl_7b"),
    "7B without the kind of language model": (DEEPSEEK_7B | {"language_config": {"num_hidden_layers": 30}}, "deepseek_vl_7b"),
    "1.3B without key heads": (DEEPSEEK_1B | {"language_config": without(SMALL, "num_key_value_heads", "model_type")}, "deepseek_vl_1_3b"),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_known(tmp_path, case):
    content, name = KNOWN[case]
    folder = folder_of(tmp_path, content)
    recipe, lmm, head = recognise(folder)
    assert (recipe.name, lmm, head) == (name, folder, None)
    assert recognise(str(folder))[0] is recipe


STRANGE = {
    "LLaVA-1.6 on Mistral with other key heads": (LLAVA | {"model_type": "llava_next", "text_config": {"model_type": "mistral", "num_key_value_heads": 32}}, ["key_heads is 32, expected 8"]),
    "LLaVA-1.6-13B": (LLAVA | {"model_type": "llava_next", "text_config": VICUNA | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40}}, ["layers is 40, expected 32"]),
    "MGM": ({"model_type": "mgm", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_tower_aux": "laion/CLIP-convnext_large_d_320"}, ["MGM (Mini-Gemini) is not in transformers 4.39.1"]),
    "BakLLaVA": (LLAVA | {"text_config": {"model_type": "mistral"}}, ["language_model is 'mistral', expected 'llama'"]),
    "LLaVA on another language model of the same size": (LLAVA | {"text_config": LLAMA_3 | {"model_type": "qwen2", "num_key_value_heads": 32}}, ["language_model is 'qwen2', expected 'llama'"]),
    "LLaVA on LLaMA-3": (LLAVA | {"text_config": LLAMA_3}, ["key_heads is 8, expected 32"]),
    "a LLaVA-1.5 of 13B's width and 7B's layers": (LLAVA | {"text_config": VICUNA | {"hidden_size": 5120, "num_attention_heads": 40}}, ["layers is 32, expected 40", "width is 5120"]),
    "a LLaVA of 224 pixels": (LLAVA | {"vision_config": CLIP | {"image_size": 224}}, ["image_size is 224, expected 336", "grid is 16"]),
    "a tower that leaves its size to CLIP's default": (LLAVA | {"vision_config": without(CLIP, "image_size", "patch_size")}, ["image_size is 224"]),
    "a tower too shallow to be tapped": (LLAVA | {"vision_config": CLIP | {"num_hidden_layers": 12}}, ["the tower has 12 layers, expected more than 23"]),
    "the authors' own LLaVA": ({"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}, ["layout of LLaVA's authors"]),
    "Janus-1.3B": (DEEPSEEK_1B | {"gen_vision_config": {}, "gen_head_config": {}}, ["generates pictures"]),
    "a DeepSeek-VL on a language model of another kind": (DEEPSEEK_1B | {"language_config": SMALL | {"model_type": "qwen2"}}, ["'qwen2'"]),
    "a 1.3B under the 7B's towers": (DEEPSEEK_1B | {"vision_config": HYBRID}, ["image_size is 1024, expected 384", "layers is 24, expected 30"]),
    "newer transformers' DeepSeek-VL": (without(DEEPSEEK_1B, "language_config") | {"model_type": "deepseek_vl", "text_config": SMALL}, ["'deepseek_vl'"]),
    "BERT": ({"model_type": "bert", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}, ["Found model_type 'bert'"]),
    "LLaMA alone": ({"model_type": "llama"}, ["Found model_type 'llama'"]),
    "GPT-2, which has names of its own": ({"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25}, ["layers 48", "width 1600"]),
    "a kind that transformers does not know": (LLAVA | {"model_type": "qwen9_vl", "text_config": {"model_type": "qwen9", "num_hidden_layers": 3}}, ["'qwen9_vl'", "layers 3"]),
    "no kind": (without(LLAVA, "model_type"), ["expected 'llava'"]),
    "sizes as text": (LLAVA | {"text_config": VICUNA | {"num_hidden_layers": "32"}}, ["layers is '32', expected 32"]),
    "parts that are none": (LLAVA | {"text_config": [], "vision_config": CLIP | {"patch_size": 0}, "model_type": ["llava"]}, ["['llava']"]),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_refused(tmp_path, case):
    content, expected = STRANGE[case]
    with pytest.raises(CheckpointError) as caught:
        recognise(folder_of(tmp_path, content))
    said = str(caught.value)
    assert all(text in said for text in [*expected, str(tmp_path), "no recipe fits", *recipes.RECIPES]), said


def test_defaults_are_known():
    "What a file leaves out, or says to be null, is what transformers takes for it."
    whole = {"model_type": "llava", "language_model": "llama", "layers": 32, "heads": 32, "width": 4096, "key_heads": 32, "image_size": 336, "grid": 24, "tower_layers": 24}
    for text in (VICUNA, {}, dict.fromkeys(("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")), None):
        assert facts_of(LLAVA | {"text_config": text}) == whole
    assert facts_of(LLAVA | {"vision_config": None}) == whole and facts_of({"model_type": "llava"}) == whole
    assert facts_of(LLAVA | {"text_config": {"model_type": "mistral"}})["key_heads"] == 8
    assert facts_of(LLAVA | {"vision_config": {"model_type": "siglip_vision_model"}})["image_size"] == 224


def test_a_recipe_of_ones_own(tmp_path, monkeypatch):
    "It is known by its folder; if it fits as well as another, the error says how to choose."
    folder = folder_of(tmp_path, LLAVA)
    mine = recipes.replace("llava_1_5_7b", name="mine", instruction="[INST] {input} [/INST]", model_type=None)
    monkeypatch.setitem(recipes.RECIPES, "mine", mine)
    with pytest.raises(CheckpointError, match="2 recipes fit this LMM equally: llava_1_5_7b, mine"):
        recognise(folder)
    monkeypatch.setitem(recipes.RECIPES, "mine", recipes.replace(mine, lmm=str(folder)))
    assert recognise(folder)[0].name == "mine"
    (folder / "config.json").write_text(json.dumps(LLAVA | {"model_type": "llava_next"}))
    monkeypatch.setitem(recipes.RECIPES, "mine", mine)
    with pytest.raises(CheckpointError, match="2 recipes fit this LMM equally: llava_1_6_vicuna_7b, mine"):  # it does not say of which kind the LMM is, and its adapter reads both
        recognise(folder)
    assert recognise(recipes.replace("llava_1_5_7b", lmm=str(folder)))[0].lmm == str(folder)


@pytest.mark.parametrize("what, error, said", [
    ("toy_lava", SettingError, "Did you mean 'toy_llava'"), ("", SettingError, "expected a recipe"), (None, SettingError, "expected a recipe"), (7, SettingError, "(int)"),
    (["toy_llava"], SettingError, "(list)"), ("checkpoints/nothing", SettingError, "unknown recipe, folder or file"), ("x" * 5000, SettingError, "unknown recipe"), ("a\0b", SettingError, "unknown recipe"),
    ("https://huggingface.co/a/b", SettingError, "unknown recipe"),
])  # fmt: skip
def test_what_is_nothing(what, error, said):
    with pytest.raises(error) as caught:
        recognise(what)
    assert said in str(caught.value)


@pytest.mark.parametrize("content, said", [("{", "not a valid config"), ("[]", "not a valid config"), ('{"format": 1}', "is missing"), ('{"format": 9, "head": "hg", "recipe": {}}', "format is 9")])
def test_a_broken_config(tmp_path, content, said):
    with pytest.raises(CheckpointError, match=said):
        recognise(folder_of(tmp_path, content))


def test_names_on_the_hub(monkeypatch, tmp_path):
    "Where a recipe's LMM lies stands for the recipe; another repository is asked for its config.json alone."
    assert recognise("llava-hf/llava-1.5-7b-hf") == (recipes.get("llava_1_5_7b"), None, None)
    with pytest.raises(CheckpointError, match="somebody/something: no such file or folder here, and not to be had from the hub"):
        recognise("somebody/something")
    asked = []
    folder = folder_of(tmp_path, LLAVA)
    monkeypatch.setattr("hglmm.recognition.fetch", lambda name, files, advice, **how: asked.append((name, files, how)) or folder)
    assert recognise("somebody/llava", "v2") == (recipes.get("llava_1_5_7b"), "somebody/llava", None)
    assert asked == [("somebody/llava", ["config.json"], {"revision": "v2"})]
