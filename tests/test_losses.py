"""Each equation against a slow reference in float64."""

import math

import pytest
import torch
from slow import softmax

from ssl_lab import losses

LOGITS = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
TARGETS = torch.randint(5, (12,), generator=torch.Generator().manual_seed(1))


def _ce(row, target):
    return -math.log(softmax(row)[target])


def test_cross_entropy():
    expected = sum(_ce(row, t) for row, t in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)) / 12
    assert losses.cross_entropy(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_is_the_same_for_one_hot_probabilities():
    one_hot = torch.nn.functional.one_hot(TARGETS, 5).double()
    assert losses.cross_entropy(LOGITS, one_hot).item() == pytest.approx(losses.cross_entropy(LOGITS, TARGETS).item())


def test_pseudo_labels_are_the_top_of_the_softmax_and_carry_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    confidence, label = losses.pseudo_labels(logits)
    for row, c, k in zip(LOGITS.tolist(), confidence.tolist(), label.tolist(), strict=True):
        p = softmax(row)
        assert c == pytest.approx(max(p), rel=1e-12)
        assert p[k] == max(p)
    assert not confidence.requires_grad


def test_masked_cross_entropy_divides_by_all_rows():
    mask = torch.arange(12) % 3 == 0
    kept = [i for i in range(12) if i % 3 == 0]
    expected = sum(_ce(LOGITS[i].tolist(), int(TARGETS[i])) for i in kept) / 12
    assert losses.masked_cross_entropy(LOGITS, TARGETS, mask).item() == pytest.approx(expected, rel=1e-12)
    assert losses.masked_cross_entropy(LOGITS, TARGETS, torch.zeros(12, dtype=torch.bool)).item() == 0


def test_losses_of_half_precision_logits_are_float32():
    half = LOGITS.bfloat16()
    assert losses.cross_entropy(half, TARGETS).dtype == torch.float32
    assert losses.masked_cross_entropy(half, TARGETS, torch.ones(12)).item() == pytest.approx(
        losses.cross_entropy(half.double(), TARGETS).item(), rel=1e-5)
    assert losses.pseudo_labels(half)[0].dtype == torch.float32


def test_accuracy_counts_known_and_masked_rows_only():
    predicted, truth = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 2, -1])
    assert losses.accuracy(predicted, truth).item() == pytest.approx(2 / 3)
    assert losses.accuracy(predicted, truth, torch.tensor([False, True, True, True])).item() == 0.5
    none = losses.accuracy(predicted, truth, torch.tensor([False, False, False, True]))
    assert math.isnan(none.item())
    assert (int(none.right), int(none.rows)) == (0, 0)
