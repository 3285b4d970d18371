"""`sl.Classifier` is an estimator of scikit-learn: by its checks, beside its estimators, on images of every kind."""

import copy
import pickle
import sys
import tempfile

import numpy as np
import pytest
import torch
from hf_stand_in import ClassLabel, Table
from hf_stand_in import Image as ImageType
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

import ssl_lab as sl
from ssl_lab.errors import UsageError

COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
NAMES = np.array(["ant", "bee", "cow"])


def quick(method: str = "supervised", net: str = "pixels", **more) -> sl.Classifier:
    """Softmax regression on the pixels, in a tenth of a second."""
    more = {"steps": 40, "labeled": 16, "unlabeled": 16, "lr": 1.0, "arguments": {"ema": 0.5}, "flip": False,
            "device": "cpu"} | more
    return sl.Classifier(method, net, **more)


def photos(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 8, 8, 3] in three colors, and which."""
    truth = np.arange(count) % 3
    noise = np.random.default_rng(seed).integers(0, 50, (count, 8, 8, 3))
    return (np.array(COLORS)[truth][:, None, None] + noise).astype(np.uint8), truth


@parametrize_with_checks(
    [quick(image_shape=(1, -1), value_range=(-110, 110))],
    expected_failed_checks=lambda _: {
        "check_classifiers_classes": "-1 and 1 are no two classes: -1 means no label, as in sklearn.semi_supervised"})
def test_it_keeps_the_contract_of_estimators(estimator, check):
    """On the rows of tables that the checks make, as images of one line."""
    check(estimator)


def test_without_the_shape_of_images_rows_are_refused():
    tags = sl.Classifier().__sklearn_tags__().input_tags
    assert (tags.two_d_array, tags.three_d_array) == (False, True)
    rows, y = load_digits(return_X_y=True)
    with pytest.raises(ValueError, match=r"shape \(1797, 64\), rows of a table; .* image_shape=\(8, 8\)"):
        sl.Classifier().fit(rows, y)
    with pytest.raises(ValueError, match=r"X has 64 features, which are no images of \(7, 9\)"):
        sl.Classifier(image_shape=(7, 9)).fit(rows, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows of theirs that no label reaches
def test_beside_the_semi_supervised_estimators_of_sklearn():
    """On digits with 4 labels a class, as rows of 64 numbers from 0 to 16: same X, same y."""
    rows, truth = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, truth = rows[order], truth[order]
    few = np.full(1100, -1)
    for label in range(10):
        few[np.flatnonzero(truth[:1100] == label)[:4]] = label
    known = few >= 0
    settings = {"image_shape": (8, 8), "value_range": (0, 16), "image_size": 16, "flip": False, "device": "cpu",
                "labeled": 16, "unlabeled": 48, "arguments": {"ema": 0.98}}
    models = {
        "fixmatch": sl.Classifier("fixmatch", "tiny_8", steps=300, **settings),
        "supervised": sl.Classifier("supervised", "tiny_8", steps=150, **settings),
        "spreading": LabelSpreading(kernel="knn"),
        "self-training": SelfTrainingClassifier(LogisticRegression(max_iter=2000)),
        "logistic": LogisticRegression(max_iter=2000),
    }
    scores = {}
    for name, model in models.items():
        given = (rows[:1100][known], few[known]) if name == "logistic" else (rows[:1100], few)
        scores[name] = model.fit(*given).score(rows[1100:], truth[1100:])
    assert scores["fixmatch"] > scores["supervised"] + 0.05, scores
    assert scores["fixmatch"] > max(scores["logistic"], scores["self-training"], scores["spreading"] - 0.03), scores


# --- images of every kind ---

@pytest.mark.parametrize("given", ["last", "first", "floats", "tensor", "rows", "files", "texts", "pictures", "pairs",
                                   "table", "tensors"])
def test_images_of_every_kind(given, tmp_path):
    images, truth = photos(30)
    few = np.where(np.arange(30) < 12, truth, -1)
    pictures = [Image.fromarray(image) for image in images]
    paths = [tmp_path / f"{n}.png" for n in range(30)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    seen = {
        "last": images, "first": images.transpose(0, 3, 1, 2), "floats": images / np.float32(255),
        "tensor": torch.from_numpy(images), "rows": images.reshape(30, -1), "files": paths,
        "texts": np.array([str(path) for path in paths]), "pictures": pictures,
        "pairs": torch.utils.data.TensorDataset(torch.from_numpy(images), torch.zeros(30)),
        "table": Table({"image": pictures, "label": [0] * 30}, image=ImageType()),
        "tensors": torch.from_numpy(images).permute(0, 3, 1, 2),
    }[given]
    model = quick(image_shape=(8, 8, 3)).fit(seen, few)
    assert model.score(seen, truth) == 1
    expected = quick().fit(images, few).predict_proba(images)
    np.testing.assert_allclose(model.predict_proba(seen), expected, atol=1e-5)
    if given != "table":  # any of them, whatever the estimator learned from
        np.testing.assert_allclose(model.predict_proba(paths), expected, atol=1e-5)


def test_a_data_set_brings_its_labels():
    images, truth = photos(12)
    table = Table({"image": list(images), "label": [*truth[:9].tolist(), -1, -1, -1]}, image=ImageType(),
                  label=ClassLabel(["ant", "bee", "cow"]))
    model = quick().fit(table)
    assert model.classes_.tolist() == [0, 1, 2], "as the data set has them"
    assert model.model_.predict(table).labels == NAMES[truth].tolist(), "and what it calls them"
    assert model.predict(table).tolist() == truth.tolist()
    assert quick().fit(table, NAMES[truth]).predict(table).tolist() == NAMES[truth].tolist(), "y comes first"


def test_pictures_of_different_sizes_need_one_to_come_to(tmp_path):
    images, truth = photos(12)
    pictures = [Image.fromarray(image).resize((8 + n % 3, 8)) for n, image in enumerate(images)]
    with pytest.raises(ValueError, match="Give image_size"):
        quick().fit(pictures, truth)
    assert quick(image_size=6).fit(pictures, truth).score(pictures, truth) == 1
    arrays = [np.asarray(picture) for picture in pictures]
    assert quick(image_size=6).fit(arrays, truth).score(arrays, truth) == 1


def test_numbers_of_another_type_mean_what_they_meant():
    rows, truth = load_digits(return_X_y=True)
    model = quick(image_shape=(8, 8), value_range=(0, 16)).fit(rows[:300], truth[:300])
    expected = model.predict_proba(rows[:40])
    for kind in (np.int64, np.float32, np.uint8):
        np.testing.assert_allclose(model.predict_proba(rows[:40].astype(kind)), expected, atol=1e-6)


def test_three_gray_images_are_three():
    rows, truth = load_digits(return_X_y=True)
    images = rows.reshape(-1, 8, 8)
    model = quick(value_range=(0, 16)).fit(images[:300], truth[:300])
    every = model.predict_proba(images[:3])
    assert every.shape == (3, 10)
    np.testing.assert_allclose(model.predict_proba(images[:1]), every[:1], atol=1e-6)
    as_read = model.model_.predict(images[:3] * (255 / 16) / 255)  # a bare model, too, knows that it takes grays
    assert len(as_read) == 3


# --- labels ---

@pytest.mark.parametrize(("y", "classes"), [
    (np.where(np.arange(12) < 9, NAMES[np.arange(12) % 3], "unlabeled"), ["ant", "bee", "cow"]),
    ([*NAMES[np.arange(9) % 3].tolist(), None, None, None], ["ant", "bee", "cow"]),
    (np.array([*NAMES[np.arange(9) % 3], None, np.nan, ""], dtype=object), ["ant", "bee", "cow"]),
    (np.array([7, 3, 10] * 3 + [-1] * 3), [3, 7, 10]),
    (np.array([7, 3, 10] * 3 + [np.nan] * 3), [3.0, 7.0, 10.0]),
    (np.array([True, False] * 6), [False, True]),
])
def test_classes_are_the_labels_as_they_are_given(y, classes, capsys):
    images, _ = photos(12)
    model = quick().fit(images, y)
    assert model.classes_.tolist() == classes
    assert model.classes_.dtype == np.asarray(y, dtype=object if isinstance(y, list) else None).dtype
    found = model.predict(images)
    assert found.dtype == model.classes_.dtype
    assert set(found.tolist()) <= set(classes)
    assert model.predict_proba(images).shape == (12, len(classes))
    unlabeled = sum(label in (-1, None, "", "unlabeled") or label != label for label in np.asarray(y, object).tolist())
    assert f"{12 - unlabeled} labeled, {unlabeled} unlabeled" in capsys.readouterr().err
    assert model.score(images, y) == np.mean([a == b for a, b in zip(found.tolist(), np.asarray(y, object), strict=True)
                                              if b in classes]), "of labeled images alone"


def test_what_is_decided_of_labels_is_said(capsys):
    images, truth = photos(12)
    quick().fit(images, np.array(["Ant", "ant", "cow"])[truth])
    assert "'Ant' and 'ant' are classes of their own, as y has them" in capsys.readouterr().err
    with pytest.warns(DataConversionWarning, match="column-vector"):
        quick().fit(images, truth[:, None])


@pytest.mark.parametrize(("y", "message"), [
    ([-1] * 6, "none of the 6 entries of y is a label"),
    ([1, -1] * 3, "one class only, .*1.*-1 is none"),
    (np.array([0.5, 1.5, 2.5] * 2), "Unknown label type: continuous"),
    (["a", 1] * 3, "both texts and numbers"),
    ([0, 1], "labels have length 2, but there are 6 images"),
    (None, "requires y to be passed"),
])
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(photos(6)[0], y)


@pytest.mark.parametrize(("settings", "message"), [
    ({"method": "fixmach"}, "unknown method 'fixmach'. Did you mean fixmatch"),
    ({"method": "simclr"}, "simclr learns no classes"),
    ({"method": "fixmatch", "arguments": {"thresold": 1}}, "fixmatch has no argument 'thresold'"),
    ({"net": "tiny"}, "unknown net 'tiny'"),
    ({"steps": 0}, "a run needs a positive length"),
    ({"steps": None}, "steps and minutes are both None"),
])
def test_bad_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        quick(**settings).fit(*photos(6))


def test_bad_images(tmp_path):
    images, truth = photos(6)
    model = quick().fit(images, truth)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"1 images cannot be read, e.g. .*bad.png: not an image"):
        model.predict([tmp_path / "bad.png"])
    with pytest.raises(UsageError, match="X is a str; expected images"):
        model.predict("photos/")
    with pytest.raises(UsageError, match="X is a dict"):
        quick().fit({"train": images}, truth)


# --- as an estimator ---

def test_a_pickled_or_copied_estimator_keeps_its_model_and_a_clone_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images, truth = photos(24)
    model = quick("fixmatch", "tiny_4", steps=3, lr=0.1).fit(images, NAMES[truth])
    assert list(tmp_path.iterdir()) == [], "nothing is left, and it needs nothing of it"
    expected = model.predict_proba(images)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(other.predict_proba(images), expected)
        assert other.classes_.tolist() == NAMES.tolist()
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    assert np.array_equal(fresh.fit(images, NAMES[truth]).predict_proba(images), expected), "by its seed"
    assert model.model_.embed(images).shape == (24, model.model_.net.features_dim)


def test_a_method_is_a_text_with_arguments_or_ones_own_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import ssl_lab as sl\n\nclass Mine(sl.Supervised):\n    name = 'mine'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    images, truth = photos(24)
    own = quick("mine:Mine").fit(images, truth).predict_proba(images)
    assert np.array_equal(own, quick().fit(images, truth).predict_proba(images))
    text = quick("supervised(ema=0.5)", arguments=None).fit(images, truth).predict_proba(images)
    assert np.array_equal(text, own)


def test_a_run_that_is_kept_says_the_same(tmp_path):
    images, truth = photos(24)
    model = quick(out=tmp_path / "run").fit(images, NAMES[truth])
    assert {"model.safetensors", "model.json", "summary.json", "report.html"} <= {
        path.name for path in (tmp_path / "run").iterdir()}
    kept = sl.open(tmp_path / "run", device="cpu")
    assert kept.classes == tuple(NAMES)
    np.testing.assert_array_equal(kept.predict(images).probabilities, model.predict_proba(images))
    with pytest.raises(UsageError, match="is not overwritten"):
        model.fit(images, truth)


def test_it_is_searched_cross_validated_and_piped():
    rows, truth = load_digits(return_X_y=True)
    rows, few = rows[:300], np.where(np.arange(300) % 3, truth[:300], -1)
    model = quick("pseudo_label", image_shape=(8, 8), value_range=(0, 16))
    scores = cross_val_score(model, rows, few, cv=2)
    assert (scores > 0.5).all(), "of the labeled ones alone: with the third that has none, it would be below"
    search = GridSearchCV(model, {"arguments": [{"threshold": 0.5}, {"threshold": 0.99}], "lr": [1e-6, 1.0]}, cv=2)
    assert search.fit(rows, truth[:300]).best_params_["lr"] == 1
    piped = make_pipeline(MinMaxScaler(), quick(image_shape=(8, 8))).fit(rows, truth[:300])
    assert piped.score(rows, truth[:300]) > 0.6
