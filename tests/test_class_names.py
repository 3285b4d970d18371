"""Class names travel with numbers: with heads, logits and exports; and where two lists meet, names decide."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import save_file
from small_runs import train
from test_recipes import recipe

import ssl_lab as sl
from ssl_lab.class_names import apart, places, shown
from ssl_lab.command_line import parse
from ssl_lab.engine import Runtime
from ssl_lab.engine.evaluate import accuracy
from ssl_lab.errors import UsageError
from ssl_lab.export import export
from ssl_lab.features.fidelity import fidelity
from ssl_lab.features.stored import stored_logits
from ssl_lab.methods.distillation import CESKD, DISTILLATION, KD, MutualLearning, StoredLogits, Teacher, load_teacher
from ssl_lab.nets import Net, net
from ssl_lab.nets.stored import metadata, read_weights

COLORS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
RGB, OTHER, RENAMED = ("red", "green", "blue"), ("blue", "red", "green"), ("red", "green", "zebra")
STYLE = sl.Style(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CPU = Runtime(torch.device("cpu"), "fp32", "")


def pool_of(names: Sequence[str] = RGB, each: int = 6) -> sl.Pool:
    """Images whose class is their color; a class that is no color is blue."""
    colors = [COLORS.get(name, COLORS["blue"]) for name in names]
    pixels = np.stack([np.full((8, 8, 3), color, np.uint8) - np.uint8(i) * (np.array(color, np.uint8) > 0)
                       for i in range(each) for color in colors])
    labels = np.arange(len(pixels)) % len(names)
    return sl.Pool.from_arrays(pixels, labels, pixels[: 2 * len(names)], labels[: 2 * len(names)], names, style=STYLE)


def knowing(names: Sequence[str] | None = RGB, order: Sequence[str] = RGB) -> Net:
    """A net that tells the colors apart; it says that its logits stand for `names`."""
    built = net("pixels", classes=3, style=STYLE)
    with torch.no_grad():
        built.head.weight.zero_()
        for row, name in enumerate(order):
            built.head.weight.view(3, 3, -1)[row, RGB.index(name)] = 1.0
    built.class_names = None if names is None else tuple(names)
    return built


def saved(path: Path, of: Net, names: Sequence[str] | None) -> Path:
    """As a run's weights lie on the disk."""
    path.parent.mkdir(exist_ok=True)
    save_file(of.state_dict(), path, metadata(names))
    return path


# ---- lists

def test_lists():
    assert places(("b", "c", "a"), ("a", "b", "c")) == [2, 0, 1]
    assert places(("a", "b"), ("a", "c")) is places(("a", "a"), ("a", "a")) is places(("a",), ("a", "b")) is None
    assert shown([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (12 in all)"
    many = [f"class {i}" for i in range(100)]
    assert apart([*many, "cat"], [*many, "dog"]) == ("cat beside 100 others", "dog beside 100 others")
    assert apart("ab", "ac") == ("a, b", "a, c")


# ---- heads of stored nets

@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_head_in_another_order_is_brought_into_order(tmp_path, caplog, suffix):
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": knowing().state_dict(), "class_names": list(RGB)}, path)
    else:
        saved(path, knowing(), RGB)
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        loaded = net("pixels", classes=OTHER, style=STYLE, weights=path)
    assert loaded.class_names == OTHER
    assert "the classes red, green, blue; its head is brought into the order of blue, red, green" in caplog.text
    assert torch.equal(loaded.head.weight, knowing(order=OTHER).head.weight)
    assert accuracy(loaded, pool_of(OTHER), pool_of(OTHER).test, CPU) == 1
    assert net("pixels", classes=3, style=STYLE, weights=path).class_names == RGB


def test_a_head_for_other_classes_of_the_same_number_starts_afresh(tmp_path, caplog):
    path = saved(tmp_path / "model.safetensors", knowing(), RGB)
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        loaded = net("pixels", classes=RENAMED, style=STYLE, weights=path, seed=4)
    assert "a head for red, green, blue; the head for red, green, zebra starts afresh" in caplog.text
    assert torch.equal(loaded.head.weight, net("pixels", classes=3, style=STYLE, seed=4).head.weight)


@pytest.mark.parametrize(("names", "said"), [(None, ["does not name its classes"]), ((), [])])
def test_a_head_whose_classes_nobody_knows_goes_by_their_number(tmp_path, caplog, names, said):
    path = saved(tmp_path / "model.safetensors", knowing(), names)
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        loaded = net("pixels", classes=OTHER, style=STYLE, weights=path)
    assert len(caplog.messages) == len(said)
    assert all(word in caplog.text for word in said)
    assert torch.equal(loaded.head.weight, knowing().head.weight)


def test_a_net_without_classes_says_what_to_do():
    for classes in ((), 0):
        with pytest.raises(UsageError, match=r"no image has a label\. Label some .*pretrain"):
            net("tiny_4", classes=classes)


# ---- runs

def test_a_run_writes_what_its_classes_are_called(tmp_path):
    pool = pool_of()
    for run, classes in ((tmp_path / "names", RGB), (tmp_path / "count", 3)):
        result = train(run, sl.Supervised(net("tiny_4", classes=classes, style=STYLE)), pool, 6, steps=2)
        assert result.method.predictor().class_names == RGB
        assert result.summary["class_names"] == list(RGB)
        assert torch.load(run / "checkpoint.pt", weights_only=True)["class_names"] == list(RGB)
        for file in ("model.safetensors", "checkpoint.pt"):
            assert read_weights(run / file).class_names == RGB
            again = net("tiny_4", classes=OTHER, style=STYLE, weights=run / file)
            learned = result.method.predictor().head.weight[[2, 0, 1]]
            assert torch.equal(again.head.weight, learned)
    unlabeled = sl.methods.SimCLR(net("tiny_4", classes=3, style=STYLE))
    train(tmp_path / "simclr", unlabeled, pool, unlabeled=6, steps=2)
    assert read_weights(tmp_path / "simclr" / "model.safetensors").class_names == ()


@pytest.mark.parametrize("names", [OTHER, RENAMED])
def test_a_net_of_other_classes_does_not_train(tmp_path, names):
    with pytest.raises(UsageError, match=rf"stand for {', '.join(names)}.*has red, green, blue.*pool\.class_names"):
        train(tmp_path, sl.Supervised(net("tiny_4", classes=names, style=STYLE)), pool_of(), 6)


def test_a_run_does_not_go_on_after_a_class_was_renamed(tmp_path):
    def fit(names: Sequence[str], **more: object) -> object:
        return train(tmp_path, sl.Supervised(net("tiny_4", classes=3, style=STYLE)), pool_of(names), 6, steps=2, **more)

    fit(RGB)
    with pytest.raises(UsageError, match=r"class_names: \['red', 'green', 'blue'\] -> \['red', 'green', 'zebra'\]"):
        fit(RENAMED, resume="auto")
    fit(RGB, resume="auto")


def test_predictions_are_measured_by_name():
    for order in (RGB, OTHER):
        pool = pool_of(order)
        assert accuracy(knowing(), pool, pool.test, CPU) == 1
        assert fidelity(knowing(OTHER, OTHER), knowing(), pool, pool.test, CPU)["agreement"] == 1
    with pytest.raises(UsageError, match="red, green, blue; expected red, green, zebra"):
        accuracy(knowing(), pool_of(RENAMED), pool_of(RENAMED).test, CPU)


# ---- teachers

def teachers(tmp_path: Path, pool: sl.Pool) -> dict[str, object]:
    """The knowing net as a teacher, on each way to one: its logits stand for RGB."""
    file = saved(tmp_path / "run" / "model.safetensors", knowing(), RGB)
    (file.parent / "config.yaml").write_text("net: pixels\n")
    logits = knowing()(pool.images.take(np.arange(len(pool))).float() / 255).logits.detach()
    save_file({"logits": logits}, tmp_path / "logits.safetensors", metadata(RGB))
    torch.save({"logits": logits, "class_names": list(RGB)}, tmp_path / "logits.pt")
    twin = saved(tmp_path / "twin.safetensors", knowing(OTHER, OTHER), OTHER)
    return {"run": file.parent, "file": file, "logits": tmp_path / "logits.safetensors", "pt": tmp_path / "logits.pt",
            "ensemble": f"{file},{twin}"}


@pytest.mark.parametrize("way", ["run", "file", "logits", "pt", "ensemble"])
def test_a_teacher_teaches_by_name(tmp_path, way):
    pool = pool_of(OTHER)
    source = teachers(tmp_path, pool)[way]
    teacher = load_teacher(source, OTHER, STYLE, "pixels", images=len(pool))
    rows = torch.arange(len(pool))
    answers = teacher(pool.images.take(rows.numpy()).float() / 255, rows).logits.argmax(dim=1)
    assert answers.tolist() == pool.truth.tolist()
    with pytest.raises(UsageError, match="red, green, blue; expected red, green, zebra"):
        load_teacher(source, RENAMED, STYLE, "pixels", images=len(pool))


@pytest.mark.parametrize("method", [method for method in DISTILLATION.values() if method.reads != "features"])
def test_a_student_learns_by_name(method):
    def build(names: Sequence[str], teacher: object) -> sl.methods.Method:
        return method(net("pixels", classes=names, style=STYLE), teacher)

    pool = pool_of(OTHER)
    images, rows = pool.images.take(pool.test).float() / 255, torch.from_numpy(pool.test)
    for given in (knowing(), Teacher(knowing(OTHER, OTHER), knowing()) if method is not CESKD else Teacher(knowing())):
        built = build(OTHER, given)
        assert built.teacher(images, rows).logits.argmax(dim=1).tolist() == pool.truth[pool.test].tolist()
        with pytest.raises(UsageError, match="expected red, green, zebra"):
            build(RENAMED, given)


def test_the_users_teacher_stays_as_it_is():
    mine = knowing()
    KD(net("pixels", classes=OTHER, style=STYLE), mine)
    assert mine.class_names == RGB
    assert torch.equal(mine.head.weight, knowing().head.weight)
    KD(net("pixels", classes=3, style=STYLE), mine)  # whose student has no names yet


def test_peers_and_ensembles_of_other_classes():
    with pytest.raises(UsageError, match="tells other classes apart: red, green, zebra; expected red, green, blue"):
        Teacher(knowing(), knowing(RENAMED))
    assert Teacher(knowing(None), knowing(OTHER, OTHER)).class_names == OTHER
    with pytest.raises(UsageError, match="the peer's logits stand for blue, red, green, the net's for red, green"):
        MutualLearning(knowing(), peer=knowing(OTHER))


def test_stored_logits_carry_names(tmp_path, caplog):
    pool = pool_of()
    stored = stored_logits(Teacher(knowing()), pool, tmp_path, CPU)
    assert stored.class_names == RGB
    (meta,) = tmp_path.glob("*/meta.json")
    assert json.loads(meta.read_text())["class_names"] == list(RGB)
    stored_logits(Teacher(knowing(OTHER)), pool, tmp_path, CPU)  # the same numbers, which stand for other classes
    assert len([*tmp_path.glob("*/meta.json")]) == 2
    stored.bring_into_order(OTHER)
    assert stored.logits.argmax(dim=1).tolist() == [OTHER.index(RGB[label]) for label in pool.truth.tolist()]
    with pytest.raises(UsageError, match="other classes"):
        stored.bring_into_order(RENAMED)
    save_file({"logits": stored.logits}, tmp_path / "bare.safetensors")
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        assert isinstance(load_teacher(tmp_path / "bare.safetensors", RGB, STYLE, images=len(pool)), StoredLogits)
    assert "does not name the classes of its logits" in caplog.text


# ---- exports

@pytest.mark.filterwarnings("ignore:.*torch.jit.load. is deprecated:FutureWarning")
@pytest.mark.parametrize("to", ["onnx", "torchscript", "timm"])
def test_exports_carry_names(tmp_path, capsys, to):
    if to == "onnx":
        pytest.importorskip("onnxscript")
        onnxruntime = pytest.importorskip("onnxruntime")
    name = "timm/resnet10t" if to == "timm" else "tiny_4"
    train(tmp_path, sl.Supervised(net(name, classes=RGB, style=STYLE)), pool_of(), 6, steps=1,
          config={"net": name, "data": "none", "image_size": 8})
    out = tmp_path / "exported"
    export(tmp_path, to, out)
    assert "classes: red, green, blue; " in capsys.readouterr().out
    if to == "onnx":
        text = onnxruntime.InferenceSession(out.read_bytes()).get_modelmeta().custom_metadata_map["class_names"]
    elif to == "torchscript":
        torch.jit.load(str(out), _extra_files=(names := {"class_names": ""}))
        text = names["class_names"]
    else:
        text = safetensors.safe_open(out, "pt").metadata()["class_names"]
    assert json.loads(text) == list(RGB)


# ---- splits

def test_a_split_that_is_read_again_goes_by_name(tmp_path):
    few = pool_of().split(labels=6, seed=1)
    few.write_manifest(tmp_path / "split.json")
    turned = pool_of(RGB)
    turned = replace(turned, class_names=OTHER, truth=np.array([OTHER.index(RGB[label]) for label in turned.truth]))
    again = turned.split(labeled=tmp_path / "split.json")
    assert again.labels[again.labeled].tolist() == turned.truth[again.labeled].tolist()
    assert again.labeled.tolist() == few.labeled.tolist()
    with pytest.raises(UsageError, match=r"split\.json has the classes red, green, blue, arrays red, green, zebra; "
                                         r"there is no blue"):
        replace(turned, class_names=RENAMED).split(labeled=tmp_path / "split.json")
    more = replace(turned, class_names=(*OTHER, "zebra"))  # a class was founded since
    assert more.split(labeled=tmp_path / "split.json").labels[few.labeled].tolist() == again.labels[
        few.labeled].tolist()


# ---- recipes

def folder(root: Path, names: Sequence[str]) -> Path:
    draw = np.random.default_rng(0)
    for part, number in (("train", 6), ("test", 3)):
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = (draw.integers(0, 50, (16, 16, 3)) + np.array(COLORS[RGB[label]])).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def run(name: str, *arguments: object) -> None:
    module = recipe(name)
    module.main(parse(module.Settings, [*map(str, arguments), "--net", "tiny_4", "--labeled", "6", "--device", "cpu",
                                        "--precision", "fp32", "--steps", "2"]))


def test_recipes_compare_names_on_a_folder_of_images(tmp_path, caplog):
    before = folder(tmp_path / "before", ("cat", "dog", "owl"))
    after = folder(tmp_path / "after", ("dog", "owl", "zcat"))
    cache = ("--data-dir", tmp_path / "cache")
    run("supervised", "--data", before, *cache, "--out", tmp_path / "teacher")
    distill = ("distill", "--teacher", tmp_path / "teacher", "--unlabeled", 6, *cache)
    run(*distill, "--data", before, "--out", tmp_path / "student")
    for method in ("kd", "ces_kd", "teacher_assistant"):
        with pytest.raises(UsageError, match=r"the teacher .*cat, dog, owl; expected dog, owl, zcat\. "):
            run(*distill, "--data", after, "--method", method, "--out", tmp_path / "other")
    with caplog.at_level(logging.WARNING, logger="ssl_lab"):
        run("finetune", "--from", tmp_path / "teacher", "--head", "start", "--data", after, *cache,
            "--out", tmp_path / "tuned")
        run("fixmatch", "--weights", tmp_path / "teacher" / "model.safetensors", "--data", after, *cache,
            "--unlabeled", 6, "--out", tmp_path / "again")
    assert caplog.text.count("a head for cat, dog, owl; the head for dog, owl, zcat starts afresh") == 2
