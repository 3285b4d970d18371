"""`Pool`: images, what is known of their labels, and which rows train, validate and test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.batch import Style
from ssl_lab.data.arrays import IntArray, to_indices, to_labels
from ssl_lab.data.content import Content
from ssl_lab.data.dealing import begun, dealt, require_among
from ssl_lab.data.images import Images, Subset
from ssl_lab.data.ledger import IGNORED, SPLIT, UNLABELED, Ledger
from ssl_lab.data.manifest import manifest_of
from ssl_lab.data.memory import content_of_arrays, content_of_datasets
from ssl_lab.data.paths import content_of_files
from ssl_lab.data.reading import AS_BYTES, MAX_PIXELS, Background, Reading
from ssl_lab.data.rows import parts_in
from ssl_lab.data.sizes import Resize
from ssl_lab.data.split import Balance
from ssl_lab.data.summary import summary
from ssl_lab.data.values import Range, parse_range
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text


@dataclass(frozen=True, eq=False)
class Pool:
    """All images of a data set in one index space of N rows, of which train, valid and test are parts.

    Attributes:
        name: of the data set.
        images: uint8 [N, C, H, W], read by row number.
        class_names: in order of the class numbers.
        style: what views and nets are built from.
        root: the folder of `files`; "" where there is none.
        truth: int64 [N], every label that is known, -1 where none is; for evaluation, simulated oracles and
            diagnostics, never for training.
        train, valid, test: int64, sorted row numbers without overlap.
        ledger: the labels that training may use.
        notes: what a person should be told, a line each.
        files: the path of each row's image below the folder `root`, where images come from files.
        passed_over: how many files were left out, by what they are (".heic": 60).
        reading: how images were read, with what was decided from them.
        seed, balance: how the labels were chosen (None: they were not drawn).
        imbalance: of the long tail that train rows were cut to, if they were.
        dropped: int64, sorted, the rows that it left out.
        drawn: int64, the rows that labeled batches are drawn from, some perhaps several times, where these are not
            `labeled`.

    >>> pool = sl.load("digits").split(labels=10, valid=100)
    >>> len(pool.labeled), len(pool.unlabeled), len(pool.valid), len(pool.test)
    (10, 1098, 100, 599)
    >>> pool.record([pool.unlabeled[0]], [3])  # somebody says that it is a three
    >>> len(pool.labeled)
    11
    """

    name: str
    images: Images
    truth: IntArray
    class_names: tuple[str, ...]
    style: Style
    train: IntArray
    valid: IntArray
    test: IntArray
    ledger: Ledger = field(default_factory=Ledger)
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    root: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    reading: Reading = AS_BYTES
    seed: int | None = None
    balance: str | None = None
    imbalance: float | None = None
    dropped: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    drawn: IntArray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return summary(self)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def labels(self) -> IntArray:
        """int64 [N], read-only: the labels that training may use, now. -1 = unlabeled, -2 = ignored; rows
        of valid and test are -1."""
        return self.ledger.labels(len(self))

    @property
    def labeled(self) -> IntArray:
        """The train rows that have a label now."""
        return self.train[self.labels[self.train] >= 0]

    @property
    def unlabeled(self) -> IntArray:
        """All train rows, labeled ones too, as semi-supervised methods have it; only ignored ones are out."""
        kept: IntArray = self.train[self.labels[self.train] != IGNORED]
        return kept

    def record(self, indices: ArrayLike, labels: ArrayLike, source: str = "oracle") -> None:
        """Add labels of train rows: class numbers, -2 to ignore an image, -1 to take its label back.

        Durable on return if the ledger has a file.

        Args:
            indices, labels: int [n].

        Raises:
            UsageError: if a row is not of train or a label is out of range; nothing is recorded then.

        >>> pool = sl.load("digits").split(labels=10)
        >>> pool.record(pool.unlabeled[:2], [3, -2])  # a three, and one to ignore
        >>> len(pool.labeled), len(pool.unlabeled)
        (11, 1197)
        """
        rows = to_indices(indices, len(self), "record: indices")
        require_among(self, rows, self.train, "record: indices", "is not a train row")
        values = np.asarray(labels)
        to_labels(np.where(values == IGNORED, UNLABELED, values), len(rows), self.classes, "record: labels")
        self.ledger.append(indices, values, source)

    def split(self, labels: float | None = None,
              valid: float | ArrayLike | str | os.PathLike[str] | None = None, seed: int = 0,
              balance: Balance = "class", *, labeled: ArrayLike | str | os.PathLike[str] | None = None,
              imbalance: float | None = None, ledger: str | os.PathLike[str] | None = None) -> Pool:
        """This pool with few labels: a new pool on the same images; the same arguments give the same split.

        The rows to label are drawn first, in an order of all whose label is known, and validation rows from what they
        leave, each class by its share: whatever `valid` is, the same rows are labeled (only explicit validation rows
        let others move up), more labels add to fewer, and few validation rows move with them. With labels=None
        validation rows come first, and all others are labeled.

        Args:
            labels: how many train images get their label, or which fraction (0 to 1) of those whose label is known;
                None: all of these. With balance "class", each class gets an equal share; with "natural", images are
                drawn at random; with "covered" too, but first one of each class.
            valid: a fraction (0 to 1) or a count of the train images whose label is known, or explicit rows, that
                become validation rows instead. *Their labels come on top of `labels`: count them when you report.*
                0: none; None: those of this pool stay. Train, valid and dropped rows of this pool are dealt anew;
                test never changes.
            imbalance: train rows become long-tailed. Class c of C keeps n_0 * imbalance^(-c / (C - 1)) of those
                whose label is known (at least one), with the largest n_0 that all classes can give; the others are
                dropped. With balance "class", `labels` are then dealt in the same proportions, at least one to each
                class. Valid and test rows, and images whose label is unknown, stay as they are.
            labeled, valid: explicit rows of the pool, or a file of them: .npy, .json, text with one a line, or a
                manifest written by `write_manifest`, which brings its valid rows too; labeled also a CSV of path
                (or id) and label, which brings the labels (`ssl-lab labels`).
            ledger: a file that holds the labels; if it exists, it must have begun with this very split, and its
                later labels count.

        >>> few, more = (sl.load("digits").split(labels=labels, seed=1) for labels in (10, 50))
        >>> set(few.labeled) <= set(more.labeled)
        True
        """
        return dealt(self, labels, valid, seed, balance, labeled, imbalance, ledger)

    def subset(self, rows: ArrayLike) -> Pool:
        """A new pool of these rows alone, int [n], numbered anew in rising order, each of them what it is in this one,
        with the label that it has now. UsageError for rows that are not there, or are named twice.

        >>> pool = sl.load("digits").split(labels=10)
        >>> few = pool.subset(np.concatenate([pool.labeled, pool.test[:50]]))
        >>> len(few), len(few.labeled), len(few.test)
        (60, 10, 50)
        """
        chosen = to_indices(rows, len(self), "subset: rows")
        number = np.full(len(self), -1)
        number[chosen] = np.arange(len(chosen))

        def among(these: IntArray) -> IntArray:
            found: IntArray = number[these]
            return found[found >= 0]

        labels, ledger = self.labels[chosen], Ledger()
        ledger.append(np.flatnonzero(labels != UNLABELED), labels[labels != UNLABELED], SPLIT)
        return replace(self, images=Subset(self.images, chosen), truth=self.truth[chosen], train=among(self.train),
                       valid=among(self.valid), test=among(self.test), dropped=among(self.dropped), ledger=ledger,
                       files=tuple(self.files[row] for row in chosen) if self.files else (),
                       drawn=None if self.drawn is None else among(self.drawn))

    def manifest(self) -> dict[str, Any]:
        """What this split is, ready for JSON: name, seed, balance, imbalance, counts, rows, labels, and two hashes.

        pixels: the fingerprint of the images. hash: sha256 of the pixels' fingerprint, the truth, and the rows (of
        ignored images too) and labels; two splits with the same hash are the same experiment.
        """
        return manifest_of(self)

    def write_manifest(self, path: str | os.PathLike[str]) -> None:
        """Write `manifest()` as JSON; `split(labeled=path)` makes the same split again."""
        write_text(Path(path), json.dumps(self.manifest()) + "\n")

    @classmethod
    def from_arrays(cls, images: ArrayLike, labels: Any, test_images: ArrayLike | None = None,
                    test_labels: Any = None, class_names: Sequence[str] | None = None,
                    name: str = "arrays", style: Style | None = None, *, image_size: int | None = None,
                    resize: Resize = "crop", value_range: Range | str | None = None, flip: bool | None = None) -> Pool:
        """A pool of arrays (or tensors, or memory maps, which stay mapped if they are uint8).

        Args:
            images: [N, H, W], [N, C, H, W] or [N, H, W, C], of bytes, booleans, whole numbers or floats.
            labels: [N]; class numbers, where -1 and NaN mean no label, or texts, where None does and the words that
                do in a CSV file.
            class_names: which numbers count and texts name; by default the classes are those that occur among
                labels and test_labels, by these names, sorted and numbered from 0 without gaps (a note says so if
                that changes numbers).
            style: measured by default.
            value_range: the values of black and of white, as a pair or "LOW-HIGH"; by default decided by the values
                of all images together (see `decide`) and noted.
            image_size: side in pixels to resize to, as `resize` says ("crop", "pad" or "squash", see `Resize`); by
                default images keep their size.
            flip: whether views may mirror images; False where a mirrored image is of another class.

        >>> images = np.random.default_rng(0).random((6, 8, 8), dtype=np.float32)
        >>> sl.Pool.from_arrays(images, ["cat", "dog", None, None, "cat", "dog"]).class_names
        ('cat', 'dog')
        """
        reading = Reading(image_size, resize=resize, value_range=parse_range(value_range), flip=flip)
        return pool_of(content_of_arrays(images, labels, test_images, test_labels, class_names, name, style, reading))

    @classmethod
    def from_files(cls, files: Sequence[str | os.PathLike[str]], labels: Any, parts: Sequence[str] | None = None,
                   class_names: Sequence[str] | None = None, name: str = "files",
                   data_dir: str | os.PathLike[str] | None = None, *, hold_out: float = 0.2,
                   image_size: int | None = None, max_pixels: int = MAX_PIXELS, resize: Resize = "crop",
                   value_range: Range | str | None = None, background: Background = "white",
                   flip: bool | None = None) -> Pool:
        """A pool of image files, such as the columns of a table: `from_files(table.path, table.label)`.

        data_dir, image_size and what follows: see `load`. What holds for a CSV file holds here: an image counts once,
        and those that cannot be read are left out and noted.

        Args:
            files: n paths.
            labels: of each, as `from_arrays` takes them.
            parts: of each, train, valid or test; by default all are of train.
            class_names: see `from_arrays`.
            hold_out: if no image is of test, this share of the labeled ones of each class is held out as that; 0:
                none.
        """
        reading = Reading(image_size, max_pixels, resize, parse_range(value_range), background, flip)
        return pool_of(content_of_files(files, labels, parts, class_names, name, data_dir, hold_out, reading))

    @classmethod
    def from_dataset(cls, train: Any, test: Any = None, class_names: Sequence[str] | None = None,
                     name: str = "dataset", image_size: int | None = None, *, valid: Any = None,
                     image_column: str | None = None, label_column: str | None = None, resize: Resize = "crop",
                     value_range: Range | str | None = None, background: Background = "white",
                     flip: bool | None = None) -> Pool:
        """A pool of data sets: `torch.utils.data.Dataset`s, or anything with `len` and rows, of (image, label); or such
        of named columns, as those of Hugging Face's `datasets` are. A dict of them (`DatasetDict`) brings the parts
        that its keys name.

        An image is a PIL image, an array or tensor as `from_arrays` takes them, a path, or the bytes of a file, without
        a transform that draws random numbers: each is read once, now, into memory. A label is a number or text as
        `from_arrays` takes them.

        Args:
            image_column, label_column: of named columns; by default those of the right type, or of usual names.
            image_size: images are resized to it, which images that differ in size need.
            resize, value_range, flip: as for `from_arrays`.
            background: "white" or "black", of PIL images that are transparent.
            class_names: by default what `train` calls them (`classes`, `class_to_idx`, or the names of a
                `ClassLabel`). Where `test` or `valid` names its classes too, its labels are read by name;
                UsageError for one that `train` does not have.
        """
        reading = Reading(image_size, resize=resize, value_range=parse_range(value_range), background=background,
                          flip=flip)
        parts = parts_in(train) | {part: given for part, given in (("valid", valid), ("test", test))
                                   if given is not None}
        return pool_of(content_of_datasets(parts, class_names, name, reading, (image_column, label_column)))


def pool_of(content: Content) -> Pool:
    """A pool in which every known label of the rows outside test and valid is given. UsageError for a single class."""
    if len(content.class_names) == 1:
        raise UsageError(f"{content.name} has one class only, {content.class_names[0]!r}, expected two or more (or "
                         "none, if no image has a label)")
    truth, test = content.truth, content.test
    valid = test[:0] if content.valid is None else content.valid
    train = np.setdiff1d(np.arange(len(content.images)), np.concatenate([test, valid]))
    known = train[truth[train] >= 0]
    return Pool(content.name, content.images, truth, content.class_names, content.style, train, valid, test,
                begun(Ledger(), known, truth[known]), content.notes, content.files, content.root, content.passed_over,
                content.reading)
