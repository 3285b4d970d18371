"""Each method against the contract, a slow reference in float64, and the identities of its paper."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from small_runs import SMALL_PARTS
from torch import nn

from ssl_lab import build
from ssl_lab.batch import At, Batch, Loss, Rows, Style
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import METHODS, FixMatch, Method, Supervised, Views
from ssl_lab.nets import Net, net
from ssl_lab.schedule import linear
from ssl_lab.testing import check_method
from ssl_lab.views import Strong, Weak

# They need more than a pool, or another net; their contract is tested in files of their own.
ELSEWHERE = {"opencos", "hiermatch", "mae"}
STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items()
                                  if name not in ELSEWHERE and method.family != "distillation"])
def test_contract(name):
    pool = Pool.from_arrays(np.zeros((64, 8, 8), dtype=np.uint8), np.arange(64) % 4, name="arrays").split(labels=8)
    check_method(lambda net: build.method(name, net, pool, SMALL_PARTS.get(name, {})))


@pytest.mark.parametrize("build", [partial(Supervised, view=Strong), partial(FixMatch, threshold=linear(0.1, 0.2)),
                                   partial(FixMatch, weight=linear(0.0, 1.0), ema=0.0)])
def test_contract_with_other_arguments(build):
    check_method(build, compile=False)


class _Broken(Supervised):
    """Supervised, with one promise broken."""

    def __init__(self, net: Net, fault: str) -> None:
        super().__init__(net)
        self.fault, self.calls = fault, 0
        if fault == "unused parameter":
            self.head = nn.Linear(2, 2)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        term = loss.terms["labeled"]
        self.calls += 1
        if self.fault == "nan":
            term = term / 0 * 0
        elif self.fault == "half":
            self.net.half = True
            return _HalfLoss({"labeled": term})
        elif self.fault == "hidden state":
            term = term * self.calls
        elif self.fault == "truth":
            term = term * batch.labeled.truth.clamp(min=0).sum()
        elif self.fault == "read-back":
            term = term * (1 if term.item() > 0 else 2)
        elif self.fault == "global randomness":
            term = term * torch.rand((), generator=torch.Generator().manual_seed(self.calls))
        elif self.fault == "no gradient":
            term = term.detach().requires_grad_()
        return Loss({"labeled": term})


class _HalfLoss(Loss):
    @property
    def total(self):
        return self.terms["labeled"].bfloat16()


@pytest.mark.parametrize(("fault", "said"), [
    ("nan", "nan"), ("half", "float32"), ("hidden state", "another loss"), ("truth", "truth"),
    ("read-back", "reads a tensor back"), ("global randomness", "another loss"), ("no gradient", "does not reach"),
    ("unused parameter", "does not reach"),
])
def test_contract_catches(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_method(lambda net: _Broken(net, fault), compile=False)


def _rows(count, seed, classes=3, views=("weak", "strong")):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in views}
    return Rows(images, targets, targets, torch.arange(count))


def _method(cls=FixMatch, seed=0, **arguments) -> Method:
    return cls(net("tiny_4", classes=3, style=STYLE, seed=seed), **arguments).double().train()


def _reference_fixmatch(method, batch, threshold, weight):
    """Equations 3 and 4 of the paper, row by row, over one pass of the net."""
    x, u = batch.labeled, batch.unlabeled
    with torch.no_grad():
        logits = method.net(torch.cat([x["weak"], u["weak"], u["strong"]])).logits.tolist()
    labeled, weak, strong = logits[: len(x)], logits[len(x) : len(x) + len(u)], logits[len(x) + len(u) :]

    def log_p(row):
        top = max(row)
        return [z - top - math.log(sum(math.exp(other - top) for other in row)) for z in row]

    supervised = sum(-log_p(row)[y] for row, y in zip(labeled, x.targets.tolist(), strict=True)) / len(x)
    unlabeled, kept = 0.0, 0
    for w, s in zip(weak, strong, strict=True):
        q = [math.exp(value) for value in log_p(w)]
        if max(q) >= threshold:
            unlabeled += -log_p(s)[q.index(max(q))]
            kept += 1
    return supervised + weight * unlabeled / len(u), kept / len(u)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_fixmatch_against_its_equations(threshold, weight):
    method = _method(threshold=threshold, weight=weight)
    batch = Batch(_rows(6, 0), _rows(10, 1))
    expected, mask_rate = _reference_fixmatch(method, batch, threshold, weight)
    loss = method(batch, At(0, 1))
    assert sum(term.item() for term in loss.terms.values()) == pytest.approx(expected, rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(mask_rate)


def test_the_thresholds_above_split_the_rows():
    """Else the reference would not see the mask at work."""
    rates = [_reference_fixmatch(_method(), Batch(_rows(6, 0), _rows(10, 1)), t, 1.0)[1] for t in (0.0, 0.5, 0.6, 1.0)]
    assert rates[0] == 1.0
    assert rates[-1] == 0.0
    assert 0 < rates[2] <= rates[1] < 1


def test_fixmatch_keeps_a_confidence_equal_to_the_threshold():
    method = _method(threshold=1 / 3)
    nn.init.zeros_(method.net.head.weight)  # uniform predictions: every confidence is exactly 1/3
    assert method(Batch(_rows(2, 0), _rows(4, 1)), At(0, 1)).logs["mask_rate"] == 1


def test_fixmatch_with_weight_zero_has_the_labeled_loss_of_the_joint_pass():
    loss = _method(weight=0.0, threshold=0.0)(Batch(_rows(6, 0), _rows(10, 1)), At(0, 1))
    assert loss.terms["unlabeled"] == 0
    assert loss.total.item() == pytest.approx(loss.terms["labeled"].item())


def test_fixmatch_labels_carry_no_gradient():
    """With the strong view equal to the weak one, the gradient is that of cross-entropy to a constant label."""
    method = _method(threshold=0.0)
    x, u = _rows(6, 0), _rows(10, 1)
    u = Rows({"weak": u["weak"], "strong": u["weak"].clone().requires_grad_()}, u.targets, u.truth, u.indices)
    weak = u["weak"].requires_grad_()
    method.net.eval()  # rows do not meet in BatchNorm: the weak rows reach the loss by the pseudo-label alone
    method(Batch(x, u), At(0, 1)).terms["unlabeled"].backward()
    assert weak.grad is None or not weak.grad.any()
    assert u["strong"].grad.abs().sum() > 0


def test_fixmatch_takes_pseudo_labels_from_the_net_that_learns_not_from_its_average():
    method = _method(threshold=0.0)
    batch = Batch(_rows(6, 0), _rows(10, 1))
    before = method(batch, At(0, 1)).total.item()
    with torch.no_grad():
        for parameter in method.ema.net.parameters():
            parameter.add_(1.0)
    assert method(batch, At(0, 1)).total.item() == before


def test_fixmatch_evaluates_the_average():
    method = _method(ema=0.5)
    assert method.predictor() is method.ema.net
    assert not method.predictor().training


def test_batch_statistics_are_those_of_all_rows_together():
    method = _method()
    batch = Batch(_rows(6, 0), _rows(10, 1))
    norm = next(m for m in method.net.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    method(batch, At(0, 1))
    assert seen == [6 + 10 + 10]


def test_schedules_reach_the_loss():
    batch = Batch(_rows(6, 0), _rows(10, 1))
    method = _method(threshold=linear(0.0, 2.0))
    rates = [method(batch, At(step, 4)).logs["mask_rate"].item() for step in range(4)]
    assert rates[0] == 1
    assert rates[2:] == [0, 0]


def test_supervised_is_cross_entropy_of_the_labeled_rows():
    method = _method(Supervised)
    batch = Batch(_rows(6, 0, views=("view",)), _rows(0, 1, views=()))
    with torch.no_grad():
        log_p = method.net(batch.labeled["view"]).logits.log_softmax(1)
    expected = -sum(log_p[i, int(y)].item() for i, y in enumerate(batch.labeled.targets)) / 6
    assert method(batch, At(0, 1)).total.item() == pytest.approx(expected, rel=1e-6)


def test_joint_gives_each_view_its_own_rows():
    method = _method()
    views = [torch.rand(n, 1, 8, 8, dtype=torch.float64) for n in (1, 2, 3)]
    method.eval()
    for output, view in zip(method.joint(*views), views, strict=True):
        assert torch.allclose(output.logits, method.net(view).logits)


def test_every_method_says_what_ssl_lab_list_prints():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.paper
        assert method.family in {"supervised", "consistency", "pretraining", "distillation"}


def test_two_names_with_one_factory_are_two_draws(digits):
    from ssl_lab.engine import Feed

    feed = Feed(digits, Views(unlabeled={"a": Weak, "b": Weak}), 1, 8, 0, torch.device("cpu"))
    batch = feed(At(0, 1))
    assert not torch.equal(batch.unlabeled["a"], batch.unlabeled["b"])
    assert len(batch.labeled) == 0


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "labeled_simclr", "simclr", "byol"])
def test_a_net_learns_from_one_method_to_the_next(name, digits):
    simclr = build.method("simclr", net("tiny_4", classes=digits.class_names, style=digits.style), digits, {})
    assert not any(p.requires_grad for p in simclr.net.head.parameters())
    method = build.method(name, simclr.net, digits, {})
    assert all(p.requires_grad for p in method.net.head.parameters()) == method.classifies
    with pytest.raises(UsageError, match="none of the weights of this tiny_4 learns, as in the averaged net"):
        build.method(name, simclr.predictor(), digits, {})
