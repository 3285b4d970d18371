"""Techniques that turn gradients into new weights in another way."""
