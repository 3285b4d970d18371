"""The label ledger: order, undo, durability, and what a kill in the middle of a write leaves."""

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from forked import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import finish

from ssl_lab.data import Ledger
from ssl_lab.errors import UsageError

N = 6
ENTRIES = st.lists(st.lists(st.tuples(st.integers(0, N - 1), st.integers(-2, 9)), max_size=3), max_size=3)
STEPS = st.lists(st.one_of(st.lists(st.tuples(st.integers(0, N - 1), st.integers(-2, 9)), max_size=4),
                           st.just("undo")), max_size=10)


def replay(entries):
    """The slow reference: one label at a time."""
    labels = [-1] * N
    for entry in entries:
        for index, label in entry:
            labels[index] = label
    return labels


def append(ledger, entry):
    ledger.append([index for index, _ in entry], [label for _, label in entry])


@settings(max_examples=40)
@given(steps=STEPS)
def test_memory_file_and_reopened_file_agree_with_the_reference(steps, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "labels.jsonl"
    memory, file, effective = Ledger(), Ledger(path), []
    for step in steps:
        for ledger in (memory, file):
            if step != "undo":
                append(ledger, step)
            elif effective:
                ledger.undo()
            else:
                with pytest.raises(UsageError, match="nothing to undo"):
                    ledger.undo()
        if step != "undo":
            effective.append(step)
        elif effective:
            effective.pop()
        assert memory.labels(N).tolist() == file.labels(N).tolist() == replay(effective)
        assert Ledger(path).labels(N).tolist() == replay(effective)


@settings(max_examples=4)
@given(entries=ENTRIES.filter(len))
def test_a_cut_at_any_byte_loses_only_the_torn_entry(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "labels.jsonl"
    ends = [0]
    for entry in entries:
        append(Ledger(path), entry)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends) - 1
        torn = cut not in (0, header, *ends)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ledger = Ledger(path)
        assert len(caught) == torn
        assert ledger.labels(N).tolist() == replay(entries[:whole])
        ledger.append([0], [7])
        assert Ledger(path).labels(N).tolist() == replay([*entries[:whole], [(0, 7)]])


def test_a_last_line_without_its_bytes_is_torn(tmp_path):
    path = tmp_path / "labels.jsonl"
    append(Ledger(path), [(1, 1)])
    path.write_bytes(path.read_bytes() + b"\0" * 20 + b"\n")
    with pytest.warns(UserWarning, match="torn"):
        assert Ledger(path).labels(3).tolist() == [-1, 1, -1]


def test_two_writers_in_turn_lose_nothing(tmp_path):
    one, two = Ledger(tmp_path / "a.jsonl"), Ledger(tmp_path / "a.jsonl")
    one.append([0], [1])
    two.append([1], [2])
    one.append([2], [3])
    assert Ledger(tmp_path / "a.jsonl").labels(3).tolist() == one.labels(3).tolist() == [1, 2, 3]


def test_writers_take_turns(tmp_path):
    path = tmp_path / "a.jsonl"
    work = "import sys\nfrom ssl_lab.data import Ledger\nledger = Ledger(sys.argv[1])\n" \
           "for i in range(60): ledger.append([i], [int(sys.argv[2])])"
    writers = [forked("-c", work, path, label) for label in range(3)]
    assert [finish(writer) for writer in writers] == [(0, "", "")] * 3
    entries = Ledger(path).entries
    for label in range(3):
        assert sorted(int(e.indices[0]) for e in entries if e.labels[0] == label) == [*range(60)]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 50)])
def test_a_file_that_shrank_is_not_written_to(tmp_path, harm):
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path)
    append(ledger, [(1, 1)])
    harm(path)
    with pytest.raises(UsageError, match="while in use"):
        append(ledger, [(2, 2)])


def test_an_append_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), sync(handle)))
    path = tmp_path / "labels.jsonl"
    append(Ledger(path), [(1, 1)])
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"
    ledger = Ledger(path)
    append(ledger, [(1, 1)])
    before = path.read_bytes()
    write = os.pwrite

    def nearly_full(handle, content, offset):
        if len(content) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content[:10], offset)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    with pytest.raises(UsageError, match="No space left"):
        ledger.append([2], [2])
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "pwrite", write)
    ledger.append([2], [3])
    assert Ledger(path).labels(3).tolist() == [-1, 1, 3]


@pytest.mark.parametrize(("indices", "labels", "message"), [
    ([0, 1], [1], "2 indices but 1 labels"),
    ([-1], [1], "out of range"),
    ([0], [-3], "out of range"),
    ([0], [1.0], "whole numbers"),
    ([[0]], [[1]], "whole numbers"),
    ([0], ["1"], "whole numbers"),
])
def test_a_bad_append_records_nothing(tmp_path, indices, labels, message):
    ledger = Ledger(tmp_path / "labels.jsonl")
    with pytest.raises(UsageError, match=message):
        ledger.append(indices, labels)
    assert not ledger.entries
    assert not ledger.path.exists()


def test_files_that_are_no_ledger_of_these_images(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("path,label\na.png,cat")
    with pytest.raises(UsageError, match="not a label ledger"):
        Ledger(path)
    assert path.read_text() == "path,label\na.png,cat"
    with pytest.raises(UsageError, match="cannot read"):
        Ledger(tmp_path)

    path.unlink()
    ledger = Ledger(path)
    append(ledger, [(5, 1)])
    with pytest.raises(UsageError, match="labels image 5, but there are only 5 images"):
        Ledger(path).labels(5)
    append(ledger, [(1, 1)])
    path.write_bytes(path.read_bytes().replace(b"[5]", b"[5"))
    with pytest.raises(UsageError, match="entry 1: damaged"):
        Ledger(path)


def test_labels_are_read_only_and_undo_returns_the_entry():
    ledger = Ledger()
    append(ledger, [(2, 4)])
    with pytest.raises(ValueError, match="read-only"):
        ledger.labels(3)[0] = 1
    undone = ledger.undo()
    assert undone.labels.tolist() == [4]
    assert undone.source == "oracle"
    assert np.array_equal(ledger.labels(3), [-1, -1, -1])
