"""The loop: what queries see, what survives a kill, what people may answer; and `ssl-lab query`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import flat_net
from torch import nn

from ssl_lab.active.arrays import arrays_of, version_of
from ssl_lab.active.command import query_command
from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people.oracle import FromFile, Truth
from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries.base import Query, ScoreQuery, rng
from ssl_lab.batch import At
from ssl_lab.data import Ledger, Pool, load
from ssl_lab.engine import Runtime, accuracy
from ssl_lab.errors import UsageError
from ssl_lab.nets import net
from ssl_lab.seeds import generator
from ssl_lab.views import Eval

CPU = {"device": "cpu", "precision": "fp32"}


class Any(Query):
    """At random."""

    name = "any"

    def select(self, view, budget, seed):
        return rng(seed, "any").permutation(view.candidates)[:budget]


class Unsure(ScoreQuery):
    """Least confident first."""

    name = "unsure"
    needs = frozenset({"probs"})

    def __init__(self, power=1.0):
        self.power = power

    def scores(self, view, rows):
        return (1 - view.need("probs").max(axis=1)[rows]) ** self.power


class Far(Query):
    """The longest embeddings first; needs embeddings alone. Keeps what it saw."""

    name = "far"
    needs = frozenset({"embeddings"})

    def select(self, view, budget, seed):
        self.seen = view.need("embeddings")
        lengths = np.linalg.norm(self.seen, axis=1)[view.candidates]
        return view.candidates[np.argsort(-lengths, kind="stable")[:budget]]


class ByClass(Any):
    """Says that it uses the classes of labeled rows."""

    name = "by_class"
    uses_classes = True


@pytest.fixture
def pool():
    return load("digits").split(labels=10, seed=0)


class Fit:
    """Trains nothing: a net that differs by the number of labels. Counts its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, pool, round):
        self.calls.append((round, len(pool.labeled)))
        made = flat_net()
        with torch.no_grad():
            made.head.weight += 0.1 * torch.randn(10, 16, generator=generator(len(pool.labeled)))
        return made


def loop(pool, out, query=None, oracle=None, fit=None, **settings):
    settings = {"budget": 5, "rounds": 3, **CPU} | settings
    return ActiveLoop(pool, fit or Fit(), query or Unsure(), oracle, out=out, **settings)


# What queries see

@pytest.fixture(scope="module")
def runtime():
    return Runtime.start("cpu", "fp32")


def test_arrays_are_the_nets(digits, runtime):
    made = net("tiny_4", classes=10, style=digits.style, seed=0)
    rows = np.array([700, 3, 12])
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    found = arrays_of(made, digits, rows, ("embeddings", "probs", "head_weight", "head_bias"), runtime, batch=2)
    assert made.training
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    made.eval()
    with torch.no_grad():
        pixels = Eval(digits.style)(digits.images.take(rows), At(0, 1).draw("eval", 3))
        output = made(pixels)
    np.testing.assert_allclose(found["embeddings"], output.features, atol=1e-5)
    np.testing.assert_allclose(found["probs"], output.logits.softmax(1), atol=1e-5)
    np.testing.assert_array_equal(found["head_weight"], made.head.weight.detach())
    np.testing.assert_array_equal(found["head_bias"], made.head.bias.detach())
    assert all(array.dtype == np.float32 for array in found.values())
    arrays_of(made, digits, rows, ("probs",), runtime)
    assert not made.training


def test_dropout_samples_drop_features(digits, runtime):
    made, rows = flat_net(dropout=0.9), np.arange(20)  # the net's own dropout stays off
    found = arrays_of(made, digits, rows, ("embeddings", "probs", "mc_probs"), runtime, seed=5, samples=7, dropout=0.25)
    assert found["mc_probs"].shape == (20, 7, 10)
    keep = (torch.rand(7, 16, generator=generator(5, "mc_dropout")) >= 0.25).numpy()
    assert 0.6 < keep.mean() < 0.9
    weight, bias = made.head.weight.detach().double().numpy(), made.head.bias.detach().double().numpy()
    for sample in range(7):  # the same mask for all rows
        for row in range(20):
            logits = weight @ (found["embeddings"][row].astype(np.float64) * keep[sample] / 0.75) + bias
            p = np.exp(logits - logits.max())
            np.testing.assert_allclose(found["mc_probs"][row, sample], p / p.sum(), atol=1e-5)
    assert np.ptp(found["mc_probs"], axis=1).max() > 0.01
    whole = arrays_of(made, digits, rows, ("probs", "mc_probs"), runtime, dropout=0.0, samples=2)
    np.testing.assert_allclose(whole["mc_probs"][:, 1], whole["probs"], atol=1e-6)


def test_arrays_know_their_names(digits, runtime):
    with pytest.raises(UsageError, match="unknown array 'logits'"):
        arrays_of(flat_net(), digits, np.arange(2), ("logits",), runtime)


def test_versions_tell_weights_apart():
    one, other = flat_net(), flat_net()
    assert version_of(one) == version_of(other)
    with torch.no_grad():
        other.head.bias[3] += 1e-3
    assert version_of(one) != version_of(other)
    other.head.bias.data.copy_(one.head.bias.data)
    assert version_of(one) == version_of(other)


# A whole run

def test_a_run_asks_and_learns(pool, tmp_path):
    fit = Fit()
    done = loop(pool, tmp_path, oracle=Truth(pool), fit=fit)
    records = done.run()
    assert done.finished
    assert fit.calls == [(0, 10), (1, 15), (2, 20), (3, 25)]
    assert [(record.round, record.labels, len(record.ids)) for record in records] == [
        (0, 10, 5), (1, 15, 5), (2, 20, 5), (3, 25, 0)]
    asked = [i for record in records for i in record.ids]
    assert len(set(asked)) == 15
    assert not set(asked) & set(pool.labeled.tolist())
    np.testing.assert_array_equal(done.pool.labels[asked], pool.truth[asked])
    np.testing.assert_array_equal(Ledger(tmp_path / "labels.jsonl").labels(len(pool)), done.pool.labels)
    assert len({record.version for record in records}) == 4
    last = fit(done.pool, 3)
    assert records[-1].accuracy == accuracy(last, pool, pool.test, done.runtime)
    assert records[-1].version == version_of(last)
    assert records[0].seconds.keys() == {"fit", "arrays", "query"}


def test_a_round_is_the_query_of_the_arrays(pool, tmp_path):
    record = loop(pool, tmp_path, oracle=Truth(pool)).run()[0]
    arrays = arrays_of(Fit()(pool, 0), pool, pool.train, ("probs",), Runtime.start(**CPU))
    doubt = 1 - arrays["probs"].max(axis=1)
    doubt[np.isin(pool.train, pool.labeled)] = -1
    best = np.argsort(-doubt)[:5]
    assert list(record.ids) == pool.train[best].tolist()
    assert record.scores == pytest.approx(doubt[best])
    assert record.confidence == pytest.approx(1 - doubt[best])
    assert list(record.predicted) == arrays["probs"][best].argmax(axis=1).tolist()
    assert record.query == "unsure"


def test_a_finished_loop_trains_no_more(pool, tmp_path):
    before = loop(pool, tmp_path, oracle=Truth(pool)).run()
    fit = Fit()
    again = loop(pool, tmp_path, oracle=Truth(pool), fit=fit)
    assert again.run() == before
    assert fit.calls == []
    more = loop(pool, tmp_path, oracle=Truth(pool), fit=fit, rounds=4).run()
    assert [len(record.ids) for record in more] == [5, 5, 5, 5, 0]
    assert more[:3] == before[:3]
    assert fit.calls == [(3, 25), (4, 30)]


def test_an_oracle_that_has_no_answers_yet_ends_the_run(pool, tmp_path):
    known = {}
    waiting = loop(pool, tmp_path, oracle=lambda asked: {i: known[i] for i in asked.ids.tolist() if i in known})
    records = waiting.run()
    assert len(records) == 1
    first, second, *rest = waiting.pending.tolist()
    known |= {first: 3, second: 4}
    waiting.run()
    assert waiting.pending.tolist() == rest
    known |= dict.fromkeys(rest, 5)
    assert [len(record.ids) for record in waiting.run()] == [5, 5]
    record = waiting.records[-1]
    text = waiting.write_asked().read_text().splitlines()
    assert text == ["id,path,stands_for,label", *(
        f"{i},,{record.stands_for[record.ids.index(i)]}," for i in waiting.pending.tolist())]


# Kills

class Killed(BaseException):
    pass


def dying(pool, answers):
    """Yields so many answers, then dies."""
    truth, left = Truth(pool), [answers]

    def oracle(asked):
        for i, answer in truth(asked).items():
            if not left[0]:
                raise Killed
            left[0] -= 1
            yield i, answer

    return oracle


@pytest.mark.parametrize("answers", [0, 3, 5, 8, 14])
def test_a_kill_in_the_middle_of_a_round_changes_nothing(pool, tmp_path, answers):
    whole = loop(pool, tmp_path / "whole", query=Any(), oracle=Truth(pool), seed=1).run()
    cut = loop(pool, tmp_path / "cut", query=Any(), oracle=dying(pool, answers), seed=1)
    with pytest.raises(Killed):
        cut.run()
    fit = Fit()
    resumed = loop(load("digits").split(labels=10, seed=0), tmp_path / "cut", query=Any(), oracle=Truth(pool), fit=fit,
                   seed=1)
    assert (resumed.pool.labels >= 0).sum() == 10 + answers  # the answers that were given count
    asked = [i for record in whole for i in record.ids]
    assert resumed.ask().tolist() == asked[answers : 5 * (answers // 5 + 1)]
    assert fit.calls == []  # the round was drawn already
    records = resumed.run()
    assert [record.ids for record in records] == [record.ids for record in whole]
    assert [record.version for record in records] == [record.version for record in whole]
    np.testing.assert_array_equal(resumed.pool.labels[asked], pool.truth[asked])


def test_a_kill_while_training_trains_again(pool, tmp_path):
    def fit(pool, round):
        if round == 1:
            raise Killed
        return Fit()(pool, round)

    with pytest.raises(Killed):
        loop(pool, tmp_path, oracle=Truth(pool), fit=fit).run()
    again = Fit()
    loop(pool, tmp_path, oracle=Truth(pool), fit=again).run()
    assert again.calls == [(1, 15), (2, 20), (3, 25)]


# People's answers

def test_ask_is_the_same_until_told(pool, tmp_path):
    fit = Fit()
    people = loop(pool, tmp_path, fit=fit)
    ids = people.ask()
    assert len(ids) == 5
    assert people.ask(2).tolist() == ids[:2].tolist()
    people.tell(ids[[3, 0]], [7, 8])  # partly, out of order
    assert people.ask().tolist() == ids[[1, 2, 4]].tolist()
    assert loop(pool, tmp_path, fit=fit).ask(1).tolist() == [ids[1]]
    assert fit.calls == [(0, 10)]
    people.tell(ids[[4, 2, 1]], ["1", 2, 3])  # a name, and numbers
    assert people.pool.labels[ids].tolist() == [8, 3, 2, 7, 1]
    assert not set(people.ask().tolist()) & set(ids.tolist())
    assert fit.calls[-1] == (1, 15)
    with pytest.raises(UsageError, match="expected at least 1"):
        people.ask(0)


def durable(pool, out):
    """What a process that starts now would read."""
    fresh = loop(pool, out)
    return fresh.pool.labels, fresh.pending.tolist(), fresh.abstained.tolist()


def test_relabel_ignore_abstain_take_back(pool, tmp_path):
    people = loop(pool, tmp_path)
    a, b, c, d, e = people.ask().tolist()

    people.tell([a, b, c], [1, -2, None])
    labels, pending, abstained = durable(pool, tmp_path)
    assert (labels[a], labels[b], labels[c]) == (1, -2, -1)
    assert (pending, abstained) == ([d, e], [c])

    people.tell([a, c], [4, 6])  # relabel; an answer after all
    labels, pending, abstained = durable(pool, tmp_path)
    assert (labels[a], labels[c]) == (4, 6)
    assert (pending, abstained) == ([d, e], [])

    people.tell([a, d], [-1, 5])  # take back
    labels, pending, _ = durable(pool, tmp_path)
    assert labels[a] == -1
    assert pending == [a, e]

    people.tell([a, e], [None, None])
    assert not len(people.pending)
    others = people.ask()
    assert not {a, b, e} & set(others.tolist())  # abstained and ignored images are not chosen again
    assert people.records[1].labels == 12
    assert b not in people.pool.unlabeled
    assert a in people.pool.unlabeled  # but those without an answer still serve training

    anything = int(np.setdiff1d(pool.train, [*others, a, b, c, d, e])[0])
    people.tell([anything], [9])  # unasked
    assert durable(pool, tmp_path)[0][anything] == 9


@pytest.mark.parametrize(("ids", "labels", "words"), [
    ([0, 0], [1, 1], "no id twice"),
    ([0, 1], [1], "2 ids for 1 labels"),
    ([0, "test"], [1, 1], "is not a train row"),
    ([0, 1], [1, 10], "label 10 is no answer; expected a class number below 10"),
    ([0, 1], [1, -3], "label -3 is no answer"),
    ([0, 1], [1, 0.9], "label 0.9 is no answer"),
    ([0, 1], [1, float("nan")], "label nan is no answer"),
    ([0, 1], [None, "seven"], "unknown class 'seven'.*--new-classes .new_classes=True"),
])
def test_a_bad_tell_records_nothing(pool, tmp_path, ids, labels, words):
    people = loop(pool, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ids = [pool.test[0] if i == "test" else pool.train[i] for i in ids]
    with pytest.raises(UsageError, match=words):
        people.tell(ids, labels)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not len(people.abstained)


def test_a_new_class(pool, tmp_path):
    people = loop(pool, tmp_path, new_classes=True)
    ids = people.ask()
    people.tell(ids[:2], ["letter", "3"])
    people.tell(ids[2:], ["letter", "blank", "blank"])
    assert people.pool.class_names[10:] == ("letter", "blank")
    assert people.pool.labels[ids].tolist() == [10, 3, 10, 11, 11]
    again = loop(load("digits").split(labels=10, seed=0), tmp_path)  # they stay, whoever comes
    assert again.pool.class_names == people.pool.class_names
    assert again.pool.labels[ids].tolist() == [10, 3, 10, 11, 11]
    with pytest.raises(UsageError, match="unknown class 'leter'"):
        again.tell(ids[:1], ["leter"])

    classes = []
    people.fit = lambda pool, round: classes.append(pool.classes) or Fit()(pool, round)
    people.ask()
    assert classes == [12]


# Answers that are corrected where they were given

def test_a_correction_of_an_answer_that_was_read_is_taken(pool, tmp_path):
    path = tmp_path / "answers.csv"
    people = loop(pool, tmp_path / "loop", oracle=FromFile(path, pool), new_classes=True)
    a, b, c, d, e = people.ask().tolist()
    never = int(np.setdiff1d(pool.train, [*pool.labeled, a, b, c, d, e])[0])

    def say(**labels):
        ids = {"a": a, "b": b, "c": c, "d": d, "n": never}
        path.write_text("id,label\n" + "".join(f"{ids[key]},{label}\n" for key, label in labels.items()))
        again = loop(pool, tmp_path / "loop", oracle=FromFile(path, pool), new_classes=True)
        again.run()
        return again.corrected, [again.pool.labels[i] for i in (a, b, c, d)], again

    assert say(a=1, b=2, c="abstain", n=4)[:2] == ({}, [1, 2, -1, -1])
    corrected, labels, again = say(a=7, b="ignore", c=3, n=4)
    assert corrected == {a: ("1", "7"), b: ("2", "ignore"), c: ("abstain", "3")}
    assert labels == [7, -2, 3, -1]
    assert again.pool.labels[never] == -1  # nobody asked for it
    assert {entry.source for entry in again.pool.ledger.entries} == {"split", "asked in round 0",
                                                                     "asked, corrected in round 0"}
    assert say(a=7, b="ignore", c=3)[0] == {}
    corrected, labels, again = say(a="abstain", d=5)  # b is said no more: it stays
    assert (corrected, labels) == ({a: ("7", "abstain")}, [-1, -2, 3, 5])
    assert a in again.abstained
    again.tell([a], [8])  # over what the file says
    corrected, labels, again = say(a="abstain", d="letter")
    assert (corrected, labels[0], labels[3]) == ({d: ("5", "letter")}, 8, 10)


def test_a_program_is_not_asked_for_corrections(pool, tmp_path):
    questions = []
    people = loop(pool, tmp_path, oracle=lambda asked: questions.append(asked.ids.tolist()) or {asked.ids[0]: 1})
    people.run()
    people.run()
    asked = [i for record in people.records for i in record.ids]
    assert questions == [asked[place:5 * (place // 5 + 1)] for place in range(len(questions))]


# Classes that are renamed, or numbered otherwise

PIXELS = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)


def test_a_renamed_class_is_refused(pool, tmp_path):
    small = Pool.from_arrays(PIXELS, np.arange(60) % 3, class_names=("cat", "dog", "owl"))
    people = loop(small.split(labels=6), tmp_path, Any())
    people.tell(people.ask()[:1], ["owl"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for names in (("zebra_cat", "dog", "owl"), ("dog", "owl", "zebra")):
        with pytest.raises(UsageError, match=f"labels of the classes cat, dog, owl; arrays now has {', '.join(names)}"):
            loop(replace(small, class_names=names).split(labels=6), tmp_path, Any())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("names", [("owl", "cat", "dog"), ("ant", "cat", "dog", "owl"), ("emu", "owl", "dog", "cat")])
def test_classes_in_another_order_keep_their_labels(tmp_path, names):
    """The same names, with one that an answer founded, with one that is new: a label stays what it was by name."""
    words = np.array(["cat", "dog", "owl"])[np.arange(60) % 3]

    def made(order):
        truth = [order.index(word) for word in words]
        return Pool.from_arrays(PIXELS, truth, class_names=order).split(labeled=range(9))

    def by_name(pool):
        return {i: pool.class_names[label] for i, label in enumerate(pool.labels) if label >= 0}

    def fit(pool, round):
        net = flat_net()
        net.head.bias.data[pool.classes:] = -1e9
        return net

    first = loop(made(("cat", "dog", "owl")), tmp_path, Any(), fit=fit, new_classes=True)
    a, b, *_ = first.ask().tolist()
    first.tell([a, b], ["ant", "dog"])
    later = made(names)
    again = loop(later, tmp_path, Any(), oracle=Truth(later), fit=fit, new_classes=True)
    assert by_name(again.pool) == by_name(first.pool)
    assert by_name(again.pool)[a] == "ant"
    assert again.pool.class_names[:4] == ("cat", "dog", "owl", "ant")
    np.testing.assert_array_equal(np.array(again.pool.class_names)[again.pool.truth], words)
    again.run()
    said = by_name(again.pool)
    assert all(said[i] == words[i] for i in said if i not in (a, b))  # an oracle's numbers are those of its own pool
    last = loop(made(("cat", "dog", "owl") if "emu" not in names else names), tmp_path, Any(), new_classes=True)
    assert by_name(last.pool) == said


# Before there are labels, and where embeddings come from

def test_words_that_are_no_class(pool, tmp_path):
    people = loop(pool, tmp_path, new_classes=True)
    a, b, *_ = people.ask().tolist()
    people.tell([a, b], ["ignore", "abstain"])
    assert people.pool.labels[a] == -2
    assert people.abstained.tolist() == [b]
    assert people.pool.classes == 10
    named = replace(pool, class_names=(*pool.class_names[:9], "ignore"))
    people = loop(named, tmp_path / "named")
    a, *_ = people.ask().tolist()
    people.tell([a], ["ignore"])
    assert people.pool.labels[a] == 9


def test_classes_are_founded_one_by_one(tmp_path):
    bare = Pool.from_arrays(np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8),
                            np.full(40, -1))
    fit = Fit()
    people = loop(bare, tmp_path, Any(), fit=fit, budget=2, new_classes=True)
    for names in (["cat", "cat"], ["dog", "cat"]):
        ids = people.ask()
        people.tell(ids[:1], names[:1])
        people.tell(ids[1:], names[1:])
        assert not fit.calls  # what says only "cat" teaches nothing
    assert people.pool.class_names == ("cat", "dog")
    people.ask()
    assert fit.calls == [(2, 4)]


def test_what_people_wrote_into_asked_csv_stays(pool, tmp_path):
    people = loop(pool, tmp_path)
    a, b, *_ = people.ask().tolist()
    path = people.write_asked()
    count = people.records[-1].stands_for[0]
    path.write_text(path.read_text().replace(f"{a},,{count},", f"{a},,{count},3"))
    people.tell([b], [4])
    assert f"{a},,{count},3\n" in people.write_asked().read_text()
    assert f"{b}," not in path.read_text()


def test_more_than_a_thousand_rounds_stay_in_order(pool, tmp_path):
    people = loop(pool, tmp_path, rounds=3000)
    people.ask()
    record = (tmp_path / "round-000.json").read_text()
    for number in (999, 1000):
        (tmp_path / f"round-{number}.json").write_text(record.replace('"round": 0', f'"round": {number}'))
    assert [record.round for record in loop(pool, tmp_path, rounds=3000).records] == [0, 999, 1000]


def test_samples_that_memory_cannot_hold(pool, runtime, monkeypatch):
    monkeypatch.setattr("ssl_lab.active.arrays.LIMIT", 1000)
    with pytest.raises(UsageError, match="mc_probs of 30 rows, 20 samples and 10 classes are 6000 numbers"):
        arrays_of(flat_net(), pool, pool.train[:30], ("mc_probs",), runtime)


def test_a_cold_start_sees_a_backbone(tmp_path):
    pool = load("digits").split(labeled=[])
    fit, first = Fit(), Far()
    cold = loop(pool, tmp_path, oracle=Truth(pool), fit=fit, first=first, initial=12, backbone=flat_net())
    records = cold.run()
    assert [(record.labels, len(record.ids), record.query) for record in records] == [
        (0, 12, "far"), (12, 5, "unsure"), (17, 5, "unsure"), (22, 0, None)]
    assert fit.calls == [(1, 12), (2, 17), (3, 22)]
    expected = arrays_of(flat_net(), pool, pool.train, ("embeddings",), cold.runtime)["embeddings"]
    np.testing.assert_array_equal(first.seen, expected)
    longest = pool.train[np.argsort(-np.linalg.norm(expected, axis=1), kind="stable")[:12]]
    assert records[0].ids == tuple(longest.tolist())
    assert records[0].accuracy is None
    assert records[0].version == version_of(flat_net())
    assert records[0].predicted is None


def test_embeddings_of_a_backbone_in_every_round(pool, tmp_path):
    query, other = Far(), flat_net()
    nn.init.normal_(other.backbone.layers[1].weight, generator=generator(1))
    frozen = loop(pool, tmp_path, query=query, oracle=Truth(pool), backbone=other, embeddings="backbone", rounds=2)
    frozen.run()
    np.testing.assert_array_equal(
        query.seen, arrays_of(other, pool, pool.train, ("embeddings",), frozen.runtime)["embeddings"])


def test_what_cannot_be_had_is_said_at_once(pool, tmp_path):
    bare = load("digits").split(labeled=[])
    with pytest.raises(UsageError, match="unsure needs probs, which cannot be had before there are labels"):
        loop(bare, tmp_path / "a", backbone=flat_net())
    with pytest.raises(UsageError, match="far needs embeddings, and there is no trained net: give a backbone"):
        loop(bare, tmp_path / "b", query=Far())
    both = type("Both", (Far,), {"name": "both", "needs": frozenset({"embeddings", "head_weight"})})()
    with pytest.raises(UsageError, match="needs the head on its embeddings"):
        loop(pool, tmp_path / "c", query=both, backbone=flat_net(), embeddings="backbone")
    with pytest.raises(UsageError, match="needs an oracle"):
        loop(pool, tmp_path / "d").run()
    learns = type("Learns", (Any,), {"name": "learns", "needs": frozenset({"predicted_loss"})})()
    with pytest.raises(UsageError, match="train with a method that predicts its loss"):
        loop(pool, tmp_path / "e", query=learns).ask()


def test_more_than_there_is(pool, tmp_path):
    small, fit = replace(pool, train=np.union1d(pool.labeled, pool.train[:25])), Fit()
    left = len(small.train) - 10 - 15
    assert 0 < left < 15
    done = loop(small, tmp_path, fit=fit, budget=15, oracle=Truth(small))
    assert [(record.round, record.labels, len(record.ids)) for record in done.run()] == [
        (0, 10, 15), (1, 25, left), (2, 25 + left, 0)]  # the last batch is what is left; then it is measured, and ends
    assert done.finished
    assert len(fit.calls) == 3
    again = loop(small, tmp_path, fit=fit, budget=15, oracle=Truth(small))
    assert again.run() == done.records
    assert len(fit.calls) == 3
    with pytest.raises(UsageError, match="budget=0"):
        loop(pool, tmp_path, budget=0)


def test_changed_settings_are_named(pool, tmp_path):
    loop(pool, tmp_path)
    with pytest.raises(UsageError, match=r"budget: 5 -> 6\)"):
        loop(pool, tmp_path, budget=6)
    with pytest.raises(UsageError, match=r"'power': 1.0.* -> .*'power': 2.0"):
        loop(pool, tmp_path, query=Unsure(2.0))
    with pytest.raises(UsageError, match="began with other labels"):
        loop(load("digits").split(labels=20, seed=0), tmp_path)
    with pytest.raises(UsageError, match="8x8 px then, 16x16 px now"):
        loop(load("digits", image_size=16).split(labels=10, seed=0), tmp_path)


def test_a_pool_with_a_ledger_keeps_it(tmp_path):
    pool = load("digits").split(labels=10, seed=0, ledger=tmp_path / "mine.jsonl")
    people = loop(pool, tmp_path / "loop")
    people.tell(people.ask()[:1], [3])
    assert len(Ledger(tmp_path / "mine.jsonl").entries) == 2
    assert not (tmp_path / "loop" / "labels.jsonl").exists()


# Names and the command

def test_queries_of_ones_own(tmp_path, monkeypatch):
    made = make_query("test_active_loop:Unsure(power=2.0)")
    assert (made.name, made.power) == ("unsure", 2.0)
    (tmp_path / "here.py").write_text("from ssl_lab import Query\nclass Mine(Query):\n    name = 'mine'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert make_query("here:Mine").name == "mine"
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'tau'; its arguments are \(power\)"):
        make_query("test_active_loop:Unsure(tau=1)")
    with pytest.raises(UsageError, match="No module named 'nowhere'"):
        make_query("nowhere:Mine")
    with pytest.raises(UsageError, match="has no attribute 'Yours'"):
        make_query("here:Yours")
    with pytest.raises(UsageError, match="is not a subclass"):
        make_query("test_active_loop:Fit")


def test_queries_within_queries(tmp_path):
    np.save(tmp_path / "costs.npy", np.arange(1.0, 6.0))
    made = make_query("without_duplicates(prefilter(margin, test_active_loop:Far, factor=3), threshold=.9)")
    assert (made.name, made.threshold, made.query.factor) == ("without_duplicates", 0.9, 3)
    assert (made.query.first.name, made.query.then.name) == ("margin", "far")
    assert make_query(f"cost_aware(entropy, '{tmp_path / 'costs.npy'}')").cost.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("text", "says"), [
    ("badge(", "describes no query"), ("", "describes no query"), ("1 + 1", "describes no query"),
    ("prefilter(margin)", "missing a required argument: 'then'; its arguments are [(]first, then, factor[)]"),
    ("prefilter(margin, nothing)", "unknown query 'nothing'"),
    ("prob_cover(1 + margin)", "1 [+] margin is no argument"),
    ("cost_aware(margin, 'absent.npy')", "No such file"), ("power(**margin)", "[*][*]"),
])
def test_texts_that_describe_no_query_say_why(text, says):
    with pytest.raises(UsageError, match=says):
        make_query(text)


@pytest.fixture
def arrays(tmp_path):
    """Far's choice of 6 rows is 5, 4, 3 ..."""
    np.save(tmp_path / "e.npy", np.arange(6, dtype=np.float64)[:, None] * np.ones((1, 3)))
    return tmp_path


def choose(folder, capsys, **arguments):
    query_command("test_active_loop:Far", embeddings=folder / "e.npy", **{"budget": 2} | arguments)
    return [int(line) for line in capsys.readouterr().out.split()]


def test_arrays_in_ids_out(arrays, capsys):
    assert choose(arrays, capsys) == [5, 4]
    for name, content in (("l.txt", "5\n3\n"), ("l.csv", "id,label\n5,0\n3,1\n"), ("m.csv", "5,0\n3,1\n"),
                          ("l.json", "[5, 3]"), ("m.json", '{"5": 0, "3": 1}')):
        (arrays / name).write_text(content)
        assert choose(arrays, capsys, labeled=arrays / name) == [4, 2], name
    np.save(arrays / "l.npy", np.array([5, 3]))
    assert choose(arrays, capsys, labeled=arrays / "l.npy", ignored=arrays / "l.txt", budget=1) == [4]
    np.save(arrays / "m.npy", np.array([[5, 0], [3, 1]]))
    assert choose(arrays, capsys, labeled=arrays / "m.npy", budget=4) == [4, 2, 1, 0]
    (arrays / "empty.txt").write_text("")
    assert choose(arrays, capsys, labeled=arrays / "empty.txt") == [5, 4]


@pytest.mark.parametrize(("name", "read"), [
    ("o.npy", lambda path: np.load(path).tolist()), ("o.json", lambda path: json.loads(path.read_text())),
    ("o.txt", lambda path: [int(line) for line in path.read_text().split()]),
    ("o.csv", lambda path: [int(line) for line in path.read_text().splitlines()[1:]])])
def test_ids_are_written(arrays, capsys, name, read):
    assert choose(arrays, capsys, out=arrays / "new" / name) == []
    assert read(arrays / "new" / name) == [5, 4]


def test_fewer_rows_than_the_budget(arrays, capsys):
    (arrays / "l.txt").write_text("5\n3\n")
    query_command("test_active_loop:Far", 9, embeddings=arrays / "e.npy", labeled=arrays / "l.txt")
    said = capsys.readouterr()
    assert said.out.split() == ["4", "2", "1", "0"]
    assert said.err == "note: 4 rows are left without a label, fewer than --budget 9: all of them are chosen\n"
    (arrays / "l.txt").write_text("".join(f"{i}\n" for i in range(6)))
    assert choose(arrays, capsys, labeled=arrays / "l.txt") == []
    with pytest.raises(UsageError, match="budget"):
        choose(arrays, capsys, budget=0)


def test_the_classes_of_labeled_rows(arrays, capsys):
    (arrays / "ids.txt").write_text("1\n2\n")
    (arrays / "both.txt").write_text("1,0\n2,4\n")
    arguments = {"budget": 2, "embeddings": arrays / "e.npy"}
    with pytest.raises(UsageError, match=r"by_class uses the classes of labeled rows.*write row,class"):
        query_command("test_active_loop:ByClass", labeled=arrays / "ids.txt", **arguments)
    query_command("test_active_loop:ByClass", labeled=arrays / "both.txt", **arguments)
    query_command("test_active_loop:ByClass", **arguments)


@pytest.mark.parametrize(("content", "words"), [
    ("6\n", "names row 6, but there are 6 rows"), ("1\n1\n", "more than once"), ("1,2,3\n", r"shape \(1, 3\)"),
    ("0,-1\n", "the class -1; expected 0 or more"), ("1\nx\n", "cannot read rows")])
def test_bad_rows(arrays, capsys, content, words):
    (arrays / "l.txt").write_text(content)
    with pytest.raises(UsageError, match=words):
        choose(arrays, capsys, labeled=arrays / "l.txt")


def test_bad_arrays(arrays, capsys):
    with pytest.raises(UsageError, match=r"cannot read probs from .*no.npy: No such file"):
        choose(arrays, capsys, probs=arrays / "no.npy")
    np.save(arrays / "whole.npy", np.arange(6))
    with pytest.raises(UsageError, match="holds int64; expected floats"):
        choose(arrays, capsys, predicted_loss=arrays / "whole.npy")
    with pytest.raises(UsageError, match="give the arrays of the pool"):
        query_command("test_active_loop:Far", 2)
    with pytest.raises(UsageError, match=r"ends in \.txt, \.npy, \.csv or \.json"):
        choose(arrays, capsys, out=arrays / "o.parquet")
