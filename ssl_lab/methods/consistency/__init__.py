"""Consistency methods: the target comes from a prediction on another view of the same image."""

from ssl_lab.methods.consistency.fixmatch import FixMatch

__all__ = ["FixMatch"]
