"""Dawid and Skene's EM against a slow one, and who gets which image."""

import itertools

import numpy as np
import pytest

from ssl_lab.active.people.annotators import assign, dawid_skene
from ssl_lab.active.people.votes import Vote, agree
from ssl_lab.errors import UsageError


def _answers(images=200, seed=0, skills=(0.95, 0.75, 0.4), classes=3):
    draw = np.random.default_rng(seed)
    truth = draw.integers(classes, size=images)
    said = [(row, who, int(truth[row]) if draw.random() < skill else int((truth[row] + draw.integers(1, classes))
                                                                         % classes))
            for row in range(images) for who, skill in zip(("ann", "ben", "cat"), skills, strict=True)]
    return truth, said


def _slow(said, classes, iterations):
    rows, people = sorted({row for row, _, _ in said}), sorted({who for _, who, _ in said})
    chance = {row: [sum(r == row and label == k for r, _, label in said) for k in range(classes)] for row in rows}
    chance = {row: [value / sum(values) for value in values] for row, values in chance.items()}
    for _ in range(iterations):
        prior = [(sum(chance[row][k] for row in rows) + 1) / (len(rows) + classes) for k in range(classes)]
        table = {}
        for who, k in itertools.product(people, range(classes)):
            counts = [(3.0 if label == k else 1.0) + sum(chance[r][k] for r, *by in said if by == [who, label])
                      for label in range(classes)]
            table[who, k] = [count / sum(counts) for count in counts]
        for row in rows:
            values = [prior[k] * float(np.prod([table[who, k][label] for r, who, label in said if r == row]))
                      for k in range(classes)]
            chance[row] = [value / sum(values) for value in values]
    return prior, table, chance


def test_em_is_the_slow_one():
    _, said = _answers(images=15)
    said = [each for n, each in enumerate(said) if n % 4]  # not everybody has seen all
    found = dawid_skene(said, 3, iterations=6, tolerance=0)
    prior, table, chance = _slow(said, 3, 6)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-9)
    np.testing.assert_allclose(found.confusion, [[table[who, k] for k in range(3)] for who in found.people], rtol=1e-9)
    np.testing.assert_allclose(found.classes, [chance[row] for row in found.rows.tolist()], rtol=1e-9)


def test_reliability_is_found_without_the_truth_and_beats_the_majority():
    truth, said = _answers(images=600, skills=(0.95, 0.8, 0.6))
    found = dawid_skene(said, 3)
    assert found.accuracy() == pytest.approx({"ann": 0.95, "ben": 0.8, "cat": 0.6}, abs=0.05)
    votes = np.zeros((600, 3))
    for row, _, label in said:
        votes[row, label] += 1
    assert (found.classes.argmax(axis=1) == truth).mean() > (votes.argmax(axis=1) == truth).mean()


def test_assignment_is_the_best_of_all_fair_ones():
    _, said = _answers()
    found = dawid_skene(said, 3)
    probs = np.random.default_rng(1).dirichlet(np.ones(3) * 0.5, size=6)
    people = ("ann", "ben", "cat")
    right = {who: np.diag(found.confusion[found.people.index(who)]) for who in people}

    def value(choice):
        return sum(float(probs[n] @ right[who]) for n, who in enumerate(choice))

    best = max((choice for choice in itertools.product(people, repeat=6)
                if all(choice.count(who) == 2 for who in people)), key=value)
    chosen = assign(range(6), people, found, probs)
    assert value([chosen[n] for n in range(6)]) == pytest.approx(value(best))
    assert sorted(chosen.values()) == sorted(people * 2)


def test_nobody_gets_an_image_twice_and_all_get_as_many():
    chosen = assign([5, 6, 7, 8, 9], ["ann", "ben"], done={5: ["ann"], 6: ["ann", "ben"]})
    assert chosen[5] == "ben"
    assert 6 not in chosen
    assert sorted(chosen.values()) == ["ann", "ann", "ben", "ben"]
    odd = assign(range(5), ["ann", "ben", "cat"])
    assert sorted(list(odd.values()).count(who) for who in ("ann", "ben", "cat")) == [1, 2, 2]
    assert assign([1], ["ann"], done={1: ["ann"]}) == {}


def test_votes_are_weighed_by_who_says_them():
    truth, said = _answers(skills=(0.95, 0.6, 0.55))
    votes = [Vote(row, label, who) for row, who, label in said]
    right = {}
    for how in ("majority", "dawid-skene"):
        answers = agree(votes, how).answers
        right[how] = np.mean([answers.get(row) == truth[row] for row in range(200)])
    assert right["dawid-skene"] > 0.9 > right["majority"]
    even = [Vote(0, "ant", "ann"), Vote(0, "bee", "ben"), Vote(1, None, "ann")]
    assert agree(even, "dawid-skene").open == (0,)
    assert agree(even[2:], "dawid-skene").answers == {1: None}


def test_a_newcomer_counts_as_the_mean():
    _, said = _answers()
    chosen = assign([1, 2], ["dan", "cat"], dawid_skene(said, 3), np.array([[0.98, 0.01, 0.01]] * 2))
    assert sorted(chosen.values()) == ["cat", "dan"]


@pytest.mark.parametrize("call", [
    lambda: dawid_skene([], 3), lambda: dawid_skene([(0, "ann", 3)], 3), lambda: dawid_skene([(0, "ann", -1)], 3),
    lambda: assign([1], []), lambda: assign([1], ["ann", "ann"])])
def test_what_cannot_be_is_refused(call):
    with pytest.raises(UsageError):
        call()
