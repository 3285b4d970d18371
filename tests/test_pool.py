"""Pools: which rows a split chooses, what a manifest says, and who may label what."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_lab.data import Pool, load
from ssl_lab.data.remarks import remarks
from ssl_lab.errors import UsageError

PLAIN = load("digits")


def random_images(n=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)


def small(n=12, classes=3, **more):
    return Pool.from_arrays(random_images(n), np.arange(n) % classes, **more)


@settings(max_examples=40)
@given(labels=st.integers(10, 400), valid=st.sampled_from([0, 0.02, 0.3, 1, 57]), seed=st.integers(0, 9),
       balance=st.sampled_from(["class", "natural", "covered"]))
def test_a_split_is_what_was_asked_for(labels, valid, seed, balance):
    pool = PLAIN.split(labels, valid, seed, balance)
    everything = np.concatenate([pool.train, pool.valid, pool.test])
    assert np.array_equal(np.sort(everything), np.arange(len(pool)))
    assert len(pool.valid) == (round(valid * 1198) if valid < 1 else valid)
    assert len(pool.labeled) == labels
    assert np.array_equal(pool.labels[pool.labeled], pool.truth[pool.labeled])
    assert np.count_nonzero(pool.labels >= 0) == labels, "valid and test rows have no label for training"
    assert set(pool.labeled) <= set(pool.train)
    assert np.array_equal(pool.unlabeled, pool.train)
    if balance == "class":
        per_class = np.bincount(pool.truth[pool.labeled], minlength=10)
        assert per_class.max() - per_class.min() == (labels % 10 > 0)
    fewer = PLAIN.split(max(10, labels // 2), valid, seed, balance)
    assert set(fewer.labeled) <= set(pool.labeled), "more labels add to fewer"
    moved = len(np.setdiff1d(fewer.valid, pool.valid))
    assert moved <= len(np.intersect1d(fewer.valid, pool.labeled)), "only labeled rows make way for others"
    assert np.array_equal(PLAIN.split(labels, 0, seed, balance).labeled, pool.labeled), "valid moves no label"
    assert pool.manifest() == PLAIN.split(labels, valid, seed, balance).manifest()


def test_seeds_differ_and_hashes_tell():
    hashes = {PLAIN.split(20, seed=seed).manifest()["hash"] for seed in range(5)}
    assert len(hashes) == 5
    remainders = {tuple(np.bincount(PLAIN.split(13, seed=seed).labels[PLAIN.train] + 1)) for seed in range(9)}
    assert len(remainders) > 1, "the remainder falls on classes chosen by the seed"
    other = random_images()
    other[0, 0, 0, 0] ^= 1
    pixels = {Pool.from_arrays(images, np.arange(12) % 3).split(3).manifest()["hash"]
              for images in (random_images(), other)}
    assert len(pixels) == 2


def test_valid_keeps_the_class_proportions():
    truth = np.repeat([0, 1, 2], [600, 300, 100])
    pool = Pool.from_arrays(np.zeros((1000, 2, 2), np.uint8), truth).split(3, valid=0.1)
    assert np.bincount(truth[pool.valid]).tolist() == [60, 30, 10]


@pytest.mark.parametrize("balance", ["class", "natural", "covered"])
def test_rows_that_are_known_to_validate_only_let_others_move_up(balance):
    """Explicit ones, and those that a folder's valid/ brings: one order of all, with them left out."""
    alone = PLAIN.split(60, seed=2, balance=balance)
    for held in (alone.train[::7], alone.labeled[::3]):
        with_valid = PLAIN.split(60, valid=held, seed=2, balance=balance)
        assert len(with_valid.labeled) == 60
        stayed = np.setdiff1d(alone.labeled, held)
        assert np.isin(stayed, with_valid.labeled).all()
        again = with_valid.split(30, seed=2, balance=balance)
        assert np.array_equal(again.valid, np.sort(held))
        assert np.isin(again.labeled, with_valid.labeled).all()


def test_a_labeled_draw_stays_what_it_was():
    """Documented results depend on it."""
    assert PLAIN.split(10, seed=0).labeled.tolist() == [260, 262, 474, 490, 542, 544, 955, 981, 1011, 1109]
    assert PLAIN.split(8, seed=1, balance="natural").labeled.tolist() == [298, 306, 350, 541, 590, 785, 795, 1062]
    tail = PLAIN.split(12, seed=3, imbalance=20)
    assert tail.labeled.tolist() == [192, 214, 329, 357, 437, 482, 488, 549, 768, 812, 998, 1168]


@pytest.mark.parametrize(("sizes", "labels", "valid", "expected"), [
    ((50, 10, 4), 12, 16, [14, 2, 0]),  # class 2 is labeled whole: the others validate in its place
    ((50, 10, 4), 9, 32, [26, 5, 1]),
    ((50, 10, 1), None, 0.5, [25, 5, 0]),  # its only image stays with training
    ((50, 10, 1), None, 58, [49, 9, 0]),
])
def test_a_class_that_would_run_dry_gives_fewer_validation_rows(sizes, labels, valid, expected):
    pool = Pool.from_arrays(np.zeros((sum(sizes), 2, 2), np.uint8), np.repeat([0, 1, 2], sizes)).split(labels, valid)
    assert np.bincount(pool.truth[pool.valid], minlength=3).tolist() == expected
    assert (np.bincount(pool.truth[pool.labeled], minlength=3) > 0).all()


def test_a_covered_draw_is_a_natural_one_after_one_of_each_class():
    truth = np.repeat([0, 1, 2, 3], [500, 30, 3, 1])
    pool = Pool.from_arrays(np.zeros((534, 2, 2), np.uint8), truth)
    for seed in range(5):
        drawn = {count: pool.split(count, seed=seed, balance="covered").labeled for count in (4, 9, 40)}
        assert np.unique(truth[drawn[4]]).tolist() == [0, 1, 2, 3]
        assert set(drawn[4]) < set(drawn[9]) < set(drawn[40])
        natural = pool.split(40, seed=seed, balance="natural").labeled
        assert len(np.setdiff1d(natural, drawn[40])) <= 4
        order = [set(pool.split(count, seed=seed, balance="natural").labeled) for count in range(1, 535)]
        for label in (0, 1):  # the first of its class in the natural order
            first = next(rows for rows in order if (truth[list(rows)] == label).any())
            assert set(drawn[4][truth[drawn[4]] == label]) <= first
    with pytest.raises(UsageError, match=r"labels=3 is fewer than the 4 classes with images.*balance='natural'"):
        pool.split(3, balance="covered")


@pytest.mark.parametrize("path", ["natural", "split_file", "partial", "tail", "unlabeled"])
def test_classes_without_a_labeled_image_are_remarked(path, tmp_path):
    truth = np.repeat([0, 1, 2, 3], [500, 30, 3, 1])
    pool = Pool.from_arrays(np.zeros((534, 2, 2), np.uint8), truth, class_names=["ant", "bee", "cow", "doe"],
                            flip=False)
    flag = ""
    if path == "natural":
        pool, flag = pool.split(6, balance="natural"), "; --balance covered draws one of each first"
    elif path == "split_file":
        (tmp_path / "rows.txt").write_text("1 2 3 510")
        pool = pool.split(labeled=tmp_path / "rows.txt")
    elif path == "partial":
        truth = np.where((np.arange(534) < 520), truth, -1)
        pool = Pool.from_arrays(pool.images.take(np.arange(534)), truth, class_names=pool.class_names, flip=False)
    elif path == "tail":
        pool = pool.split(6, balance="natural", imbalance=500)
        flag = "; --balance covered draws one of each first"
    else:
        assert remarks(pool.split(labeled=[])) == (), "nothing is labeled yet: no class lacks more than another"
        pool = pool.split(labeled=[])
        pool.record([0, 510], [0, 1])
    missing = [name for label, name in enumerate(pool.class_names) if not (pool.labels[pool.labeled] == label).any()]
    assert remarks(pool) == (f"{len(missing)} of the 4 classes have no labeled train image: "
                            f"{', '.join(map(repr, missing))}{flag}",)
    pool.record(pool.train[~np.isin(pool.train, pool.labeled)][-1:], [3])
    pool.record(pool.train[~np.isin(pool.train, pool.labeled)][:3], [0, 1, 2])
    assert remarks(pool) == (), "an oracle's answers count"


def test_splitting_a_split():
    first = PLAIN.split(40, valid=0.1, seed=3)
    assert np.array_equal(first.split(10).valid, first.valid), "None keeps the validation rows"
    assert len(first.split(10, valid=0).valid) == 0
    again = first.split(20, valid=0.2, seed=1)
    assert again.manifest() == PLAIN.split(20, valid=0.2, seed=1).manifest()
    assert len(PLAIN.split().labeled) == len(PLAIN.train), "labels=None: all that are known"


@settings(max_examples=30)
@given(seed=st.integers(0, 9), valid=st.sampled_from([0, 57]), labels=st.sampled_from([10, 60]))
def test_a_subset_is_what_the_pool_is_in_these_rows(seed, valid, labels):
    pool = PLAIN.split(labels, valid, seed)
    pool.record(np.setdiff1d(pool.unlabeled, pool.labeled)[:3], [4, -2, 1])
    rows = np.random.default_rng(seed).permutation(len(pool))[:700]
    few, kept = pool.subset(rows), np.sort(rows)
    assert len(few) == len(few.truth) == 700
    for part in ("train", "valid", "test", "labeled", "unlabeled"):
        assert np.array_equal(kept[getattr(few, part)], np.intersect1d(getattr(pool, part), rows)), part
    assert np.array_equal(few.labels, pool.labels[kept])
    assert np.array_equal(few.truth, pool.truth[kept])
    some = np.array([5, 0, 699])
    assert torch.equal(few.images.take(some), pool.images.take(kept[some]))
    assert np.array_equal(few.images.contents()[some], pool.images.contents()[kept[some]])
    assert few.images.shape == pool.images.shape
    prints = {each.images.fingerprint() for each in (pool, few, pool.subset(kept[:-1]), few.subset(some))}
    assert len(prints) == 4
    few.record(few.unlabeled[:1], [3])
    assert len(pool.ledger.entries) == 2, "a pool of its own, with a ledger of its own"


def test_a_subset_keeps_the_names_of_its_files(tmp_path):
    files = [f"{name}.png" for name in "abcdef"]
    pool = small(6, 2)
    pool = replace(pool, files=tuple(files), root=str(tmp_path), drawn=np.array([0, 4, 4]))
    few = pool.subset([4, 1, 2])
    assert few.files == ("b.png", "c.png", "e.png")
    assert few.drawn.tolist() == [2, 2]


@pytest.mark.parametrize(("rows", "message"), [([0, 12], "row of the pool"), ([1, 1], "row 1 more than once"),
                                               ([0.5], "expected integers")])
def test_bad_subsets(rows, message):
    with pytest.raises(UsageError, match=message):
        small().subset(rows)


def test_unlabeled_rows_are_never_chosen():
    labels = np.where(np.arange(60) % 2, -1, np.arange(60) % 3)
    pool = Pool.from_arrays(random_images(60), labels).split(6, valid=0.2)
    assert len(pool.valid) == 6, "a fifth of the 30 known ones"
    assert (pool.truth[pool.valid] >= 0).all()
    assert (pool.truth[pool.labeled] >= 0).all()
    assert len(pool.unlabeled) == 54


@pytest.mark.parametrize(("arguments", "message"), [
    ({"labels": 13}, "labels=13: expected 1 to 12"),
    ({"labels": 0}, "labels=0: expected 1 to 12"),
    ({"labels": 9, "valid": 4}, "valid=4: .* a count of at most 3, of the 12 train images .*: 9 of them"),
    ({"labels": 2}, "fewer than the 3 classes.*balance='natural'"),
    ({"labels": 3, "balance": "clas"}, "unknown balance 'clas'. Did you mean class"),
    ({"valid": 1.5}, "valid=1.5: expected a fraction"),
    ({"valid": -0.1}, "expected a fraction"),
    ({"valid": 1.0}, r"valid=1.0 may mean one image or all of them: give a whole number of 2 or more"),
    ({"labels": 1.0, "balance": "natural"}, r"labels=1.0 may mean one image or all"),
    ({"valid": float("nan")}, "expected a fraction"),
    ({"valid": float("inf")}, "expected a fraction"),
    ({"valid": 10}, "a count of at most 9, of the 12 .* one of each class has to stay"),
    ({"labeled": [0, 12]}, "labeled: entry 1 is 12, expected 0..11"),
    ({"labeled": [0, 0]}, "row 0 more than once"),
    ({"labeled": [0.5]}, "expected integers"),
    ({"labeled": [[1], [2, 3]]}, "not a list of integers"),
    ({"labeled": [1, 2], "valid": [2]}, "row 2 of arrays is a valid or test row"),
    ({"labels": 3, "labeled": [1]}, "both choose labels"),
    ({"labeled": "/nowhere/rows.txt"}, "cannot read row numbers from .*No such file"),
])
def test_bad_splits(arguments, message):
    with pytest.raises(UsageError, match=message):
        small().split(**arguments)


def test_more_labels_than_a_class_has():
    pool = Pool.from_arrays(random_images(12), [0] * 10 + [1] * 2, class_names=["cat", "dog"])
    with pytest.raises(UsageError, match="needs 3 images of class 'dog', which has only 2"):
        pool.split(6)
    assert len(pool.split(6, balance="natural").labeled) == 6


@pytest.mark.parametrize("balance", ["class", "natural"])
def test_labels_as_a_fraction(balance):
    assert len(PLAIN.split(0.1, balance=balance).labeled) == round(0.1 * 1198)
    assert PLAIN.split(0.1, balance=balance).manifest() == PLAIN.split(120, balance=balance).manifest()
    for bad in (-0.1, 0.0, 20.5, float("nan")):
        with pytest.raises(UsageError, match=r"labels=.*: expected 1 to 1198.* or a fraction of them"):
            PLAIN.split(bad, balance=balance)


# --- explicit rows, manifests ---

def test_explicit_rows_from_lists_and_files(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([4, 0]))
    (tmp_path / "rows.txt").write_text("4\n0\n")
    (tmp_path / "rows.json").write_text("[4, 0]")
    for rows in ([4, 0], np.array([4, 0]), torch.tensor([4, 0]), tmp_path / "rows.npy", tmp_path / "rows.txt",
                 str(tmp_path / "rows.json")):
        pool = small().split(labeled=rows)
        assert pool.labeled.tolist() == [0, 4]
        assert small().split(valid=rows).valid.tolist() == [0, 4]
    assert not set(small().split(labeled=[4, 0], valid=0.5).valid) & {0, 4}
    assert len(small().split(labeled=[]).labeled) == 0
    (tmp_path / "foreign.json").write_text('{"rows": [1]}')
    with pytest.raises(UsageError, match="without a list 'labeled'"):
        small().split(labeled=tmp_path / "foreign.json")
    (tmp_path / "rows.txt").write_text("a\n")
    with pytest.raises(UsageError, match="cannot read row numbers"):
        small().split(labeled=tmp_path / "rows.txt")


def test_explicit_rows_must_be_train_rows_with_a_label():
    pool = small(test_images=random_images(3), test_labels=[0, 1, 2])
    with pytest.raises(UsageError, match="row 13 of arrays is a valid or test row"):
        pool.split(labeled=[0, 13])
    with pytest.raises(UsageError, match="row 14 of arrays is a test row"):
        pool.split(valid=[14])
    unknown = Pool.from_arrays(random_images(3), [0, 1, -1])
    for arguments in ({"labeled": [2]}, {"valid": [2]}):
        with pytest.raises(UsageError, match="row 2 of arrays has no known label"):
            unknown.split(**arguments)


def test_a_manifest_brings_a_split_back(tmp_path):
    pool = PLAIN.split(40, valid=0.1, seed=5)
    pool.record(pool.train[pool.labels[pool.train] < 0][:2], [3, 3])  # an oracle, perhaps a wrong one
    pool.write_manifest(tmp_path / "split.json")
    again = PLAIN.split(labeled=tmp_path / "split.json")
    assert again.manifest()["hash"] == pool.manifest()["hash"]
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["counts"] == {"images": 1797, "train": 1078, "labeled": 42, "valid": 120, "test": 599}
    assert (content["name"], content["seed"], content["balance"]) == ("digits", 5, "class")
    with pytest.raises(UsageError, match="belongs to other images"):
        small().split(labeled=tmp_path / "split.json")


# --- labels ---

def test_an_oracle_labels_relabels_ignores_and_is_undone(tmp_path):
    pool = small().split(labeled=[0, 1], valid=[11], ledger=tmp_path / "labels.jsonl")
    pool.record([5, 3], [2, 1])
    pool.record([5], [0])
    pool.record(torch.tensor([7]), torch.tensor([-2]))
    pool.record([1], [-1])
    assert pool.labels.tolist() == [0, -1, -1, 1, -1, 0, -1, -2, -1, -1, -1, -1]
    assert pool.labeled.tolist() == [0, 3, 5]
    assert pool.unlabeled.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    pool.ledger.undo()
    again = small().split(labeled=[0, 1], valid=[11], ledger=tmp_path / "labels.jsonl")
    assert again.labels.tolist() == pool.labels.tolist() == [0, 1, -1, 1, -1, 0, -1, -2, -1, -1, -1, -1]
    with pytest.raises(UsageError, match="began with another split"):
        small().split(labeled=[0, 2], ledger=tmp_path / "labels.jsonl")


def test_the_labels_of_the_split_cannot_be_undone():
    with pytest.raises(UsageError, match="nothing to undo"):
        small().split(3).ledger.undo()


@pytest.mark.parametrize(("indices", "labels", "message"), [
    ([11], [0], "row 11 of arrays is not a train row"),
    ([12], [0], "expected 0..11"),
    ([0], [3], r"labels: entry 0 is 3, expected -1..2"),
    ([0], [-3], "entry 0 is -3"),
    ([0], [0.0], "expected integers"),
    ([0, 1], [0], "length 1"),
    ([0, 0], [0, 1], "more than once"),
])
def test_bad_records_change_nothing(indices, labels, message):
    pool = small().split(3, valid=[11])
    before = pool.labels.copy()
    with pytest.raises(UsageError, match=message):
        pool.record(indices, labels)
    assert np.array_equal(pool.labels, before)
