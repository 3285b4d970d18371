"""recipes/finetune.py: what of a net learns (blocks, biases, LoRA), and tuning on validation images alone."""

import copy
import json
import sqlite3
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from small_runs import assert_same_run, digits, rows
from test_features_recipe import module

import ssl_lab as sl
from ssl_lab.batch import Style
from ssl_lab.command_line import parse
from ssl_lab.data.ledger import Ledger
from ssl_lab.engine import Callback, records
from ssl_lab.engine.tune import tune, tuning_pools
from ssl_lab.errors import NonFiniteLossError, RunFailedError, UsageError
from ssl_lab.finetune import CLIP, FineTuning
from ssl_lab.nets import net
from ssl_lab.nets.lora import ALPHA, add_lora, merged
from ssl_lab.nets.start import freeze_statistics, freeze_weights, start_net
from ssl_lab.nets.stored import read_weights
from ssl_lab.notes import once

pytestmark = pytest.mark.usefixtures("few_strengths")

needs_peft = pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed")
needs_optuna = pytest.mark.skipif(not find_spec("optuna"), reason="optuna is not installed")
STYLE = Style(3, 32, 32)
NETS = ["tiny_4", "wrn_10_1", "timm/test_vit", "timm/tf_efficientnet_lite0", "timm/resnet10t"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder to start from: a net and its name."""
    folder = tmp_path_factory.mktemp("start")
    pool = digits()
    sl.Trainer(steps=2, out=folder, device="cpu", precision="fp32", callbacks=[], config={"net": "tiny_4"}).fit(
        sl.FixMatch(net("tiny_4", 10, pool.style, seed=5)), pool, 8, 16)
    return folder


def run(start, out, *arguments):
    recipe = module("recipes", "finetune")
    recipe.main(parse(recipe.Settings, ["--from", str(start), "--labels", "40", "--device", "cpu", "--precision",
                                        "fp32", "--labeled", "8", "--out", str(out), *map(str, arguments)]))
    return json.loads((out / "summary.json").read_text())


def changed(start, out):
    """The tensors of the exported net that differ from those it started from, without BatchNorm's statistics."""
    before, after = (read_weights(folder / "model.safetensors") for folder in (start, out))
    assert {key for key in before if not key.endswith("num_batches_tracked")} <= after.keys() <= before.keys()
    return {key for key in after if "running" not in key and not key.endswith("num_batches_tracked")
            and not torch.equal(before[key], after[key])}


# --- Biases ----------------------------------------------------------------------------------------


def test_biases_learn_and_weights_do_not(start, tmp_path):
    run(start, tmp_path, "--learn", "biases", "--steps", 3)
    biases = {key for key in read_weights(start / "model.safetensors") if key.endswith("bias")}
    assert changed(start, tmp_path) == biases | {"head.weight"}


def test_a_net_without_biases_is_refused():
    bare = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), (0.0,), (1.0,), "bare")
    with pytest.raises(UsageError, match="bare has no biases"):
        freeze_weights(bare)


# --- LoRA ------------------------------------------------------------------------------------------


def with_lora(name, rank=3, seed=0):
    """A net whose updates are no longer zero."""
    model = net(name, 4, STYLE, seed=1)
    add_lora(model, rank, STYLE, seed)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def layers(model):
    """LoRA's layers: name -> (W, A, B)."""
    found = {}
    for key in dict(model.backbone.named_parameters()):
        name, part, rest = key.partition(".lora_A.")
        if part:
            found[name] = tuple(model.backbone.get_parameter(f"{name}.{other}").detach() for other in (
                "base_layer.weight", f"lora_A.{rest}", f"lora_B.{rest}"))
    return found


@needs_peft
@pytest.mark.parametrize("name", NETS)
def test_at_first_the_outputs_are_those_of_the_net(name):
    plain, model, x = net(name, 4, STYLE, seed=1).eval(), net(name, 4, STYLE, seed=1), torch.rand(2, 3, 32, 32)
    add_lora(model, 3, STYLE)
    assert torch.equal(model.eval()(x).logits, plain(x).logits)
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    assert learning == {key for key in dict(model.named_parameters()) if "lora_" in key} | {"head.weight", "head.bias"}
    model.train()(x).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(value, model.state_dict().get(key, value)) for key, value in plain.state_dict().items())


@needs_peft
@pytest.mark.parametrize("name", NETS)
def test_merged_it_is_the_net_by_name_with_the_same_outputs(name):
    model, x = with_lora(name), torch.rand(2, 3, 32, 32)
    again = net(name, 4, STYLE, seed=2)
    missing, foreign = again.load_state_dict(merged(model).state_dict(), strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert not foreign
    torch.testing.assert_close(again.eval()(x).logits, model(x).logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model(x).logits, net(name, 4, STYLE, seed=1).eval()(x).logits)


@needs_peft
def test_merged_weights_against_loops():
    model = with_lora("timm/test_vit").double()
    after = merged(model).backbone
    for name, (w, a, b) in layers(model).items():
        if w.ndim == 2:
            assert (a.shape, b.shape) == ((3, w.shape[1]), (w.shape[0], 3))
            delta = torch.stack([sum(b[:, r:r + 1] * a[r] for r in range(3))])[0]
        else:  # a convolution to three channels, then one of 1x1
            delta = torch.zeros_like(w)
            for r in range(3):
                delta += b[:, r, 0, 0, None, None, None] * a[r]
        torch.testing.assert_close(after.get_parameter(f"{name}.weight"), w + ALPHA / 3 * delta)


@needs_peft
def test_which_layers_have_updates():
    vit = set(layers(with_lora("timm/test_vit")))
    assert {f"blocks.0.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")} <= vit
    lite = with_lora("timm/tf_efficientnet_lite0")
    convolutions = {key: each for key, each in net("timm/tf_efficientnet_lite0", 4, STYLE).backbone.named_modules()
                    if isinstance(each, torch.nn.Conv2d)}
    assert set(layers(lite)) == {key for key, each in convolutions.items() if each.groups == 1}
    assert len(layers(lite)) < len(convolutions)


@needs_peft
def test_layers_whose_weights_are_used_elsewhere_are_left_alone():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.borrowed = torch.nn.Linear(6, 4), torch.nn.Linear(4, 4)
            self.dilated = torch.nn.Conv2d(1, 1, 3, padding=2, dilation=2)

        def forward(self, x):
            x = self.used(self.dilated(x).flatten(1))
            return torch.nn.functional.linear(x, self.borrowed.weight)

    odd = sl.Net(Odd(), torch.nn.Linear(4, 2), (0.0,), (1.0,), "odd")
    add_lora(odd, 2, Style(1, 2, 3))
    assert set(layers(odd)) == {"used"}
    with pytest.raises(UsageError, match="no linear layer and no convolution"):
        add_lora(sl.Net(torch.nn.Flatten(), torch.nn.Linear(6, 2), (0.0,), (1.0,)), 2, Style(1, 2, 3))
    with pytest.raises(UsageError, match="rank=0"):
        add_lora(odd, 0, Style(1, 2, 3))


@needs_peft
def test_layers_are_found_where_the_net_lies():
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    model = sl.Net(backbone, torch.nn.Linear(4, 2), (0.0,), (1.0,)).to("meta")
    add_lora(model, 2, Style(1, 2, 3))
    assert set(layers(model)) == {"1"}


@needs_peft
def test_updates_start_as_a_function_of_the_seed():
    one, same, other = (layers(with_lora("tiny_4", seed=seed)) for seed in (1, 1, 2))
    for name, (_, a, _) in one.items():
        assert torch.equal(a, same[name][1])
        assert not torch.equal(a, other[name][1])


@needs_peft
@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_a_lora_run_exports_a_plain_net(start, tmp_path, method):
    summary = run(start, tmp_path, "--learn", "lora", "--rank", 2, "--steps", 4, "--method", method,
                  "--unlabeled", 8, "--lr", 0.02)
    pool = digits()
    moved = changed(start, tmp_path)
    assert {"backbone.stem.0.weight", "head.weight"} <= moved
    assert not [key for key in moved if ".norm" in key or "stem.1" in key]
    again = start_net(str(tmp_path), 10, pool.style)
    runtime = sl.Runtime.start("cpu", "fp32")
    assert sl.engine.accuracy(again, pool, pool.test, runtime) == summary["test_accuracy"]


@needs_peft
def test_a_stopped_lora_run_goes_on_exactly(start, tmp_path, monkeypatch):
    settings = ("--learn", "lora", "--steps", 6, "--lr", 0.02)
    run(start, tmp_path / "whole", *settings)
    step = sl.engine.trainer.Run.step

    def stop(self, at, parts):
        if at.step == 3:
            records.save(self, 3)
            raise KeyboardInterrupt
        return step(self, at, parts)

    monkeypatch.setattr(sl.engine.trainer.Run, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(start, tmp_path / "cut", *settings)
    monkeypatch.undo()
    run(start, tmp_path / "cut", *settings, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_without_peft_it_says_what_to_install(start, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match=r'pip install "ssl_lab\[peft\]"'):
        run(start, tmp_path, "--learn", "lora", "--steps", 1)


def test_contradictions_are_refused(start, tmp_path):
    with pytest.raises(UsageError, match="--train-blocks and --learn lora exclude each other"):
        run(start, tmp_path, "--learn", "lora", "--train-blocks", 1, "--steps", 1)
    with pytest.raises(UsageError, match="--trials needs --steps"):
        run(start, tmp_path, "--trials", 2, "--minutes", 1)


# --- Tuning ----------------------------------------------------------------------------------------


def known(pool):
    """The labels that training may use, by row."""
    return {int(row): int(pool.labels[row]) for row in pool.labeled}


def test_validation_images_come_from_the_labels_and_train_at_last():
    pool = digits(40)
    trials, last = tuning_pools(pool, seed=0)
    assert len(trials.test) == 0
    assert np.bincount(trials.truth[trials.valid]).tolist() == [1] * 10
    held = {int(row): int(pool.labels[row]) for row in trials.valid}
    assert held | known(trials) == known(pool) == known(last)
    assert not held.keys() & set(trials.train.tolist())
    assert len(last.valid) == 0
    assert np.array_equal(last.train, pool.train)
    assert np.array_equal(last.test, pool.test)
    assert not np.array_equal(tuning_pools(pool, seed=1)[0].valid, trials.valid)


def test_given_validation_images_are_used():
    pool = sl.load("digits").split(labels=40, valid=30, seed=0)
    trials, last = tuning_pools(pool, seed=0)
    assert np.array_equal(trials.valid, pool.valid)
    assert known(trials) == known(pool)
    assert known(last) == known(pool) | {int(row): int(pool.truth[row]) for row in pool.valid}
    assert np.array_equal(last.train, np.union1d(pool.train, pool.valid))


def test_labels_given_by_people_count_as_they_gave_them():
    pool = digits(40)
    rows, labels = pool.labeled, pool.labels[pool.labeled]
    ledger = Ledger()
    ledger.append(np.append(rows, pool.train[0]), np.append((labels + 1) % 10, -2), "split")
    trials, last = tuning_pools(replace(pool, ledger=ledger), seed=0)
    assert (trials.truth[trials.valid] == (pool.truth[trials.valid] + 1) % 10).all()
    assert known(last) == dict(zip(rows.tolist(), ((labels + 1) % 10).tolist(), strict=True))
    assert pool.train[0] not in last.unlabeled


def test_one_label_per_class_is_too_few_to_tune():
    with pytest.raises(UsageError, match="no class has two of the 10 labels; give more labels"):
        tuning_pools(digits(10), seed=0)


class Recorder:
    """A run whose accuracies are a function of the values; `cut` is the trial in which a kill comes."""

    def __init__(self, cut=None):
        self.calls, self.cut = [], cut

    def __call__(self, values, out, watch):
        self.calls.append((dict(values), out.name))
        best = 0.9 - 0.1 * abs(np.log10(values["lr"]) + 1) - 0.01 * abs(np.log10(values["decay"]) + 4)
        watch.start("supervised", out, 0, 9)
        for step in (2, 6, 9):
            watch.row({"step": step, "loss": 1.0})
            watch.row({"step": step, "valid_accuracy": best * step / 9})
            if len(self.calls) == self.cut:
                raise KeyboardInterrupt
        return best


SPACE = {"lr": (1e-3, 1.0), "decay": (1e-6, 1e-3)}


def study(folder):
    """(state, values) of each trial, in order, of those that ended by themselves."""
    with sqlite3.connect(folder / "study.db") as file:
        return file.execute("select state, group_concat(param_value) from trials join trial_params using (trial_id) "
                            "where state != 'FAIL' group by trial_id order by trial_id").fetchall()


@needs_optuna
def test_tuning_finds_the_best_and_gives_up_the_hopeless(tmp_path, capsys):
    recorder = Recorder()
    best = tune(recorder, SPACE, 25, tmp_path, 0, {}, resume=False)
    scored = dict.fromkeys(("COMPLETE", "PRUNED"), 0)
    for state, _ in study(tmp_path):
        scored[state] += 1
    assert sum(scored.values()) == len(recorder.calls) == 25
    assert scored["PRUNED"] > 3
    assert [name for _, name in recorder.calls] == [f"{number:03d}" for number in range(25)]
    assert 0.03 < best["lr"] < 0.3
    assert best in [values for values, _ in recorder.calls]
    for values, _ in recorder.calls:
        assert all(low <= values[name] <= high for name, (low, high) in SPACE.items())
    said = capsys.readouterr().out
    assert said.count("given up") == scored["PRUNED"]
    assert f"best: lr {best['lr']:.3g}" in said


@needs_optuna
@pytest.mark.parametrize("cut", [1, 8])
def test_a_study_that_was_cut_off_goes_on_as_if_it_had_not(tmp_path, cut):
    whole, first, rest = Recorder(), Recorder(cut), Recorder()
    best = tune(whole, SPACE, 9, tmp_path / "whole", 3, {"a": 1}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        tune(first, SPACE, 9, tmp_path / "cut", 3, {"a": 1}, resume=True)
    assert tune(rest, SPACE, 9, tmp_path / "cut", 3, {"a": 1}, resume=True) == best
    assert first.calls[-1] == rest.calls[0]  # the same trial, again
    assert first.calls[:-1] + rest.calls == whole.calls
    assert study(tmp_path / "cut") == study(tmp_path / "whole")
    more = Recorder()
    tune(more, SPACE, 11, tmp_path / "cut", 3, {"a": 1}, resume=True)
    assert len(more.calls) == 2
    with pytest.raises(UsageError, match="other settings"):
        tune(more, SPACE, 11, tmp_path / "cut", 3, {"a": 2}, resume=True)
    with pytest.raises(UsageError, match="cut holds a run that was not finished, and it is not overwritten"):
        tune(more, SPACE, 1, tmp_path / "cut", 3, {"a": 2}, resume=False)
    assert len(more.calls) == 2


@needs_optuna
def test_a_trial_that_diverges_is_worth_nothing(tmp_path):
    def diverges(values, out, watch):
        if values["lr"] > 0.05:
            raise NonFiniteLossError("nan")
        return 0.3

    assert tune(diverges, SPACE, 6, tmp_path / "some", 0, {}, resume=False)["lr"] <= 0.05


@needs_optuna
def test_where_all_trials_diverge_none_is_the_best(tmp_path):
    def diverges(values, out, watch):
        raise NonFiniteLossError("nan")

    with pytest.raises(RunFailedError, match=r"none of the 3 trials in .* gave an accuracy above zero"):
        tune(diverges, SPACE, 3, tmp_path, 0, {}, resume=False)


@needs_optuna
def test_the_recipe_tunes_on_validation_images_and_fits_on_all(start, tmp_path, monkeypatch):
    seen, fit = [], sl.Trainer.fit

    def watched(trainer, method, pool, **batches):
        seen.append((trainer, pool))
        return fit(trainer, method, pool, **batches)

    monkeypatch.setattr(sl.Trainer, "fit", watched)
    settings = ("--steps", 4, "--trials", 3)
    summary = run(start, tmp_path / "whole", *settings)
    *trials, (last, everything) = seen
    assert len(trials) == 3
    own = [json.loads((trainer.folder / "summary.json").read_text()) for trainer, _ in trials]
    for (_, pool), each in zip(trials, own, strict=True):
        assert (len(pool.labeled), len(pool.valid), len(pool.test)) == (30, 10, 0)
        assert each["test_accuracy"] is None
    assert (len(everything.labeled), len(everything.valid), summary["labels"]) == (40, 0, 40)
    best = trials[int(np.argmax([each["valid_accuracy"] for each in own]))][0].optimizer
    assert (last.optimizer.lr.name, last.optimizer.weight_decay) == (best.lr.name, best.weight_decay)
    assert float(last.config["lr"]) * float(last.config["weight_decay"]) <= 1.001e-3
    assert summary["test_accuracy"] is not None

    seen.clear()  # killed in the second trial, then in the last run
    step = sl.engine.trainer.Run.step

    def stop(self, at, parts):
        if at.step == 2 and len(seen) in (2, 5):
            records.save(self, 2)
            raise KeyboardInterrupt
        return step(self, at, parts)

    monkeypatch.setattr(sl.engine.trainer.Run, "step", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(start, tmp_path / "cut", *settings, "--resume", "auto")
    run(start, tmp_path / "cut", *settings, "--resume", "auto")
    assert [trainer.folder.name for trainer, _ in seen] == ["000", "001", "001", "002", "cut", "cut"]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert rows(tmp_path / "cut")


@needs_optuna
def test_tuning_in_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        tune(lambda *_: 0.0, SPACE, 1, tmp_path, 0, {}, resume=False)


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r'pip install "ssl_lab\[tune\]"'):
        tune(lambda values, out, watch: isinstance(watch, Callback), SPACE, 1, tmp_path, 0, {}, resume=False)


# --- How it begins ---------------------------------------------------------------------------------


def test_the_head_begins_as_the_probe(start):
    from ssl_lab.features import embed, linear_probe
    from ssl_lab.features.probe import probe_head

    pool, runtime = digits(60), sl.Runtime.start("cpu", "fp32")
    learner = start_net(str(start), 10, pool.style)
    probe_head(learner, pool, runtime)
    features = embed(learner, pool, np.arange(len(pool)), runtime)
    probs = linear_probe(features[pool.labeled], pool.labels[pool.labeled], features[pool.test], 10)
    said = sl.engine.evaluate.predict(learner, pool, pool.test, runtime).argmax(1).numpy()
    assert (said == probs.argmax(1)).mean() > 0.8  # lengths of features differ a little
    again = start_net(str(start), 10, pool.style)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in learner.state_dict().items()
               if not key.startswith("head."))


@pytest.mark.parametrize("name", ["tiny_4", "timm/tf_efficientnet_lite0"])
def test_frozen_statistics_normalize_in_training_and_stay(name):
    model, x = net(name, 4, STYLE, seed=1), torch.rand(6, 3, 32, 32)
    model.train()(x)  # statistics of some images
    before = {key: value.clone() for key, value in model.named_buffers()}
    freeze_statistics(model)
    free = [copy.deepcopy(model), model]  # as the average of the weights is a copy
    for each in free:
        each.train()
        outputs = each(x).features
        torch.testing.assert_close(outputs[:2], each(x[:2]).features)  # no image sees the others of its batch
        assert all(torch.equal(before[key], value) for key, value in each.named_buffers())
        outputs.sum().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())  # scale and shift too


def test_statistics_move_only_if_asked_to(start, tmp_path):
    def moved(*arguments):
        run(start, tmp_path / arguments[1], "--steps", 2, *arguments)
        before, after = (read_weights(folder / "model.safetensors") for folder in (start, tmp_path / arguments[1]))
        return any(not torch.equal(before[key], after[key]) for key in before if "running_mean" in key)

    assert not moved("--statistics", "frozen")
    assert moved("--statistics", "batch")


# --- What is not given ------------------------------------------------------------------------------


TIMM = "timm/tf_efficientnet_lite0"


@pytest.mark.parametrize(("name", "arguments", "expected"), [
    ("tiny_4", (), ("frozen", 0.01, 0.2)),
    ("tiny_4", ("--learn", "lora"), ("frozen", 0.01, 0.3)),
    ("tiny_4", ("--method", "fixmatch"), ("batch", 0.03, 1.0)),
    ("tiny_4", ("--method", "fixmatch", "--learn", "lora"), ("frozen", 0.03, 0.3)),  # whose BatchNorm is frozen anyway
    ("tiny_4", ("--method", "mixmatch", "--lr", 0, "--statistics", "frozen", "--backbone-rate", 0.5),
     ("frozen", 0.0, 0.5)),
    (TIMM, (), ("frozen", 0.01, 0.2)),
    (TIMM, ("--method", "fixmatch"), ("frozen", 0.01, 0.2)),
    (TIMM, ("--method", "mixmatch", "--learn", "biases"), ("frozen", 0.01, 1.0)),
    (TIMM, ("--method", "fixmatch", "--statistics", "batch", "--lr", 0.1), ("batch", 0.1, 0.2)),
])
def test_defaults_suit_the_method_and_the_net(name, arguments, expected, capsys):
    recipe = module("recipes", "finetune")
    once.cache_clear()
    bare = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), (0.0,), (1.0,), name)
    found = FineTuning.of(parse(recipe.Settings, ["--steps", "1", *map(str, arguments)])).filled(bare)
    assert (found.statistics, found.lr, found.backbone_rate) == expected
    flags = [flag for flag in ("--statistics", "--lr", "--backbone-rate") if flag not in arguments]
    said = f"{', '.join(flags)} {'says' if len(flags) == 1 else 'say'} otherwise"
    assert (said in capsys.readouterr().err) == (name == TIMM and "--method" in arguments)


def test_a_net_of_other_images_does_not_forget_what_its_head_began_with(tmp_path):
    """As it does by the statistics of each batch, and fast."""
    pool, runtime = digits(100), sl.Runtime.start("cpu", "fp32")
    known = sl.net("tiny_8", 10, pool.style, seed=2)
    known.name = "timm/tiny"
    with torch.no_grad():
        for rows in np.split(np.arange(640), 40):
            known.train()(pool.images.take(rows).float() / 510)
        for norm in (each for each in known.modules() if isinstance(each, torch.nn.BatchNorm2d)):
            draw = torch.randn(len(norm.running_mean), generator=torch.Generator().manual_seed(3))
            norm.running_mean += draw * norm.running_var.sqrt()
    right, moved = {}, {}
    for name, given in (("usual", {}), ("as a fresh one", {"statistics": "batch", "lr": 0.03, "backbone_rate": 1.0})):
        method = FineTuning("fixmatch", labeled=16, unlabeled=16, ema=0.0, **given).fit(
            copy.deepcopy(known), pool, runtime, steps=4, out=tmp_path / name, device="cpu", precision="fp32",
            callbacks=[], evaluations=1).method
        right[name] = sl.engine.accuracy(method.predictor(), pool, pool.labeled, runtime)
        state = method.predictor().state_dict()
        moved[name] = any(not torch.equal(value, state[key]) for key, value in known.state_dict().items()
                          if "running" in key)
    assert moved == {"usual": False, "as a fresh one": True}
    assert right["usual"] > right["as a fresh one"] + 0.2  # 0.73 and 0.31, where the probe has 0.84


@pytest.mark.parametrize(("given", "forward", "clip", "first"), [
    ({}, "joint", None, 0.03), ({"statistics": "frozen"}, "split", CLIP, 0.0), ({"method": "supervised"}, "joint", None,
                                                                              0.01),
    ({"statistics": "frozen", "method": "mixmatch", "clip": 3.0}, "joint", 3.0, 0.0),
    ({"statistics": "frozen", "techniques": ["sam"]}, "joint", CLIP, 0.0)])
def test_with_frozen_statistics_unlabeled_images_teach_gently(tmp_path, monkeypatch, given, forward, clip, first):
    """And views that only make targets pass by themselves, where that changes no gradient."""
    seen = []

    def fit(trainer, *_, **__):
        seen.append((trainer.forward, trainer.clip, trainer.optimizer.lr(0.0)))

    monkeypatch.setattr(sl.Trainer, "fit", fit)
    ways = {name: each for name, each in given.items() if name in ("method", "statistics")}
    others = {name: each for name, each in given.items() if name not in ways}
    pool = digits()
    FineTuning(**{"method": "fixmatch"} | ways, head="start").fit(
        net("tiny_4", 10, pool.style), pool, sl.Runtime.start("cpu", "fp32"), steps=1, out=tmp_path, **others)
    assert seen == [(forward, clip, first)]


@pytest.mark.parametrize(("arguments", "words"), [
    (("--learn", "lora", "--shard"), "leave out --shard"),
    (("--learn", "lora", "--statistics", "batch"), "--statistics batch has no effect"),
    (("--method", "simclr"), "simclr trains no classifier")])
def test_what_cannot_be_is_refused_at_once(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        run(tmp_path / "none", tmp_path, "--steps", 1, *arguments)


@pytest.mark.parametrize(("given", "said"), [
    (["--view", "strog"], "unknown view 'strog'"),
    (["--method", "fixmatch", "--view", "storng=weak"], "unknown view of fixmatch 'storng'"),
    (["--method", "fixmatch", "--view", "simclr"], "fixmatch has the views .*say which one to replace"),
    (["--optimizer", "radm"], "unknown optimizer 'radm'"),
    (["--with", "samm"], "unknown technique 'samm'"),
])
def test_texts_are_understood_before_an_image_is_read(monkeypatch, given, said):
    monkeypatch.setattr(sl, "load", None)
    recipe = module("recipes", "finetune")
    with pytest.raises(UsageError, match=said):
        recipe.main(parse(recipe.Settings, ["--steps", "3", *given]))
