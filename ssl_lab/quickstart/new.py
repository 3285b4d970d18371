"""The end of the quickstart: a finished run says what images are that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ssl_lab import model
from ssl_lab.data import Pool
from ssl_lab.engine.folder import clear
from ssl_lab.files import make_folder

NEW = 5  # images


@dataclass(frozen=True)
class Said:
    """What the model says of a new image. file: its path. image: uint8 [1, H, W]. label, probability: its answer.
    truth: the right one."""

    file: Path
    image: Tensor
    label: str
    probability: float
    truth: str

    @property
    def right(self) -> bool:
        return self.label == self.truth


def use(folder: Path, pool: Pool, new: Path) -> list[Said]:
    """What the run in `folder` says of the first test images, which are written to `new` as files of their own."""
    clear(new)
    make_folder(new)
    rows = pool.test[:NEW]
    images = pool.images.take(rows)
    files = [new / f"{number}.png" for number in range(1, len(rows) + 1)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    found = model.open(folder, precision="fp32").predict(files)
    return [Said(file, image, label or "", float(probability), pool.class_names[truth])
            for file, image, label, probability, truth
            in zip(files, images, found.labels, found.confidence, pool.truth[rows], strict=True)]
