"""Methods, one file per paper. A new one is a file and a line here."""

from ssl_lab.errors import unknown
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency import FixMatch
from ssl_lab.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {method.name: method for method in (Supervised, FixMatch)}


def get(name: str) -> type[Method]:
    """The method of this name. Raises UsageError with the nearest names."""
    if name not in METHODS:
        raise unknown("method", name, METHODS, "See `ssl-lab list methods`.")
    return METHODS[name]


__all__ = ["METHODS", "FixMatch", "Method", "Supervised", "Views", "get"]
