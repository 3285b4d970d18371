"""What sees the images in an audit: the net that is named, or the best that is at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ssl_lab.at_hand import PRETRAINED, here
from ssl_lab.data import Pool
from ssl_lab.data.images import Resized
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets import net as named
from ssl_lab.nets.start import start_net

_PRETRAINED_SIDE = 128
"""Pixels to which smaller images are resized for a pretrained net, which learned from larger ones."""
_PIXELS_SIDE = 32
"""Pixels to which larger images are resized where they are compared by their values."""


class Eye(NamedTuple):
    """A net, the side in pixels to which it has images resized (None: as they are), and a line that says both."""

    net: Net
    side: int | None
    note: str


def eye(pool: Pool, name: str | None = None, weights: str | Path | None = None, pretrained: bool = False,
        seed: int = 0) -> Eye:
    """The net `name`: a run's folder, a file of weights, timm/MODEL, or one of `NETS`, a fetched one too.

    Without a name: the smallest pretrained net that was fetched, else the images' own values. weights, pretrained: of
    timm/MODEL or a net by name. UsageError if it cannot be had.
    """
    why, fetched = "", here()
    if name is None and (weights is not None or pretrained):
        raise UsageError("weights and pretrained are of a net: name it (--net timm/MODEL)")
    if name is None:
        name = fetched[0].name if fetched else "pixels"
        why = ("; --net RUN or --net timm/MODEL --pretrained take others" if fetched else
               "; a net sees more: `ssl-lab fetch lite0` brings one, --net RUN or timm/MODEL names one")
    foreign = name.startswith("timm/") or name in PRETRAINED
    _, height, width = pool.images.shape
    side = (_PRETRAINED_SIDE if foreign and max(height, width) < _PRETRAINED_SIDE else
            _PIXELS_SIDE if name == "pixels" and max(height, width) > _PIXELS_SIDE else None)
    pool = at_side(pool, side)
    classes = pool.class_names if pool.classes > 1 else 2
    if foreign or (Path(name).exists() and weights is None and not pretrained):
        net = start_net(name, classes, pool.style, pretrained=pretrained, weights=weights, seed=seed)
    else:
        net = named(name, classes, pool.style, pretrained, weights, seed)
    _, height, width = pool.images.shape
    what = "their values" if name == "pixels" else f"the features of {name}"
    return Eye(net.eval(), side, f"images are compared by {what} at {width}x{height} px{why}")


def at_side(pool: Pool, side: int | None) -> Pool:
    """The pool with its images at another size, the whole of them; as it is for None."""
    if side is None:
        return pool
    return replace(pool, images=Resized(pool.images, side, "squash"),
                   style=replace(pool.style, height=side, width=side))
