"""DeepSeek-VL from its published files: names, numbers, and what is refused. Full-size towers need ../shared/conformance and are skipped without it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_lmms import Hostile, tiny_towers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from hglmm import devices, recipes
from hglmm.datasets.core import Sample
from hglmm.errors import CheckpointError, HGLMMError, SettingError
from hglmm.lmm import deepseek_vl, weights
from hglmm.lmm.features import Features
from hglmm.lmm.frozen import DTYPES, FrozenLMM
from hglmm.runs.feature_cache import FeatureCache

CONFORMANCE = Path(__file__).resolve().parents[3] / "shared" / "conformance"
TOLERANCE = 1e-3  # of the standard deviation of each array
SEEN = 1e-4  # the same for what the towers give: the tanh form of GELU, which is wrong, is only 8e-4 away
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # of the 7B's SAM tower

with_conformance = pytest.mark.skipif(not CONFORMANCE.is_dir(), reason=f"no conformance material at {CONFORMANCE}")


@pytest.fixture(autouse=True)
def towers(monkeypatch):
    tiny_towers(monkeypatch)


def tiny_config(hybrid: bool) -> dict:
    "config.json of a 7B (hybrid) or 1.3B in miniature."
    low = dict(model_name="tiny_siglip", image_size=32, select_layer=-1, select_feature="same")
    high = dict(model_name="tiny_sam", image_size=64, pixel_mean=MEAN, pixel_std=STD)
    both = dict(concat_type="tuple", high_res_cfg=high, low_res_cfg=dict(low, pixel_mean=[0.5] * 3, pixel_std=[0.5] * 3))
    return {
        "model_type": "multi_modality",
        "vision_config": dict(cls="HybridVisionTower", params=both) if hybrid else dict(cls="CLIPVisionTower", params=low),
        "aligner_config": {"params": {
            "depth": 2, "input_dim": 16, "n_embed": 32, "projector_type": "low_high_hybrid_split_mlp_gelu" if hybrid else "mlp_gelu",
        }},
        "language_config": dict(
            model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=64,
        ),
    }  # fmt: skip


def tiny_recipe(hybrid: bool) -> recipes.Recipe:
    return recipes.replace(
        "deepseek_vl_7b" if hybrid else "deepseek_vl_1_3b", layers=3, heads=4, width=32, grid=4, image_size=64 if hybrid else 32, dtype="float32",
        prompt="<image_placeholder>" * 16 + "what",
    )  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate("<unk> <s> </s> <image_placeholder> what User Assistant :".split())}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", additional_special_tokens=["<image_placeholder>"]
    )


def noise(shape: torch.Size, seed: int) -> torch.Tensor:
    "Every parameter matters: norms near one, nothing zero."
    fresh = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return fresh if len(shape) > 1 else fresh + 0.7


@pytest.fixture
def tiny_folder(tmp_path):
    "A writer of miniature checkpoints: one safetensors file, unused tensors included, weights changed at will."

    def write(hybrid: bool = True, change=lambda state: None, name: str = "tiny") -> Path:
        folder = deepseek_vl.random_folder(tmp_path / name, tiny_config(hybrid), tiny_tokenizer())
        (folder / "model-00001.safetensors").unlink()
        (folder / "model.safetensors.index.json").unlink()
        model = deepseek_vl.build(tiny_config(hybrid))
        state = {k: noise(v.shape, n) for n, (k, v) in enumerate(weights.published_state(model, deepseek_vl.naming).items())}
        state |= {k: torch.zeros(3) for k in sorted(deepseek_vl.unused_keys(model))}
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write


def load_tiny(folder: Path, hybrid: bool = True, **options) -> FrozenLMM:
    return FrozenLMM.load(tiny_recipe(hybrid), folder, device="cpu", **options)


# The towers once more, as their papers write them, on the published names. Slow and plain.


class Plain:
    "Layers by published name."

    def __init__(self, state: dict[str, torch.Tensor], prefix: str):
        self.state, self.prefix = state, prefix

    def get(self, name: str) -> torch.Tensor | None:
        return self.state.get(f"{self.prefix}.{name}")

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight"), self.get(f"{name}.bias"), 1e-6)

    def conv(self, name: str, x: torch.Tensor, **options) -> torch.Tensor:
        return F.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), **options)

    def mlp(self, name: str, x: torch.Tensor, layers: tuple[str, str]) -> torch.Tensor:
        return self.linear(f"{name}.{layers[1]}", F.gelu(self.linear(f"{name}.{layers[0]}", x)))

    def patches(self, pixels: torch.Tensor, patch: int = 8) -> torch.Tensor:  # (g, g, width)
        return self.conv("patch_embed.proj", pixels[None], stride=patch)[0].permute(1, 2, 0)


def plain_siglip(net: Plain, pixels: torch.Tensor, heads: int = 2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x, outputs, k = net.patches(pixels).flatten(0, 1) + net.get("pos_embed")[0], [], 0
    while net.get(f"blocks.{k}.norm1.weight") is not None:
        qkv = net.linear(f"blocks.{k}.attn.qkv", net.norm(f"blocks.{k}.norm1", x)).unflatten(-1, (3, heads, -1))
        q, key, v = qkv.permute(1, 2, 0, 3)
        mixed = (q @ key.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + net.linear(f"blocks.{k}.attn.proj", mixed.transpose(0, 1).flatten(1))
        x = x + net.mlp(f"blocks.{k}.mlp", net.norm(f"blocks.{k}.norm2", x), ("fc1", "fc2"))
        outputs, k = [*outputs, x], k + 1
    return net.norm("norm", x), outputs


def plain_window(net: Plain, block: str, x: torch.Tensor, heads: int = 2) -> torch.Tensor:  # (h, w, width)
    "SAM's attention within one window: relative positions of query and key, per axis, from the query."
    h, w, _ = x.shape
    q, key, v = net.linear(f"{block}.attn.qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 3, 0, 1, 4)  # (heads, h, w, e) each
    scores = torch.einsum("nhwe,nije->nhwij", q, key) / q.shape[-1] ** 0.5
    for a in range(h):
        for i in range(h):
            scores[:, a, :, i] += (q[:, a] @ net.get(f"{block}.attn.rel_pos_h")[a - i + h - 1])[:, :, None]
    for b in range(w):
        for j in range(w):
            scores[:, :, b, :, j] += (q[:, :, b] @ net.get(f"{block}.attn.rel_pos_w")[b - j + w - 1])[:, :, None]
    mixed = torch.einsum("nhwk,nke->hwne", scores.flatten(3).softmax(-1), v.flatten(1, 2))
    return net.linear(f"{block}.attn.proj", mixed.flatten(2))


def plain_sam(net: Plain, pixels: torch.Tensor, window: int = 3) -> list[torch.Tensor]:
    x, outputs = net.patches(pixels) + net.get("pos_embed")[0], []
    for k in range(12):
        y, side = net.norm(f"blocks.{k}.norm1", x), x.shape[0]
        step = side if k in (2, 5, 8, 11) else window
        padded = F.pad(y, (0, 0, 0, -side % step, 0, -side % step))
        for top in range(0, side, step):
            for left in range(0, side, step):
                part = padded[top : top + step, left : left + step].clone()
                padded[top : top + step, left : left + step] = plain_window(net, f"blocks.{k}", part)
        x = x + padded[:side, :side]
        x = x + net.mlp(f"blocks.{k}.mlp", net.norm(f"blocks.{k}.norm2", x), ("lin1", "lin2"))
        outputs.append(x)
    return outputs


def plain_down(net: Plain, x: torch.Tensor, neck: str, grid: int = 4) -> torch.Tensor:
    "Through a neck, to four times the grid, and halved twice."
    x = net.norm(f"{neck}.1", net.conv(f"{neck}.0", x.permute(2, 0, 1)[None]).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = net.norm(f"{neck}.3", net.conv(f"{neck}.2", x, padding=1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = F.interpolate(x, (4 * grid, 4 * grid), mode="bilinear")
    for k in (0, 1):
        x = net.conv(f"downsamples.{k}", x, stride=2, padding=1)
    return x[0].flatten(1).T


def plain_see(state: dict[str, torch.Tensor], pixels: torch.Tensor, hybrid: bool) -> tuple[torch.Tensor, torch.Tensor]:
    "Image embeddings and levels, METHOD section 2."
    aligner, tapped = Plain(state, "aligner"), (3, 6, 9, 12, 15, 18, 20, 23)
    if not hybrid:
        own, outputs = plain_siglip(Plain(state, "vision_model.vision_tower"), pixels)
        levels = torch.stack([outputs[k] for k in tapped])
        return tuple(aligner.mlp("layers", x, ("0", "2")) for x in (own, levels))
    small = F.interpolate(pixels[None], (32, 32), mode="bilinear", antialias=True)[0]
    low, lows = plain_siglip(Plain(state, "vision_model.vision_tower_low.vision_tower"), small * 2 - 1)
    sam = Plain(state, "vision_model.vision_tower_high.vision_tower")
    outputs = plain_sam(sam, (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
    high = plain_down(sam, outputs[11], "neck") + sam.get("hd_alpha_downsamples") * plain_down(sam, outputs[2], "neck_hd")

    def project(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        return aligner.linear("layers.1", F.gelu(torch.cat([aligner.linear("high_up_proj", high), aligner.linear("low_up_proj", low)], -1)))

    pairs = zip((1, 2, 4, 5, 7, 9, 10, 11), tapped, strict=True)
    return project(high, low), torch.stack([project(plain_down(sam, outputs[a], "neck"), lows[b]) for a, b in pairs])


def assert_close(ours: torch.Tensor, theirs, name: str, tolerance: float = TOLERANCE) -> None:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, name
    worst = float((ours - theirs).abs().max() / theirs.std())
    print(f"{name}: {worst:.1e} of the standard deviation")
    assert worst < tolerance, name


@pytest.mark.parametrize("hybrid", [False, True], ids=["1.3B", "7B"])
@torch.no_grad()
def test_towers_compute_what_the_method_says(tiny_folder, hybrid):
    folder = tiny_folder(hybrid)
    lmm = load_tiny(folder, hybrid)
    side = lmm.recipe.image_size
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    own, levels = lmm.see(pixels)
    for b in range(2):
        plain_own, plain_levels = plain_see(load_file(folder / "model.safetensors"), pixels[b], hybrid)
        assert_close(own[b], plain_own, "own", SEEN)
        assert_close(levels[b], plain_levels, "levels", SEEN)
    assert set(lmm.unused) == deepseek_vl.unused_keys(lmm.model)


@pytest.mark.parametrize("hybrid", [False, True], ids=["1.3B", "7B"])
def test_levels_are_kept_as_they_are_seen(tiny_folder, tmp_path, hybrid):
    "Before the projector where that is smaller: here one tower is half as wide as the language model, and two together are as wide."
    lmm = load_tiny(tiny_folder(hybrid), hybrid)
    pixels = noise((1, 3, lmm.recipe.image_size, lmm.recipe.image_size), 3)
    with torch.no_grad():
        seen = lmm.see_levels(pixels)
        assert len(seen) == 1 + hybrid and all(one.shape[-1] == 16 for one in seen) and torch.equal(lmm.project_levels(seen), lmm.see(pixels)[1])
        cache = FeatureCache(lmm, tmp_path / "features", 10**9, "levels")
        kept = cache.kept(Features(*(torch.zeros(1) for _ in range(2)), lmm.see(pixels)[1][0], pixels[0]))
        assert set(kept) == {"attention", "text", "levels" if hybrid else "seen.0"}
        for found in (kept, {f"seen.{k}": one for k, one in enumerate(seen)}, {}):
            assert torch.equal(cache.levels(found, pixels[0]), lmm.see(pixels)[1])


def test_all_ways_of_storing_give_the_same_model(tiny_folder):
    folder = tiny_folder()
    whole = load_tiny(folder).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()

    shards = {f"model-0000{k + 1}-of-00003.safetensors": dict(list(state.items())[k::3]) for k in range(3)}
    index = {"weight_map": {key: name for name, shard in shards.items() for key in shard}}
    for name, shard in shards.items():
        save_file(shard, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_tiny(folder).model.state_dict()

    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        load_tiny(folder)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    pickled = load_tiny(folder).model.state_dict()
    (folder / "pytorch_model.bin").unlink()  # not overwritten: it is mapped into memory
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    old_pickled = load_tiny(folder).model.state_dict()
    for other in (sharded, pickled, old_pickled):
        assert set(other) == set(whole) and all(torch.equal(whole[k], other[k]) for k in whole)


BLOCK = "vision_model.vision_tower_low.vision_tower.blocks.5"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: s.pop(f"{BLOCK}.attn.qkv.bias"), rf"missing \(1\): {BLOCK}.attn.qkv.bias"),
        (lambda s: s.update({"vision_model.extra": torch.ones(2)}), "left over \\(1\\): vision_model.extra"),
        (lambda s: s.update({f"{BLOCK}.ln1.bias": s.pop(f"{BLOCK}.norm1.bias")}), rf"missing \(1\): {BLOCK}.norm1.bias; left over \(1\): {BLOCK}.ln1.bias"),
        (lambda s: s.update({"aligner.low_up_proj.bias": torch.ones(32)}), r"aligner.low_up_proj.bias has shape \(32,\), expected \(16,\)"),
        (lambda s: s["language_model.lm_head.weight"][3].fill_(torch.nan), "language_model.lm_head.weight is not finite"),
        (lambda s: s.update({"aligner.low_up_proj.bias": torch.ones(16, dtype=torch.int8)}), "stored as int8"),
    ],
    ids=["missing", "extra", "renamed", "shape", "nan", "int8"],
)
def test_weights_that_do_not_fit_are_refused(tiny_folder, change, said):
    with pytest.raises(CheckpointError, match=said):
        load_tiny(tiny_folder(change=change))


def test_the_other_size_is_refused(tiny_folder):
    folder = tiny_folder(hybrid=False)
    weights_of_the_other = tiny_folder(hybrid=True, name="other") / "model.safetensors"
    shutil.copy(weights_of_the_other, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): vision_model.vision_tower.pos_embed.*left over \(\d+\): .*vision_tower_high"):
        load_tiny(folder, hybrid=False)


def test_half_precision_is_converted_and_said(tiny_folder):
    def halve(state: dict[str, torch.Tensor]) -> None:
        state.update({k: v.half() for k, v in state.items()})

    with pytest.warns(UserWarning, match="stored as float16; converted to float32"):
        lmm = load_tiny(tiny_folder(change=halve))
    assert {p.dtype for p in lmm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [0, 7, 5000], ids=["empty", "header", "tensors"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_files_are_refused(tiny_folder, name, size):
    folder = tiny_folder()
    file = folder / name
    if file.suffix == ".bin":
        torch.save(load_file(folder / "model.safetensors"), file)
        (folder / "model.safetensors").unlink()
    with open(file, "r+b") as open_file:
        open_file.truncate(size)
    with pytest.raises(CheckpointError, match=f"{name}: "):
        load_tiny(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_not_executed(tiny_folder, tmp_path, zipped):
    folder, trace = tiny_folder(), tmp_path / "executed"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**state, "zz": Hostile(trace)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="mkdir.*Nothing was run"):
        load_tiny(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    "file, content, said",
    [
        ("config.json", "{", "not readable as JSON"),
        ("config.json", "[]", "holds a list"),
        ("config.json", '{"model_type": "llava"}', "not DeepSeek-VL"),
        ("config.json", None, "config.json"),
        ("preprocessor_config.json", None, "preprocessor_config.json: no such file"),
        ("preprocessor_config.json", '{"image_size": 384, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}', "pictures of 384 pixels"),
        ("tokenizer.json", None, "tokenizer"),
        ("model.safetensors", None, "no weights here"),
    ],
)
def test_broken_folders_are_refused(tiny_folder, file, content, said):
    folder = tiny_folder()
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(HGLMMError, match=said):
        load_tiny(folder)


# Spread over devices. Here: memory and disk, which takes the same hooks as several GPUs

SPREAD = {"": "cpu", "tower": "disk", "projector": "disk", "language_model.model.layers.1": "disk", "language_model.model.embed_tokens": "disk"}


@pytest.mark.parametrize("hybrid", [False, True], ids=["1.3B", "7B"])
@pytest.mark.parametrize("device_map", [SPREAD, {"": "disk"}, "auto"], ids=["some", "all", "auto"])
def test_a_spread_model_gives_the_same(tiny_folder, tmp_path, hybrid, device_map):
    folder = tiny_folder(hybrid)
    whole = load_tiny(folder, hybrid)
    spread = FrozenLMM.load(tiny_recipe(hybrid), folder, device_map=device_map, offload_folder=tmp_path / "offload")
    on_disk = {n for n, p in spread.model.named_parameters() if p.is_meta}
    if device_map != "auto":
        parts = tuple(part for part, device in device_map.items() if device == "disk")
        assert on_disk == {n for n, _ in whole.model.named_parameters() if n.startswith(parts)} and spread.device == torch.device("cpu")
        assert {f"{n}.dat" for n in on_disk} == {file.name for file in (tmp_path / "offload").glob("*.dat")}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    ours, theirs = (lmm.answer(image, "what", max_new_tokens=5) for lmm in (spread, whole))
    assert ours == theirs and len(ours.tokens) > 0
    a, b = (lmm.encode([Sample(image, [("what", None), ("User", 0)], np.ones((1, 20, 30), bool))], tokens=True)[0] for lmm in (spread, whole))
    said = dict(text="what User", tokens=spread.tokenizer("what User")["input_ids"], offsets=[(0, 4), (4, 9)])  # random words mean nothing to this tokenizer
    c, d = (lmm.encode_answer(dataclasses.replace(answer, **said), [(5, 9)], tokens=True) for lmm, answer in ((spread, ours), (whole, theirs)))
    for x, y in ((a, b), (c, d)):
        assert all(torch.allclose(getattr(x, name), getattr(y, name), atol=1e-6) for name in ("attention", "text", "levels"))
        assert torch.allclose(x.tokens[0], y.tokens[0], atol=1e-6)


def test_bad_maps_are_refused(tiny_folder):
    for device_map, said in (({"towr": "cpu"}, "Did you mean 'tower'"), ({"": "cpu", "tower.low": "disk"}, "splits 'tower'"), ({"": "disk"}, "offload_folder")):
        with pytest.raises(SettingError, match=said):
            FrozenLMM.load(tiny_recipe(True), tiny_folder(), device_map=device_map)


# Against the reference, at full size


def listing(name: str) -> dict:
    return json.loads((CONFORMANCE / name).read_text())


def small_recipe(name: str, dtype: str) -> recipes.Recipe:
    "The recipe for the small language model behind the full-size tower."
    return recipes.replace(name, layers=6, heads=8, width=256, dtype=dtype)


@with_conformance
@pytest.mark.parametrize("size", ["1_3b", "7b"])
@pytest.mark.parametrize("kind", ["lmm_keys", "small_lmm"])
def test_every_published_key_is_used_or_known(size, kind):
    spec = listing(f"deepseek_vl_{size}.{kind}.json")
    model = deepseek_vl.build(spec["config"])
    wanted = weights.published_state(model, deepseek_vl.naming)
    unused = deepseek_vl.unused_keys(model)
    assert set(spec["shapes"]) == set(wanted) | unused and not set(wanted) & unused
    assert {k: tuple(v.shape) for k, v in wanted.items()} == {k: tuple(spec["shapes"][k]) for k in wanted}
    assert len(unused) == (13 if size == "1_3b" else 17)


@with_conformance
def test_features_are_those_of_the_reference(seeded, tmp_path):
    spec = listing("deepseek_vl_1_3b.small_lmm.json")
    folder = seeded.deepseek_folder(tmp_path / "deepseek", spec)
    try:
        lmm = FrozenLMM.load(small_recipe("deepseek_vl_1_3b", "float32"), folder, device="cpu")
        theirs = np.load(CONFORMANCE / "deepseek_vl_1_3b.lmm.npz")
        pixels = seeded.seeded_data("deepseek_vl_1_3b/pixels_lmm", (3, 384, 384), 0.5)
        features = lmm.features(pixels, torch.from_numpy(theirs["input_ids"]), torch.from_numpy(theirs["phrase_ids"]))
        with torch.no_grad():
            own, _ = lmm.see(pixels[None])
    finally:
        shutil.rmtree(folder)
    assert_close(own[0, ::9, ::8], theirs["image_embeds"], "image_embeds", SEEN)
    assert_close(features.levels[:, ::9, ::8], theirs["levels"], "levels", SEEN)
    assert_close(features.attention, theirs["attention"], "attention")
    assert_close(features.text, theirs["text"], "text")


def check_that_no_phrase_looks_ahead(lmm: FrozenLMM, pixels: torch.Tensor, ids: torch.Tensor, phrases: torch.Tensor, features) -> None:
    "What follows phrase 0 may be another text, or none, or longer: its features stay. What is before it may not."
    end = int(torch.nonzero(phrases == 0)[-1]) + 1
    tolerance = 1e-6 if lmm.dtype == torch.float32 else 2e-2  # other lengths are computed in other blocks
    exchanged = ids.clone()
    exchanged[end:] = ids[end:].flip(0) + 3
    longer = torch.cat([ids, torch.arange(5, 15)]), torch.cat([phrases, torch.full((10,), -1)])
    for other_ids, other_phrases, most in ((exchanged, phrases, 1e-6), (ids[:end], phrases[:end], tolerance), (*longer, tolerance)):
        other = lmm.features(pixels, other_ids, other_phrases)
        for name in ("attention", "text"):
            mine, theirs = (getattr(f, name)[0].float() for f in (features, other))
            assert float((mine - theirs).abs().max()) <= most * float(mine.abs().max()), name
    before = ids.clone()
    before[0] = 7
    other = lmm.features(pixels, before, phrases)
    assert float((features.text[0] - other.text[0]).abs().max()) > 3 * tolerance * float(features.text[0].abs().max())


@pytest.mark.parametrize("hybrid", [False, True], ids=["1.3B", "7B"])
def test_no_phrase_sees_what_follows_it(tiny_folder, hybrid):
    lmm = load_tiny(tiny_folder(hybrid), hybrid)
    ids = torch.tensor([1, *[lmm.image_token] * 16, 20, 30, 31, 40, 41])
    phrases = torch.full_like(ids, -1)
    phrases[-4:] = torch.tensor([0, 0, 1, 1])
    pixels = torch.rand(3, lmm.recipe.image_size, lmm.recipe.image_size, generator=torch.Generator().manual_seed(1))
    check_that_no_phrase_looks_ahead(lmm, pixels, ids, phrases, lmm.features(pixels, ids, phrases))


@with_conformance
def test_the_7b_at_full_size_of_its_towers(seeded, tmp_path):
    "In bfloat16, as it is used, where the hardware has it (a quarter of an hour where it does not): all read, finite, of the right shapes, and no phrase sees what follows it."
    dtype = "bfloat16" if devices.has_bfloat16(torch.device("cpu")) else "float32"
    folder = seeded.deepseek_folder(tmp_path / "deepseek", listing("deepseek_vl_7b.small_lmm.json"), DTYPES[dtype])
    try:
        lmm = FrozenLMM.load(small_recipe("deepseek_vl_7b", dtype), folder, device="cpu")
        pixels = seeded.seeded_data("deepseek_vl_7b/pixels_lmm", (3, 1024, 1024), 0.5).sigmoid()
        ids = torch.tensor([1, *[lmm.image_token] * 576, 20, 30, 31, 40, 41])
        phrases = torch.full_like(ids, -1)
        phrases[-4:] = torch.tensor([0, 0, 1, 1])
        seen = lmm.see(pixels[None].to(lmm.dtype))
        lmm.see = lambda _: seen  # the towers once
        features = lmm.features(pixels, ids, phrases)
        check_that_no_phrase_looks_ahead(lmm, pixels, ids, phrases, features)
    finally:
        shutil.rmtree(folder)
    assert features.attention.shape == (2, 48, 24, 24) and features.text.shape == (2, 6, 256)
    assert features.levels.shape == (8, 576, 256) and torch.equal(features.pixels, pixels)
    for array in (features.attention, features.text, features.levels):
        assert bool(array.isfinite().all()) and float(array.float().std()) > 0
    assert 0 < float(features.attention.sum((-1, -2)).max()) <= 1 + 1e-3
