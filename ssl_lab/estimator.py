"""`sl.Classifier`: the methods of this package as an estimator of scikit-learn.

    from sklearn.datasets import load_digits
    X, y = load_digits(return_X_y=True)
    y[100:] = -1                                            # no label
    model = sl.Classifier("fixmatch", image_shape=(8, 8), value_range=(0, 16), flip=False).fit(X, y)
    model.predict(X), model.predict_proba(X)
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ssl_lab import build, methods, presets
from ssl_lab.data import Pool
from ssl_lab.data.arrays import IntArray, channels_first
from ssl_lab.data.classes import unlabeled_texts
from ssl_lab.data.labels import as_column, entry_of
from ssl_lab.data.memory import content_of_datasets
from ssl_lab.data.pool import pool_of
from ssl_lab.data.reading import Reading
from ssl_lab.data.rows import fields_of, is_dataset, labels_in, names_in
from ssl_lab.data.values import BYTES_AND_UNIT, Range, kind_of, parse_range
from ssl_lab.data.words import same
from ssl_lab.engine import ShowProgress, Trainer
from ssl_lab.engine.callbacks import Afterwards
from ssl_lab.engine.card import Card
from ssl_lab.errors import UsageError
from ssl_lab.model import Model, around
from ssl_lab.nets import net as named

Array = NDArray[Any]


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Semi-supervised classification of images: beside a few labels, it learns from the images that have none.

    Settings are those of `presets` for this method and length; each that is None here is taken from there.

    X, of `fit` and of all else: arrays [N, H, W], [N, C, H, W] or [N, H, W, C]; rows [N, D] of such, with image_shape;
    a list of paths; of PIL images or arrays of different sizes; or a data set of PyTorch or Hugging Face.

    After `fit`: classes_: [K], the labels that occur, sorted, in the type that they have in y. model_: the `Model`, for
    features and prediction sets. card_: what is known of it. The estimator holds all that it takes; it can be pickled.

    Args:
        method: its name, see `ssl-lab list methods`, or "mypackage.mymodule:MyMethod", with arguments if wanted,
            "fixmatch(threshold=0.9)"; "supervised" learns from the labeled images alone.
        net: its name, see `ssl-lab list nets`; "auto" is as in recipes/consistency.py.
        arguments: of the method, e.g. {"threshold": 0.9}; "ema" is the decay of the averaged weights.
        view: other views in place of the method's, as in ("strong=simclr", "weak=mypackage.views:Mine").
        steps, minutes: how long it trains; minutes, if given, in place of steps.
        labeled, unlabeled: images of each step.
        lr: peak learning rate.
        seed: of everything drawn.
        flip: whether views may mirror images; False where a mirrored image is of another class.
        image_shape: of images that are rows of a table, (height, width), or with 1 or 3 channels first or last; one
            number may be -1.
        image_size, value_range: see `Pool.from_arrays`; files take their median size.
        weights: a file, see `sl.net`.
        device: "auto", "cpu", "cuda".
        out: folder to keep the run in, as recipes leave it; by default nothing is kept.
        verbose: whether to show progress; what was decided of the data is always said.

    >>> from sklearn.datasets import load_digits
    >>> images, classes = load_digits(return_X_y=True)
    >>> some = np.where(np.arange(len(classes)) < 20, classes, -1)  # -1: no label
    >>> learner = sl.Classifier("fixmatch", "tiny_4", steps=3, image_shape=(8, 8), device="cpu")
    >>> learner.fit(images[:200], some[:200]).predict_proba(images[200:203]).shape
    (3, 10)
    """

    def __init__(self, method: str = "fixmatch", net: str = "auto", *, arguments: Mapping[str, Any] | None = None,
                 view: Sequence[str] = (), steps: int | None = 500, minutes: float | None = None,
                 labeled: int | None = None, unlabeled: int | None = None, lr: float | None = None, seed: int = 0,
                 flip: bool | None = None, image_shape: Sequence[int] | None = None, image_size: int | None = None,
                 value_range: Range | str | None = None, weights: str | Path | None = None, device: str = "auto",
                 out: str | Path | None = None, verbose: bool = False) -> None:
        self.method = method
        self.net = net
        self.arguments = arguments
        self.view = view
        self.steps = steps
        self.minutes = minutes
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.lr = lr
        self.seed = seed
        self.flip = flip
        self.image_shape = image_shape
        self.image_size = image_size
        self.value_range = value_range
        self.weights = weights
        self.device = device
        self.out = out
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train on images, of which those without a label have -1 or NaN in y (among numbers), or None, "" or another
        word that says so in a CSV file, such as "unlabeled" (among texts).

        Args:
            X: see the class.
            y: [N] labels; None takes those of a data set.

        Raises:
            ValueError: for what cannot be read, or no label.
        """
        if not methods.get(self.method).classifies:
            raise UsageError(f"{self.method} learns no classes; see `ssl-lab list methods` for those that do")
        if self.steps is None and self.minutes is None:
            raise UsageError("steps and minutes are both None; give one")
        kind, images = self._images(X, reset=True)
        names = None
        if y is None:
            if kind != "dataset":
                raise UsageError(f"{type(self).__name__} requires y to be passed, but the target y is None. Images "
                                 "without a label have -1 in it, or None among texts")
            fields = fields_of(images, None, None, [])
            y, names = labels_in(images, fields), names_in(images, fields.label)
        labels, self.classes_, notes = _targets(y)
        class_names = [str(label) for label in self.classes_.tolist()]
        if names and self.classes_.dtype.kind in "iu" and len(self.classes_) and self.classes_[-1] < len(names):
            class_names = [names[label] for label in self.classes_.tolist()]
        pool = self._pool(kind, images, labels, class_names)
        self._fit(replace(pool, notes=(*notes, *pool.notes)))
        self._kind = (kind_of(images), images.dtype) if kind == "array" else None
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803
        """[N] of `classes_`: the likeliest class of each image. ValueError for one that cannot be read."""
        check_is_fitted(self)
        found: Array = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """float64 [N, K]: the probability of each class. ValueError for an image that cannot be read."""
        check_is_fitted(self)
        kind, images = self._images(X, reset=False)
        if kind == "array":
            images = channels_first(images if self._kind is None else self._as_fitted(images, *self._kind), "X")
        found = self.model_.predict(images)
        bad = [(name, why) for name, why in zip(found.names, found.reasons, strict=True) if why is not None]
        if bad:
            raise UsageError(f"{len(bad)} images cannot be read, e.g. {bad[0][0]}: {bad[0][1]}. Leave them out, or ask "
                             "model_.predict, which says of each whether it could be read")
        probabilities: NDArray[np.float64] = found.probabilities
        return probabilities

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """The accuracy on the images that have a label in y."""
        check_is_fitted(self)
        array = as_column(y, "y")
        known = np.array([entry is not None for entry in _entries(array)[0]], dtype=bool)
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(accuracy_score(array[known], self.predict(X)[known], sample_weight=weights))

    @property
    def model_(self) -> Model:
        """The model that was fitted, ready for new images."""
        check_is_fitted(self)
        return around(copy.deepcopy(self._net), self.card_, self.device)

    def _fit(self, pool: Pool) -> None:
        """Trains on a pool, and keeps what prediction takes."""
        steps = None if self.minutes is not None else self.steps
        preset = presets.for_pool(methods.get(self.method), pool, "auto", steps, self.net, self.weights, self.view)
        net = named(preset.net, classes=pool.class_names, style=pool.style, seed=self.seed, weights=self.weights,
                    bn_momentum=preset.bn_momentum)
        usual = {"ema": preset.ema, **preset.arguments}
        method = build.method(self.method, preset.begun(net, pool, self.seed), pool, self.arguments or {}, usual)
        method.with_views(*preset.views)
        labeled = preset.labeled if self.labeled is None else self.labeled
        unlabeled = preset.unlabeled if self.unlabeled is None else self.unlabeled
        lr = preset.lr if self.lr is None else self.lr
        callbacks = [*([ShowProgress()] if self.verbose else []), *([Afterwards()] if self.out is not None else [])]
        with tempfile.TemporaryDirectory() if self.out is None else nullcontext(self.out) as folder:
            trainer = Trainer(steps=steps, minutes=self.minutes, seed=self.seed, device=self.device,
                              out=Path(folder) if self.out is not None else Path(folder) / "run", callbacks=callbacks,
                              optimizer=preset.optimizer_of(lr, preset.weight_decay))
            result = trainer.fit(method, pool, labeled, unlabeled)
            self.card_ = Card.read(result.out)
        self._net = result.method.predictor().cpu().eval()

    def _pool(self, kind: str, images: Any, labels: IntArray, names: Sequence[str]) -> Pool:
        """All images as ones to train on. labels: numbers of `names`, -1 = none."""
        reading: dict[str, Any] = {"image_size": self.image_size, "value_range": self.value_range, "flip": self.flip}
        if kind == "array":
            return Pool.from_arrays(images, labels, class_names=names, **reading)
        if kind == "files":
            return Pool.from_files(images, labels, class_names=names, hold_out=0, **reading)
        if kind == "pictures":
            if len(images) != len(labels):
                raise UsageError(f"y has length {len(labels)}, but there are {len(images)} images")
            images = list(zip(images, labels.tolist(), strict=True))
        reading["value_range"] = parse_range(self.value_range)
        content = content_of_datasets({"train": images}, names, "dataset", Reading(**reading), labels=labels)
        return pool_of(content)

    def _images(self, X: Any, reset: bool) -> tuple[str, Any]:  # noqa: N803
        """What X is ("array", "files", "pictures" or "dataset"), and its images. reset: whether it is to be learned
        from."""
        if is_dataset(X):
            return "dataset", X
        if isinstance(X, str | bytes | os.PathLike) or (isinstance(X, Mapping) and not hasattr(X, "toarray")):
            raise UsageError(f"X is a {type(X).__name__}; expected images: arrays, a list of paths, or a data set")
        dims = getattr(X, "ndim", None)
        first: Any = next(iter(X), None) if isinstance(X, list | tuple) or dims == 1 else None
        if isinstance(first, str | bytes | os.PathLike):
            return "files", list(X)
        if type(first).__module__.startswith("PIL.") or (np.ndim(first) > 1 and len({np.shape(x) for x in X}) > 1):
            return "pictures", list(X)
        array = X.detach().cpu().numpy() if hasattr(X, "detach") else X if dims is not None else np.asarray(X)
        if array.ndim in (3, 4):
            return "array", np.asarray(array)
        return "array", self._unflattened(validate_data(self, X=array, reset=reset))

    def _unflattened(self, rows: Array) -> Array:
        """Rows [N, D] as images."""
        width = rows.shape[1]
        if self.image_shape is None:
            side = round(width ** 0.5)
            example = (side, side) if side * side == width else ("HEIGHT", "WIDTH")
            raise UsageError(f"X has shape {rows.shape}, rows of a table; expected images [N, H, W], [N, C, H, W] or "
                             f"[N, H, W, C]. Say what images the rows are: image_shape=({example[0]}, {example[1]})")
        try:
            return rows.reshape(len(rows), *self.image_shape)
        except (ValueError, TypeError) as error:
            raise UsageError(f"X has {width} features, which are no images of {self.image_shape}, as image_shape "
                             "says") from error

    def _as_fitted(self, images: Array, kind: Any, dtype: Any) -> Array:
        """Images whose numbers mean what they meant in `fit`: of another type they do, unless black and white are the
        usual ones of their type, as 0..1 of floats and 0..255 of bytes."""
        values = self.card_.reading.values or BYTES_AND_UNIT
        usual = values.of(kind) == BYTES_AND_UNIT.of(kind)
        return images if usual or kind_of(images) == kind else images.astype(dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = self.image_shape is not None
        return tags


def _targets(y: Any) -> tuple[IntArray, Array, list[str]]:
    """Labels as numbers of classes, int64 [n], -1 = none; the classes; and what a person should be told."""
    array = as_column(y, "y")
    if np.asarray(y).ndim == 2:
        warnings.warn("A column-vector y was passed when a 1d array was expected", DataConversionWarning, stacklevel=3)
    entries, notes = _entries(array)
    known = np.array([entry is not None for entry in entries], dtype=bool)
    if not known.any():
        raise UsageError(f"none of the {len(array)} entries of y is a label, so there is nothing to learn from; -1, "
                         "NaN and None mean none")
    if len({isinstance(entry, str) for entry in entries if entry is not None}) > 1:
        raise UsageError("y holds both texts and numbers; expected one kind of labels")
    check_classification_targets(array[known])
    classes, numbers = np.unique(array[known], return_inverse=True)
    if len(classes) == 1:
        raise UsageError(f"y has one class only, {classes[0]!r}; expected two or more (-1 is none: it means no label)")
    labels = np.full(len(array), -1, dtype=np.int64)
    labels[known] = numbers
    spellings: dict[str, list[str]] = {}
    for label in classes.tolist():
        spellings.setdefault(same(str(label)), []).append(repr(label))
    notes += [f"{' and '.join(names)} are classes of their own, as y has them" for names in spellings.values()
              if len(names) > 1]
    return labels, classes, notes


def _entries(array: Array) -> tuple[list[Any], list[str]]:
    """Each label, None where there is none; and what to say of that."""
    entries = [entry_of(value, f"y: entry {row}") for row, value in enumerate(array)]
    texts = Counter(entry for entry in entries if isinstance(entry, str))
    gone, notes = unlabeled_texts(texts)
    return [None if entry in gone or (not isinstance(entry, str) and entry == -1) else entry
            for entry in entries], notes
