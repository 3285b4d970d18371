"""The README's Python runs as it stands, and what exists has its line there."""

import functools
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipes import recipe

from ssl_lab import cli
from ssl_lab.active.queries import QUERIES, WRAPPERS
from ssl_lab.command_line import parse, run_command
from ssl_lab.engine import Trainer
from ssl_lab.methods import METHODS, FlexMatch
from ssl_lab.nets import NETS, net
from ssl_lab.optim import SGD
from ssl_lab.optim.named import OPTIMIZERS
from ssl_lab.techniques import TECHNIQUES
from ssl_lab.views import VIEWS

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(lightning: bool) -> list[str]:
    """The Python that runs without Lightning, and of that with it what it needs of the others and itself."""
    found = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    theirs = [block for block in found if "import lightning" in block]
    assert len(theirs) == 1
    few = [block.replace("max_steps=20", "max_steps=3") for block in theirs]
    return [found[0], "import torch\n", *few] if lightning else [block for block in found if block not in theirs]


def run(code: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = run(blocks(lightning=False))
    assert "fixmatch on digits with 10 labels: test" in capsys.readouterr().out
    assert (tmp_path / "runs/first/summary.json").exists()
    with torch.no_grad():  # of a loop of one's own
        right = names["mine"](names["images"] / 255).argmax(dim=1) == names["labels"]
    assert right[100:].float().mean() > 0.5


@pytest.mark.skipif(not find_spec("lightning"), reason="lightning is not installed")
@pytest.mark.filterwarnings("ignore")  # of its own
def test_a_method_trains_in_lightning(tmp_path, monkeypatch):
    """By the same steps as in the loop; only few are compared, as roundings grow: nets lie in another order there."""
    monkeypatch.chdir(tmp_path)
    names = run(blocks(lightning=True))
    pool, semi = names["pool"], names["semi"]
    method = FlexMatch(net("tiny_8", classes=pool.class_names, style=pool.style), images=len(pool))
    plain = SGD(lr=0.03, weight_decay=0.0)
    Trainer(steps=3, out="runs/other", device="cpu", precision="fp32", optimizer=plain, callbacks=[]).fit(
        method, pool, labeled=16, unlabeled=48)
    torch.testing.assert_close(semi.method.predictor().state_dict(), method.predictor().state_dict(), atol=1e-4,
                               rtol=1e-3)


def test_methods_views_and_nets_are_listed():
    for method in METHODS.values():
        assert f"| `{method.name}` |" in README
        assert method.recipe in README
    for query in QUERIES | WRAPPERS:
        assert f"`{query}`" in README
    for word in [*TECHNIQUES, *OPTIMIZERS]:
        assert f"`{word}`" in README
    for view in VIEWS:
        assert f"| `{view}` |" in README
    for family in NETS:
        assert family.partition("{")[0] in README


def commands(start: str) -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
             for line in block.splitlines() if line.startswith(start)]
    assert lines
    return lines


@pytest.mark.parametrize("line", commands("ssl-lab "))
def test_its_words_take_what_they_are_given(line, monkeypatch):
    """Each is parsed, and not run."""
    word, *arguments = shlex.split(line)[1:]
    module, name = cli._ELSEWHERE[word][0].split(":")
    command = getattr(importlib.import_module(f"ssl_lab.{module}"), name)
    given = []

    @functools.wraps(command)
    def parsed(*args, **kwargs):
        given.append((args, kwargs))

    run_command({word: parsed, "other": parsed}, "ssl-lab", "", [word, *arguments])
    assert given


@pytest.mark.parametrize("line", commands("python recipes/"))
def test_its_recipes_take_what_they_are_given(line):
    _, path, *arguments = shlex.split(line)
    settings = recipe(Path(path).stem).Settings
    assert parse(settings, arguments).plain() != settings().plain()


def test_linked_files_exist():
    root = Path(__file__).parent.parent
    paths = re.findall(r"\b(?:recipes|data_scripts|tests|ssl_lab)/[\w/]+\.py", README)
    assert paths
    assert [path for path in paths if not (root / path).exists()] == []
