"What people write is text: special tokens in questions, phrases and captions. And what is refused below `encode`."

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import byte_level, metaspace, sentencepiece_model
from test_tokenizer import change, varied_texts
from tokenizers import AddedToken
from transformers import LlamaTokenizer, LlamaTokenizerFast

from hglmm import recipes, user_text
from hglmm.datasets.core import Sample
from hglmm.datasets.reasonseg import ReasonSeg, question_prompt
from hglmm.errors import DataError, SettingError
from hglmm.grounder import Grounder
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.hub import find_weights
from hglmm.lmm.tokenizer import load_tokenizer
from hglmm.phrases import offsets_of
from hglmm.user_text import special_tokens, text_ids, turn_ids

LLAVA, DEEPSEEK = recipes.get("llava_1_5_7b"), recipes.get("deepseek_vl_1_3b")
IMAGE = {"llava": "<image>", "deepseek": "<image_placeholder>"}


def llava_kind(folder: Path):
    return LlamaTokenizerFast(sentencepiece_model(folder)), LLAVA, ["<image>"], "<pad>"


def deepseek_kind(folder: Path):
    "Its end of a sentence has other characters, its image token is not called special, and there are added words."
    tokenizer = byte_level(folder)
    tokenizer.add_tokens([AddedToken("ø", special=False, normalized=True), AddedToken("<image_placeholder>", special=False, normalized=False)])
    tokenizer.add_special_tokens({"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"})
    return tokenizer, DEEPSEEK, [], "<｜end▁of▁sentence｜>"


def toy_kind(folder: Path):
    return load_tokenizer(recipes.get("toy_llava"), find_weights("checkpoints/toy_llava")), recipes.get("toy_llava"), ["<image>"], "<pad>"


def slow_kind(folder: Path):
    return LlamaTokenizer(sentencepiece_model(folder), legacy=True), LLAVA, ["<image>"], "<pad>"


def slow_new_kind(folder: Path):
    return LlamaTokenizer(sentencepiece_model(folder), legacy=False), LLAVA, ["<image>"], "<pad>"


def metaspace_kind(folder: Path):
    return metaspace(folder), LLAVA, ["<image>"], "<pad>"


@pytest.fixture(scope="module", params=[llava_kind, metaspace_kind, deepseek_kind, toy_kind, slow_kind, slow_new_kind], ids=lambda f: f.__name__)
def spoken(request, tmp_path_factory):
    "A tokenizer and the recipe it is asked by."
    tokenizer, recipe, more, pad = request.param(tmp_path_factory.mktemp("tokenizer"))
    if more and more[0] not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": more, "pad_token": pad})
    return tokenizer, recipe


def turn_of(recipe: recipes.Recipe):
    return lambda said: recipe.instruction.format(input=recipe.question.format(question=said))


def test_nothing_changes_for_other_texts(spoken):
    tokenizer, recipe = spoken
    special, turn = special_tokens(tokenizer, (recipe.image_token,)), turn_of(recipe)
    texts = [t for t in varied_texts() if not any(name in t for name in special)]
    assert len(texts) > 600 and {recipe.image_token, tokenizer.eos_token} <= set(special)
    for text in texts[:300]:
        assert text_ids(tokenizer, text, (recipe.image_token,)) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert turn_ids(tokenizer, turn, text, (recipe.image_token,)) == tokenizer(turn(text))["input_ids"]


def test_the_copy_reads_other_texts_alike(spoken):
    "What the rest of a text with a special token in it becomes: compared on texts without one, and on turns whose own tokens are meant."
    tokenizer, recipe = spoken
    more, turn = (recipe.image_token,), turn_of(recipe)
    special, mark = special_tokens(tokenizer, more), "\ue000"
    renamed = user_text._renamed(tokenizer, more, len(tokenizer), mark)
    for text in [t for t in varied_texts() if not any(name in t for name in special)][:300]:
        for whole in (True, False):
            assert renamed(text, whole) == tokenizer(text, add_special_tokens=whole)["input_ids"]
        marked = turn(text).replace(recipe.image_token, mark + recipe.image_token + mark)
        assert renamed(marked, True) == tokenizer(turn(text))["input_ids"]


WRITTEN = ["Where is the {} tag?", "{}", "a {} mug", "{}{}", "two {}fish and {} ", "What does {}\nmean?", "the word {} 🐟 红", " {} "]


@pytest.mark.parametrize("written", WRITTEN)
def test_special_tokens_are_read_as_text(spoken, written):
    tokenizer, recipe = spoken
    more, turn = (recipe.image_token,), turn_of(recipe)
    special = special_tokens(tokenizer, more)
    for name in special:
        text = written.replace("{}", name)
        ids = text_ids(tokenizer, text, more)
        assert not set(ids) & set(special.values()) - {tokenizer.unk_token_id}, name
        said = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if "<unk>" != name and tokenizer.unk_token_id not in ids:
            assert said.replace(" ", "") == text.replace(" ", ""), name
        asked, plain = turn_ids(tokenizer, turn, text, more), tokenizer(turn("what"))["input_ids"]
        count = [Counter(i for i in x if i in set(special.values()) - {tokenizer.unk_token_id}) for x in (asked, plain)]
        assert count[0] == count[1] and count[0][special[recipe.image_token]] == 1, name
        assert asked.index(special[recipe.image_token]) == plain.index(special[recipe.image_token])
        assert asked[: plain.index(special[recipe.image_token]) + 1] == plain[: plain.index(special[recipe.image_token]) + 1]
        if name in ("<image>", "</s>") and written.endswith("tag?"):
            assert asked[-6:] == tokenizer(turn("Where is the other tag?"))["input_ids"][-6:]  # what comes after is as ever


def test_added_words_stay_words(tmp_path):
    "DeepSeek's tokenizer has words beside its vocabulary; a special token in the same text does not change them."
    tokenizer, recipe, _, _ = deepseek_kind(tmp_path)
    word = tokenizer.convert_tokens_to_ids("ø")
    for text in ("an ø", "an ø and <image_placeholder>", "<｜end▁of▁sentence｜>ø"):
        assert text_ids(tokenizer, text, (recipe.image_token,)).count(word) == 1


@pytest.mark.parametrize("wrong", [3, None, b"what", [3]])
def test_what_is_no_text(spoken, wrong):
    tokenizer, recipe = spoken
    with pytest.raises(DataError, match="expected a text"):
        text_ids(tokenizer, wrong)
    with pytest.raises(SettingError, match="question .*expected a text"):
        turn_ids(tokenizer, turn_of(recipe), wrong)
    for read in (lambda text: text_ids(tokenizer, text), lambda text: turn_ids(tokenizer, turn_of(recipe), text)):
        with pytest.raises(DataError, match="whole characters"):
            read("half \ud83d of it")


# With an LMM


@pytest.fixture(scope="module")
def lmm() -> FrozenLMM:
    return FrozenLMM.load("toy_llava", device="cpu")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))


def sample_of(image: Image.Image, pieces: list) -> Sample:
    return Sample(image, pieces, np.ones((len({k for _, k in pieces if k is not None}), image.height, image.width), bool))


@pytest.mark.parametrize("name", ["<image>", "</s>", "<s>", "<pad>", "<unk>"])
def test_questions_phrases_and_captions(lmm, image, name):
    answer = lmm.answer(image, f"What is the {name} tag?", max_new_tokens=8)
    assert answer.prompt_ids.count(lmm.image_token) == 1 and answer.prompt_ids.count(lmm.tokenizer.bos_token_id) == 1
    assert name in lmm.tokenizer.decode(answer.prompt_ids[answer.prompt_ids.index(lmm.image_token) + 1 :])
    other = lmm.answer(image, "What is the tag?", max_new_tokens=8)
    assert answer.prompt_ids != other.prompt_ids
    for pieces in ([("a red mug", 0), (f"and {name}", None)], [("a red mug", 0), (name, 1)]):
        features = lmm.encode([sample_of(image, pieces)])[0]
        alone = lmm.encode([sample_of(image, pieces[:1])])[0]
        assert torch.allclose(features.attention[0], alone.attention[0], atol=1e-5) and bool(features.attention[-1].any())


def test_the_answer_may_say_it_too(lmm, image):
    "A reply that spells a special token has characters and tokens like any other."
    answer = lmm.answer(image, "What?", max_new_tokens=4)
    ids = text_ids(lmm.tokenizer, "the <image> tag")
    answer.tokens = ids
    answer.text, answer.offsets = offsets_of(lmm.tokenizer, ids)
    answer.forget()
    start = answer.text.index("<image>")
    assert lmm.encode_answer(answer, [(start, start + 7)]).text.shape[0] == 1


def test_reasonseg_asks_them(image_token_case):
    "The case of ../shared: `<image>` in questions."
    lmm = FrozenLMM.load("toy_llava", device="cpu")
    for sample in image_token_case:
        assert lmm.ask_ids(question_prompt(sample.info["question"])).count(lmm.image_token) == 1
    assert sum("<image>" in sample.info["question"] for sample in image_token_case) >= 1


@pytest.fixture
def image_token_case():
    folder = Path(__file__).resolve().parents[3] / "shared/cases/image_token_in_question/reason_seg/val"
    if not folder.is_dir():
        pytest.skip(f"no case at {folder}")
    data = ReasonSeg(folder)
    return [data[k] for k in range(len(data))]


def test_grounder_takes_them(image):
    grounder = Grounder.load("toy_llava", device="cpu")
    assert grounder.ground(image, ["a <image>", "</s>", "mug"]).masks.shape == (3, 60, 90)
    reply = grounder.chat(image, "What is <image> or </s>?", max_new_tokens=6)
    assert isinstance(reply.text, str)


# Below `encode`


def ids_of(lmm: FrozenLMM) -> torch.Tensor:
    return torch.tensor([1, lmm.image_token, 20, 30, 31, 40, 41])


def refused(lmm: FrozenLMM, phrase_ids, said: str, input_ids=None, pixels=None) -> None:
    side = lmm.recipe.image_size
    with pytest.raises(DataError, match=said):
        lmm.features(torch.zeros(3, side, side) if pixels is None else pixels, ids_of(lmm) if input_ids is None else input_ids, phrase_ids)


@pytest.mark.parametrize(
    "phrase_ids, said",
    [
        ([-1, -1, -1, 0, 0, 2, 2], r"\[1\] of the phrases 0 to 2 have no token"),
        ([-1, -1, -1, 1, 1, 1, 1], r"\[0\] of the phrases 0 to 1 have no token"),
        ([-1, -1, -1, 3, 3, -1, 0], r"\[1, 2\] of the phrases 0 to 3 have no token"),
        ([-1, -1, -1, 0, -2, 1, 1], "phrase id -2 at token 4"),
        ([-100, -1, -1, 0, 0, 0, 0], "phrase id -100 at token 0"),
        ([-1, -1, -1, 0, 0, 1], "6 of them, expected 7"),
        ([-1, -1, -1, 0, 0, 1, 1, 1], "8 of them, expected 7"),
        ([-1.0, -1, -1, 0, 0, 1, 1], "whole numbers, found float32"),
        ([False, False, False, True, True, True, True], "whole numbers, found bool"),
        ([[-1, -1, -1, 0, 0, 1, 1]], r"of shape \(1, 7\)"),
        ([-1, 0, -1, 0, 0, 1, 1], r"image tokens belong to phrases \[0\]"),
        ("0000000", "whole numbers"),
    ],
)
def test_phrase_ids_that_name_no_phrases(lmm, phrase_ids, said):
    refused(lmm, phrase_ids, said)
    if isinstance(phrase_ids, list) and isinstance(phrase_ids[0], int):
        refused(lmm, np.array(phrase_ids), said)


def test_other_wrong_inputs(lmm):
    good = [-1, -1, -1, 0, 0, 1, 1]
    refused(lmm, good, r"input_ids: \[99999\] are no tokens; 'toy_llava' has 0 to 575", torch.tensor([1, lmm.image_token, 20, 30, 31, 40, 99999]))
    refused(lmm, good, r"input_ids: \[-3\]", torch.tensor([1, lmm.image_token, -3, 30, 31, 40, 41]))
    refused(lmm, good, "0 image tokens", torch.tensor([1, 2, 20, 30, 31, 40, 41]))
    refused(lmm, good, "input_ids: expected a row of whole numbers", ids_of(lmm).float())
    refused(lmm, good, r"pixels: expected shape \(3, 128, 128\)", pixels=torch.zeros(3, 64, 64))
    refused(lmm, [], "0 of them, expected 7")
    side = lmm.recipe.image_size
    assert lmm.features(torch.zeros(3, side, side), ids_of(lmm), [-1] * 7).attention.shape[0] == 0
    assert lmm.features(torch.zeros(3, side, side), ids_of(lmm), good).attention.shape[0] == 2 and lmm.encode([]) == []


@pytest.mark.parametrize("pieces, count, said", [
    ([("a mug", 0), ("a fish", 2)], 2, r"phrase\(s\) \[1\]|phrase id 2"), ([("a mug", 0), ("a fish", 1)], 1, "phrase id 1"), ([("a mug", 0), ("x", -3)], 1, "phrase id -3"),
])  # fmt: skip
def test_pieces_that_name_no_phrases(lmm, image, pieces, count, said):
    with pytest.raises(DataError, match=said):
        lmm.encode([Sample(image, pieces, np.ones((count, 60, 90), bool))])


def test_an_image_token_that_the_tokenizer_does_not_call_special(tmp_path, image):
    "As in DeepSeek's files, it may be an added word among others."
    folder = Path(shutil.copytree(find_weights("checkpoints/toy_llava"), tmp_path / "toy"))
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    change(folder / "tokenizer.json", added_tokens=[{**token, "special": token["content"] != "<image>"} for token in tokens])
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    decoder["4"]["special"] = False
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder, additional_special_tokens=None)
    (folder / "special_tokens_map.json").unlink()
    lmm = FrozenLMM.load("toy_llava", folder, device="cpu")
    assert "<image>" not in lmm.tokenizer.all_special_tokens
    assert lmm.encode([sample_of(image, [("a red mug", 0), ("<image>", 1)])])[0].attention.shape[0] == 2
    assert lmm.answer(image, "Where is <image>?", max_new_tokens=2).prompt_ids.count(lmm.image_token) == 1
