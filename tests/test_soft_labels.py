"""Soft labels, a method: its contract, a float64 reference row by row, what a file of labels may hold."""

import math

import pytest
import torch
from safetensors.torch import save_file
from small_runs import digits

from ssl_lab import build
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import SoftLabels
from ssl_lab.methods.distillation import StoredLogits
from ssl_lab.nets import net
from ssl_lab.nets.start import freeze_statistics
from ssl_lab.schedule import linear
from ssl_lab.testing import check_method

CLASSES = 4
STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))


def table(images=30, classes=CLASSES, seed=3):
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student():
    made = net("tiny_4", classes=CLASSES, style=STYLE, seed=0)
    freeze_statistics(made)  # so that a row's outputs do not depend on its neighbors
    return made


def some(names, count, seed, labeled):
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % CLASSES
    return Rows({name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in names},
                truth if labeled else torch.full_like(truth, -1), truth, torch.arange(count) + 10 * seed)


BATCH = Batch(some(["strong"], 3, 0, True), some(["weak", "strong"], 5, 1, False))


@pytest.mark.parametrize("own", [0.0, linear(0.1, 0.6)])
def test_contract(own):
    check_method(lambda student: SoftLabels(student, StoredLogits(table(99).float()), own=own), compile=False)


@pytest.mark.parametrize("own", [0.0, 0.3])
def test_against_its_equation(own):
    said = table()
    said[12] = math.nan  # the third unlabeled row has no label
    method = SoftLabels(student(), StoredLogits(said), own=own, weight=0.7).double().train()
    found = method(BATCH, At(3, 10)).terms

    def log_probs(views):
        return [[z - math.log(sum(map(math.exp, row))) for z in row] for row in method.net(views).logits.tolist()]

    labeled = [-row[label] for row, label in zip(log_probs(BATCH.labeled["strong"]), [0, 1, 2], strict=True)]
    total = 0.0
    rows = zip(log_probs(BATCH.unlabeled["weak"]), log_probs(BATCH.unlabeled["strong"]), strict=True)
    for place, (weak, strong) in enumerate(rows):
        if place == 2:
            continue
        given = said[10 + place].tolist()
        mixed = [math.exp(z) ** (1 - own) * math.exp(w) ** own for z, w in zip(given, weak, strict=True)]
        total -= sum(m / sum(mixed) * s for m, s in zip(mixed, strong, strict=True))
    assert found["labeled"].item() == pytest.approx(sum(labeled) / 3, rel=1e-9)
    assert found["unlabeled"].item() == pytest.approx(0.7 * total / 5, rel=1e-9)


def test_certain_labels_are_those_of_cross_entropy():
    """And the net's own say can turn even these."""
    said = torch.full((30, CLASSES), -math.inf, dtype=torch.float64)
    said[:, 1] = 0.0
    method = SoftLabels(student(), StoredLogits(said)).double().train()
    strong = method.net(BATCH.unlabeled["strong"]).logits
    expected = torch.nn.functional.cross_entropy(strong, torch.ones(5, dtype=torch.int64))
    torch.testing.assert_close(method(BATCH, At(0, 1)).terms["unlabeled"], expected, rtol=1e-6, atol=1e-6)
    assert SoftLabels(student(), StoredLogits(said), own=0.9).double()(BATCH, At(0, 1)).total.isfinite()


def test_where_statistics_are_frozen_a_split_pass_changes_nothing():
    losses = []
    for policy in ("joint", "split"):
        method = SoftLabels(student(), StoredLogits(table()), own=0.5).double().train()
        method.set_forward(policy)
        loss = method(BATCH, At(0, 1))
        loss.total.backward()
        losses.append([loss.total.detach(), *(p.grad for p in method.net.parameters())])
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_come_from_a_file_in_the_order_of_its_classes(tmp_path):
    pool = digits()
    names = pool.class_names
    said = table(len(pool), len(names)).float()
    save_file({"logits": said}, tmp_path / "said.safetensors",
              metadata={"class_names": str(list(reversed(names))).replace("'", '"')})
    made = build.method("soft_labels", net("tiny_4", names, pool.style), pool,
                        {"teacher": str(tmp_path / "said.safetensors"), "own": "linear(0, 0.5)"})
    assert torch.equal(made.teacher.logits, said.flip(1))
    assert not [key for key in made.state_dict() if "teacher" in key]


@pytest.mark.parametrize(("tensors", "said"), [
    ({"logits": torch.zeros(7, 10)}, "has logits of 7 images; the pool has 1797"),
    ({"logits": torch.zeros(1797, 3)}, "3 classes; the net tells 10"),
    ({"weight": torch.zeros(2)}, "expected the one tensor `logits`"),
])
def test_files_that_do_not_fit(tmp_path, tensors, said):
    pool = digits()
    file = tmp_path / "said.safetensors"
    save_file(tensors, file)
    with pytest.raises(UsageError, match=said):
        build.method("soft_labels", net("tiny_4", 10, pool.style), pool, {"teacher": str(file)})
