"""The words that people's data are written in."""

import unicodedata

import pytest

from ssl_lab.data.words import missing, part_of, same, whole


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "None", "NULL", "null", "NA", "N/A", "<NA>", "#N/A", "-1",
                                  "-1.0", "?", "unlabeled", "Unlabelled"])
def test_words_for_no_label(word):
    assert missing(["cat", word, "0", "1.0"]) == {word}
    assert missing(["cat", word], names=[word] if word.strip() else []) == ({word} if not word.strip() else set())


def test_a_class_that_is_called_none():
    assert missing(["rock", "none", "na", "unknown", "-", "0", "other", "-2"]) == set()
    assert missing(["rock", "None", ""]) == {""}, "what is missing is written otherwise"
    assert missing(["rock", "None", "NA"]) == {"None", "NA"}


@pytest.mark.parametrize(("name", "part"), [
    ("train", "train"), ("Training", "train"), ("training_set", "train"), ("train_images", "train"),
    ("TrainImages", "train"), ("trainset", "train"), ("train2017", "train"), ("trainval", "train"),
    ("train_val", "train"), ("labeled", "train"), ("labeled_train", "train"),
    ("val", "valid"), ("val2017", "valid"), ("validation_data", "valid"), ("Valid-Split", "valid"),
    ("test", "test"), ("test_set", "test"), ("testing_images", "test"), ("PublicTest", "test"), ("test1", "test"),
    ("unlabelled", "unlabeled"), ("unlabeled_images", "unlabeled"), ("no_label", "unlabeled"), ("nolabel", "unlabeled"),
    ("un-labeled", "unlabeled"), ("train_unlabeled", "unlabeled"),
    ("train_station", None), ("bullet train", None), ("images", None), ("2019", None), ("cat", None), ("", None),
    ("test_train", None), ("contest", None), ("values", None), ("dev", None), ("holdout", None), ("\u5b66\u4e60", None),
])
def test_words_for_parts(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(("name", "part"), [("dev", "valid"), ("eval_set", "valid"), ("hold-out", "test"),
                                            ("holdout", "test"), ("train", "train"), ("device", None)])
def test_words_that_may_be_parts(name, part):
    assert part_of(name, doubtful=True) == part


def test_spellings_of_one_name():
    assert same("Caf\u00e9 ") == same(unicodedata.normalize("NFD", "caf\u00e9")) == "caf\u00e9"
    assert same("STRASSE") == same("stra\u00dfe")
    assert same("black  cat") == same("Black cat") != same("blackcat")


def test_whole_numbers():
    assert [whole(text) for text in ("3", "3.0", " 3. ", "007", "+1", "-1", "1.5", "cat", "", "1e3", "\u00b2")] == [
        "3", "3", "3", "7", "1", None, None, None, None, None, None]
