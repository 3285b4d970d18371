"""What changes a net before it is trained: slow references, and the identities of the papers."""

import pytest
import torch
from small_runs import digits, flat_net, tiny_net

import ssl_lab as sl
from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch
from ssl_lab.nets import Ema
from ssl_lab.techniques.net.drop_path import branches, drop_rows

SMALL = Style(3, 32, 32)


def test_rows_are_dropped_as_often_as_asked_and_keep_their_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 1, dtype=torch.float64)
    dropped = drop_rows(x, 0.3)
    assert set(dropped.flatten().tolist()) == {0.0, 1 / 0.7}
    assert torch.equal(dropped[:, 0], dropped[:, 1])  # a row is dropped as a whole
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("name", "blocks", "places"), [
    ("tiny_4", 3, 3), ("wrn_10_1", 3, 3), ("resnet18", 8, 8), ("timm/vit_tiny_patch16_224", 12, 24),
    ("timm/resnet18", 8, 8), ("preact_11", 3, 3),
])
def test_every_residual_block_has_its_rate(name, blocks, places):
    net = sl.net(name, 10, SMALL)
    before = net.state_dict().keys()
    sl.prepared(net, ["drop_path(rate=0.6)"], digits())
    found = list(branches(net))
    assert (found[-1][0], len(found)) == (blocks, places)
    for number, branch in found:
        hook = next(iter(branch._forward_hooks.values()))
        assert hook.rate == pytest.approx(0.6 * number / blocks)
    assert net.state_dict().keys() == before


@pytest.mark.parametrize(("name", "rate"), [("tiny_4", 0.5 * 3 / 54), ("wrn_28_1", 0.5 * 12 / 54),
                                            ("resnet18", 0.5 * 8 / 54)])
def test_how_often_goes_with_the_depth(name, rate):
    """Half of the time is the paper's for 54 blocks; of 3 it would leave half of what the net can do."""
    net = sl.prepared(sl.net(name, 10, SMALL), ["drop_path"], digits())
    *_, (_, last) = branches(net)
    assert next(iter(last._forward_hooks.values())).rate == pytest.approx(rate)


def test_a_dropped_branch_leaves_the_shortcut_and_evaluation_alone():
    plain, net = (tiny_net(digits()) for _ in range(2))
    sl.prepared(net, [sl.DropPath(0.9)], digits())
    assert net.prepared == ("drop_path(rate=0.9)",)
    x = torch.rand(16, 1, 8, 8)
    assert torch.equal(net.eval()(x).logits, plain.eval()(x).logits)
    last = net.train().backbone.blocks[-1]
    maps = torch.randn(64, *[16, 4, 4])
    torch.manual_seed(0)
    out, shortcut = last(maps), last.shortcut(maps).relu()
    untouched = (out - shortcut).flatten(1).abs().amax(dim=1) == 0
    assert 40 < int(untouched.sum()) < 64


def test_averages_have_it_too_and_weights_keep_their_names():
    net = sl.prepared(tiny_net(digits()), ["drop_path"], digits())
    average = Ema(net, 0.9)
    assert average.net.prepared == net.prepared
    assert FixMatch(net).state_dict().keys() == FixMatch(tiny_net(digits())).state_dict().keys()


def test_a_net_without_residual_branches_is_refused():
    with pytest.raises(UsageError, match="drop_path leaves out residual branches, and custom has none"):
        sl.prepared(flat_net(), ["drop_path"], digits())
