"""The 14 operations of RandAugment as FixMatch uses them, each on a batch with one parameter per row.

Every function takes images, uint8 [R, C, H, W] with 1 or 3 channels on any device, and `values`, float64 [R]
on the CPU (ignored where an operation has no parameter), and returns uint8 images of the same shape (the
same tensor where nothing changes). The five geometric operations are one, `move`, which also takes their
kinds. The results are Pillow's byte for byte, but for auto_contrast.
"""

from __future__ import annotations

import torch
from torch import Tensor

# None of Kornia's counterparts is used. On 16 images of 32 x 32, a usual share of a batch, its equalize,
# solarize and posterize give the same bytes in 2, 2 and 15 times the time; the others keep fractions of gray
# levels, or sample other pixels than Pillow, and at best take the same time.


LUMA = 19595, 38470, 7471
"""Pillow's weights of red, green and blue, of 65536 (Kornia's are of 32768)."""


def auto_contrast(images: Tensor, values: Tensor) -> Tensor:
    """Stretch each channel so that its darkest pixel becomes 0 and its brightest 255.

    Truncates the exact quotient; Pillow truncates a rounded one, so that it may be 1 lower.
    """
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True), pixels.amax(2, keepdim=True)
    flat = low == high
    low, high = low.masked_fill(flat, 0), high.masked_fill(flat, 255)  # a flat channel stays as it is
    return ((pixels - low).float() * 255 / (high - low)).to(torch.uint8).view_as(images)


def brightness(images: Tensor, values: Tensor) -> Tensor:
    """Blend with black. values: 0 is black, 1 the image itself, more is brighter."""
    return blend(0.0, images, values)


def color(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the gray image. values: 0 is gray, 1 the image itself, more is more saturated."""
    return images if images.shape[1] == 1 else blend(_gray(images), images, values)


def contrast(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the mean gray level. values: 0 is flat, 1 the image itself, more is more contrast."""
    gray = _gray(images).flatten(1)
    pixels = gray.shape[1]
    mean = (gray.sum(1) * 2 + pixels) // (2 * pixels)  # of whole numbers, rounded half up
    return blend(_per_row(mean, images), images, values)


def equalize(images: Tensor, values: Tensor) -> Tensor:
    """Make each channel's histogram flat."""
    rows, channels, height, width = images.shape
    pixels = images.flatten(2).long()
    counts = pixels.new_zeros(rows, channels, 256)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = pixels.amax(2, keepdim=True)
    step = (height * width - counts.gather(2, brightest)) // 255
    darker = counts.cumsum(2) - counts
    table = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.to(torch.uint8).gather(2, pixels).view_as(images)


def posterize(images: Tensor, values: Tensor) -> Tensor:
    """Keep the highest bits of each pixel. values: how many, whole, 1..8."""
    return images & _per_row(256 - 2 ** (8 - values), images).to(torch.uint8)


def sharpness(images: Tensor, values: Tensor) -> Tensor:
    """Blend with the smoothed image. values: 0 is smooth, 1 the image itself, more is sharper."""
    height, width = images.shape[2:]
    if height < 3 or width < 3:
        return images
    x = images.float()
    columns = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    x[:, :, 1:-1, 1:-1] = (total / 13).round()  # border pixels stay as they are
    return blend(x, images, values)


def solarize(images: Tensor, values: Tensor) -> Tensor:
    """Invert bright pixels. values: the threshold, whole, 1..256; pixels at or above it are inverted."""
    bright = images > _per_row(values - 1, images).to(torch.uint8)
    return images ^ (bright.to(torch.uint8) * 255)


MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""What `move` can do. Values: degrees, counterclockwise; pixels per line; pixels per column; fraction of the width, to
the left if positive, truncated to pixels; fraction of the height, up if positive, truncated to pixels."""


def move(images: Tensor, values: Tensor, kinds: Tensor) -> Tensor:
    """Rotate about the center, shear, or translate; what comes from outside is black.

    kinds: int64 [R] on the CPU: row i undergoes MOVES[kinds[i]] by values[i], so that one pass serves all of them.
    """
    fixed = coefficients(values, kinds, *images.shape[2:]).to(images.device, non_blocking=True)
    return _affine(images, fixed[:, :, None, None])


def coefficients(values: Tensor, kinds: Tensor, height: int, width: int) -> Tensor:
    """int32 [6, ...]: from where MOVES take each pixel, in 16-bit fixed point like Pillow's, hence the same pixels.

    values: float64 [...]; kinds: int64 [...], see `move`. The pixel in line v and column u comes from column
    (c0*u + c1*v + c2) >> 16 and line (c3*u + c4*v + c5) >> 16.
    """
    degrees, shear_x, shear_y, left, up = values.new_zeros(len(MOVES), *values.shape).scatter_(
        0, kinds[None], values[None])
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    x, y = width / 2, height / 2
    xx, xy, x0 = cos, shear_x - sin, x - cos * x + sin * y + (left * width).trunc()
    yx, yy, y0 = shear_y + sin, cos, y - sin * x - cos * y + (up * height).trunc()
    # of the centers of pixels
    return fixed_point(torch.stack([xx, xy, x0 + (xx + xy) / 2, yx, yy, y0 + (yx + yy) / 2]))


def fixed_point(values: Tensor) -> Tensor:
    """int32: 65536 times float64 values, rounded."""
    return (values * 65536 + 0.5).floor().int()


def _per_row(values: Tensor, images: Tensor) -> Tensor:
    """[R] values as [R, 1, 1, 1] on the device of the images."""
    return values.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def blend(base: Tensor | float, images: Tensor, factors: Tensor) -> Tensor:
    """base + factor * (image - base) in float32, limited to 0..255 and truncated, as Pillow does."""
    return ((images - base) * _per_row(factors.float(), images) + base).clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """int32 [R, 1, H, W]: Pillow's luma, in 16-bit fixed point."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = (part * weight for part, weight in zip(images.int().tensor_split(3, dim=1), LUMA, strict=True))
    return (red + green + blue + 32768) >> 16


def _affine(images: Tensor, fixed: Tensor) -> Tensor:
    """Nearest sampling with black beyond the border. fixed: int32 [6, R, 1, 1], see `coefficients`."""
    channels, height, width = images.shape[1:]
    columns = torch.arange(width, dtype=torch.int32, device=images.device)
    lines = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    x = (fixed[0] * columns + fixed[2] + fixed[1] * lines).bitwise_right_shift_(16).clamp_(-1, width)
    y = (fixed[4] * lines + fixed[5] + fixed[3] * columns).bitwise_right_shift_(16).clamp_(-1, height)
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1))  # what lies outside comes from the black frame
    source = y.add_(1).mul_(width + 2).add_(x).add_(1).long().flatten(1)[:, None]
    return framed.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)
