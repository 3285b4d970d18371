"""Capsule nets with momentum, whose gradients need no kept activations, beside plain ones."""

import pytest
import torch
from small_runs import digits

import ssl_lab as sl
from ssl_lab.nets.capsules import Momentum, Routing, squash, step_back
from ssl_lab.nets.capsules import step as momentum_step
from ssl_lab.seeds import generator


def random(*shape, key=0):
    return torch.randn(shape, generator=generator("compress", key), dtype=torch.float64)


def capsules(depth, momentum=0.9):
    torch.manual_seed(0)
    return Momentum([Routing(5, 5, 4).double() for _ in range(depth)], momentum), random(3, 5, 4).requires_grad_()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_gradients_of_reversible_capsules_are_those_of_plain_ones(momentum):
    net, x = capsules(3, momentum)
    slope = random(3, 5, 4, key=1)
    (net(x) * slope).sum().backward()
    found = [p.grad.clone() for p in (x, *net.parameters())]
    for p in (x, *net.parameters()):
        p.grad = None
    plain = net.plainly(x)
    torch.testing.assert_close(net(x), plain)
    (plain * slope).sum().backward()
    for ours, p in zip(found, (x, *net.parameters()), strict=True):
        torch.testing.assert_close(ours, p.grad)
    if not momentum:
        once = Momentum([net.layers[0]], 0.0)
        torch.testing.assert_close(once(x), x + net.layers[0](x))
        return
    v = random(3, 5, 4, key=2)
    back = step_back(net.layers[0], *momentum_step(net.layers[0], x, v, momentum), momentum)
    torch.testing.assert_close(back[0], x)
    torch.testing.assert_close(back[1], v)


def test_activations_of_capsule_layers_are_not_kept():
    def kept(depth, plainly):
        net, x = capsules(depth)
        mine, sizes = {p.data_ptr() for p in net.parameters()}, []
        def pack(tensor):
            sizes.append(0 if tensor.data_ptr() in mine else tensor.nbytes)
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            (net.plainly if plainly else net)(x)
        return sum(sizes)

    assert kept(2, False) == kept(8, False) == 2 * 3 * 5 * 4 * 8  # x and v
    assert kept(8, True) > 3 * kept(2, True)


def test_a_capsule_net_by_name():
    net = sl.net("mocapsnet_2", 10, digits().style)
    assert net(torch.rand(2, 1, 8, 8)).features.shape == (2, 256)
    assert len(net.backbone.blocks.layers) == 2
    lengths = squash(random(4, 7)).norm(dim=1)
    torch.testing.assert_close(lengths, (n := random(4, 7).norm(dim=1)) ** 2 / (1 + n**2))
