"""Views: batched image augmentations with per-image randomness, on the device of the batch."""

from ssl_lab.views.base import View, ViewFactory
from ssl_lab.views.contrastive import BYOL1, BYOL2, MOCO, VICREG, SimCLRView, crop
from ssl_lab.views.corruptions import corrupt
from ssl_lab.views.foreign import kornia, torchvision
from ssl_lab.views.naming import VIEWS, by_name, named
from ssl_lab.views.presets import Eval, Strong, Weak

__all__ = [
    "BYOL1",
    "BYOL2",
    "MOCO",
    "VICREG",
    "VIEWS",
    "Eval",
    "SimCLRView",
    "Strong",
    "View",
    "ViewFactory",
    "Weak",
    "by_name",
    "corrupt",
    "crop",
    "kornia",
    "named",
    "torchvision",
]
