"""Views against Pillow and NumPy, and the contract that every view keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ssl_lab.batch import At, Draw, Style
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator
from ssl_lab.testing import check_views
from ssl_lab.views import VIEWS, Eval, Strong, ViewFactory, Weak, ops
from ssl_lab.views.randaugment import OPERATIONS, rand_augment
from ssl_lab.views.shift import cutout, flip_and_shift

SIZES = [(8, 8), (28, 28), (32, 32), (33, 47), (2, 5), (1, 1)]
CHANNELS = [1, 3]
ROWS = 6


def pictures(channels: int, height: int, width: int, rows: int = ROWS) -> Tensor:
    """Noise of several ranges, a ramp, a flat image and one of two colors, so that every branch is met."""
    random = np.random.default_rng(height * width + channels)
    batch = random.integers(0, 256, (rows, channels, height, width))
    batch[1] = random.integers(60, 140, batch[1].shape)
    batch[2] = np.linspace(3, 250, batch[2].size).reshape(batch[2].shape)
    batch[3] = 77
    batch[4] = np.where(batch[4] > 128, 200, 31)
    return torch.from_numpy(batch.astype(np.uint8))


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


# FixMatch's operations by Pillow, each from a level 1..9 and a sign, written from the table in plain numbers.
PILLOW: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "identity": lambda im, v, s: im,
    "auto_contrast": lambda im, v, s: ImageOps.autocontrast(im),
    "equalize": lambda im, v, s: ImageOps.equalize(im),
    "rotate": lambda im, v, s: im.rotate(s * 3 * v),
    "solarize": lambda im, v, s: ImageOps.solarize(im, 256 - int(25.6 * v)),
    "color": lambda im, v, s: ImageEnhance.Color(im).enhance(v * 1.8 / 10 + 0.1),
    "contrast": lambda im, v, s: ImageEnhance.Contrast(im).enhance(v * 1.8 / 10 + 0.1),
    "brightness": lambda im, v, s: ImageEnhance.Brightness(im).enhance(v * 1.8 / 10 + 0.1),
    "sharpness": lambda im, v, s: ImageEnhance.Sharpness(im).enhance(v * 1.8 / 10 + 0.1),
    "shear_x": lambda im, v, s: affine(im, 1, s * v * 0.3 / 10, 0, 0, 1, 0),
    "translate_x": lambda im, v, s: affine(im, 1, 0, s * (v * im.width // 32), 0, 1, 0),
    "translate_y": lambda im, v, s: affine(im, 1, 0, 0, 0, 1, s * (v * im.height // 32)),
    "posterize": lambda im, v, s: ImageOps.posterize(im, 4 - int(0.4 * v)),
    "shear_y": lambda im, v, s: affine(im, 1, 0, 0, s * v * 0.3 / 10, 1, 0),
}


def operate(name: str, images: Tensor, values: Tensor) -> Tensor:
    """What one operation of the table does to all rows."""
    if name in ops.MOVES:
        return ops.move(images, values, torch.full((len(images),), ops.MOVES.index(name)))
    apply = OPERATIONS[name].apply
    return apply(images, values) if apply else images


def test_the_reference_has_the_same_14_operations() -> None:
    assert len(PILLOW) == 14
    assert PILLOW.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows(name: str, size: tuple[int, int], channels: int) -> None:
    """Byte for byte at all levels and signs; see below for auto_contrast."""
    images, operation = pictures(channels, *size), OPERATIONS[name]
    before = images.clone()
    for level in range(1, 10):
        for sign in (-1, 1) if operation.signed else (1,):
            values = operation.value(torch.full((ROWS,), level, dtype=torch.float64)) * sign
            ours = operate(name, images, values)
            pillow = torch.stack([from_pil(PILLOW[name](to_pil(image), level, sign)) for image in images])
            assert ours.dtype == torch.uint8
            if name == "auto_contrast":
                excess = ours.int() - pillow.int()
                assert excess.min() >= 0
                assert excess.max() <= 1
            else:
                torch.testing.assert_close(ours, pillow, rtol=0, atol=0, msg=f"{name} {sign * level}")
    assert torch.equal(images, before)


def test_auto_contrast_is_the_truncated_exact_quotient() -> None:
    """Many ranges low..high. Pillow is lower by one where its rounded product falls below a whole number."""
    for low in range(0, 255, 7):
        for high in range(low + 1, 256, 5):
            image = torch.arange(low, high + 1, dtype=torch.uint8)[None, None, None]
            ours = operate("auto_contrast", image, torch.zeros(1, dtype=torch.float64))
            exact = [(pixel - low) * 255 // (high - low) for pixel in range(low, high + 1)]
            assert ours.flatten().tolist() == exact


def test_rows_of_an_operation_have_their_own_parameters() -> None:
    images = pictures(3, 32, 32)[:1].repeat(9, 1, 1, 1)
    levels = torch.arange(1, 10, dtype=torch.float64)
    for name, operation in OPERATIONS.items():
        values = operation.value(levels)
        together = operate(name, images, values)
        alone = [operate(name, images[:1], values[row : row + 1]) for row in range(9)]
        assert torch.equal(together, torch.cat(alone)), name


class RecordedDraw(Draw):
    """A Draw that remembers what it gave, so that a slow reference can follow it."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__((seed, "test"), rows, slice(0, rows), torch.device("cpu"))
        self.given: list[Tensor] = []

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        self.given.append(super().uniform(*shape, low=low, high=high))
        return self.given[-1]

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        self.given.append(super().integers(low, high, *shape))
        return self.given[-1]


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 47), (3, 2), (1, 1)])
def test_weak_is_flip_then_reflect_pad_then_crop(size: tuple[int, int]) -> None:
    height, width = size
    images = pictures(3, height, width)
    draw = RecordedDraw(ROWS)
    ours = flip_and_shift(images, draw, Style(shift=4))
    downs, rights, flips = (given.flatten().tolist() for given in draw.given)
    pad_y, pad_x = min(4, height - 1), min(4, width - 1)
    for row, image in enumerate(images.numpy()):
        mirrored = image[:, :, ::-1] if flips[row] < 0.5 else image
        padded = np.pad(mirrored, ((0, 0), (pad_y, pad_y), (pad_x, pad_x)), mode="reflect")
        top, left = pad_y + downs[row], pad_x + rights[row]
        np.testing.assert_array_equal(ours[row], padded[:, top : top + height, left : left + width])


def test_weak_shifts_and_flips_are_uniform() -> None:
    rows = 8100
    draw = RecordedDraw(rows)
    flip_and_shift(torch.zeros(rows, 1, 16, 16, dtype=torch.uint8), draw, Style(shift=4))
    downs, rights, flips = draw.given
    for shifts in (downs, rights):
        assert shifts.unique().tolist() == list(range(-4, 5))
        assert_uniform(shifts.flatten() + 4, 9)
    assert abs((flips < 0.5).float().mean() - 0.5) < 0.03


def test_no_flip_where_the_style_forbids_it() -> None:
    """Without a shift, the weak view is then the image itself; otherwise about half are its mirror image."""
    images = pictures(1, 8, 8, rows=64)
    still = Weak(Style(channels=1, flip=False, shift=0))(images, At(0, 1).draw("w", 64))
    assert torch.equal(still, images / 255)
    flipped = Weak(Style(channels=1, flip=True, shift=0))(images, At(0, 1).draw("w", 64))
    same = (flipped == images / 255).flatten(1).all(1)
    mirror = (flipped == images.flip(3) / 255).flatten(1).all(1)
    assert (same | mirror).all()
    assert 16 < (mirror & ~same).sum() < 48


@pytest.mark.parametrize("size", [(32, 32), (28, 20), (9, 9), (1, 1)])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_cutout_is_a_clipped_square(size: tuple[int, int], fraction: float) -> None:
    height, width = size
    rows = 64
    images = torch.full((rows, 3, height, width), 255, dtype=torch.uint8)
    draw = RecordedDraw(rows)
    ours = cutout(images, draw, fraction)
    side = int(fraction * min(size))
    centers = zip(*(given.flatten().tolist() for given in draw.given), strict=True)
    for row, (y, x) in enumerate(centers):
        expected = np.full((3, height, width), 255)
        top, left = y - side // 2, x - side // 2
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 127
        np.testing.assert_array_equal(ours[row], expected)
    assert (images == 255).all()


def test_cutout_covers_what_the_paper_says_on_32_pixels() -> None:
    """A square of 16 whose center is any pixel: at most all of it, at least (in a corner) a quarter."""
    ours = cutout(torch.zeros(4096, 1, 32, 32, dtype=torch.uint8), At(0, 1).draw("c", 4096), 0.5)
    area = (ours == 127).flatten(1).sum(1)
    assert area.min() >= 8 * 8
    assert area.max() == 16 * 16
    # A side is clipped to min(32, c + 8) - max(0, c - 8) for centers c = 0..31.
    mean_side = np.mean([min(32, c + 8) - max(0, c - 8) for c in range(32)])
    assert area.float().mean().item() == pytest.approx(mean_side**2, rel=0.03)


def assert_uniform(values: Tensor, kinds: int) -> None:
    """Chi-square statistic within four standard deviations of its mean (fixed seed, so never flaky)."""
    counts = values.long().bincount(minlength=kinds).double()
    expected = len(values) / kinds
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < (kinds - 1) + 4 * (2 * (kinds - 1)) ** 0.5


def test_randaugment_draws_uniformly_and_independently() -> None:
    rows = 14 * 500
    draw = RecordedDraw(rows)
    rand_augment(torch.zeros(rows, 1, 4, 4, dtype=torch.uint8), draw, 2)
    applied, numbers, levels, signs = draw.given
    for turn in range(2):
        assert_uniform(numbers[:, turn], 14)
        assert_uniform(levels[:, turn] - 1, 9)
        assert_uniform(signs[:, turn], 2)
        assert abs((applied[:, turn] < 0.5).float().mean() - 0.5) < 0.03
    assert_uniform(numbers[:, 0] * 14 + numbers[:, 1], 14 * 14)  # with replacement: all pairs alike


@pytest.mark.parametrize("channels", CHANNELS)
def test_randaugment_is_pillows_row_by_row(channels: int) -> None:
    """Both turns, in order, each row with its own operations, levels and signs."""
    rows = 200
    images = pictures(channels, 16, 20, rows)
    draw = RecordedDraw(rows)
    ours = rand_augment(images, draw, 2)
    applied, numbers, levels, signs = (given.tolist() for given in draw.given)
    names = list(OPERATIONS)
    exact = 0
    for row in range(rows):
        image, auto = to_pil(images[row]), False
        for turn in range(2):
            name = names[numbers[row][turn]]
            if applied[row][turn] < 0.5:
                image = PILLOW[name](image, levels[row][turn], 2 * signs[row][turn] - 1)
                auto |= name == "auto_contrast"
        if not auto:  # which may differ by one gray level, see above
            torch.testing.assert_close(ours[row], from_pil(image), rtol=0, atol=0)
            exact += 1
    assert exact > 150


def test_strong_is_weak_then_randaugment_then_cutout() -> None:
    images, style = pictures(3, 32, 32), Style()
    ours = Strong(style, ops=3, cutout=0.4)(images, At(5, 9).draw("strong", ROWS))
    draw = At(5, 9).draw("strong", ROWS)
    expected = cutout(rand_augment(flip_and_shift(images, draw, style), draw, 3), draw, 0.4)
    assert torch.equal(ours, expected / 255)
    bare = Strong(style, ops=0, cutout=0)(images, At(5, 9).draw("strong", ROWS))
    assert torch.equal(bare, Weak(style)(images, At(5, 9).draw("strong", ROWS)))


def test_rows_of_the_same_image_differ() -> None:
    images = pictures(3, 32, 32)[:1].repeat(64, 1, 1, 1)
    views = Strong(Style())(images, At(0, 1).draw("strong", 64))
    assert len(views.flatten(1).unique(dim=0)) >= 60


@pytest.mark.parametrize("view", VIEWS.values())
@pytest.mark.parametrize("size", [(8, 8), (33, 47)])
def test_nothing_is_read_back_to_the_host(view: ViewFactory, size: tuple[int, int]) -> None:
    """Meta tensors have no values: anything that looks at a pixel on the host raises."""
    images = torch.empty(64, 3, *size, dtype=torch.uint8, device="meta")
    result = view(Style(3, *size))(images, At(0, 1).draw("v", 64, device="meta"))
    assert result.device.type == "meta"
    assert result.shape == images.shape
    with pytest.raises(RuntimeError, match="meta"):
        images.amax().item()


@pytest.mark.parametrize("view", VIEWS.values())
def test_memory_layout_of_the_input_does_not_matter(view: ViewFactory) -> None:
    images = pictures(3, 32, 20)
    style = Style(3, 32, 20)
    plain = view(style)(images, At(0, 1).draw("v", ROWS))
    for other in (images.contiguous(memory_format=torch.channels_last),
                  images.repeat_interleave(2, 3)[..., ::2],
                  images.transpose(2, 3).contiguous().transpose(2, 3)):
        assert not other.is_contiguous()
        result = view(style)(other, At(0, 1).draw("v", ROWS))
        assert torch.equal(result, plain)
        assert result.is_contiguous()


@pytest.mark.parametrize("view", VIEWS.values())
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches(view: ViewFactory, rows: int) -> None:
    result = view(Style(3, 16, 16))(pictures(3, 16, 16)[:rows], At(0, 1).draw("v", rows))
    assert result.shape == (rows, 3, 16, 16)
    assert result.dtype == torch.float32


def test_eval_scales_to_the_unit_interval() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    result = Eval(Style(channels=1))(images, At(0, 1).draw("e", 1))
    assert torch.equal(result.flatten(), torch.arange(256) / 255)
    assert result.max() == 1


@pytest.mark.parametrize("view", VIEWS.values())
def test_bad_images_are_refused(view: ViewFactory) -> None:
    draw = At(0, 1).draw("v", 2)
    for bad in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8),
                torch.zeros(2, 8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(UsageError, match=r"it takes uint8 \[B, C, H, W\]"):
            view(Style())(bad, draw)
    with pytest.raises(UsageError, match="got 3 images and random numbers for 2"):
        view(Style())(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), draw)


@pytest.mark.parametrize("settings", [{"ops": -1}, {"cutout": 1.5}, {"cutout": -0.1}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="ops >= 0"):
        Strong(Style(), **settings)  # type: ignore[arg-type]


def test_every_view_says_what_it_is_in_one_line() -> None:
    for view in VIEWS.values():
        assert (view.__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("view", [*VIEWS.values(), partial(Strong, ops=3), partial(Strong, ops=0, cutout=0)])
def test_presets_keep_the_contract(view: ViewFactory) -> None:
    check_views(view, sizes=((8, 8), (32, 32), (33, 47), (1, 1)))


@dataclass(frozen=True)
class Broken:
    """The weak view with one thing wrong."""

    style: Style
    fault: Callable[[Tensor, Tensor, Draw], Tensor]

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return self.fault(images, Weak(self.style)(images, draw), draw)


def modifies_input(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    images.bitwise_not_()
    return view


def global_noise(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    return (view + torch.rand(len(view), 1, 1, 1)).clamp(0, 1)


def by_place_in_batch(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    return view * torch.linspace(1, 0.5, len(view)).view(-1, 1, 1, 1)


def by_batch_mean(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    return view * view.flatten().mean(0)


def refuses_empty(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    return view.clamp(max=view.amax((1, 2, 3)).max())


def one_brightness_for_all(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    """Alike on all ranks and for all rows, which shift by themselves before, so that equal images do differ."""
    return view * draw.to_device(torch.rand(1, generator=generator(*draw.key)))


def by_the_neighbors_number(images: Tensor, view: Tensor, draw: Draw) -> Tensor:
    numbers = draw.child("bright").uniform(1, 1, 1)
    pairs = numbers.view(-1, 2, 1, 1, 1).flip(1).reshape(numbers.shape) if len(numbers) else numbers
    return view * draw.to_device(pairs)


FAULTS: list[tuple[Callable[[Tensor, Tensor, Draw], Tensor], str]] = [
    (lambda images, view, draw: view[:, :1, 1:], "has shape"),
    (lambda images, view, draw: view.double(), "float32"),
    (lambda images, view, draw: view.to("meta"), "on meta"),
    (lambda images, view, draw: view * 255, r"\[0, 1\]"),
    (lambda images, view, draw: view * float("nan"), r"\[0, 1\]"),
    (modifies_input, "modified its input"),
    (global_noise, "same random numbers"),
    (by_batch_mean, "another image"),
    (by_place_in_batch, "two ranks"),
    (lambda images, view, draw: view * torch.rand(len(view), generator=torch.Generator().manual_seed(0))
        .view(-1, 1, 1, 1), "two ranks"),
    (refuses_empty, "0 rows"),
    (lambda images, view, draw: view if len(view) else torch.empty(0), "0 rows"),
    (one_brightness_for_all, "numbers of another one"),
    (by_the_neighbors_number, "numbers of another one"),
    (lambda images, view, draw: view * (0.5 if view.numel() and view[0].max().item() > 2 else 1), "reads pixels back"),
    (lambda images, view, draw: view if all(row.mean() > -1 for row in view) else -view, "reads pixels back"),
    (lambda images, view, draw: torch.from_numpy(view.numpy().copy()), "reads pixels back"),
    (lambda images, view, draw: view * draw.uniform(1, 1, 1), "tensors on the CPU"),
    (lambda images, view, draw: view.cpu(), "reads pixels back"),
    (lambda images, view, draw: torch.zeros(view.shape), "the result is on cpu"),
]


@dataclass(frozen=True)
class OneForAll:
    """A decision of the whole batch, drawn from the numbers' key: alike on all ranks, whatever the rows' order."""

    style: Style

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        bright = torch.rand(1, generator=generator(*draw.key)).item()
        return Eval(self.style)(images, draw) * bright


def test_one_decision_for_the_whole_batch_is_caught() -> None:
    with pytest.raises(AssertionError, match="equal images get equal views, one decision for the whole batch"):
        check_views(OneForAll)


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_broken_views_are_caught(fault: Callable[[Tensor, Tensor, Draw], Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_views(lambda style: Broken(style, fault))
