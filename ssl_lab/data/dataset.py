"""Reading a `torch.utils.data.Dataset` into arrays."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def _as_array(image: Any, image_size: int | None) -> NDArray[Any]:
    """[H, W] or [H, W, 3] of a PIL image; anything else as it is."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        return np.asarray(image)
    plain = upright(image)
    return np.asarray(plain if image_size is None else to_square(plain, image_size))
