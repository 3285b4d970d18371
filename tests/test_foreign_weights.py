"""Weights that others wrote: under prefixes, in checkpoints with settings of any type, with heads beside them."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.nets import net
from ssl_lab.nets.stored import read_weights

STYLE = Style(height=32, width=32)
NAME = "timm/resnet10t"
State = dict[str, Tensor]


class Trained(argparse.Namespace):
    """A type that whoever reads the file does not have."""


def theirs(seed: int = 1, name: str = NAME) -> State:
    return dict(net(name, style=STYLE, seed=seed).backbone.state_dict())


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def heads(prefix: str) -> State:
    return {f"{prefix}{key}": torch.ones(3, 3) for key in ("fc.0.weight", "projector.0.weight", "classifier.weight")}


def solo_learn(state: State) -> dict[str, Any]:
    return {"epoch": 3, "pytorch-lightning_version": "1.6", "hyper_parameters": Trained(method="simclr"),
            "state_dict": under("backbone.", state) | under("momentum_backbone.", theirs(9)) | heads(""),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}]}


def lightly(state: State) -> dict[str, Any]:
    children = [name for name, _ in net(NAME, style=STYLE).backbone.named_children()]
    numbered = {f"{children.index(key.partition('.')[0])}.{key.partition('.')[2]}": value
                for key, value in state.items()}
    return {"state_dict": under("backbone.", numbered) | {"projection_head.layers.0.weight": torch.ones(2, 2)}}


def dino(state: State) -> dict[str, Any]:
    return {"student": under("module.backbone.", theirs(9)), "teacher": under("backbone.", state) | heads("head."),
            "optimizer": {"state": {0: torch.ones(2)}}, "epoch": 1, "args": argparse.Namespace(arch="r", lr=Path("x"))}


LAYOUTS: dict[str, Any] = {
    "DataParallel": lambda state: under("module.", state),
    "compiled": lambda state: under("_orig_mod.", state),
    "compiled within": lambda state: under("module.backbone._orig_mod.", state),
    "model.": lambda state: {"model": under("model.", state) | heads("model.")},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state | heads(""), "loss": torch.tensor(0.5)},
    "EMA": lambda state: {"model": theirs(9), "ema": state, "args": argparse.Namespace(lr=0.1)},
    "encoder.": lambda state: OrderedDict(under("encoder.", state)),
    "student.": lambda state: under("student.", state),
    "net.": lambda state: {"net": under("net.", state)},
    "MoCo": lambda state: {"state_dict": under("module.encoder_q.", state) | heads("module.encoder_q.") | under(
        "module.encoder_k.", theirs(9)) | {"module.queue": torch.ones(4, 4), "module.queue_ptr": torch.ones(1)}},
    "VISSL": lambda state: {"classy_state_dict": {"base_model": {"model": {
        "trunk": under("_feature_blocks.", state), "heads": heads("")}}, "optimizer": {}}},
    "solo-learn": solo_learn,
    "lightly": lightly,
    "DINO": dino,
}


@pytest.mark.parametrize("suffix", [".ckpt", ".pth.tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_backbone_is_found_wherever_it_lies(layout: str, suffix: str, tmp_path: Path,
                                              caplog: pytest.LogCaptureFixture) -> None:
    state, path = theirs(), tmp_path / f"weights{suffix}"
    torch.save(LAYOUTS[layout](state), path)
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        loaded = net(NAME, style=STYLE, seed=2, weights=path).backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    if layout != "compiled":
        assert len(caplog.messages) == 1
        assert f"{len(state)} tensors" in caplog.text


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pth.tar", ".ckpt", ".safetensors"])
def test_nets_of_ours_under_a_prefix(suffix: str, tmp_path: Path) -> None:
    trained, path = net("tiny_4", classes=3, style=STYLE, seed=5), tmp_path / f"weights{suffix}"
    for state, whole in [(trained.state_dict(), True), (trained.backbone.state_dict(), False)]:
        prefixed = under("module.", state)
        save_file(prefixed, path) if suffix == ".safetensors" else torch.save({"model": prefixed}, path)
        loaded = net("tiny_4", classes=3, style=STYLE, weights=path)
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items()
                   if whole or key.startswith("backbone."))


def test_a_whole_model_that_was_pickled(tmp_path: Path) -> None:
    trained = net("tiny_4", classes=["cat", "dog"], style=STYLE, seed=5)
    torch.save(trained, tmp_path / "model.pt")
    loaded = net("tiny_4", classes=2, style=STYLE, weights=tmp_path / "model.pt")
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded.class_names == ("cat", "dog")
    torch.save({"epoch": 3, "model": nn.DataParallel(trained)}, tmp_path / "parallel.pt")
    assert torch.equal(net("tiny_4", classes=2, style=STYLE, weights=tmp_path / "parallel.pt").head.weight,
                       trained.head.weight)


def test_a_file_of_old_torch(tmp_path: Path) -> None:
    state = theirs(name="tiny_4")
    torch.save({"state_dict": under("module.", state), "args": argparse.Namespace(lr=0.1)}, tmp_path / "old.pth.tar",
               _use_new_zipfile_serialization=False)
    loaded = net("tiny_4", style=STYLE, weights=tmp_path / "old.pth.tar").backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_too_little_fits(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.ckpt", theirs()
    torch.save({"state_dict": under("backbone.", state)}, path)
    with pytest.raises(UsageError, match=r"do not fit tiny_4: 0 of \d+ .*not in the file: stem.*not in the net: "
                                         r"state_dict\.backbone\.conv1.*torchvision's ResNets.*timm/resnet18"):
        net("tiny_4", style=STYLE, weights=path)
    partly = dict(list(state.items())[:-5])
    torch.save({"state_dict": under("backbone.", partly)}, path)
    with pytest.raises(UsageError, match=rf"{len(partly)} of {len(state)} tensors match; .* not in the file"):
        net(NAME, style=STYLE, weights=path)
    longer = theirs(name="wrn_16_1")
    torch.save(under("module.", longer), path)
    with pytest.raises(UsageError, match=r"wrn_10_1: .*not in the net: .*blocks"):  # a deeper one is not cut short
        net("wrn_10_1", style=STYLE, weights=path)
    narrow = theirs(name="tiny_4")
    torch.save({"model": under("encoder.", narrow)}, path)
    with pytest.raises(UsageError, match=r"tiny_8: .*of another shape: stem\.0\.weight \[4, 3, 3, 3\] for \[8, 3, 3"):
        net("tiny_8", style=STYLE, weights=path)


def test_what_a_file_says_of_its_classes(tmp_path: Path) -> None:
    state, path = {"w": torch.ones(2)}, tmp_path / "a.pt"
    for content, names in [({"state_dict": state, "class_names": ["a", "b"]}, ("a", "b")), (state, None),
                           ({"model": state, "classes": ["a", "b"]}, ("a", "b")),
                           ({"model": state, "classes": 2}, None), ({"model": state, "class_names": []}, ())]:
        torch.save(content, path)
        assert read_weights(path).class_names == names
    save_file(state, tmp_path / "a.safetensors", {"class_names": '["a", "b"]'})
    assert read_weights(tmp_path / "a.safetensors").class_names == ("a", "b")
    save_file(state, tmp_path / "a.safetensors", {"class_names": "a, b"})
    with pytest.raises(UsageError, match="no JSON"):
        read_weights(tmp_path / "a.safetensors")
