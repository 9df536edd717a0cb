"""LLaVA-NeXT and ViP-LLaVA as the hub has them, small and with random weights: what is read is what transformers' own models compute, and what stands on it works."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_lmms import RECIPE_SIZES, TEXT_SIZES, llava_folder
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, LlamaConfig, LlavaNextImageProcessor, MistralConfig

from hglmm import heads, inference, recipes
from hglmm.datasets.core import Sample
from hglmm.errors import CheckpointError, DataError, HGLMMError, SettingError
from hglmm.explore.state import Exploration
from hglmm.lmm import llava
from hglmm.lmm.features import Features, swap_phrases
from hglmm.lmm.frozen import FrozenLMM
from hglmm.phrases import tokenize_pieces
from hglmm.runs import speed
from hglmm.runs.feature_cache import FeatureCache

SIDE, GRID = 56, 4  # of a tile: pixels, cells; maps of transformers' way stay small
SIZES = dict(**RECIPE_SIZES, grid=GRID, image_size=SIDE, sizes__width=8, sizes__stage_sizes=(14, 7, 4, 2))
VICUNA, MISTRAL = (recipes.replace(f"llava_1_6_{name}_7b", **SIZES) for name in ("vicuna", "mistral"))
VIP = recipes.replace("vip_llava_7b", **SIZES)
TEXTS = {
    "vicuna": LlamaConfig(**TEXT_SIZES, max_position_embeddings=4096),
    "mistral": MistralConfig(**TEXT_SIZES, num_key_value_heads=2, max_position_embeddings=32768, sliding_window=None),
}
PICTURES = {  # width, height: the tiles' grid (h, w)
    "square": ((90, 90), (8, 8)), "wide": ((200, 60), (4, 12)), "tall": ((50, 170), (12, 4)), "a photo": ((160, 120), (6, 8)), "upright": ((75, 100), (8, 6)),
    "small": ((20, 11), (4, 8)), "odd": ((101, 67), (6, 8)), "three pixels": ((3, 3), (4, 4)), "very wide": ((400, 41), (2, 12)),
}  # fmt: skip
PIECES = [("There is", None), ("a red mug", 0), ("and", None), ("two fish 🐟", 1), (".", None)]


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def sample_of(size: tuple[int, int], pieces: list = PIECES) -> Sample:
    count = len({k for _, k in pieces if k is not None})
    return Sample(picture(size), pieces, np.ones((count, size[1], size[0]), bool))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("next")
    made = {name: llava_folder(room / name, text, "llava_next", side=SIDE) for name, text in TEXTS.items()}
    return made | {"vip": llava_folder(room / "vip", TEXTS["vicuna"], "vipllava", side=SIDE)}


@pytest.fixture(scope="module")
def lmms(folders) -> dict[str, FrozenLMM]:
    found = {"vicuna": VICUNA, "mistral": MISTRAL, "vip": VIP}
    return {name: FrozenLMM.load(recipe, folders[name], "cpu") for name, recipe in found.items()}


@pytest.fixture(scope="module")
def slow(folders) -> dict[str, torch.nn.Module]:
    "transformers' own, which give all attention maps."
    kinds = {"vicuna": "llava_next", "mistral": "llava_next", "vip": "vipllava"}
    found = {}
    for name, kind in kinds.items():
        config = AutoConfig.from_pretrained(folders[name])
        found[name] = llava.MODELS[kind]._from_config(config, attn_implementation="eager").eval()
        found[name].load_state_dict({k: v for file in folders[name].glob("*.safetensors") for k, v in load_file(file).items()})
    return found


def published_processor() -> LlavaNextImageProcessor:
    "As its preprocessor_config.json describes it."
    shapes = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    return LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=[[SIDE * a, SIDE * b] for a, b in shapes])


@torch.no_grad()
def by_transformers(model: torch.nn.Module, lmm: FrozenLMM, one: Sample) -> dict[str, torch.Tensor]:
    "Attention and hidden states of phrases from the whole model's own forward."
    said = tokenize_pieces(lmm.tokenizer, lmm.recipe.instruction.format(input=lmm.recipe.prompt), one.pieces, len(one.masks))
    inputs = published_processor()(one.image, input_data_format="channels_last", return_tensors="pt") if lmm.recipe.tiles else {"pixel_values": lmm.prepare(one.image)[0][None]}
    ids, first = torch.tensor([said.input_ids]), said.input_ids.index(lmm.image_token)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, output_hidden_states=True, **inputs)
    cells = out.hidden_states[0].shape[1] - ids.shape[1] + 1
    phrase_of = torch.tensor(said.phrase_ids[:first] + [-1] * cells + said.phrase_ids[first + 1 :])
    every = torch.cat(out.attentions, 1)[0][:, :, first : first + cells]
    rows = torch.stack([every[:, phrase_of == k].mean(1) for k in range(said.phrases)])
    text = torch.stack([torch.stack([h[0, phrase_of == k].mean(0) for h in out.hidden_states[1:]]) for k in range(said.phrases)])
    return {"whole": rows[..., : GRID**2].unflatten(-1, (GRID, GRID)), "rest": rows[..., GRID**2 :], "text": text}


@pytest.mark.parametrize("shape", PICTURES)
@pytest.mark.parametrize("name", ["vicuna", "mistral"])
def test_features_are_transformers_own(lmms, slow, name, shape):
    size, grid = PICTURES[shape]
    lmm, one = lmms[name], sample_of(size)
    (found,) = lmm.encode([one])
    expected = by_transformers(slow[name], lmm, one)
    tiles = expected["rest"].unflatten(-1, (grid[0], grid[1] + 1))[..., :-1]  # the last of a row is `image_newline`
    assert found.attention.shape == (2, 12, GRID, GRID) and found.tiles.shape == (2, 12, *grid) and float(found.tiles.std()) > 1e-4
    assert torch.allclose(found.attention, expected["whole"], atol=1e-5) and torch.allclose(found.tiles, tiles, atol=1e-5)
    assert torch.allclose(found.text, expected["text"], atol=1e-5)
    assert lmm.picture_tokens(size) == GRID**2 + grid[0] * (grid[1] + 1) == GRID**2 + expected["rest"].shape[-1]


@pytest.mark.parametrize("shape", PICTURES)
def test_pictures_are_prepared_as_published(lmms, shape):
    one = picture(PICTURES[shape][0])
    pixels, box = lmms["mistral"].prepare(one)
    expected = published_processor()(one, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(pixels, expected, atol=1e-6) and (box.picture, box.resized, box.pad) == (one.size, (SIDE, SIDE), (0, 0, 0, 0))
    (found,) = lmms["mistral"].encode([sample_of(one.size)])
    assert torch.equal(found.pixels, pixels[0]) and found.pixels.untyped_storage().nbytes() == pixels[0].nbytes and found.letterbox == box


@torch.no_grad()
def test_levels_are_those_of_the_whole_picture(lmms):
    lmm, one = lmms["mistral"], sample_of((160, 120))
    tower, (found,) = lmm.model.vision_tower, lmm.encode([one])
    hidden = tower(lmm.prepare(one.image)[0][:1], output_hidden_states=True).hidden_states[1:]
    expected = torch.stack([lmm.model.multi_modal_projector(hidden[k][0, 1:]) for k in lmm.recipe.vision_layers])
    assert found.levels.shape == (8, GRID**2, 32) and torch.allclose(found.levels, expected, atol=1e-5)


@pytest.mark.parametrize("name, shape", [("vicuna", "a photo"), ("mistral", "wide"), ("mistral", "tall"), ("mistral", "square"), ("vip", "a photo")])
@torch.no_grad()
def test_answers_are_transformers_own(lmms, slow, name, shape):
    lmm, one = lmms[name], picture(PICTURES[shape][0])
    ids = torch.tensor([lmm.ask_ids("What is there?")])
    inputs = published_processor()(one, return_tensors="pt") if lmm.recipe.tiles else {"pixel_values": lmm.prepare(one)[0][None]}
    answer = lmm.answer(one, "What is there?", max_new_tokens=12)
    options = dict(do_sample=False, max_new_tokens=12, eos_token_id=lmm.tokenizer.eos_token_id, use_cache=name != "vip")  # 4.39.1 counts ViP-LLaVA's cache by the width of a head
    said = slow[name].generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **inputs)
    expected = said[0, ids.shape[1] :].tolist()
    assert answer.tokens == [token for token in expected if token != lmm.tokenizer.eos_token_id] and len(answer.tokens) > 3


def assert_same(a: Features, b: Features, atol: float = 1e-5) -> None:
    for name in ("attention", "tiles", "text", "levels", "pixels"):
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=atol), name


def test_pictures_of_all_shapes_in_one_batch(lmms):
    "Also several sentences about one of them, and a text without a phrase."
    lmm = lmms["mistral"]
    sizes = [size for size, _ in PICTURES.values()]
    more = [sample_of((160, 120), [("the long green wall behind", 0)]), sample_of((160, 120), [("nothing", None)]), sample_of((90, 90), [("one", 0), ("two", 1), ("three", 2)])]
    samples = [*map(sample_of, sizes), *more]
    together = lmm.encode(samples, tokens=True)
    for one, found in zip(samples, together, strict=True):
        (alone,) = lmm.encode([one], tokens=True)
        assert_same(found, alone)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found.tokens, alone.tokens, strict=True))
    assert together[-2].tiles.shape == (0, 12, 6, 8) and together[-3].levels is together[3].levels
    assert torch.equal(swap_phrases([together[1], together[2]])[0].tiles, together[2].tiles) and together[0].to(torch.float16).tiles.dtype == torch.float16


def test_no_phrase_at_all(lmms):
    (found,) = lmms["mistral"].encode([sample_of((160, 120), [("nothing", None)])])
    assert found.attention.shape == (0, 12, GRID, GRID) and found.tiles.shape == (0, 12, 6, 8) and found.text.shape == (0, 3, 32)


def test_many_answers_at_once(lmms, monkeypatch):
    "Of pictures that are of different length in tokens; however many there is room for."
    lmm, images = lmms["mistral"], [picture(PICTURES[shape][0]) for shape in ("wide", "square", "tall", "small", "square")]
    questions = ["What is there?", "Which?", "How many fish are there?", "What?", "Who?"]
    alone = [lmm.answer(one, question, max_new_tokens=8) for one, question in zip(images, questions, strict=True)]
    for room in (4 << 30, 200_000):
        monkeypatch.setattr("hglmm.lmm.answers.CACHE", room)
        found = lmm.answers(images, questions, max_new_tokens=8)
        assert found == alone
        for ours, theirs in zip(found, alone, strict=True):
            assert_same(lmm.encode_answer(ours, [(0, len(ours.text))]), lmm.encode_answer(theirs, [(0, len(theirs.text))]))
    longest = max(lmm.picture_tokens(one.size) for one in images)
    assert longest == GRID**2 + 8 * 9 and sum(p.numel() for p in lmm.model.parameters()) < 1e6


def test_words_behind_the_picture(lmms):
    "Every token of a turn that sees the picture, and the first of them stands behind the end of its last row."
    lmm, one = lmms["mistral"], picture((160, 120))
    answer = lmm.answer(one, "What is there?", max_new_tokens=6)
    tokens, found = lmm.encode_tokens(answer, torch.float32)
    rows = [token for token in tokens if token.row is not None]
    assert len(rows) == len(found.attention) == len(found.tiles) == len(answer.prompt_ids) - answer.prompt_ids.index(lmm.image_token) - 1 + len(answer.tokens)
    said = lmm.encode_answer(answer, [(0, len(answer.text))])
    assert torch.allclose(found.tiles[-len(answer.tokens) :].mean(0), said.tiles[0], atol=1e-5)


class Sizes(TorchDispatchMode):
    "Remembers the largest tensor whose last two sides are both at least that long."

    def __init__(self, side: int):
        super().__init__()
        self.side, self.found = side, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and one.dim() > 1 and min(one.shape[-2:]) >= self.side:
                self.found = max(self.found, one.numel())
        return out


def test_no_attention_of_all_to_all_is_held(lmms, slow):
    one = sample_of((200, 200))
    length = GRID**2 + 8 * 9
    with Sizes(length) as ours:
        lmms["mistral"].encode([one])
    with Sizes(length) as theirs:
        by_transformers(slow["mistral"], lmms["mistral"], one)
    assert theirs.found >= 4 * length**2 and ours.found < length**2 * 1.5  # a layer's heads; the mask at most


@pytest.mark.parametrize("mode", ["rows", "levels"])
@pytest.mark.parametrize("tokens", [False, True])
def test_features_are_kept(lmms, tmp_path, mode, tokens):
    lmm, samples = lmms["mistral"], [sample_of((160, 120)), sample_of((50, 170))]
    cache = FeatureCache(lmm, tmp_path, 10**9, mode)
    first, again = cache.encode(samples, tokens), cache.encode(samples, tokens)
    assert dict(cache.counts) == {"misses": 2, "written": 2, "hits": 2}
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("attention", "tiles", "text", "levels", "pixels"))
        assert a.letterbox == b.letterbox and all(torch.equal(x, y) for x, y in zip(a.tokens or [], b.tokens or [], strict=True))


SPREAD = {"": "cpu", "vision_tower": "disk", "language_model.model.layers.1": "disk", "language_model.lm_head": "disk"}


def test_a_spread_model_gives_the_same(lmms, folders, tmp_path):
    spread = FrozenLMM.load(MISTRAL, folders["mistral"], device_map=SPREAD, offload_folder=tmp_path / "parts")
    assert all(p.is_meta for p in spread.model.vision_tower.parameters())
    assert_same(spread.encode([sample_of((160, 120))])[0], lmms["mistral"].encode([sample_of((160, 120))])[0])
    with pytest.raises(SettingError, match="image_newline.*Map it to a device"):
        FrozenLMM.load(MISTRAL, folders["mistral"], device_map=SPREAD | {"image_newline": "disk"}, offload_folder=tmp_path / "more")


def test_turns_are_as_published(lmms):
    vicuna, mistral, vip = (lmms[name] for name in ("vicuna", "mistral", "vip"))
    said = [("What is there?", "A mug.")]
    intro = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions."
    assert vicuna.ask("Where?", said) == f"{intro} USER: <image>\nWhat is there? ASSISTANT: A mug.</s>USER: Where? ASSISTANT:"
    assert mistral.ask("Where?", said) == "[INST] <image>\nWhat is there? [/INST] A mug.</s>[INST] Where? [/INST]"
    assert vip.ask("Where?", said) == f"{intro}###Human: <image>\nWhat is there?###Assistant: A mug.###Human: Where?###Assistant:"
    for lmm in (vicuna, mistral, vip):
        assert lmm.ask_ids("Where?", said).count(lmm.image_token) == 1
        assert lmm.answer(picture((90, 60)), "Where?", max_new_tokens=3, history=said).prompt_ids == lmm.ask_ids("Where?", said)


def test_vip_llava_takes_five_layers(lmms, slow):
    lmm, one = lmms["vip"], sample_of((160, 120))
    (found,) = lmm.encode([one])
    expected = by_transformers(slow["vip"], lmm, one)
    assert found.tiles is None and expected["rest"].numel() == 0
    assert torch.allclose(found.attention, expected["whole"], atol=1e-5) and torch.allclose(found.text, expected["text"], atol=1e-5)
    assert lmm.model.config.vision_feature_layers == [-2, -5, -8, -11, 6] and found.levels.shape == (8, GRID**2, 32)
    seen = lmm.see_levels(found.pixels[None])
    assert torch.equal(lmm.project_levels(seen)[0], found.levels) and seen[0].shape == (1, 8, GRID**2, 16)


# Heads


@pytest.mark.parametrize("kind", ["hg", "unet", "training_free"])
def test_heads_draw_pictures_of_all_shapes(lmms, kind):
    torch.manual_seed(0)
    lmm, head = lmms["mistral"], heads.build(recipes.replace(MISTRAL, head=kind)).eval()
    samples = [sample_of(size) for size in ((160, 120), (50, 170), (90, 90))]
    found = inference.likelihoods(lmm, head, samples)
    for one, likely in zip(samples, found, strict=True):
        assert likely.shape == one.masks.shape and np.isfinite(likely).all()
        assert np.allclose(likely, inference.likelihoods(lmm, head, [one])[0], atol=1e-4)


def test_the_unet_reads_both_grids(lmms):
    torch.manual_seed(0)
    head = heads.build(recipes.replace(MISTRAL, head="unet")).eval()
    (found,) = lmms["mistral"].encode([sample_of((160, 120))])
    maps = head.maps([found])
    whole = torch.nn.functional.interpolate(found.attention, size=(6, 8), mode="bilinear", align_corners=False)
    both = torch.cat([whole, found.tiles], 1)
    expected = torch.nn.functional.interpolate(both / both.sum((-2, -1), keepdim=True), size=(64, 64), mode="bilinear", align_corners=False)
    assert maps.shape == (2, 24, 64, 64) and torch.allclose(maps, expected, atol=1e-6)
    found.tiles = None
    with pytest.raises(HGLMMError, match="tiles is None, expected"):
        head([found])
    found.attention = torch.zeros(2, 12, 6, 8)
    with pytest.raises(HGLMMError, match="HG heads use the base grid"):
        heads.build(MISTRAL)([found])


@pytest.mark.parametrize("kind", ["unet", "hg"])
def test_the_explorer_draws_masks_of_words(lmms, kind):
    "And keeps the maps over tiles only for a head that reads them."
    torch.manual_seed(0)
    lmm, head = lmms["mistral"], heads.build(recipes.replace(MISTRAL, head=kind)).eval()
    one = Exploration(SimpleNamespace(lmm=lmm, head=head), picture((160, 120)), "What is there?", max_new_tokens=5)
    answer = lmm.answer(one.image, "What is there?", max_new_tokens=5)
    one.select(list(one.rows)[-len(answer.tokens) :])
    expected = inference.probabilities(head, [lmm.encode_answer(answer, [(0, len(answer.text))])])[0][0]
    assert (one.features.tiles is not None) == head.needs_tiles == (kind == "unet")
    assert one.probabilities().shape == (120, 160) and np.abs(one.probabilities() - expected).max() < 0.05  # maps are kept in half precision


# What is refused


@pytest.mark.parametrize("change, said", [
    (dict(image_grid_pinpoints=[[50, 100]]), "each so many times 56"),
    (dict(image_grid_pinpoints=[[56, 112]]), "in config.json and .* in preprocessor_config.json"),
    (dict(model_type="llava"), "model_type 'llava' in config.json; expected llava_next"),
])  # fmt: skip
def test_folders_that_do_not_fit(folders, tmp_path, change, said):
    folder = Path(shutil.copytree(folders["mistral"], tmp_path / "next"))
    config = json.loads((folder / "config.json").read_text())
    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures | {"image_grid_pinpoints": config["image_grid_pinpoints"]}))
    assert FrozenLMM.load(MISTRAL, folder, "cpu").cutouts
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=said):
        FrozenLMM.load(MISTRAL, folder, "cpu")


def test_every_weight_is_accounted_for(folders, tmp_path):
    folder = Path(shutil.copytree(folders["mistral"], tmp_path / "next"))
    state = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    save_file({k: v for k, v in state.items() if k != "image_newline"}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing \(1\): image_newline"):
        FrozenLMM.load(MISTRAL, folder, "cpu")


def test_a_recipe_of_another_kind_is_refused_by_name(folders):
    with pytest.raises(CheckpointError, match="'mistral' in its language model in config.json; recipe 'llava_1_6_vicuna_7b' is for 'llama'"):
        FrozenLMM.load(VICUNA, folders["mistral"], "cpu")
    with pytest.raises(CheckpointError, match="expected vipllava"):
        FrozenLMM.load(VIP, folders["mistral"], "cpu")


def test_the_benchmark_of_all_maps_is_for_one_square(lmms):
    with pytest.raises(SettingError, match="sees tiles too. Choose another recipe"):
        speed.encode_by_all_maps(lmms["mistral"], sample_of((160, 120)))


def test_pixels_without_their_letterbox(lmms):
    lmm, one = lmms["mistral"], sample_of((160, 120))
    said = tokenize_pieces(lmm.tokenizer, lmm.recipe.instruction.format(input=lmm.recipe.prompt), one.pieces, 2)
    pixels, box = lmm.prepare(one.image)
    assert_same(lmm.features(pixels, said.input_ids, said.phrase_ids, letterbox=box), lmm.encode([one])[0], atol=0)
    with pytest.raises(DataError, match="letterbox: 'llava_1_6_mistral_7b' sees tiles"):
        lmm.features(pixels, said.input_ids, said.phrase_ids)
    with pytest.raises(DataError, match="5 views of a picture of .*, expected the whole and 3 x 1 tiles"):
        lmm.features(pixels, said.input_ids, said.phrase_ids, letterbox=lmm.prepare(picture((50, 170)))[1])
