"""CoMatch: a slow reference in float64, its two graphs, and its memory on one rank and on two."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from forked import two_ranks
from slow import noise_rows, softmax

from ssl_lab.batch import At, Batch, Style
from ssl_lab.methods.consistency.comatch import CoMatch, pseudo_label_graph
from ssl_lab.nets import net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, LABELED, UNLABELED = 3, 4, 6
MEMORY = 2 * (LABELED + UNLABELED)
FULL = At(2, 10, seed=5)  # the first step at which the memory is full
STATE = ("memory", "memory_labels", "model")


def _batch():
    return Batch(noise_rows(LABELED, 0, CoMatch.views.labeled), noise_rows(UNLABELED, 1, CoMatch.views.unlabeled))


def _method(seed=0, **arguments):
    """CoMatch with something in its memory and its alignment."""
    arguments = {"memory": MEMORY, "dim": 5, "threshold": 0.5, "edge": 0.4} | arguments
    method = CoMatch(net("tiny_4", classes=CLASSES, style=STYLE, seed=seed), **arguments).double().train()
    draw = torch.Generator().manual_seed(3)
    method.memory.copy_(torch.nn.functional.normalize(torch.randn(MEMORY, method.memory.shape[1], generator=draw)))
    method.memory_labels.copy_(torch.randn(MEMORY, CLASSES, generator=draw).mul(2).softmax(dim=1))
    method.model.copy_(torch.tensor([0.3, 0.3, 0.4]).expand(32, CLASSES))
    return method


def _cross_entropy(target, p):
    return -sum(t * math.log(value) for t, value in zip(target, p, strict=True) if t)


def _dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def _mean(values):
    return sum(values) / len(values)


def _unit(vector):
    return [value / math.sqrt(_dot(vector, vector)) for value in vector]


def _outputs(method, batch):
    """Predictions and unit projections of all rows in one pass, by view: labeled, weak, strong_1, strong_2."""
    with torch.no_grad():
        output = copy.deepcopy(method.net)(torch.cat([batch.labeled["weak"], *batch.unlabeled.views.values()]))
        z = [_unit(row) for row in method.projector(output.features).tolist()]
    p = [softmax(row) for row in output.logits.tolist()]
    starts = [0, *range(LABELED, len(p) + 1, UNLABELED)]
    return [(p[start:end], z[start:end]) for start, end in itertools.pairwise(starts)]


def _aligned(p, model):
    a = [[v * (1 / CLASSES + 1e-6) / (m + 1e-6) for v, m in zip(row, model, strict=True)] for row in p]
    return [[v / sum(row) for v in row] for row in a]


def _reference(method, batch, threshold, temperature, smooth, edge, full=True):
    """The three terms without their weights, the mask rate and the edges per row, row by row."""
    (p_labeled, _), (p_weak, z_weak), (p_strong, z_strong), (_, z_other) = _outputs(method, batch)
    q = _aligned(p_weak, method.model.mean(0).tolist())
    if full:
        for b, z in enumerate(z_weak):
            near = softmax([_dot(z, other) / temperature for other in method.memory.tolist()])
            said = [_dot(near, column) for column in method.memory_labels.T.tolist()]
            q[b] = [smooth * a + (1 - smooth) * s for a, s in zip(q[b], said, strict=True)]
    contrast, edges = [], []
    for b in range(UNLABELED):
        row = [1.0 if j == b else _dot(q[b], q[j]) for j in range(UNLABELED)]
        row = [value if value >= edge else 0.0 for value in row]
        edges.append(sum(value > 0 for value in row))
        embedding = softmax([_dot(z_strong[b], z) / temperature for z in z_other])
        contrast.append(_cross_entropy([value / sum(row) for value in row], embedding))
    kept = [max(row) >= threshold for row in q]
    unlabeled = [_cross_entropy(*rows) * keep for *rows, keep in zip(q, p_strong, kept, strict=True)]
    labeled = [-math.log(p[y]) for p, y in zip(p_labeled, batch.labeled.targets.tolist(), strict=True)]
    terms = {"labeled": _mean(labeled), "unlabeled": _mean(unlabeled), "contrast": _mean(contrast)}
    return terms, _mean(kept), _mean(edges)


def _terms(loss):
    return {name: term.item() for name, term in loss.terms.items()}


def test_contract_with_a_memory_that_is_full():
    check_method(partial(CoMatch, memory=8, dim=4), compile=False)


@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.7, "smooth": 0.3}, {"threshold": 0.0, "edge": 0.0},
                                       {"weight": 0.2, "contrast": 3.0, "edge": 1.0}])
@pytest.mark.parametrize("at", [FULL, At(1, 10)], ids=["full", "not full"])
def test_against_its_equations(arguments, at):
    method, batch = _method(**arguments), _batch()
    settings = {"threshold": 0.5, "temperature": 0.2, "smooth": 0.9, "edge": 0.4} | arguments
    weight, contrast = settings.pop("weight", 1.0), settings.pop("contrast", 1.0)
    terms, mask_rate, edges = _reference(method, batch, **settings, full=at == FULL)
    loss = method(batch, at)
    expected = {"labeled": terms["labeled"], "unlabeled": weight * terms["unlabeled"],
                "contrast": contrast * terms["contrast"]}
    assert _terms(loss) == pytest.approx(expected, rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(mask_rate)
    assert loss.logs["edges"].item() == pytest.approx(edges)


def test_the_settings_above_keep_some_rows_and_some_edges():
    """Else the reference would not see the mask and the graph at work."""
    _, mask_rate, edges = _reference(_method(), _batch(), 0.5, 0.2, 0.9, 0.4)
    assert 0 < mask_rate < 1
    assert 1 < edges < UNLABELED


def test_graph_without_edges_is_instance_discrimination():
    """Above every similarity only the self-loops are left: InfoNCE between the two strong views."""
    q = torch.rand(5, 3, dtype=torch.float64).softmax(dim=1)
    assert torch.equal(pseudo_label_graph(q, 1.0), torch.eye(5, dtype=torch.float64))
    method, batch = _method(edge=1.0), _batch()
    _, _, (_, z_strong), (_, z_other) = _outputs(method, batch)
    logits = torch.tensor(z_strong) @ torch.tensor(z_other).T / 0.2
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(UNLABELED))
    assert method(batch, FULL).terms["contrast"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_graph_of_certain_labels_is_supervised_contrast():
    """One-hot pseudo-labels: each row's weight is shared by all rows of its class."""
    q = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 2, 0]), 3).double()
    third = 1 / 3
    expected = [[third, 0, third, 0, third], [0, 1, 0, 0, 0], [third, 0, third, 0, third], [0, 0, 0, 1, 0],
                [third, 0, third, 0, third]]
    torch.testing.assert_close(pseudo_label_graph(q, 0.8), torch.tensor(expected, dtype=torch.float64))


def test_graph_keeps_a_similarity_equal_to_the_threshold_and_has_loops_of_one():
    q = torch.full((2, 2), 0.5)  # of itself and of each other 0.5
    torch.testing.assert_close(pseudo_label_graph(q, 0.5), torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]))


def test_smoothing_is_idle_at_one():
    batch = _batch()
    early, late = (_method(smooth=1.0)(batch, at) for at in (At(1, 10), FULL))
    assert _terms(early) == pytest.approx(_terms(late))
    assert _terms(_method(smooth=0.5)(batch, FULL)) != pytest.approx(_terms(late))


def test_targets_carry_no_gradient_and_both_strong_views_do():
    method, batch = _method(threshold=0.0).eval(), _batch()  # eval: rows do not meet in BatchNorm
    for view in batch.unlabeled.views.values():
        view.requires_grad_()
    terms = method(batch, FULL).terms
    (terms["unlabeled"] + terms["contrast"]).backward()
    weak, one, two = (batch.unlabeled[name] for name in ("weak", "strong_1", "strong_2"))
    assert weak.grad is None or not weak.grad.any()
    assert one.grad.any()
    assert two.grad.any()
    assert all(parameter.grad.any() for parameter in method.projector.parameters())


def test_memory_takes_labels_and_aligned_predictions_of_the_newest_rows():
    method, batch = _method(), _batch()
    before = {name: method.get_buffer(name).clone() for name in STATE}
    method(batch, FULL)
    method(batch, FULL)  # an update rule may call forward again in a step, which alone moves nothing
    assert all(torch.equal(method.get_buffer(name), value) for name, value in before.items())
    (_, z_labeled), (p, z), *_ = _outputs(method, batch)
    method.after_step(FULL)
    count = LABELED + UNLABELED
    labels = torch.nn.functional.one_hot(batch.labeled.targets, CLASSES).tolist()
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    close(method.memory[:count], torch.tensor(z_labeled + z, dtype=torch.float64))
    close(method.memory_labels[:count], torch.tensor(labels + _aligned(p, [0.3, 0.3, 0.4]), dtype=torch.float64))
    assert torch.equal(method.memory[count:], before["memory"][:-count])
    assert torch.equal(method.memory_labels[count:], before["memory_labels"][:-count])
    close(method.model[-1], torch.tensor(p, dtype=torch.float64).mean(dim=0))
    assert torch.equal(method.model[:-1], before["model"][1:])


def _run(method, steps, start=0, rank=0, world=1):
    batch = _batch()
    part = Batch(batch.labeled.part(rank, world), batch.unlabeled.part(rank, world))
    for step in range(start, start + steps):
        at = At(step, 10, rank=rank, world=world)
        method(part, at)
        method.after_step(at)
    return method


def test_alignment_begins_with_the_first_step():
    """A step is aligned by the mean of those before it, however few; the first not at all."""
    method, batch = _method(smooth=1.0, threshold=0.0).eval(), _batch()
    method.model.zero_()
    at = At(0, 10)
    (_, _), (p, _), *_ = _outputs(method, batch)
    (_, _), _, (strong, _), _ = _outputs(method, batch)
    for model in ([1 / CLASSES] * CLASSES, [_mean(column) for column in zip(*p, strict=True)]):
        expected = _mean([*map(_cross_entropy, _aligned(p, model), strong)])
        assert method(batch, at).terms["unlabeled"].item() == pytest.approx(expected, rel=1e-5)
        method.after_step(at)
    assert not CoMatch(net("tiny_4", classes=CLASSES, style=STYLE)).model.any()


def test_state_survives_a_state_dict():
    straight, first, resumed = _run(_method(), 4), _run(_method(), 2), _method(seed=1)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    _run(resumed, 2, start=2)
    state = straight.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())
    assert all(not torch.equal(_method().get_buffer(name), straight.get_buffer(name)) for name in STATE)


def _same_rows(one, two):
    """Whether two memories hold the same pairs, in any order: the rows of a step have none."""
    one, two = (torch.cat([m["memory"], m["memory_labels"]], dim=1) for m in (one, two))
    one, two = (m[(m @ torch.linspace(1, 2, m.shape[1]).double()).argsort()] for m in (one, two))
    return torch.allclose(one, two, atol=1e-12)


def _state(method):
    return {name: method.get_buffer(name) for name in STATE}


def test_micro_batches_fill_the_memory_as_one_batch_does():
    whole, parts, batch = _method().eval(), _method().eval(), _batch()  # eval: rows do not meet in BatchNorm
    for step in range(3):
        whole(batch, At(step, 10))
        for i, part in enumerate(batch.chunk(2)):
            parts(part, At(step, 10, rank=i, world=2))
        whole.after_step(At(step, 10))
        parts.after_step(At(step, 10))
    assert _same_rows(_state(whole), _state(parts))
    torch.testing.assert_close(whole.model, parts.model)


@pytest.mark.parametrize("at", [At(1, 10), FULL], ids=["not full", "full"])
def test_micro_batches_know_alike_when_the_memory_is_full(at):
    """Smoothed labels of a row are the same in half of the batch: only the graph is smaller."""
    whole, parts, batch = _method().eval(), _method().eval(), _batch()
    halves = [parts(part, At(at.step, 10, seed=5, rank=i, world=2)) for i, part in enumerate(batch.chunk(2))]
    loss = whole(batch, at)
    for term in ("labeled", "unlabeled"):
        assert _mean([half.terms[term].item() for half in halves]) == pytest.approx(loss.terms[term].item())


def _state_of_rank(rank):
    return _state(_run(_method().eval(), 3, rank=rank, world=2))


def test_memory_is_equal_on_one_rank_and_on_two(tmp_path):
    first, second = two_ranks(_state_of_rank, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in STATE)
    alone = _state(_run(_method().eval(), 3))
    assert _same_rows(alone, first)
    torch.testing.assert_close(alone["model"], first["model"])
