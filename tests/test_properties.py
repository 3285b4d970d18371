"""What must hold for any input: splits and manifests, what a mind changed about labels leaves, the reading of ranks,
schedules, and which of default, file and flag wins."""

import json
import math
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssl_lab import schedule
from ssl_lab.batch import At
from ssl_lab.command_line import parse
from ssl_lab.config import Settings
from ssl_lab.data import Ledger, Pool, Sampler
from ssl_lab.data.ledger import SPLIT
from ssl_lab.errors import UsageError

few = settings(max_examples=30)


# --- ledger ---

N = 7
RECORDS = st.lists(st.tuples(st.lists(st.integers(0, N - 1), unique=True, max_size=4), st.integers(-2, 5),
                             st.sampled_from(["oracle", "a person", "Jörg \"J\"\n"])), max_size=6)


@few
@given(records=RECORDS, undone=st.integers(0, 6))
def test_undoing_entries_is_never_having_written_them(records, undone, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "labels.jsonl"
    ledger, kept = Ledger(path), Ledger()
    for indices, label, source in records:
        ledger.append(indices, [label] * len(indices), source)
    undone = min(undone, len(records))
    for indices, label, source in reversed(records[len(records) - undone:]):
        entry = ledger.undo()
        assert entry.indices.tolist() == indices
        assert (entry.labels.tolist(), entry.source) == ([label] * len(indices), source)
    for indices, label, source in records[:len(records) - undone]:
        kept.append(indices, [label] * len(indices), source)
    for given_back in (ledger, Ledger(path)):
        assert np.array_equal(given_back.labels(N), kept.labels(N))
        assert [(e.indices.tolist(), e.labels.tolist(), e.source) for e in given_back.entries] == \
               [(e.indices.tolist(), e.labels.tolist(), e.source) for e in kept.entries]


@few
@given(records=RECORDS)
def test_what_a_ledger_has_written_never_changes(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "labels.jsonl"
    written = b""
    for indices, label, source in records:
        Ledger(path).append(indices, [label] * len(indices), source)
        if source == "a person":
            Ledger(path).undo()
        content = path.read_bytes()
        assert content.startswith(written)
        assert content.endswith(b"\n")
        written = content


@few
@given(garbage=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_a_ledger_or_refused_and_never_touched(garbage, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "labels.jsonl"
    Ledger(path).append([1], [2])
    header, entry = path.read_bytes().splitlines(keepends=True)
    for content in (garbage, header + garbage, header + garbage + b"\n" + entry):
        path.write_bytes(content)
        refused = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the last line is torn
            try:
                Ledger(path)
            except UsageError as error:
                refused = str(error)
        assert not refused or str(path) in refused
        assert path.read_bytes() == content


# --- splits and manifests ---

def pool_of(truth):
    truth = np.array(truth, dtype=np.int64)
    pixels = np.arange(len(truth) * 4, dtype=np.uint64).astype(np.uint8).reshape(-1, 1, 2, 2)
    return Pool.from_arrays(pixels, truth, class_names=("a", "b", "c"))


TRUTH = st.lists(st.integers(-1, 2), min_size=12, max_size=40).filter(lambda truth: {0, 1, 2} <= set(truth))
SPLITS = st.fixed_dictionaries({"seed": st.integers(0, 2**40)}, optional={
    "labels": st.integers(3, 12), "valid": st.sampled_from([0, 1, 2, 0.2, 0.5]),
    "balance": st.sampled_from(["class", "natural"]), "imbalance": st.sampled_from([1.0, 2.0, 10.0])})


def split(truth, arguments):
    try:
        return pool_of(truth).split(**arguments)
    except UsageError:  # too few images of a class, say
        assume(False)


@settings(max_examples=60)
@given(truth=TRUTH, arguments=SPLITS)
def test_every_row_has_one_place_and_no_label_leaks(truth, arguments):
    pool = split(truth, arguments)
    places = np.concatenate([pool.train, pool.valid, pool.test, pool.dropped])
    assert np.array_equal(np.sort(places), np.arange(len(truth)))
    assert set(pool.labeled) <= set(pool.train) >= set(pool.unlabeled)
    assert np.array_equal(pool.labels[pool.labeled], pool.truth[pool.labeled])
    hidden = np.setdiff1d(np.arange(len(pool)), pool.labeled)
    assert (pool.labels[hidden] == -1).all()
    assert (pool.truth[pool.valid] >= 0).all()
    if "labels" in arguments:
        assert len(pool.labeled) == arguments["labels"]


@settings(max_examples=60)
@given(truth=TRUTH, arguments=SPLITS, later=st.lists(st.integers(-2, 2), max_size=3))
def test_any_manifest_brings_its_split_back(truth, arguments, later, tmp_path_factory):
    pool = split(truth, arguments)
    pool.record(pool.train[:len(later)], later[:len(pool.train)])
    assume(not (pool.labels == -2).any())  # a manifest holds labels; what is ignored is the ledger's to keep
    file = tmp_path_factory.mktemp("manifest") / "split.json"
    pool.write_manifest(file)
    again = pool_of(truth).split(labeled=file)
    assert again.manifest()["hash"] == pool.manifest()["hash"]
    for part in ("train", "valid", "test", "dropped", "labeled", "unlabeled", "labels"):
        assert np.array_equal(getattr(again, part), getattr(pool, part))
    assert json.loads(file.read_text()) == pool.manifest(), "JSON keeps all of it"


@few
@given(truth=TRUTH, arguments=SPLITS, row=st.integers(0, 39))
def test_a_hash_sees_one_label_and_one_pixel(truth, arguments, row):
    pool = split(truth, arguments)
    before = pool.manifest()["hash"]
    assert replace(pool).manifest()["hash"] == before
    row = pool.train[row % len(pool.train)]
    pool.record([row], [(pool.labels[row] + 1) % 3 if pool.labels[row] >= 0 else 0])
    assert pool.manifest()["hash"] != before
    pool.ledger.undo()
    assert pool.manifest()["hash"] == before
    pixels = pool.images.pixels.copy()
    pixels[row, 0, 0, 0] ^= 1
    assert replace(pool, images=type(pool.images)(pixels)).manifest()["hash"] != before


@few
@given(truth=TRUTH, arguments=SPLITS)
def test_the_ledger_of_a_split_begins_with_it(truth, arguments, tmp_path_factory):
    split(truth, arguments)
    path = tmp_path_factory.mktemp("split") / "labels.jsonl"
    pool = pool_of(truth).split(**arguments, ledger=path)
    (entry,) = Ledger(path).entries
    assert entry.source == SPLIT
    assert np.array_equal(entry.indices, pool.labeled)
    assert pool_of(truth).split(**arguments, ledger=path).manifest() == pool.manifest()
    assert len(Ledger(path).entries) == 1, "opening it again adds nothing"


# --- sampler ---

@few
@given(size=st.integers(1, 30), world=st.sampled_from([1, 2, 3, 4]), rows=st.integers(1, 5), seed=st.integers(0, 2**40),
       steps=st.integers(1, 40))
def test_ranks_deal_the_stream_of_one_process(size, world, rows, seed, steps):
    """Any epoch is seen whole before any image is seen again, and each row by exactly one rank."""
    whole = np.concatenate([Sampler(range(size), world * rows, seed, "unlabeled").at(step) for step in range(steps)])
    ranks = [Sampler(range(size), world * rows, seed, "unlabeled") for _ in range(world)]
    dealt = [sampler.at(step)[rank * rows:(rank + 1) * rows] for step in range(steps)
             for rank, sampler in enumerate(ranks)]
    assert np.array_equal(np.concatenate(dealt), whole)
    seen = np.bincount(whole, minlength=size)
    assert seen.max() - seen.min() <= 1
    for start in range(0, len(whole) - size + 1, size):
        assert sorted(whole[start:start + size]) == list(range(size))


@few
@given(size=st.integers(1, 30), batch=st.integers(1, 9), other=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_stream_does_not_depend_on_how_it_is_cut(size, batch, other, seed):
    one, two = (np.concatenate([Sampler(range(size), cut, seed, "labeled").at(step) for step in range(60 // cut + 1)])
                for cut in (batch, other))
    length = min(len(one), len(two))
    assert np.array_equal(one[:length], two[:length])


# --- schedules ---

NUMBER = st.floats(-100, 100)
SIMPLE = st.one_of(
    st.builds(schedule.constant, NUMBER), st.builds(schedule.linear, NUMBER, NUMBER, st.floats(0.01, 1)),
    st.builds(schedule.cosine, NUMBER, NUMBER, st.floats(0.1, 4)), st.builds(schedule.cosine_7_16, NUMBER),
    st.builds(schedule.ramp_up, NUMBER, st.floats(0.01, 1)),
    st.tuples(NUMBER, NUMBER, st.integers(1, 5)).map(lambda abc: schedule.cyclical(*sorted(abc[:2]), abc[2])))
SCHEDULES = st.one_of(SIMPLE, st.builds(schedule.warm_up, st.floats(0.01, 0.99), SIMPLE | NUMBER))


@given(made=SCHEDULES, t=st.floats(0, 1))
def test_any_schedule_is_finite_and_is_read_from_how_it_prints(made, t):
    again = schedule.parse(repr(made))
    assert repr(again) == repr(made)
    assert again(t) == made(t)
    assert math.isfinite(made(t))


@given(start=NUMBER, end=NUMBER, t=st.floats(0, 1), until=st.floats(0.01, 1), cycles=st.integers(1, 5))
def test_schedules_stay_between_their_ends(start, end, t, until, cycles):
    low, high = sorted((start, end))
    slack = 1e-9 * (1 + high - low + abs(low))
    for made in (schedule.linear(start, end, until), schedule.cosine(start, end), schedule.cyclical(low, high, cycles),
                 schedule.warm_up(until, high) if until < 1 and low >= 0 else schedule.constant(high)):
        bottom = 0.0 if made.name.startswith("warm_up") else low
        assert bottom - slack <= made(t) <= high + slack
    assert schedule.linear(start, end, until)(0) == start
    assert schedule.linear(start, end, until)(1) == pytest.approx(end)
    assert schedule.cosine(start, end)(0) == pytest.approx(start)
    assert schedule.cosine(start, end)(1) == pytest.approx(end, abs=1e-9 * (1 + abs(start)))


@given(made=SCHEDULES, step=st.integers(0, 99), total=st.integers(100, 10**6))
def test_a_scalar_depends_on_the_fraction_alone(made, step, total):
    assert At(step, total).value(made) == made(step / total) == At(step * 3, total * 3, seed=5, rank=1).value(made)


TOKENS = st.lists(st.sampled_from(["linear(", "constant(", "cosine(", "warm_up(", "cyclical(", "0.5", "1", "-", "'a'",
                                   ", ", ")", "))", "until=", "cycles=", "[", "]", "**", "{", "}", "e999", "None", "x",
                                   "1e308", ".", "0"]), max_size=9).map("".join)


@given(text=st.text(max_size=20) | TOKENS)
def test_any_text_is_a_schedule_or_refused(text):
    try:
        made = schedule.parse(text)
    except UsageError as error:
        made, refused = None, str(error)
    assert made is not None or "is no schedule" in refused
    assert made is None or isinstance(made(0.5), float | int)


@pytest.mark.parametrize("text", ["constant('a')", "constant([])", "constant(None)", "warm_up(0.5, 'a')",
                                  "constant(1e999)"])
def test_what_gives_no_number_is_no_schedule(text):
    with pytest.raises(UsageError, match="is no schedule"):
        schedule.parse(text)


# --- settings: default, file, flag ---

@dataclass
class Example(Settings):
    view: Literal["weak", "strong"] = "weak"
    threshold: float = 0.95


WORD = st.text("abcxyz-_./ 0", min_size=1, max_size=8).filter(lambda s: s.strip() == s and not s.startswith("-"))
VALUES = {"data": WORD, "labels": st.integers(1, 10**6), "valid": st.floats(0, 1), "seed": st.integers(0, 2**60),
          "threshold": st.floats(-1e6, 1e6), "view": st.sampled_from(["weak", "strong"]), "pretrained": st.booleans(),
          "compile": st.sampled_from(["on", "off"]), "steps": st.integers(1, 10**6)}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def flags(values):
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


@settings(max_examples=60)
@given(in_file=SOME, in_flags=SOME, place=st.integers(0, 20))
def test_a_flag_wins_over_the_file_and_the_file_over_the_default(in_file, in_flags, place, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "merge.yaml"
    file.write_text(yaml.safe_dump(in_file))
    in_flags = {"steps": 5} | in_flags if "steps" not in in_file else in_flags
    words = flags(in_flags)
    starts = [i for i in range(len(words) + 1) if i == len(words) or words[i].startswith("--")]
    at = starts[place % len(starts)]
    expected = Example(**{"steps": None} | in_file | in_flags)
    assert parse(Example, [*words[:at], "--config", str(file), *words[at:]]) == expected
    assert parse(Example, flags({"steps": 5} | in_flags)) == Example(**{"steps": 5} | in_flags)
    again = tmp_path_factory.getbasetemp() / "again.yaml"
    again.write_text(yaml.safe_dump(expected.plain()))
    assert parse(Example, ["--config", str(again)]) == expected, "what a run records repeats it"


@settings(max_examples=40)
@given(content=st.dictionaries(st.sampled_from([field.name for field in fields(Example)]) | st.text(max_size=5),
                               st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
                               | st.lists(st.integers(), max_size=2), max_size=3))
def test_any_file_is_read_or_refused_in_one_line(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump({"steps": 1} | content))
    try:
        read, refused = parse(Example, ["--config", str(file)]), ""
    except UsageError as error:
        read, refused = None, str(error)
    assert "\n" not in refused
    assert read is None or (isinstance(read.seed, int) and isinstance(read.out, Path))
