"""Techniques that average or edit weights while they are trained."""
