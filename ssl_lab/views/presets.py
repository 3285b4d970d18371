"""The three views of consistency training: weak, strong and eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.errors import UsageError
from ssl_lab.schedule import Scalar, extremes
from ssl_lab.views import dense
from ssl_lab.views.base import check_images, to_unit
from ssl_lab.views.randaugment import CHANCE, rand_augment
from ssl_lab.views.shift import cutout, flip_and_shift


@dataclass(frozen=True)
class Eval:
    """The image as it is, scaled to [0, 1].

    Attributes:
        style: what the images are like.

    >>> images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    >>> sl.Eval(sl.Style(1, 1, 3))(images, sl.At(0, 1).draw("eval", rows=1))
    tensor([[[[0.0000, 0.2000, 1.0000]]]])
    """

    style: Style
    mirrors = False

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        return to_unit(images)


@dataclass(frozen=True)
class Weak:
    """Horizontal flip in half of the images (where the style allows it), then a small shift.

    Attributes:
        style: what the images are like.

    >>> images = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3)
    >>> weak = sl.Weak(sl.Style(1, 3, 3, flip=False, shift=1))
    >>> seen = [255 * weak(images, sl.At(step, 9).draw("weak", rows=1)) for step in range(3)]
    >>> [image[0, 0, 1].round().int().tolist() for image in seen]  # the middle row of each
    [[4, 3, 4], [0, 1, 2], [1, 0, 1]]
    """

    style: Style
    augment: ClassVar = staticmethod(dense.augmented)

    @property
    def mirrors(self) -> bool:
        return self.style.flip

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        return self.pixels(images, draw)

    def pixels(self, images: Tensor, draw: Draw) -> Tensor:
        """The views of checked images."""
        if images.device.type != "cpu":
            return dense.weak(images, draw, self.style, self.augment)
        return to_unit(flip_and_shift(images, draw, self.style))


@dataclass(frozen=True)
class Strong(Weak):
    """Weak, then RandAugment, then cutout: FixMatch's strong view (Sohn et al. 2020).

    Both may be schedules.

    Attributes:
        style: what the images are like.
        ops: how many operations each image draws.
        cutout: side of the gray square as a fraction of the image's shorter side, in [0, 1]; 0 for none.
        chance: of each operation to be done, in [0, 1].

    >>> pool = sl.load("digits")
    >>> images = pool.images.take(np.zeros(64, dtype=int))  # the same image, 64 times
    >>> seen = sl.Strong(pool.style, ops=2, cutout=0.25)(images, sl.At(0, 1).draw("strong", rows=64))
    >>> len(seen.flatten(1).unique(dim=0)) > 60  # each of them draws for itself
    True
    """

    ops: int = 2
    cutout: Scalar = 0.5
    chance: Scalar = CHANCE

    def __post_init__(self) -> None:
        if self.ops < 0 or not all(0 <= end <= 1 for each in (self.cutout, self.chance) for end in extremes(each)):
            raise UsageError(f"{type(self).__name__}(ops={self.ops}, cutout={self.cutout}, chance={self.chance}): give "
                             "ops >= 0, and a cutout, the square's side as a fraction of the image's, and a chance, "
                             "in [0, 1].")

    def pixels(self, images: Tensor, draw: Draw) -> Tensor:
        side, chance = draw.value(self.cutout), draw.value(self.chance)
        if images.device.type != "cpu":
            return dense.strong(images, draw, self.style, self.ops, side, chance, self.augment)
        shifted = flip_and_shift(images, draw, self.style)
        return to_unit(cutout(rand_augment(shifted, draw, self.ops, chance), draw, side))
