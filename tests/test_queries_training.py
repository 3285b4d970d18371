"""Committees, discriminative active learning, learning loss: the queries, and the method that trains the loss head."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ssl_lab.active.queries.checks import check_query
from ssl_lab.active.queries.committee import Committee, consensus_kl, vote_entropy
from ssl_lab.active.queries.discriminative import Discriminative, fit
from ssl_lab.active.queries.learning_loss import LearningLoss as LearningLossQuery
from ssl_lab.active.queries.view import PoolView
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch, Supervised, Views
from ssl_lab.methods.learning_loss import LearningLoss, ranking_loss
from ssl_lab.nets import net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES = 3


@pytest.mark.parametrize("query", [Committee("vote_entropy"), Committee("consensus_kl"), Discriminative(),
                                   Discriminative(batches=1), LearningLossQuery()])
def test_contract_of_queries(query):
    check_query(query)


# --- Committee -----------------------------------------------------------------------------------


def _members(rows=40, members=5, classes=3):
    p = np.random.default_rng(0).dirichlet(np.full(classes, 0.3), size=(rows, members))
    return p.astype(np.float32)


def test_vote_entropy_is_that_of_the_votes():
    p = _members()
    expected = []
    for row in p.tolist():
        votes = [max(range(3), key=member.__getitem__) for member in row]
        shares = [votes.count(c) / 5 for c in range(3)]
        expected.append(-sum(v * math.log(v) for v in shares if v))
    assert np.allclose(vote_entropy(p), expected, atol=1e-6)
    view = PoolView(np.full(40, -1), mc_probs=p)
    assert np.allclose(Committee("vote_entropy").scores(view, np.arange(40)), expected)
    assert expected[Committee("vote_entropy")(view, 1)[0]] == max(expected)


def test_consensus_divergence_is_the_mutual_information():
    p = _members().astype(np.float64)
    mean = p.mean(axis=1)
    divergence = [np.mean([(q * np.log(q / m)).sum() for q in row]) for row, m in zip(p, mean, strict=True)]
    information = -(mean * np.log(mean)).sum(axis=1) + (p * np.log(p)).sum(axis=2).mean(axis=1)
    assert np.allclose(divergence, information)
    assert np.allclose(consensus_kl(p.astype(np.float32)), divergence, atol=1e-5)
    view = PoolView(np.full(40, -1), mc_probs=p)
    assert np.allclose(Committee().scores(view, np.arange(40)), divergence, atol=1e-5)
    assert Committee()(view, 1).tolist() == [np.argmax(divergence)]


def test_members_that_rule_classes_out():
    p = np.zeros((2, 2, 3), dtype=np.float32)
    p[0, :, 0] = 1
    p[1, 0, 0] = p[1, 1, 1] = 1
    assert consensus_kl(p).tolist() == pytest.approx([0, math.log(2)])
    assert vote_entropy(p).tolist() == pytest.approx([0, math.log(2)])


def test_unknown_measure():
    with pytest.raises(UsageError, match="vote_entropy"):
        Committee("votes_entropy")


# --- Discriminative ------------------------------------------------------------------------------


def _shifted(rows=80, labeled=10):
    draws = np.random.default_rng(0)
    h = draws.standard_normal((rows, 4)).astype(np.float32) * [1, 5, 1, 0] + [0, 100, 0, 7]
    labels = np.full(rows, -1)
    labels[np.argsort(h[:, 0])[:labeled]] = 0
    return PoolView(labels, embeddings=h)


def _loss(weights, h, labeled, ridge):
    """The docstring's, term by term."""
    z = h @ weights[:-1] + weights[-1]
    sides = (np.logaddexp(0, z[labeled]).mean() + np.logaddexp(0, -z[~labeled]).mean()) / 2
    return sides + ridge / 2 * weights[:-1] @ weights[:-1]


def test_the_classifier_is_the_minimum_of_its_loss():
    view = _shifted()
    h = view.embeddings.astype(np.float64)
    h = (h - h.mean(axis=0)) / np.where(h.std(axis=0) > 1e-9, h.std(axis=0), 1)
    labeled = view.labels >= 0
    weights, z = fit(h, labeled, 0.01, np.zeros(5))
    expected = minimize(_loss, np.ones(5), args=(h, labeled, 0.01), tol=1e-10).x
    assert np.allclose(weights, expected, atol=2e-3)
    assert np.allclose(z, h @ weights[:-1] + weights[-1])
    order = view.candidates[np.argsort(z[view.candidates])[::-1]]
    assert Discriminative(batches=1, ridge=0.01)(view, 6).tolist() == order[:6].tolist()


def test_what_a_part_picked_counts_as_labeled_in_the_next():
    view = _shifted()
    first = Discriminative(batches=1)(view, 5)
    known = view.labels.copy()
    known[first] = 0
    second = Discriminative(batches=1)(PoolView(known, embeddings=view.embeddings), 5)
    assert Discriminative(batches=2)(view, 10).tolist() == [*first.tolist(), *second.tolist()]
    assert Discriminative(batches=1)(view, 10).tolist() != [*first.tolist(), *second.tolist()]


def test_discriminative_needs_labels_and_sound_arguments():
    with pytest.raises(UsageError, match="none is labeled"):
        Discriminative()(PoolView(np.full(9, -1), embeddings=np.eye(9)), 2)
    with pytest.raises(UsageError, match="batches"):
        Discriminative(batches=0)
    assert len(Discriminative(batches=10)(_shifted(), 3)) == 3  # more parts than picks


# --- Learning loss -------------------------------------------------------------------------------


def test_the_highest_predicted_loss_is_chosen_even_below_zero():
    view = PoolView(np.array([-1, 0, -1, -1, -2]), predicted_loss=np.array([-3.0, 9, -1, -2, 9]))
    before = view.predicted_loss.copy()
    assert LearningLossQuery()(view, 3).tolist() == [2, 3, 0]
    assert np.array_equal(view.predicted_loss, before)


def _rows(count, views, seed):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in views}
    return Rows(images, targets, targets, torch.arange(count))


BATCH = Batch(_rows(6, ["view"], 0), _rows(0, [], 1))


def _method(base=Supervised, **arguments):
    return LearningLoss(base(net("tiny_4", classes=CLASSES, style=STYLE, seed=0)), **arguments).double().train()


@pytest.mark.parametrize("base", [Supervised, FixMatch])
def test_contract_of_the_method(base):
    check_method(lambda small: LearningLoss(base(small)), compile=base is Supervised)


def test_the_loss_is_the_base_methods_and_that_of_the_pairs():
    method = _method(weight=0.5, margin=0.7)
    alone = copy.deepcopy(method.base)(BATCH, At(0, 10))
    with torch.no_grad():
        features, logits = copy.deepcopy(method.net)(BATCH.labeled["view"])
        predicted = method.head(features)[:, 0].tolist()
    actual = [-(row - row.logsumexp(0))[y].item() for row, y in zip(logits, BATCH.labeled.targets, strict=True)]
    expected = 0.0
    for i, j in ((0, 1), (2, 3), (4, 5)):
        sign = 1 if actual[i] > actual[j] else -1
        expected += max(0.0, -sign * (predicted[i] - predicted[j]) + 0.7) * 2 / 6
    loss = method(BATCH, At(0, 10))
    assert loss.terms["ranking"].item() == pytest.approx(0.5 * expected, rel=1e-9)
    assert loss.terms["labeled"].item() == pytest.approx(alone.terms["labeled"].item(), rel=1e-12)
    assert loss.terms.keys() == alone.terms.keys() | {"ranking"}


def test_ranking_loss_by_hand():
    predicted, actual = torch.tensor([2.0, 0.0, 1.0, 1.5, 9.0]), torch.tensor([1.0, 0.5, 2.0, 1.0, 7.0])
    assert ranking_loss(predicted, actual, 1.0).item() == pytest.approx((0 + 1.5) / 2)  # the fifth has no pair
    assert ranking_loss(predicted[:2], torch.zeros(2), 1.0).item() == pytest.approx(3.0)  # equals: sign -1
    assert ranking_loss(predicted[:1], actual[:1], 1.0).item() == 0


def test_the_second_term_reaches_the_net_only_at_first():
    for step, reaches in ((5, True), (6, False)):
        method = _method()
        method(BATCH, At(step, 10)).terms["ranking"].backward()
        gradients = [p.grad for p in method.net.backbone.parameters()]
        assert any(g is not None and bool(g.any()) for g in gradients) == reaches
        assert all(bool(p.grad.any()) for p in method.head.parameters())


def test_batch_norm_moves_as_it_does_under_the_base_method():
    method = _method()
    alone = copy.deepcopy(method.base)
    method(BATCH, At(0, 10))
    alone(BATCH, At(0, 10))
    for name, value in alone.net.named_buffers():
        assert torch.equal(value, method.net.get_buffer(name)), name


def test_state_holds_the_net_once_and_both_averages_move():
    method = _method()
    assert all(name.startswith(("base.", "head.", "head_ema.")) for name in method.state_dict())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1)
    method.after_step(At(0, 10))
    assert torch.equal(method.head_ema.net[2].weight, method.head[2].weight)
    assert torch.equal(method.predictor().head.bias, method.net.head.bias)


def test_the_head_learns_which_images_have_the_higher_loss():
    """One class can be told, the other two look the same: their loss is higher, and so is what is predicted."""
    method = LearningLoss(Supervised(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), ema=0.0)).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    nothing = Rows({}, *[torch.zeros(0, dtype=torch.int64)] * 3)
    for step in range(60):
        targets = torch.randint(0, CLASSES, (32,), generator=draw)
        images = torch.rand(32, 1, 8, 8, generator=draw) * 0.3 + 0.6 * (targets == 0).float().view(-1, 1, 1, 1)
        batch = Batch(Rows({"view": images}, targets, targets, torch.arange(32)), nothing)
        optimizer.zero_grad()
        method(batch, At(step, 60)).total.backward()
        optimizer.step()
        method.after_step(At(step, 60))
    predicted = method.eval().predicted_loss(images)
    assert predicted.shape == (32,)
    assert predicted[targets == 0].max() < predicted[targets != 0].mean()


def test_a_base_without_a_labeled_view_is_refused():
    class Unlabeled(Supervised):
        name = "unlabeled"

        def __init__(self, small):
            super().__init__(small)
            self.views = Views()

    with pytest.raises(UsageError, match="labeled view"):
        _method(Unlabeled)
