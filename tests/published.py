"""What published folders hold, as facts: names of files and of weights, fields and their values. Nothing here was copied as a file; where each was looked up stands beside it.

Not found in public copies, and written as the libraries write them: whether llava-hf's and the authors' tokenizers say `legacy`, DeepSeek's tokenizer_config.json and generation_config.json, `torch_dtype` of
DeepSeek's parts, the files of ViP-LLaVA beside its settings.

Sizes are the published ones. `tests/lmm/test_real_folders.py` writes folders from this, with small sizes and seeded weights of the published names.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hglmm import recipes

Settings = dict[str, Any]

# llava-hf/llava-1.5-7b-hf.
# 2024: a log of revision 05ae243 as transformers 4.41 read it (LLaMA-Factory, June 2024); the 13B of 1.6 likewise in https://github.com/haotian-liu/LLaVA/issues/1378.
# Sizes that are LLaMA's defaults are left out; `vocab_size` at the top too, which later versions warn of.

CLIP: Settings = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
    "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
VICUNA: Settings = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
    "torch_dtype": "float16", "vocab_size": 32064,
}  # fmt: skip
LLAVA_2024: Settings = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
    "projector_hidden_act": "gelu", "text_config": VICUNA, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": CLIP, "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
}  # fmt: skip
CLIP_PICTURES: Settings = {  # the same log; also what openai/clip-vit-large-patch14-336 says of itself, under `feature_extractor_type`
    "crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336},
}  # fmt: skip
VICUNA_TOKENS: Settings = {  # tokenizer_config.json, the same log: padded on the left, <image> 32000 and <pad> 32001 behind LLaMA's words
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>", "legacy": False,
    "model_max_length": 1000000000000000019884624838656, "pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaProcessor", "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer", "trust_remote_code": False, "unk_token": "<unk>", "use_default_system_prompt": False,
}  # fmt: skip
GENERATION: Settings = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001, "transformers_version": "4.36.0.dev0"}

# Since the end of 2024 (revision b234b80; its files by name: added_tokens, chat_template, preprocessor_config, processor_config, special_tokens_map, tokenizer, tokenizer_config, tokenizer.model; three
# shards): https://github.com/huggingface/transformers/pull/30962, /33424 and /35052 for processor_config.json, /34461 for the tokenizer's image_token,
# https://github.com/IVY-LVLM/CODE/issues/2 for merges as pairs and for revision a272c74 from before them.

LLAVA_2025: Settings = LLAVA_2024 | {"image_seq_length": 576, "transformers_version": "4.46.0.dev0"}
LLAVA_PROCESSOR: Settings = {
    "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14, "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
}  # fmt: skip

# As transformers 4.52 and later save it: https://github.com/pytorch/executorch/pull/12324 and https://github.com/ml-explore/mlx-lm/pull/1525 for the names; `image_token_id` for `image_token_index`, `dtype` for `torch_dtype`, every default written out.

VICUNA_V4: Settings = {k: v for k, v in VICUNA.items() if k != "torch_dtype"} | {
    "attention_bias": False, "attention_dropout": 0.0, "dtype": "float16", "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 11008, "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
    "rope_scaling": None, "rope_theta": 10000.0, "use_cache": True,
}  # fmt: skip
LLAVA_V4: Settings = {k: v for k, v in LLAVA_2025.items() if k not in ("image_token_index", "torch_dtype", "vocab_size")} | {
    "image_token_id": 32000, "dtype": "float16", "multimodal_projector_bias": True, "text_config": VICUNA_V4, "transformers_version": "4.57.0",
    "vision_config": CLIP | {"attention_dropout": 0.0, "dtype": "float16", "hidden_act": "quick_gelu", "initializer_factor": 1.0, "layer_norm_eps": 1e-05, "num_channels": 3},
}  # fmt: skip

# transformers 5.6: no `vision_model` within the tower (https://github.com/sgl-project/sglang/pull/23525), positions in `rope_parameters`, picture settings within processor_config.json, one class of tokenizers.

LLAVA_V5: Settings = LLAVA_V4 | {
    "text_config": {k: v for k, v in VICUNA_V4.items() if k not in ("rope_scaling", "rope_theta")} | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "transformers_version": "5.6.0",
}  # fmt: skip
PROCESSOR_V5: Settings = LLAVA_PROCESSOR | {"image_processor": {k: v for k, v in CLIP_PICTURES.items() if k != "processor_class"} | {"image_processor_type": "CLIPImageProcessor"}}
TOKENS_V5: Settings = {k: VICUNA_TOKENS[k] for k in ("add_bos_token", "bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "padding_side", "processor_class")} | {
    "backend": "tokenizers", "extra_special_tokens": ["<image>"], "is_local": False, "tokenizer_class": "TokenizersBackend",
}  # fmt: skip

# liuhaotian/llava-v1.5-7b: its config.json as printed in many places (the 13B's verbatim too), among them the configurations for tests of PaddleMIX and of LLaVA's users; the index with its
# total of bytes and the two .bin files in a note on using it as a LLaMA; the tokenizer (model_max_length 2048, padded on the right by <unk>, no <image>) and its ids around a picture in a
# walk through the code. No preprocessor_config.json: https://github.com/haotian-liu/LLaVA/pull/1115.

AUTHORS: Settings = {
    "_name_or_path": "llava-v1.5-7b", "architectures": ["LlavaLlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False, "hidden_act": "silu", "hidden_size": 4096, "image_aspect_ratio": "pad", "initializer_range": 0.02, "intermediate_size": 11008,
    "max_length": 4096, "max_position_embeddings": 4096, "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None, "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0", "tune_mm_mlp_adapter": False, "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False, "use_cache": True, "use_mm_proj": True, "vocab_size": 32000,
}  # fmt: skip
AUTHORS_SPECIAL: Settings = {  # special_tokens_map.json
    **{name: {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))},
    "pad_token": "<unk>",
}  # fmt: skip
AUTHORS_TOKENS: Settings = {
    "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False, "model_max_length": 2048, "pad_token": None, "padding_side": "right",
    "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    **{name: {"__type": "AddedToken", **AUTHORS_SPECIAL[name]} for name in ("bos_token", "eos_token", "unk_token")},
}  # fmt: skip
AUTHORS_BYTES = 13518798848  # total_size of pytorch_model.bin.index.json: two bytes a number, and 32 tables `inv_freq` of 64 numbers in four
FIRST_LLAVA: Settings = AUTHORS | {  # LLaVA-1: one layer of projector, marks around the picture. https://github.com/haotian-liu/LLaVA/issues/1345, and the switches of its training
    "mm_projector_type": "linear", "mm_use_im_start_end": True, "mm_vision_tower": "openai/clip-vit-large-patch14",
}  # fmt: skip

# deepseek-ai/deepseek-vl-1.3b-chat and -7b-chat: config.json and every key and shape in shared/conformance; the pictures and the processor by their classes' arguments in
# https://github.com/deepseek-ai/DeepSeek-VL (deepseek_vl/models/image_processing_vlm.py, processing_vlm.py), with the numbers of METHOD section 1.

DEEPSEEK_LLAMA: Settings = {"max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 30, "torch_dtype": "bfloat16", "vocab_size": 102400}  # the 7B leaves out what is LLaMA's default
SIGLIP: Settings = {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}
DEEPSEEK_1B: Settings = {
    "architectures": ["MultiModalityCausalLM"], "model_type": "multi_modality", "torch_dtype": "float16", "transformers_version": "4.38.2",
    "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {"depth": 2, "input_dim": 1024, "n_embed": 2048, "projector_type": "mlp_gelu"}},
    "language_config": DEEPSEEK_LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16},
    "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": SIGLIP},
}  # fmt: skip
DEEPSEEK_7B: Settings = DEEPSEEK_1B | {
    "aligner_config": {"cls": "MlpProjector", "model_type": "aligner", "params": {"depth": 2, "input_dim": 1024, "n_embed": 4096, "projector_type": "low_high_hybrid_split_mlp_gelu"}},
    "language_config": DEEPSEEK_LLAMA,
    "vision_config": {
        "cls": "HybridVisionTower", "model_type": "vision",
        "params": {
            "concat_type": "tuple", "freeze_high": True, "freeze_low": True,
            "high_res_cfg": {"ckpt_path": "", "image_size": 1024, "model_name": "sam_b_downsample", "output_dim": 1024, "pixel_mean": [0.48145466, 0.4578275, 0.40821073],
                             "pixel_std": [0.26862954, 0.26130258, 0.27577711], "select_feature": "same", "select_layer": -1},
            "low_res_cfg": SIGLIP | {"ckpt_path": "", "output_dim": 1024, "pixel_mean": [0.5] * 3, "pixel_std": [0.5] * 3},
        },
    },
}  # fmt: skip
DEEPSEEK_PICTURES: Settings = {
    "background_color": [127, 127, 127], "do_normalize": True, "image_mean": [0.5] * 3, "image_processor_type": "VLMImageProcessor", "image_size": 384, "image_std": [0.5] * 3,
    "min_size": 14, "processor_class": "VLChatProcessor", "rescale_factor": 0.00392156862745098,
}  # fmt: skip
DEEPSEEK_7B_PICTURES: Settings = DEEPSEEK_PICTURES | {
    "background_color": [122, 116, 104], "do_normalize": False, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_size": 1024, "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
DEEPSEEK_PROCESSOR: Settings = {
    "add_special_token": False, "ignore_id": -100, "image_tag": "<image_placeholder>", "mask_prompt": True, "num_image_tokens": 576, "processor_class": "VLChatProcessor", "sft_format": "deepseek",
}  # fmt: skip
DEEPSEEK_TOKENS: Settings = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<｜begin▁of▁sentence｜>", "clean_up_tokenization_spaces": False, "eos_token": "<｜end▁of▁sentence｜>", "legacy": True,
    "model_max_length": 16384, "pad_token": "<｜end▁of▁sentence｜>", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizerFast", "unk_token": None,
}  # fmt: skip
DEEPSEEK_CONVERTED: Settings = {  # deepseek-community/deepseek-vl-1.3b-chat: https://github.com/huggingface/transformers/pull/36248
    "architectures": ["DeepseekVLForConditionalGeneration"], "image_token_id": 100015, "model_type": "deepseek_vl", "text_config": DEEPSEEK_1B["language_config"],
    "vision_config": {"hidden_size": 1024, "image_size": 384, "model_type": "siglip_vision_model", "num_hidden_layers": 24, "patch_size": 16},
}  # fmt: skip


# The other LLaVAs of llava-hf: the 13B's text_config and LLaVA-NeXT's fields in https://github.com/haotian-liu/LLaVA/issues/1378; the Mistral's in TensorRT-LLM's tests of its model; NeXT's picture settings as printed
# in logs of users; ViP-LLaVA's as its conversion writes them, which are the defaults of its class (huggingface/transformers, models/vipllava/convert_vipllava_weights_to_hf.py, and llava_next's beside it).
# LLaVA-1.6 as its authors publish it: config.json as PaddleMIX's test of its models quotes it; https://github.com/haotian-liu/LLaVA/pull/1115 for the Mistral's model_type.

VICUNA_13B: Settings = VICUNA | {
    "_name_or_path": "lmsys/vicuna-13b-v1.5", "hidden_size": 5120, "intermediate_size": 13824, "max_length": 4096, "num_attention_heads": 40, "num_hidden_layers": 40,
    "num_key_value_heads": 40, "pad_token_id": 0,
}  # fmt: skip
MISTRAL: Settings = {
    "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"], "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "torch_dtype": "bfloat16", "vocab_size": 32064,
}  # fmt: skip
TILES: Settings = {"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}
NEXT: Settings = {k: v for k, v in LLAVA_2024.items() if k not in ("pad_token_id", "vocab_size")} | TILES | {
    "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next", "transformers_version": "4.39.0.dev0", "use_image_newline_parameter": True,
}  # fmt: skip
NEXT_PICTURES: Settings = CLIP_PICTURES | TILES | {"aspect_ratio_setting": "anyres", "do_pad": True, "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor"}
VIP: Settings = {k: v for k, v in LLAVA_2024.items() if k not in ("vision_feature_layer", "vision_feature_select_strategy")} | {
    "architectures": ["VipLlavaForConditionalGeneration"], "model_type": "vipllava", "projector_layernorm_eps": 1e-05, "vision_feature_layers": [-2, -5, -8, -11, 6],
}  # fmt: skip
AUTHORS_NEXT: Settings = {k: v for k, v in AUTHORS.items() if k not in ("max_length", "pretraining_tp")} | TILES | {
    "_name_or_path": "./checkpoints/vicuna-7b-v1-6", "attention_bias": False, "attention_dropout": 0.0, "image_aspect_ratio": "anyres", "image_crop_resolution": 224, "image_split_resolution": 224,
    "mm_patch_merge_type": "spatial_unpad", "mm_projector_lr": None, "mm_vision_tower_lr": 2e-06, "rope_theta": 10000.0, "tokenizer_model_max_length": 4096, "tokenizer_padding_side": "right",
    "transformers_version": "4.36.2", "unfreeze_mm_vision_tower": True,
}  # fmt: skip


# Names of weights


def as_saved(key: str) -> str:
    return key


def as_v4(key: str) -> str:
    "transformers 4.52 and later."
    if "lm_head" in key:
        return key.replace("language_model.lm_head", "lm_head")
    key = key.replace("language_model.model.", "language_model.")
    return f"model.{key}"


def as_v5(key: str) -> str:
    "transformers 5.6 and later."
    return as_v4(key).replace("vision_tower.vision_model.", "vision_tower.")


def as_authors(key: str) -> str:
    "LLaVA's own code; the tower under the name it has where it was trained."
    if key == "image_newline":
        return "model.image_newline"
    key = key.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head").replace("vision_tower.", "model.vision_tower.vision_tower.")
    return key.replace("multi_modal_projector.linear_1", "model.mm_projector.0").replace("multi_modal_projector.linear_2", "model.mm_projector.2")


def of_clip(width: int, layers: int, words: int = 49408, text: int = 768) -> Iterator[tuple[str, tuple[int, ...]]]:
    "What openai/clip-vit-large-patch14-336 holds besides the vision tower: names as transformers' CLIPModel has them, with shapes."
    yield from {"logit_scale": (), "text_projection.weight": (text, text), "visual_projection.weight": (text, width)}.items()
    yield from {"text_model.embeddings.token_embedding.weight": (words, text), "text_model.embeddings.position_ids": (1, 77), "text_model.final_layer_norm.weight": (text,)}.items()
    yield from ((f"text_model.encoder.layers.{k}.self_attn.q_proj.weight", (text, text)) for k in range(layers))


@dataclass(frozen=True)
class Published:
    "A folder as somebody published or wrote it."

    recipe: str
    where: str  # repository, or what wrote it
    when: str  # revision or version
    differs: str  # in what, for the table
    config: Settings
    beside: dict[str, Settings] = field(default_factory=dict)  # JSON files by name
    names: Callable[[str], str] = as_saved
    weights: tuple[str, ...] = ("model.safetensors",)  # files
    tokenizer: str = "old"  # how tokenizer.json is spelled: `old`, `pairs`; `model`: only tokenizer.model; `unreadable`: has no old spelling
    tower: str = "inside"  # `inside`, `beside` or `absent`
    said: str | None = None  # the words of the refusal; None: it reads
    ask: str = ""  # what the refusal says to ask for


def shards(count: int, stem: str = "model", suffix: str = ".safetensors") -> tuple[str, ...]:
    return tuple(f"{stem}-{k:05}-of-{count:05}{suffix}" for k in range(1, count + 1))


_OLD = {"preprocessor_config.json": CLIP_PICTURES, "tokenizer_config.json": VICUNA_TOKENS, "generation_config.json": GENERATION}
_NEW = _OLD | {
    "processor_config.json": LLAVA_PROCESSOR, "chat_template.json": {"chat_template": "{% for message in messages %}{% endfor %}"},
    "tokenizer_config.json": VICUNA_TOKENS | {"extra_special_tokens": {"image_token": "<image>"}, "image_token": "<image>"},
}  # fmt: skip
_V5 = {"processor_config.json": PROCESSOR_V5, "tokenizer_config.json": TOKENS_V5, "generation_config.json": GENERATION}
_AUTHORS = dict(
    recipe="llava_1_5_7b", where="liuhaotian/llava-v1.5-7b", names=as_authors, weights=shards(2, "pytorch_model", ".bin"), tokenizer="model",
    beside={"tokenizer_config.json": AUTHORS_TOKENS, "special_tokens_map.json": AUTHORS_SPECIAL, "generation_config.json": GENERATION},
)  # fmt: skip
_HF = dict(recipe="llava_1_5_7b", where="llava-hf/llava-1.5-7b-hf", weights=shards(3))
_DEEPSEEK = {"processor_config.json": DEEPSEEK_PROCESSOR, "tokenizer_config.json": DEEPSEEK_TOKENS, "generation_config.json": {"bos_token_id": 100000, "eos_token_id": 100001}}

_NEXT = {"preprocessor_config.json": NEXT_PICTURES, "tokenizer_config.json": VICUNA_TOKENS | {"processor_class": "LlavaNextProcessor"}, "generation_config.json": GENERATION}
_AUTHORS_NEXT = {**_AUTHORS, "weights": shards(3), "when": "main", "differs": "tiles, the tower among the weights, no preprocessor_config.json"}

ALL = (
    Published(**_HF, when="a272c74 (2024)", differs="sizes left out, merges as words, no processor_config.json", config=LLAVA_2024, beside=_OLD),
    Published(**_HF, when="b234b80 (2025)", differs="processor_config.json, merges as pairs, image_token", config=LLAVA_2025, beside=_NEW, tokenizer="pairs"),
    Published(
        **_HF | {"where": "saved by transformers"}, when="4.57", differs="`model.language_model.*`, image_token_id, dtype, head_dim", config=LLAVA_V4, beside=_NEW, tokenizer="pairs", names=as_v4,
    ),
    Published(
        **_HF | {"where": "saved by transformers"}, when="5.6", differs="no `vision_model` in the tower's names, rope_parameters, no preprocessor_config.json, TokenizersBackend",
        config=LLAVA_V5, beside=_V5, tokenizer="pairs", names=as_v5,
    ),
    Published(
        **_HF, when="a later one", differs="a tokenizer without an old spelling, no tokenizer.model", config=LLAVA_2025, beside=_NEW, tokenizer="unreadable",
        said="its pre-tokenizer does not split at blanks", ask="Ask for a revision from before December 2024, FrozenLMM.load(..., revision=...) or recipes.replace(recipe, revision=...) (llava-hf/llava-1.5-7b-hf: 'a272c74')",
    ),
    Published(
        **_HF | {"where": "saved by transformers"}, when="any", differs="quantised by bitsandbytes", config=LLAVA_2025 | {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
        beside=_NEW, tokenizer="pairs", said="quantised weights (quantization_config)", ask="Expected weights in float32, float16 or bfloat16",
    ),
    Published(**_AUTHORS, when="main", differs="`model.mm_projector.*`, CLIP in a folder beside, no `<image>`, only tokenizer.model", config=AUTHORS, tower="beside"),
    Published(**_AUTHORS, when="main", differs="the same without CLIP's folder", config=AUTHORS, tower="absent", said="the vision tower is not in the weights, and openai/clip-vit-large-patch14-336 is not here", ask="Put it beside the LMM: huggingface-cli download openai/clip-vit-large-patch14-336"),
    Published(
        **_AUTHORS | {"where": "LLaVA's code"}, when="1.2", differs="a trained tower among the weights, nothing beside",
        config=AUTHORS | {"model_type": "llava_llama", "unfreeze_mm_vision_tower": True}, tower="inside",
    ),
    Published(
        **_AUTHORS | {"where": "LLaVA's code"}, when="1.0", differs="one layer of projector, marks around the picture", config=FIRST_LLAVA, tower="absent",
        said="a LLaVA as its authors publish it, with mm_projector_type 'linear'", ask="Fetch liuhaotian/llava-v1.5-7b, or llava-hf/llava-1.5-7b-hf",
    ),
    Published(
        **_AUTHORS | {"where": "liuhaotian/llava-v1.5-7b-lora", "weights": ("adapter_model.bin", "non_lora_trainables.bin")}, when="main", differs="a LoRA alone", config=AUTHORS, tower="beside",
        said="a LoRA adapter, not an LMM's weights", ask="Put it together with the model it was trained on",
    ),
    Published(
        "deepseek_vl_1_3b", "deepseek-ai/deepseek-vl-1.3b-chat", "main", "as published", DEEPSEEK_1B, _DEEPSEEK | {"preprocessor_config.json": DEEPSEEK_PICTURES},
    ),
    Published(
        "deepseek_vl_1_3b", "deepseek-ai/deepseek-vl-1.3b-chat", "main", "a tokenizer without `<image_placeholder>`, which DeepSeek's processor adds",
        DEEPSEEK_1B, _DEEPSEEK | {"preprocessor_config.json": DEEPSEEK_PICTURES}, tokenizer="no image",
    ),
    Published(
        "deepseek_vl_7b", "deepseek-ai/deepseek-vl-7b-chat", "main", "as published: width and heads left out, three shards", DEEPSEEK_7B,
        _DEEPSEEK | {"preprocessor_config.json": DEEPSEEK_7B_PICTURES}, weights=shards(3),
    ),
    Published(
        "deepseek_vl_1_3b", "deepseek-community/deepseek-vl-1.3b-chat", "main", "converted for transformers of July 2025", DEEPSEEK_CONVERTED, _DEEPSEEK | {"preprocessor_config.json": DEEPSEEK_PICTURES},
        said="DeepSeek-VL as later versions of transformers have it", ask="Fetch the files that DeepSeek published, deepseek-ai/deepseek-vl-1.3b-chat",
    ),
    Published("llava_1_5_13b", "llava-hf/llava-1.5-13b-hf", "2024", "as published, three shards", LLAVA_2024 | {"text_config": VICUNA_13B}, _OLD, weights=shards(3)),
    Published("llava_1_5_13b", "llava-hf/llava-1.5-13b-hf", "2025", "processor_config.json, merges as pairs, image_token", LLAVA_2025 | {"text_config": VICUNA_13B}, _NEW, weights=shards(3), tokenizer="pairs"),
    Published("llava_1_6_vicuna_7b", "llava-hf/llava-v1.6-vicuna-7b-hf", "2024", "tiles, as published", NEXT, _NEXT, weights=shards(3)),
    Published("llava_1_6_vicuna_7b", "saved by transformers", "4.57", "`model.language_model.*`, `model.image_newline`", NEXT, _NEXT, weights=shards(3), tokenizer="pairs", names=as_v4),
    Published(**_AUTHORS_NEXT | {"recipe": "llava_1_6_vicuna_7b", "where": "liuhaotian/llava-v1.6-vicuna-7b"}, config=AUTHORS_NEXT),
    Published("llava_1_6_mistral_7b", "llava-hf/llava-v1.6-mistral-7b-hf", "2024", "tiles, as published, four shards", NEXT | {"text_config": MISTRAL}, _NEXT, weights=shards(4)),
    Published(
        **_AUTHORS_NEXT | {"recipe": "llava_1_6_mistral_7b", "where": "liuhaotian/llava-v1.6-mistral-7b", "weights": shards(4)},
        config=AUTHORS_NEXT | {"model_type": "llava_mistral", "intermediate_size": 14336, "max_position_embeddings": 32768, "num_key_value_heads": 8, "rope_theta": 1000000.0, "sliding_window": None},
    ),
    Published("vip_llava_7b", "llava-hf/vip-llava-7b-hf", "2024", "five layers of the tower at once", VIP, _OLD, weights=shards(3)),
)  # fmt: skip
FOLDERS = tuple(folder for folder in ALL if folder.recipe in recipes.RECIPES)
