"""Health numbers, CKA and the monitors against double loops and the identities of their papers."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import rows as metrics
from small_runs import tiny_net, train

from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features import (
    Health,
    OnlineAccuracy,
    alignment,
    cka,
    class_separation,
    effective_rank,
    embed,
    embedding_std,
    layer_cka,
    linear_cka,
    sgd_probe,
    uniformity,
    weighted_knn,
)
from ssl_lab.features.health import some
from ssl_lab.nets import Net, net

RUNTIME = Runtime(torch.device("cpu"), "fp32", "a test")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(dim, seed=0):
    return np.linalg.qr(draw(dim, dim, seed=seed))[0]


def hsic(x, y):
    """tr(K H L H), the slow way."""
    n = len(x)
    center = np.eye(n) - 1 / n
    return np.trace(x @ x.T @ center @ y @ y.T @ center)


@pytest.mark.parametrize(("d", "e"), [(5, 7), (60, 70), (5, 70)])  # by features, by images, mixed
def test_cka_is_normalized_hsic(d, e):
    x, y = draw(30, d) + 1, draw(30, e, seed=1) - 2
    y[:, :3] += x[:, :3]
    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert linear_cka(y, x) == pytest.approx(expected, rel=1e-9)


def test_cka_has_the_invariances_of_its_paper_and_no_other():
    x, y = draw(40, 6), draw(40, 8, seed=1)
    y[:, :6] += x
    value = linear_cka(x, y)
    assert 0.1 < value < 0.95
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(3 * x @ rotation(6) + 5, y) == pytest.approx(value, rel=1e-9)
    assert abs(linear_cka(x * [10, 1, 1, 1, 1, 1], y) - value) > 0.02
    assert np.isnan(linear_cka(np.ones((40, 3)), y))


def test_cka_by_layer(digits):
    first, second = (net("tiny_4", classes=10, style=digits.style, seed=seed) for seed in (0, 1))
    rows = digits.train[:50]
    values, mine, theirs = layer_cka(first, first, digits, rows, RUNTIME)
    assert mine == theirs
    assert values.shape == (len(mine), len(mine))
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-9)
    np.testing.assert_allclose(values, values.T, atol=1e-9)
    across, _, _ = layer_cka(first, second, digits, rows, RUNTIME, ["stem", "blocks"], ["blocks"])
    assert across.shape == (2, 1)
    pixels = digits.images.take(rows).float() / 255
    with torch.no_grad():
        normal = (pixels - first.mean) / first.std
        trunks = [made.eval().backbone for made in (first, second)]
        outputs = [trunk.blocks(trunk.stem(normal)).flatten(1).numpy() for trunk in trunks]
    assert across[1, 0] == pytest.approx(linear_cka(*outputs), rel=1e-4)
    first.train()
    layer_cka(first, second, digits, rows, RUNTIME, ["stem"], ["stem"])
    assert first.training
    assert not second.training
    assert not any(module._forward_hooks for module in first.modules())
    with pytest.raises(UsageError, match=r"unknown layer 'stm'\. Did you mean stem"):
        layer_cka(first, second, digits, rows, RUNTIME, ["stm"])
    assert not any(module._forward_hooks for module in first.modules())


class Windows(torch.nn.Module):
    """Layers that give no row for each image: one passes windows as a batch, of one only the weight is used."""

    def __init__(self):
        super().__init__()
        self.first, self.window, self.unused = (torch.nn.Linear(size, 16) for size in (64, 4, 16))

    def forward(self, images):
        rows = self.window(self.first(images.flatten(1)).reshape(-1, 4)).reshape(len(images), -1)
        return torch.nn.functional.linear(rows[:, :16], self.unused.weight)


def test_cka_leaves_out_layers_without_a_row_for_each_image(digits, monkeypatch):
    made = Net(Windows(), torch.nn.Linear(16, 10), digits.style.mean, digits.style.std)
    _, names, _ = layer_cka(made, made, digits, digits.train[:20], RUNTIME)
    assert names == ["first"]
    monkeypatch.setattr(cka, "COLUMNS", 3)
    blocks = layer_cka(made, tiny_net(digits), digits, digits.train[:20], RUNTIME)[0]
    monkeypatch.undo()
    np.testing.assert_allclose(blocks, layer_cka(made, tiny_net(digits), digits, digits.train[:20], RUNTIME)[0])
    for name in ("window", "unused"):
        with pytest.raises(UsageError, match=f"layer {name} of custom gives no row for each image"):
            layer_cka(made, made, digits, digits.train[:20], RUNTIME, [name])


def test_effective_rank():
    flat = np.linalg.qr(draw(50, 8))[0]  # eight equal singular values
    assert effective_rank(flat) == pytest.approx(8, rel=1e-4)
    assert effective_rank(np.outer(draw(50), draw(8))) == pytest.approx(1, rel=1e-3)
    x = draw(50, 8) * np.arange(1, 9)
    sizes = np.sqrt(np.linalg.eigvalsh(x.T @ x))
    shares = sizes / sizes.sum() + 1e-7
    assert effective_rank(x) == pytest.approx(np.exp(-sum(p * np.log(p) for p in shares)), rel=1e-6)
    assert effective_rank(7 * x @ rotation(8)) == pytest.approx(effective_rank(x), rel=1e-6)


def test_embedding_std():
    assert embedding_std(draw(4000, 32)) == pytest.approx(1, abs=0.03)
    assert embedding_std(np.tile(draw(1, 8), (20, 1))) == pytest.approx(0, abs=1e-6)
    x = draw(30, 4)
    unit = np.array([row / np.linalg.norm(row) for row in x])
    assert embedding_std(5 * x) == pytest.approx(2 * np.mean([unit[:, d].std() for d in range(4)]), rel=1e-5)


def test_alignment_and_uniformity_are_double_loops():
    x, y = draw(20, 5), draw(20, 5, seed=1)
    a, b = (np.array([row / np.linalg.norm(row) for row in each]) for each in (x, y))
    assert alignment(x, y) == pytest.approx(np.mean([((a[i] - b[i]) ** 2).sum() for i in range(20)]), rel=1e-5)
    lengths = [np.linalg.norm(a[i] - b[i]) for i in range(20)]
    assert alignment(x, y, alpha=1) == pytest.approx(np.mean(lengths), rel=1e-5)
    pairs = [np.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i in range(20) for j in range(20) if i != j]
    assert uniformity(x) == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)
    assert alignment(x, x) == 0
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-5)


def test_class_separation_is_the_papers_sum():
    x, labels = draw(24, 5), np.array([0] * 4 + [1] * 8 + [2] * 12)
    x[labels == 1] += 2
    unit = np.array([row / np.linalg.norm(row) for row in x])
    counts, within, total = np.bincount(labels), 0.0, 0.0
    for i in range(24):
        for j in range(24):
            distance = 1 - unit[i] @ unit[j]
            total += distance / (9 * counts[labels[i]] * counts[labels[j]])
            if labels[i] == labels[j]:
                within += distance / (3 * counts[labels[i]] ** 2)
    assert class_separation(x, labels) == pytest.approx(1 - within / total, rel=1e-5)
    assert class_separation(np.eye(3)[labels], labels) == pytest.approx(1)
    ignored = np.concatenate([labels, [-1, -2]])
    assert class_separation(np.concatenate([x, draw(2, 5)]), ignored) == pytest.approx(class_separation(x, labels))
    assert np.isnan(class_separation(np.ones((24, 3)), labels))


def test_the_monitor_is_the_learners_on_the_labeled_rows(digits):
    pool = digits.split(labels=100, valid=200)
    made = tiny_net(pool)
    method = SimpleNamespace(predictor=lambda: made)
    found = OnlineAccuracy({"knn": partial(weighted_knn, k=7)})(method, pool, RUNTIME)
    bank, asked = (embed(made, pool, rows, RUNTIME) for rows in (pool.labeled, pool.valid))
    probs = weighted_knn(bank, pool.labels[pool.labeled], asked, 10, k=7)
    assert found == {"knn_accuracy": (probs.argmax(axis=1) == pool.truth[pool.valid]).mean()}
    assert 0.2 < found["knn_accuracy"] < 1
    probs = sgd_probe(bank, pool.labels[pool.labeled], asked, 10)
    found = OnlineAccuracy()(method, pool, RUNTIME)
    assert found.keys() == {"knn_accuracy", "probe_accuracy"}
    assert found["probe_accuracy"] == (probs.argmax(axis=1) == pool.truth[pool.valid]).mean()
    nobody = digits.split(labels=10)
    nobody.record(nobody.labeled, [-1] * 10)
    assert OnlineAccuracy()(method, nobody, RUNTIME) == {}


def test_ranks_count_together(digits):
    pool, parts = digits.split(labels=100, valid=101), []
    method = SimpleNamespace(predictor=lambda: tiny_net(pool))

    class Rank(Runtime):
        def totals(self, numbers):
            parts.append(numbers[0])
            return numbers

    ranks = [Rank(torch.device("cpu"), "fp32", "a test", rank, 2) for rank in (0, 1)]
    shares = [OnlineAccuracy()(method, pool, rank)["knn_accuracy"] for rank in ranks]
    assert sum(shares) == pytest.approx(OnlineAccuracy()(method, pool, RUNTIME)["knn_accuracy"])
    assert min(parts) > 0


def test_the_health_monitor_sees_a_collapse(digits):
    made = tiny_net(digits)
    method = SimpleNamespace(predictor=lambda: made)
    alive = Health(rows=200)(method, digits, RUNTIME)
    assert alive["collapsed"] == 0
    assert alive["effective_rank"] > 3
    features = embed(made, digits, some(digits.train, 200), RUNTIME)
    assert alive["embedding_std"] == pytest.approx(embedding_std(features))
    for weights in (torch.nn.init.zeros_, lambda weight: torch.nn.init.constant_(weight, torch.nan)):
        with torch.no_grad():
            for weight in made.backbone.blocks[-1].parameters():
                weights(weight)
        assert Health(rows=200)(method, digits, RUNTIME)["collapsed"] == 1
    assert np.isnan(OnlineAccuracy()(method, digits, RUNTIME)["knn_accuracy"])


def test_monitors_in_training_change_nothing_but_the_metrics(tmp_path):
    train(tmp_path / "plain", evaluations=2)
    train(tmp_path / "watched", evaluations=2, monitors=[OnlineAccuracy(rows=100), Health(rows=100)])
    plain, watched = metrics(tmp_path / "plain"), metrics(tmp_path / "watched")
    assert {"knn_accuracy", "probe_accuracy", "embedding_std", "effective_rank", "collapsed"} <= watched[-1].keys()
    assert [row["loss"] for row in plain] == [row["loss"] for row in watched]


@pytest.mark.parametrize(("act", "words"), [
    (lambda: linear_cka(draw(5, 2), draw(6, 2)), "the same n"),
    (lambda: linear_cka(draw(1, 2), draw(1, 2)), "2 or more"),
    (lambda: alignment(draw(5, 2), draw(5, 3)), "expected the same"),
    (lambda: uniformity(draw(1, 2)), "2 rows"),
    (lambda: embedding_std(draw(5)), "features have shape"),
])
def test_errors(act, words):
    with pytest.raises(UsageError, match=words):
        act()
