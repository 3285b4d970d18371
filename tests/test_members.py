"""Who takes part in an ensemble, and of which images they are asked, in the time that there is."""

import numpy as np
import pytest
from small_runs import digits

import ssl_lab as sl
from ssl_lab import members
from ssl_lab.data import load
from ssl_lab.members import Members
from ssl_lab.nets import net


@pytest.fixture
def chosen(monkeypatch):
    """Who takes part, of nets that embed an image of `pool` in so many seconds, and of 600 images at least."""
    def chosen(pool, embeds, minutes, tuned=("all", "biases"), steps=1):
        each = iter(embeds)
        monkeypatch.setattr(members, "seconds_to_embed", lambda *_: next(each))
        monkeypatch.setattr(members, "least", lambda _: 600)
        nets = [net("tiny_4", 10, pool.style)] * len(embeds)
        return members.members(nets, tuned, steps, pool, sl.Runtime.start("cpu", "fp32"), minutes and 60 * minutes)
    return chosen


# 1,797 images: 3, 6 and 9 minutes to embed them and to fit to their features, 3 and 3 to fine-tune; of 600 of them 1, 2
# and 3, and 1 and 1, beside a third of a minute each time for steps. Of 30 minutes 15 are 900 s; less 480 and 38.4, for
# 0.8 s an image more.
@pytest.mark.parametrize(("minutes", "expected"), [
    (None, (3, ["all", "biases"], 1797)), (60, (3, ["all", "biases"], 1797)), (30, (3, ["all", "biases"], 1077)),
    (20, (3, ["all", "biases"], 702)), (10.1, (2, ["all"], 709)), (1, (1, [], 600))])
def test_where_time_is_short_members_are_asked_of_fewer_images_then_left_out(
        chosen, monkeypatch, capsys, minutes, expected):
    monkeypatch.setattr(members, "STEP", 7.5)
    monkeypatch.setattr(members, "FITS", 0.25)
    frozen, tuned, images = expected
    assert chosen(digits(), [0.08, 0.16, 0.24], minutes) == Members(frozen, dict.fromkeys(tuned, 1), images)
    said = capsys.readouterr().out
    assert said.count("is left out") == 5 - frozen - len(tuned)
    assert (f"{images} of the 1797 images" in said) == (images < 1797)


# Half of 3.005 minutes are 90.15 s: 19.2 for a fine-tuning, 60 for 600 images, and 10.95 for 0.1 s an image more.
@pytest.mark.parametrize(("minutes", "expected"), [
    (None, (0, ["all", "biases"], 1797)), (60, (0, ["all", "biases"], 1797)), (3.005, (0, ["all"], 709)),
    (1, (1, [], 600))])
def test_with_many_labels_frozen_nets_are_asked_only_where_time_is_too_short(chosen, monkeypatch, minutes, expected):
    monkeypatch.setattr(members, "STEP", 6)
    monkeypatch.setattr(members, "MANY", 10)
    frozen, tuned, images = expected
    assert chosen(digits(100), [0.1, 0.1], minutes) == Members(frozen, dict.fromkeys(tuned, 1), images)


# 1,000 labels have 8 epochs in 250 steps of 32. Each fine-tuning takes 3.2 s a step, and 60 s to label 600 images: of
# 54 minutes 1,620 - 860 - 60 s are left for steps of the second one, of 20 600 - 60 for those of the first.
@pytest.mark.parametrize(("labels", "minutes", "expected"), [
    (1000, None, [250, 250]), (1000, 60, [250, 250]), (1000, 54, [250, 218]), (1000, 40, [250, 87]), (1000, 30, [250]),
    (1000, 20, [168]), (1000, 1, []), (100, None, [50, 50]), (100, 120, [50, 50])])
def test_steps_of_a_fine_tuning_follow_labels_and_time(chosen, monkeypatch, labels, minutes, expected):
    monkeypatch.setattr(members, "STEP", 1)
    monkeypatch.setattr(members, "MANY", 10)
    monkeypatch.setattr(members, "STEPS", 50)
    assert [*chosen(digits(labels), [0.1], minutes, steps=None).tuned.values()] == expected


@pytest.mark.parametrize(("labels", "tuned", "expected"), [
    (99, None, []), (100, None, ["all", "biases"]), (99, ["biases"], ["biases"]), (100, (), [])])
def test_with_few_labels_no_net_is_fine_tuned_on_them_unless_that_is_asked_for(
        chosen, capsys, labels, tuned, expected):
    assert [*chosen(digits(labels), [0.1], None, tuned).tuned] == expected
    said = "99 labels are fewer than 10 for each class" in capsys.readouterr().out
    assert said == (labels == 99 and tuned is None)


def test_rows_that_members_are_asked_of(monkeypatch):
    monkeypatch.setattr(members, "MEASURED", 30)
    monkeypatch.setattr(members, "LEAST", 200)
    pool = load("digits").split(labels=20, valid=50, seed=0)
    assert members.least(pool) == 20 + 200 + 2 * 30
    rows = members.some_of(pool, 280, seed=1)
    assert len(rows) == 280
    assert (np.diff(rows) > 0).all()
    assert np.isin(pool.labeled, rows).all()
    assert [np.isin(part, rows).sum() for part in (pool.valid, pool.test, pool.train)] == [30, 30, 220]
    assert set(rows) <= set(members.some_of(pool, 290, seed=1))
