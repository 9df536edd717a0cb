"Tokenizers and LLaVAs of the kinds that are published, small and with random weights."

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    VipLlavaConfig,
)

from hglmm import recipes
from hglmm.lmm import deepseek_vision, deepseek_vl, llava
from hglmm.lmm.frozen import FrozenLMM

TEXTS = (
    "A red mug and two fish on the table.",
    "  two spaces, then\n\ta tab ",
    " leading space",
    "红色的杯子 and 两条鱼。",
    "한국어 العربية עברית हिन्दी ไทย",
    "cafe\u0301 a\u0308o\u0308u\u0308 e\u0301\u0302 \u0301alone",
    "🐟 a🐟b 🐟🐟 👩‍👩‍👧 🇩🇪 👍🏽",
    "🐟" * 60 + "红" * 60 + " mug" * 60,
    "x",
    "",
)
SPECIAL = ["<unk>", "<s>", "</s>"]
CORPUS = [*TEXTS, "USER: ASSISTANT: Please give me a description of the image.", "a red mug, two fish, a table, a tab. 红色的杯子。 " * 20]
PLAIN = [t.encode("ascii", "ignore").decode() for t in CORPUS]  # what is not ASCII is then spelled in bytes


def byte_level(folder: Path) -> LlamaTokenizerFast:
    "DeepSeek's kind: BPE on bytes, in LLaMA's fast class. Merges may join a space with half a character."
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL))
    inner.save(str(folder / "tokenizer.json"))
    return LlamaTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), add_bos_token=False)


def metaspace(folder: Path) -> LlamaTokenizerFast:
    "LLaMA's kind, as its tokenizer.json has it: BPE on characters, spaces written as a character, the rest in bytes."
    spelled = [f"<0x{b:02X}>" for b in range(256)]
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.normalizer = Normalizers([Prepend("▁"), Replace(" ", "▁")])
    inner.train_from_iterator(PLAIN, trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL + spelled))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    content = json.loads(inner.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return LlamaTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def sentencepiece_model(folder: Path) -> str:
    "The file of a SentencePiece model trained as LLaMA's was."
    trainer = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (pip install hglmm[dev])").SentencePieceTrainer
    (folder / "corpus.txt").write_text("\n".join(t for t in PLAIN if t.strip()), encoding="utf-8")
    trainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=340, model_type="bpe", byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return str(folder / "tokenizer.model")


TEXT_SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
RECIPE_SIZES = dict(layers=3, heads=4, width=32, dtype="float32")


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    "Random weights of which every one matters: norms near one, nothing zero."
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=draw)
        p.data = noise / p[0].numel() ** 0.5 if p.dim() > 1 else 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise


LLAVAS = {"llava": LlavaConfig, "llava_next": LlavaNextConfig, "vipllava": VipLlavaConfig}  # by `model_type`


def llava_folder(folder: Path, text: PretrainedConfig, kind: str = "llava", tower_layers: int = 24, side: int = 336) -> Path:
    "A LLaVA with CLIP's tower, at 336 pixels if not said otherwise, in the layout of `llava-hf`, narrow and with random weights."
    folder.mkdir()
    tokenizer = metaspace(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    text.vocab_size = 64 * (len(tokenizer) // 64 + 1)
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=tower_layers, num_attention_heads=2, image_size=side, patch_size=14, projection_dim=24,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    fields = dict(
        ignore_index=-100, image_token_index=image_token, pad_token_id=tokenizer.pad_token_id, projector_hidden_act="gelu",
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    if kind == "llava_next":
        shapes = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # as published, times the side
        fields |= dict(image_grid_pinpoints=[[side * rows, side * columns] for rows, columns in shapes], use_image_newline_parameter=True)
    config = LLAVAS[kind](vision_config=tower.to_dict(), text_config=text.to_dict(), **fields)
    model = llava.MODELS[kind](config)
    shake(model)
    model.save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def tiny_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    "DeepSeek-VL's towers, small enough to test with, under names of their own."
    siglip, sam = deepseek_vision.SIGLIP_SIZES["siglip_large_patch16_384"], deepseek_vision.SAM_SIZES["sam_b_downsample"]
    small = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, patch_size=8)
    monkeypatch.setitem(deepseek_vision.SIGLIP_SIZES, "tiny_siglip", {**siglip, **small})
    small = dict(hidden_size=12, num_attention_heads=2, patch_size=8, output_channels=6, window_size=3, downsample_channels=(10, 16))
    monkeypatch.setitem(deepseek_vision.SAM_SIZES, "tiny_sam", {**sam, **small})


def tiny_deepseek(folder: Path, monkeypatch: pytest.MonkeyPatch, hybrid: bool = False, side: int = 32) -> FrozenLMM:
    "DeepSeek-VL in miniature with random weights; with both towers, as the 7B has them, or with one."
    tiny_towers(monkeypatch)
    tokenizer = byte_level(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_placeholder>"], "eos_token": "</s>"})
    low, high = dict(model_name="tiny_siglip", image_size=side, select_layer=-1, select_feature="same"), dict(model_name="tiny_sam", image_size=64)
    both, projector = dict(concat_type="tuple", low_res_cfg=low, high_res_cfg=high), "low_high_hybrid_split_mlp_gelu" if hybrid else "mlp_gelu"
    config = {
        "model_type": "multi_modality",
        "vision_config": dict(cls="HybridVisionTower", params=both) if hybrid else dict(cls="CLIPVisionTower", params=low),
        "aligner_config": {"params": dict(depth=2, input_dim=16, n_embed=32, projector_type=projector)},
        "language_config": dict(
            model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=len(tokenizer),
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    deepseek_vl.random_folder(folder / "lmm", config, tokenizer)
    prompt = "<image_placeholder>" * (side // 8) ** 2 + "Please give me a description of the image."
    size = dict(layers=3, heads=4, width=32, grid=side // 8, image_size=64 if hybrid else side, dtype="float32")
    recipe = recipes.replace("deepseek_vl_7b" if hybrid else "deepseek_vl_1_3b", **size, prompt=prompt)
    return FrozenLMM.load(recipe, folder / "lmm", device="cpu")


def quick_lmm(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> FrozenLMM:
    "An LMM with a recipe for a narrow head, for tests that train and do not care what is learnt: a step takes a fifth of toy_llava's."
    lmm = tiny_deepseek(folder, monkeypatch, side=64)
    narrow = recipes.HeadSizes(
        text_width=12, level_widths=(8, 8, 12), dynamic_width=4, detail_width=8, attention_width=8, fused_width=8, stage_sizes=(16, 8, 4, 2), width=8, output_width=4,
    )  # fmt: skip
    recipe = recipes.replace(lmm.recipe, sizes=narrow, schedule=recipes.get("toy_llava").schedule, **changes)
    return FrozenLMM.load(recipe, folder / "lmm", device="cpu")


FAMILIES = ("toy_llava", "deepseek_vl", "mistral", "qwen2", "llava_next")


def small_lmm(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> FrozenLMM:
    "One of `FAMILIES`: the toy as it is shipped, the others narrow and with random weights."
    if kind == "toy_llava":
        return FrozenLMM.load("toy_llava", device="cpu")
    if kind == "deepseek_vl":
        return tiny_deepseek(folder, patch)
    if kind == "llava_next":
        text = MistralConfig(**TEXT_SIZES, num_key_value_heads=2)
        return FrozenLMM.load(recipes.replace("llava_1_6_mistral_7b", **RECIPE_SIZES, grid=4, image_size=56), llava_folder(folder / kind, text, kind, side=56), "cpu")
    text = {"mistral": MistralConfig, "qwen2": Qwen2Config}[kind](**TEXT_SIZES, num_key_value_heads=2)
    recipe = recipes.replace("llava_1_5_7b", **RECIPE_SIZES, text_type=kind)
    return FrozenLMM.load(recipe, llava_folder(folder / kind, text, tower_layers=24), "cpu")


class Hostile:
    "A pickled object that leaves a trace when it is built."

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)
