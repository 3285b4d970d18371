"""The map of embeddings: its layout against the covariance, its dots against the images."""

import base64
import io
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ssl_lab.errors import UsageError
from ssl_lab.report import image_map, in_two_dimensions

RNG = np.random.default_rng(0)


def decoded(group):
    """The pixels [H, W, C] or [H, W] of a dot's image."""
    data = group.find("{*}image").get("href").removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def dots(svg):
    return [group for group in ElementTree.fromstring(svg) if group.tag.endswith("}g")]


def test_principal_components_against_the_covariance():
    features = RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6))
    points = in_two_dimensions(features)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    for column, place in ((0, -1), (1, -2)):
        expected = (features - features.mean(axis=0)) @ vectors[:, place]
        assert points[:, column].var(ddof=1) == pytest.approx(values[place])
        assert abs(points[:, column] @ expected) == pytest.approx(expected @ expected)
        assert points[:, column].max() >= -points[:, column].min()
    assert in_two_dimensions(features[:, :1])[:, 1].tolist() == [0] * 40


def test_umap_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match=r'pip install "ssl_lab\[umap\]"'):
        in_two_dimensions(np.ones((3, 2)), "umap")


def test_each_dot_holds_its_own_image_and_class():
    images = RNG.integers(0, 256, (3, 3, 8, 6), dtype=np.uint8)
    points = np.array([[0.0, 0.0], [1.0, 2.0], [0.5, 1.0]])
    names = ("<cat>", "dog & co")
    svg = image_map(points, np.array([0, 1, -1]), images, names)
    assert len(dots(svg)) == 3
    for group, image, name, (x, y) in zip(dots(svg), images, [*names, "unknown"], points, strict=True):
        circle, _, text = group
        assert text.text == circle[0].text == name
        assert float(circle.get("cx")) == pytest.approx(8 + 284 * x, abs=0.1)
        assert float(circle.get("cy")) == pytest.approx(292 - 142 * y, abs=0.1)  # up is up
        assert np.array_equal(decoded(group).transpose(2, 0, 1), image)
    assert "visibility: hidden" in svg


def test_large_images_are_made_smaller():
    svg = image_map(np.zeros((1, 2)), np.array([-1]), np.zeros((1, 1, 200, 100), np.uint8), ())
    assert decoded(dots(svg)[0]).shape == (48, 24)
