"""Consistency methods: the target comes from a prediction on another view, or of another net, of the same image."""
