"""Views by name: what texts describe, how methods and recipes take them, what runs say of them and hold to."""

import dataclasses
import sys
import threading
from functools import partial

import kornia.augmentation as K
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from small_runs import tiny_net
from test_recipes import recipe

import ssl_lab as sl
from ssl_lab import build, methods, notes
from ssl_lab.batch import Style
from ssl_lab.begun import Begun
from ssl_lab.command_line import parse
from ssl_lab.engine import Feed
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import UsageError
from ssl_lab.train import train
from ssl_lab.views import VIEWS, SimCLRView, Strong, Weak, by_name, kornia, named, torchvision
from ssl_lab.views.naming import built, text_of

MODULE = """
import kornia.augmentation as K
import numpy as np
import torch
import ssl_lab as sl

mine = sl.views.kornia(K.RandomInvert(p=0.5))
PIPELINE = K.ImageSequential(K.RandomInvert(p=0.5))

class Dim:
    mirrors = False

    def __init__(self, style, by=0.5):
        self.by = by

    def __call__(self, images, draw):
        return images / 255 * self.by

class Halves(Dim):
    def __call__(self, images, draw):
        return images[:, :, ::2] / 255

class Bytes(Dim):
    def __call__(self, images, draw):
        return images

class Breaks(Dim):
    def __call__(self, images, draw):
        return np.nothing

class Alike(Dim):
    def __call__(self, images, draw):
        return images / 255 * draw.uniform()[0]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of one's own, in the current folder."""
    (tmp_path / "my_views.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_views", None)


def views_of(method):
    return {name: view for kind in method.views.by_kind.values() for name, view in kind.items()}


# --- texts ---

@pytest.mark.parametrize("text", [*VIEWS, "strong(ops=3)", "strong(ops=3, cutout=0.25)", "simclr(blur=1.0)"])
def test_a_text_names_a_view_and_is_read_back(text):
    factory = named(text)
    assert text_of(factory) == text
    assert text_of(named(text_of(factory))) == text


@pytest.mark.parametrize(("text", "words"), [
    ("stron", "unknown view 'stron'. Did you mean strong"),
    ("strong(opps=3)", "unexpected keyword argument 'opps'; its arguments are"),
    ("strong(3)", "a view's arguments have names"),
    ("strong(", "describes no view"),
    ("no_such_module_xy:Mine", "cannot load the view 'no_such_module_xy:Mine'"),
    ("strong=weak", "describes no view"),
])
def test_a_text_of_no_view_is_refused(text, words):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        named(text)


def test_a_name_is_given_one_view():
    assert by_name(["weak=simclr", " strong = strong(ops=3)"])["weak"] is SimCLRView
    assert by_name(["strong(ops=3)"])[""].keywords == {"ops": 3}
    with pytest.raises(UsageError, match="strong is given twice"):
        by_name(["strong=weak", "strong=simclr"])


def test_what_tells_views_apart_holds_in_another_process():
    assert text_of(kornia(K.RandomInvert(p=0.25))) == text_of(kornia(K.RandomInvert(p=0.25)))
    assert text_of(kornia(K.RandomInvert(p=0.25))) != text_of(kornia(K.RandomInvert(p=0.5)))
    assert "0x" not in text_of(torchvision(lambda image: image))
    assert text_of(partial(Strong, ops=3)) == "strong(ops=3)"


# --- methods ---

@pytest.mark.parametrize("name", ["fixmatch", "remixmatch", "simclr", "supervised", "s4l", "hiermatch", "rotation"])
def test_every_method_takes_others(name):
    pool = sl.load("digits").split(labels=20)
    arguments = {"parents": [[0] * 5 + [1] * 5]} if name == "hiermatch" else {}
    method = build.method(name, tiny_net(pool), pool, arguments)
    for view in list(views_of(method)):
        assert views_of(method.with_views(**{view: "eval"}))[view] is sl.Eval
    assert set(views_of(method).values()) == {sl.Eval}
    assert set(views_of(method.with_views("weak")).values()) == {Weak}  # all are the same now


def test_a_name_reaches_labeled_and_unlabeled_images_and_every_draw():
    pool = sl.load("digits").split(labels=20)
    method = sl.AdaMatch(tiny_net(pool)).with_views("strong=simclr", weak=kornia(K.RandomInvert()))
    assert method.views.labeled["strong"] is method.views.unlabeled["strong"] is SimCLRView
    assert method.views.labeled["weak"] is method.views.unlabeled["weak"] is not Weak
    mixmatch = sl.MixMatch(tiny_net(pool)).with_views("weak=strong", "weak_2=simclr").views
    assert (mixmatch.labeled["weak"], *mixmatch.unlabeled.values()) == (Strong, Strong, SimCLRView)
    assert sl.AdaMatch.views.labeled["strong"] is Strong, "the class is left alone"


@pytest.mark.parametrize(("given", "words"), [
    (["medium=weak"], "unknown view of fixmatch 'medium'. Known: strong, weak"),
    (["strong(ops=3)"], "fixmatch has the views weak, strong; say which one to replace, as in --view strong=simclr"),
])
def test_views_that_a_method_does_not_have_are_refused(given, words):
    method = sl.FixMatch(tiny_net(sl.load("digits")))
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        method.with_views(*given)


# --- one's own ---

def test_own_views_by_name(mine):
    style = Style(1, 8, 8, (0.5,), (0.5,))
    images = torch.full((2, 1, 8, 8), 200, dtype=torch.uint8)
    draw = sl.At(0, 1).draw("x", 2)
    assert torch.equal(built("strong", named("my_views:Dim(by=0.25)"), style)(images, draw), images / 255 * 0.25)
    assert repr(built("strong", named("my_views:mine"), style)) == "kornia(RandomInvert)"
    assert text_of(named("my_views:Dim")) == "my_views:Dim"
    with pytest.raises(UsageError, match=r"is a module, and no view: write sl.views.kornia"):
        named("my_views:PIPELINE")


@pytest.mark.parametrize(("name", "words"), [
    ("Halves", r"the result has shape \[8, 1, 4, 8\]"), ("Bytes", "the result is torch.uint8"),
    ("Breaks", "AttributeError: module 'numpy'"),
    ("Dim(by=2)", r"values from 0 to 2, expected \[0, 1\]")])
def test_own_views_that_make_no_images_are_refused(mine, name, words):
    with pytest.raises(UsageError, match=f"view strong: .*{words}"):
        built("strong", named(f"my_views:{name}"), Style(1, 8, 8, (0.5,), (0.5,)))


def test_own_views_that_break_the_rest_of_the_contract_run_with_a_word(mine, capsys):
    built("strong", named("my_views:Alike"), Style(1, 8, 8, (0.5,), (0.5,)))
    assert "note: view <my_views.Alike" in (said := capsys.readouterr().err)
    assert "other pixels than one" in said or "one decision" in said


# --- runs ---

def line(pool, **views):
    method = sl.FixMatch(tiny_net(pool)).with_views(**views)
    return Feed(pool, method.views, 8, 8, 0, torch.device("cpu")).said


def test_a_run_says_which_views_it_has_and_whether_they_mirror(mine):
    few = sl.load("digits").split(labels=20)
    may = sl.load("digits", flip=True).split(labels=20)
    unasked = dataclasses.replace(may, reading=dataclasses.replace(may.reading, flip=None))
    assert line(few) == "views: labeled weak; unlabeled weak, strong; none mirrors images"
    assert line(may) == "views: labeled weak; unlabeled weak, strong; weak and strong may mirror images left-right"
    hint = "; --flip off if that can change a class (letters, arrows, left and right)"
    assert line(unasked) == line(may) + hint
    pipeline = kornia(K.RandomHorizontalFlip(), K.RandomInvert())
    assert line(may, weak="eval", strong=pipeline) == (
        "views: labeled weak=eval; unlabeled weak=eval, strong=kornia(RandomHorizontalFlip, RandomInvert); strong may "
        "mirror images left-right")
    assert line(unasked, weak="eval", strong="my_views:Dim").endswith("strong=my_views:Dim; none mirrors images")
    unsaid = torchvision(lambda image: image)
    assert line(few, strong=unsaid).endswith("; strong does not say whether it mirrors images")


def test_runs_record_their_views_and_resume_under_the_same(tmp_path, capsys):
    pool = sl.load("digits").split(labels=20)

    def run(steps, resume, **views):
        method = sl.FixMatch(tiny_net(pool)).with_views(**views)
        trainer = sl.Trainer(steps=steps, out=tmp_path / "run", resume=resume, device="cpu", callbacks=[])
        return trainer.fit(method, pool, labeled=4, unlabeled=8)

    pipeline = partial(kornia, K.RandomInvert(p=0.5))
    summary = run(2, None, strong=pipeline()).summary
    assert summary["loaded"][-1].startswith("views: labeled weak; unlabeled weak, strong=kornia(RandomInvert)")
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["views"]
    assert recorded["labeled"] == {"weak": "weak"}
    assert "RandomInvert(p=0.5" in recorded["unlabeled"]["strong"]
    with pytest.raises(UsageError, match=r"was started with other settings .views"):
        run(2, "auto", strong="simclr")
    assert run(2, "auto", strong=pipeline()).summary["steps"] == 2


TINY = ["--data", "digits", "--labels", "20", "--net", "tiny_4", "--steps", "2", "--device", "cpu"]


class AskedError(Exception):
    """Instead of training: the method and the trainer."""


@pytest.fixture
def asked(monkeypatch):
    def fit(trainer, method, pool, labeled=0, unlabeled=0):
        raise AskedError(method, trainer)

    monkeypatch.setattr(sl.Trainer, "fit", fit)


@pytest.mark.parametrize(("name", "arguments", "views"), [
    ("fixmatch", [], {"strong": "strong(ops=1)"}), ("openset", [], {"weak": "my_views:mine"}),
    ("consistency", ["--method", "pi_model"], {"": "simclr"}), ("supervised", [], {"": "strong"}),
    ("pretrain", ["--method", "simclr"], {"first": "weak", "second": "my_views:mine"}),
    ("finetune", ["--from", "tiny.safetensors", "--head", "start"], {"": "eval"}),
    ("distill", ["--teacher", "tiny.safetensors", "--teacher-net", "tiny_4"], {"view": "strong"}),
    ("active", ["--trainer", "fixmatch"], {"strong": "simclr"}),
    ("workflow", ["--query", "random", "--weights", "tiny.safetensors"], {"strong": "simclr"}),
])
def test_recipes_take_views(name, arguments, views, tmp_path, mine, asked):
    from safetensors.torch import save_file

    save_file(sl.net("tiny_4", 10, sl.load("digits").style).state_dict(), tmp_path / "tiny.safetensors")
    module = recipe(name)
    texts = [f"{view}={text}" if view else text for view, text in views.items()]
    flags = [flag for text in texts for flag in ("--view", text)]
    labels = ["--data", "digits", *TINY[4:]] if name == "active" else TINY
    with pytest.raises(AskedError) as found:
        module.main(parse(module.Settings, [*labels, *arguments, *flags, "--out", str(tmp_path / "run")]))
    method, trainer = found.value.args
    made = {view: text for kind in method.views.texts.values() for view, text in kind.items()}
    for view, text in views.items():
        assert {text_of(named(text))} == ({made[view]} if view else set(made.values()))
    assert trainer.config["view"] == texts


def test_a_run_of_a_recipe_says_and_records_its_views(tmp_path, capsys):
    notes.once.cache_clear()
    module = recipe("supervised")
    given = [*TINY, "--labeled", "4", "--out", str(tmp_path / "run"), "--view"]
    module.main(parse(module.Settings, [*given, "strong"]))
    assert "views: labeled view=strong; none mirrors images" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["view"] == ["strong"]
    with pytest.raises(UsageError, match=r"was started with other settings .view: \['strong'\] -> \['simclr'\]"):
        module.main(parse(module.Settings, [*given, "simclr", "--resume", "auto"]))


def test_train_takes_views_of_a_named_method(tmp_path, asked):
    given = {"labels": 20, "minutes": 0.1, "out": tmp_path / "run", "recipe": "scratch", "device": "cpu"}
    with pytest.raises(AskedError) as found:
        train("digits", method="fixmatch", view=("strong=simclr",), **given)
    method, trainer = found.value.args
    assert method.views.texts["unlabeled"] == {"weak": "weak", "strong": "simclr"}
    assert trainer.config["view"] == ["strong=simclr"]
    for learner in (None, "knn"):
        with pytest.raises(UsageError, match="views are those of a method that trains a net"):
            train("digits", method=learner, view=("strong=simclr",), **given | {"recipe": None})


def test_the_estimator_takes_views(asked):
    images, labels = load_digits(return_X_y=True)
    learner = sl.Classifier(steps=2, view=["strong=simclr"], image_shape=(8, 8), value_range="0-16")
    with pytest.raises(AskedError) as found:
        learner.fit(images[:100], labels[:100])
    assert found.value.args[0].views.texts["unlabeled"] == {"weak": "weak", "strong": "simclr"}


def test_train_goes_on_under_the_same_views(tmp_path):
    content = {"recipe": "scratch", "net": "tiny_4", "method": "fixmatch", "image_size": None, "weights": None,
               "pretrained": False, "view": ["strong=their.module:View"]}
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="would import a module; if you trust it, say so: --view strong=their"):
        begun(tmp_path, ())
    assert begun(tmp_path, ("strong=their.module:View",)).plan.view == ("strong=their.module:View",)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content | {"view": ["strong=simclr"]}))
    assert begun(tmp_path, ()).plan.view == ("strong=simclr",)


def begun(out, view):
    return Begun.read(out, {"image_size": None}, {"method": "fixmatch", "view": view})


def test_a_comparison_hands_views_to_its_runs(tmp_path, monkeypatch):
    module, seen = recipe("compare"), []
    monkeypatch.setattr(sl.comparison, "tune", lambda runs, processes, then: seen.extend([*runs, *then]))
    monkeypatch.setattr(sl.engine.jobs, "best", lambda runs, key: (_ for _ in ()).throw(AskedError()))
    given = [*TINY, "--methods", "fixmatch", "--seeds", "1", "--out", str(tmp_path), "--view", "strong=strong(ops=1)"]
    with pytest.raises(AskedError):
        module.main(parse(module.Settings, given))
    assert {tuple(job.settings["view"]) for job in seen} == {("weak",), ("strong(ops=1)",), ("strong=strong(ops=1)",)}
    assert all(job.flags["view"] == job.settings["view"] for job in seen)
    with pytest.raises(UsageError, match="fixmatch: unknown view of fixmatch 'medium'"):
        module.main(parse(module.Settings, [*given[:-1], "medium=weak"]))


def test_a_file_of_settings_names_views_but_no_module(tmp_path):
    settings = recipe("fixmatch").Settings
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 1\nview: [weak=eval, strong=simclr]\n")
    assert parse(settings, ["--config", str(file)]).view == ("weak=eval", "strong=simclr")
    assert parse(settings, ["--config", str(file), "--view", "weak=weak"]).view == ("weak=weak",), "flags replace it"
    file.write_text("steps: 1\nview: ['strong=their.module:View']\n")
    with pytest.raises(UsageError, match="import a module"):
        parse(settings, ["--config", str(file)])
    assert parse(settings, ["--config", str(file), "--view=strong=their.module:View"]).view


def test_lists_of_settings_files_without_repeated_flags(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("also: [a, b]\nview: []\n")
    assert parse(recipe("features").Settings, ["--config", str(file)]).also == ("a", "b")


def test_where_nothing_is_trained_views_are_refused():
    for name in ("features", "evaluate", "analyze", "robustness"):
        with pytest.raises(UsageError, match="--view weak: images are looked at as they are; nothing is trained here"):
            parse(recipe(name).Settings, ["--view", "weak"])


def test_a_job_gives_modules_as_flags(tmp_path):
    class Seen:
        def command(self, command, log):
            self.given = command
            return 0

    seen = Seen()
    seen.stopping = threading.Event()
    (tmp_path / "run").mkdir()
    Job(tmp_path / "recipe.py", {"view": ["a=m:A", "b"]}, tmp_path / "run", {"view": ["a=m:A", "b"]}).run(seen)
    assert seen.given[-2:] == ["--view=a=m:A", "--view=b"]


def test_all_methods_views_are_known_or_say_so():
    for method in methods.METHODS.values():
        for kind in getattr(method, "views", sl.methods.Views()).texts.values():
            assert all(":" not in text for text in kind.values())


def test_a_view_is_held_to_the_contract_once():
    """For each style; both kinds of images may have it, and many runs of a process."""
    seen = []

    def counted(style, least=0.5):
        def view(images, draw):
            seen.append(images.shape)
            return images / 255 * draw.to_device(draw.uniform(1, 1, 1, low=least))
        return view

    style, other = Style(1, 8, 8, (0.5,), (0.25,)), Style(1, 9, 8, (0.5,), (0.25,))
    built("weak", counted, style)
    tried = len(seen)
    assert tried > 4
    built("strong", counted, style)
    assert len(seen) == tried
    built("weak", counted, other)
    assert len(seen) == 2 * tried
    for _ in range(2):
        built("weak", partial(counted, least=0.25), style)
    assert len(seen) == 3 * tried
    wrong = lambda style: lambda images, draw: images  # noqa: E731
    for _ in range(2):  # what was refused is refused again
        with pytest.raises(UsageError, match="expected float32"):
            built("weak", wrong, style)


def test_modules_of_kornia_are_tried_once(monkeypatch):
    calls, forward = [], K.RandomGrayscale.forward
    monkeypatch.setattr(K.RandomGrayscale, "forward",
                        lambda *given, **named: calls.append(1) or forward(*given, **named))
    style = Style(3, 8, 8)
    for factory in (kornia(K.RandomGrayscale(p=0.3)), partial(VIEWS["simclr_kornia"], gray=0.3)):
        calls.clear()
        for _ in range(3):
            factory(style)
        assert len(calls) == 3, "the whole, again, and half of it"
