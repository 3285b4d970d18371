"""What compiled nets, and CUDA graphs of them, rest on: known on a CPU, where nets are only traced."""

import pytest
import torch
from small_runs import digits, tiny_net
from torch._dynamo.utils import counters

import ssl_lab as sl
from ssl_lab.batch import At, Style
from ssl_lab.bench.step import Step
from ssl_lab.engine import Feed, Runtime, compiled, predict
from ssl_lab.engine.trainer import Run, Trainer
from ssl_lab.methods import FixMatch, MixMatch
from ssl_lab.schedule import linear

AT = At(0, 8)


def run_of(tmp_path, method, **settings):
    given = {"steps": 8, "out": tmp_path, "device": "cpu", "precision": "fp32", "callbacks": [],
             "optimizer": sl.SGD(lr=linear(0.1, 0.01), weight_decay=linear(1e-3, 1e-2))}
    trainer = Trainer(**given | settings)
    return Run(trainer, *trainer.begun(method, digits()), method, digits(), 8, 8, saved=None)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", [FixMatch, MixMatch])
def test_rates_that_change_compile_nothing_anew_and_are_not_baked_in(tmp_path, kind):
    """MixMatch passes the net twice in a step, once without gradient."""
    torch._dynamo.reset()
    runs = [run_of(tmp_path, kind(tiny_net(digits()))) for _ in range(2)]
    compiled.compile_nets(runs[1].method, graphs=True, backend="eager")
    seen = []
    for step in range(5):
        for run in runs:
            run.step(At(step, 8), 1)
        seen.append(graphs())
    assert seen[0] > 0
    assert len({*seen[1:]}) == 1
    rates = [group["lr"] for group in runs[1].optimizer.param_groups]
    assert rates[0] == pytest.approx(0.1 - 0.09 * 4 / 8)
    plain, traced = (run.method.state_dict() for run in runs)
    torch.testing.assert_close(traced, plain)


def test_evaluation_passes_the_net_as_it_is(tmp_path):
    """Batches of other sizes compile nothing, and record nothing."""
    torch._dynamo.reset()
    run = run_of(tmp_path, FixMatch(tiny_net(digits())))
    compiled.compile_nets(run.method, graphs=True, backend="eager")
    run.step(AT, 1)
    before = graphs()
    for net in (run.method.net, run.method.predictor()):
        predict(net, digits(), digits().test[:37], run.runtime)
    assert graphs() == before


class Overwriting:
    """A function whose every call leaves its result in the same memory, as the replay of a CUDA graph does."""

    def __init__(self, call):
        self.call, self.memory = call, None

    def __call__(self, *given):
        out = self.call(*given)
        if self.memory is None:
            self.memory = out
        for old, new in zip(self.memory, out, strict=True):
            old.copy_(new)
        return self.memory


def test_what_a_net_gives_outlives_its_next_pass(monkeypatch):
    net = tiny_net(digits()).eval()
    monkeypatch.setattr(torch, "compile", lambda call, **_: Overwriting(call))
    images = torch.rand(2, 4, 1, 8, 8)
    with torch.no_grad():
        expected = net(images[0])
        compiled.compile_nets(net, graphs=True)
        first = net(images[0])
        net(images[1])
        assert torch.equal(first.logits, expected.logits)
        assert torch.equal(first.features, expected.features)
        compiled.uncompile(net)
        assert torch.equal(net(images[0]).logits, expected.logits)


def test_gradients_are_dropped_before_the_first_pass_of_a_step(tmp_path, monkeypatch):
    """They may lie in memory that a replay writes to."""
    run = run_of(tmp_path, FixMatch(tiny_net(digits())))
    left = []
    run.method.net.register_forward_pre_hook(
        lambda module, given: left.append(any(p.grad is not None for p in module.parameters())))
    for step in range(2):
        run.step(At(step, 8), 1)
    assert left == [False, False]


@pytest.mark.parametrize("kind", [FixMatch, MixMatch, sl.SimCLR])
def test_a_step_reads_nothing_back(kind):
    """Views, passes, optimizer, averages and metrics; on the meta device there is nothing to read."""
    method = kind(tiny_net(digits()))
    step = Step(method, digits(), 8, 8, Runtime(torch.device("meta"), "fp32", "asked"), 1, compile=False)
    for _ in range(2):
        step.take(2)


@pytest.mark.parametrize(("name", "side", "rows", "bound"), [
    ("tiny_8", 8, 64, True), ("tiny_8", 32, 240, True), ("wrn_28_2", 32, 960, False), ("wrn_28_2", 32, 16, True)])
def test_a_net_is_launch_bound_where_its_operations_are_small(name, side, rows, bound):
    style = Style(3, side, side)
    assert compiled.launch_bound(sl.net(name, 10, style), style, rows) == bound


def test_graphs_are_for_a_gpu_alone():
    method = FixMatch(tiny_net(digits()))
    for device, world, share, expected in (("cpu", 1, 1.0, False), ("cuda", 1, 1.0, True), ("cuda", 2, 1.0, False),
                                           ("cuda", 1, linear(0.5, 1.0), False)):
        runtime = Runtime(torch.device(device), "fp32", "asked", world=world)
        feed = Feed(digits(), method.views, 8, 8, 0, torch.device("cpu"), share=share)
        assert compiled.as_graphs(runtime, method, digits().style, feed) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [FixMatch, MixMatch])
def test_cuda_graphs_take_the_steps_of_the_plain_net_on_a_gpu(tmp_path, kind):
    torch._dynamo.reset()
    counters.clear()
    runs = [run_of(tmp_path, kind(tiny_net(digits())), device="cuda", compile=compile) for compile in ("off", "on")]
    assert [run.graphs for run in runs] == [False, True]
    for step in range(6):
        losses = [run.step(At(step, 8), 1).total.item() for run in runs]
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert not counters["inductor"]["cudagraph_skips"]
