"""What a smaller net costs, beside the one that it was made from: `recipes/compress.py`."""

from ssl_lab.compress.cost import Candidate, candidate_of, compared
from ssl_lab.compress.int8 import as_int8

__all__ = ["Candidate", "as_int8", "candidate_of", "compared"]
