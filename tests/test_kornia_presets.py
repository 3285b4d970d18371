"""weak_kornia, strong_kornia and simclr_kornia: the contract, and that they are our presets by other hands."""

import inspect
from functools import partial

import pytest
import torch

from ssl_lab.batch import At, Style
from ssl_lab.errors import UsageError
from ssl_lab.schedule import linear
from ssl_lab.testing import check_views
from ssl_lab.views import VIEWS, Strong, Weak, kornia_presets, randaugment
from ssl_lab.views.kornia_presets import StrongKornia, WeakKornia, simclr_kornia
from ssl_lab.views.randaugment import OPERATIONS

NAMES = ["weak_kornia", "strong_kornia", "simclr_kornia"]


def style(channels=3, height=32, width=32, flip=True):
    return Style(channels, height, width, (0.5,) * channels, (0.25,) * channels, flip=flip)


def pictures(rows, channels=3, height=32, width=32, seed=0):
    """Smooth, as photographs are, with every gray level."""
    coarse = torch.rand(rows, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).byte()


def draw(rows, step=0):
    return At(step, 100).draw("x", rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (33, 47)), (3, (224, 224))])
def test_the_contract_of_views(name, channels, size):
    if max(size) > 200 and name != "weak_kornia":  # ten seconds; the same code from 33 px on, and test_views has both
        size = (64, 64)
    check_views(VIEWS[name], channels=[channels], sizes=[size])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 7)])
def test_tiny_images(size):
    for name in NAMES[:2]:
        check_views(VIEWS[name], channels=[1], sizes=[size])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (3, 5)), (3, (224, 200))])
def test_weak_is_weak(channels, size, flip):
    images, kind = pictures(16, channels, *size), style(channels, *size, flip=flip)
    assert torch.equal(WeakKornia(kind)(images, draw(16)), Weak(kind)(images, draw(16)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillows_but_for_roundings(name, channels):
    """Within one gray level and a half, where a threshold does not fall between, and but for pixels that a move takes
    from beside the border between two."""
    number = list(OPERATIONS).index(name)
    images = pictures(90, channels)
    levels = torch.arange(1, 10).repeat(10)
    values = OPERATIONS[name].value(levels.double())
    values *= torch.where(torch.arange(90) % 2 == 0, -1, 1) if OPERATIONS[name].signed else 1
    places = randaugment.PLACES[torch.full((90,), number)]
    expected = randaugment._turn(images, places, values) / 255
    found = images / 255
    kornia_presets._turn_(found, torch.full((90,), number), values)
    off = (found - expected).abs()
    assert (off > 1.51 / 255).float().mean() < (0.002 if name == "rotate" else 1e-6), off.max() * 255
    if name not in ("identity", "color"):
        assert (expected - images / 255).abs().max() > 0.02, "it does something"


def test_strong_is_strong_but_for_roundings():
    images, kind = pictures(400), style()
    off = (StrongKornia(kind)(images, draw(400)) - Strong(kind)(images, draw(400))).abs()
    assert (off > 2.5 / 255).float().mean() < 0.01
    for still in ({"ops": 0, "cutout": linear(0, 1)}, {"chance": 0.0}, {"chance": linear(0, 1)}):
        assert torch.equal(StrongKornia(kind, **still)(images, draw(400)), Strong(kind, **still)(images, draw(400)))
    seldom = StrongKornia(kind, ops=1, cutout=0.0, chance=linear(0, 1))(images, draw(400, step=20))
    changed = (seldom != WeakKornia(kind)(images, draw(400, step=20))).flatten(1).any(1).float().mean()
    assert 0.1 < changed < 0.25, "a fifth of the images, of which some get an operation that does nothing"


@pytest.mark.parametrize("name", NAMES)
def test_each_has_the_arguments_of_ours(name):
    ours, theirs = (inspect.signature(VIEWS[each]).parameters for each in (name.removesuffix("_kornia"), name))
    ours = {each: value for each, value in ours.items() if each != "size"}  # foreign views keep the images' size
    assert [(each, ours[each].default) for each in ours] == [(each, theirs[each].default) for each in theirs]


def test_rows_have_operations_of_their_own():
    same = pictures(1).expand(256, -1, -1, -1).contiguous()
    views = StrongKornia(style(), cutout=0.0)(same, draw(256))
    assert len(torch.unique(views.flatten(1), dim=0)) > 200


def test_arguments():
    small = simclr_kornia(style(1))
    assert repr(small) == "kornia(RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale)"
    assert not simclr_kornia(style(flip=False)).mirrors
    large = simclr_kornia(style(3, 96, 96), solarize=0.2, blur=1.0)
    assert repr(large).endswith("RandomGrayscale, RandomGaussianBlur, RandomSolarize)")
    for wrong in (partial(StrongKornia, ops=-1), partial(StrongKornia, cutout=2.0), partial(StrongKornia, chance=2.0),
                  partial(simclr_kornia, area=3.0)):
        with pytest.raises(UsageError):
            wrong(style())


@pytest.mark.parametrize("flip", [True, False])
def test_simclr_crops_mirrors_and_colors(flip):
    """A ramp from left to right rises in all crops, unless mirrored, whatever the colors do short of none."""
    ramp = torch.linspace(40, 200, 32).byte().expand(300, 3, 32, 32).contiguous()
    views = simclr_kornia(style(flip=flip), jitter=(0.2, 0.2, 0.0, 0.0), gray=0.0)(ramp, draw(300))
    falls = views[:, 0, 16, -1] < views[:, 0, 16, 0]
    assert 0.4 < falls.float().mean() < 0.6 if flip else not falls.any()
    span = (views[:, 0, 16, -1] - views[:, 0, 16, 0]).abs() * 255
    assert span.min() < 90 < span.max(), "crops are of different sizes"
