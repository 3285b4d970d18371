"""Slow and obvious references that several tests hold the fast code against, and rows of noise to hold it on."""

import math

import torch

from ssl_lab.batch import Rows


def softmax(row, temperature=1.0):
    """Of a list of numbers."""
    top = max(row)
    powers = [math.exp((z - top) / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def entropy_of(target, logits):
    """H(target, softmax(logits)), target a class or probabilities."""
    p = softmax(logits)
    if isinstance(target, int):
        return -math.log(p[target])
    return -sum(t * math.log(value) for t, value in zip(target, p, strict=True))


def noise_rows(count, seed, views, classes=3):
    """So many images of noise, float64 [count, 1, 8, 8], in each view; classes in turn."""
    draw = torch.Generator().manual_seed(seed)
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in views}
    targets = torch.arange(count) % classes
    return Rows(images, targets, targets, torch.arange(count))
