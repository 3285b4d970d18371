"""`ssl-lab list`: all that there is, whole, with its paper and how it is asked for, in a terminal and in a file."""

import json
import sys

import pytest
from test_recipes import RECIPES

from ssl_lab import catalog
from ssl_lab.active.queries import QUERIES, WRAPPERS
from ssl_lab.cli import main
from ssl_lab.data import DATASETS
from ssl_lab.methods import METHODS
from ssl_lab.nets import NETS
from ssl_lab.optim import OPTIMIZERS
from ssl_lab.papers import papers
from ssl_lab.techniques import TECHNIQUES
from ssl_lab.views import VIEWS

KNOWN = {"methods": METHODS, "techniques": TECHNIQUES, "optimizers": OPTIMIZERS,
         "queries": QUERIES | WRAPPERS,
         "views": [*VIEWS, "views.kornia(...)", "views.torchvision(...)"], "nets": NETS, "data": DATASETS,
         "recipes": RECIPES}


@pytest.fixture(scope="module")
def tables():
    return catalog.tables()


def listed(arguments, capsys):
    main(["list", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KNOWN)
def test_one_kind_as_json(kind, capsys):
    rows = json.loads(listed([kind, "--json"], capsys))
    assert [row["name"] for row in rows] == list(KNOWN[kind])
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_everything_as_json(capsys):
    tables = json.loads(listed(["--json"], capsys))
    assert list(tables) == list(KNOWN)
    assert {row["name"]: row["arxiv"] for row in tables["methods"]}["fixmatch"] == "2001.07685"


def test_what_has_a_paper_says_which_and_where_it_is_run(tables):
    for kind in ("methods", "techniques", "queries"):
        assert all(row["paper"] and row["recipe"].removeprefix("recipes/").removesuffix(".py") in RECIPES
                   for row in tables[kind])


def test_in_a_file_each_row_is_a_line_that_says_all(tables, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")  # of a terminal, which a pipe is not
    lines = listed([], capsys).splitlines()
    for kind, rows in tables.items():
        assert sum(line.startswith(f"{kind}: ") for line in lines) == 1
        for row in rows:
            own = [line for line in lines if line.startswith(f"   {row['name']} ")]
            assert any(all(value in line for key, value in row.items() if key != "family") for line in own), row
    assert {line.split()[0] for line in lines if line.startswith("   ")} == {
        row["name"].split()[0] for rows in tables.values() for row in rows}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_in_a_terminal_nothing_is_cut_and_no_line_is_too_long(tables, width):
    lines = list(catalog.laid_out(tables, width))
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    for rows in tables.values():
        for row in rows:
            assert " ".join(row.get("paper", row.get("what", "")).split()) in words
            assert any(line.split()[0] == row["name"].split()[0] for line in lines if line.startswith("   "))


def test_the_recipe_that_most_of_a_family_have_is_in_its_title(tables):
    lines = list(catalog.laid_out({"methods": tables["methods"]}, 120))
    assert " pretraining (no labels; recipes/pretrain.py)" in lines
    assert not any("recipes/pretrain.py" in line for line in lines if line.startswith("   "))
    assert "Consistency and Confidence (arXiv 2001.07685; recipes/fixmatch.py)" in " ".join(" ".join(lines).split())


def test_without_a_checkout_there_are_no_recipes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "ssl_lab/catalog.py"))
    assert json.loads(listed(["recipes", "--json"], capsys)) == []
    assert listed(["recipes"], capsys).startswith("recipes: scripts of a checkout")


def test_titles_are_bold_in_a_terminal_that_has_colors(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1mviews: " in listed(["views"], capsys)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in listed(["views"], capsys)


@pytest.mark.parametrize("width", ["60", None])
def test_papers(width, capsys, monkeypatch):
    if width:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setenv("NO_COLOR", "")
    text = listed(["--papers"], capsys)
    assert text.startswith("papers: 86\n")
    assert all(each.arxiv in text and each.title in " ".join(text.split()) for each in papers())
    assert max(map(len, text.splitlines())) <= (60 if width else 1000)
