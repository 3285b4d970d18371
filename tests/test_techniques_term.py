"""Terms of the loss against slow references in float64, and the identities of their papers."""

import pytest
import torch
from small_runs import digits, flat_net

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.engine import Feed
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.techniques.term.noise_consistency import divergence


def batch_of(method):
    return Feed(digits(), method.views, 4, 4, 0, torch.device("cpu"))(At(0, 1))


def test_noise_consistency_is_the_divergence_of_clean_and_noisy():
    net = flat_net().double()
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, generator=draw, dtype=torch.float64)
    noise = torch.randn(3, 2, 1, 8, 8, generator=draw, dtype=torch.float64)
    expected = 0.0
    for row in range(3):
        p = net(x[row : row + 1]).logits.softmax(dim=1)[0]
        for k in range(2):
            features = net.backbone((x[row] - net.mean) / net.std + noise[row, k])  # after the normalization
            q = net.head(features).softmax(dim=1)[0]
            expected += sum(p[c] * (p[c].log() - q[c].log()) for c in range(10)) / 6
    torch.testing.assert_close(divergence(net, x, noise).double(), expected, rtol=1e-4, atol=1e-6)
    assert divergence(net, x, torch.zeros_like(noise)).item() == 0


@pytest.mark.parametrize("make", [Supervised, FixMatch])
def test_noise_consistency_adds_its_term(make):
    method = make(flat_net())
    around = sl.NoiseConsistency(weight=0.5, strength=2.0).around(method, digits(), 0)
    batch, at = batch_of(method), At(0, 1)
    plain, loss = method(batch, at), around(batch, at)
    assert {name: term for name, term in loss.terms.items() if name != "noise_consistency"} == plain.terms
    assert loss.terms["noise_consistency"].item() > 1e-3
    twice = sl.NoiseConsistency(weight=1.0, strength=2.0).around(method, digits(), 0)(batch, at)
    assert twice.terms["noise_consistency"].item() == pytest.approx(2 * loss.terms["noise_consistency"].item())
    still = sl.NoiseConsistency(strength=0.0).around(method, digits(), 0)(batch, at)
    assert still.terms["noise_consistency"].item() == pytest.approx(0, abs=1e-7)


def test_noise_is_that_of_the_global_batch():
    """Two ranks have the noise of one, row by row."""
    around = sl.NoiseConsistency(strength=2.0).around(Supervised(flat_net()), digits(), 0)
    batch = batch_of(around)
    whole = around(batch, At(0, 1)).terms["noise_consistency"]
    halves = [around(part, At(0, 1, rank=rank, world=2)).terms["noise_consistency"]
              for rank, part in enumerate(batch.chunk(2))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
