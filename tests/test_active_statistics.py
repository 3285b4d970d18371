"""Statistics of learning curves against slow references, and a report that does not claim more than the runs bear."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from ssl_lab.active.study.benchmark import Cell
from ssl_lab.active.study.show import Group, group_table, groups_of, verdict, win_table
from ssl_lab.active.study.statistics import (
    area,
    efficiency_interval,
    holm,
    labeling_efficiency,
    labels_needed,
    monotone,
    paired_t,
    win_matrix,
)
from ssl_lab.intervals import detectable, half_width

CURVES = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8)


def test_area_is_the_mean_height():
    labels = [10, 20, 50]
    assert area(labels, [0.5, 0.5, 0.5]) == pytest.approx(0.5)
    by_hand = (10 * (0.2 + 0.4) / 2 + 30 * (0.4 + 0.7) / 2) / 40
    assert area(labels, [[0.2, 0.4, 0.7], [0.0, 0.0, 0.0]]) == pytest.approx([by_hand, 0.0])
    assert area([10], [[0.3], [0.4]]) == pytest.approx([0.3, 0.4])


def test_intervals_are_students():
    runs = np.random.default_rng(0).normal(0.5, 0.1, (5, 3))
    low, high = stats.t.interval(0.95, 4, runs.mean(axis=0), stats.sem(runs, axis=0))
    np.testing.assert_allclose(half_width(runs), (high - low) / 2)
    assert np.isnan(half_width(runs[:1])).all()


def test_paired_t_is_students():
    draws = np.random.default_rng(1)
    one, other = draws.normal(0.6, 0.1, 6), draws.normal(0.5, 0.1, 6)
    reference = stats.ttest_rel(one, other)
    test = paired_t(one, other)
    assert test.p == pytest.approx(reference.pvalue)
    assert test.difference == pytest.approx((one - other).mean())
    interval = reference.confidence_interval(0.95)
    assert test.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_paired_t_of_equal_differences_and_of_one_run():
    assert paired_t([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]) == (0.0, 0.0, 1.0)
    assert paired_t([0.75, 1.0], [0.5, 0.75]).p == 0.0
    assert math.isnan(paired_t([0.5], [0.25]).p)


def test_holm_is_the_step_down_procedure():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for level in np.linspace(0.001, 0.999, 50):  # rejects the same as the textbook's steps do
        rejected, order = set(), np.argsort(p)
        for step, place in enumerate(order):
            if p[place] > level / (len(p) - step):
                break
            rejected.add(place)
        assert {i for i, value in enumerate(holm(p)) if value <= level} == rejected
    assert holm([]) == []


def test_what_could_not_be_tested_does_not_disturb_holm():
    nan = math.nan
    for p in ([0.01, nan, 0.03, 0.005], [nan, 0.01, 0.03, 0.005], [0.01, 0.03, 0.005, nan, nan]):
        kept = [value for value in p if not math.isnan(value)]
        adjusted = holm(p)
        assert [math.isnan(value) for value in adjusted] == [math.isnan(value) for value in p]
        assert [value for value in adjusted if not math.isnan(value)] == holm(kept)
        assert holm(kept) == pytest.approx([0.02, 0.03, 0.015])
    assert math.isnan(holm([nan])[0])


@pytest.mark.parametrize(("runs", "significance"), [(3, 0.05), (5, 0.05), (5, 0.01), (20, 0.05)])
def test_a_detectable_difference_is_found_four_times_in_five(runs, significance):
    draws = np.random.default_rng(0)
    sample = draws.normal(size=runs)
    sample /= sample.std(ddof=1)  # a standard deviation of 1, which the runs below have too
    difference = detectable(sample, significance)
    found = stats.ttest_1samp(draws.normal(difference, 1, (40_000, runs)), 0, axis=1).pvalue < significance
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert detectable(3 * sample + 5, significance) == pytest.approx(3 * difference), "the mean plays no part"


def test_detectable_of_one_run_and_of_equal_differences():
    assert math.isnan(detectable([0.1]))
    assert detectable([0.1, 0.1, 0.1]) == pytest.approx(0, abs=1e-12)


@settings(max_examples=50)
@given(CURVES)
def test_monotone_is_the_isotonic_regression(accuracy):
    reference = IsotonicRegression().fit_transform(np.arange(len(accuracy)), accuracy)
    np.testing.assert_allclose(monotone(accuracy), reference, atol=1e-12)


@settings(max_examples=50)
@given(CURVES, st.floats(0, 1).filter(lambda level: not 0 < level < 1e-9))  # which the grid cannot tell from 0
def test_labels_needed_is_where_the_curve_first_gets_there(accuracy, level):
    labels = 10.0 + 20 * np.arange(len(accuracy))
    curve = monotone(accuracy)
    needed = labels_needed(labels, accuracy, level)
    if level < curve[0]:
        assert needed == (0, labels[0])
    elif level > curve[-1]:
        assert needed == (labels[-1], math.inf)
    else:
        grid = np.linspace(labels[0], labels[-1], 4001)
        first = grid[np.argmax(np.interp(grid, labels, curve) >= level - 1e-12)]
        assert needed[0] == needed[1] == pytest.approx(first, abs=(labels[-1] - labels[0]) / 4000 + 1e-9)


def test_labeling_efficiency_is_randoms_labels_over_the_strategys():
    labels = np.array([10.0, 20, 40, 80])
    random = np.array([0.1, 0.2, 0.4, 0.8])
    twice = np.interp(2 * labels, labels, random)  # gets with n labels where random gets with 2 n
    for one, other, level, ratio in ((twice, random, None, 2.0), (random, twice, None, 0.5),
                                     (random, random, None, 1.0), (twice, random, 0.4, 2.0)):
        least, most = labeling_efficiency(labels, one, other, level)
        assert least == most == pytest.approx(ratio)


def test_a_curve_that_starts_above_the_other_bounds_the_efficiency():
    labels, random = np.array([10.0, 20, 40, 80]), np.array([0.1, 0.2, 0.4, 0.8])
    high = np.array([0.85, 0.9, 0.9, 0.95])
    assert labeling_efficiency(labels, high, random) == (pytest.approx(8.0), math.inf), "10 labels or fewer, for 80"
    assert labeling_efficiency(labels, random, high) == (0, pytest.approx(0.125))
    assert labeling_efficiency(labels, random, high, 0.9) == (0, pytest.approx(0.25)), "more than 80, for 20"
    assert labeling_efficiency(labels, high, random, 0.9) == (pytest.approx(4.0), math.inf)
    assert labeling_efficiency(labels, high, random, 0.05) == (0, math.inf), "nothing is known"
    assert labeling_efficiency(labels, high, random, 0.99) == (0, math.inf)


def test_the_interval_of_the_efficiency_is_of_drawn_seeds():
    draws = np.random.default_rng(0)
    labels, line = np.array([10.0, 20, 40, 80]), np.array([0.1, 0.2, 0.4, 0.8])
    better = np.array([0.2, 0.4, 0.7, 0.9])  # 0.8 with 60 labels
    noise = draws.normal(0, 0.01, (2, 6, 4))
    low, high = efficiency_interval(labels, better + noise[0], line + noise[1])
    assert 1.2 < low < 4 / 3 < high < 1.5
    slow = []
    for rows in np.random.default_rng(1).integers(6, size=(2000, 6)):
        ends = labeling_efficiency(labels, (better + noise[0])[rows].mean(axis=0), (line + noise[1])[rows].mean(axis=0))
        slow.append(ends)
    expected = np.quantile([least for least, _ in slow], 0.025), np.quantile([most for _, most in slow], 0.975)
    assert (low, high) == pytest.approx(expected, rel=0.1)
    assert efficiency_interval(labels, np.tile(better, (3, 1)), np.tile(line, (3, 1))) == pytest.approx((4 / 3, 4 / 3))
    assert efficiency_interval(labels, np.tile(line + 0.8, (3, 1)), np.tile(line, (3, 1))) == (
        pytest.approx(8.0), math.inf)


def test_win_matrix_is_the_share_of_significant_points():
    draws = np.random.default_rng(2)
    runs = {name: draws.normal(shift, 0.1, (5, 6)) for name, shift in (("a", 0.5), ("b", 0.6), ("c", 0.9))}
    wins = win_matrix(runs)
    for (i, one), (j, other) in itertools.product(enumerate(runs.values()), repeat=2):
        slow = 0
        for point in range(6):
            if i != j:
                test = stats.ttest_rel(one[:, point], other[:, point])
                slow += test.pvalue < 0.05 and test.statistic > 0
        assert wins[i, j] == pytest.approx(slow / 6)
    assert wins[2, 0] > 0.5  # or the test shows nothing
    assert wins[0, 0] == 0


def group(seeds, better=0.1):
    """A group in which "good" is better than random by about `better` and "same" is about as good."""
    draws = np.random.default_rng(3)
    base = np.linspace(0.3, 0.8, 4) + draws.normal(0, 0.05, (seeds, 1))
    accuracy = {"random": base, "same": base + draws.normal(0, 0.02, (seeds, 4)),
                "good": base + better + draws.normal(0, 0.02, (seeds, 4))}
    results = {name: [{"seconds": [0.5, 1.5], "memory": [2**20, None], "transfer": None}] * seeds for name in accuracy}
    return Group("supervised, 10 a round", np.array([10.0, 20, 30, 40]), accuracy, results)


def test_sets_of_a_seed_are_no_further_seeds():
    results = {Cell("supervised", 5, "random", seed, some): {
        "settings": {"cell": {"seed": seed}}, "labels": [5, 10], "accuracy": [0.1 * seed, 0.2 * some]}
        for seed in range(3) for some in range(2)}
    (found,) = groups_of(results)
    np.testing.assert_allclose(found.accuracy["random"], [[0, 0.1], [0.1, 0.1], [0.2, 0.1]])
    assert len(found.results["random"]) == 6


def test_two_seeds_rank_nothing():
    assert "no ranking. 2 seeds say nothing" in verdict(group(2), 2)
    assert "1 seed says" in verdict(group(1), 1)
    table = group_table(group(2), 2)
    assert [row[0] for row in table.rows] == ["random", "same", "good"]  # as given, not by area
    names = [column.name for column in table.columns]
    for row in table.rows:
        for name in ("vs random", "p", "label eff."):
            assert row[names.index(name)] is None
        assert "±" not in row[names.index("area (%)")]
        assert row[names.index("choosing (s)")] == 1.0


def test_enough_seeds_rank_and_compare():
    said = verdict(group(5), 5)
    assert "5 paired seeds: better than random: good (+" in said
    assert "not to be told from random: same (" in said
    assert f"; 5 seeds find {100 * group(5).detectable('same'):.1f})" in said
    assert "worse" not in said
    assert "worse than random: good (-" in verdict(group(5, better=-0.2), 5)
    table = group_table(group(5), 5)
    assert table.rows[0][0] == "good"
    column = [column.name for column in table.columns].index("label eff.")
    assert re.fullmatch(r"≥ \d\.\d\d \(\d\.\d\d to \?\)|\d\.\d\d \(\d\.\d\d to (\d\.\d\d|\?)\)",
                        {row[0]: row[column] for row in table.rows}["good"])
    assert table.rows[0][5] == pytest.approx(100 * group(5).detectable("good"))
    assert {row[0]: row[4] for row in table.rows}["random"] is None
    assert all("±" in row[1] for row in table.rows)
    wins = win_table([group(5)])
    assert [column.name for column in wins.columns] == ["query", "random", "same", "good"]
    assert wins.rows[2][1] == 1.0  # good beats random at every point


def test_differences_are_of_pairs():
    """Runs that differ much from each other, but little within a pair: only the paired test sees it."""
    base = np.linspace(0.2, 0.9, 5)[:, None] * np.ones((1, 3))
    accuracy = {"random": base, "good": base + np.array([0.010, 0.012, 0.008, 0.011, 0.009])[:, None]}
    paired = Group("g", np.array([1.0, 2, 3]), accuracy, {}).against_random()["good"]
    assert paired.p < 1e-3
    assert paired.difference == pytest.approx(0.01)
    assert stats.ttest_ind(accuracy["good"][:, 0], accuracy["random"][:, 0]).pvalue > 0.9
