"""Techniques that add terms to the loss of a method."""
