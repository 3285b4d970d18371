import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import digits, flat_net, train

from ssl_lab import schedule
from ssl_lab.batch import At, Style
from ssl_lab.engine import Feed
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.optim import SGD
from ssl_lab.views import Strong, Weak
from ssl_lab.views.naming import named, text_of

FRACTION = st.floats(0, 1)


@given(FRACTION)
def test_equations(t):
    assert schedule.constant(3.0)(t) == 3.0
    assert schedule.linear(1.0, 5.0)(t) == pytest.approx(1 + 4 * t)
    assert schedule.linear(0.0, 2.0, until=0.5)(t) == pytest.approx(min(2.0, 4 * t))
    assert schedule.cosine(2.0)(t) == pytest.approx(1 + math.cos(math.pi * t))
    assert schedule.ramp_up(2.0, until=0.4)(t) == pytest.approx(2 * math.exp(-5 * max(0, 1 - t / 0.4) ** 2))
    assert 0.2 - 1e-12 <= schedule.cyclical(0.2, 0.7, cycles=3)(t) <= 0.7 + 1e-12


def test_fixmatch_rate_follows_the_paper_over_its_million_steps():
    rate = schedule.cosine_7_16(0.03)
    for step in (0, 1, 2**19, 2**20 - 1):
        assert At(step, 2**20).value(rate) == pytest.approx(0.03 * math.cos(7 * math.pi * step / (16 * 2**20)))
    assert rate(1.0) == pytest.approx(0.195 * 0.03, rel=1e-3)


def test_drops_multiply_at_each_place():
    rate = schedule.drops(0.1, 0.2, 0.3, 0.6, 0.8)  # RotNet's
    assert [rate(t) for t in (0.0, 0.299, 0.3, 0.6, 0.79, 1.0)] == pytest.approx([0.1, 0.1, 0.02, 0.004, 0.004, 8e-4])


def test_cycles_touch_both_ends():
    wave = schedule.cyclical(0.8, 0.98, cycles=2)
    assert [wave(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0.8, 0.98, 0.8, 0.98, 0.8])


def clr(t, low, high, cycles, kind):
    """The code of Smith's appendix, on 1000 iterations: epochCounter t * 1000, stepsize 500 / cycles."""
    stepsize, iteration = 500 / cycles, t * 1000
    cycle = math.floor(1 + iteration / (2 * stepsize))
    x = abs(iteration / stepsize - 2 * cycle + 1)
    shrunk = {"triangular": 1, "triangular2": 1 / 2 ** (cycle - 1), "exp_range": 0.1 ** (iteration / 1000)}[kind]
    return low + (high - low) * max(0, 1 - x) * shrunk


@pytest.mark.parametrize("kind", ["triangular", "triangular2", "exp_range"])
@given(t=st.floats(0, 0.999))
def test_cyclical_learning_rates_are_those_of_the_paper(kind, t):
    made = getattr(schedule, kind)(0.1, 0.6, cycles=3)
    assert made(t) == pytest.approx(clr(t, 0.1, 0.6, 3, kind), abs=1e-9)
    assert getattr(schedule, kind)(0.3, 0.3)(t) == 0.3
    assert made(1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("factor", [1, 2, 4, 1.5])
def test_general_cycles_are_those_of_the_paper(factor):
    """Smith's code, but for one epoch at the turn, where it compares with epochs and divides by epochs - 1."""
    wave = schedule.cyclical(0.2, 0.7, factor=factor)
    for epoch in range(101):
        rises = factor == 1 or factor * epoch < 100
        eta = 1 - factor * epoch / 100 if rises else (factor * epoch / 100 - 1) / (factor - 1)
        assert wave(epoch / 100) == pytest.approx((1 - eta) * 0.7 + eta * 0.2, abs=1e-9)
    assert schedule.cyclical(0.2, 0.7, 3, factor)(1.5 / 3) == pytest.approx(wave(0.5))
    assert all(schedule.cyclical(0.3, 0.3, factor=factor)(t / 9) == 0.3 for t in range(10))
    assert factor != 2 or all(wave(t / 9) == schedule.triangular(0.2, 0.7)(t / 9) for t in range(10))


def test_a_switch_is_the_one_and_then_the_other():
    assert [schedule.switch(0.0, 0.9, 0.8)(t) for t in (0, 0.79, 0.8, 1)] == [0, 0, 0.9, 0.9]


def test_warm_up_is_linear_and_then_runs_the_whole_of_what_follows():
    rate = schedule.warm_up(0.1, schedule.cosine(2.0))
    assert [rate(t) for t in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0.0, 1.0, 2.0, 0.0])
    assert schedule.warm_up(0.5, 3.0)(0.75) == 3.0


def test_a_schedule_prints_how_it_was_made():
    assert repr(schedule.linear(0.0, 2.0, until=0.5)) == "linear(0.0, 2.0, until=0.5)"
    assert repr(schedule.warm_up(0.1, schedule.cosine(2.0))) == "warm_up(0.1, cosine(2.0, 0.0, cycles=0.5))"


@pytest.mark.parametrize("made", [schedule.linear(0.0, 75.0, until=0.3), schedule.cyclical(0.2, 0.8, cycles=4),
                                  schedule.warm_up(0.1, schedule.cosine_7_16(0.03)), schedule.constant(-2.0),
                                  schedule.drops(0.1, 0.2, 0.3, 0.6), schedule.switch(0.0, 1.0, 0.8),
                                  schedule.cyclical(0.2, 0.8, factor=4), schedule.triangular2(0.0, 1.0),
                                  schedule.exp_range(0.0, 1.0, 0.5, cycles=2), schedule.triangular(0.1, 0.2, cycles=3)])
def test_a_schedule_is_read_from_how_it_prints(made):
    again = schedule.parse(repr(made))
    assert repr(again) == repr(made)
    assert [again(t / 7) for t in range(8)] == [made(t / 7) for t in range(8)]


@pytest.mark.parametrize("text", ["linear(0", "linear(0)", "open('x')", "parse('1')", "3", "linear('a', 'b')", "x.y(1)",
                                  "linear(0, 1, until=0)", "cyclical(0, 1, factor=0.5)", "triangular2(0, 1, 1e999)",
                                  "linear(0, 1, 2, 3)"])
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(UsageError, match="is no schedule; expected"):
        schedule.parse(text)


# What takes schedules beside methods and techniques


def test_numbers_and_schedules_are_read_from_texts():
    assert schedule.scalar("2") == 2.0
    assert schedule.scalar("cyclical(0.5, 5)")(0.5) == 5.0
    with pytest.raises(UsageError, match="'much' is no number, and no schedule such as"):
        schedule.scalar("much")
    with pytest.raises(UsageError, match=r"'much\(1\)' is no schedule; expected"):
        schedule.scalar("much(1)")
    wave = schedule.cyclical(0.0, 1.0)
    assert schedule.course(wave, schedule.cosine) is wave
    assert schedule.course(0.1, schedule.cosine) == schedule.cosine(0.1) != schedule.cosine(0.2)
    assert (schedule.times(0.1, 3), schedule.times(wave, 3)(0.25)) == (3 * 0.1, 1.5)
    assert schedule.extremes(3.0) == (3.0, 3.0)
    assert schedule.extremes(schedule.triangular(-1.0, 2.0)) == (-1.0, 2.0)


def gradient_norms(tmp_path, **settings):
    """Of three steps, as the update rule sees them; and the weights."""
    seen = []

    def update(closure, optimizer, at):
        loss = closure()
        seen.append(float(torch.nn.utils.get_total_norm(p.grad for p in closure.module.parameters()
                                                        if p.grad is not None)))
        optimizer.step()
        return loss

    result = train(tmp_path, Supervised(flat_net()), steps=4, update=update, evaluations=1, **settings)
    return seen, result.method.net.state_dict()


def test_clipping_follows_its_schedule(tmp_path):
    norms, _ = gradient_norms(tmp_path / "cycle", clip=schedule.cyclical(0.1, 0.3))
    assert norms == pytest.approx([0.1, 0.2, 0.3, 0.2], rel=1e-3)
    assert "cyclical(0.1, 0.3" in (tmp_path / "cycle" / "config.yaml").read_text()
    flat, weights = gradient_norms(tmp_path / "flat", clip=schedule.cyclical(0.2, 0.2))
    same, others = gradient_norms(tmp_path / "same", clip=0.2)
    assert flat == same
    assert all(torch.equal(weights[name], others[name]) for name in others)
    with pytest.raises(UsageError, match="both must be positive"):
        gradient_norms(tmp_path / "none", clip=schedule.cyclical(0.0, 1.0))


def test_weight_decay_follows_its_schedule():
    method = Supervised(flat_net())
    spec = SGD(weight_decay=schedule.cyclical(1e-4, 5e-4))
    optimizer = spec.build(method)
    found = []
    for step in range(4):
        spec.set(optimizer, At(step, 4))
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    assert found == [[pytest.approx(value), 0] for value in (1e-4, 3e-4, 5e-4, 3e-4)]


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (1, 2)])
def test_the_size_of_batches_follows_its_schedule(world, parts):
    pool, views = digits(), FixMatch.views
    cpu, share = torch.device("cpu"), schedule.cyclical(0.25, 1.0)
    whole = Feed(pool, views, 16, 32, 0, cpu)
    feed = Feed(pool, views, 16, 32, 0, cpu, world, parts, share)
    for step, now in enumerate((0.25, 0.625, 1.0, 0.625)):
        batches = [feed(At(step, 4, 0, rank, world)) for rank in range(world)]
        for kind, most in (("labeled", 16), ("unlabeled", 32)):
            rows = torch.cat([getattr(batch, kind).indices for batch in batches])
            assert len(rows) == now * most
            assert torch.equal(rows, getattr(whole(At(step, 4)), kind).indices[: len(rows)])
    constant = Feed(pool, views, 16, 32, 0, cpu, share=schedule.cyclical(1.0, 1.0))
    ours, theirs = constant(At(1, 4)), whole(At(1, 4))
    assert torch.equal(ours.unlabeled["strong"], theirs.unlabeled["strong"])


def test_a_run_with_batches_of_a_schedule(tmp_path):
    for cut in (1, 2):
        train(tmp_path / str(cut), Supervised(flat_net()), steps=4, batch=schedule.cyclical(0.25, 1.0),
              micro_batches=cut, evaluations=1)
    for settings, words in (({"batch": schedule.cyclical(0.0, 1.0)}, "above 0 and at most 1"),
                            ({"batch": 0.5, "micro_batches": "auto"}, "exclude each other")):
        with pytest.raises(UsageError, match=words):
            train(tmp_path / "none", Supervised(flat_net()), steps=4, **settings)


def views_at(step, total=4, **arguments):
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Strong(Style(3, 16, 16), **arguments)(images, At(step, total).draw("strong", 64))


def test_strength_of_augmentation_follows_its_schedule():
    chance = schedule.cyclical(0.0, 1.0)
    for step, now in enumerate((0.0, 0.5, 1.0, 0.5)):
        assert torch.equal(views_at(step, chance=chance), views_at(step, chance=now))
        assert torch.equal(views_at(step, cutout=chance), views_at(step, cutout=now))
    assert torch.equal(views_at(1, chance=schedule.cyclical(0.5, 0.5)), views_at(1))
    weak = Weak(Style(3, 16, 16))
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(views_at(0, chance=0.0, cutout=0.0), weak(images, At(0, 4).draw("strong", 64)))
    with pytest.raises(UsageError, match=r"a chance, in \[0, 1\]"):
        Strong(Style(), chance=schedule.cyclical(0.0, 1.5))


def test_a_view_with_a_schedule_has_a_text():
    made = named("strong(chance=cyclical(0, 0.5), ops=3)")
    assert repr(named(text_of(made))(Style())) == repr(made(Style()))
    with pytest.raises(UsageError, match="is no schedule"):
        named("strong(chance=twice(2))")
