"""Nets by name, their weights from files, and the moving average."""

from __future__ import annotations

import copy
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_lab.batch import At, Style
from ssl_lab.errors import UsageError
from ssl_lab.nets import NETS, Ema, Net, describe, net
from ssl_lab.nets.families import Dense, Padded, PreActivation, cifar_resnet, densenet, preact_resnet, resnext
from ssl_lab.nets.narrow import EveryPlace, mend_narrow
from ssl_lab.schedule import constant, linear

OURS = ["tiny_16", "wrn_10_1", "resnet18", "resnet_8_1", "preact_11", "resnext_11_4_4", "densenet_10_4", "mocapsnet_2"]
TIMM = ["timm/resnet18", "timm/vit_tiny_patch16_224"]
SIZES = [(4, 4), (8, 8), (28, 28), (32, 32), (33, 47)]


def style(channels: int = 3, height: int = 8, width: int = 8) -> Style:
    return Style(channels, height, width, (0.3, 0.4, 0.5)[:channels], (0.2, 0.25, 0.3)[:channels])


def images(of: Style, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, of.channels, of.height, of.width, generator=generator)


def equal(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- architecture

@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OURS + TIMM)
def test_shapes_and_gradients(name: str, channels: int) -> None:
    sizes = [(h, w) for h, w in SIZES if h >= 16 or not name.startswith("timm/vit")]
    built_for_size = name.startswith(("tiny", "timm/vit"))
    built = net(name, classes=5, style=style(channels, *sizes[-1]))
    for height, width in sizes:
        here = style(channels, height, width)
        if built_for_size:
            built = net(name, classes=5, style=here)
        with torch.no_grad():
            output = built(images(here))
        assert output.features.shape == (2, built.features_dim)
        assert output.logits.shape == (2, 5) == (2, built.classes)
    assert built.name == name
    built = net(name, classes=5, style=style(channels, 16, 16))
    F.cross_entropy(built(images(style(channels, 16, 16))).logits, torch.tensor([0, 1])).backward()
    gradients = {key: parameter.grad for key, parameter in built.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None]
    if name in OURS:  # some of timm's start with branches multiplied by 0
        assert not [key for key, gradient in gradients.items() if not gradient.abs().sum() > 0]


@pytest.mark.parametrize(("name", "parameters"), [
    ("wrn_28_2", 1_467_610),  # 1.5M in FixMatch's tables
    ("wrn_28_10", 36_479_194),  # 36.5M in Zagoruyko and Komodakis 2016, table 4
    ("resnet18", 11_173_962),  # ImageNet's 11,689,512 - 513,000 + 5,130 (head) - 9,408 + 1,728 (stem)
    ("resnet50", 23_520_842),
    ("resnet_20_1", 269_722), ("resnet_56_1", 853_018),  # 0.27M and 0.85M in He et al. 2016, table 6
    ("densenet_100_12", 769_162),  # 0.8M in Huang et al. 2017, table 2
    ("preact_resnet18", 11_172_170),
    ("tiny_16", 78_042)])
def test_parameter_counts(name: str, parameters: int) -> None:
    assert describe(net(name), Style())[0] == parameters


@pytest.mark.parametrize(("build", "millions"), [
    (lambda: cifar_resnet(3, 110, 1), 1.7), (lambda: preact_resnet(3, [18] * 3, 16, 4), 1.7),  # He et al. 2016
    (lambda: resnext(3, 29, 8, 64), 34.4), (lambda: resnext(3, 29, 16, 64), 68.2),  # Xie et al. 2016, table 7: 68.1
    (lambda: densenet(3, 190, 40), 25.6),  # Huang et al. 2017, table 2
])
def test_large_nets_have_the_size_of_their_papers(build, millions: float) -> None:
    with torch.device("meta"):
        backbone = build()
    count = sum(p.numel() for p in backbone.parameters()) + 10 * (backbone.features_dim + 1)
    assert round(count / 1e6, 1) == millions


def test_blocks_by_hand() -> None:
    def norm(x: torch.Tensor) -> torch.Tensor:  # in training, with weight 1 and bias 0
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = PreActivation(6, [(6, 3), (6, 3)], 1).double()
    first, second = (layer.weight for layer in same.branch if isinstance(layer, torch.nn.Conv2d))
    hidden = norm(F.conv2d(norm(x).relu(), first, padding=1)).relu()
    torch.testing.assert_close(same(x), x + F.conv2d(hidden, second, padding=1))  # nothing after the sum
    halved = PreActivation(6, [(2, 1), (2, 3), (8, 1)], 2).double()
    assert [layer.stride for layer in halved.branch if isinstance(layer, torch.nn.Conv2d)] == [(1, 1), (2, 2), (1, 1)]
    projected = F.conv2d(norm(x).relu(), halved.shortcut.weight, stride=2)
    torch.testing.assert_close(halved(x) - halved.branch(norm(x).relu()), projected)
    dense = Dense(6, 3).double()
    assert torch.equal(dense(x)[:, :6], x)
    hidden = norm(F.conv2d(norm(x).relu(), dense.branch[1].weight)).relu()
    torch.testing.assert_close(dense(x)[:, 6:], F.conv2d(hidden, dense.branch[3].weight, padding=1))
    padded = Padded(2, 2)(x)
    assert torch.equal(padded, torch.cat([x[:, :, ::2, ::2], torch.zeros(4, 2, 4, 4)], dim=1))


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_narrow_strided_shortcuts_are_right(threads: int) -> None:
    """oneDNN's are not with AVX2, in channels_last: see EveryPlace."""
    x = torch.randn(32, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    layer, before = nn.Conv2d(4, 8, 1, 2, bias=False), torch.get_num_threads()
    Net(nn.Sequential(layer, nn.Flatten()), nn.Linear(512, 2), (0.5,), (0.5,)).to(memory_format=torch.channels_last)
    plain = F.conv2d(x.double(), slow := layer.weight.detach().double().requires_grad_(), stride=2)
    torch.set_num_threads(threads)
    try:
        made = layer(x.to(memory_format=torch.channels_last))
        (found,) = torch.autograd.grad(made.square().sum(), layer.weight)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(made, plain.float())
    torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), slow)[0].float())


def test_only_narrow_strided_1x1_convolutions_are_mended() -> None:
    layers = [nn.Conv2d(4, 8, 1, 2), nn.Conv2d(32, 8, 1, 2, groups=4), nn.Conv2d(4, 8, 1, (1, 3)),
              nn.Conv2d(16, 8, 1, 2), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(4, 8, 1, 2, padding=1)]
    x = [torch.randn(2, layer.in_channels, 7, 7) for layer in layers]
    before = [layer(each) for layer, each in zip(layers, x, strict=True)]
    mend_narrow(nn.ModuleList(layers))
    assert [type(layer) is EveryPlace for layer in layers] == [True] * 3 + [False] * 4
    for layer, each, same in zip(layers, x, before, strict=True):
        torch.testing.assert_close(layer(each), same)
    assert {type(part) for part in net("tiny_4").modules() if isinstance(part, nn.Conv2d)} == {nn.Conv2d, EveryPlace}


def test_flops_by_hand_leave_the_net_alone() -> None:
    built = net("tiny_16", style=style(1))
    before = copy.deepcopy(built)
    stem, first = 64 * 9 * 1 * 16, 64 * 9 * 16 * (16 + 16)
    second, third = 16 * 32 * (9 * 16 + 9 * 32 + 16), 4 * 64 * (9 * 32 + 9 * 64 + 32)
    assert describe(built, style(1))[1] == 2 * (stem + first + second + third + 64 * 10)
    assert equal(built, before)
    assert built.training


def test_wide_resnet_is_fixmatchs() -> None:
    """A WRN-16-2 from the equations: pre-activation; only the first shortcut starts after the activation."""
    built = net("wrn_16_2", style=style()).double()
    state = built.backbone.state_dict()

    def act(x: Tensor, key: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + 0.001).sqrt()
        x = x * state[f"{key}.weight"].view(1, -1, 1, 1) + state[f"{key}.bias"].view(1, -1, 1, 1)
        return torch.where(x > 0, x, 0.1 * x)

    x = images(style()).double()
    h = F.conv2d((x - built.mean) / built.std, state["stem.weight"], padding=1)
    for block in range(6):
        key, stride = f"blocks.{block}", 2 if block in (2, 4) else 1
        hidden = act(h, f"{key}.norm1")
        shortcut = hidden if block == 0 else h
        if f"{key}.shortcut.weight" in state:
            shortcut = F.conv2d(shortcut, state[f"{key}.shortcut.weight"], stride=stride)
        h = act(F.conv2d(hidden, state[f"{key}.conv1.weight"], stride=stride, padding=1), f"{key}.norm2")
        h = shortcut + F.conv2d(h, state[f"{key}.conv2.weight"], padding=1)
    features = act(h, "norm").mean((2, 3))
    torch.testing.assert_close(built(x).features, features)


def test_he_initialization() -> None:
    weight = net("wrn_16_8", seed=3).get_parameter("backbone.blocks.3.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_normalization_is_applied() -> None:
    here = style()
    built = net("tiny_16", style=here).eval()
    plain = Net(built.backbone, built.head, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    x = images(here)
    by_hand = torch.stack([(x[:, c] - here.mean[c]) / here.std[c] for c in range(3)], 1)
    torch.testing.assert_close(built(x).logits, plain(by_hand).logits)


@pytest.mark.parametrize("name", OURS + TIMM)
def test_channels_last_changes_nothing(name: str) -> None:
    here = style(3, 16, 16)
    built = net(name, style=here).eval()
    expected = built(images(here))
    built.to(memory_format=torch.channels_last)
    output = built(images(here).to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OURS + TIMM)
def test_bf16_autocast_is_close(name: str) -> None:
    here = style(1, 16, 16)
    built = net(name, style=here)
    expected = built.eval()(images(here)).features
    with torch.autocast("cpu", torch.bfloat16):
        close = built(images(here)).features
        trained = built.train()(images(here))
    assert (close.float() - expected).norm() < 0.03 * expected.norm()
    assert trained.logits.dtype == torch.bfloat16
    F.cross_entropy(trained.logits.float(), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


@pytest.mark.parametrize("name", ["tiny_16", "wrn_10_1"])
def test_compiles_without_graph_breaks(name: str) -> None:
    built = net(name, style=style())
    twin = copy.deepcopy(built)
    built.compile(backend="aot_eager", fullgraph=True)
    outputs = built(images(style())), twin(images(style()))
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.logits.logsumexp(1).sum().backward()
    torch.testing.assert_close(built.head.weight.grad, twin.head.weight.grad)
    average = Ema(built, 0.9)
    average.update(built, At(0, 10))
    assert equal(average.net, twin)


# ---- by name

def test_seed_decides_and_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = net("tiny_16", seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(first, net("tiny_16", seed=7))
    assert not equal(first, net("tiny_16", seed=8))
    assert equal(net("timm/resnet18", seed=7), net("timm/resnet18", seed=7))


@pytest.mark.parametrize("name", ["tiny_16", "wrn_10_1", "timm/resnet18"])
def test_bn_momentum(name: str) -> None:
    def momenta(built: nn.Module) -> set[float | None]:
        return {module.momentum for module in built.modules() if isinstance(module, nn.BatchNorm2d)}

    assert momenta(net(name)) == {0.1}
    assert momenta(net(name, bn_momentum=0.001)) == {0.001}


def test_options_reach_timm() -> None:
    assert net("timm/resnet18", drop_rate=0.3).backbone.drop_rate == 0.3


def test_small_images_keep_their_size_in_tiny() -> None:
    for size, stride in [(8, 1), (15, 1), (16, 2), (32, 2)]:
        stem = net("tiny_16", style=style(1, size, 40)).get_submodule("backbone.stem.0")
        assert stem.stride == (stride, stride)


@pytest.mark.parametrize(("name", "message"), [
    ("wrn28_2", "Did you mean wrn_28_2"),
    ("resnet19", "Did you mean resnet18"),
    ("wrn_27_2", "depth must be 6n"),
    ("wrn_4_2", "depth must be 6n"),
    ("wrn_28_0", "width at least 1"),
    ("tiny_0", "width must be at least 1"),
    ("timm/resnet18x", "Did you mean resnet18"),
    ("timm/resnet18.nonsense", "Invalid pretrained tag"),
    ("timm/vit_tiny_patch16_224", "1-channel images of 8x8")])
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        net(name, style=style(1))
    assert "\n" not in str(caught.value)


def test_bad_options() -> None:
    with pytest.raises(UsageError, match="no options"):
        net("tiny_16", dropout=0.1)
    with pytest.raises(UsageError, match="no pretrained weights"):
        net("tiny_16", pretrained=True)
    with pytest.raises(UsageError, match="unexpected keyword argument 'dropuot'"):
        net("timm/resnet18", dropuot=0.1)
    with pytest.raises(UsageError, match="needs classes, and there are none"):
        net("tiny_16", classes=0)
    with pytest.raises(UsageError, match="1 channels, but 3 means"):
        net("tiny_16", style=Style(channels=1))
    with pytest.raises(UsageError, match="exclude each other"):
        net("timm/resnet18", pretrained=True, weights="x.pt")


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(UsageError, match=r"resnet18 could not be had.*no route to host.*--weights FILE"):
        net("timm/resnet18", pretrained=True)


def test_pixels_are_the_normalized_values_in_order() -> None:
    style = Style(1, 4, 6, mean=(0.5,), std=(0.25,))
    built, images = net("pixels", classes=3, style=style), torch.rand(2, 1, 4, 6)
    torch.testing.assert_close(built(images).features, ((images - 0.5) / 0.25).reshape(2, 24))
    assert [list(p.shape) for p in built.parameters()] == [[3, 24], [3]]  # softmax regression


@pytest.mark.parametrize("base", ["tiny_4", "timm/resnet10t"])
def test_one_more_layer(base: str) -> None:
    built, images = net(f"{base}+7", classes=3).eval(), torch.rand(2, 3, 32, 32)
    features = built.backbone.trunk((images - built.mean) / built.std)
    expected = (features @ built.backbone.layer.weight.T + built.backbone.layer.bias).clamp(min=0)
    torch.testing.assert_close(built(images).features, expected)
    assert (built.name, built.features_dim, built.head.in_features) == (f"{base}+7", 7, 7)
    assert built(images).logits.shape == (2, 3)
    for wrong in (f"{base}+", f"{base}+0", f"{base}+x"):
        with pytest.raises(UsageError, match="unknown "):
            net(wrong)


def test_families_are_described_and_import_is_light() -> None:
    assert [name.partition("{")[0] for name in NETS] == [
        "tiny_", "rapid_", "wrn_", "resnet", "resnet_", "preact_resnet", "preact_", "resnext_", "densenet_",
        "mocapsnet", "mocapsnet_", "pixels", "lite0", "lite1", "lite2", "timm/", *[""] * 8]
    command = "import ssl_lab.nets, sys; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


# ---- weights

@pytest.fixture
def trained() -> Net:
    built = net("wrn_10_1", classes=4, style=style(), seed=5)
    built(images(style()))  # moves the statistics of BatchNorm
    return built


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "wrapped.pt"])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_round_trip(trained: Net, tmp_path: Path, suffix: str, whole: bool) -> None:
    path = tmp_path / f"model.{suffix}"
    state = (trained if whole else trained.backbone).state_dict()
    if suffix == "safetensors":
        save_file(state, path)
        assert torch.equal(load_file(path)["mean" if whole else "stem.weight"], trained.mean if whole else
                           trained.get_parameter("backbone.stem.weight"))
    else:
        torch.save({"model": state} if "wrapped" in suffix else state, path)
    other = Style(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    loaded = net("wrn_10_1", classes=4, style=other, weights=path)
    assert equal(loaded.backbone, trained.backbone)
    assert equal(loaded, trained) == whole
    assert equal(loaded.head, net("wrn_10_1", classes=4).head) != whole
    assert torch.equal(loaded.mean.flatten(), torch.tensor((0.3, 0.4, 0.5) if whole else other.mean))


def test_head_of_other_classes_starts_afresh(trained: Net, tmp_path: Path,
                                             caplog: pytest.LogCaptureFixture) -> None:
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        loaded = net("wrn_10_1", classes=7, weights=tmp_path / "model.safetensors")
    assert "a head for 4 classes; the head for 7 classes starts afresh" in caplog.text
    assert equal(loaded.backbone, trained.backbone)
    assert equal(loaded.head, net("wrn_10_1", classes=7).head)


def test_weights_that_do_not_fit(trained: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(trained.state_dict(), path)
    shapes = re.escape("mean [3, 1, 1] for [1, 1, 1], std [3, 1, 1] for [1, 1, 1], "
                       "backbone.stem.weight [16, 3, 3, 3] for [16, 1, 3, 3]")
    with pytest.raises(UsageError, match=f"wrn_10_1: 45 of 48 tensors match; 3 of another shape: {shapes}"):
        net("wrn_10_1", classes=4, style=style(1), weights=path)
    with pytest.raises(UsageError, match=r"wrn_16_1: .* 31 not in the file: backbone\.blocks\.3.*, \.\.\."):
        net("wrn_16_1", classes=4, weights=path)
    save_file({"layer1.0.conv": torch.ones(2)}, path)
    for name in ("wrn_10_1", "timm/resnet18"):
        with pytest.raises(UsageError, match=r"0 of \d+ tensors match; .* 1 not in the net: layer1.0.conv\."):
            net(name, weights=path)


class Runs:
    """What a file must not do when it is read."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (self.code,)


def test_files_that_are_no_weights(trained: Net, tmp_path: Path) -> None:
    def message(name: str) -> str:
        with pytest.raises(UsageError) as caught:
            net("wrn_10_1", weights=tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in message("absent.pt")
    assert "expected a .safetensors" in message("model.onnx")
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    torch.save(trained.state_dict(), tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 5, len(whole) // 2):
            (tmp_path / name).write_bytes(whole[:size])
            assert "not a whole" in message(name)
    torch.save(Runs(f"open({str(tmp_path / 'ran')!r}, 'w')"), tmp_path / "code.pt")
    assert "expected a dict of tensors" in message("code.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"method": {}, "step": 3}, tmp_path / "checkpoint.pt")
    assert "dict with the keys method, step; of a run, take its model.safetensors" in message("checkpoint.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "got a list" in message("list.pt")


def test_timms_file_is_adapted(tmp_path: Path) -> None:
    """A file for 224-pixel RGB images serves 1-channel images of 32 pixels, with timm's normalization."""
    import timm

    model = "vit_tiny_patch16_224"
    save_file(timm.create_model(model).state_dict(), tmp_path / "vit.safetensors")
    stored = load_file(tmp_path / "vit.safetensors")
    loaded = net(f"timm/{model}", style=style(1, 32, 32), weights=tmp_path / "vit.safetensors")
    key = "patch_embed.proj.weight"
    torch.testing.assert_close(loaded.backbone.state_dict()[key], stored[key].sum(1, keepdim=True))
    key = "blocks.11.mlp.fc2.weight"
    assert torch.equal(loaded.backbone.state_dict()[key], stored[key])
    assert loaded.mean.flatten().tolist() == pytest.approx([sum(timm.get_pretrained_cfg(model).mean) / 3])
    assert loaded(images(style(1, 32, 32))).logits.shape == (2, 10)
    assert "state_dict" not in loaded.backbone.pretrained_cfg

    del stored["blocks.3.attn.qkv.weight"]
    save_file(stored, tmp_path / "vit.safetensors")
    with pytest.raises(UsageError, match=r"1 not in the file: blocks\.3\.attn\.qkv\.weight"):
        net(f"timm/{model}", style=style(1, 32, 32), weights=tmp_path / "vit.safetensors")
    stored["blocks.3.attn.qkv.weight"] = torch.ones(7, 7)
    save_file(stored, tmp_path / "vit.safetensors")
    with pytest.raises(UsageError, match=r"size mismatch for blocks\.3\.attn\.qkv\.weight"):
        net(f"timm/{model}", style=style(1, 32, 32), weights=tmp_path / "vit.safetensors")


# ---- moving average

@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, constant(0.9), linear(0.2, 0.8)])
def test_ema_against_a_loop(decay: object) -> None:
    source = net("tiny_16", style=style(), seed=1)
    average = Ema(net("tiny_16", style=style(), seed=2), decay)  # type: ignore[arg-type]
    expected = {key: value.double() for key, value in average.net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        with torch.no_grad():
            for tensor in (*source.parameters(), *source.buffers()):
                tensor += 1 if tensor.dtype == torch.int64 else torch.rand(tensor.shape, generator=generator)
        average.update(source, At(step, total=6))
        wanted = decay(step / 6) if callable(decay) else decay
        d = min(1 - 1 / (step + 1), wanted)  # type: ignore[call-overload]
        for key, value in source.state_dict().items():
            share = d if value.is_floating_point() else 0
            expected[key] = share * expected[key] + (1 - share) * value.double()
        for key, value in average.net.state_dict().items():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
        if step == 0 or decay == 0:
            assert equal(average.net, source)


def test_ema_without_a_warm_up_goes_on_from_what_it_was() -> None:
    source, average = nn.Linear(2, 2).double(), Ema(nn.Linear(2, 2).double(), 0.75, warm_up=0)
    expected = average.net.weight.clone()
    for step in range(3):
        average.update(source, At(step, 3))
        expected = 0.75 * expected + 0.25 * source.weight.detach()
        torch.testing.assert_close(average.net.weight, expected)


def test_ema_is_a_copy_in_eval_mode_without_gradient() -> None:
    source = net("tiny_16", style=style())
    parent = nn.ModuleDict({"net": source, "ema": Ema(source, 0.5)})
    average = parent["ema"]
    assert isinstance(average, Ema)
    parent.eval().train()
    assert source.training
    assert not any(module.training for module in average.net.modules())
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in source.parameters())
    frozen = copy.deepcopy(average.net)
    with torch.no_grad():
        source.head.bias += 1
    assert equal(average.net, frozen)
    assert equal(average.net, Net(frozen.backbone, frozen.head, style().mean, style().std))
    assert set(average.state_dict()) == {f"net.{key}" for key in source.state_dict()}


def test_ema_of_a_module_without_buffers() -> None:
    source = nn.Linear(2, 2)
    average = Ema(source, 0.5)
    with torch.no_grad():
        source.weight += 1
    average.update(source, At(0, 1))
    assert torch.equal(average.net.weight, source.weight)
