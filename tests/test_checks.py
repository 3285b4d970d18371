"""What would fail in the first step, or cannot be learned, is said before a run begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import assert_same_run, digits, train, with_teacher
from test_recipes import recipe

from ssl_lab.command_line import parse
from ssl_lab.engine import trainer
from ssl_lab.errors import UsageError
from ssl_lab.methods import METHODS
from ssl_lab.nets import net

ONE = {"labeled": 1, "unlabeled": 1}


@pytest.mark.parametrize("name", ["byol", "simsiam", "moco_v3", "barlow_twins", "vicreg", "nnclr"])
@pytest.mark.parametrize("parts", [{"unlabeled": 1}, {"unlabeled": 4, "micro_batches": 4},
                                   {"unlabeled": 1, "micro_batches": "auto"}])
def test_batchnorm_of_a_vector_needs_two_images(tmp_path: Path, name: str, parts: dict[str, object]) -> None:
    pool = digits()
    (tmp_path / "model.safetensors").write_text("of the run before")
    method = METHODS[name](net("tiny_4", style=pool.style))
    with pytest.raises(UsageError, match=rf"{name} normalizes .*2 images or more \(--labeled, --unlabeled"):
        train(tmp_path, method, pool, steps=2, resume="auto", **parts)
    assert (tmp_path / "model.safetensors").read_text() == "of the run before"


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "mean_teacher", "simclr", "kd"])
def test_one_image_is_enough_for_others_and_the_trial_leaves_no_trace(
        tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = digits()
    build = with_teacher(METHODS[name]) if name == "kd" else METHODS[name]
    train(tmp_path / "trial", build(net("tiny_4", style=pool.style)), pool, steps=2, **ONE)
    monkeypatch.setattr(trainer.Timed, "settle", lambda timed, _: vars(timed).update(micro_batches=1, steps=2))
    train(tmp_path / "plain", build(net("tiny_4", style=pool.style)), pool, steps=2, **ONE)
    assert_same_run(tmp_path / "trial", tmp_path / "plain")


def test_a_map_of_one_pixel_needs_two_images(tmp_path: Path) -> None:
    pool = digits()
    with pytest.raises(UsageError, match="supervised normalizes"):
        train(tmp_path, METHODS["supervised"](net("timm/resnet10t", style=pool.style)), pool, labeled=1, steps=2)


@pytest.mark.parametrize(("name", "arguments"), [
    ("supervised", ()), ("fixmatch", ()), ("consistency", ("--method", "flexmatch")), ("compare", ()), ("features", ()),
    ("finetune", ("--from", "timm/resnet10t")), ("openset", ()), ("distill", ()),
    ("active", ()), ("active_benchmark", ()),
])
def test_recipes_say_that_there_are_no_labels(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    (tmp_path / "images").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
    module = recipe(name)
    steps = () if name == "features" else ("--steps", "2")
    with pytest.raises(UsageError, match=r"no image has a label|no test image with a label|has no .*label|no train i"):
        module.main(parse(module.Settings, ["--data", str(tmp_path / "images"), "--data-dir", str(tmp_path / "cache"),
                                            "--out", str(tmp_path / "out"), "--device", "cpu", *steps, *arguments]))
