"""What the pages say is so: their Python runs as it stands, their commands parse, what they link to and name exists."""

import ast
import functools
import re
import shlex
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from small_runs import ROOT
from test_recipes import RECIPES, recipe

from ssl_lab import cli
from ssl_lab.command_line import parse, run_command
from ssl_lab.engine import Trainer
from ssl_lab.methods import FlexMatch
from ssl_lab.nets import net
from ssl_lab.optim import SGD

PAGES = {name: (ROOT / name).read_text() for name in (
    "README.md", "recipes/README.md", "tests/README.md", "tests/benchmarks/README.md", ".github/CONTRIBUTING.md",
    "CHANGELOG.md")}
DOCSTRINGS = {name: ast.get_docstring(ast.parse((ROOT / f"recipes/{name}.py").read_text())) or "" for name in RECIPES}


def blocks(page: str, lightning: bool = False) -> list[str]:
    """Its Python: what runs without Lightning, or what needs it."""
    found = re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)
    return [block for block in found if ("import lightning" in block) == lightning]


def run(page: str, code: list[str], folder, monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in code:
            exec(compile(block, page, "exec"), names)
    return names


def test_the_python_of_the_readme_runs_in_order(tmp_path, monkeypatch, capsys):
    names = run("README.md", blocks("README.md"), tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert "fixmatch on digits with 10 labels: test" in out
    assert len(names["found"].labels) == 5
    assert str(names["found"].labels) in out
    assert names["model"].predict(names["X"]).shape == (1797,)


def test_a_loop_of_ones_own_learns(tmp_path, monkeypatch):
    names = run("recipes/README.md", blocks("recipes/README.md"), tmp_path, monkeypatch)
    with torch.no_grad():
        right = names["mine"](names["images"] / 255).argmax(dim=1) == names["labels"]
    assert right[100:].float().mean() > 0.5


def test_what_contributors_start_from_keeps_the_contracts(tmp_path, monkeypatch):
    """Its `check_...` raise what is wrong."""
    names = run(".github/CONTRIBUTING.md", blocks(".github/CONTRIBUTING.md"), tmp_path, monkeypatch)
    assert {"check_method", "check_query", "check_technique", "check_views"} <= names.keys()
    assert str(names["pool"]).startswith("dataset: 2 classes, 20 labeled, 40 unlabeled, 0 valid, 20 test (16 px, RGB)")


@pytest.mark.skipif(not find_spec("lightning"), reason="lightning is not installed")
@pytest.mark.filterwarnings("ignore")  # of its own
def test_a_method_trains_in_lightning(tmp_path, monkeypatch):
    """By the same steps as in the loop; only few are compared, as roundings grow: nets lie in another order there."""
    code = [block.replace("max_steps=20", "max_steps=3") for block in blocks("recipes/README.md", lightning=True)]
    assert len(code) == 1
    names = run("recipes/README.md", code, tmp_path, monkeypatch)
    pool, semi = names["pool"], names["semi"]
    method = FlexMatch(net("tiny_8", classes=pool.class_names, style=pool.style), images=len(pool))
    plain = SGD(lr=0.03, weight_decay=0.0)
    Trainer(steps=3, out="runs/other", device="cpu", precision="fp32", optimizer=plain, callbacks=[]).fit(
        method, pool, labeled=16, unlabeled=48)
    torch.testing.assert_close(semi.method.predictor().state_dict(), method.predictor().state_dict(), atol=1e-4,
                               rtol=1e-3)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) < 1200


def lines(text: str) -> list[str]:
    """The commands in its blocks of shell, and in the indented ones of a docstring; continued lines as one."""
    shell = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) or re.findall(r"^    \S.*(?:\n     .*)*", text, re.M)
    joined = "\n".join(shell).replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines()]


def commands(program: str) -> list[str]:
    """What follows the program, wherever it is called."""
    found = [line for text in (*PAGES.values(), *DOCSTRINGS.values()) for line in lines(text)]
    return sorted({line[line.index(program):] for line in found if program in line and not line.startswith("#")})


@pytest.mark.parametrize("line", [line for line in commands("ssl-lab ") if "ssl-lab bench" not in line])
def test_words_take_what_they_are_given(line, monkeypatch):
    """Each is parsed, and not run."""
    word, *arguments = shlex.split(line)[1:]
    command = cli.function(word)
    given = []

    @functools.wraps(command)
    def parsed(*args, **kwargs):
        given.append((args, kwargs))

    run_command({word: parsed}, "ssl-lab", [word, *arguments])
    assert given


@functools.cache
def settings(name: str) -> type:
    return recipe(name).Settings


@pytest.mark.parametrize("line", commands("recipes/"))
def test_recipes_take_what_they_are_given(line):
    path, *arguments = shlex.split(line)
    made = settings(path.removeprefix("recipes/").removesuffix(".py"))
    assert parse(made, arguments).plain() != made().plain()


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_is_in_the_gallery_with_a_command(name):
    assert f"\n[{name}.py]({name}.py)" in PAGES["recipes/README.md"]
    assert any(line.startswith(f"python recipes/{name}.py") for line in lines(PAGES["recipes/README.md"]))
    assert any(line.startswith(f"python recipes/{name}.py") for line in lines(DOCSTRINGS[name]))


def measured() -> list[tuple[str, str]]:
    """The rows of tables of results, and the entries of the gallery: the page, and the text with its links."""
    rows = [(page, line) for page in ("README.md", "recipes/README.md") for line in PAGES[page].splitlines()
            if line.startswith("| ") and re.search(r"\d\.\d", line)]
    entries = re.findall(r"^\[\w+\.py\].*?(?=\n\n)", PAGES["recipes/README.md"], re.M | re.S)
    return rows + [("recipes/README.md", entry) for entry in entries]


@pytest.mark.parametrize(("page", "text"), measured())
def test_a_result_is_written_where_its_link_leads(page, text):
    """Whoever measures anew changes both."""
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    assert links
    sources = " ".join(((ROOT / page).parent / link).read_text() for link in links)
    said = re.sub(r"`[^`]*`", "", text)  # but for flags
    numbers = re.findall(r"(?<![\w.])\d+\.\d+(?: ± \d+\.\d+)?", said)
    assert [number for number in numbers if number not in " ".join(sources.split())] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_is_linked_and_named_exists(page):
    text, folder = PAGES[page], (ROOT / page).parent
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = folder / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(target)
    named = re.findall(r"\b(?:recipes|data_scripts|tests|ssl_lab)/[\w/]+\.(?:py|csv|md)", text)
    wrong += [path for path in named if path != "recipes/NAME.py" and not (ROOT / path).exists()]
    assert wrong == []


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the titles of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_all_words_are_named(page):
    words = [word for members in cli.WORDS.values() for word in members]
    assert [word for word in words if not re.search(rf"`{word}`|ssl-lab {word}\b", PAGES[page])] == []


def test_the_test_files_that_are_named_exist():
    named = re.findall(r"`(test_[\w*]+\.py)`", PAGES["tests/README.md"])
    assert [name for name in named if not [*(ROOT / "tests").glob(name)]] == []


def test_the_map_shows_the_rooms_that_stand():
    rooms = re.findall(r"`(ssl_lab/[\w/]+)/?`", PAGES["README.md"])
    assert len(rooms) > 10
    assert [room for room in rooms if not (ROOT / room).exists()] == []
    folders = {f"ssl_lab/{path.parent.name}/" for path in (ROOT / "ssl_lab").glob("*/__init__.py")}
    assert folders - {room if room.endswith("/") else f"{room}/" for room in rooms} <= {"ssl_lab/bench/",
                                                                                      "ssl_lab/quickstart/"}


def test_each_promise_names_tests_that_exist():
    """The table of faults: `file.py`, `file.py::test`, or a test of test_faults.py."""
    table = PAGES["tests/README.md"].partition("| fault | promise | test |")[2].partition("\n\n")[0]
    rows = [row.strip("|").split("|")[-1] for row in table.splitlines()[2:]]
    assert len(rows) > 25
    sources = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    for row in rows:
        named = [name for name in re.findall(r"`([^`]+)`", row) if "test" in name or ".py" in name]
        assert named, row
        for name in named:
            file, _, test = name.partition("::") if ".py" in name else ("test_faults.py", "", name)
            source = sources[file.removeprefix("tests/").split()[0]]
            assert not test or f"def {test}(" in source, name
