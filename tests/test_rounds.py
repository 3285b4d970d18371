"""Labels that are spread over features, and short rounds in one run: recipes/rapid.py at a tiny size."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from small_runs import At, digits, signal_at, tiny_net
from test_recipes import recipe

import ssl_lab as sl
from ssl_lab import ladder, rapid
from ssl_lab import rounds as module
from ssl_lab.command_line import parse
from ssl_lab.engine.runtime import Runtime
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.features import beliefs, linear_probe, neighbors, set_head
from ssl_lab.nets import describe
from ssl_lab.pace import Pace

pytestmark = pytest.mark.usefixtures("few_strengths")

CPU = Runtime(torch.device("cpu"), "fp32", "asked")
TINY = ("--net", "rapid_4_4_8", "--labels", "40", "--device", "cpu", "--precision", "fp32", "--view", "eval")


def test_labels_spread_by_their_equation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)) * [1, 9, 1, 1] + rng.normal(size=4)  # the second direction says little
    labels = np.full(40, -1)
    labels[[0, 1, 2, 3]] = 0, 1, 2, 0
    shares = np.array([1 / 2, 1 / 4, 1 / 4])
    q = linear_probe(x, labels, x, 3)
    guess = (q * shares / q.mean(axis=0)).argmax(axis=1)
    guess[:4] = labels[:4]
    covariance = sum(len(part) / 40 * np.cov(part.T, bias=True) for part in (x[guess == each] for each in range(3)))
    values, vectors = np.linalg.eigh(covariance + 0.1 * np.trace(covariance) / 4 * np.eye(4))
    z = (x - x.mean(axis=0)) @ vectors @ np.diag(values**-0.5) @ vectors.T
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines, graph = z @ z.T, np.zeros((40, 40))
    for i in range(40):
        near = [j for j in np.argsort(-cosines[i]) if j != i][:20]
        graph[i, near] = np.maximum(cosines[i, near], 0) ** 3
    graph = graph + graph.T
    graph /= np.sqrt(np.outer(graph.sum(axis=1), graph.sum(axis=1)))
    seeds = np.zeros((40, 3))
    seeds[[0, 3], 0], seeds[1, 1], seeds[2, 2] = 1 / 2, 1, 1
    p = np.linalg.solve(np.eye(40) - 0.99 * graph, seeds)
    p /= p.sum(axis=1, keepdims=True)
    p *= shares / p.mean(axis=0)
    np.testing.assert_allclose(beliefs.spread(x, labels, 3), p / p.sum(axis=1, keepdims=True), atol=1e-4)


def test_how_features_are_turned_and_stretched_changes_little():
    """Whitening within classes undoes it, up to the tenth that is added to each direction."""
    rng = np.random.default_rng(1)
    truth = np.arange(300) % 3
    x = np.eye(3, 6)[truth] * 4 + rng.normal(size=(300, 6))
    stretched = x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] * [1, 1, 1, 1, 1, 12] + 5
    labels = np.where(np.arange(300) < 12, truth, -1)
    for each in (x, stretched):
        assert (beliefs.spread(each, labels, 3).argmax(axis=1) == truth).mean() > 0.95


def test_the_last_head_is_fitted_on_labels_that_were_spread(monkeypatch):
    pool = sl.load("digits").split(labels=40, seed=0)
    net = tiny_net(pool)
    said = np.eye(10)[pool.truth[pool.train]].astype(np.float32)
    said[pool.labels[pool.train] >= 0] = np.eye(10)[0]  # what is known is not asked
    monkeypatch.setattr(beliefs, "spread", lambda features, labels, classes, device: said)
    beliefs.refit(net, pool, CPU)
    features = sl.features.embed(net, pool, pool.train, CPU)
    other = tiny_net(pool)
    set_head(other, features, pool.truth[pool.train], np.arange(len(features)), l2=0.1)
    assert torch.equal(net.head.weight, other.head.weight)


def test_neighbors_are_found_on_the_device_that_trains(monkeypatch):
    asked = []

    def found(features, k, device="cpu"):
        asked.append(device)
        return neighbors(features, k)

    monkeypatch.setattr("ssl_lab.features.propagation.neighbors", found)
    beliefs.believed(tiny_net(digits()), digits(), CPU, 0.5)
    assert asked == [CPU.device]


def test_the_surest_share_of_each_predicted_class():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55], [0.7, 0.3]])
    assert np.array_equal(np.argwhere(beliefs.surest(p, 0.5)), [[0, 0], [2, 0], [3, 1]])
    assert beliefs.surest(p, 0).sum() == 0
    assert beliefs.surest(p, 1).sum() == 6
    with pytest.raises(UsageError, match=r"share=1.5: expected a number from 0 to 1"):
        beliefs.surest(p, 1.5)


def test_beliefs_are_of_unlabeled_training_images_and_blind_to_the_truth():
    pool = sl.load("digits").split(labels=40, valid=100, seed=0)
    net = tiny_net(pool)
    table = beliefs.believed(net, pool, CPU, 0.5)
    others = np.setdiff1d(np.arange(len(pool)), pool.unlabeled)
    assert table.shape == (len(pool), 10)
    assert not table[others].any()
    assert set(table.sum(axis=1)) == {0.0, 1.0}
    assert 0.4 < table.sum() / len(pool.unlabeled) < 0.55
    pool.truth[pool.unlabeled] = 0
    assert np.array_equal(beliefs.believed(net, pool, CPU, 0.5), table)


def test_mirror_images_count_where_they_keep_their_class():
    pool = digits()
    net, rows = tiny_net(pool).eval(), pool.train[:5]
    x = torch.from_numpy(pool.images.pixels[rows]).float() / 255
    plain = net(x).features.detach().numpy()
    np.testing.assert_allclose(beliefs.both_sides(net, pool, rows, CPU), plain, atol=1e-5)
    mirrored = sl.load("digits", flip=True).split(labels=100, seed=0)
    both = (plain + net(x.flip(3)).features.detach().numpy()) / 2
    np.testing.assert_allclose(beliefs.both_sides(net, mirrored, rows, CPU), both, atol=1e-5)


def test_time_decides_how_many_rounds_there_are():
    assert ladder.affordable(6, 3600, 45) == [0, 1, 2, 3, 4, 5]
    assert ladder.affordable(6, 600, 35) == [0, 1, 2, 4, 5]
    assert ladder.affordable(6, 600, 45) == [0, 1, 3, 5]
    assert ladder.affordable(6, 600, 60) == [0, 1, 5]
    assert ladder.affordable(6, 600, 90) == [0, 1]
    assert ladder.affordable(6, 600, 1000) == [0]


GROWING = (ladder.Round(peak=1.0), ladder.Round(crop=7, share=0.5),
           ladder.Round(crop=7, share=0.5, net=1, length=2, contrast=False),
           ladder.Round(crop=7, share=0.6, net=1, contrast=False))
NETS = ("rapid_4_4_8", "rapid_4_8_8", "rapid_4_4_4")


def new_net(pool):
    return lambda number: sl.net(NETS[number], pool.class_names, pool.style)


def costs(pool, rounds=GROWING):
    return ladder.Costs(rounds, new_net(pool), pool)


def test_costs_are_counted():
    pool = digits()
    this = costs(pool)
    flops = [this.image(number) for number in range(4)]
    assert flops[0] == flops[1] < flops[2] == flops[3]
    assert this.embedding(2) == len(pool.train) * flops[2]  # digits are not mirrored
    assert this.step(2) == 3 * (8 + 2 * 16) * describe(sl.net(NETS[1], pool.class_names, pool.style),
                                                       replace(pool.style, height=7, width=7))[1]
    # the third round's table is by the first net, the fourth's and the last head's by the second
    other = (flops[2] / flops[0] + 0.6) / 1.6
    assert this.tables(0) == pytest.approx([1, 1, other, other])
    assert this.tables(1) == this.tables(0)[1:]
    assert this.tables(3) == pytest.approx([1])
    assert costs(pool, GROWING[:1]).tables(0) == []
    assert this.images(0) == pytest.approx([1, 1, flops[2] / flops[0], flops[2] / flops[0]])
    assert this.images(3) == [1]
    assert this.total([1, 2, 3, 4]) == sum(
        count * this.step(number) for number, count in enumerate((1, 2, 3, 4))) + sum(map(this.embedding, range(4)))


def taking(seconds, asked):
    """What steps of these rounds take; notes which are asked for."""
    def step(number):
        asked.append(number)
        return seconds[number]
    return step


def test_a_second_net_comes_where_there_is_time_for_it():
    pool, least, took = digits(), 350, [0.01, 0.03, 0.02, 0.05]
    assert ladder.in_steps(GROWING, pool, 5 * least - 1) == [0, 1]
    assert ladder.in_steps(GROWING, pool, 5 * least) == [0, 1, 2, 3]

    def chosen(seconds, asked):
        return ladder.in_seconds(GROWING, (), costs(pool), seconds, lambda net: 1e-4, taking(took, asked))

    table = 1.6 * len(pool.train) * 1e-4
    whole = table * sum(costs(pool).tables(0)) + least * (0.01 + 0.03 + 2 * 0.02 + 0.05)
    assert chosen(whole * 1.0001, []) == ([0, 1, 2, 3], pytest.approx(table))
    half = whole - table * costs(pool).tables(3)[0] * costs(pool).tables(0)[2] - least * 0.05
    assert chosen(whole * 0.9999, []) == chosen(half * 1.0001, []) == ([0, 1, 2], pytest.approx(table))
    assert chosen(half * 0.9999, []) == ([0, 1], pytest.approx(table))
    assert chosen(least * 0.02, asked := [])[0] == [0, 1]
    assert {*asked} == {0, 1}  # later rounds are not timed where earlier ones take all


def test_of_the_grown_nets_rounds_there_are_at_least_half():
    pool = digits()
    rounds = (*GROWING, replace(GROWING[-1], share=0.7))

    def chosen(these):
        seconds = 1.0001 * (350 * 0.01 * sum(each.length for each in rounds[:these])
                            + 1.6 * len(pool.train) * 1e-4 * sum(costs(pool, rounds[:these]).tables(0)))
        return ladder.in_seconds(rounds, (), costs(pool, rounds), seconds, lambda net: 1e-4, lambda number: 0.01)[0]

    assert [len(chosen(these)) for these in (5, 4, 3, 2)] == [5, 4, 2, 2]


def test_a_small_net_comes_where_it_is_quick_and_the_others_after_it():
    pool, least = digits(), 350
    anew = ladder.Round(crop=7, share=0.5, length=1.2)
    trio = (*(replace(each, net=ladder.SMALL) for each in GROWING[:2]), anew, GROWING[2])
    took = [0.02, 0.06, 0.1, 0.1, 0.01, 0.02, 0.06, 0.1]

    def chosen(seconds, small=0.01, trio=trio):
        step = taking([*took[:4], small, *took[5:]], [])
        return ladder.in_seconds(GROWING, trio, costs(pool, (*GROWING, *trio)), seconds,
                                 {0: 2e-4, 1: 4e-4, 2: 1e-4}.get, step)

    table = 1.6 * len(pool.train) * 1e-4
    two, one = (table * sum(costs(pool, trio[:end]).tables(0)) + least * sum(
        took[4 + number] * trio[number].length for number in range(end)) for end in (4, 3))
    assert chosen(1000 * two) == chosen(two * 1.0001) == ([4, 5, 6, 7], pytest.approx(table))
    assert chosen(two * 0.9999) == ([4, 5, 6], pytest.approx(table))
    assert chosen(one * 1.0001) == ([4, 5, 6], pytest.approx(table))
    assert chosen(one * 0.9999) == ([4, 5], pytest.approx(table))
    assert chosen(one * 0.9999, small=0.011) == ([0, 1], pytest.approx(2 * table))  # no quicker than it is worth
    assert chosen(1000 * two, small=0.011) == ([0, 1, 2, 3], pytest.approx(2 * table))
    assert chosen(one * 0.9999, trio=()) == ([0, 1], pytest.approx(2 * table))
    assert chosen(table) == ([4], pytest.approx(table))  # which has no time for another table


def test_what_is_left_of_the_time_decides_again():
    pool, least = digits(), 350
    anew = ladder.Round(crop=7, share=0.5, length=1.2)
    trio = (*(replace(each, net=ladder.SMALL) for each in GROWING[:2]), anew, GROWING[2])
    took = [0.02, 0.06, 0.1, 0.1, 0.01, 0.02, 0.06, 0.1]
    whole = costs(pool, (*GROWING, *trio))

    def chosen(before, begin, seconds, table=0.0, pair=GROWING, trio=trio):
        return ladder.in_seconds_left(pair, trio, before, begin, whole, seconds, table, took.__getitem__)

    rest = [least * took[4 + number] * trio[number].length for number in range(4)]
    for before in ([4, 5], [4, 5, 6], [4, 5, 6, 7]):
        assert chosen(before, 1, 1.0001 * sum(rest[1:])) == [4, 5, 6, 7]
        assert chosen(before, 1, 0.9999 * sum(rest[1:])) == [4, 5, 6]
        assert chosen(before, 1, 0.9999 * sum(rest[1:3])) == [4, 5]
    assert chosen([4, 5, 6, 7], 2, 1.0) == [4, 5, 6]  # which is about to begin, and ends the run
    assert chosen([4, 5, 6, 7], 3, 1.0) == [4, 5, 6, 7]
    table = sum(whole.of([4, 5, 6, 7]).tables(1))
    assert chosen([4, 5], 1, sum(rest[1:]) + 2.001 * table, 2.0) == [4, 5, 6, 7]
    assert chosen([4, 5], 1, sum(rest[1:]) + 1.999 * table, 2.0) == [4, 5, 6]
    assert chosen([4], 0, 1e9) == [4]  # not all rounds of the small net: there is no time for labels between them
    assert chosen([0, 1], 1, 1e9) == [0, 1, 2, 3]
    assert chosen([0, 1, 2], 1, 1.0) == [0, 1]
    assert chosen([0, 1], 1, 1e9, pair=GROWING[:2], trio=()) == [0, 1]


# ---- the recipe


def run(*arguments):
    this = recipe("rapid")
    this.main(parse(this.Settings, [*TINY, *map(str, arguments)]))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(ladder, "LABELED", 8)
    monkeypatch.setattr(ladder, "UNLABELED", 16)
    monkeypatch.setattr(module, "PAIR", (ladder.Round(peak=1.0), ladder.Round(crop=7, share=0.5)))


def weights(out):
    return (out / "model.safetensors").read_bytes()


def test_a_run_predicts_and_resumes_between_rounds_and_amid_one(tmp_path, capsys, monkeypatch):
    whole, other = tmp_path / "whole", tmp_path / "other"
    run("--steps", 7, "--out", whole)
    printed = capsys.readouterr().out
    assert "rapid on digits with 40 labels: test " in printed
    assert "PFLOP, 168 images in 7 steps" in printed
    summary = json.loads((whole / "summary.json").read_text())
    assert len(summary["test_accuracy_of_rounds"]) == 2
    assert json.loads((whole / "plan.json").read_text())["steps"] == [3, 4]
    assert json.loads((whole / "round-0" / "summary.json").read_text())["test_accuracy"] is None
    assert yaml.safe_load((whole / "config.yaml").read_text())["net"] == "rapid_4_4_8"
    pool = sl.load("digits").split(labels=40, seed=0)
    left = sl.net("rapid_4_4_8", pool.class_names, pool.style, weights=whole / "model.safetensors")
    assert sl.accuracy(left, pool, pool.test, CPU) == pytest.approx(summary["test_accuracy"])
    assert sl.open(whole).predict(pool.images.pixels[pool.test[:3]]).probabilities.shape == (3, 10)

    class Killed(BaseException):
        pass

    def stop():
        raise Killed

    watch = sl.ShowProgress
    for stopping, error in ((At(2, stop), Killed), (signal_at(3, signal.SIGTERM), Interrupted), (At(4, stop), Killed)):
        monkeypatch.setattr(rapid, "ShowProgress", lambda stopping=stopping: stopping)
        with pytest.raises(error):  # without a checkpoint in round 0, with one in round 1 and after it
            run("--steps", 7, "--out", other, "--resume", "auto")
    assert (other / "round-1" / "checkpoint.pt").exists()
    monkeypatch.setattr(rapid, "ShowProgress", watch)
    run("--steps", 7, "--out", other, "--resume", "auto")
    assert weights(other) == weights(whole)
    with pytest.raises(UsageError, match="holds a run that is finished"):
        run("--steps", 7, "--out", other)
    with pytest.raises(UsageError, match="started with other settings"):
        run("--steps", 7, "--lr", 0.5, "--out", other, "--resume", "auto")


def test_validation_images_are_measured_between_rounds_and_take_no_time_of_theirs(tmp_path, capsys, monkeypatch):
    whole, other = tmp_path / "whole", tmp_path / "other"
    run("--steps", 7, "--valid", 100, "--out", whole)
    summary = json.loads((whole / "summary.json").read_text())
    pool = sl.load("digits").split(labels=40, valid=100, seed=0)
    for number, accuracy in enumerate(summary["valid_accuracy_of_rounds"]):
        folder = whole / f"round-{number}"
        net = sl.net("rapid_4_4_8", pool.class_names, pool.style, weights=folder / "model.safetensors")
        assert sl.accuracy(net, pool, pool.valid, CPU) == pytest.approx(accuracy)
        assert json.loads((folder / "summary.json").read_text())["valid_accuracy"] is None
    printed = capsys.readouterr().err
    for number, steps, accuracy in zip((1, 2), (3, 4), summary["valid_accuracy_of_rounds"], strict=True):
        assert f"round {number} of 2: {steps} steps, valid {accuracy:.1%}, " in printed

    def killed(*_):
        raise KeyboardInterrupt

    measure = module.Rounds._accuracy
    monkeypatch.setattr(module.Rounds, "_accuracy", killed)
    with pytest.raises(KeyboardInterrupt):
        run("--steps", 7, "--valid", 100, "--out", other)
    monkeypatch.setattr(module.Rounds, "_accuracy", measure)
    run("--steps", 7, "--valid", 100, "--out", other, "--resume", "auto")
    assert weights(other) == weights(whole)
    assert json.loads((other / "plan.json").read_text())["measured"] == summary["valid_accuracy_of_rounds"]


def test_time_for_measuring_is_kept_free(tmp_path):
    pool = digits()
    this = Pace(tmp_path, pool, new_net(pool), GROWING[:2], (), lambda this: 0.03 if this.share else 0.01,
                lambda net: 4 / len(pool.train) / 1.6, None, 1.0, {})  # tables take 4 s
    this.choose()
    this.costs.tables(0), this.costs.images(0)  # counts operations, once

    def minutes(measuring):
        this.decide(measuring=measuring)
        this.plan["spent"] = 0.0
        return this.length(0)[1]

    assert minutes(0.0) == pytest.approx((57.6 - 2 * 4) / 4 / 60, rel=1e-3)
    assert minutes(5.0) == pytest.approx((57.6 - 2 * 4 - 2 * 5) / 4 / 60, rel=1e-3)


def test_minutes_become_steps_that_a_resumed_run_keeps(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(ladder, "affordable", lambda rounds, seconds, each: [0, 1])
    run("--minutes", 0.02, "--out", out)
    steps = json.loads((out / "plan.json").read_text())["steps"]
    assert len(steps) == 2
    assert min(steps) >= 1
    before = weights(out)
    shutil.rmtree(out / "round-1")
    monkeypatch.setattr(ladder, "affordable", lambda rounds, seconds, each: [0])  # which is decided once
    run("--minutes", 5, "--out", out, "--resume", "auto")
    assert json.loads((out / "plan.json").read_text())["steps"] == steps
    assert weights(out) == before


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "how long to train"), (("--steps", 4, "--minutes", 1), "minutes"),
    (("--steps", 1), "expected one for each of 2 rounds"), (("--minutes", -1), "above zero")])
def test_lengths_that_cannot_be(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        run(*arguments, "--out", tmp_path / "run")


def test_a_run_grows_and_resumes_at_every_round(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(ladder, "LEAST", 1)
    monkeypatch.setattr(ladder, "EPOCHS", 0)
    whole, other = tmp_path / "whole", tmp_path / "other"
    run("--grown", NETS[1], "--steps", 11, "--out", whole)
    assert json.loads((whole / "plan.json").read_text())["steps"] == [2, 2, 4, 3]
    assert yaml.safe_load((whole / "config.yaml").read_text())["net"] == NETS[1]
    summary = json.loads((whole / "summary.json").read_text())
    assert len(summary["test_accuracy_of_rounds"]) == 4
    assert sl.open(whole).predict(digits().images.pixels[:3]).probabilities.shape == (3, 10)
    for number in (3, 2, 1):
        shutil.copytree(whole, other)
        for name in ("summary.json", "config.yaml", "model.safetensors"):
            (other / name).unlink()
        for late in range(number, 4):
            shutil.rmtree(other / f"round-{late}")
            (other / f"beliefs-{late}.npy").unlink()
        run("--grown", NETS[1], "--steps", 11, "--out", other, "--resume", "auto")
        assert weights(other) == weights(whole)
        shutil.rmtree(other)


def test_a_run_by_the_clock_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(ladder, "in_seconds", lambda *_: ([0, 1, 2, 3], 0.01))
    monkeypatch.setattr(ladder, "in_seconds_left", lambda pair, trio, chosen, *_: chosen)  # however quick this machine
    run("--grown", NETS[1], "--minutes", 0.05, "--out", tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert len(plan["steps"]) == len(plan["seconds"]) == 4
    assert plan["rounds"] == [0, 1, 2, 3]
    assert min(plan["seconds"]) > 0
    assert plan["seconds"][2] == plan["seconds"][3]  # one net, one crop
    assert len(plan["propagating"]) == 4


@pytest.mark.parametrize(("slow", "rounds"), [(1e6, [0, 1, 2, 3]), (1e-6, [0, 1])])
def test_a_moment_in_which_steps_were_timed_does_not_decide_all(tmp_path, monkeypatch, capsys, slow, rounds):
    """Steps that seemed a million times too slow, or too quick: so few rounds, or so many, until one is over."""
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(ladder, "LEAST", 1 if slow > 1 else 10**6)
    monkeypatch.setattr(ladder, "EPOCHS", 0)
    monkeypatch.setattr(ladder, "in_seconds", lambda *_: ([0, 1] if slow > 1 else [0, 1, 2, 3], 1e-4))
    timed, again = sl.Trainer.seconds_of_step, Pace._choose_again
    monkeypatch.setattr(sl.Trainer, "seconds_of_step", lambda *arguments: slow * timed(*arguments))
    monkeypatch.setattr(Pace, "_choose_again", lambda self, number, left: again(self, number, left + 60))
    out = tmp_path / "run"
    run("--grown", NETS[1], "--minutes", 0.05, "--out", out)
    plan = json.loads((out / "plan.json").read_text())
    assert plan["rounds"] == rounds
    assert len(plan["steps"]) == len(rounds)
    assert all(plan["seconds"][number] for number in rounds)
    assert f"{len(rounds)} rounds of {' and '.join(NETS[:len(rounds) // 2])} now, by what" in capsys.readouterr().err


def test_later_rounds_learn_from_labels_alone_of_one_view_of_twice_as_many_images(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(ladder, "LEAST", 1)
    monkeypatch.setattr(ladder, "EPOCHS", 0)
    begun, fit = [], sl.Trainer.fit

    def watched(self, method, pool, labeled, unlabeled):
        begun.append((method, unlabeled))
        return fit(self, method, pool, labeled, unlabeled)

    monkeypatch.setattr(sl.Trainer, "fit", watched)
    out = tmp_path / "run"
    run("--grown", NETS[1], "--steps", 11, "--out", out)
    assert [(type(method), unlabeled) for method, unlabeled in begun] == [
        (sl.LabeledSimCLR, 16), (sl.LabeledSimCLR, 16), (sl.SoftLabels, 32), (sl.SoftLabels, 32)]
    table = torch.from_numpy(np.load(out / "beliefs-3.npy"))
    said = begun[3][0].teacher.logits
    believed = table.sum(dim=1) > 0
    assert torch.equal(said.isnan().all(dim=1), ~believed)
    assert torch.equal(said[believed].softmax(dim=1), table[believed])
    assert json.loads((out / "summary.json").read_text())["images"] == 4 * (8 + 16) + 7 * (8 + 32)


def test_a_view_that_later_rounds_do_not_have_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(ladder, "LEAST", 1)
    monkeypatch.setattr(ladder, "EPOCHS", 0)
    with pytest.raises(UsageError, match="first"):
        run("--grown", NETS[1], "--steps", 11, "--out", tmp_path / "run", "--view", "first=eval")
    assert not (tmp_path / "run" / "round-0").exists()


def test_without_growing_there_are_the_first_nets_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(ladder, "LEAST", 1)
    monkeypatch.setattr(ladder, "EPOCHS", 0)
    run("--grown", "", "--steps", 11, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["steps"] == [5, 6]


def test_a_run_that_is_short_of_time_takes_the_small_net_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(module, "TRIO", (*(replace(each, net=ladder.SMALL) for each in GROWING[:2]), GROWING[1]))
    monkeypatch.setattr(rapid.Rapid, "_names", NETS)
    monkeypatch.setattr(ladder, "QUICK", 1e6)
    run("--net", "auto", "--minutes", 0.02, "--out", tmp_path / "run")
    assert ("of rapid_4_4_4 (--net takes another), in which there are no test images: these are read in the end; 3 of "
            "rapid_4_4_4 and rapid_4_4_8 where there is more time: labels between two take about "
            ) in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["net"] == "rapid_4_4_4"
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["rounds"][0] == 4
    assert sl.open(tmp_path / "run").predict(digits().images.pixels[:3]).probabilities.shape == (3, 10)


def test_a_run_by_the_clock_goes_on_from_the_small_net_to_the_first_and_resumes(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(module, "PAIR", GROWING)
    monkeypatch.setattr(module, "TRIO", (*(replace(each, net=ladder.SMALL) for each in GROWING[:2]),
                                         ladder.Round(crop=7, share=0.5, peak=1.0), GROWING[1]))
    monkeypatch.setattr(ladder, "in_seconds", lambda *_: ([4, 5, 6, 7], 0.01))
    monkeypatch.setattr(ladder, "in_seconds_left", lambda pair, trio, chosen, *_: chosen)  # however quick this machine
    monkeypatch.setattr(rapid.Rapid, "_names", NETS)
    run("--net", "auto", "--minutes", 0.05, "--out", out)
    plan, before = json.loads((out / "plan.json").read_text()), weights(out)
    assert len(plan["steps"]) == 4
    assert plan["seconds"][5] != plan["seconds"][6] == plan["seconds"][7]  # of the small net, and of the first one
    assert [json.loads((out / f"round-{number}" / "model.json").read_text())["net"] for number in range(4)] == [
        NETS[2], NETS[2], NETS[0], NETS[0]]
    assert yaml.safe_load((out / "config.yaml").read_text())["net"] == NETS[0]
    for number in (2, 3):
        shutil.rmtree(out / f"round-{number}")
    (out / "beliefs-3.npy").unlink()
    run("--net", "auto", "--minutes", 0.05, "--out", out, "--resume", "auto")
    assert weights(out) == before


def test_which_nets_there_are():
    assert rapid.Rapid()._names == ("rapid_64_128_256", "rapid_64_256_512", "rapid_32_64_128")
    assert rapid.Rapid("tiny_4", "")._names == ("tiny_4", "", "")
    assert [each.net for each in ladder.PAIR] == [ladder.FIRST] * 6 + [ladder.GROWN] * 7
    assert [each.net for each in ladder.TRIO] == [ladder.SMALL] * 6 + [ladder.FIRST] * 4 + [ladder.GROWN] * 7
