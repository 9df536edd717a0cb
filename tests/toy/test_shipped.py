"What ships works: toy_llava names what is in a picture, and the head beside it grounds, through the LMM and not around it."

from collections import Counter

import pytest

from hglmm import Grounder, inference
from hglmm.datasets import layout, toycoco
from hglmm.runs import evaluation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grounder():
    return Grounder.load("toy_llava")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "The first validation pictures of the world the scores are reported on: same seed, fewer pictures."
    return toycoco.generate(tmp_path_factory.mktemp("data") / "world", counts={"train": 1, "val": 48, "test": 0})


def named(text: str) -> Counter:
    "Names of things in a caption; `two red mugs` counts twice. Things that only serve to say where another is do not count."
    count, found, skip = 1, Counter(), False
    numbers = {word: n for n, word in toycoco.NUMBERS.items()}
    singular = {toycoco.plural(n): n for n in toycoco.THINGS}
    for word, before in zip(text.split(), ["", *text.split()], strict=False):
        skip = skip or (before, word) == ("next", "to")
        count = numbers.get(word, count)
        name = word if word in toycoco.THINGS else singular.get(word)
        if name:
            found[name] += 0 if skip else count
            count, skip = 1, False
    return found


def test_captions_name_the_objects(grounder):
    right = said = true = 0
    scenes = [toycoco.split_scene(0, "val", k) for k in range(40)]
    said_of = grounder.lmm.answers([scene.image for scene in scenes], ["Please give me a description of the image."] * 40)
    for scene, one in zip(scenes, said_of, strict=True):
        answer = named(one.text)
        truth = Counter(t.name for t in scene.things)
        right, said, true = right + sum((answer & truth).values()), said + sum(answer.values()), true + sum(truth.values())
    assert 2 * right / (said + true) > 0.85


@pytest.mark.parametrize("benchmark, least", [("refcoco+", 72), ("png", 80), ("refcoco", 55)])  # places and relations are beyond the toy LMM
def test_the_head_grounds_what_the_lmm_says(benchmark, least, grounder, world, tmp_path):
    data = layout.open_png(world) if benchmark == "png" else layout.open_refcoco(world, benchmark)
    score, batches = {}, list(evaluation.batches(data, 8))
    for swapped in (False, True):
        some = batches[:: 1 + swapped]  # half of them show that nothing is left
        masks = [inference.predict(grounder.lmm, grounder.head, [data[i] for i in batch], shuffle_phrases=swapped) for batch in some]
        rows = [row for batch, found in zip(some, masks, strict=True) for i, one in zip(batch, found, strict=True) for row in evaluation.rows_of(data[i], one)]
        score[swapped] = 100 * sum(row["iou"] for row in rows) / len(rows)
    assert score[False] > least
    assert score[True] < score[False] / 2  # with the phrases of other pictures there is nothing to go by


def test_five_lines(grounder):
    scene = toycoco.split_scene(0, "val", 1)
    grounding = grounder.ground(scene.image, [f"the {scene.things[0].colour} {scene.things[0].name}"])
    mask, truth = grounding.masks[0], scene.mask(0)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.5
    assert grounding._repr_png_().startswith(b"\x89PNG")


def test_a_conversation(grounder):
    scene = next(s for s in (toycoco.split_scene(0, "val", k) for k in range(9)) if toycoco.reason_questions(s))
    question, _, _, _ = toycoco.reason_questions(scene)[0]
    reply = grounder.chat(scene.image, question)
    assert 1 <= len(reply.text.split()) <= 3 and reply.grounding.masks.shape == (1, scene.image.height, scene.image.width)
    assert reply._repr_png_().startswith(b"\x89PNG")
