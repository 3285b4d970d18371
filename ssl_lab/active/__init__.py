"""Active learning: which images to label next, asking for their labels, and whether it was worth it."""

from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.oracle import Command, FromFile, Truth
from ssl_lab.active.plugins import make_query
from ssl_lab.active.query import PoolView, Query, ScoreQuery

__all__ = ["ActiveLoop", "Command", "FromFile", "PoolView", "Query", "ScoreQuery", "Truth", "make_query"]
