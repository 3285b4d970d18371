"""Contract suites: what the loop relies on, to be run on your own parts too. Each raises AssertionError."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ssl_lab.active.queries.checks import check_query
from ssl_lab.batch import At, Batch, Loss, Rows, Style
from ssl_lab.engine.closure import returned
from ssl_lab.engine.compiled import compile_as_others
from ssl_lab.engine.contract import check_technique
from ssl_lab.methods import Method
from ssl_lab.nets import Net, net
from ssl_lab.seeds import generator, seeded
from ssl_lab.views.checks import check_views

__all__ = ["check_method", "check_query", "check_technique", "check_views"]

ROWS = 8
CLASSES = 4


def check_method(build: Callable[[Net], Method], *, compile: bool = True) -> None:
    """Hold a method to the contract of `ssl_lab.methods.Method`.

    Checked on small random images of 1 and 3 channels: a finite loss whose terms make up the total; gradients
    for every parameter that learns and for no other; losses that ignore the truth, which is there for
    diagnostics; the same loss and gradients from the same (seed, step); a state_dict that holds all state; no
    read-back in float32 or under bf16 autocast; a net that compiles; a predictor that gives logits. Example:
    `check_method(lambda net: MyMethod(net, threshold=0.9))`.

    Args:
        build: makes it around a net.
        compile: also try a compiled net, which takes seconds.

    Raises:
        AssertionError: where it breaks the contract; the message says how.

    >>> sl.testing.check_method(lambda net: sl.FixMatch(net, threshold=0.5), compile=False)  # it holds
    """
    def built(net: Net) -> Method:  # as by the words that train: what it draws goes by the net
        with seeded("check_method", repr(float(net.head.weight.detach().sum()))):
            return build(net)

    for channels in (1, 3):
        _check_method(built, Style(channels, 16, 16, mean=(0.5,) * channels, std=(0.25,) * channels), compile)


def _check_method(build: Callable[[Net], Method], style: Style, compile: bool) -> None:
    method, batch, at = build(_small(style)), _batch(build(_small(style)), style), At(step=3, total=10)
    name = f"{type(method).__name__} on {style.channels}-channel images"
    for attribute in ("name", "family", "paper", "arxiv", "recipe", "views"):
        assert hasattr(method, attribute), f"{name}: it has no `{attribute}`, which `ssl-lab list` prints"
    start = copy.deepcopy(method.state_dict())
    loss, gradients = _step(method, batch, at)

    numbers = {key: float(value) for key, value in loss.detached().items()}
    assert all(math.isfinite(value) for key, value in numbers.items() if key.startswith("loss")), f"{name}: {numbers}"
    assert loss.total.dtype == torch.float32, f"{name}: the loss is {loss.total.dtype}; compute losses in float32"
    for parameter, gradient in gradients.items():
        learns = method.get_parameter(parameter).requires_grad
        assert gradient is None or learns, f"{name}: {parameter} does not learn, but has a gradient"
        assert gradient is not None or not learns, f"{name}: {parameter} learns, but the loss does not reach it"
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients.values()), (
        f"{name}: all gradients are zero"
    )

    method.load_state_dict(start)
    again, same = _step(method, batch, at)
    assert torch.equal(again.total, loss.total), f"{name}: the same step gives another loss; state outside state_dict?"
    assert _equal(same, gradients), f"{name}: the same step gives other gradients"

    method.load_state_dict(start)
    blind, unchanged = _step(method, _without_truth(batch), at)
    assert torch.equal(blind.total, loss.total), f"{name}: the loss reads `truth`, which is for diagnostics only"
    assert _equal(unchanged, gradients), f"{name}: the gradient reads `truth`, which is for diagnostics only"

    _check_state(build, method, style, batch, at, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = _step(build(_small(style)), batch, at)
    assert half.total.dtype == torch.float32, f"{name}: under bf16 autocast the loss is {half.total.dtype}"
    assert bool(half.total.isfinite()), f"{name}: under bf16 autocast the loss is {float(half.total)}"
    _check_no_read_back(build, style, batch, at, name)
    if compile:
        compiled = build(_small(style))
        compile_as_others(compiled.net, "eager", fullgraph=True)
        value, _ = _step(compiled, batch, at)
        assert torch.allclose(value.total, loss.total, rtol=1e-4), f"{name}: compiled, the loss is another"


def _check_state(build: Callable[[Net], Method], method: Method, style: Style, batch: Batch, at: At, name: str) -> None:
    """A copy that is given the state_dict after some steps goes on as the original does."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        now = At(step, at.total)
        _step(method, batch, now)
        optimizer.step()
        method.after_step(now)
    other = build(_small(style, seed=1))
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    mine, theirs = (_step(each, batch, At(2, at.total))[0] for each in (method, other))
    assert torch.equal(mine.total, theirs.total), f"{name}: state_dict does not hold all of its state"
    predictor = method.predictor().eval()
    image = next(iter(batch.labeled.views.values() or batch.unlabeled.views.values()))[:1]
    logits = predictor(image).logits
    assert logits.shape == (1, method.net.classes), f"{name}: the predictor's logits are {list(logits.shape)}"


def _check_no_read_back(build: Callable[[Net], Method], style: Style, batch: Batch, at: At, name: str) -> None:
    """On the meta device there are no values: whatever reads one to the host fails there."""
    moved = build(_small(style)).to("meta")
    try:
        moved(_map(batch, lambda tensor: tensor.to("meta")), at).total.backward()
        moved.after_step(at)
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"{name}: it reads a tensor back to the host, or leaves the device of the batch "
                             f"({str(error).splitlines()[0]})") from error


def _small(style: Style, seed: int = 0) -> Net:
    return net("tiny_4", classes=CLASSES, style=style, seed=seed)


def _batch(method: Method, style: Style) -> Batch:
    """ROWS labeled and 2 * ROWS unlabeled random images under the method's views."""
    kinds = {}
    for kind, factories, rows in (("labeled", method.views.labeled, ROWS),
                                  ("unlabeled", method.views.unlabeled, 2 * ROWS)):
        rows = rows if factories else 0
        draw = generator("check_method", kind)
        shape = (rows, style.channels, style.height, style.width)
        images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        truth = torch.arange(rows) % CLASSES
        views = {name: factory(style)(images, At(0, 1).draw(f"{kind}/{name}", rows))
                 for name, factory in factories.items()}
        targets = truth if kind == "labeled" else torch.full_like(truth, -1)
        kinds[kind] = Rows(views, targets, truth, torch.arange(rows))
    return Batch(**kinds)


def _step(method: Method, batch: Batch, at: At) -> tuple[Loss, dict[str, Tensor | None]]:
    """The loss and all gradients of one step in training mode; nothing is updated but the method's own state."""
    method.train()
    method.zero_grad()
    torch.manual_seed(0)
    loss = returned(method(batch, at), type(method).__name__)
    loss.total.backward()  # type: ignore[no-untyped-call]
    return loss, {name: None if p.grad is None else p.grad.clone() for name, p in method.named_parameters()}


def _equal(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None]) -> bool:
    return all((x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
               for x, y in zip(a.values(), b.values(), strict=True))


def _without_truth(batch: Batch) -> Batch:
    return Batch(*(replace(rows, truth=torch.full_like(rows.truth, -1)) for rows in (batch.labeled, batch.unlabeled)))


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(*(Rows({name: change(view) for name, view in rows.views.items()}, change(rows.targets),
                        change(rows.truth), change(rows.indices)) for rows in (batch.labeled, batch.unlabeled)))
