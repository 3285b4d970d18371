"""Depthwise convolutions with other code for their gradients: the same numbers."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ssl_lab as sl
from ssl_lab.nets import depthwise
from ssl_lab.nets.depthwise import has_depthwise, quick_gradients


@pytest.mark.parametrize("size", [4, 9, 12])
@pytest.mark.parametrize(("side", "stride", "padding"), [
    (3, 2, 1), (5, 1, 2), (5, 2, 2), (5, 2, 0), (7, 1, 3), (7, 2, 3), (3, 3, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_those_of_the_convolution(size, side, stride, padding, channels_last):
    if size + 2 * padding < side:
        padding = side // 2
    x = torch.randn(3, 6, size, size + 1, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(6, 1, side, side, dtype=torch.float64, requires_grad=True)

    def gradients(convolve):
        inside = x.clone().requires_grad_()
        y = convolve(inside)
        return [y, *torch.autograd.grad(y.square().sum(), [inside, weight])]

    found = gradients(lambda x: depthwise._Depthwise.apply(x, weight, stride, (padding, padding)))
    usual = gradients(lambda x: F.conv2d(x, weight, None, stride, padding, 1, 6))
    for each, expected in zip(found, usual, strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-10, atol=1e-10)


def test_its_gradient_has_a_gradient():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise._Depthwise.apply(x, w, 2, (2, 2)), (x, weight))


def test_bf16_is_as_near_to_the_truth_as_the_usual_code():
    x, weight = torch.randn(4, 8, 12, 12), torch.randn(8, 1, 5, 5)
    slope = torch.randn(4, 8, 6, 6)

    def gradients(quick, dtype):
        leaves = [each.to(dtype).requires_grad_() for each in (x, weight)]
        with quick_gradients(x) if quick else torch.enable_grad():
            y = F.conv2d(*leaves, None, 2, 2, 1, 8)
        return torch.autograd.grad(y, leaves, slope.to(dtype))

    for true, usual, quick in zip(gradients(False, torch.float64), gradients(False, torch.bfloat16),
                                  gradients(True, torch.bfloat16), strict=True):
        assert quick.dtype == torch.bfloat16
        assert (quick.double() - true).norm() <= 1.2 * (usual.double() - true).norm() + 1e-3 * true.norm()


def taken(net, x):
    with mock.patch.object(depthwise._Depthwise, "apply", wraps=depthwise._Depthwise.apply) as apply:
        net(x)
    return apply.call_count


def test_nets_take_it_where_they_learn_on_a_cpu_in_bf16():
    net = sl.net("timm/tf_efficientnet_lite0", 3, sl.Style(height=32, width=32))
    x = torch.rand(2, 3, 32, 32)
    assert taken(net, x) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert taken(net, x) == 11  # of 16 depthwise layers, five have filters of 3 x 3 and no stride
        assert net(x).features.dtype == torch.bfloat16
        with torch.no_grad():
            assert taken(net, x) == 0
    assert not has_depthwise(sl.net("tiny_4"))


def test_a_bias_is_added():
    layer, x = nn.Conv2d(6, 6, 5, 2, 2, groups=6), torch.randn(2, 6, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with quick_gradients(x):
            found = layer(x)
    assert found.grad_fn is not expected.grad_fn
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_other_convolutions_are_left_alone():
    x = torch.rand(2, 6, 8, 8, requires_grad=True)
    for layer in (nn.Conv2d(6, 6, 5, padding=2), nn.Conv2d(6, 12, 5, groups=6), nn.Conv2d(6, 6, 5, groups=3),
                  nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 5, dilation=2, padding=4, groups=6),
                  nn.Conv2d(6, 6, 5, padding="same", groups=6), nn.Conv2d(6, 6, (3, 5), groups=6),
                  nn.Conv2d(6, 6, 4, stride=2, groups=6), nn.Conv2d(6, 6, 5, stride=(1, 2), groups=6)):
        with (quick_gradients(x), torch.autocast("cpu", torch.bfloat16),
              mock.patch.object(depthwise._Depthwise, "apply") as apply):
            layer(x)
        assert not apply.called
