"""Long tails: the rows a split keeps and labels, and the methods for imbalanced classes."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from forked import two_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from slow import entropy_of, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.config import Settings
from ssl_lab.data import Pool, load
from ssl_lab.data.split import shares
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch
from ssl_lab.methods.consistency.abc import ABC
from ssl_lab.methods.consistency.darp import DARP, clean, cleaning, refine, solve
from ssl_lab.nets import net
from ssl_lab.testing import check_method

# --- Long-tailed splits --------------------------------------------------------------------------

DIGITS = load("digits")
EVEN = Pool.from_arrays(np.random.default_rng(0).integers(0, 256, (150, 2, 2), dtype=np.uint8), np.arange(150) % 3,
                        np.zeros((9, 2, 2), np.uint8), np.arange(9) % 3)


def _sizes(pool, rows):
    return np.bincount(pool.truth[rows], minlength=pool.classes)


@settings(max_examples=25)
@given(imbalance=st.sampled_from([1, 20]) | st.floats(1, 300), valid=st.sampled_from([0, 0.1, 100]),
       seed=st.integers(0, 5), labels=st.integers(10, 150), balance=st.sampled_from(["class", "natural"]))
def test_a_long_tail_follows_its_law(imbalance, valid, seed, labels, balance):
    whole = DIGITS.split(labels, 0, seed, balance, imbalance=imbalance)
    pool = DIGITS.split(labels, valid, seed, balance, imbalance=imbalance)
    available, kept = _sizes(pool, np.setdiff1d(DIGITS.train, pool.valid)), _sizes(pool, pool.train)
    law = imbalance ** (-np.arange(10) / 9)
    largest = min(available / law)
    for size, share, at_least in zip(kept, law, _sizes(pool, pool.labeled), strict=True):
        assert max(1, largest * share - 1) <= size + 1e-5
        assert size <= max(1, largest * share, at_least) + 1e-5
    assert any(kept[c] == available[c] for c in range(10)), "a longer tail of this imbalance was there"

    assert np.array_equal(pool.labeled, whole.labeled), "valid moves no label"
    assert np.array_equal(pool.test, DIGITS.test)
    parts = np.concatenate([pool.train, pool.dropped, pool.valid, pool.test])
    assert np.array_equal(np.sort(parts), np.arange(len(pool)))
    assert np.array_equal(pool.unlabeled, pool.train)

    assert len(pool.labeled) == labels
    assert set(pool.labeled) <= set(pool.train)
    given_labels = _sizes(pool, pool.labeled)
    if balance == "class":
        assert given_labels.min() >= 1
        larger = kept[:, None] > kept
        assert (given_labels[:, None] >= given_labels)[larger].all(), "a smaller class got more labels"
    fewer = DIGITS.split(max(10, labels // 2), valid, seed, balance, imbalance=imbalance)
    assert set(fewer.labeled) <= set(pool.labeled), "more labels add to fewer"
    if not valid:
        assert np.array_equal(fewer.train, pool.train), "the number of labels does not move the train rows"
    assert pool.manifest() == DIGITS.split(labels, valid, seed, balance, imbalance=imbalance).manifest()


def test_counts_of_a_long_tail():
    pool = EVEN.split(18, imbalance=25)
    assert _sizes(pool, pool.train).tolist() == [50, 10, 2]
    assert _sizes(pool, pool.labeled).tolist() == [14, 3, 1]
    assert _sizes(pool, pool.test).tolist() == [3, 3, 3]
    assert _sizes(EVEN, EVEN.split(3, imbalance=1000, seed=2).train).tolist() == [50, 1, 1], "each class keeps one"


def test_labels_of_a_long_tail_are_dealt_one_by_one():
    sizes, order = np.array([70, 31, 9, 9, 2]), [4, 2, 3, 1, 0]
    dealt = [1] * 5
    for count in range(5, sizes.sum() + 1):
        assert shares(sizes, count, np.array(order)).tolist() == dealt
        dealt[max(order, key=lambda c: sizes[c] / (dealt[c] + 0.5))] += 1  # of equals, `max` takes the first
    assert shares(sizes, sizes.sum(), np.array(order)).tolist() == sizes.tolist()


@pytest.mark.parametrize("labels", [3, 13, 40, 150, None])
@pytest.mark.parametrize("balance", ["class", "natural"])
def test_without_imbalance_it_is_the_ordinary_split(labels, balance):
    tail, plain = (EVEN.split(labels, seed=4, balance=balance, imbalance=imbalance).manifest()
                   for imbalance in (1, None))
    assert (tail.pop("imbalance"), plain.pop("imbalance")) == (1, None)
    assert tail == plain


def test_a_longer_tail_is_part_of_a_shorter_one():
    trains = [set(EVEN.split(imbalance=imbalance, seed=1).train) for imbalance in (1, 5, 25, 100)]
    assert trains[3] < trains[2] < trains[1] < trains[0]
    assert set(EVEN.split(imbalance=5, seed=2).train) != trains[1], "the seed draws the rows"


def test_images_without_a_known_label_stay():
    truth = np.where(np.arange(60) % 2, -1, np.arange(60) % 3)
    pool = Pool.from_arrays(np.zeros((60, 2, 2), np.uint8), truth).split(imbalance=10)
    assert (truth[pool.train] < 0).sum() == 30
    assert np.bincount(truth[pool.train][truth[pool.train] >= 0]).tolist() == [10, 3, 1]


def test_dropped_rows_are_dealt_anew():
    tail = EVEN.split(9, valid=30, imbalance=25, seed=1)
    assert len(tail.dropped) > 0
    assert tail.split(9, valid=30, seed=1).manifest() == EVEN.split(9, valid=30, seed=1).manifest()
    again = tail.split(12, valid=12, imbalance=5, seed=3)
    assert again.manifest() == EVEN.split(12, valid=12, imbalance=5, seed=3).manifest()


def test_a_manifest_brings_its_long_tail_back(tmp_path):
    pool = EVEN.split(9, valid=30, imbalance=25, seed=1)
    pool.write_manifest(tmp_path / "split.json")
    again = EVEN.split(labeled=tmp_path / "split.json")
    assert again.manifest()["hash"] == pool.manifest()["hash"]
    assert (again.imbalance, again.manifest()["imbalance"]) == (25, 25)
    assert np.array_equal(again.dropped, pool.dropped)
    other = EVEN.split(labeled=tmp_path / "split.json", valid=0.5)
    assert not set(other.dropped) & set(other.valid)
    with pytest.raises(UsageError, match=r"imbalance=5 chooses train rows.*a manifest brings its long tail"):
        EVEN.split(labeled=tmp_path / "split.json", imbalance=5)


@pytest.mark.parametrize("imbalance", [0.99, 0, -3, math.nan, math.inf])
def test_bad_imbalance(imbalance):
    with pytest.raises(UsageError, match="expected 1 or more"):
        EVEN.split(3, imbalance=imbalance)


def test_a_class_without_images_has_no_long_tail():
    pool = Pool.from_arrays(np.zeros((4, 2, 2), np.uint8), [0, 0, 2, 2], class_names=["cat", "dog", "owl"])
    with pytest.raises(UsageError, match="imbalance=2: class 'dog' has no train image"):
        pool.split(imbalance=2)
    with pytest.raises(UsageError, match="labels=120: expected 1 to 110"):
        EVEN.split(120, imbalance=2)  # 50, 35 and 25


def test_settings_pass_it_on():
    assert DIGITS.split(**Settings(labels=60, imbalance=20).split()).imbalance == 20
    assert DIGITS.split(**Settings(labels=60).split()).imbalance is None


# --- Methods -------------------------------------------------------------------------------------

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, IMAGES = 3, 20
COUNTS = (12, 6, 3)
MAKE_ABC = partial(ABC, class_counts=COUNTS, threshold=0.34)
MAKE_DARP = partial(DARP, images=IMAGES, class_counts=COUNTS, threshold=0.5, start=0, every=1)


def _rows(count, seed):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64)
              for name in ("weak", "strong", "strong_1", "strong_2")}
    return Rows(images, targets, targets, torch.arange(count))


BATCH = Batch(_rows(6, 0), _rows(10, 1))


def _method(build, **arguments):
    return build(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), **arguments).double().train()


def _outputs(method, views):
    """Of one pass over the labeled weak view and these unlabeled views; nothing moves."""
    with torch.no_grad():
        return copy.deepcopy(method).joint(BATCH.labeled["weak"], *(BATCH.unlabeled[view] for view in views))


def _terms(method, at):
    return {name: term.item() for name, term in method(BATCH, at).terms.items()}


def _run(method, steps, start=0):
    for step in range(start, start + steps):
        at = At(step, 10)
        method(BATCH, at)
        method.after_step(at)
    return method


def _own(method):
    return {name: value for name, value in method.named_buffers() if "." not in name}


@pytest.mark.parametrize("build", [ABC, partial(DARP, images=16)])
def test_contract(build):
    check_method(partial(build, class_counts=[5, 3, 2, 1]))


@pytest.mark.parametrize("build", [ABC, partial(DARP, images=16, start=0, every=1)])
def test_contract_with_other_arguments(build):
    check_method(partial(build, class_counts=[5, 3, 2, 1], threshold=0.3, weight=0.5), compile=False)


@pytest.mark.parametrize("build", [ABC, partial(DARP, images=IMAGES)])
@pytest.mark.parametrize("counts", [(1, 2), (1, 2, 0), (1, 2, 3, 4)])
def test_every_class_needs_a_count(build, counts):
    with pytest.raises(UsageError, match="expected 3 positive numbers"):
        _method(build, class_counts=counts)


# ABC


@pytest.mark.parametrize("at", [At(0, 10), At(7, 10, seed=3), At(9, 10)])
def test_abc_against_its_equations(at):
    method = _method(MAKE_ABC, weight=0.5)
    outputs = _outputs(method, ["weak", "strong_1", "strong_2"])
    b = [out.logits.tolist() for out in outputs]
    with torch.no_grad():
        p = [method.plain_head(out.features).tolist() for out in outputs]
    luck = at.draw("abc/labeled", 6).uniform().tolist()
    luck_u = at.draw("abc/unlabeled", 10).uniform().tolist()
    expected = dict.fromkeys(("plain_labeled", "plain_unlabeled", "labeled", "unlabeled"), 0.0)
    for n, y in enumerate(BATCH.labeled.targets.tolist()):
        expected["plain_labeled"] += entropy_of(y, p[0][n]) / 6
        expected["labeled"] += (luck[n] < min(COUNTS) / COUNTS[y]) * entropy_of(y, b[0][n]) / 6
    kept = 0
    for n in range(10):
        for k in (2, 3):
            q = softmax(p[1][n])
            expected["plain_unlabeled"] += 0.5 * (max(q) >= 0.34) * entropy_of(q.index(max(q)), p[k][n]) / 20
            q = softmax(b[1][n])
            chance = min(COUNTS) / COUNTS[q.index(max(q))]
            keep = max(q) >= 0.34 and luck_u[n] < 1 - at.step / 10 * (1 - chance)
            kept += keep
            expected["unlabeled"] += keep * entropy_of(q, b[k][n]) / 10
    loss = method(BATCH, at)
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(expected, rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / 20)
    assert kept > 0
    assert at.step == 0 or kept < 20


def test_abc_with_balanced_counts_masks_nothing():
    method = _method(MAKE_ABC, class_counts=(4, 4, 4), threshold=0.0)
    for at in (At(0, 10), At(9, 10, seed=1)):
        terms = _terms(method, at)
        b = [out.logits.tolist() for out in _outputs(method, ["weak", "strong_1", "strong_2"])]
        labels = BATCH.labeled.targets.tolist()
        assert terms["labeled"] == pytest.approx(sum(map(entropy_of, labels, b[0])) / 6)
        targets = [softmax(row) for row in b[1]]
        everything = sum(map(entropy_of, targets, b[2])) + sum(map(entropy_of, targets, b[3]))
        assert terms["unlabeled"] == pytest.approx(everything / 10)


def test_abc_keeps_all_classes_equally_often():
    method = _method(ABC, class_counts=COUNTS)
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    rows = torch.stack([At(step, 4000).draw("abc/labeled", len(labels)).uniform() < method.rarity[labels]
                        for step in range(4000)])
    per_class = torch.stack([rows[:, labels == c].sum(dim=1).float().mean() for c in range(3)])
    assert per_class.tolist() == pytest.approx([3, 3, 3], abs=0.1)  # the rarest class: always, all 3


def test_abc_each_classifier_learns_from_its_terms_alone_and_both_train_the_features():
    method = _method(MAKE_ABC)
    for names, learns, rests in ((("plain_labeled", "plain_unlabeled"), method.plain_head, method.net.head),
                                 (("labeled", "unlabeled"), method.net.head, method.plain_head)):
        method.zero_grad()
        terms = method(BATCH, At(0, 10)).terms
        sum(terms[name] for name in names).backward()
        assert learns.weight.grad.any()
        assert rests.weight.grad is None or not rests.weight.grad.any()
        assert next(method.net.backbone.parameters()).grad.any()


def test_abc_the_target_has_no_gradient():
    """Of the unlabeled term: the gradient is that of strong views against fixed targets."""
    method = _method(MAKE_ABC, threshold=0.0).eval()
    targets = method.net(BATCH.unlabeled["weak"]).logits.detach().softmax(dim=1)
    method(BATCH, At(0, 10)).terms["unlabeled"].backward()
    gradient = method.net.head.weight.grad.clone()
    method.zero_grad()
    logits = [method.net(BATCH.unlabeled[view]).logits.log_softmax(dim=1) for view in ("strong_1", "strong_2")]
    (-(targets * logits[0]).sum(dim=1).mean() - (targets * logits[1]).sum(dim=1).mean()).backward()
    torch.testing.assert_close(gradient, method.net.head.weight.grad)


def test_abc_predicts_with_the_balanced_classifier():
    method = _method(MAKE_ABC, ema=0.0)
    with torch.no_grad():
        method.net.head.weight.add_(1.0)
    method.after_step(At(5, 10))
    assert torch.equal(method.predictor().head.weight, method.net.head.weight)
    assert not torch.equal(method.predictor().head.weight, method.plain_head.weight)


def test_abc_two_ranks_keep_the_rows_that_one_keeps():
    method = _method(MAKE_ABC).eval()  # eval: rows do not meet in BatchNorm
    whole = _terms(method, At(8, 10))
    halves = [method(part, At(8, 10, rank=rank, world=2)).terms for rank, part in enumerate(BATCH.chunk(2))]
    assert whole["unlabeled"] > 0
    for name, value in whole.items():
        assert (halves[0][name] + halves[1][name]).item() / 2 == pytest.approx(value), name


# DARP


def _predictions(rows=40, classes=4, seed=0, sharpness=2.0):
    draw = torch.Generator().manual_seed(seed)
    tilt = torch.linspace(1, 0, classes, dtype=torch.float64)
    return (sharpness * torch.randn(rows, classes, generator=draw, dtype=torch.float64) + tilt).softmax(dim=1)


ALL = torch.ones(40, 1, dtype=torch.bool)


@pytest.mark.parametrize("target", [[10, 10, 10, 10], [24, 10, 4, 2], [4, 6, 12, 18]])
def test_darp_solves_its_problem(target):
    """Against a general solver on the problem itself: minimize over r, rows and columns as constraints."""
    y, m = _predictions(8, seed=3), torch.tensor(target, dtype=torch.float64) / 5
    refined = refine(y, solve(y, ALL[:8], m, 200))
    weights = 1 / -(y * y.log()).sum(dim=1, keepdim=True).numpy()

    def objective(flat):
        r = flat.reshape(8, 4)
        return (weights * r * np.log(r / y.numpy())).sum()

    def gradient(flat):
        return (weights * (np.log(flat.reshape(8, 4) / y.numpy()) + 1)).ravel()

    found = minimize(objective, np.full(32, 0.25), jac=gradient, bounds=[(1e-9, 1)] * 32, method="SLSQP",
                     options={"maxiter": 1000, "ftol": 1e-12}, constraints=[
                         {"type": "eq", "fun": lambda flat: flat.reshape(8, 4).sum(axis=1) - 1},
                         {"type": "eq", "fun": lambda flat: (flat.reshape(8, 4).sum(axis=0) - m.numpy())[:3]}])
    assert found.success
    np.testing.assert_allclose(refined.numpy(), found.x.reshape(8, 4), atol=2e-4)
    assert objective(refined.numpy().ravel()) <= found.fun + 1e-6


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_darp_reaches_the_distribution(sharpness, dtype):
    y, target = _predictions(sharpness=sharpness).to(dtype), torch.tensor([25, 10, 4, 1], dtype=dtype)
    refined = refine(y, solve(y, ALL, target, 100))
    torch.testing.assert_close(refined.sum(dim=0), target, rtol=1e-3, atol=0)
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(40, dtype=dtype))


def test_darp_moves_unsure_rows_most():
    y = torch.tensor([[0.98, 0.02], [0.6, 0.4], [0.9, 0.1]], dtype=torch.float64)
    moved = (y - refine(y, solve(y, ALL[:3], torch.tensor([2.0, 1.0], dtype=torch.float64), 50)))[:, 0]
    assert moved[1] > moved[2] > moved[0] > 0


def test_darp_with_the_predicted_distribution_changes_nothing():
    q = _predictions()
    target = q.sum(dim=0)
    cutoff, scale = cleaning(q, target, delta=100.0)
    torch.testing.assert_close(scale, torch.ones_like(scale))
    y = clean(q, cutoff, scale)
    torch.testing.assert_close(refine(y, solve(y, ALL, target, 10)), q, atol=1e-5, rtol=0)


def test_darp_ignores_images_not_seen():
    q, target = _predictions(), torch.tensor([20.0, 12, 6, 2], dtype=torch.float64)
    padded = torch.cat([q[:7], torch.zeros(5, 4), q[7:]])
    for delta in (1.0, 2.0, 100.0):
        cutoff, scale = cleaning(q, target, delta)
        assert delta == 100 or torch.equal(cleaning(padded, target, delta)[0], cutoff)
        torch.testing.assert_close(cleaning(padded, target, delta)[1], scale)
        seen = padded.sum(dim=1, keepdim=True) > 0
        torch.testing.assert_close(solve(clean(padded, cutoff, scale), seen, target, 10),
                                   solve(clean(q, cutoff, scale), ALL, target, 10))


@pytest.mark.parametrize("rounds", [1, 10])
def test_darp_prices_against_a_loop_over_classes(rounds):
    """Newton's method class by class and row by row, as scipy does it in the paper's code."""
    y, m = _predictions(8, seed=3), [2.0, 2.0, 3.0, 1.0]
    rows, h = y.tolist(), [-sum(v * math.log(v) for v in row) for row in y.tolist()]
    prices = [0.0] * 4
    for _ in range(rounds):
        scaled = [[v * math.exp(-p * h[n]) for v, p in zip(row, prices, strict=True)] for n, row in enumerate(rows)]
        r = [[v / sum(row) for v in row] for row in scaled]
        for c in range(4):
            change = 0.0
            for _ in range(5):
                now = [r[n][c] * math.exp(-change * h[n]) for n in range(8)]
                slope = sum(v * e for v, e in zip(now, h, strict=True)) / sum(now)
                change += math.log(sum(now) / m[c]) / slope
            prices[c] += change
    found = solve(y, ALL[:8], torch.tensor(m, dtype=torch.float64), rounds)
    torch.testing.assert_close(found, torch.tensor(prices, dtype=torch.float64), rtol=1e-9, atol=1e-12)


class Operations(TorchDispatchMode):
    """Counts what a device would be asked to compute; changes of a tensor's shape alone are none."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in {"select", "permute", "detach", "view"}
        return function(*args, **(kwargs or {}))


def test_a_solution_of_darp_is_few_operations():
    """33 a round, where 5 steps of Newton's method take 6 each, for any number of images and classes."""
    y, target = _predictions(), torch.tensor([20.0, 12.0, 6.0, 2.0], dtype=torch.float64)
    with Operations() as operations:
        solve(y, ALL, target, rounds=10)
    assert operations.count <= 10 * 33 + 10


@pytest.mark.parametrize("delta", [0.01, 1.0, 2.0, 3.0])
def test_cleaning_against_its_steps(delta):
    q, target = _predictions(), [20.0, 12.0, 6.0, 2.0]
    expected = torch.zeros_like(q)
    for c in range(4):
        best = sorted(range(40), key=lambda n: -q[n, c])[:max(1, int(delta * target[c]))]
        for n in best:
            expected[n, c] = q[n, c] * (target[c] + 1e-6) / (sum(q[n, c] for n in best) + 1e-6)
    expected += 1e-6
    expected /= expected.sum(dim=1, keepdim=True)
    cutoff, scale = cleaning(q, torch.tensor(target, dtype=torch.float64), delta)
    torch.testing.assert_close(clean(q, cutoff, scale), expected, rtol=1e-12, atol=0)


def test_darp_against_its_equations():
    method = _run(_method(MAKE_DARP, weight=0.5), 1)
    method.cutoff.mul_(1 - 1e-9)  # the last entries kept are equal to it, up to rounding
    loss = method(BATCH, At(1, 10))
    labeled, weak, strong = (out.logits.tolist() for out in _outputs(method, ["weak", "strong"]))
    expected, kept, changed = 0.0, 0, 0
    for w, s in zip(weak, strong, strict=True):
        q = softmax(w)
        y = [v * scale * (v >= cutoff) + 1e-6 for v, scale, cutoff in
             zip(q, method.scale.tolist(), method.cutoff.tolist(), strict=True)]
        y = [v / sum(y) for v in y]
        entropy = -sum(v * math.log(v) for v in y)
        r = [v * math.exp(-price * entropy) for v, price in zip(y, method.prices.tolist(), strict=True)]
        label = r.index(max(r))
        changed += label != q.index(max(q))
        if max(r) / sum(r) >= 0.5:
            expected += entropy_of(label, s)
            kept += 1
    assert loss.terms["unlabeled"].item() == pytest.approx(0.5 * expected / 10, rel=1e-9)
    assert loss.terms["labeled"].item() == pytest.approx(
        sum(map(entropy_of, BATCH.labeled.targets.tolist(), labeled)) / 6, rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / 10)
    assert loss.logs["changed_rate"].item() == pytest.approx(changed / 10)
    assert kept > 0
    assert changed > 0


def test_darp_pseudo_labels_of_all_images_have_the_given_shares():
    method = _run(_method(MAKE_DARP, rounds=100), 1)
    seen = method.predictions[:10]
    refined = refine(clean(seen, method.cutoff, method.scale), method.prices)
    expected = torch.tensor(COUNTS, dtype=torch.float64) * 10 / sum(COUNTS)
    torch.testing.assert_close(refined.sum(dim=0), expected, rtol=1e-3, atol=0)


def test_darp_before_it_starts_is_fixmatch():
    method, fixmatch = _method(MAKE_DARP, start=0.5), _method(FixMatch, threshold=0.5)
    for step in range(5):
        at = At(step, 10)
        assert _terms(method, at) == pytest.approx(_terms(fixmatch, at))
        method.after_step(at)
    assert method.prices.tolist() == [0] * 3
    assert _run(method, 1, start=5).prices.any()


def test_darp_solves_every_so_many_steps():
    method = _run(_method(MAKE_DARP, every=3), 1)
    first = method.prices.clone()
    with torch.no_grad():
        method.net.head.weight.neg_()
    assert torch.equal(_run(method, 2, start=1).prices, first)
    assert not torch.equal(_run(method, 1, start=3).prices, first)


def test_darp_remembers_the_latest_prediction_of_each_image():
    method = _method(MAKE_DARP)
    q = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
    method.notes.put(At(0, 10), torch.tensor([4, 7, 4, 0]), q)
    method.after_step(At(0, 10))
    assert torch.equal(method.predictions[[4, 7, 0]], q[[2, 1, 3]])
    assert (method.predictions.sum(dim=1) > 0).sum() == 3


def _moved(method):
    start = _own(_method(MAKE_DARP))
    return all(not torch.equal(value, start[name]) for name, value in _own(method).items() if name != "shares")


def test_darp_state_is_in_the_state_dict_and_goes_on_where_it_was():
    straight, first, resumed = _run(_method(MAKE_DARP), 4), _run(_method(MAKE_DARP), 2), _method(MAKE_DARP)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    _run(resumed, 2, start=2)
    state = straight.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())
    assert _moved(straight)


def test_darp_state_moves_once_per_step():
    method = _method(MAKE_DARP)
    before = {name: value.clone() for name, value in _own(method).items()}
    assert _terms(method, At(0, 10)) == _terms(method, At(0, 10))
    assert all(torch.equal(value, before[name]) for name, value in _own(method).items())
    method.after_step(At(0, 10))
    once = _own(_run(_method(MAKE_DARP), 1))
    assert all(torch.allclose(value, once[name]) for name, value in _own(method).items())


def test_darp_micro_batches_move_the_state_as_one_batch_does():
    whole, parts = _method(MAKE_DARP).eval(), _method(MAKE_DARP).eval()
    for step in range(3):
        at = At(step, 10)
        whole(BATCH, at)
        for i, part in enumerate(BATCH.chunk(2)):
            parts(part, At(step, 10, rank=i, world=2))
        whole.after_step(at)
        parts.after_step(at)
    assert _moved(whole)
    for name, value in _own(whole).items():
        assert torch.allclose(value, _own(parts)[name], rtol=1e-9), name


def _darp_of_rank(rank):
    method = _method(MAKE_DARP).eval()
    for step in range(3):
        at = At(step, 10, rank=rank, world=2)
        method(BATCH.chunk(2)[rank], at)
        method.after_step(at)
    return _own(method)


def test_darp_state_is_equal_on_one_rank_and_on_two(tmp_path):
    first, second = two_ranks(_darp_of_rank, tmp_path)
    alone = _run(_method(MAKE_DARP).eval(), 3)
    assert _moved(alone)
    for name, value in _own(alone).items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-9), name
