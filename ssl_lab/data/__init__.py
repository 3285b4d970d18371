"""Images and labels: pools, their splits and label ledger, sources, and the order of training."""

from ssl_lab.data import inventory as inventory
from ssl_lab.data import openset as openset
from ssl_lab.data import remarks as remarks
from ssl_lab.data.arrays import IntArray
from ssl_lab.data.images import ArrayImages, Concat, Images
from ssl_lab.data.ledger import Ledger
from ssl_lab.data.pool import Pool
from ssl_lab.data.remarks import announce
from ssl_lab.data.sampler import PoissonSampler, Sampler
from ssl_lab.data.sources import DATASETS, load

__all__ = [
    "DATASETS",
    "ArrayImages",
    "Concat",
    "Images",
    "IntArray",
    "Ledger",
    "PoissonSampler",
    "Pool",
    "Sampler",
    "announce",
    "load",
]
