"""Common corruptions: their published definitions, and what all of them keep."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssl_lab.errors import UsageError
from ssl_lab.views import blurs, weather
from ssl_lab.views.corruptions import KINDS, brightness, contrast, corrupt, elastic, impulse_noise, shot_noise

RNG = np.random.default_rng(0)


def images(rows=4, channels=3, height=16, width=16):
    """Smooth ones, with details."""
    pixels = ndimage.gaussian_filter(RNG.random((rows, channels, height, width)), (0, 0, 1.5, 1.5))
    pixels = (pixels - pixels.min()) / np.ptp(pixels)
    return torch.from_numpy((255 * pixels).astype(np.uint8))


def test_there_are_15_kinds_of_5_strengths_in_the_papers_four_families():
    assert len(KINDS) == 15
    families = [family for family, _, _ in KINDS.values()]
    assert [families.count(name) for name in ("noise", "blur", "weather", "digital")] == [3, 4, 4, 4]
    assert all(len(constants) == 5 for _, _, constants in KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (3, 20, 12)])
def test_what_all_keep(kind, shape):
    given = images(3, *shape)
    before = given.clone()
    found = corrupt(given, kind, 5, seed=1)
    assert found.dtype == torch.float32
    assert found.shape == given.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(given, before)
    assert torch.equal(found, corrupt(given, kind, 5, seed=1))
    assert torch.equal(found[:2], corrupt(given[:2], kind, 5, seed=1))  # rows do not depend on each other
    assert (found - given / 255).abs().mean() > 1e-3
    assert corrupt(given[:0], kind, 5).shape == (0, *shape)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "elastic"])  # whose first maps turn most
def test_strong_ones_change_more_than_weak_ones(kind):
    given = images(8, 3, 32, 32)
    weak, strong = ((corrupt(given, kind, strength) - given / 255).square().mean() for strength in (1, 5))
    assert strong > weak


@pytest.mark.parametrize(("kind", "strength"), [("fogg", 1), ("fog", 0), ("fog", 6)])
def test_what_is_unknown_is_said(kind, strength):
    with pytest.raises(UsageError, match=r"fog|strength"):
        corrupt(images(), kind, strength)


def test_other_images_are_refused():
    with pytest.raises(UsageError, match="expected uint8"):
        corrupt(torch.rand(2, 3, 8, 8), "fog", 1)


def test_noise_has_its_published_moments():
    gray = torch.full((1, 3, 128, 128), 128, dtype=torch.uint8)
    level = 128 / 255
    for strength, sd in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        assert float(corrupt(gray, "gaussian_noise", strength).std()) == pytest.approx(sd, rel=0.03)
    for photons in (500, 50):
        noisy = shot_noise(np.full((200, 200, 1), level), photons, RNG, 1)
        assert noisy.mean() == pytest.approx(level, rel=0.01)
        assert noisy.var() == pytest.approx(level / photons, rel=0.05)
    salted = impulse_noise(np.full((300, 300, 1), level), 0.07, RNG, 1)
    assert (salted != level).mean() == pytest.approx(0.07, rel=0.05)
    assert (salted == 1).sum() == pytest.approx((salted == 0).sum(), rel=0.1)


def test_brightness_moves_the_value_and_keeps_hue_and_saturation():
    import colorsys

    x = RNG.random((5, 5, 3))
    found = brightness(x, 0.15, RNG, 1)
    for row in range(5):
        for column in range(5):
            h, s, v = colorsys.rgb_to_hsv(*x[row, column])
            np.testing.assert_allclose(found[row, column], colorsys.hsv_to_rgb(h, s, min(v + 0.15, 1)), atol=1e-12)
    np.testing.assert_allclose(brightness(np.zeros((2, 2, 3)), 0.3, RNG, 1), 0.3)


def test_contrast_shrinks_the_distance_from_each_channels_mean():
    x = RNG.random((6, 6, 3))
    found = contrast(x, 0.3, RNG, 1)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), x.mean(axis=(0, 1)))
    np.testing.assert_allclose(found.std(axis=(0, 1)), 0.3 * x.std(axis=(0, 1)))


@pytest.mark.parametrize("blur", [blurs.defocus, blurs.motion, blurs.zoom, blurs.glass])
def test_a_blur_leaves_a_flat_image_alone(blur):
    kind = next(constants for _, function, constants in KINDS.values() if function is blur)
    flat = np.full((32, 32, 3), 0.4)
    for constant in kind:
        np.testing.assert_allclose(blur(flat, constant, np.random.default_rng(0), 1.0), 0.4, atol=1e-9)


def test_a_disk_is_flat_round_and_adds_up_to_1():
    for radius in (0.3, 1.5, 3.0, 10.0):
        kernel = blurs.disk(radius, 0.1)
        assert kernel.sum() == pytest.approx(1)
        np.testing.assert_allclose(kernel, kernel.T)
        np.testing.assert_allclose(kernel, kernel[::-1])
        inside = sum(i * i + j * j <= radius**2 for i in range(-10, 11) for j in range(-10, 11))
        assert kernel.max() == pytest.approx(1 / inside, rel=1e-6)


def test_a_streak_is_half_a_bell_along_a_line():
    point = np.zeros((15, 15, 1))
    point[7, 7] = 1
    weights = np.exp(-(np.arange(7) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    found = blurs.streak(point, 3, 2.0, 0)[7, :, 0]
    np.testing.assert_allclose(found[7 - np.arange(7)], weights)  # copies come from the right
    np.testing.assert_allclose(blurs.streak(point, 3, 2.0, 90)[7 - np.arange(7), 7, 0], weights)


def test_glass_swaps_pixels_before_it_blurs():
    x = RNG.random((16, 16, 3))
    found = blurs.glass(x, (0.0, 1, 2), np.random.default_rng(0), 1.0)
    assert not np.array_equal(found, x)
    np.testing.assert_allclose(np.sort(found.reshape(-1, 3), axis=0), np.sort(x.reshape(-1, 3), axis=0))


def test_zoom_is_the_mean_of_enlargements():
    x = RNG.random((32, 32, 1))
    np.testing.assert_allclose(blurs.enlarged(x, 1.0), x, atol=1e-12)
    twice = blurs.enlarged(x, 2.0)
    assert twice.shape == x.shape
    np.testing.assert_allclose(twice[[0, 0, -1, -1], [0, -1, 0, -1]], x[[8, 8, 23, 23], [8, 23, 8, 23]])


def test_the_plasma_fractal():
    found = weather.plasma(20, 12, 2.0, np.random.default_rng(0))
    assert found.shape == (20, 12)
    whole = weather.plasma(32, 32, 2.0, np.random.default_rng(0))
    assert (whole.min(), whole.max()) == (0, 1)
    rough, smooth = (np.abs(np.diff(weather.plasma(64, 64, decay, np.random.default_rng(0)))).mean()
                     for decay in (1.75, 3.0))
    assert smooth < rough


def test_fog_of_thickness_0_and_an_elastic_map_of_length_0_change_nothing():
    x = RNG.random((16, 16, 3))
    np.testing.assert_allclose(weather.fog(x, (0.0, 2.0), RNG, 1), x)
    np.testing.assert_allclose(elastic(x, (0, 0, 0), RNG, 1), x, atol=1e-9)
