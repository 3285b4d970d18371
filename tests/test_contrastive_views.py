"""The views of pretraining: contract, torchvision's functional operations on fixed parameters, what is drawn."""

import math
from functools import partial

import pytest
import torch
import torchvision.transforms.v2.functional as reference

from ssl_lab.batch import At, Style
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator
from ssl_lab.testing import check_views
from ssl_lab.views import BYOL1, BYOL2, MOCO, VICREG, SimCLRView, color
from ssl_lab.views.contrastive import blur_, random_boxes, resized_crop

PLAIN = partial(SimCLRView, area=1.0, jitter=(0.0, 0.0, 0.0, 0.0), gray=0.0, blur=0.0)


def _draw(rows, name="v"):
    return At(0, 1).draw(name, rows)


def _images(rows, side=12, channels=3):
    return torch.rand(rows, channels, side, side, generator=generator("images"))


def _bytes(rows, side=12, channels=3):
    return (_images(rows, side, channels) * 255).byte()


def _style(side=12, channels=3, flip=True):
    return Style(channels, side, side, mean=(0.5,) * channels, std=(0.25,) * channels, flip=flip)


@pytest.mark.parametrize("view", [SimCLRView, BYOL1, BYOL2, VICREG, MOCO,
                                  partial(SimCLRView, gray=1.0, blur=1.0, solarize=1.0), PLAIN,
                                  partial(SimCLRView, size=7)])
def test_contract(view):
    check_views(view, sizes=((1, 1), (8, 8), (33, 47)))


def test_rows_do_not_depend_on_how_many_pass_at_a_time(monkeypatch):
    images, view = _bytes(9, side=40), SimCLRView(_style(40))
    whole = view(images, _draw(9))
    monkeypatch.setattr("ssl_lab.views.contrastive.CHUNK", 2 * 40 * 40)
    torch.testing.assert_close(view(images, _draw(9)), whole)


# --- Operations against torchvision ---------------------------------------------------------------


def _jittered(image, changes, row):
    """torchvision's operations on one image, in the row's order."""
    adjust = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)
    turn = changes.turn[row].item()
    for number in range(4):
        if number == turn:
            image = reference.adjust_hue(image, changes.hue[row].item())
        if number < 3 and turn < 4:
            image = adjust[changes.operation[row, number]](image, changes.factor[row, number].item())
    return image


@pytest.mark.parametrize(("channels", "strength"), [(3, (0.4, 0.4, 0.4, 0.1)), (3, (0.8, 0.8, 0.8, 0.2)),
                                                    (3, (1.5, 1.5, 1.5, 0.5)), (1, (0.8, 0.8, 0.8, 0.2))])
def test_jitter_is_torchvisions(channels, strength):
    images = _images(80, 6, channels)
    images[3] = 0.0
    images[4, :] = 0.5  # without color
    changes = color.Jitter.drawn(_draw(80), strength)
    changes = changes[changes.turn.argsort()]
    expected = torch.stack([_jittered(image, changes, row) for row, image in enumerate(images)])
    changed = images.clone()
    (color.jitter_ if channels == 3 else color.jitter_gray_)(changed, changes)
    torch.testing.assert_close(changed, expected, atol=2e-3, rtol=0)  # torchvision's weights of gray sum to 0.9999
    assert (changed - images).abs().flatten(1).amax(1).gt(0.05).float().mean() > 0.6


def test_hue_is_torchvisions():
    images, turns = _images(40), torch.linspace(-0.5, 0.5, 40)
    expected = torch.stack([reference.adjust_hue(image, turn.item())
                            for image, turn in zip(images, turns, strict=True)])
    color.shift_hue_(images, turns)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_gray_and_solarize_are_torchvisions():
    images, chosen = _images(6), torch.tensor([True, False, True, False, False, True])
    for change, one in ((color.to_gray_, lambda image: reference.rgb_to_grayscale(image, 3)),
                        (color.solarize_, lambda image: reference.solarize(image, 0.5))):
        changed = images.clone()
        change(changed, chosen)
        expected = torch.stack([one(image) if yes else image for image, yes in zip(images, chosen, strict=True)])
        torch.testing.assert_close(changed, expected, atol=2e-4, rtol=0)
        assert not torch.equal(changed, images)


@pytest.mark.parametrize("sides", [None, (16, 16), (9, 20)])
@pytest.mark.parametrize("flipped", [False, True])
def test_the_crop_is_torchvisions(flipped, sides):
    images = _images(20, 16)
    boxes = random_boxes(_draw(20), 16, 16, 0.1)
    found = resized_crop(images, boxes, torch.full((20,), flipped), sides)
    for image, box, one in zip(images, boxes.tolist(), found, strict=True):
        expected = reference.resized_crop(image, *box, list(sides or (16, 16)), antialias=False)
        torch.testing.assert_close(one, expected.flip(2) if flipped else expected, atol=1e-5, rtol=0)


def test_the_blur_is_torchvisions():
    images, chosen = _images(4, 48), torch.tensor([True, False, True, True])
    sigmas = torch.tensor([0.1, 1.0, 1.0, 2.0])
    changed = images.clone()
    blur_(changed, chosen, sigmas)
    for row in range(4):
        blurred = reference.gaussian_blur(images[row], [5, 5], [sigmas[row].item()] * 2)
        expected = blurred if chosen[row] else images[row]
        torch.testing.assert_close(changed[row], expected, atol=1e-5, rtol=0)


# --- What is drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "area"), [(32, 32, 0.2), (24, 40, 0.08), (1, 1, 0.2), (2, 60, 0.5)])
def test_boxes_lie_within_the_image(height, width, area):
    top, left, h, w = random_boxes(_draw(3000), height, width, area).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert ((h >= 1) & (w >= 1) & (top + h <= height) & (left + w <= width)).all()


def test_boxes_have_the_shares_and_ratios_asked_for():
    """As torchvision's: drawn anew until one fits, so that large boxes are a little rarer than uniform ones."""
    from torchvision.transforms import RandomResizedCrop

    _, _, h, w = random_boxes(_draw(4000), 64, 64, 0.2).double().unbind(1)
    shares, ratios = h * w / 64**2, w / h
    assert shares.min().item() == pytest.approx(0.2, abs=0.02)
    assert ratios.min().item() == pytest.approx(3 / 4, abs=0.04)
    assert ratios.max().item() == pytest.approx(4 / 3, abs=0.06)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor([RandomResizedCrop.get_params(torch.empty(3, 64, 64), (0.2, 1.0), (3 / 4, 4 / 3))
                               for _ in range(4000)]).double()
    their_shares = theirs[:, 2] * theirs[:, 3] / 64**2
    for q in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert shares.quantile(q).item() == pytest.approx(their_shares.quantile(q).item(), abs=0.04)
    assert ratios.log().mean() == pytest.approx(0.0, abs=0.02)


def test_boxes_of_a_long_image_fall_back_to_the_center():
    top, left, h, w = random_boxes(_draw(5), 2, 60, 1.0).unbind(1)
    assert h.tolist() == [2] * 5
    assert w.tolist() == [3] * 5  # a ratio of 4/3
    assert left.tolist() == [29] * 5
    assert top.tolist() == [0] * 5


def test_orders_of_the_jitter_are_equally_likely():
    changes = color.Jitter.drawn(_draw(24000), (0.4, 0.4, 0.4, 0.1))
    jittered = changes.turn < 4
    assert jittered.float().mean() == pytest.approx(0.8, abs=0.01)
    keys = changes.turn * 1000 + (changes.operation * torch.tensor([100, 10, 1])).sum(dim=1)
    counts = keys[jittered].unique(return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    assert counts.min() > 0.8 * 800
    assert counts.max() < 1.2 * 800
    assert (changes.operation.sort(dim=1).values == torch.arange(3)).all()


def test_factors_follow_their_operation():
    changes = color.Jitter.drawn(_draw(2000), (0.1, 0.5, 1.5, 0.2))
    for number, (low, high) in enumerate([(0.9, 1.1), (0.5, 1.5), (0.0, 2.5)]):
        factors = changes.factor[changes.operation == number]
        assert factors.min() == pytest.approx(low, abs=0.03)
        assert factors.max() == pytest.approx(high, abs=0.03)
    assert changes.hue.min() == pytest.approx(-0.2, abs=0.01)
    assert changes.hue.max() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("flip", [True, False])
def test_flip_only_where_the_style_allows_it(flip):
    images = _bytes(40)
    found, still = PLAIN(_style(flip=flip))(images, _draw(40)), images.float() / 255
    same = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(found, still, strict=True)])
    mirrored = torch.tensor([torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(found, still, strict=True)])
    assert (same ^ mirrored).all()
    assert 0 < mirrored.sum() < 40 if flip else not mirrored.any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares_of_gray_and_solarized_images(share):
    images = _bytes(400, side=4)
    gray = partial(PLAIN, gray=share)(_style(4))(images, _draw(400))
    assert (gray.amax(1) - gray.amin(1)).flatten(1).amax(1).lt(1e-6).float().mean() == pytest.approx(share, abs=0.06)
    solarized = partial(PLAIN, solarize=share)(_style(4))(images, _draw(400))
    assert (solarized <= 0.5).flatten(1).all(1).float().mean() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(("side", "blurs"), [(32, False), (33, True)])
def test_only_large_images_are_blurred(side, blurs):
    images = _bytes(4, side)
    sharp, soft = (partial(PLAIN, blur=share)(_style(side, flip=False))(images, _draw(4)) for share in (0.0, 1.0))
    assert torch.equal(sharp, soft) != blurs


def test_boxes_are_of_a_share_between_two():
    boxes = random_boxes(At(0, 1).draw("x", 500), 100, 100, 0.05, 0.25)
    shares = boxes[:, 2] * boxes[:, 3] / 1e4
    assert 0.045 < shares.min() < 0.08
    assert 0.22 < shares.max() < 0.26


def test_small_images_are_cropped_and_colored_less():
    small, large = SimCLRView(_style(32)), SimCLRView(_style(96))
    assert (small._area, small._jitter) == (0.2, (0.4, 0.4, 0.4, 0.1))
    assert (large._area, large._jitter) == (0.08, (0.8, 0.8, 0.8, 0.2))
    first, second = BYOL1(_style(96)), BYOL2(_style(96))
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert first._jitter == second._jitter == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize("settings", [{"area": 0.0}, {"area": 1.1}, {"gray": -0.1}, {"blur": 2.0}, {"solarize": 1.5},
                                      {"jitter": (0.1, 0.1, 0.1, 0.6)}, {"jitter": (-0.1, 0.1, 0.1, 0.1)}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UsageError, match="SimCLRView"):
        SimCLRView(Style(), **settings)
