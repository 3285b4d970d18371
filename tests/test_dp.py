"""Differential privacy: the gradient against a slow loop, sampling, accounting, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from small_runs import assert_same_run, digits, flat_net, tiny_net, train

import ssl_lab as sl
from ssl_lab import losses
from ssl_lab.batch import At
from ssl_lab.data import PoissonSampler
from ssl_lab.engine import Callback, Feed
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.seeds import generator
from ssl_lab.techniques import DP, technique
from ssl_lab.techniques.privacy import COUPLED, epsilon_of, noise_for, private_gradient

pytest.importorskip("opacus", reason='needs pip install "ssl_lab[dp]"')
CPU = torch.device("cpu")


def images(rows=5, views=3):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(rows, views, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(rows) % 10


def gradient(net, x, y, expected=5.0, clip=1.0, noise=0.0, chunk=2, seed=0):
    found, loss = private_gradient(net, losses.cross_entropies, x, y, expected, clip, noise, chunk,
                                   torch.Generator().manual_seed(seed))
    return torch.cat([g.flatten() for g in found.values()]), loss


def own(net, views, label):
    """The gradient of one image's mean loss over its views."""
    net.zero_grad()
    torch.stack([losses.cross_entropy(net(view[None]).logits, label[None]) for view in views]).mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("make", [flat_net, lambda: sl.net("tiny_4+gn", 10, digits().style)])
@pytest.mark.parametrize("clip", [0.5, None])
def test_the_gradient_is_the_sum_of_clipped_means_over_views(make, clip):
    net, (x, y) = make().double(), images()
    expected = 0
    for views, label in zip(x, y, strict=True):
        g = own(net, views, label)
        expected = expected + (g if clip is None else g * min(1.0, clip / float(g.norm()))) / 7
    found, _ = gradient(net, x, y, expected=7.0, clip=clip)
    torch.testing.assert_close(found, expected)


def test_without_noise_and_limit_it_is_the_ordinary_gradient():
    net, (x, y) = flat_net().double(), images(views=1)
    found, loss = gradient(net, x, y, clip=None)
    net.zero_grad()
    ordinary = losses.cross_entropy(net(x[:, 0]).logits, y)
    ordinary.backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(loss, ordinary.detach())
    torch.testing.assert_close(gradient(net, x, y, clip=1e9)[0], found)


def test_equal_views_are_one_view():
    net, (x, y) = flat_net().double(), images(views=1)
    torch.testing.assert_close(gradient(net, x.expand(-1, 4, -1, -1, -1), y, clip=0.3)[0],
                               gradient(net, x, y, clip=0.3)[0])


def test_one_image_more_moves_the_sum_by_clip_at_most():
    net, (x, y) = flat_net().double(), images()
    for clip in (0.1, 0.7):
        whole, less = (gradient(net, x[:n], y[:n], expected=1.0, clip=clip)[0] for n in (5, 4))
        assert 0 < (whole - less).norm() <= clip + 1e-9


def test_noise_has_the_deviation_of_noise_times_clip_over_the_batch():
    net, (x, y) = flat_net().double(), images()
    still = gradient(net, x, y, clip=0.5)[0]
    noise = torch.cat([gradient(net, x, y, clip=0.5, noise=3.0, seed=seed)[0] - still for seed in range(20)])
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 5, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
    alone, loss = gradient(net, x[:0], y[:0], clip=0.5, noise=3.0)  # a batch of no image is noise alone
    torch.testing.assert_close(alone, gradient(net, x, y, clip=0.5, noise=3.0)[0] - still)
    assert loss == 0


def test_images_are_drawn_by_a_coin_each():
    rows = torch.arange(100, 300).numpy()
    sampler = PoissonSampler(rows, 20, seed=0, purpose="labeled")
    drawn = [sampler.at(step) for step in range(300)]
    assert all(set(each) <= set(rows) and len(set(each)) == len(each) for each in drawn)
    assert (sampler.at(7) == drawn[7]).all()
    sizes = torch.tensor([float(len(each)) for each in drawn])
    assert sizes.mean().item() == pytest.approx(20, abs=1)
    assert sizes.var().item() == pytest.approx(200 * 0.1 * 0.9, rel=0.3)  # fixed batches have none
    counts = torch.bincount(torch.from_numpy(np.concatenate(drawn)))[100:].double()
    assert counts.var().item() == pytest.approx(300 * 0.1 * 0.9, rel=0.4)
    with pytest.raises(UsageError, match="at most once"):
        PoissonSampler(rows, 201, 0, "labeled")


def private(text="dp(noise=0, clip=None)", pool=None, labeled=40, net=None):
    pool = pool or digits(100)
    method = technique(text).around(Supervised(net or flat_net()), pool, 0)
    return method, Feed(pool, method.views, labeled, 0, 0, CPU)(At(0, 10))


def test_the_step_of_no_noise_and_no_limit_is_the_plain_one():
    method, batch = private()
    loss = method(batch, At(0, 10))
    loss.total.backward()
    plain = flat_net()
    ordinary = losses.cross_entropies(plain(batch.labeled["view_1"]).logits, batch.labeled.targets)
    (ordinary.sum() / 40).backward()  # over the batch on average, whatever its size
    torch.testing.assert_close([p.grad for p in method.net.parameters()], [p.grad for p in plain.parameters()])
    torch.testing.assert_close(loss.total.detach(), ordinary.mean().detach())


def test_views_are_drawn_anew_for_each_copy():
    _, batch = private("dp(noise=0, views=3)")
    assert list(batch.labeled.views) == ["view_1", "view_2", "view_3"]
    assert not torch.equal(batch.labeled["view_1"], batch.labeled["view_2"])
    assert batch.labeled.expected == 40


def test_the_accountant_spends_what_was_asked_for_and_no_more():
    for epsilon in (1.0, 8.0):
        noise = noise_for(epsilon, 1e-5, 0.05, 200)
        assert epsilon - 0.02 <= epsilon_of(noise, 1e-5, 0.05, 200) <= epsilon
    assert epsilon_of(2.0, 1e-5, 0.05, 200) > epsilon_of(2.0, 1e-5, 0.05, 100)
    assert epsilon_of(2.0, 1e-5, 0.1, 200) > epsilon_of(2.0, 1e-5, 0.05, 200)
    # one step on all images is the Gaussian mechanism: its Renyi divergence of order a is a / (2 noise^2)
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    renyi = min(a / (2 * 4.0**2) + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in orders)
    assert epsilon_of(4.0, 1e-5, 1.0, 1) == pytest.approx(renyi, rel=1e-3)


class _Stop(Callback):
    def step(self, done):
        if done == 3:
            raise KeyError


def test_a_private_run_says_what_it_spent_and_resumes_exactly(tmp_path):
    def run(out, **settings):
        net = sl.net("tiny_4+gn", 10, digits().style)
        return train(tmp_path / out, Supervised(net), digits(100), labeled=20, steps=5,
                     techniques=["dp(epsilon=3, delta=0.001, views=2)"], **settings)

    summary = run("whole").summary
    assert summary["epsilon"] == pytest.approx(3, abs=0.02)
    assert summary["epsilon"] <= 3
    assert summary["delta"] == 0.001
    assert summary["sampling_rate"] == 0.2
    assert summary["epsilon"] == epsilon_of(summary["noise_multiplier"], 0.001, 0.2, 5)
    assert "each of 100 labeled images" in summary["private"]
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["epsilon"] == summary["epsilon"]
    with pytest.raises(KeyError):
        run("cut", checkpoint_seconds=0, callbacks=[_Stop()])
    run("cut", resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert sl.open(tmp_path / "whole", device="cpu").net.name == "tiny_4+gn"


def test_no_noise_is_no_privacy_and_says_so(tmp_path):
    summary = train(tmp_path, Supervised(flat_net()), digits(100), labeled=20, steps=2,
                    techniques=["dp(noise=0)"]).summary
    assert summary["epsilon"] is None
    assert summary["private"] == "nothing: noise is 0"


@pytest.mark.parametrize("name", ["tiny_4", "wrn_10_1", "resnet18", "densenet_10_4"])
def test_group_norm_lets_no_image_act_on_another(name):
    style = digits().style
    net = sl.net(f"{name}+gn", 10, style).train()
    assert net.name == f"{name}+gn"
    assert not [part for part in net.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(net(x).logits[:1], net(x[:1]).logits)
    for part in net.modules():
        if isinstance(part, torch.nn.GroupNorm):
            assert part.num_channels % part.num_groups == 0
            assert part.num_groups <= 16


@pytest.mark.parametrize(("text", "words"), [
    ("dp(epsilon=0)", "epsilon=0; expected a budget"), ("dp(delta=0)", "delta=0"), ("dp(delta=1)", "delta=1"),
    ("dp(epsilon=3, noise=1)", "exclude each other"), ("dp(clip=None)", "no noise hides it"),
    ("dp(clip=0)", "clip=0"), ("dp(views=0)", "views=0"), ("dp(noise=-1)", "noise=-1"),
])
def test_bad_arguments_are_named(text, words):
    with pytest.raises(UsageError, match=words):
        technique(text)


def test_texts():
    assert technique("dp(epsilon=8, delta=1e-5)").text == "dp"
    assert technique("dp(3, views=4)").text == "dp(epsilon=3, views=4)"


@pytest.mark.parametrize(("method", "settings", "words"), [
    (lambda: FixMatch(flat_net()), {}, "fixmatch learns from unlabeled images too"),
    (lambda: sl.MixMatch(flat_net()), {}, "mixmatch mixes images with each other"),
    (lambda: sl.SimCLR(flat_net()), {}, "simclr compares images with each other"),
    (lambda: Supervised(tiny_net(digits())), {}, r"tiny_8 has BatchNorm.*--net tiny_8\+gn"),
    (lambda: Supervised(flat_net()), {"techniques": ["dp(delta=0.01)"]}, "delta=0.01 with 100 labeled"),
    (lambda: Supervised(flat_net()), {"techniques": ["dp", "sam"]}, "dp and sam exclude each other.*false"),
    (lambda: Supervised(flat_net()), {"techniques": ["oversample", "dp"]}, "oversample and dp exclude"),
    (lambda: Supervised(flat_net()), {"update": sl.optim.plain}, "needs the plain step"),
    (lambda: Supervised(flat_net()), {"optimizer": sl.optim.KOALA()}, "KOALA may look at losses"),
    (lambda: Supervised(flat_net()), {"micro_batches": 2}, "Poisson sampling.*--micro-batches"),
    (lambda: Supervised(flat_net()), {"batch": 0.5}, "Poisson sampling.*--batch"),
])
def test_a_wrong_combination_is_an_error(tmp_path, method, settings, words):
    with pytest.raises(UsageError, match=words):
        train(tmp_path, method(), digits(100), labeled=20, steps=2, **({"techniques": ["dp"]} | settings))


def test_batches_that_were_not_drawn_so_are_refused():
    method, _ = private()
    fixed = Feed(digits(100), Supervised(flat_net()).views, 8, 0, 0, CPU)(At(0, 10))
    with pytest.raises(UsageError, match="Poisson sampling"):
        method(fixed, At(0, 10))


def test_what_may_stand_beside_it():
    sl.techniques.together(["dp", "swa", "dropout"])
    assert isinstance(technique("dp"), DP)
    assert COUPLED[""].startswith("learns")
    assert generator(0, "dp", 1).initial_seed() != generator(0, "dp", 2).initial_seed()
