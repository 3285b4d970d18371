"""Pretrain without labels, then fine-tune with few: the recipes at a tiny size, and where they start."""

import importlib.util
import json
import sys

import pytest
import torch
from small_runs import ROOT, digit_files, digits, rows
from torch import nn

import ssl_lab as sl
from ssl_lab import methods
from ssl_lab.batch import At, Style
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.features import OnlineAccuracy
from ssl_lab.features.projector import first_layer
from ssl_lab.nets import net
from ssl_lab.nets.start import freeze, start_net

METHODS = ["simclr", "byol", "simsiam", "barlow_twins", "vicreg", "moco_v2", "moco_v3"]
TINY = ("--labels", "40", "--device", "cpu", "--precision", "fp32")
STYLE = Style(3, 32, 32)


def run(name, *arguments):
    """What recipes/<name>.py does with these arguments, in this process."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.main(parse(module.Settings, [*TINY, *map(str, arguments)]))


def pretrain(out, method="simclr", *arguments):
    run("pretrain", "--method", method, "--net", "tiny_8", "--unlabeled", 16, "--out", out, *arguments)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained")
    pretrain(out, "simclr", "--steps", 4, "--online")
    return out


@pytest.mark.parametrize("method", METHODS)
def test_every_method_pretrains(tmp_path, method):
    small = {"byol": ("hidden", 16), "simsiam": ("dim", 16), "barlow_twins": ("dim", 16), "vicreg": ("dim", 16),
             "moco_v2": ("queue", 64), "moco_v3": ("hidden", 16)}.get(method, ("dim", 16))
    pretrain(tmp_path, method, "--steps", 2, "--arguments", *small)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["method"], summary["steps"], summary["test_accuracy"]) == (method, 2, None)
    assert summary["collapsed"] == 0


def test_it_says_what_it_measured(tmp_path, capsys):
    pretrain(tmp_path, "simclr", "--steps", 2, "--online")
    out, _ = capsys.readouterr()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert out.startswith("simclr on digits: ")
    assert f"knn_accuracy {summary['knn_accuracy']:.4g}" in out
    assert rows(tmp_path)[-1]["knn_accuracy"] == summary["knn_accuracy"]
    assert f"effective_rank {summary['effective_rank']:.4g}" in out


def test_large_batches_are_trained_by_lars_and_simsiams_predictor_at_a_constant_rate(tmp_path, monkeypatch):
    seen = []

    def fit(trainer, *arguments, **named):
        seen.append(trainer.optimizer)
        raise UsageError("enough")

    monkeypatch.setattr(sl.Trainer, "fit", fit)
    for method, unlabeled in (("simclr", 16), ("simclr", 1024), ("simsiam", 16)):
        with pytest.raises(UsageError, match="enough"):
            pretrain(tmp_path, method, "--unlabeled", unlabeled, "--steps", 2)
    assert [type(optimizer).__name__ for optimizer in seen[:2]] == ["SGD", "LARS"]
    assert seen[1].lr(0.05) == pytest.approx(0.3 * 1024 / 256)
    assert seen[2].rates == {"prediction": pytest.approx(0.4 * 16 / 256)}


@pytest.mark.parametrize("method", ["simclr", "dino", "swav"])
def test_short_runs_learn(tmp_path, method):
    run("pretrain", "--method", method, "--net", "tiny_8", "--unlabeled", 128, "--labels", 100, "--valid", 0.4,
        "--steps", 60, "--online", "--out", tmp_path)
    pool = sl.load("digits").split(labels=100, valid=0.4, seed=0)
    fresh = sl.Supervised(net("tiny_8", classes=pool.classes, style=pool.style, seed=0))
    before = OnlineAccuracy()(fresh, pool, sl.Runtime.start("cpu", "fp32"))["knn_accuracy"]
    assert rows(tmp_path)[-1]["knn_accuracy"] > before + 0.05


@pytest.mark.parametrize("method", ["simcir", "fixmatch"])
def test_other_methods_are_refused(tmp_path, method):
    with pytest.raises(UsageError, match=f"unknown pretraining method '{method}'"):
        pretrain(tmp_path, method, "--steps", 2)


def test_images_without_any_label_and_a_schedule_as_an_argument(tmp_path):
    (tmp_path / "images").mkdir()
    for number, (content, _) in enumerate(digit_files(24)):
        (tmp_path / "images" / f"{number}.png").write_bytes(content)
    pretrain(tmp_path / "run", "byol", "--data", tmp_path / "images", "--labels", None, "--steps", 2, "--online",
             "--arguments", "hidden", 16, "tau", "linear(0.9,1)")
    assert json.loads((tmp_path / "run/summary.json").read_text())["labels"] == 0
    assert start_net(str(tmp_path / "run"), 10, digits().style).classes == 10  # to be fine-tuned for any classes


def test_its_weights_are_a_net(pretrained):
    pool = digits()
    loaded = net("tiny_8", classes=pool.classes, style=pool.style, weights=pretrained / "model.safetensors")
    fresh = net("tiny_8", classes=pool.classes, style=pool.style, seed=0)
    assert not torch.equal(loaded.backbone.stem[0].weight, fresh.backbone.stem[0].weight)
    assert torch.equal(loaded.head.weight, fresh.head.weight)


@pytest.mark.parametrize("where", ["folder", "file"])
@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_finetuning_starts_from_the_run(tmp_path, pretrained, where, method):
    """With a learning rate of 0, what it exports is what it started from."""
    start = pretrained if where == "folder" else pretrained / "model.safetensors"
    run("finetune", "--from", start, "--method", method, "--steps", 1, "--lr", 0, "--labeled", 8, "--unlabeled", 16,
        "--head", "start", "--out", tmp_path)
    pool = digits()
    before, after = (net("tiny_8", pool.classes, pool.style, weights=folder / "model.safetensors").state_dict()
                     for folder in (pretrained, tmp_path))
    learned = [key for key in before if key.endswith("weight")]
    assert all(torch.equal(before[key], after[key]) for key in learned)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["method"], summary["labels"]) == (method, 40)


def test_finetuning_a_frozen_backbone(tmp_path, pretrained):
    run("finetune", "--start", pretrained, "--train-blocks", 0, "--steps", 3, "--labeled", 8, "--out", tmp_path)
    pool = digits()
    before, after = (net("tiny_8", pool.classes, pool.style, weights=folder / "model.safetensors").state_dict()
                     for folder in (pretrained, tmp_path))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if not key.endswith("num_batches_tracked")} - same == {"head.weight", "head.bias"}


def test_the_backbone_has_a_rate_of_its_own(tmp_path, pretrained, monkeypatch):
    seen, fit = [], sl.Trainer.fit

    def watched(trainer, *arguments, **named):
        seen.append(trainer.optimizer)
        return fit(trainer, *arguments, **named)

    monkeypatch.setattr(sl.Trainer, "fit", watched)
    run("finetune", "--from", pretrained, "--lr", 0.4, "--backbone-rate", 0.25, "--steps", 1, "--labeled", 8,
        "--out", tmp_path)
    assert At(0, 10).value(seen[0].rates["net.backbone"]) == pytest.approx(0.1)
    assert rows(tmp_path)[0]["lr"] == pytest.approx(0.4)


def test_its_config_repeats_it(tmp_path, pretrained):
    run("finetune", "--from", pretrained, "--steps", 2, "--labeled", 8, "--out", tmp_path / "a")
    run("finetune", "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b")
    assert ((tmp_path / "a" / "model.safetensors").read_bytes()
            == (tmp_path / "b" / "model.safetensors").read_bytes())


# --- Where a net starts -----------------------------------------------------------------------------


def test_a_file_elsewhere_needs_its_net_named(tmp_path, pretrained):
    (tmp_path / "net.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    pool = digits()
    assert start_net(str(tmp_path / "net.safetensors"), 10, pool.style, "tiny_8").name == "tiny_8"
    with pytest.raises(UsageError, match="do not fit tiny_16"):
        start_net(str(tmp_path / "net.safetensors"), 10, pool.style)


def test_a_timm_model_enters_with_fresh_weights_and_with_a_file(tmp_path):
    fresh = start_net("timm/resnet10t", 5, STYLE, seed=1)
    assert fresh.classes == 5
    torch.save(fresh.backbone.state_dict(), tmp_path / "weights.pt")
    loaded = start_net("timm/resnet10t", 7, STYLE, weights=tmp_path / "weights.pt", seed=2)
    assert torch.equal(fresh.backbone.conv1[0].weight, loaded.backbone.conv1[0].weight)


@pytest.mark.parametrize(("start", "options", "words"), [
    ("no/such/run", {}, "there is no no/such/run to start from"), (".", {}, "there is no model.safetensors"),
    ("runs/pretrain", {"pretrained": True}, "brings its own weights")])
def test_bad_starts_are_refused(tmp_path, monkeypatch, start, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        start_net(start, 10, STYLE, **options)


@pytest.mark.parametrize(("name", "last"), [("tiny_4", "blocks.2"), ("wrn_10_1", "blocks.2"),
                                            ("timm/resnet10t", "layer4"), ("timm/mobilenetv3_small_050", "blocks.5"),
                                            ("timm/vit_tiny_patch16_224", "blocks.11")])
def test_freezing_all_but_the_last_block(name, last):
    model = net(name, 3, STYLE)
    freeze(model, 1)
    learning = [key for key, p in model.backbone.named_parameters() if p.requires_grad]
    everything = [key for key, _ in model.backbone.named_parameters()]
    first = next(number for number, key in enumerate(everything) if key.startswith(f"{last}."))
    assert learning == everything[first:]
    assert first > 0
    assert all(p.requires_grad for p in model.head.parameters())


def test_frozen_blocks_keep_their_statistics():
    """In train mode their output is that of eval mode."""
    model = net("tiny_4", 3, STYLE)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
    x = torch.rand(4, 3, 32, 32)
    expected = model.eval()(x).features
    freeze(model, 0)
    model.train()
    torch.testing.assert_close(model(x).features, expected)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    partly = net("tiny_4", 3, STYLE)
    freeze(partly, 3)
    assert not partly.backbone.stem[0].weight.requires_grad
    assert all(p.requires_grad for p in partly.backbone.blocks.parameters())


@pytest.mark.parametrize("blocks", [-1, 4])
def test_blocks_that_are_not_there(blocks):
    with pytest.raises(UsageError, match="tiny_4 has 3 blocks"):
        freeze(net("tiny_4", 3, STYLE), blocks)


# --- From the first layer of the projector ----------------------------------------------------------


@pytest.mark.parametrize(("method", "layers"), [("simclr", 2), ("byol", 3), ("barlow_twins", 3)])
def test_the_first_layer_is_that_of_the_projector(method, layers):
    pool = digits()
    learner = methods.get(method)(net("tiny_4", 10, pool.style), **({} if method == "simclr" else {"hidden": 12}))
    for norm in (module for module in learner.projector if isinstance(module, nn.BatchNorm1d)):
        for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            values.uniform_(0.5, 2)
    features = torch.randn(5, learner.net.features_dim)
    weight, bias = first_layer(learner.state_dict())
    expected = learner.projector.eval()[:layers](features.clone())
    torch.testing.assert_close((features @ weight.T + bias).clamp(min=0), expected)


def test_fine_tuning_from_the_projector(pretrained, tmp_path):
    run("finetune", "--from", pretrained, "--projector", "--steps", 2, "--labeled", 8, "--out", tmp_path)
    begun, pool = start_net(str(pretrained), 10, digits().style), digits()
    tuned = start_net(str(tmp_path), 10, pool.style)
    assert tuned.name == f"tiny_8+{begun.features_dim}"
    still = tmp_path / "still"
    run("finetune", "--from", pretrained, "--projector", "--steps", 2, "--labeled", 8, "--lr", 0, "--out", still)
    tuned = start_net(str(still), 10, pool.style).eval()
    weight, bias = first_layer(torch.load(pretrained / "checkpoint.pt", weights_only=True)["method"])
    images = pool.images.take(pool.test[:6]).float() / 255
    expected = (begun.eval()(images).features @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(tuned(images).features, expected)


def test_a_run_without_projector_is_refused(pretrained, tmp_path):
    run("finetune", "--from", pretrained, "--steps", 2, "--labeled", 8, "--out", tmp_path / "tuned")
    with pytest.raises(UsageError, match="tuned holds no checkpoint with a projector"):
        run("finetune", "--from", tmp_path / "tuned", "--projector", "--steps", 2, "--out", tmp_path / "again")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "model.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match="alone holds no checkpoint with a projector"):
        run("finetune", "--from", tmp_path / "alone" / "model.safetensors", "--net", "tiny_8", "--projector", "--steps",
            2, "--out", tmp_path / "again")
