"""Images and labels: pools, their splits and label ledger, sources, and the order of training."""

from ssl_lab.data.arrays import IntArray as IntArray
from ssl_lab.data.images import ArrayImages as ArrayImages
from ssl_lab.data.images import Concat as Concat
from ssl_lab.data.images import Images as Images
from ssl_lab.data.ledger import Ledger as Ledger
from ssl_lab.data.pool import Pool as Pool
from ssl_lab.data.remarks import announce as announce
from ssl_lab.data.sampler import PoissonSampler as PoissonSampler
from ssl_lab.data.sampler import Sampler as Sampler
from ssl_lab.data.sources import DATASETS as DATASETS
from ssl_lab.data.sources import load as load
