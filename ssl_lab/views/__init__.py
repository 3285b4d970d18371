"""Views: batched image augmentations with per-image randomness, on the device of the batch."""

from ssl_lab.views.base import View as View
from ssl_lab.views.base import ViewFactory as ViewFactory
from ssl_lab.views.contrastive import BYOL1 as BYOL1
from ssl_lab.views.contrastive import BYOL2 as BYOL2
from ssl_lab.views.contrastive import MOCO as MOCO
from ssl_lab.views.contrastive import VICREG as VICREG
from ssl_lab.views.contrastive import SimCLRView as SimCLRView
from ssl_lab.views.foreign import kornia as kornia
from ssl_lab.views.foreign import torchvision as torchvision
from ssl_lab.views.naming import VIEWS as VIEWS
from ssl_lab.views.naming import by_name as by_name
from ssl_lab.views.naming import named as named
from ssl_lab.views.presets import Eval as Eval
from ssl_lab.views.presets import Strong as Strong
from ssl_lab.views.presets import Weak as Weak
