"Metrics against references that are as slow and plain as they can be, on 1,000 random cases each, the odd ones included."

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from hglmm.metrics import bootstrap, png, res
from hglmm.runs.scores import by_category

CASES = 1000
REGIONS = 255


def masks_of(random, case):
    "A random pair of mask stacks, and what is odd about it."
    height, width = (int(v) for v in random.integers(1, 9, 2))
    phrases, odd = int(random.integers(1, 7)), set()
    if case % 100 == 7:  # every region of a picture that is cut into 255
        labels = random.permutation(np.arange(16 * 16) % REGIONS).reshape(16, 16)
        truth = labels == np.arange(REGIONS)[:, None, None]
        predicted = truth & (random.random(truth.shape) < 0.8) | (random.random(truth.shape) < 0.001)
        return predicted, truth, {"255 regions"}
    if case % 50 == 3:
        return np.zeros((0, height, width), bool), np.zeros((0, height, width), bool), {"no phrases"}
    share = random.random((2, phrases, 1, 1))
    truth, predicted = random.random((2, phrases, height, width)) < share
    if random.random() < 0.3:
        truth[random.integers(phrases)] = False
    if random.random() < 0.3:
        predicted[random.integers(phrases)] = False
    if random.random() < 0.3:
        k = random.integers(phrases)
        truth = np.concatenate([truth, truth[k : k + 1]])
        predicted = np.concatenate([predicted, predicted[k : k + 1]])
        odd.add("duplicates")
    if random.random() < 0.2:
        k = random.integers(len(truth))
        truth[k] = predicted[k] = False
    if random.random() < 0.05:
        truth[:] = predicted[:] = False
        odd.add("only empty unions")
    odd |= {name for name, found in (
        ("empty truth", not truth.any((1, 2)).all()), ("empty prediction", not predicted.any((1, 2)).all()),
        ("empty union", not (truth | predicted).any((1, 2)).all()), ("perfect", (truth == predicted).all((1, 2)).any()),
    ) if found}  # fmt: skip
    return predicted, truth, odd


def slow_res(predicted, truth):
    "Intersections, unions and scores, pixel by pixel, in exact fractions."
    shared, covered = [], []
    for p, t in zip(predicted.tolist(), truth.tolist(), strict=True):
        pairs = [(a, b) for row_p, row_t in zip(p, t, strict=True) for a, b in zip(row_p, row_t, strict=True)]
        shared.append(sum(1 for a, b in pairs if a and b))
        covered.append(sum(1 for a, b in pairs if a or b))
    if not shared:
        return shared, covered, dict.fromkeys(("cIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9"))
    iou = [Fraction(i, u) if u else Fraction(0) for i, u in zip(shared, covered, strict=True)]
    scores = {"cIoU": Fraction(sum(shared), sum(covered)) if sum(covered) else Fraction(0), "mIoU": sum(iou) / len(iou)}
    scores |= {f"P@0.{t}": Fraction(sum(v >= Fraction(t, 10) for v in iou), len(iou)) for t in (5, 7, 9)}
    return shared, covered, {name: float(100 * value) for name, value in scores.items()}


def same(found, expected):
    "The same scores; None stands for nan."
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.isnan(found[name]) if value is None else abs(found[name] - value) < 1e-9, (name, found[name], value)


def test_res_is_what_counting_pixels_gives():
    random, seen = np.random.default_rng(0), Counter()
    for case in range(CASES):
        predicted, truth, odd = masks_of(random, case)
        seen.update(odd)
        intersection, union = res.overlap(predicted, truth)
        shared, covered, expected = slow_res(predicted, truth)
        assert intersection.tolist() == shared and union.tolist() == covered
        same(res.scores(intersection, union), expected)
    kinds = ("255 regions", "no phrases", "duplicates", "only empty unions", "empty truth", "empty prediction", "empty union", "perfect")
    assert all(seen[kind] >= 10 for kind in kinds), seen


def phrases_of(random, case):
    "IoUs as exact fractions, with kinds of phrase, and what is odd about them."
    count = REGIONS if case % 100 == 7 else 0 if case % 50 == 3 else int(random.integers(1, 13))
    unions = random.integers(0 if random.random() < 0.4 else 1, 400, count)
    if random.random() < 0.2:
        unions[random.random(count) < 0.5] = 0
    shared = np.where(random.random(count) < 0.2, random.choice([0, 1], count) * unions, random.integers(0, unions + 1))
    isthing, plural = random.random(count) < random.choice([0, 0.6, 1]), random.random(count) < random.choice([0, 0.3, 1])
    if count > 1 and random.random() < 0.3:
        unions[1], shared[1], isthing[1], plural[1] = unions[0], shared[0], isthing[0], plural[0]
    iou = [Fraction(int(i), int(u)) if u else Fraction(0) for i, u in zip(shared, unions, strict=True)]
    things = isthing | plural
    rows = list(zip(iou, isthing, plural, strict=True))
    odd = {name for name, found in (
        ("255 regions", count == REGIONS), ("no phrases", not count), ("empty union", 0 in unions), ("duplicates", len(set(rows)) < count),
        ("no plurals", count and not plural.any()), ("no singulars", count and plural.all()), ("no stuff", count and things.all()),
        ("no things", count and not things.any()), ("IoU 0", 0 in iou), ("IoU 1", 1 in iou), ("IoU 1/2", Fraction(1, 2) in iou),
    ) if found}  # fmt: skip
    return iou, isthing, plural, odd


def area(values):
    "The area under the recall curve, step by step from one IoU to the next: exact."
    total, below = Fraction(0), Fraction(0)
    for step in sorted(set(values)):
        total += (step - below) * Fraction(sum(v >= step for v in values), len(values))
        below = step
    return total


def loop(values, thresholds):
    "The mean of the recall curve at so many thresholds: 0, 1 / n, 2 / n, ..."
    return np.mean(np.array(values, dtype=float)[:, None] >= np.arange(thresholds) / thresholds)


def test_png_is_the_exact_area_and_the_limit_of_the_loop():
    random, seen = np.random.default_rng(1), Counter()
    for case in range(CASES):
        iou, isthing, plural, odd = phrases_of(random, case)
        seen.update(odd)
        kinds = list(zip(iou, isthing, plural, strict=True))
        groups = {
            "all": iou,
            "things": [v for v, thing, many in kinds if thing or many],
            "stuff": [v for v, thing, many in kinds if not thing and not many],
            "singulars": [v for v, _, many in kinds if not many],
            "plurals": [v for v, _, many in kinds if many],
        }
        found = png.scores([float(v) for v in iou], isthing, plural)
        half = float(100 * Fraction(sum(v >= Fraction(1, 2) for v in iou), len(iou))) if iou else None
        same(found, {**{name: float(100 * area(values)) if values else None for name, values in groups.items()}, "acc@0.5": half})
        thresholds = (10, 100, 1000)[case % 3]
        for name, values in groups.items():
            if values:  # the loop counts the phrases that reach the lower end of each step: it is never below, and at most a step above
                assert -1e-9 <= loop(values, thresholds) - found[name] / 100 <= 1 / thresholds + 1e-9
    kinds = ("255 regions", "no phrases", "empty union", "duplicates", "no plurals", "no singulars", "no stuff", "no things", "IoU 0", "IoU 1", "IoU 1/2")
    assert all(seen[kind] >= 10 for kind in kinds), seen


def one_score(ratios, name):
    "A score of the drawn rows, for `bootstrap.interval`."

    def score(above, below):
        return 100 * above.sum() / below.sum() if below.sum() else float("nan")

    above, below = ratios[name]
    return score, {"above": above, "below": below}


def test_fast_intervals_are_the_slow_ones():
    random, seen = np.random.default_rng(2), Counter()
    for case in range(CASES):
        rows = REGIONS if case % 50 == 7 else 0 if case % 50 == 3 else int(random.integers(1, 20))
        groups = [None, random.integers(0, max(rows // 2, 1), rows), np.full(rows, "one picture")][case % 3]
        if case % 4 < 2:
            union = random.integers(0, random.choice([2, 200]), rows)
            intersection = random.integers(0, union + 1)
            ratios = res.ratios(intersection, union)
            odd = {"empty union": 0 in union, "only empty unions": rows and not union.any()}
        else:
            plural = random.random(rows) < random.choice([0, 0.1, 0.5])
            ratios = png.ratios(random.random(rows), random.random(rows) < 0.5, plural)
            odd = {"no plurals": rows and not plural.any(), "few plurals": 0 < plural.sum() < 3}
        odd |= {"no phrases": not rows, "255 regions": rows == REGIONS, "one picture": case % 3 == 2, "duplicates": groups is not None and len(set(groups)) < rows}
        seen.update(name for name, found in odd.items() if found)
        fast = bootstrap.ratio_intervals(ratios, groups, repeats=15, seed=case)
        for name in ratios:
            score, columns = one_score(ratios, name)
            slow = bootstrap.interval(score, columns, groups, repeats=15, seed=case)
            np.testing.assert_allclose(fast[name], slow, rtol=0, atol=1e-9, equal_nan=True)
    assert len(seen) == 8 and min(seen.values()) >= 10, seen


def test_paired_differences_and_breakdowns_are_the_slow_ones():
    random = np.random.default_rng(3)
    for case in range(100):
        rows = int(random.integers(1, 40))
        pictures, kinds = random.integers(0, 8, rows), random.choice(["cat", "dog", "mug"], rows, p=[0.6, 0.35, 0.05])
        union = random.integers(1, 300, rows)
        first, second = (random.integers(0, union + 1) for _ in range(2))
        ours, theirs = res.ratios(second, union), res.ratios(first, union)

        def gain(first, second, union):
            return res.scores(second, union)["mIoU"] - res.scores(first, union)["mIoU"]

        slow = bootstrap.interval(gain, {"first": first, "second": second, "union": union}, pictures, repeats=20, seed=case)
        np.testing.assert_allclose(bootstrap.ratio_differences(theirs, ours, pictures, 20, case)["mIoU"], slow, atol=1e-9)

        scores, intervals = bootstrap.breakdown(ours, kinds, pictures, repeats=20, seed=case)
        assert set(scores) == set(kinds) and sum(row["phrases"] for row in scores.values()) == rows
        for kind in scores:

            def within(second, union, kinds, kind=kind):
                return res.scores(second[kinds == kind], union[kinds == kind])["cIoU"]

            same({k: v for k, v in scores[kind].items() if k != "phrases"}, res.scores(second[kinds == kind], union[kinds == kind]))
            slow = bootstrap.interval(within, {"second": second, "union": union, "kinds": kinds}, pictures, repeats=20, seed=case)
            np.testing.assert_allclose(intervals[kind]["cIoU"], slow, atol=1e-9)


@pytest.mark.slow
def test_the_benchmark_reports_both_ways(run_notebook):
    status, said, runs = run_notebook("bench_metrics", phrases=300, thresholds=500)
    assert status == 0, said
    report = json.loads((runs / "bench_metrics/bench_metrics.json").read_text())
    assert report["phrases"] == 300 and report["ratio"] == pytest.approx(report["seconds"]["threshold loop"] / report["seconds"]["closed form"])
    assert 0 < report["largest_difference"] <= 100 / 500 and all(v > 0 for v in report["peak_MiB"].values())
    assert "closed form is" in said


def test_a_phrase_of_several_categories_counts_in_each():
    """
    Four phrases of PNG: a person (IoU 0.8), a person and a horse (0.4), two horses and a dog (0.1), grass (1). The rows are categories, not combinations, and intervals draw pictures:
    of the person's two phrases, one on each picture, a draw sees the first alone, the second alone or both.
    """
    table = {
        "intersection": np.array([80, 40, 10, 50]), "union": np.array([100, 100, 100, 50]), "truth": np.array([90, 60, 50, 50]), "pixels": np.array([400] * 4),
        "category": np.array(["person", "person, horse", "horse, dog", "grass-merged"]), "plural": np.array([False, True, True, False]),
        "isthing": np.array([True, True, True, False]), "picture": np.array(["1", "2", "2", "1"]),
    }  # fmt: skip
    scores, intervals = by_category(table)
    assert {name: row["phrases"] for name, row in scores.items()} == {"dog": 1, "grass-merged": 1, "horse": 2, "person": 2}
    assert {name: row["mIoU"] for name, row in scores.items()} == pytest.approx({"dog": 10, "grass-merged": 100, "horse": 25, "person": 60})
    assert intervals["person"]["mIoU"] == pytest.approx((40, 80)) and intervals["horse"]["mIoU"] == pytest.approx((25, 25))
    of_res = {k: v for k, v in table.items() if k not in ("plural", "isthing")} | {"category": np.array(["person", "table, round", "table, round", "dog"])}
    assert {name: row["phrases"] for name, row in by_category(of_res)[0].items()} == {"dog": 1, "person": 1, "table, round": 2}
