"""Exported nets: the same outputs in the other tool, and what cannot be exported."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from small_runs import digits
from torch import nn

from ssl_lab import export as exporting
from ssl_lab.batch import Style
from ssl_lab.engine.card import Card
from ssl_lab.engine.folder import RunFolder
from ssl_lab.engine.weights import whole_state
from ssl_lab.errors import UsageError
from ssl_lab.export import Exported, export, finished
from ssl_lab.methods import METHODS
from ssl_lab.methods.pretraining.simclr import SimCLR
from ssl_lab.model import open as open_run
from ssl_lab.nets import net


def run_folder(folder: Path, name: str = "tiny_4", method: str = "supervised", **settings: object) -> Path:
    """A folder as a finished run leaves it, with weights and statistics like trained ones."""
    settings = {"net": name, "data": "digits", "image_size": None} | settings
    size = settings["image_size"] or 8
    mean, std = digits().style.mean, digits().style.std
    style = Style(1, size, size, mean, std)
    model = net(name, 7, style, seed=3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.head.bias.uniform_(-1, 1, generator=draw)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2, generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
    run = RunFolder(folder)
    run.begin(settings, {}, 0)
    learned = list("abcdefg") if METHODS[method].classifies else []
    run.finish(whole_state(model), {"method": method, "class_names": learned}, {},
               Card(name, tuple("abcdefg"), style, "digits", 7))
    return folder


def images(rows: int = 9, size: int = 8) -> torch.Tensor:
    return torch.rand(rows, 1, size, size, generator=torch.Generator().manual_seed(1))


def outputs(folder: Path, x: torch.Tensor, name: str = "logits") -> torch.Tensor:
    """What a net built from nothing but the file gives."""
    model = finished(folder)[0].eval()
    with torch.no_grad():
        return getattr(model(x), name)


def test_torchscript_takes_any_batch_of_unit_images(tmp_path, capsys):
    run = run_folder(tmp_path / "run")
    difference = export(run, "torchscript")
    assert difference < 1e-5
    said = capsys.readouterr().out
    assert f"largest difference {difference:.1e}" in said
    file = run / "exported" / "model.pt"
    assert f"torch.jit.load('{file}')" in said
    with pytest.warns(FutureWarning):
        loaded = torch.jit.load(file)
    for rows in (1, 9):
        torch.testing.assert_close(loaded(images(rows)), outputs(run, images(rows)))
    assert outputs(run, images()).shape == (9, 7)


def test_onnx_takes_any_batch_of_unit_images(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run = run_folder(tmp_path / "run")
    export(run, "onnx", tmp_path / "new" / "net.onnx")
    session = runtime.InferenceSession(str(tmp_path / "new" / "net.onnx"), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [1, 8, 8])
    assert (gives.name, gives.shape[1:]) == ("logits", [7])
    for rows in (1, 9):
        (found,) = session.run(None, {"images": images(rows).numpy()})
        np.testing.assert_allclose(found, outputs(run, images(rows)), rtol=1e-4, atol=1e-5)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.onnx"]  # weights inside
    assert "InferenceSession('" in capsys.readouterr().out


def test_predict_takes_an_onnx_file_in_place_of_its_run(tmp_path, capsys):
    """Elsewhere, where nothing but the file is."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    run = run_folder(tmp_path / "run")
    export(run, "onnx", tmp_path / "net.onnx")
    shown = (images() * 255).round().byte().numpy()
    here = open_run(run, "cpu", "fp32").predict(shown)
    run.rename(tmp_path / "gone")
    model = open_run(tmp_path / "net.onnx")
    there = model.predict(shown)
    assert there.labels == here.labels
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-4)
    assert model.card == Card.read(tmp_path / "gone")
    with pytest.raises(UsageError, match="gives no features; open its run"):
        model.embed(shown)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for name, words in (("bad.onnx", "cannot be read as ONNX"), ("none.onnx", "there is no ")):
        with pytest.raises(UsageError, match=words):
            open_run(tmp_path / name)


@pytest.mark.parametrize(("kind", "words"), [("neighbors", "by the neighbors of stored features"),
                                             ("ensemble", "by several nets together")])
def test_what_no_other_tool_has_is_not_exported(tmp_path, kind, words):
    """The head in model.safetensors was never fitted there."""
    run = run_folder(tmp_path)
    replace(Card.read(run), kind=kind).write(run)
    with pytest.raises(UsageError, match=words):
        export(run, "torchscript")


def test_onnx_without_its_packages_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r'pip install "ssl_lab\[export\]"'):
        export(run_folder(tmp_path), "onnx")


@pytest.mark.parametrize(("name", "size"), [("timm/resnet10t", 32), ("timm/mobilenetv3_small_050", 32),
                                            ("timm/vit_tiny_patch16_224", 32)])
def test_timm_loads_it_by_the_line_that_is_printed(tmp_path, capsys, name, size):
    import timm

    run = run_folder(tmp_path / "run", name, image_size=size)
    export(run, "timm")
    line = capsys.readouterr().out.splitlines()[1]
    call, mean, std = re.fullmatch(r"(timm\.create_model\(.*\))\(\(images.*mean (\[.*\]) and std (\[.*\]) by channel",
                                   line).groups()
    model = eval(call, {"timm": timm})
    x = images(3, size)
    mean, std = (torch.tensor(json.loads(values)).view(-1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        torch.testing.assert_close(model((x - mean) / std), outputs(run, x), rtol=1e-4, atol=1e-4)
    state = safetensors.torch.load_file(run / "exported" / "model.safetensors")
    timm.create_model(name.removeprefix("timm/"), num_classes=7, in_chans=1,
                      **({"img_size": size} if "vit" in name else {})).load_state_dict(state)


def test_a_pretrained_run_exports_its_features(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METHODS, "simclr", SimCLR)
    run = run_folder(tmp_path / "run", method="simclr")
    export(run, "torchscript", tmp_path / "net.pt")
    assert "features [16]" in capsys.readouterr().out
    with pytest.warns(FutureWarning):
        loaded = torch.jit.load(tmp_path / "net.pt")
    torch.testing.assert_close(loaded(images()), outputs(run, images(), "features"))
    run = run_folder(tmp_path / "timm", "timm/resnet10t", "simclr", image_size=32)
    export(run, "timm")
    assert "num_classes=0" in capsys.readouterr().out


def test_the_size_of_images_comes_from_the_run(tmp_path):
    """A tiny net strides over images of 16 pixels or more, so the size is part of what it computes."""
    small, large = run_folder(tmp_path / "8"), run_folder(tmp_path / "16", image_size=16)
    assert finished(small)[0].backbone.stem[0].stride == (1, 1)
    assert finished(large)[0].backbone.stem[0].stride == (2, 2)
    assert finished(small, image_size=16)[1].height == 16


def test_outputs_that_differ_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting._WRITERS, "torchscript",
                        lambda model, x, out: (b"", model(x) + 1e-2, ""))
    with pytest.raises(UsageError, match=r"differ by 0\.01.*Nothing was written"):
        export(run_folder(tmp_path), "torchscript")
    assert not (tmp_path / "exported").exists()
    monkeypatch.setitem(exporting._WRITERS, "torchscript", lambda model, x, out: (b"", model(x) * torch.nan, ""))
    with pytest.raises(UsageError, match="differ by nan"):
        export(tmp_path, "torchscript")


def test_what_cannot_be_exported(tmp_path):
    run = run_folder(tmp_path / "run")
    with pytest.raises(UsageError, match=r"tiny_4 is a net of ssl_lab.*onnx or torchscript"):
        export(run, "timm")
    with pytest.raises(UsageError, match=r"unknown format 'onx'\. Did you mean onnx"):
        export(run, "onx")
    with pytest.raises(UsageError, match="is no folder of a finished run"):
        export(tmp_path / "none", "onnx")
    (run / "config.yaml").write_text(yaml.safe_dump({"method": "fixmatch"}))
    with pytest.raises(UsageError, match="names no net and data"):
        export(run, "onnx")


def test_features_and_logits_are_the_nets():
    model = net("tiny_4", 3, Style(1, 8, 8, (0.2,), (0.3,))).eval()
    output = model(images())
    assert torch.equal(Exported(model, "logits")(images()), output.logits)
    assert torch.equal(Exported(model, "features")(images()), output.features)
