"""Techniques that change a net before the method is built around it."""
