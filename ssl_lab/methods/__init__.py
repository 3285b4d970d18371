"""Methods, one file per paper. A new one is a file and a line here."""

from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency import FixMatch
from ssl_lab.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {method.name: method for method in (Supervised, FixMatch)}

__all__ = ["METHODS", "FixMatch", "Method", "Supervised", "Views"]
