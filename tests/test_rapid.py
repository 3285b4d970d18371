"""The rapid net, its whitening and its gradients; SimCLR with labels inside: slow references in float64."""

import math
from functools import partial

import pytest
import torch
from small_runs import digits, tiny_net
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import LabeledSimCLR
from ssl_lab.nets.rapid import Conv, beside
from ssl_lab.techniques.net.whiten import whitening
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))


def images(rows, side, channels=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(rows, channels, side, side, generator=draw, dtype=torch.float64)


# ---- net


def test_the_first_layer_and_the_scales_of_norms_do_not_learn():
    net = sl.net("rapid_4_6_8", 10, Style())
    fixed = [name for name, p in net.backbone.named_parameters() if not p.requires_grad]
    norms = [name for name, part in net.backbone.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert sorted(fixed) == sorted(["whitening.weight", *(f"{name}.weight" for name in norms)])
    assert len(norms) == 6
    assert net.backbone.whitening.bias is None
    filters = net.backbone.whitening.weight.flatten(1)
    torch.testing.assert_close(filters[:12], -filters[12:])
    torch.testing.assert_close(filters[:12] @ filters[:12].T, torch.eye(12), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [2, 3, 8, 20, 32])
def test_groups_pool_as_long_as_there_is_something_to_pool(side):
    net = sl.net("rapid_2_3_4", 5, Style(height=side, width=side)).eval()
    pooled = sum(isinstance(part, nn.MaxPool2d) for part in net.backbone.groups)
    assert pooled == min(3, int(math.log2(side - 1)))
    assert net(images(2, side).float()).logits.shape == (2, 5)


def test_a_net_of_crops_sees_images_of_another_size():
    net = sl.net("rapid_2_3_4", 5, Style()).eval()
    assert [net(images(2, side).float()).features.shape for side in (20, 24, 32)] == 3 * [(2, 4)]


@pytest.mark.parametrize(("name", "side"), [("rapid_0_4_4", 32), ("rapid_4_4_4", 1)])
def test_nets_that_cannot_be(name, side):
    with pytest.raises(UsageError, match=f"no net {name} for images of {side} x {side}"):
        sl.net(name, 10, Style(height=side, width=side))


def test_images_beside_each_other():
    x = images(6, 2)
    wide = beside(x, 3)
    assert wide.shape == (2, 3, 2, 9)
    for row in range(6):
        at = 3 * (row % 3)
        assert torch.equal(wide[row // 3, :, :, at : at + 2], x[row])
        assert not wide[row // 3, :, :, at + 2].any()


@pytest.mark.parametrize("rows", [1, 6, 32])
@pytest.mark.parametrize("side", [1, 2, 5, 12, 13])
def test_gradients_are_those_of_a_convolution(side, rows):
    layer, plain = (kind(2, 4, 3, padding=1, bias=False).double() for kind in (Conv, nn.Conv2d))
    plain.load_state_dict(layer.state_dict())
    found = []
    for each in (layer, plain):
        x = images(rows, side, 2).requires_grad_()
        y = each(x)
        (y * images(rows, side, 4, seed=1)).sum().backward()
        found.append((y.detach(), x.grad, each.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")
@pytest.mark.parametrize("side", [4, 20, 32])
def test_a_traced_net_takes_any_number_of_images(side):
    backbone = sl.net("rapid_2_3_4", 5, Style(height=side, width=side)).backbone.eval()
    x = images(3, side).float()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(backbone, x[:2])(x), backbone(x))


def test_gradients_can_be_differentiated():
    layer = Conv(2, 2, 3, padding=1, bias=False).double()
    x = images(2, 3, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,))
    slope = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)[0]
    assert torch.autograd.grad(slope.sum(), layer.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("side", [2, 3])
def test_gradients_under_autocast_are_those_of_bf16(side):
    layer, plain = (kind(2, 4, 3, padding=1, bias=False) for kind in (Conv, nn.Conv2d))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(images(8, side, 2).float())
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    plain(images(8, side, 2).float()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=0.01, atol=0.01)


# ---- whitening


def test_whitened_patches_are_uncorrelated_and_of_mean_square_one():
    x = images(40, 6, 2)
    x[:, 1] += 3 * x[:, 0]
    patches = [x[row, :, i : i + 2, j : j + 2].flatten() for row in range(40) for i in range(5) for j in range(5)]
    filters = whitening(x, 1e-12).flatten(1)
    seen = torch.stack(patches) @ filters.T
    torch.testing.assert_close(seen.T @ seen / len(seen), torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)
    assert torch.equal(whitening(x, 0.1), whitening(torch.cat([x, x]), 0.1)) or torch.allclose(
        whitening(x, 0.1).abs(), whitening(torch.cat([x, x]), 0.1).abs())
    assert whitening(torch.zeros(1, 3, 2, 2), 5e-4).isfinite().all()  # images of one color


def test_whiten_fits_the_first_layer_to_the_images_as_the_net_sees_them():
    pool = digits()
    net = sl.prepared(sl.net("rapid_4_4_4", pool.class_names, pool.style), ["whiten"], pool, 0)
    assert net.prepared == ("whiten",)
    before = sl.net("rapid_4_4_4", pool.class_names, pool.style)
    assert not torch.equal(net.backbone.whitening.weight, before.backbone.whitening.weight)
    x = torch.from_numpy(pool.images.pixels[pool.train]).float() / 255
    seen = net.backbone.whitening((x - net.mean) / net.std).detach()[:, :4].movedim(1, 3).reshape(-1, 4)
    torch.testing.assert_close(seen.T @ seen / len(seen), torch.eye(4), atol=0.01, rtol=0)
    again = sl.prepared(sl.net("rapid_4_4_4", pool.class_names, pool.style), ["whiten"], pool, 0)
    assert torch.equal(again.backbone.whitening.weight, net.backbone.whitening.weight)


def test_whiten_refuses_other_nets_and_other_numbers():
    with pytest.raises(UsageError, match="whiten: tiny_8 has no layer for it; rapid_64_128_256"):
        sl.prepared(tiny_net(digits()), ["whiten"], digits(), 0)
    with pytest.raises(UsageError, match=r"whiten\(images=0, epsilon=0.0005\): expected 1 image or more"):
        sl.Whiten(images=0)


# ---- SimCLR with labels inside


def _batch(rows=6):
    rest = torch.arange(rows)
    u = Rows({name: images(rows, 8, 1, seed) for seed, name in enumerate(("first", "second"))},
             torch.full((rows,), -1), rest % 3, rest)
    x = Rows({"crop": images(3, 8, 1, 2)}, torch.tensor([0, 2, 1]), torch.tensor([0, 2, 1]), torch.arange(3))
    return Batch(x, u)


def _method(beliefs=None, **arguments):
    return LabeledSimCLR(sl.net("tiny_4", 3, STYLE), beliefs, hidden=8, dim=4, **arguments).double().train()


BELIEFS = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0.7, 0], [0.2, 0.3, 0.1], [0, 0, 1], [0, 0, 0]])


def test_the_loss_is_its_equation():
    method, batch = _method(BELIEFS, labeled=0.5, believed=2.0, temperature=0.3), _batch()
    loss = method(batch, At(0, 1))
    x, u = batch.labeled, batch.unlabeled
    out = _method(BELIEFS).net(torch.cat([x["crop"], u["first"], u["second"]]))
    log_p = out.logits.log_softmax(dim=1).detach()
    z = nn.functional.normalize(method.projector(out.features[3:]), dim=1).detach()
    kinds = [0, None, 1, 1, 2, None]  # images 2 and 3 are believed to be of one class
    assert kinds == [belief.argmax().item() if belief.sum() else None for belief in BELIEFS]
    others = {i: [k for k in range(12) if k % 6 != i % 6 and (kinds[k % 6] is None or kinds[k % 6] != kinds[i % 6])]
              for i in range(12)}
    assert [len(rows) for rows in others.values()] == [10, 10, 8, 8, 10, 10] * 2
    contrast = sum(-z[i] @ z[(i + 6) % 12] / 0.3 + math.log(sum(math.exp(z[i] @ z[k] / 0.3) for k in [
        (i + 6) % 12, *others[i]])) for i in range(12)) / 12
    labeled = -sum(log_p[row, target] for row, target in enumerate(x.targets)) / 3
    believed = -sum(BELIEFS[b, c] * log_p[3 + 6 * view + b, c] for b in range(6) for c in range(3)
                    for view in (0, 1)) / 12
    torch.testing.assert_close(loss.terms["contrast"].double(), contrast)
    torch.testing.assert_close(loss.terms["labeled"].double(), 0.5 * labeled)
    torch.testing.assert_close(loss.terms["believed"].double(), 2 * believed)
    assert loss.logs["mask_rate"] == pytest.approx(3.3 / 6)
    assert loss.logs["pseudo_label_accuracy"].item() == pytest.approx(1 / 4)


def test_without_a_table_there_is_no_such_term():
    method = _method()
    assert set(method(_batch(), At(0, 1)).terms) == {"contrast", "labeled"}
    assert not any("beliefs" in key for key in method.state_dict())


def test_contract_with_a_table():
    check_method(partial(LabeledSimCLR, beliefs=torch.rand(64, 4), hidden=8, dim=4), compile=False)


def test_a_table_of_other_classes_is_refused():
    with pytest.raises(UsageError, match=r"beliefs of shape \[6, 3\]; expected \[images, 10 classes\]"):
        LabeledSimCLR(sl.net("tiny_4", 10, STYLE), BELIEFS)
