"""`ssl-lab export`: the net of a run as a file that another tool loads, with the same outputs."""

from __future__ import annotations

import importlib
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

import safetensors.torch
import torch
import tyro
import yaml
from torch import Tensor, nn

from ssl_lab.batch import Style
from ssl_lab.class_names import shown
from ssl_lab.config import data_of, reading_of
from ssl_lab.data import load
from ssl_lab.engine.card import CARD, Card
from ssl_lab.errors import UsageError, unknown
from ssl_lab.files import write_atomically
from ssl_lab.nets import Net
from ssl_lab.nets.quantized import level_of
from ssl_lab.nets.start import learned_classes, start_net
from ssl_lab.nets.stored import KEY, metadata, one_line, read_weights
from ssl_lab.seeds import generator

Format = Literal["timm", "onnx", "torchscript"]
SUFFIXES = {"timm": "safetensors", "onnx": "onnx", "torchscript": "pt"}
IMAGES = 5
"""Random ones, that outputs are compared on."""
TOLERANCE = 1e-4
"""Of the largest difference, relative to the largest output (or to 1)."""


def export(run: Annotated[Path, tyro.conf.Positional], to: Format, out: Path | None = None,
           image_size: int | None = None) -> float:
    """Writes the net of a finished run for another tool, and prints by how much the outputs differ there.

    onnx and torchscript take images float32 [B, C, H, W] in [0, 1], any B, and normalize them; they give logits
    [B, classes], or the features [B, D] of a run that trained no classifier. The classes' names lie in the file's
    metadata as JSON; `ssl-lab predict` takes an ONNX file in place of its run. timm gets a state dict of its own model;
    images must be normalized before it.

    Args:
        run: folder of a run of one of the recipes.
        to: timm (of a timm net), onnx (pip install "ssl_lab[export]") or torchscript.
        out: the file (default: model.safetensors, .onnx or .pt in the folder exported/ of the run).
        image_size: side of the images in pixels (default: as in the run, whose data are read to know it).
    """
    if to not in get_args(Format):
        raise unknown("format", to, get_args(Format))
    card = Card.read(run) if (run / "model.json").exists() else None
    if card is not None and card.kind != "net":
        raise UsageError(f"{run} tells classes by {_KINDS[card.kind]}, which other tools do not have; `ssl-lab "
                         "predict` uses it, and a run of --method probe or of a net that was trained can be exported")
    net, style, classifies = finished(run, image_size)
    out = out or run / "exported" / f"model.{SUFFIXES[to]}"
    if card is not None:
        card = replace(card, style=replace(card.style, height=style.height, width=style.width))
    model = Exported(net, "logits" if classifies else "features", card).eval()
    content, shape, difference, usage = written(model, style, to, out)
    write_atomically(out, lambda file: file.write(content))
    print(f"{out}: {model.output} {shape} of images {[style.channels, style.height, style.width]}; largest difference "
          f"{difference:.1e} over {IMAGES} random images\n{usage}")
    if classifies:
        where = f"; {_WHERE[to].format(out=str(out))}" if net.class_names else ""
        print(f"classes: {shown(net.class_names)}{where}")
    return difference


def written(model: Exported, style: Style, to: Format, out: Path) -> tuple[bytes, list[int], float, str]:
    """What a file `out` of this format is to hold, the shape of a row of its output, by how much that differs from the
    net's, and how the file is loaded. UsageError where it differs by more than rounding."""
    images = torch.rand(IMAGES, style.channels, style.height, style.width, generator=generator("export"))
    with torch.no_grad():
        expected = model(images)
        content, found, usage = _WRITERS[to](model, images, out)
    difference = float((found - expected).abs().max())
    # sums that end in other last digits round inputs of the next layer to other values, here and there
    tolerance = max(TOLERANCE, min(4 * level_of(model.net), 0.5))
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise UsageError(f"{model.net.name} gives other {model.output} as {to}: they differ by {difference:.2g}. "
                         "Nothing was written; choose another format")
    return content, list(expected.shape[1:]), difference, usage


class Exported(nn.Module):
    """images float32 [B, C, H, W] in [0, 1] -> logits [B, classes] or features [B, D] of a net."""

    def __init__(self, net: Net, output: Literal["logits", "features"], card: Card | None = None) -> None:
        super().__init__()
        self.net, self.output, self.card = net, output, card
        self.class_names = net.class_names if output == "logits" else None

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = getattr(self.net(images), self.output)
        return output


def finished(run: Path, image_size: int | None = None) -> tuple[Net, Style, bool]:
    """The net of the run in this folder, the style of its images, and whether its head was trained."""
    config, weights = run / "config.yaml", run / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UsageError(f"{run} is no folder of a finished run: expected config.yaml and model.safetensors there")
    settings = yaml.safe_load(config.read_text()) or {}
    if "net" not in settings or "data" not in settings:
        raise UsageError(f"{config} names no net and data; only runs of the recipes can be exported")
    state = read_weights(weights)
    channels, classes = len(state["mean"]), len(state["head.weight"])
    size = image_size or settings.get("image_size")
    if size:
        style = Style(channels, size, size, (0.5,) * channels, (0.25,) * channels)  # the weights bring theirs
    else:
        try:
            style = load(data_of(settings, run), **reading_of(settings)).style
        except UsageError as error:
            raise UsageError(f"the images of {run} tell their size, and cannot be read: {error}. --image-size N says "
                             "it too") from error
    return start_net(str(run), classes, style), style, learned_classes(run)


_KINDS = {"neighbors": "the neighbors of stored features", "ensemble": "several nets together"}
Written = tuple[bytes, Tensor, str]
"""What the file holds, the outputs of the net that was read back from it, and how to load it from `out`."""


def _onnx(model: Exported, images: Tensor, out: Path) -> Written:
    runtime = _extra("onnxruntime")
    _extra("onnxscript")
    try:
        program: Any = torch.onnx.export(
            model, (images[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
            input_names=["images"], output_names=[model.output])
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(f"{model.net.name} cannot be written as ONNX: {one_line(error)}") from error
    if model.class_names is not None:
        program.model.metadata_props[KEY] = json.dumps(model.class_names)
    if model.card is not None:
        program.model.metadata_props[CARD] = model.card.text
    content: bytes = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run([model.output], {"images": images.numpy()})[0]
    usage = f"onnxruntime.InferenceSession({str(out)!r}).run(None, {{'images': images}})"
    return content, torch.from_numpy(found), usage


def _torchscript(model: Exported, images: Tensor, out: Path) -> Written:
    file = io.BytesIO()
    with warnings.catch_warnings():  # torch recommends torch.export instead, which C++ and phones do not load
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
        named = {} if model.class_names is None else {KEY: json.dumps(model.class_names)}
        torch.jit.save(torch.jit.trace(model, images[:2]), file, _extra_files=named)  # type: ignore[no-untyped-call]
        file.seek(0)
        found = torch.jit.load(file)(images)  # type: ignore[no-untyped-call]
    return file.getvalue(), found, f"torch.jit.load({str(out)!r})(images)"


def _timm(model: Exported, images: Tensor, out: Path) -> Written:
    import timm

    net = model.net
    if not net.name.startswith("timm/") or "+" in net.name:
        raise UsageError(f"{net.name} is a net of ssl_lab, which timm does not have; timm takes nets timm/MODEL. "
                         "Export it as onnx or torchscript")
    name = net.name.removeprefix("timm/")
    arguments: dict[str, Any] = {"num_classes": net.classes if model.output == "logits" else 0,
                                 "in_chans": images.shape[1]}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = tuple(images.shape[2:])
    other = timm.create_model(name, **arguments).eval()
    state = dict(net.backbone.state_dict())
    if model.output == "logits":
        head = next((key for key, module in other.named_modules() if module is other.get_classifier()), None)
        if head is None or not isinstance(other.get_classifier(), nn.Linear):
            raise UsageError(f"{net.name} has no single linear classifier in timm; export it as onnx or torchscript")
        state |= {f"{head}.{key}": value for key, value in net.head.state_dict().items()}
    mean, std = ([round(number, 6) for number in values.flatten().tolist()] for values in (net.mean, net.std))
    notes = {"model": name, "arguments": json.dumps(arguments), "mean": json.dumps(mean), "std": json.dumps(std)}
    notes |= metadata(model.class_names)
    content = safetensors.torch.save({key: value.contiguous() for key, value in state.items()}, notes)
    try:
        other.load_state_dict(safetensors.torch.load(content))
    except RuntimeError as error:
        raise UsageError(f"{net.name}: timm's model has other weights ({one_line(error)})") from error
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return content, other((images - net.mean) / net.std), (
        f"timm.create_model({name!r}{given}, checkpoint_path={str(out)!r}).eval()((images - mean) / std), with mean "
        f"{mean} and std {std} by channel")


_WHERE = {"timm": "safetensors.safe_open({out!r}, 'pt').metadata()['class_names']",
          "onnx": "session.get_modelmeta().custom_metadata_map['class_names']",
          "torchscript": "torch.jit.load({out!r}, _extra_files=(names := {{'class_names': ''}})), then names"}
"""Where each file has them, as JSON."""
_WRITERS = {"timm": _timm, "onnx": _onnx, "torchscript": _torchscript}


def _extra(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"ONNX needs {package}: pip install \"ssl_lab[export]\"") from error
