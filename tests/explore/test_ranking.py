"Which heads ground: the ranking finds heads that look where the truth is, says how sure that is, and the program does all of it and measures them."

import json
import re

import numpy as np
import pytest
import torch

from hglmm import heads, recipes
from hglmm.errors import DataError, SettingError
from hglmm.explore import ranking
from hglmm.explore.ranking import Ranking, Seen
from hglmm.geometry import Letterbox
from hglmm.grounder import Grounder

TOY = recipes.get("toy_llava")
GOOD = {7: 0.02, 12: 0.05}  # head by its channel: how much noise it has; the others have only noise


def made(phrases: int = 60, sink: tuple[int, int] | None = None, seed: int = 0) -> Seen:
    "Phrases that two heads look at, one a little better than the other; two to a picture."
    random = np.random.default_rng(seed)
    box = Letterbox.fit(128, 128, 128)
    maps, covered, masks = torch.zeros(phrases, 20, 16, 16), torch.zeros(phrases, 16, 16), []
    for k in range(phrases):
        top, left = random.integers(0, 11, 2)
        covered[k, top : top + 5, left : left + 5] = 1
        noise = torch.from_numpy(random.random((20, 16, 16), dtype=np.float32)) * 0.1
        for channel, much in GOOD.items():
            noise[channel] = 0.1 * covered[k] + much * noise[channel] / 0.1
        maps[k] = noise
        masks.append(covered[k].repeat_interleave(8, 0).repeat_interleave(8, 1) > 0)
    if sink:
        maps[:, :, sink[0], sink[1]] = 50.0
    return Seen(maps.half(), covered, masks, [box] * phrases, [str(k // 2) for k in range(phrases)], ["a"] * phrases)


def test_heads_that_look_there_are_found():
    seen = made()
    found = Ranking.of(seen, TOY)
    assert found.order[:2] == [(1, 2), (2, 2)] and found.means[1, 2] > 95 > found.means[0, 0] and set(found.order) == {(a, b) for a in range(4) for b in range(5)}
    low, high = found.intervals(200)[2, 2]
    assert low <= found.means[2, 2] <= high and high - low < 5
    stability = found.halves(2, 50)
    assert stability.overlap == (1, 1, 1) and stability.chance == 0.1 and stability.pictures == 30 and -0.5 < stability.correlation[0] < 0.8  # 18 heads are noise
    assert found.halves(2, 50) == stability != found.halves(2, 50, seed=1)


def test_intervals_go_by_pictures():
    "Phrases of one picture are no news: a picture a hundred times over is as uncertain as once."
    seen = made(20)
    once = Ranking.of(seen, TOY)
    often = Ranking(np.repeat(once.fits, 100, 0), np.repeat(once.pictures, 100), 5)
    a, b = once.intervals(200)[0, 0], often.intervals(200)[0, 0]
    assert a == pytest.approx(b, abs=1e-6) and a[0] < a[1]
    assert once.halves(3, 20).correlation == pytest.approx(often.halves(3, 20).correlation, abs=0.02)


def test_the_best_together():
    seen = made()
    order = Ranking.of(seen, TOY).order
    head, tries = ranking.best_heads("toy_llava", seen, order)
    assert set(head.chosen) <= {(1, 2), (2, 2)} and max(one.score for one in tries) > 90
    by_hand = {one.count: one.score for one in tries if one.spread == float(head.line[2])}
    assert by_hand[len(head.chosen)] == max(by_hand.values()) and by_hand[16] < by_hand[2]
    assert len(ranking.best_heads("toy_llava", seen, order, 3)[0].chosen) == 3
    again, score = ranking.fitted("toy_llava", seen, head.chosen, float(head.line[2]))
    assert again.recipe == recipes.replace("toy_llava", head="training_free")  # or it could not be loaded
    assert score == max(by_hand.values()) and torch.equal(again.line, head.line)


def test_sinks():
    seen = made(sink=(15, 15))
    closed = seen.sinks(1)
    assert closed[15, 15] and closed.sum() == 1
    with_them, without = (ranking.fitted("toy_llava", seen, [(1, 2)], closed=one)[1] for one in (None, closed))
    assert without > 90 > 30 > with_them


def test_some_of_the_phrases():
    seen = made(6)
    few = seen[[4, 1]]
    assert few.pictures == ["2", "0"] and torch.equal(few.maps[0], seen.maps[4]) and few.masks[1] is seen.masks[1] and len(few) == 2


@pytest.mark.parametrize("call, said", [
    (lambda seen: Ranking.of(seen, TOY).halves(0), "best 0 of 20 heads"), (lambda seen: Ranking.of(seen[[0, 1]], TOY).halves(1), "1 pictures"),
    (lambda seen: ranking.fitted("toy_llava", seen, [(4, 0)]), "4 layers with 5 heads"), (lambda seen: ranking.see(None, {}), "no dataset"),
])  # fmt: skip
def test_what_makes_no_sense(call, said):
    with pytest.raises((SettingError, DataError), match=re.escape(said)):
        call(made(4))


@pytest.mark.slow
def test_the_program(run_notebook, small_world, tmp_path):
    parameters = dict(data=small_world, pictures=3, limit=2, cuts=10, repeats=20, benchmarks="[refcoco+, png]", name="ground", device="cpu")
    status, said, runs = run_notebook("heads_that_ground", **parameters)
    assert not status, said
    folder = runs / "ground"
    assert "between halves of" in said and "no U-Net in the table: train one" in said and "without the 3 cells" in said
    lines = json.loads((folder / "compare.json").read_text())["lines"]
    assert {line["benchmark"] for line in lines} == {"toycoco refcoco+ val (hg)", "toycoco PNG val"}
    scores = {(line["benchmark"], line["score"]): line["values"] for line in lines}
    assert set(scores["toycoco PNG val", "all"]) == {"training_free", "without_sinks", "single_head", "hg"}
    assert scores["toycoco PNG val", "all"]["hg"] > scores["toycoco PNG val", "all"]["training_free"] > 10
    head = heads.load_head(folder / "training_free/head")
    assert len(heads.load_head(folder / "single_head/head").chosen) == 1 <= len(head.chosen) and (folder / "heads.png").is_file()
    grounder = Grounder.load("toy_llava", folder / "training_free/head", device="cpu")
    assert grounder.head.kind == "training_free"

    # the head is a head like any other: alone, the evaluation says the same
    status, said, _ = run_notebook("eval_png", data=small_world, head=str(folder / "training_free/head"), limit=2, name="alone", device="cpu")
    assert not status, said
    alone = json.loads((runs / "alone/scores.json").read_text())["scores"]["toycoco PNG val"]
    assert alone["all"] == pytest.approx(scores["toycoco PNG val", "all"]["training_free"], abs=1e-9)

    status, said, _ = run_notebook("heads_that_ground", **parameters, unet=str(tmp_path), unet_steps=3)
    assert status and "Leave one of them out" in said
