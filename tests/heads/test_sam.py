"F-LMM's refiner: the same as transformers' SAM where they can be compared, the same as a plain reading of the published layout with words added, and trained like any other head."

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamImageProcessor, SamModel, SamVisionConfig

from hglmm import heads, inference, recipes
from hglmm.datasets import layout
from hglmm.errors import CheckpointError, SettingError
from hglmm.geometry import Letterbox
from hglmm.heads import loading, official, sam_parts
from hglmm.heads import sam as refiner
from hglmm.lmm.frozen import FrozenLMM
from hglmm.runs import training

CONFORMANCE = Path(__file__).resolve().parents[3] / "shared" / "conformance"
TOY = recipes.replace("toy_llava", head="unet_sam")
SIDE = 128  # of the square the small SAM sees

needs_conformance = pytest.mark.skipif(not CONFORMANCE.is_dir(), reason=f"no conformance material at {CONFORMANCE}")


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> SimpleNamespace:
    "A SAM with a small image encoder and random weights everywhere: as a model, a folder, a published file and its content."
    torch.manual_seed(0)
    vision = SamVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, window_size=3, global_attn_indexes=[1])
    prompts = {"image_size": SIDE}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, initializer_range=0.1)).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases, norms and positions are not left at zero and one
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.shared_image_embedding.positional_embedding.normal_()
    room = tmp_path_factory.mktemp("sam")
    model.save_pretrained(room / "folder")
    published = {sam_parts.published_name(name): tensor for name, tensor in model.state_dict().items() if not name.startswith("shared_")}
    torch.save(published, room / "sam.pth")
    return SimpleNamespace(model=model, folder=room / "folder", file=room / "sam.pth", published=published)


@pytest.fixture
def head(sam) -> heads.UNetSAMHead:
    torch.manual_seed(1)
    return heads.begin(TOY, sam.folder).eval()


def features(width: int, height: int, lengths: list[int], seed: int = 0) -> SimpleNamespace:
    "Random features of a picture with phrases of so many tokens."
    torch.manual_seed(seed)
    return SimpleNamespace(
        attention=torch.randn(len(lengths), TOY.channels, TOY.grid**2).softmax(-1).unflatten(2, (TOY.grid, TOY.grid)),
        image=Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)),
        letterbox=Letterbox.fit(width, height, TOY.image_size),
        tokens=[torch.randn(t, TOY.layers, TOY.width) for t in lengths],
    )


# names


@needs_conformance
def test_every_official_key_is_translated_once_with_its_shape():
    shapes = json.loads((CONFORMANCE / "flmm_sam_keys.json").read_text()) | json.loads((CONFORMANCE / "deepseek_vl_1_3b.flmm_unet_keys.json").read_text())
    recipe = recipes.replace("deepseek_vl_1_3b", head="unet_sam")
    shapes |= {"text_layer_weights": [recipe.layers], "text_proj.weight": [256, recipe.width], "text_proj.bias": [256]}
    names = official.official_names(recipe)
    with torch.device("meta"):
        ours = heads.build(recipe).state_dict()
    assert set(shapes) == set(names) and sorted(names.values()) == sorted(ours)
    assert {k: tuple(shape) for k, shape in shapes.items()} == {k: tuple(ours[name].shape) for k, name in names.items()}
    assert not any(key.startswith("sam.model.image_encoder") for key in shapes)


@pytest.mark.parametrize("form", ["folder", "file", "folder_bin"])
def test_both_forms_of_sam_are_the_same(sam, tmp_path, form):
    if form == "folder_bin":
        sam.model.save_pretrained(tmp_path, safe_serialization=False)
    read = sam_parts.read_sam(tmp_path if form == "folder_bin" else getattr(sam, form))
    expected = sam.model.state_dict()
    for part in ("prompt_encoder", "mask_decoder"):
        found = getattr(read, part)
        assert found and all(torch.equal(tensor, expected[f"{part}.{name}"]) for name, tensor in found.items())
    assert all(torch.equal(tensor, expected[f"vision_encoder.{name}"]) for name, tensor in read.encoder.state_dict().items())


# prompts and the way back, written out from METHOD section 5


def enlarged(map: np.ndarray, height: int, width: int) -> np.ndarray:
    "Bilinear, align_corners false, no antialiasing: every pixel by itself, in float64."

    def places(count: int, of: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(count) + 0.5) * of / count - 0.5, 0, of - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, of - 1), at - low

    (top, bottom, down), (left, right, across) = places(height, map.shape[0]), places(width, map.shape[1])
    rows = map[top] * (1 - down)[:, None] + map[bottom] * down[:, None]
    return rows[:, left] * (1 - across) + rows[:, right] * across


def cut_out(map: np.ndarray, box: Letterbox) -> np.ndarray:
    "Start int(pad * side / S), length int(side * side / S + 0.5), per axis."
    side = map.shape[-1]
    x, y = (int(pad * side / box.size) for pad in box.pad[:2])
    w, h = (int(length * side / box.size + 0.5) for length in box.resized)
    return map[..., y : y + h, x : x + w]


def expected_prompts(coarse: torch.Tensor, box: Letterbox, size: tuple[int, int], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Boxes (n, 4) and mask prompts (n, 1, side / 4, side / 4)."
    inside = cut_out(coarse.double().numpy(), box)
    outside = min(-1.0, inside.min())
    width, height = box.picture
    boxes, masks = [], []
    for one in inside:
        ys, xs = np.nonzero(enlarged(1 / (1 + np.exp(-one)), height, width) > 0.5)
        x0, y0, x1, y1 = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, width, height)
        boxes.append([x0 * size[1] / width, y0 * size[0] / height, x1 * size[1] / width, y1 * size[0] / height])
        square = np.full((side, side), outside)
        square[: size[0], : size[1]] = enlarged(one, *size)
        masks.append(enlarged(square, side // 4, side // 4))
    return torch.tensor(boxes).float(), torch.from_numpy(np.stack(masks)).float()[:, None]


SHAPES = [(640, 427), (427, 640), (500, 500), (1200, 300), (333, 500), (37, 150), (200, 133)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("square_side", [128, 336, 384, 1024])
def test_sam_is_asked_as_the_method_says(width, height, square_side):
    box, side = Letterbox.fit(width, height, square_side), 256
    size = tuple(int(length * side / max(width, height) + 0.5) for length in (height, width))
    torch.manual_seed(width)
    coarse = F.interpolate(4 * torch.randn(1, 3, 9, 9), size=(64, 64), mode="bicubic")[0]
    coarse[1] = -5 - coarse[1].abs()  # nothing above zero: the whole picture
    coarse[2] -= 2
    boxes, masks = expected_prompts(coarse, box, size, side)
    inside = box.cut(coarse)
    torch.testing.assert_close(refiner.to_boxes(inside, box, size), boxes, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(refiner.to_masks(inside, size, side, side // 4), masks, rtol=1e-5, atol=1e-5)
    assert boxes[1].tolist() == [0, 0, size[1], size[0]]


def test_outside_the_picture_the_mask_prompt_is_never_above_minus_one():
    "All phrases of a picture share one value, that of the smallest logit; where all are sure of themselves it is -1."
    size = (64, 128)
    for lowest, expected in ((-7.0, -7.0), (-0.25, -1.0), (3.0, -1.0)):
        inside = torch.full((2, 32, 64), 5.0)
        inside[1, 3, 4] = lowest
        masks = refiner.to_masks(inside, size, 128, 32)
        assert masks[:, 0, 17:].unique().tolist() == [expected], "both phrases, all that is below the picture"


def test_no_gradient_through_the_box_but_through_the_mask():
    box, inside = Letterbox.fit(120, 90, 128), torch.randn(2, 48, 64, requires_grad=True)
    assert not refiner.to_boxes(inside, box, (96, 128)).requires_grad
    refiner.to_masks(inside, (96, 128), 128, 32).sum().backward()
    assert inside.grad.abs().max() > 0


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_the_way_back_ends_at_the_pictures_own_size(width, height):
    box, side = Letterbox.fit(width, height, 384), 256
    size = tuple(int(length * side / max(width, height) + 0.5) for length in (height, width))
    low = torch.randn(2, 64, 64)
    expected = [enlarged(enlarged(one, side, side)[: size[0], : size[1]], height, width) for one in low.double().numpy()]
    torch.testing.assert_close(refiner.to_picture(low, box, size, side), torch.from_numpy(np.stack(expected)).float(), rtol=1e-4, atol=1e-4)


# parity


@pytest.mark.parametrize(("width", "height"), [(128, 96), (80, 128)])
def test_without_words_it_is_transformers_sam(sam, head, width, height):
    "From picture, box and mask to the mask of the picture."
    one = features(width, height, [1, 1, 1])
    head.embed_tokens = lambda tokens: torch.zeros(len(tokens), 0, 256)
    with torch.no_grad():
        drawn = head.draw([one])[0]
        coarse = head.unet(one.attention)
        processor = SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
        seen = processor(one.image, return_tensors="pt")
        boxes, masks = expected_prompts(coarse, one.letterbox, (height, width), SIDE)
        pixels = seen["pixel_values"].expand(3, -1, -1, -1)
        theirs = sam.model(pixels, input_boxes=boxes[:, None], input_masks=masks, multimask_output=False).pred_masks
    sizes = [[height, width]] * 3
    whole = processor.post_process_masks(list(theirs), sizes, sizes, binarize=False, pad_size={"height": SIDE, "width": SIDE})
    assert drawn.logits.shape == (3, height, width) and drawn.logits.std() > 1e-3
    torch.testing.assert_close(drawn.logits, torch.cat(whole)[:, 0], rtol=1e-4, atol=2e-5 * float(drawn.logits.abs().max()))
    torch.testing.assert_close(drawn.coarse, one.letterbox.cut(coarse))


class Slow:
    "SAM's prompt encoder and mask decoder step by step from the published weights, one phrase at a time."

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = weights

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
        "Over the last dimension."
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def norm_maps(self, name: str, x: torch.Tensor) -> torch.Tensor:
        "Over the channels of (c, h, w)."
        return self.norm(name, x.permute(1, 2, 0)).permute(2, 0, 1)

    def layers(self, name: str, x: torch.Tensor, count: int) -> torch.Tensor:
        for k in range(count):
            x = self.linear(f"{name}.layers.{k}", x)
            x = x.relu() if k < count - 1 else x
        return x

    def attention(self, name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        name, heads_of = f"mask_decoder.transformer.{name}", lambda x: x.unflatten(-1, (8, -1)).transpose(0, 1)
        q, k, v = (heads_of(self.linear(f"{name}.{part}_proj", x)) for part, x in (("q", query), ("k", key), ("v", value)))
        out = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.linear(f"{name}.out_proj", out.transpose(0, 1).flatten(1))

    def encode_position(self, points: torch.Tensor) -> torch.Tensor:
        angles = 2 * torch.pi * ((2 * points - 1) @ self.weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
        return torch.cat([angles.sin(), angles.cos()], -1)

    def prompts(self, mask: torch.Tensor, box: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        name = "prompt_encoder.mask_downscaling"
        convolve = lambda k, x, stride: F.conv2d(x[None], self.weights[f"{name}.{k}.weight"], self.weights[f"{name}.{k}.bias"], stride)[0]  # noqa: E731
        x = F.gelu(self.norm_maps(f"{name}.1", convolve(0, mask[None], 2)))
        x = F.gelu(self.norm_maps(f"{name}.4", convolve(3, x, 2)))
        corners = self.encode_position((box.view(2, 2) + 0.5) / SIDE)
        corner_kinds = torch.cat([self.weights[f"prompt_encoder.point_embeddings.{k}.weight"] for k in (2, 3)])
        return corners + corner_kinds, convolve(6, x, 1)

    def mask(self, embedding: torch.Tensor, mask: torch.Tensor, box: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        corners, dense = self.prompts(mask, box)
        own = [self.weights[f"mask_decoder.{name}.weight"] for name in ("iou_token", "mask_tokens")]
        tokens = torch.cat([*own, corners, words])
        grid = embedding.shape[-1]
        cells = torch.tensor([[(x + 0.5) / grid, (y + 0.5) / grid] for y in range(grid) for x in range(grid)])
        where = self.encode_position(cells)
        q, k = tokens, (embedding + dense).flatten(1).T
        for layer in ("layers.0", "layers.1"):
            if layer == "layers.0":
                q = self.attention(f"{layer}.self_attn", q, q, q)
            else:
                q = q + self.attention(f"{layer}.self_attn", q + tokens, q + tokens, q)
            full = f"mask_decoder.transformer.{layer}"
            q = self.norm(f"{full}.norm1", q)
            q = self.norm(f"{full}.norm2", q + self.attention(f"{layer}.cross_attn_token_to_image", q + tokens, k + where, k))
            q = self.norm(f"{full}.norm3", q + self.linear(f"{full}.mlp.lin2", self.linear(f"{full}.mlp.lin1", q).relu()))
            k = self.norm(f"{full}.norm4", k + self.attention(f"{layer}.cross_attn_image_to_token", k + where, q + tokens, q))
        q = q + self.attention("final_attn_token_to_image", q + tokens, k + where, k)
        q = self.norm("mask_decoder.transformer.norm_final_attn", q, 1e-5)
        up = "mask_decoder.output_upscaling"
        enlarge = lambda n, x: F.conv_transpose2d(x[None], self.weights[f"{up}.{n}.weight"], self.weights[f"{up}.{n}.bias"], 2)[0]  # noqa: E731
        maps = F.gelu(enlarge(3, F.gelu(self.norm_maps(f"{up}.1", enlarge(0, k.T.unflatten(1, (grid, grid)))))))
        return torch.einsum("c,chw->hw", self.layers("mask_decoder.output_hypernetworks_mlps.0", q[1], 3), maps)


@torch.no_grad()
def test_words_are_prompts_after_the_box(sam, head):
    "All phrases of a picture together against one by one, step by step, from weights under their published names."
    one = features(100, 128, [3, 1, 3, 12, 3])
    torch.nn.init.normal_(head.text_layer_weights)
    coarse = head.unet(one.attention)
    coarse[1] = -1  # a phrase whose coarse mask is empty
    embedding, size = sam_parts.load_sam(str(sam.folder)).see(one.image, torch.device("cpu"))
    boxes, masks = expected_prompts(coarse, one.letterbox, size, SIDE)
    assert boxes[1].tolist() == [0, 0, size[1], size[0]]
    mix = head.text_layer_weights.softmax(0)
    words = [sum(mix[layer] * t[:, layer] for layer in range(TOY.layers)) @ head.text_projection.weight.T + head.text_projection.bias for t in one.tokens]
    slow = Slow(sam.published)
    expected = torch.stack([slow.mask(embedding[0], masks[k, 0], boxes[k], words[k]) for k in range(5)])
    logits = head.refine(one.letterbox.cut(coarse), one)
    expected = refiner.to_picture(expected, one.letterbox, size, SIDE)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
    square = head([one])[0]
    assert square.shape == (5, TOY.image_size, TOY.image_size) and one.letterbox.restore(square).shape == logits.shape


@torch.no_grad()
def test_an_official_file_gives_what_its_weights_give(sam, head, tmp_path):
    "Weights under F-LMM's names, with SAM as a published file, against ours with SAM as a folder."
    state, path = head.state_dict(), tmp_path / "flmm.pth"
    torch.save({"state_dict": {key: state[ours] for key, ours in official.official_names(TOY).items()}, "meta": {"epoch": 8}}, path)
    loaded = loading.load_head(path, "toy_llava", sam.file)
    pictures = [features(90, 120, [2, 4]), features(120, 60, [1], seed=1)]
    for ours, theirs in zip(head(pictures), loaded(pictures), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_low_precision_changes_little(head):
    "Under autocast the decoder's numbers are rounded, prompts are not. The coarse masks are the same for both: rounded, one near zero may get another box."
    one = features(128, 90, [2, 6])
    coarse = one.letterbox.cut(head.unet(one.attention))
    expected = head.refine(coarse, one)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.refine(coarse, one)
    assert logits.dtype == torch.float32 and float((logits - expected).std() / expected.std()) < 0.1


# where SAM is


def test_sam_is_looked_for_when_the_first_picture_comes(sam, head, monkeypatch, tmp_path):
    path = loading.save_head(head, tmp_path / "head")
    one = features(64, 64, [1])
    monkeypatch.setenv("HGLMM_SAM", str(tmp_path / "nowhere.pth"))
    with pytest.raises(CheckpointError, match="nowhere.pth.*sam_vit_l_0b3195.pth.*HGLMM_SAM"):
        loading.load_head(path)([one])
    monkeypatch.setenv("HGLMM_SAM", str(sam.file))
    with torch.no_grad():
        assert torch.equal(loading.load_head(path)([one])[0], head([one])[0])
    assert torch.equal(heads.begin(TOY).state_dict()["mask_decoder.mask_tokens.weight"], sam.published["mask_decoder.mask_tokens.weight"])


def test_a_hostile_or_broken_sam_is_refused(sam, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "boom",)

    path = tmp_path / "sam.pth"

    def refused() -> str:
        with pytest.raises(CheckpointError) as caught:
            sam_parts.read_sam(path)
        return str(caught.value)

    torch.save({**sam.published, "bomb": Bomb()}, path)
    assert "Nothing was run" in refused() and not (tmp_path / "boom").exists()
    path.write_bytes(sam.file.read_bytes()[:-1000])
    assert "cut short" in refused()
    torch.save({f"model.{name}": tensor for name, tensor in sam.published.items()}, path)
    assert "is not SAM as published" in refused()
    renamed = {name.replace("iou_token", "iou_tokens"): tensor for name, tensor in sam.published.items()}
    torch.save(renamed, path)
    said = refused()
    assert "missing (1): mask_decoder.iou_token.weight" in said and "left over (1): mask_decoder.iou_tokens.weight" in said


# training and evaluation


@pytest.fixture(scope="module")
def lmm():
    return FrozenLMM.load(TOY)


def test_another_sam_is_another_run(sam, lmm, small_world, tmp_path):
    data = layout.TrainingSet.open(small_world, ("refcoco",))

    def trainer(folder):
        return training.Trainer(training.Run(TOY, 2, sam=str(folder)), lmm, data, tmp_path / "run")

    first = trainer(sam.folder)
    first.begin()
    first.save()
    moved = shutil.copytree(sam.folder, tmp_path / "moved")
    assert trainer(moved).resume()
    state = load_file(moved / "model.safetensors")
    name = next(name for name in state if name.startswith("vision_encoder.") and state[name].ndim > 1)
    other = shutil.copytree(moved, tmp_path / "other")
    save_file({**state, name: state[name] * 1.01}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"\(sam: another content of the same shape\)"):
        trainer(other).resume()


def test_it_trains_from_what_sam_knows(sam, lmm, small_world, tmp_path):
    data = layout.TrainingSet.open(small_world)
    run = training.Run(TOY, 3, batch_size=2, lr=1e-3, log_every=1, sam=str(sam.folder))
    trainer = training.Trainer(run, lmm, data, tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.head.state_dict().items()}
    for name, tensor in before.items():
        if name.startswith(("prompt_encoder.", "mask_decoder.")):
            assert torch.equal(tensor, sam.model.state_dict()[name])
    encoder = sam_parts.load_sam(str(sam.folder)).encoder
    frozen = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    trainer.fit()
    saved = loading.load_head(tmp_path / "head", "toy_llava", sam.folder)
    trained = {name for name, parameter in saved.named_parameters() if parameter.requires_grad}
    assert saved.kind == "unet_sam" and len(training.read_log(tmp_path)) == 3
    assert {name for name, tensor in saved.state_dict().items() if not torch.equal(tensor, before[name])} == trained
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in encoder.state_dict().items())
    samples = [data[0], data[1]]
    for shuffled in (False, True):
        masks = inference.predict(lmm, saved, samples, shuffle_phrases=shuffled)
        assert [m.shape for m in masks] == [s.masks.shape for s in samples]


def test_the_loss_has_both_stages(sam, lmm, small_world, head):
    "METHOD section 5, step 6: BCE and Dice of the coarse logits on their cells and of the refined ones on the picture, truth nearest to each, weight 1 each."
    data = layout.TrainingSet.open(small_world)
    samples = [data[0], data[len(data) - 1]]
    with torch.no_grad():
        drawn = head.draw(lmm.encode(samples, tokens=True))
    losses = []
    for one, sample in zip(drawn, samples, strict=True):
        truth = torch.from_numpy(sample.masks)
        assert one.logits.shape == truth.shape and one.coarse.shape[1:] == one.letterbox.cut(torch.zeros(64, 64)).shape
        for logits in (one.logits, one.coarse):
            nearest = truth[:, torch.arange(logits.shape[1]) * truth.shape[1] // logits.shape[1]][:, :, torch.arange(logits.shape[2]) * truth.shape[2] // logits.shape[2]]
            p, t = logits.sigmoid(), nearest.float()
            dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
            losses.append(F.binary_cross_entropy_with_logits(logits, t) + dice.mean())
    found = training.batch_loss(drawn, samples)
    assert float(found["loss"]) == pytest.approx(float(sum(losses)) / 2, rel=1e-5)


def test_the_head_learns_a_mask(sam, lmm, small_world):
    "One sample again and again: the loss falls, although SAM's image encoder knows nothing."
    data = layout.TrainingSet.open(small_world)
    samples = [data[0]]
    encoded = lmm.encode(samples, tokens=True)
    torch.manual_seed(0)
    head = heads.begin(TOY, sam.folder).train()
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(25):
        loss = training.batch_loss(head.draw(encoded), samples)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_the_training_notebook(sam, run_notebook, small_world):
    parameters = dict(data=small_world, max_steps=2, batch_size=2, sam=sam.folder)
    status, said, runs = run_notebook("train", name="refined", head="unet_sam", **parameters)
    assert status == 0, said
    assert json.loads((runs / "refined/head/config.json").read_text())["head"] == "unet_sam"
    status, said, runs = run_notebook("train", name="not_refined", **parameters)
    assert status != 0 and "only head 'unet_sam' has a use for SAM" in said
