"""Techniques: the contract, what is listed, texts, conflicts, recipes, and a technique of one's own."""

import inspect
import json
import re
import sys
from typing import ClassVar

import pytest
import torch
import yaml
from small_runs import assert_same_run, digits, flat_net, rows, tiny_net, train
from test_recipes import recipe, run

import ssl_lab as sl
from ssl_lab import notes
from ssl_lab.command_line import parse
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.finetune import FineTuning
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.optim import SGD, AdamW
from ssl_lab.schedule import linear
from ssl_lab.techniques import TECHNIQUES, WeightsTechnique, technique, together
from ssl_lab.testing import check_technique

CPU = Runtime(torch.device("cpu"), "fp32", "asked")
# The texts with which a technique does something in four steps, where not its name alone; and what turns it off.
TEXTS = {
    "swa": "swa(start=0.5)",
    "pof": "pof(after=0)",
    "svi": "svi(until=1)",
    "lookahead": "lookahead(k=2)",
    "dropout": "dropout(blocks=0.2)",
    "gradinit": "gradinit(steps=2)",
    "gradmax": "gradmax(times=2)",
    "adversarial": "adversarial(steps=2)",
    "sat": "sat(steps=2, gap=0.1)",
    "perturbation_margin": "perturbation_margin(radius=0.01)",
    "lottery": "lottery(rounds=1, rewind=0.5)",
    "rigl": "rigl(density=0.5, every=2)",
    "taylor": "taylor(rounds=2)",
}
COMPILED = {"weight_norm", "ldam", "hero", "layerwise_reinit"}  # one of each kind that meets nets: it takes seconds
OFF = {
    "sam": "sam(rho=0)",
    "noise_consistency": "noise_consistency(weight=0)",
    "drop_path": "drop_path(rate=0)",
    "dropout": "dropout(rate=0.0)",
    "gradinit": "gradinit(steps=0)",
    "lookahead": "lookahead(k=2, alpha=1.0)",
    "reinit": "reinit(generations=1)",
    "gradmax": "gradmax(share=0.0)",
    "layerwise_reinit": "layerwise_reinit(rounds=0)",
    "shrink_perturb": "shrink_perturb(keep=1.0, noise=0.0)",
    "gnp": "gnp(alpha=0)",
    "replicated_sgd": "replicated_sgd(replicas=1)",
    "hero": "hero(radius=0, weight=0)",
    "pof": "pof(after=1)",
    "svi": "svi(until=0)",
    "cyclical_focal": "cyclical_focal(confident=0, hard=0)",
    "temperature": "temperature(value=1)",
    "class_weights": "class_weights(power=0)",
    "ldam": "ldam(margin=0, scale=None, beta=0)",
    "vs": "vs(gamma=0, tau=0, beta=0)",
    "deep_supervision": "deep_supervision(weight=0)",
    "batch_entropy": "batch_entropy(weight=0)",
    "relay": "relay(reach=9, weight=0)",
    "mixup": "mixup(alpha=0)",
    "cutmix": "cutmix(chance=0)",
    "prior_correction": "prior_correction(strength=0)",
    "swa": "swa(start=1)",
    "weight_rescaling": "weight_rescaling(every=9)",
    "adversarial": "adversarial(radius=0)",
    "sat": "sat(radius=0)",
    "second_order": "second_order(radius=0)",
    "cure": "cure(weight=0)",
    "perturbation_margin": "perturbation_margin(weight=0)",
    "corrupt_labels": "corrupt_labels(share=0)",
    "head_norm": "head_norm",
    "rigl": "rigl(density=1, every=2)",
    "noise_tempering": "noise_tempering(weights=32, inputs=32)",
    "qnn": "qnn(weights=32, inputs=32)",
    "satnl": "satnl(deviations=0)",
    "symreg": "symreg(weight=0)",
    "slimming": "slimming(ratio=0.0, weight=0)",
    "taylor": "taylor(ratio=0.0)",
}


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if name != "dp"])  # of no method there: see test_dp.py
def test_contract(name):
    if name in ("slimming", "taylor"):
        pytest.importorskip("torch_pruning", reason='needs torch-pruning: pip install "ssl_lab[compress]"')
    off = OFF.get(name)
    check_technique(technique(TEXTS.get(name, name)), off=technique(off) if off else None, compile=name in COMPILED,
                    net="rapid_4_4_4" if name == "whiten" else "tiny_4")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_has_one_kind_a_paper_and_a_text_that_is_read_again(name):
    kind = TECHNIQUES[name]
    assert kind.name == name
    assert kind.kind in ("net", "term", "step", "weights", "data")
    assert kind.__module__ == f"ssl_lab.techniques.{kind.kind}.{inspect.getfile(kind).rpartition('/')[2][:-3]}"
    assert kind.paper
    for text in filter(None, (name, TEXTS.get(name), OFF.get(name))):
        made = technique(text)
        assert made.text == technique(made.text).text


def test_texts():
    assert technique("sam").text == "sam"
    assert technique("sam(0.1, parts=2)").text == technique("sam(parts=2,rho=0.1)").text == "sam(rho=0.1, parts=2)"
    assert technique("sam(rho=linear(0.1,0.2))").text == "sam(rho=linear(0.1, 0.2, until=1.0))"
    assert sl.SAM(0.1).text == "sam(rho=0.1)"


@pytest.mark.parametrize(("text", "words"), [
    ("samm", "unknown technique 'samm'. Did you mean .*sam"),
    ("sam(radius=1)", r"sam: .*radius.*; its arguments are \(rho, parts, after\)"),
    ("sam(parts=0)", "parts=0.*expected 1 part or more"),
    ("sam(rho=", "describes no technique; expected a name"),
    ("linear(0, 1)", "unknown technique"),
    ("nowhere:Thing", "cannot load the technique 'nowhere:Thing'"),
    ("ssl_lab.techniques:Around", "not a subclass"),
])
def test_a_text_that_describes_none(text, words):
    with pytest.raises(UsageError, match=words) as refused:
        technique(text)
    assert "\n" not in str(refused.value)


class Careful(sl.techniques.DataTechnique):
    name, paper, arxiv = "careful", "None", ""
    excludes: ClassVar = {"oversample": "both say what is drawn"}

    def __call__(self, pool, seed):
        return pool


class Other(sl.SAM):
    name = "other"


@pytest.mark.parametrize(("given", "words"), [
    (["sam", "sam(rho=0.1)"], r"sam and sam\(rho=0.1\) are the same technique"),
    ([Other(), "sam"], "Other and sam are both rules for a whole step; give one of them"),
    (["oversample", Careful()], "oversample and .*Careful exclude each other: both say what is drawn"),
])
def test_techniques_that_exclude_each_other_are_named(given, words):
    with pytest.raises(UsageError, match=words):
        together(given)
    with pytest.raises(UsageError, match=words):
        sl.Trainer(steps=1, techniques=given).fit(Supervised(flat_net()), digits())


@pytest.mark.parametrize("name", [name for name, kind in TECHNIQUES.items() if issubclass(kind, WeightsTechnique)])
@pytest.mark.parametrize("rule", ["entropy_sgd", "replicated_sgd", "sam"])
def test_copies_of_weights_and_what_writes_into_weights_exclude_each_other(rule, name):
    given = [name, rule]
    if rule == "sam" or name in ("swa", "prior_correction"):
        assert together(given).texts == given
    else:
        with pytest.raises(UsageError, match=f"{name} and {rule} exclude each other: one keeps copies of the weights"):
            together(given)


@pytest.mark.parametrize(("method", "settings", "words"), [
    (Supervised, {"techniques": ["drop_path"]}, r"drop_path changes the net before .* sl.prepared\(net"),
    (Supervised, {"techniques": ["sam"], "update": sl.optim.plain}, "sam and update=.*both rules"),
    (sl.SimCLR, {"techniques": ["oversample"]}, "oversample draws labeled images, and simclr takes none"),
    (sl.SimCLR, {"techniques": ["noise_consistency"]}, "noise_consistency compares .* simclr trains no classifier"),
    (Supervised, {"techniques": ["sam(parts=3)"]}, "8 images does not divide into 3 parts"),
])
def test_what_cannot_be_is_said(tmp_path, method, settings, words):
    with pytest.raises(UsageError, match=words):
        train(tmp_path, method(flat_net()), **settings)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("text", ["gradinit(steps=2)", "weight_norm", "ldam", "shrink_perturb", "layerwise_reinit",
                                  "gradmax", "reinit(blocks=1)", "reinit(blocks=None)"])
def test_what_becomes_of_learned_weights_is_said(text, capsys):
    for origin, words in (("", []), ("runs/old", [f"note: {text} ", "tiny_8 has learned its own (runs/old); without"])):
        notes.once.cache_clear()
        net = tiny_net(digits())
        net.origin = origin
        net = sl.prepared(net, [text], digits())
        together([text]).check(Supervised(net), digits(), None, False)
        said = capsys.readouterr().err
        assert len(said.splitlines()) == len(words[:1])
        assert all(word in said for word in words)


@pytest.mark.parametrize("text", ["autoinit", "rewire"])
def test_what_would_leave_nothing_of_learned_weights_is_refused(tmp_path, text):
    train(tmp_path, Supervised(tiny_net(digits())), steps=1, evaluations=1)
    learned = sl.net("tiny_8", 10, digits().style, weights=tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=rf"{text} .*, and tiny_8 has learned its own \(.*model.safetensors\); leave"):
        sl.prepared(learned, [text], digits())
    assert train(tmp_path / "net", steps=1, evaluations=1).method.predictor().origin == str(tmp_path / "net")


@pytest.mark.parametrize("name", TECHNIQUES)
def test_where_nothing_turns_one_off_its_docstring_says_so(name):
    said = " ".join(str(TECHNIQUES[name].__doc__).split())
    assert name in OFF or re.search(r"turns it off|no plain step|it is the plain run", said)


def test_what_does_nothing_overwrites_nothing():
    assert [text for text in OFF.values() if technique(text).overwrites] == []


def test_a_run_says_what_it_was_trained_with(tmp_path):
    result = train(tmp_path, Supervised(flat_net()), steps=2, techniques=[sl.SAM(0.1), "swa"])
    assert result.summary["techniques"] == ["sam(rho=0.1)", "swa"]
    assert result.summary["method"] == "supervised"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["techniques"] == ["sam(rho=0.1)", "swa"]
    with pytest.raises(UsageError, match=r"other settings \(techniques: \['sam\(rho=0.1\)', 'swa'\] -> \['swa'\]"):
        train(tmp_path, Supervised(flat_net()), steps=2, techniques=["swa"], resume="auto")
    plain = train(tmp_path / "plain", Supervised(flat_net()), steps=2)
    assert "techniques" not in plain.summary


class Zeroing(WeightsTechnique):
    """Sets the head's weights to zero after each step, and says so."""

    name, paper, arxiv = "zeroing", "None", ""

    def after_step(self, at):
        super().after_step(at)
        with torch.no_grad():
            self.net.head.weight.zero_()

    def edited(self):
        return [*super().edited(), self.net.head.weight]


@pytest.mark.parametrize("optimizer", [SGD(), AdamW(), sl.optim.LARS()])
def test_the_optimizer_forgets_the_momenta_of_what_is_edited(tmp_path, optimizer):
    result = train(tmp_path, Supervised(flat_net()), steps=3, optimizer=optimizer, techniques=[Zeroing()])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    names = [name for group in optimizer.build(result.method).param_groups for name in group["params"]]
    head = next(i for i, p in enumerate(names) if p is result.method.net.head.weight)
    assert set(saved["optimizer"]["state"]) == {*range(len(names))} - {head}


class Nothing(WeightsTechnique):
    name, paper, arxiv = "nothing", "None", ""


def test_a_method_around_a_method_is_that_method(tmp_path):
    make = lambda: FixMatch(tiny_net(digits()), threshold=0.1)  # noqa: E731
    plain = train(tmp_path / "plain", make(), steps=3, evaluations=1)
    again = train(tmp_path / "again", make(), steps=3, evaluations=1, techniques=[Nothing()])
    assert rows(plain.out) == rows(again.out)
    around, base = again.method, again.method.base
    assert (around.net, around.ema, around.predictor(), around.views) == (base.net, base.ema, base.ema.net, base.views)
    assert {name.removeprefix("base."): value.shape for name, value in around.state_dict().items()} == {
        name: value.shape for name, value in plain.method.state_dict().items()}
    rates = sl.optim.with_rates(SGD(), {"net.head": 0.5})  # parts go by the names that they have in the method
    assert [group["part"] for group in rates.build(around).param_groups] == [None, "net.head", None, "net.head"]


# The command line


def test_recipes_take_them(tmp_path, capsys):
    flags = ("--steps", 2, "--unlabeled", 16, "--with", "sam(0.1)", "--with", "drop_path(rate=0.2)")
    run("fixmatch", *flags, "--out", tmp_path / "first")
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert config["techniques"] == ["sam(rho=0.1)", "drop_path(rate=0.2)"]
    module = recipe("fixmatch")
    module.main(parse(module.Settings, ["--config", str(tmp_path / "first" / "config.yaml"),
                                        "--out", str(tmp_path / "again")]))
    assert_same_run(tmp_path / "first", tmp_path / "again")
    with pytest.raises(UsageError, match=r"started with other settings .*techniques"):
        run("fixmatch", *flags[:-2], "--out", tmp_path / "first", "--resume", "auto")


def test_recipes_take_an_optimizer(tmp_path, capsys):
    run("supervised", "--steps", 2, "--optimizer", "muon(lr=0.25)", "--out", tmp_path / "muon")
    assert rows(tmp_path / "muon")[0]["lr"] == 0.25
    config = yaml.safe_load((tmp_path / "muon" / "config.yaml").read_text())
    assert config["optimizer"] == "muon(lr=0.25)"
    with pytest.raises(UsageError, match=r"optimizer: 'muon\(lr=0.25\)' -> 'radam'"):
        run("supervised", "--steps", 2, "--optimizer", "radam", "--out", tmp_path / "muon", "--resume", "auto")


def test_fine_tuning_takes_them_and_an_optimizer(tmp_path):
    settings = {"steps": 1, "out": tmp_path, "device": "cpu", "precision": "fp32", "callbacks": [], "evaluations": 1}
    way = FineTuning(head="start", optimizer="adamw(lr=0.5)", backbone_rate=0.1, labeled=8)
    result = way.fit(tiny_net(digits()), digits(), CPU, **settings, techniques=["sam", "drop_path"])
    assert rows(tmp_path)[0]["lr"] == 0.5
    assert result.method.net.prepared == ("drop_path",)
    groups = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {(group["part"], group["lr"]) for group in groups} == {(None, 0.5), ("net.backbone", 0.05)}
    way = FineTuning(head="start", lr=linear(0.5, 0.1), weight_decay=linear(0.1, 0.2), backbone_rate=0.1, labeled=8)
    way.fit(tiny_net(digits()), digits(), CPU, **settings | {"out": tmp_path / "schedules"})
    groups = torch.load(tmp_path / "schedules" / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.5, 0.1), (0.5, 0), (0.05, 0.1), (0.05, 0)}
    with pytest.raises(UsageError, match="--learn lora merges its updates into the net at the end, and swa puts"):
        FineTuning(learn="lora").fit(tiny_net(digits()), digits(), CPU, techniques=["swa"])


@pytest.mark.parametrize("name", ["evaluate", "features"])
def test_recipes_that_train_no_method_take_none(name):
    with pytest.raises(UsageError, match="--with sam changes how a method trains, and this recipe trains none"):
        parse(recipe(name).Settings, ["--with", "sam"])
    for flags in (["--clip", "1"], ["--batch", "0.5"]):
        with pytest.raises(UsageError, match="--clip and --batch change how a method trains, and this recipe"):
            parse(recipe(name).Settings, flags)


OWN = """
import ssl_lab as sl

class Louder(sl.techniques.TermTechnique):
    name, paper, arxiv = "louder", "Mine", ""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, batch, at):
        loss = super().forward(batch, at)
        loss.terms["labeled"] = self.factor * loss.terms["labeled"]
        return loss

class Still(sl.SGD):
    pass
"""


def test_a_technique_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    run("supervised", "--steps", 1, "--out", "plain")
    run("supervised", "--steps", 1, "--with", "mine:Louder(factor=3)", "--optimizer", "mine:Still(lr=0)", "--out",
        "louder")
    plain, louder = (rows(tmp_path / name)[0]["loss"] for name in ("plain", "louder"))
    assert louder == pytest.approx(3 * plain)
    summary = json.loads((tmp_path / "louder" / "summary.json").read_text())
    assert summary["techniques"] == ["mine:Louder(factor=3)"]
    module = recipe("supervised")
    with pytest.raises(UsageError, match="would run a program or import a module"):
        parse(module.Settings, ["--config", "louder/config.yaml"])
    own = ["--with", "mine:Louder(factor=3)", "--optimizer", "mine:Still(lr=0)"]
    assert parse(module.Settings, ["--config", "louder/config.yaml", *own]).techniques == ("mine:Louder(factor=3)",)
    assert rows(tmp_path / "louder")[0]["lr"] == 0
