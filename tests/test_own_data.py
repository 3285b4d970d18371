"""Data of one's own, from outside of the package, by the place of what gives them: package.module:Thing."""

import json
import sys

import pytest
import yaml
from test_recipes import recipe

import ssl_lab as sl
from ssl_lab.command_line import parse
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import UsageError
from ssl_lab.export import finished
from ssl_lab.report.finished import Finished
from ssl_lab.reporting import report
from ssl_lab.texts import names_module

OWN = """
import numpy as np
import ssl_lab as sl

class Squares:
    def __init__(self, rows=60, side=16):
        self.rows, self.side = rows, side

    def __len__(self):
        return self.rows

    def __getitem__(self, number):
        if number >= self.rows:
            raise IndexError(number)
        image = np.zeros((self.side, self.side, 3), np.uint8)
        image[: 4 + number % 2 * 6] = 100 + number
        return image, -1 if 20 <= number < 40 else number % 2

class Called(Squares):
    def __call__(self):
        raise AssertionError("it is the data set itself")

def parts(side=16):
    return {"train": Squares(60, side), "test": Squares(80, side)}

def pool(few=False):
    whole = sl.load("digits")
    return whole.split(labels=20) if few else whole

def broken():
    return open("nowhere.txt")

def nothing():
    return [(1, 2)]

def unread(path):
    raise sl.UsageError(f"there is no {path}")

here, named, three = Called(20), parts(), 3
"""
TINY = ("--labels", "10", "--labeled", "4", "--net", "tiny_4", "--device", "cpu", "--precision", "fp32", "--steps", "2")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a package of data sets, in which the person is."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "birds.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mine", "mine.birds"):
        sys.modules.pop(name, None)
    yield tmp_path
    for name in ("mine", "mine.birds"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("text", "said"), [
    ("mine.birds:Squares", "Squares: 2 classes, 40 labeled, 20 unlabeled, 0 valid, 0 test (16 px, RGB)"),
    ("mine/birds.py:Squares(rows=30, side=8)", "Squares: 2 classes, 20 labeled, 10 unlabeled, 0 valid, 0 test (8 px"),
    ("./mine/birds.py:parts", "parts: 2 classes, 40 labeled, 20 unlabeled, 0 valid, 80 test (16 px, RGB)"),
    ("mine.birds:parts(8)", "parts: 2 classes, 40 labeled, 20 unlabeled, 0 valid, 80 test (8 px, RGB)"),
    ("mine.birds:here", "here: 2 classes, 20 labeled, 0 unlabeled, 0 valid, 0 test (16 px, RGB)"),
    ("mine.birds:named", "named: 2 classes, 40 labeled, 20 unlabeled, 0 valid, 80 test (16 px, RGB)"),
    ("mine.birds:pool", "digits: 10 classes, 1,198 labeled, 0 unlabeled, 0 valid, 599 test (8 px, gray)"),
])
def test_what_a_module_gives_is_loaded(here, text, said):
    assert str(sl.load(text)).startswith(said)


def test_it_is_read_as_it_is_told_to(here):
    pool = sl.load("mine.birds:Squares", image_size=8, flip=False)
    assert (pool.images.shape, pool.style.flip, pool.reading.flip) == ((3, 8, 8), False, False)
    small = sl.load("mine.birds:pool", image_size=4, flip=True)  # a pool's images are those that it has, resized
    assert (small.images.shape, small.style.flip, len(small.test)) == ((1, 4, 4), True, 599)
    assert sl.load("mine.birds:pool").images.fingerprint() == sl.load("digits").images.fingerprint()
    with pytest.raises(UsageError, match=r"mine.birds:pool gives a pool, whose images are read already: value_range"):
        sl.load("mine.birds:pool", value_range="0-16")
    few = sl.load("mine.birds:pool(few=True)")
    assert few.notes[-1] == ("mine.birds:pool(few=True) gives a pool with few labels; it is split anew, out of all "
                             "labels that it knows (--labels)")
    assert len(few.split(labels=50).labeled) == 50


def test_a_file_of_that_name_is_a_file(here):
    (here / "a:b").mkdir()
    with pytest.raises(UsageError, match=r"a:b"):  # an empty folder
        sl.load("a:b")
    assert not any(map(names_module, ("birds.csv", "s3://bucket/birds", "https://host:80/birds", "{0..9}.tar", "a:1")))


@pytest.mark.parametrize(("text", "words"), [
    ("mine.birds:Sqares", "has no attribute 'Sqares'; it has Squares"),
    ("mine.bird:Squares", "cannot load the data set 'mine.bird:Squares': No module named 'mine.bird'"),
    ("mine.birds:broken", r"mine.birds:broken fails: FileNotFoundError: .*nowhere.txt' \(.*birds.py, line \d+\)"),
    ("mine.birds:unread('x')", "^there is no x$"),
    ("mine.birds:nothing", r"mine.birds:nothing gives a list, expected a pool or a data set"),
    ("mine.birds:three", r"mine.birds:three gives a int, expected a pool or a data set"),
    ("mine.birds:three(1)", "mine.birds:three is a int, which takes no arguments"),
    ("mine.birds:Squares(colums=3)", r"got an unexpected keyword argument 'colums'; its arguments are \(rows, side\)"),
    ("mine.birds:Squares(rows=abc)", "abc is no argument; texts stand in quotes"),
    ("mine.birds:Squares(rows=3", "describes no data set; expected a name, with arguments as in my.data:Squares"),
    ("/elsewhere/birds.py:Squares", "does not lie below the current folder, from which modules are imported"),
    ("my-data/birds.py:Squares", "names a file that cannot be imported"),
])
def test_what_is_no_data_set_is_said_in_a_line(here, text, words):
    with pytest.raises(UsageError, match=words) as refused:
        sl.load(text)
    assert "\n" not in str(refused.value)


def test_a_recipe_trains_on_it_and_no_file_may_ask_for_it(here):
    module, data, out = recipe("supervised"), "mine/birds.py:parts(side=8)", here / "run"
    module.main(parse(module.Settings, [*TINY, "--data", data, "--out", str(out)]))
    assert yaml.safe_load((out / "config.yaml").read_text())["data"] == data
    assert json.loads((out / "summary.json").read_text())["data"] == "parts"
    with pytest.raises(UsageError, match=r"data: 'mine/.* in --config .* would run a program or import a module"):
        parse(module.Settings, ["--config", str(out / "config.yaml")])
    again = ["--config", str(out / "config.yaml"), "--data", data, "--out", str(here / "again")]
    module.main(parse(module.Settings, again))
    assert (here / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert f"--data={data}" in Job(here / "recipe.py", settings, out).command_line
    assert Job(here / "recipe.py", settings | {"data": "digits"}, out).command_line == []


def test_the_folder_of_a_run_imports_nothing(here, capsys):
    pool, data = sl.load("digits").split(labels=10), "mine.birds:pool"
    method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    sl.Trainer(steps=2, out="run", device="cpu", callbacks=[], config={"data": data, "net": "tiny_4"}).fit(
        method, pool, labeled=4, unlabeled=0)
    said = f"config.yaml has images by {data}, which would import a module"
    for ask in (lambda: Finished.read("run"), lambda: finished(here / "run")):
        with pytest.raises(UsageError, match=said):
            ask()
    report(here / "run")
    assert said in capsys.readouterr().out
    assert "mine.birds" not in sys.modules
    assert len(Finished.read("run", data).pool.labeled) == 10
