"""Smaller nets: the ways to them, which are techniques, and what they cost, side by side: `recipes/compress.py`.

That the first layer and the head keep 8 bits where others have fewer is the common ground of what "Mixed-Precision
Neural Networks: A Survey" (arXiv 2208.06064) compares: both are small, and most hurt by rounding.
"""

from ssl_lab.compress.cost import Candidate, candidate_of, compared
from ssl_lab.compress.int8 import as_int8
from ssl_lab.techniques import TECHNIQUES

WAYS = tuple(name for name, kind in TECHNIQUES.items() if kind.serves == "size")
"""The techniques that make a net smaller."""

__all__ = ["WAYS", "Candidate", "as_int8", "candidate_of", "compared"]
