"""The views of self-supervised pretraining: crop, flip, color jitter, gray, blur and solarize, each row by itself.

Chen et al. 2020 (SimCLR, arXiv 2002.05709), appendix A; Grill et al. 2020 (BYOL, arXiv 2006.07733), appendix B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.errors import UsageError
from ssl_lab.views import color, dense_contrastive
from ssl_lab.views.base import check_images, to_unit

SMALL = 32  # pixels up to which an image is small: milder crops and colors, no blur
TRIES = 10  # at a box that lies within the image
CHUNK = 2**17  # pixels of the rows that go through all operations together, so that they stay in a CPU's cache
SIGMA = 0.1, 2.0  # of the blur, in pixels


@dataclass(frozen=True)
class SimCLRView:
    """Random resized crop, flip (where the style allows it), color jitter, gray, blur and solarize: SimCLR and BYOL.

    A box of `area` to `most` of the image and a ratio of sides from 3/4 to 4/3 is resized to the image's size, or to
    `size` x `size`. In 0.8 of the images, brightness, contrast, saturation and hue change in random order by factors in
    1 +- `jitter` and an angle of +- jitter[3] turns. Gray images have neither saturation nor hue.

    The Gaussian's sigma is from 0.1 to 2 pixels, its kernel a tenth of the height; up to 32 pixels, nothing is blurred.

    Attributes:
        style: what the images are like.
        area: least share of the image; None: 0.2 for images up to 32 pixels, else 0.08.
        jitter: None: (0.4, 0.4, 0.4, 0.1) up to 32 pixels, SimCLR's strength 0.5 for CIFAR, else twice that.
        most: greatest share of the image.
        gray, blur, solarize: shares of the images.
        size: side of the result; what the style's images are large or small by, and the Gaussian's sigma, is not
            affected.

    >>> images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    >>> view = sl.views.SimCLRView(sl.Style(3, 96, 96), size=32)
    >>> view(images, sl.At(0, 1).draw("view", rows=2)).shape
    torch.Size([2, 3, 32, 32])
    """

    style: Style
    area: float | None = None
    jitter: tuple[float, float, float, float] | None = None
    gray: float = 0.2
    blur: float = 0.5
    solarize: float = 0.0
    most: float = 1.0
    size: int | None = None
    augment: ClassVar = staticmethod(dense_contrastive.augmented)

    def __post_init__(self) -> None:
        shares = (self.gray, self.blur, self.solarize)
        if not (0 < self._area <= self.most <= 1 and all(0 <= share <= 1 for share in shares) and min(self._jitter) >= 0
                and self._jitter[3] <= 0.5 and (self.size is None or self.size >= 1)):
            raise UsageError(f"SimCLRView(area={self.area}, jitter={self.jitter}, gray={self.gray}, blur={self.blur}, "
                             f"solarize={self.solarize}, most={self.most}, size={self.size}): give an area in "
                             "(0, most], a most of up to 1, jitter of at least 0, of hue at most 0.5, shares in [0, "
                             "1], and a size of 1 or more")

    @property
    def mirrors(self) -> bool:
        return self.style.flip

    @property
    def _small(self) -> bool:
        return min(self.style.height, self.style.width) <= SMALL

    @property
    def _area(self) -> float:
        return (0.2 if self._small else 0.08) if self.area is None else self.area

    @property
    def _jitter(self) -> tuple[float, float, float, float]:
        return ((0.4, 0.4, 0.4, 0.1) if self._small else (0.8, 0.8, 0.8, 0.2)) if self.jitter is None else self.jitter

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        drawn = self._drawn(draw, images.shape[2], images.shape[3])
        return (self._in_chunks if images.device.type == "cpu" or not len(images) else self._at_once)(images, drawn)

    def _sides(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the result."""
        return (images.shape[2], images.shape[3]) if self.size is None else (self.size, self.size)

    def _drawn(self, draw: Draw, height: int, width: int) -> _Drawn:
        boxes = random_boxes(draw, height, width, self._area, self.most)
        flipped = (draw.uniform() < 0.5) & self.style.flip
        changes = color.Jitter.drawn(draw, self._jitter)
        gray, blurred, solarized = (draw.uniform() < share for share in (self.gray, self.blur, self.solarize))
        return _Drawn(boxes, flipped, changes, gray, blurred & (not self._small), solarized,
                      draw.uniform(low=SIGMA[0], high=SIGMA[1]))

    def _at_once(self, images: Tensor, drawn: _Drawn) -> Tensor:
        """On a GPU."""
        blurs = self.blur > 0 and not self._small
        return dense_contrastive.simclr(images, self._sides(images), drawn.boxes, drawn.flipped, drawn.changes,
                                        drawn.gray,
                                        torch.where(drawn.blurred, drawn.sigmas, 0.0) if blurs else None,
                                        drawn.solarized if self.solarize else None, self.augment)

    def _in_chunks(self, images: Tensor, drawn: _Drawn) -> Tensor:
        """On a CPU."""
        boxes, flipped, changes, gray, blurred, solarized, sigmas = drawn
        # Rows whose hue changes at the same turn lie beside each other: slices of them are views of the batch.
        order = changes.turn.argsort(stable=True)
        rows = max(1, CHUNK // max(1, images.shape[2] * images.shape[3]))
        sides = self._sides(images)
        result = images.new_empty((*images.shape[:2], *sides), dtype=torch.float32)
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            x = resized_crop(to_unit(images.index_select(0, chosen)), boxes[chosen], flipped[chosen], sides)
            if images.shape[1] == 3:
                color.jitter_(x, changes[chosen])
                color.to_gray_(x, gray[chosen])
            else:
                color.jitter_gray_(x, changes[chosen])
            blur_(x, blurred[chosen], sigmas[chosen])
            color.solarize_(x, solarized[chosen])
            result.index_copy_(0, chosen, x.clamp_(0, 1))
        return result


def crop(style: Style, area: float = 0.2, most: float = 1.0, size: int | None = None) -> SimCLRView:
    """Random resized crop, then flip (where the style allows it), and no more: MAE's view (He et al. 2021).

    A `SimCLRView`, uint8 [B, C, H, W] to float in [0, 1], without its colors and blur.

    Args:
        style: what the images are like.
        area, most: least and greatest share of the image, in (0, 1].
        size: side of the result in pixels, if not the image's.

    Raises:
        UsageError: for a share or a size outside of these.

    >>> images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    >>> sl.views.crop(sl.Style(3, 64, 64), size=32)(images, sl.At(0, 1).draw("view", rows=2)).shape
    torch.Size([2, 3, 32, 32])
    """
    return SimCLRView(style, area, (0.0, 0.0, 0.0, 0.0), gray=0.0, blur=0.0, most=most, size=size)


class _Drawn(NamedTuple):
    """What happens to each row; on the CPU."""

    boxes: Tensor
    flipped: Tensor
    changes: color.Jitter
    gray: Tensor
    blurred: Tensor
    solarized: Tensor
    sigmas: Tensor


# BYOL's two views, also of MoCo v3 and Barlow Twins. VICReg's paper has one for both; its code has BYOL's.
BYOL_JITTER = (0.4, 0.4, 0.2, 0.1)
BYOL1 = partial(SimCLRView, jitter=BYOL_JITTER, blur=1.0)
BYOL2 = partial(SimCLRView, jitter=BYOL_JITTER, blur=0.1, solarize=0.2)
VICREG = partial(SimCLRView, jitter=BYOL_JITTER, blur=0.5, solarize=0.1)
# MoCo v2's, also of SimSiam.
MOCO = partial(SimCLRView, area=0.2, jitter=(0.4, 0.4, 0.4, 0.1))


def random_boxes(draw: Draw, height: int, width: int, area: float, most: float = 1.0) -> Tensor:
    """int64 [B, 4], on the CPU: top, left, height and width of a box within each image.

    The share of the image's area is uniform in [area, most], the log of the ratio of sides in log 3/4 to log 4/3, until
    a box fits; after ten that do not, it is the largest centered one with such a ratio (torchvision's procedure).
    """
    shares = draw.uniform(TRIES, low=area, high=most).double() * height * width
    ratios = draw.uniform(TRIES, low=math.log(3 / 4), high=math.log(4 / 3)).double().exp()
    widths, heights = (shares * ratios).sqrt().round().long(), (shares / ratios).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    largest = torch.tensor([[min(height, max(1, round(width * 4 / 3))), min(width, max(1, round(height * 4 / 3)))]])
    first = fits.int().argmax(dim=1, keepdim=True)
    sides = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    found = fits.any(dim=1, keepdim=True)
    sides = torch.where(found, sides, largest)
    room = torch.tensor([height, width]) - sides
    corner = torch.where(found, (draw.uniform(2) * (room + 1)).long(), (room + 1) // 2)
    return torch.cat([corner, sides], dim=1)


def resized_crop(images: Tensor, boxes: Tensor, flipped: Tensor, sides: tuple[int, int] | None = None) -> Tensor:
    """Each image's box, mirrored where `flipped`, resized to `sides`, height and width: bilinear, one pass.

    images: float [B, C, H, W]. boxes: int64 [B, 4], see `random_boxes`. flipped: bool [B]; both on the CPU. sides: by
    default those of the images.
    """
    height, width = images.shape[2:]
    out = sides or (height, width)
    top, left, box_height, box_width = boxes.double()[:, :, None].unbind(1)
    lines = _places(out[0], top, box_height)
    columns = _places(out[1], left, box_width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    # grid_sample's coordinates: -1 and 1 are the outer edges of the first and of the last pixel
    x, y = ((2 * places + 1) / size - 1 for places, size in ((columns, width), (lines, height)))
    x, y = (part.float().to(images.device, non_blocking=True) for part in (x, y))
    shape = (len(images), *out)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _places(size: int, start: Tensor, length: Tensor) -> Tensor:
    """float64 [B, size]: the source pixel (0 = center of the first one) of each place of a resized axis.

    They stay within the box: what lies beside it does not show.
    """
    places = (torch.arange(size) + 0.5) * length / size - 0.5
    return start + places.clamp(min=0).minimum(length - 1)


def blur_(images: Tensor, chosen: Tensor, sigmas: Tensor) -> None:
    """Gaussian blur of the chosen images, in place; beyond its border, an image mirrors itself about its border pixels.

    images: float [B, C, H, W]. chosen: bool [B]. sigmas: float [B], in pixels; both on the CPU. The kernel has a tenth
    of the height and of the width, as odd numbers.

    Two products with banded matrices. Kornia's gaussian_blur2d takes about the same time (1.3 times it at 96 pixels,
    0.9 at 224), but the last bits of an image depend on how many others there are, so that ranks would differ.
    """
    rows = color.chosen_rows(chosen, images)
    if len(rows):
        down, across = (gaussian_matrices(side, sigmas[chosen]).to(images.device, non_blocking=True)[:, None]
                        for side in images.shape[2:])
        images.index_copy_(0, rows, down @ (images.index_select(0, rows) @ across.mT))


def gaussian_matrices(side: int, sigmas: Tensor) -> Tensor:
    """float32 [R, side, side]: matrices that blur an axis, with row sums of 1. sigmas: float [R]."""
    half = side // 20
    offsets = torch.arange(-half, half + 1)
    weights = (-0.5 * (offsets / sigmas[:, None]).square()).softmax(dim=1)
    sources = (torch.arange(side)[:, None] + offsets).abs()
    sources = side - 1 - (side - 1 - sources).abs()
    matrices = torch.zeros(len(sigmas), side, side)
    return matrices.scatter_add_(2, sources.expand(len(sigmas), -1, -1), weights[:, None].expand(-1, side, -1))
