"""What a net is like: against slow references in float64, and the identities of the papers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import digits, flat_net, tiny_net, train
from test_features_recipe import module
from torch import nn

import ssl_lab as sl
from ssl_lab import analysis
from ssl_lab.analysis import Landscape
from ssl_lab.analysis.depth import bends
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.nets import Net
from ssl_lab.nets.residual import Residual
from ssl_lab.report.finished import Finished

RNG = np.random.default_rng(0)


class Bowls(Landscape):
    """L(w) = mean over "images" b of (w - c_b)' A (w - c_b) / 2, A of known eigenvalues: x are the centers."""

    @classmethod
    def made(cls, eigenvalues, rows=6):
        draw = torch.Generator().manual_seed(0)
        size = len(eigenvalues)
        q, _ = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
        net = nn.Module()
        net.w = nn.Parameter(torch.randn(size, generator=draw, dtype=torch.float64))
        net.matrix = q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T
        return cls(net, torch.randn(rows, size, generator=draw, dtype=torch.float64), torch.arange(rows))

    def loss(self):
        away = self.net.w.detach() - self.x
        return float(((away @ self.net.matrix) * away).sum(dim=1).mean() / 2)

    def gradient(self):
        return [(self.net.w.detach() - self.x).mean(dim=0) @ self.net.matrix]

    def product(self, direction):
        return [self.net.matrix @ direction[0]]


EIGENVALUES = [-3.0, 0.0, 0.5, 1.0, 2.0, 7.0]


def small():
    """A net of few weights, and some images."""
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, 2),
              mean=(0.3,), std=(0.4,)).double()
    return Landscape(net, torch.rand(7, 1, 8, 8, dtype=torch.float64), torch.arange(7) % 2)


# --- The landscape ------------------------------------------------------------------------------------


def test_gradient_and_hessian_are_those_of_the_mean_loss(monkeypatch):
    monkeypatch.setattr("ssl_lab.analysis.landscape.ROWS", 3)  # so that it comes in parts
    land = small()
    names = [name for name, _ in land.net.named_parameters()]
    sizes = [w.numel() for w in land.weights]

    def loss(flat):
        parts = dict(zip(names, (p.view_as(w) for p, w in zip(flat.split(sizes), land.weights, strict=True)),
                         strict=True))
        return F.cross_entropy(torch.func.functional_call(land.net, parts, (land.x,)).logits, land.y)

    w = torch.cat([p.detach().flatten() for p in land.weights])
    slope, hessian = (getattr(torch.autograd.functional, kind)(loss, w) for kind in ("jacobian", "hessian"))
    assert land.loss() == pytest.approx(loss(w).item())
    torch.testing.assert_close(torch.cat([g.flatten() for g in land.gradient()]), slope)
    d = torch.randn_like(w)
    found = land.product([p.view_as(w) for p, w in zip(d.split(sizes), land.weights, strict=True)])
    torch.testing.assert_close(torch.cat([g.flatten() for g in found]), hessian @ d)
    top = torch.linalg.eigvalsh(hessian)
    assert analysis.spectrum(land, steps=30).largest == pytest.approx(top[-1].item(), rel=1e-6)
    assert analysis.spectrum(land, steps=30).smallest == pytest.approx(top[0].item(), abs=1e-6)


def test_looking_leaves_weights_statistics_and_mode_alone():
    net = tiny_net(digits())
    land = Landscape.of(net.train(), digits(), np.arange(8), digits().truth[:8])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    analysis.sharpness(land, 0.1, m=4)
    analysis.local_energy(land, 0.5, draws=2)
    analysis.spectrum(land, steps=2)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# --- Flatness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "groups"), [(None, [6]), (6, [6]), (2, [2, 2, 2]), (4, [4, 2])])
def test_sharpness_is_the_rise_at_sams_point_of_each_group(m, groups):
    land, radius = Bowls.made(EIGENVALUES), 0.3
    expected = 0.0
    for rows in torch.arange(6).split(groups):
        part = land.part(rows)
        g, low = part.gradient()[0], part.loss()
        with part.at([radius * g / g.norm()]):
            expected += len(rows) / 6 * (part.loss() - low)
    assert analysis.sharpness(land, radius, m) == pytest.approx(expected)
    assert analysis.sharpness(land, 0.0, m) == 0


def test_more_steps_of_ascent_climb_in_the_same_ball():
    land = Bowls.made(EIGENVALUES)
    one, five = (analysis.sharpness(land, 0.5, steps=steps) for steps in (1, 5))
    assert five > 0
    assert five >= 0.9 * one


def test_local_energy_is_the_error_that_noise_adds():
    land = small()
    assert analysis.local_energy(land, 0.0, draws=3) == 0
    found = analysis.local_energy(land, 2.0, draws=20)
    assert found == analysis.local_energy(land, 2.0, draws=20)
    assert found != analysis.local_energy(land, 2.0, draws=20, seed=1)
    best = Landscape(land.net, land.x, land.logits().argmax(dim=1))  # an error of 0 can only rise
    assert 0 < analysis.local_energy(best, 5.0, draws=20) < 1


# --- Curvature ----------------------------------------------------------------------------------------


def test_the_ends_of_a_quadratics_spectrum_are_exact():
    found = analysis.spectrum(Bowls.made(EIGENVALUES), steps=10)
    np.testing.assert_allclose(np.sort(found.values), EIGENVALUES, atol=1e-8)
    assert found.largest == pytest.approx(7)
    assert found.smallest == pytest.approx(-3)
    assert found.shares.sum() == pytest.approx(1)


def test_the_density_has_each_eigenvalue_by_its_share():
    values = [0.0] * 30 + [5.0] * 10
    found = analysis.spectrum(Bowls.made(values), steps=2, probes=200)
    near = found.shares[np.abs(found.values - 5) < 1e-6].sum()
    assert near == pytest.approx(0.25, abs=0.03)
    at = np.linspace(-3, 8, 2000)
    density = found.density(at, 0.2)
    assert density.sum() * (at[1] - at[0]) == pytest.approx(1, abs=1e-3)


def test_each_class_has_the_spectrum_of_its_images():
    land = small()
    parts = analysis.spectrum_by_class(land, steps=30)
    assert list(parts) == [0, 1]
    for label, found in parts.items():
        assert found.largest == pytest.approx(analysis.spectrum(land.part(land.y == label), 30).largest)


# --- Rates, margins, depth ------------------------------------------------------------------------------


def test_the_effective_rate_is_that_over_the_squared_length():
    pool = digits()
    net = tiny_net(pool)
    found = analysis.effective_rates(net, pool.style, 0.1)
    convolutions = {name: part for name, part in net.named_modules() if isinstance(part, nn.Conv2d)}
    assert found.keys() - {"all"} == convolutions.keys()
    for name, part in convolutions.items():
        assert found[name] == pytest.approx(0.1 / part.weight.detach().double().square().sum().item())
    assert 1 / found["all"] == pytest.approx(sum(1 / found[name] for name in convolutions))
    assert analysis.effective_rates(flat_net(), pool.style, 0.1) == {}


def test_the_safe_radius_is_where_the_bound_meets_the_margin():
    from ssl_lab.techniques.term.perturbation_margin import margins, worst_change

    net = small().net
    net.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, dtype=torch.float64), nn.Tanh())
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    y = torch.arange(6) % 2
    radius = analysis.safe_radius(net, x, y)
    logits, change = worst_change(net, x, radius)
    margin = margins(logits, y)
    assert (radius[margin <= 0] == 0).all()
    assert (margin > 0).any()
    torch.testing.assert_close(change[margin > 0], margin[margin > 0], rtol=1e-6, atol=1e-9)


def plain_net(*layers):
    return Net(nn.Sequential(*layers, nn.Flatten()), nn.Linear(64, 2), mean=(0.0,), std=(1.0,))


def test_effective_depth_counts_what_bends():
    x = torch.rand(5, 1, 8, 8) - 0.5  # of both signs
    assert analysis.effective_depth(plain_net(nn.Identity()), x) == 0
    assert analysis.effective_depth(plain_net(nn.Conv2d(1, 1, 1)), x) == 0
    assert analysis.effective_depth(plain_net(nn.ReLU()), x) == 1
    assert analysis.effective_depth(plain_net(nn.ReLU()), x.abs()) == 0  # passes all
    assert analysis.effective_depth(plain_net(*[nn.LeakyReLU(0.5)] * 3), x) == 3
    slopes = nn.PReLU(4)
    with torch.no_grad():
        slopes.weight.copy_(torch.tensor([1.0, 1.0, 0.3, 1.0]))
    wide = Net(nn.Sequential(nn.Conv2d(1, 4, 1), slopes, nn.Flatten()), nn.Linear(256, 2), mean=(0.0,), std=(1.0,))
    assert analysis.effective_depth(wide, x) == 0.25
    with torch.no_grad():
        slopes.weight.fill_(1.0)
    assert analysis.effective_depth(wide, x) == 0
    branch = nn.Sequential(nn.LeakyReLU(0.5), nn.LeakyReLU(0.5), nn.LeakyReLU(0.5), nn.LeakyReLU(0.5))
    merged = Residual(branch, 1, 1, 1)
    assert analysis.effective_depth(plain_net(merged), x) == 4 / 2 + 1  # and the ReLU after the merge
    three = torch.stack([torch.ones(3, 2), -torch.ones(3, 2), torch.eye(3, 2) - 0.5], dim=1)
    assert bends(three) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["tiny_4", "wrn_10_1", "resnet18"])
def test_effective_depth_of_the_houses_nets(name):
    pool = digits()
    net = sl.net(name, 10, pool.style)
    x = torch.rand(4, 1, 8, 8)
    before = net.eval()(x).logits
    found = analysis.effective_depth(net, x)
    assert 1 < found < {"tiny_4": 7, "wrn_10_1": 7, "resnet18": 17}[name]
    torch.testing.assert_close(net(x).logits, before)


def test_effective_depth_of_other_nets_is_refused():
    with pytest.raises(UsageError, match="effective_depth does not know the paths of Flat"):
        analysis.effective_depth(flat_net(), torch.rand(2, 1, 8, 8))


# --- Labels, slingshots, noise, transfer ----------------------------------------------------------------


def test_memorization_tells_what_is_known_by_heart_from_what_was_learned():
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    given = np.array([1, 1, 2, 0, 2, 2, 2, 1])  # rows 0, 4 and 6 are wrong
    heart = analysis.memorization(given, given, truth)
    assert heart == (1.0, 0.0, 1.0, 3)
    assert analysis.memorization(truth, given, truth) == (0.0, 1.0, 1.0, 3)
    assert np.isnan(analysis.memorization(truth, truth, truth).wrong)
    with pytest.raises(UsageError, match="8 answers, 3 labels"):
        analysis.memorization(truth, truth[:3], truth)


def course(jumps, rows=200):
    norms, losses = np.exp(0.0005 * np.arange(rows)) + 0.001 * RNG.normal(size=rows), np.full(rows, 0.01)
    losses += 0.001 * RNG.random(rows)
    for at in jumps:
        norms[at : at + 5] *= np.linspace(1, 1.5, 5)
        norms[at + 5 :] *= 1.5
        losses[at + 2] = 1.0
    return norms, losses


def test_slingshots_are_jumps_of_the_norm_with_spikes_of_the_loss():
    norms, losses = course([60, 110, 160])
    found = analysis.slingshots(norms, losses)
    assert [abs(each.start - at) <= 2 for each, at in zip(found, [60, 110, 160], strict=True)] == [True] * 3
    assert all(1.3 < each.growth < 1.6 and each.spike > 50 for each in found)
    assert analysis.slingshots(*course([])) == []
    assert analysis.slingshots(norms, np.full(200, 0.01)) == []  # without a spike it is growth
    assert analysis.slingshots(course([])[0], losses) == []  # and without a jump a spike
    assert analysis.slingshots([1, 2], [1, 2]) == []


def fractional_noise(h, rows, columns, seed=0):
    """By the circulant embedding of its covariance (Davies and Harte 1987)."""
    k = np.arange(rows + 1, dtype=np.float64)
    cov = 0.5 * (np.abs(k - 1) ** (2 * h) - 2 * k ** (2 * h) + (k + 1) ** (2 * h))
    spectrum = np.fft.fft(np.concatenate([cov, cov[-2:0:-1]])).real
    rng = np.random.default_rng(seed)
    size = len(spectrum)
    noise = rng.normal(size=(size, columns)) + 1j * rng.normal(size=(size, columns))
    return np.fft.fft(noise * np.sqrt(spectrum / size)[:, None], axis=0).real[:rows]


@pytest.mark.parametrize(("h", "reads"), [(0.3, 0.37), (0.5, 0.54), (0.7, 0.71), (0.9, 0.86)])
def test_hurst_exponents_of_fractional_noise(h, reads):
    assert analysis.hurst_exponent(fractional_noise(h, 3000, 30)) == pytest.approx(reads, abs=0.03)


def test_hurst_exponents_by_a_slow_loop():
    series = RNG.normal(size=(120, 2))
    sizes = [50, 60]
    for column in range(2):
        logs = []
        for size in sizes:
            ratios = []
            for start in range(0, 120 // size * size, size):
                part = series[start : start + size, column]
                walk, total = [], 0.0
                for value in part:
                    total += value - part.mean()
                    walk.append(total)
                ratios.append((max(walk) - min(walk)) / part.std())
            logs.append(np.log(np.mean(ratios)))
        slope = (logs[1] - logs[0]) / (np.log(60) - np.log(50))
        assert analysis.hurst_exponents(series)[column] == pytest.approx(slope)
    with pytest.raises(UsageError, match="120 rows"):
        analysis.hurst_exponents(series[:50])


def test_the_fractal_dimension():
    assert analysis.fractal_dimension(np.array([0.5, 0.3, 0.6, 0.4])) == pytest.approx(2.6)
    assert analysis.fractal_dimension(np.full(20, 0.4)) == pytest.approx(2.5)
    assert np.isnan(analysis.fractal_dimension(np.array([1.5, np.nan])))


def test_gradient_noise_is_the_batchs_gradient_less_the_whole_ones():
    land = small()
    noise = analysis.gradient_noise(land, batches=3, size=7, coordinates=5)
    np.testing.assert_allclose(noise, 0, atol=1e-12)  # a batch of all images
    noise = analysis.gradient_noise(land, batches=400, size=3, coordinates=5)
    assert noise.shape == (400, 5)
    assert np.abs(noise.mean(axis=0)).max() < 0.2 * noise.std()


def test_transfer_correlation_is_pearsons_of_logits():
    source = np.array([0.6, 0.7, 0.8, 0.9])
    logits = np.log(source / (1 - source))
    others = 1 / (1 + np.exp(-(np.array([[1.0, 0.5]]) * logits[:, None] + np.array([[0.0, 2.0]]))))
    assert analysis.transfer_correlation(source, others) == pytest.approx(1)
    assert analysis.transfer_correlation(source, 1 - others) == pytest.approx(-1)
    random = RNG.uniform(0.1, 0.9, (4, 3))
    mean = np.log(random / (1 - random)).mean(axis=1)
    assert analysis.transfer_correlation(source, random) == pytest.approx(np.corrcoef(logits, mean)[0, 1])
    for wrong in ([0.5, 0.6], [0.5, 1.0, 0.6]):
        with pytest.raises(UsageError, match="transfer_correlation"):
            analysis.transfer_correlation(wrong, wrong)


# --- The recipe -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on wrong labels that had time to learn them by heart, as a recipe leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "wrong"
    pool = digits(40)
    config = {"data": "digits", "net": "tiny_8", "seed": 0}
    method = Supervised(tiny_net(pool), view=sl.Eval)
    train(folder, method, pool, labeled=20, steps=60, config=config, optimizer=sl.AdamW(lr=0.01),
          techniques=["corrupt_labels(0.4)", "head_norm"])
    return folder


def test_a_finished_run_comes_with_its_net_its_images_and_its_split(runs, tmp_path):
    run = Finished.read(runs)
    assert run.techniques == ["corrupt_labels", "head_norm"]  # 0.4 is the default
    assert run.pool.manifest()["hash"] == run.stored.summary["split"]
    assert json.loads((runs / "summary.json").read_text())["split"] == digits(40).manifest()["hash"]
    with pytest.raises(UsageError, match="no folder of a finished run"):
        Finished.read(tmp_path)
    arrays = tmp_path / "other.npz"
    np.savez(arrays, images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 10)
    with pytest.raises(UsageError, match="other images"):
        Finished.read(runs, str(arrays))


def test_the_recipe_says_what_a_run_is_like(runs, tmp_path, capsys):
    recipe = module("recipes", "analyze")
    recipe.main(parse(recipe.Settings, ["--from", str(runs), "--out", str(tmp_path), "--images", "40", "--draws", "2",
                                        "--krylov", "2", "--batches", "120", "--device", "cpu"]))
    said, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    assert "by heart" in said
    for part in ("sharpness", "Hessian", "What it cannot tell", "Hurst", "norm of the last layer"):
        assert part in page
    with pytest.raises(UsageError, match="labels are those of the run"):
        recipe.main(parse(recipe.Settings, ["--from", str(runs), "--labels", "10"]))
