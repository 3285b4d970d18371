"""GroupNorm in place of BatchNorm (Wu and He 2018, arXiv 1803.08494): {net}+gn."""

from __future__ import annotations

from torch import nn

from ssl_lab.nets.base import Net

GROUPS = 16  # of De et al. 2022 (arXiv 2204.13650)


def group_norms(net: Net, groups: int = GROUPS) -> None:
    """Each BatchNorm of the net becomes a GroupNorm that learns scale and shift alike, so that no image depends on the
    others of its batch: of `groups` groups of channels, or as many as divide the channels with two or more to each."""
    for parent in list(net.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                channels = part.num_features
                most = max(1, min(groups, channels // 2))
                count = max(each for each in range(1, most + 1) if channels % each == 0)
                setattr(parent, name, nn.GroupNorm(count, channels, part.eps, part.affine))
