"""Reading a `torch.utils.data.Dataset` into arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab.class_names import Names, shown
from ssl_lab.data.arrays import IntArray
from ssl_lab.data.decode import to_square, upright
from ssl_lab.errors import UsageError


def read_dataset(dataset: Any, image_size: int | None) -> tuple[NDArray[Any], IntArray]:
    """Images stacked as they are ([N, ...]), and int64 [N] labels. UsageError naming the first bad row."""
    images, labels = [], []
    for row in range(len(dataset)):
        try:
            image, label = dataset[row]
            labels.append(-1 if label is None else operator.index(label))
        except (TypeError, ValueError) as error:
            raise UsageError(f"row {row} of the data set is not a pair of an image and a whole-numbered "
                             f"label: {error}") from error
        images.append(_as_array(image, image_size))
    if not images:
        raise UsageError("the data set is empty")
    if any(image.ndim == 3 for image in images):
        images = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
    for row, image in enumerate(images):
        if image.shape != images[0].shape:
            raise UsageError(f"row {row} of the data set has shape {image.shape}, but row 0 has "
                             f"{images[0].shape}. Give PIL images and image_size=..., or images of one size.")
    return np.stack(images), np.array(labels, dtype=np.int64)


def names_in(dataset: Any) -> Names | None:
    """What a data set calls its classes: its `classes`, or the keys of `class_to_idx` by number; of a `Subset` what the
    whole does, of a `ConcatDataset` what all parts do. None if it does not say. UsageError where parts disagree."""
    given, numbers = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str):
        return tuple(map(str, given))
    if isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        return tuple(map(str, sorted(numbers, key=numbers.__getitem__)))
    parts = getattr(dataset, "datasets", None) or [whole for whole in [getattr(dataset, "dataset", None)] if whole]
    said = list(dict.fromkeys(names_in(part) for part in parts))
    if len(said) > 1:
        raise UsageError(f"the parts of the data set name their classes differently ({'; '.join(map(shown, said))}), "
                         "so the same number may mean two classes; give parts that agree")
    return said[0] if said else None


def as_numbered(labels: IntArray, theirs: Names, names: Names, what: str, whose: str) -> IntArray:
    """Labels that number the classes `theirs`, int64 [N], as numbers of `names`: the same class by its name.

    what, whose: what has theirs, and what has `names`. UsageError for a label whose class is not among `names`, or is
    there twice.
    """
    if theirs == names:
        return labels
    foreign = sorted({theirs[label] for label in labels[labels >= 0].tolist() if label < len(theirs)} - {*names})
    if foreign or len({*names}) < len(names) or len({*theirs}) < len(theirs):
        raise UsageError(f"{what} has the classes {shown(theirs)}, {whose} {shown(names)}"
                         f"{f'; there is no {shown(foreign)}' if foreign else ', not each once'}. Give one of the same "
                         "classes")
    numbers = [names.index(name) if name in names else -1 for name in theirs]
    if labels.max(initial=-1) >= len(theirs):
        raise UsageError(f"a label of {what} is {labels.max()}, but there are {len(theirs)} classes: {shown(theirs)}")
    return np.array([numbers[label] if label >= 0 else label for label in labels.tolist()], dtype=np.int64)


def _as_array(image: Any, image_size: int | None) -> NDArray[Any]:
    """[H, W] or [H, W, 3] of a PIL image; anything else as it is."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        return np.asarray(image)
    plain = upright(image)
    return np.asarray(plain if image_size is None else to_square(plain, image_size))
