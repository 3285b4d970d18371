"""Techniques that change which rows are drawn."""
