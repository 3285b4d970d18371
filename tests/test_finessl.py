"""FineSSL against its equations, row by row in float64."""

import math
from functools import partial

import pytest
import torch
from slow import entropy_of, softmax

import ssl_lab as sl
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.consistency import finessl
from ssl_lab.testing import check_method

STYLE, CLASSES, ROWS = Style(1, 8, 8, mean=(0.3,), std=(0.4,)), 3, 6
SELECTED = [0] * 9 + [1] * 3 + [-1] * 8
MARGINS = [0.0, 4 * (1 - 1 / 3) / (1 + 1 / 3), 4.0]  # of margin 4: the classes have 9, 3 and 0 images


def images(rows, seed):
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BATCH = Batch(Rows({"weak": images(4, 0)}, torch.tensor([0, 2, 1, 2]), torch.tensor([0, 2, 1, 2]), torch.arange(4)),
              Rows({"weak": images(ROWS, 1), "strong_1": images(ROWS, 2), "strong_2": images(ROWS, 3)},
                   torch.full((ROWS,), -1), torch.arange(ROWS) % 3, torch.arange(ROWS) + 5))


def method(selected=SELECTED, **arguments):
    made = sl.FineSSL(sl.net("tiny_4", CLASSES, STYLE), images=20, **arguments).double().train()
    with torch.no_grad():
        made.second_head.weight.mul_(-0.5)  # else both say the same
    made.selected.copy_(torch.tensor(selected))
    return made


def logits():
    """Of both classifiers, of all views, labeled rows first: lists of [C]."""
    this = method()
    out = this.net(torch.cat([BATCH.labeled["weak"], *(BATCH.unlabeled[view] for view in (
        "weak", "strong_1", "strong_2"))]))
    return out.logits.tolist(), this.second_head(out.features).tolist()


def pushed(row, label):
    return [value + (MARGINS[label] if c != label else 0) for c, value in enumerate(row)]


def test_the_loss_is_its_equation():
    main, second = logits()
    said = [softmax(row) for row in main[4:4 + ROWS]]
    threshold = sorted(max(q) for q in said)[2] + 1e-9  # three rows are above
    labels = BATCH.labeled.targets.tolist()
    labeled = sum(entropy_of(y, pushed(row, y)) for y, row in zip(labels, main, strict=False)) / 4
    second_labeled = sum(entropy_of(y, row) for y, row in zip(labels, second, strict=False)) / 4
    unlabeled, second_unlabeled = 0.0, 0.0
    for b, q in enumerate(said):
        c = q.index(max(q))
        for view in (1, 2):
            place = 4 + view * ROWS + b
            unlabeled += max(softmax(second[4 + b])) * entropy_of(c, pushed(main[place], c))
            if max(q) >= threshold:
                log_p = [math.log(p) for p in softmax(second[place])]
                second_unlabeled -= sum((0.7 if k == c else 0.15) * log_p[k] for k in range(CLASSES))
    loss = method(margin=4.0, weight=2.0, threshold=threshold, smoothing=0.3)(BATCH, At(0, 10))
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx({
        "labeled": labeled, "second_labeled": second_labeled, "unlabeled": 2 * unlabeled / (2 * ROWS),
        "second_unlabeled": second_unlabeled / (2 * 3)}, rel=1e-6)
    assert loss.logs["mask_rate"].item() == 0.5


def test_the_second_classifier_does_not_train_the_features():
    this = method(threshold=0.0)
    loss = this(BATCH, At(0, 10))
    (loss.terms["second_labeled"] + loss.terms["second_unlabeled"]).backward()
    assert all(p.grad is None or not p.grad.any() for p in this.net.parameters())
    assert this.second_head.weight.grad.abs().sum() > 0


def test_classes_as_far_as_each_other_have_no_margin():
    assert finessl.lags(torch.tensor([4, 4, 4])).tolist() == [0, 0, 0]
    assert finessl.lags(torch.tensor([0, 0, 0])).tolist() == [0, 0, 0]
    assert finessl.lags(torch.tensor([9, 3, 0])).tolist() == pytest.approx([0, 0.5, 1])
    logits = torch.randn(4, 3)
    assert torch.equal(finessl.pushed(logits, torch.tensor([0, 1, 2, -100]), torch.zeros(3)), logits)


def test_rows_without_a_label_have_no_margin():
    logits = torch.zeros(2, 3)
    found = finessl.pushed(logits, torch.tensor([1, -100]), torch.tensor([5.0, 2.0, 7.0]))
    assert found.tolist() == [[2, 0, 2], [0, 0, 0]]


def test_it_counts_the_latest_label_of_each_image():
    this = method([-1] * 20, threshold=0.0)
    this(BATCH, At(0, 10))
    this.after_step(At(0, 10))
    assert this.selected.tolist() == [-1] * 5 + [row.index(max(row)) for row in logits()[0][4:4 + ROWS]] + [-1] * 9


def test_contract():
    check_method(partial(sl.FineSSL, images=64))


def test_smoothing_that_is_none():
    with pytest.raises(UsageError, match=r"smoothing=1: expected a number from 0 to below 1"):
        method(smoothing=1)
