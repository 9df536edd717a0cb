"Tokenizers as the hub has them today, in the spelling of newer libraries, on the library that is installed: the ids of the old file, or a reason."

import json
import random
import re
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image
from small_lmms import TEXTS, byte_level, metaspace, sentencepiece_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast

from hglmm.errors import CheckpointError
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.hub import find_weights
from hglmm.lmm.tokenizer import read_tokenizer

TOY = Path(find_weights("checkpoints/toy_llava"))
WORDS = "a red mug two fish <image> </s> <s> <unk> <pad> USER: ASSISTANT: table , . ▁ < > 🐟 红色的杯子 e\u0301 0x0A <0x0A> \t".split(" ")


def varied_texts(count: int = 1000) -> list[str]:
    "Words, special tokens, blanks of every number, and characters of one to four bytes."
    draw, characters = random.Random(0), "abc  éß\u0301红杯鱼的🐟👍\u200d한\n\t<>/s▁  mug red table"
    said = ["".join(draw.choices(characters, k=draw.randint(1, 60))) for _ in range(count // 2)]
    said += ["".join(draw.choice(["", " ", "  ", "\n"]) + draw.choice(WORDS) for _ in range(draw.randint(1, 15))) for _ in range(count // 2 - len(TEXTS))]
    return [*TEXTS, *said]


def made(kind: str, folder: Path) -> None:
    "A tokenizer's folder as the installed library writes it."
    if kind == "toy":
        for file in TOY.glob("*token*"):
            shutil.copy(file, folder)
        return
    tokenizer = {"byte-level": byte_level, "metaspace": metaspace, "sentencepiece": lambda f: LlamaTokenizerFast(sentencepiece_model(f))}[kind](folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    change(folder / "tokenizer_config.json", add_prefix_space=None)  # a word of later versions; here it asks for a conversion


@pytest.fixture(scope="module", params=["toy", "byte-level", "metaspace", "sentencepiece"])
def old(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    made(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    "A tokenizer of LLaMA's kind with its SentencePiece model."
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = LlamaTokenizerFast(sentencepiece_model(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    return folder


def change(file: Path, **changes) -> None:
    "Set fields of a JSON file; those of parts with a dot for `__`; None takes a field away."
    content = json.loads(file.read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        part = content
        for step in path:
            part = part[step]
        part.pop(last, None) if value is None else part.update({last: value})
    file.write_text(json.dumps(content, ensure_ascii=False))


def pairs(folder: Path) -> None:
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    change(folder / "tokenizer.json", model__merges=[merge.split(" ") for merge in merges], model__ignore_merges=False)


def mixed(folder: Path) -> None:
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    change(folder / "tokenizer.json", model__merges=[merge.split(" ") if k % 3 else merge for k, merge in enumerate(merges)])


def new_fields(folder: Path) -> None:
    "Everywhere one that no version has yet; added tokens without those that may be left out."
    pairs(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [{"new": 1, **{k: v for k, v in token.items() if v is not False}} for token in content["added_tokens"]]
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"):
        if content[name]:
            content[name]["new"] = {"of": "a newer version"}
    content["new"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))


def new_settings(folder: Path) -> None:
    "What transformers 4.5x and 5 write beside it."
    pairs(folder)
    file = folder / "tokenizer_config.json"
    change(file, extra_special_tokens={"image_token": "<image>"}, image_token="<image>", chat_template=[{"name": "default", "template": "x"}], additional_special_tokens=None)
    decoder = json.loads(file.read_text())["added_tokens_decoder"]
    change(file, add_prefix_space=True, added_tokens_decoder={k: {**token, "new": 1} for k, token in decoder.items()}, auto_map={"AutoTokenizer": ["code.New", None]}, backend="tokenizers")
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def fifth(folder: Path) -> None:
    "As transformers 5 writes it: everything in tokenizer.json, a class without a name here, special tokens in a list."
    pairs(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names = {k: settings[k] if isinstance(settings[k], str) else settings[k]["content"] for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    kept = {k: settings[k] for k in ("add_bos_token",) if k in settings}
    settings = {**names, **kept, "tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<image>"], "is_local": True, "model_max_length": 10**30}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


CHANGES = {"pairs": pairs, "mixed": mixed, "new fields": new_fields, "new settings": new_settings, "fifth": fifth}


@pytest.mark.filterwarnings("ignore:tokenizer.json. new is not known")
@pytest.mark.parametrize("kind", CHANGES)
def test_the_ids_are_those_of_the_old_file(old, tmp_path, kind):
    folder = Path(shutil.copytree(old, tmp_path / "new"))
    CHANGES[kind](folder)
    with pytest.raises(Exception, match="untagged enum ModelWrapper|missing field"):  # what the library itself says
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    before, theirs = {file.name: file.read_bytes() for file in folder.iterdir()}, AutoTokenizer.from_pretrained(old)
    ours = read_tokenizer(folder)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    texts = varied_texts()
    assert len(texts) == 1000 and sum("<image>" in text for text in texts) > 100
    for special in (True, False):
        ids, expected = (t(texts, add_special_tokens=special)["input_ids"] for t in (ours, theirs))
        assert ids == expected
    assert [ours.decode(i) for i in ids[:200]] == [theirs.decode(i) for i in ids[:200]]
    assert {t.convert_tokens_to_ids("<image>") for t in (ours, theirs)} == {theirs("<image>", add_special_tokens=False)["input_ids"][-1]}
    assert len(ours) == len(theirs) and all(getattr(ours, name) == getattr(theirs, name) for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"))
    assert set(theirs.all_special_ids) == set(ours.all_special_ids)


def test_what_is_left_out_is_said(old, tmp_path):
    folder = Path(shutil.copytree(old, tmp_path / "new"))
    change(folder / "tokenizer.json", new={"a": 1})
    with pytest.warns(UserWarning, match="tokenizer.json: new is not known to tokenizers 0.15"):
        read_tokenizer(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_tokenizer(old)


def test_no_merges_at_all(llama, tmp_path):
    "A vocabulary of letters is a tokenizer too."
    ids = []
    for name in ("old", "new"):
        folder = Path(shutil.copytree(llama, tmp_path / name))
        (folder / "tokenizer.model").unlink()
        change(folder / "tokenizer.json", model__merges=[], **({"model__ignore_merges": False} if name == "new" else {}))
        ids.append(read_tokenizer(folder)(varied_texts(200))["input_ids"])
    assert ids[0] == ids[1] and ids[0] != read_tokenizer(llama)(varied_texts(200))["input_ids"]


# The SentencePiece model instead


def unknown_part(folder: Path) -> None:
    change(folder / "tokenizer.json", pre_tokenizer={"type": "FixedLength", "length": 5})


def blank_in_a_merge(folder: Path) -> None:
    change(folder / "tokenizer.json", model__merges=[["a b", "c"]])


def words_first(folder: Path) -> None:
    "`ignore_merges`, with a word that no merges lead to."
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    change(folder / "tokenizer.json", model__ignore_merges=True, model__vocab=vocab | {"unreachable": len(vocab)})


def first_word_only(folder: Path) -> None:
    change(folder / "tokenizer.json", normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False})


TOO_NEW = {
    unknown_part: "PreTokenizer",
    blank_in_a_merge: r"merge \['a b', 'c'\]",
    words_first: "ignore_merges is on",
    first_word_only: "does not split at blanks",
}


@pytest.mark.parametrize("damage", TOO_NEW, ids=lambda d: d.__name__)
def test_what_has_no_old_spelling_is_read_from_the_sentencepiece_model(llama, tmp_path, damage):
    folder = Path(shutil.copytree(llama, tmp_path / "new"))
    damage(folder)
    with pytest.warns(UserWarning, match=f"tokenizer.json: tokenizers 0.15.* cannot read it .*{TOO_NEW[damage]}.*tokenizer.model was read instead"):
        ours = read_tokenizer(folder)
    texts, theirs = varied_texts(), AutoTokenizer.from_pretrained(llama)
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"] and set(ours.all_special_ids) == set(theirs.all_special_ids)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=f"tokenizer.json: .*{TOO_NEW[damage]}.*revision"):
        read_tokenizer(folder)


def test_a_tokenizer_that_is_not_legacy_is_read_by_the_slow_class(llama, tmp_path):
    "With `legacy: false` no blank is put after a special token; the conversion to a fast tokenizer does not know that."
    folder = Path(shutil.copytree(llama, tmp_path / "new"))
    first_word_only(folder)
    change(folder / "tokenizer_config.json", legacy=False)
    with pytest.warns(UserWarning, match="was read instead"):
        ours = read_tokenizer(folder)
    assert isinstance(ours, LlamaTokenizer)
    ids = ours("USER: <image>\nred")["input_ids"]
    assert ours.convert_ids_to_tokens(ids[ids.index(ours.convert_tokens_to_ids("<image>")) + 1]) == "<0x0A>"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("left", [0, 1, 500])
def test_files_that_are_cut_short_are_named(llama, tmp_path, name, left):
    "And the SentencePiece model is not read past them."
    folder = Path(shutil.copytree(llama, tmp_path / "new"))
    content = (folder / name).read_text()[:left]
    (folder / name).write_text(content[:-2] if left else "")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: not readable as JSON .*cut short"):
        read_tokenizer(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model": 3}', '{"model": {"type": "BPE"}}', '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "null"])
def test_a_tokenizer_json_of_something_else(llama, tmp_path, content):
    folder = Path(shutil.copytree(llama, tmp_path / "new"))
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read_tokenizer(folder)


def test_only_the_sentencepiece_model(llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "new"))
    (folder / "tokenizer.json").unlink()
    texts = varied_texts()
    assert read_tokenizer(folder)(texts)["input_ids"] == read_tokenizer(llama)(texts)["input_ids"]
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        read_tokenizer(folder)


def test_an_lmm_with_todays_tokenizer_says_the_same(tmp_path):
    "toy_llava with everything around its weights as it would be written today."
    folder = Path(shutil.copytree(TOY, tmp_path / "new"))
    fifth(folder)
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    ours, theirs = (FrozenLMM.load("toy_llava", where, device="cpu").answer(picture, "What is in the picture?", max_new_tokens=12) for where in (folder, TOY))
    assert ours == theirs
