"""S4L-Exemplar: the contract, a slow reference in float64, and what the triplet loss must not do."""

import copy
import math

import pytest
import torch

from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.consistency.s4l import S4LExemplar, batch_hard
from ssl_lab.nets import net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
AT = At(2, 10)
CLASSES, COPIES = 3, 3


def _rows(count, seed, views):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in views}
    return Rows(images, targets, targets, torch.arange(count) % (count - 1))  # the first image is there twice


def _method(**arguments):
    return S4LExemplar(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), copies=COPIES, dim=5,
                       **arguments).double().train()


def _batch(method, labeled=4, unlabeled=6):
    return Batch(_rows(labeled, 0, method.views.labeled), _rows(unlabeled, 1, method.views.unlabeled))


def _softplus(value):
    return math.log(1 + math.exp(value))


def _slow_batch_hard(embeddings, images):
    """Row by row, from the definition."""
    losses = []
    for i, z in enumerate(embeddings):
        far, near = 0.0, math.inf
        for j, other in enumerate(embeddings):
            distance = max(math.dist(z, other), 1e-6)
            if images[i] != images[j]:
                near = min(near, distance)
            elif i != j:
                far = max(far, distance)
        losses.append(_softplus(far - near))
    return losses


def test_contract():
    check_method(lambda net: S4LExemplar(net, copies=2), compile=False)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_against_its_equations(weight):
    method = _method(weight=weight)
    batch = _batch(method)
    images, shown = [], []
    for rows in (batch.labeled, batch.unlabeled):
        for view in rows.views.values():
            images += list(view)
            shown += rows.indices.tolist()
    with torch.no_grad():
        output = copy.deepcopy(method.net)(torch.stack(images))
        embeddings = [[value / math.hypot(*z) for value in z] for z in method.exemplar_head(output.features).tolist()]
    x = COPIES * len(batch.labeled)
    triplets = [_slow_batch_hard(embeddings[part], shown[part]) for part in (slice(x), slice(x, None))]
    labeled = 0.0
    for n, z in enumerate(output.logits[:x].tolist()):
        target = int(batch.labeled.targets[n % len(batch.labeled)])
        labeled += (math.log(sum(map(math.exp, z))) - z[target]) / x
    loss = method(batch, AT)
    assert loss.terms["labeled"].item() == pytest.approx(labeled, rel=1e-9)
    expected = weight * sum(sum(part) / len(part) for part in triplets) / 2
    assert loss.terms["exemplar"].item() == pytest.approx(expected, rel=1e-9)
    hit = sum(value < math.log(2) for value in triplets[1]) / len(triplets[1])
    assert loss.logs["exemplar_accuracy"].item() == pytest.approx(hit)


def test_the_declared_views_are_eight_of_every_image():
    method = S4LExemplar(net("tiny_4", classes=CLASSES, style=STYLE))
    assert len(method.views.labeled) == len(method.views.unlabeled) == 8


def test_batch_hard_against_its_definition():
    draw = torch.Generator().manual_seed(3)
    embeddings = torch.randn(12, 4, generator=draw, dtype=torch.float64)
    images = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 2])
    expected = _slow_batch_hard(embeddings.tolist(), images.tolist())
    assert batch_hard(embeddings, images).tolist() == pytest.approx(expected, rel=1e-12)


def test_batch_hard_leaves_a_row_itself_out():
    """Two images, both views of each at one point, 2 apart: with the row itself as a negative it would be log 2."""
    embeddings = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    losses = batch_hard(embeddings, torch.tensor([0, 0, 1, 1]))
    assert losses.tolist() == pytest.approx([_softplus(1e-6 - 2)] * 4)


def test_batch_hard_of_equal_embeddings_is_log_2_with_a_finite_gradient():
    embeddings = torch.ones(4, 3, requires_grad=True)
    losses = batch_hard(embeddings, torch.tensor([0, 0, 1, 1]))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(2)] * 4)
    assert embeddings.grad.isfinite().all()


def test_batch_hard_of_one_image_is_zero_with_a_zero_gradient():
    embeddings = torch.rand(3, 2, requires_grad=True)
    losses = batch_hard(embeddings, torch.tensor([5, 5, 5]))
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert not embeddings.grad.any()


def test_distances_keep_their_precision_under_autocast():
    """In bfloat16, points this near to each other would be one."""
    embeddings = torch.tensor([[1.0, 0], [1, 2e-3], [0, 1], [4e-3, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = batch_hard(embeddings, torch.tensor([0, 0, 1, 1]))
    assert losses.tolist() == pytest.approx(_slow_batch_hard(embeddings.tolist(), [0, 0, 1, 1]), rel=1e-5)


def test_a_lone_view_is_refused():
    with pytest.raises(UsageError, match="copies=1: expected 2 or more"):
        S4LExemplar(net("tiny_4"), copies=1)
