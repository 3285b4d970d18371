"""`--help` of every word and recipe: all flags that are taken, each explained, in 80 columns."""

import contextlib
import functools
import io
import re

import pytest
import tyro
from test_recipes import RECIPES, recipe

from ssl_lab import flags
from ssl_lab.bench.nets import bench_nets
from ssl_lab.bench.query import bench_query
from ssl_lab.bench.step import bench_step
from ssl_lab.bench.views import bench_views
from ssl_lab.cli import WORDS, _function, main
from ssl_lab.command_line import parse
from ssl_lab.config import Settings

BENCH = {"step": bench_step, "nets": bench_nets, "views": bench_views, "query": bench_query}
NAMES = [("ssl-lab", word) for words in WORDS.values() for word in words if word != "bench"]
NAMES += [("ssl-lab bench", word) for word in BENCH] + [("recipes", name) for name in RECIPES]


@functools.cache
def what(place: str, name: str):
    """What takes the flags: a dataclass or a function."""
    return recipe(name).Settings if place == "recipes" else BENCH[name] if place == "ssl-lab bench" else _function(name)


def shown(action, *given, **named) -> str:
    """What an action that ends by itself prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        action(*given, **named)
    assert stop.value.code in (0, None)
    return out.getvalue()


@pytest.fixture(scope="module")
def pages():
    """Program and word -> the text of its --help in 80 columns, and of tyro's own in 200."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for place, name in NAMES:
            patch.setenv("COLUMNS", "80")
            text = (shown(parse, what(place, name), ["--help"]) if place == "recipes" else
                    shown(main, [*place.split()[1:], name, "--help"]))
            patch.setenv("COLUMNS", "200")
            found[place, name] = text, shown(tyro.cli, what(place, name), args=["--help"])
    return found


@pytest.mark.parametrize("name", NAMES, ids=" ".join)
def test_it_fits_and_says_all(pages, name):
    text, theirs = pages[name]
    assert max(map(len, text.splitlines())) <= 80
    assert "None" not in text
    rows = [line.strip("│| ").partition("  ")[0] for line in theirs.splitlines()]
    taken = {flag for row in rows if row.startswith("-") for flag in re.findall(r"(?:^|, )(--[a-z][\w-]*)", row)}
    given = {flag for line in text.splitlines() if line.startswith("  --") for flag in
             re.findall(r"(?:^|, )(--[a-z][\w-]*)", line.strip())} - {"--config", "--print-config"}
    taken -= {"--help", "--config"}
    refused = set() if getattr(what(*name), "trains", True) else {"--view", "--with", "--clip", "--batch"}
    assert given <= taken
    assert {flag for flag in taken - given - refused if not flag.startswith("--no-")} <= {
        flag[:2] + flag[5:] for flag in given if flag.startswith("--no-")}


@pytest.mark.parametrize("name", NAMES, ids=" ".join)
def test_each_flag_is_explained(name):
    known = (flags.of_settings if name[0] == "recipes" else flags.of_function)(what(*name))
    assert [flag.typed for flag in known if not flag.text or flag.text.startswith("(")] == []


def test_the_words_are_explained_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["--help"], []):
        main(arguments)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        words = [line.split()[0] for line in text.splitlines() if re.match(r"  \w", line)]
        assert words == [word for members in WORDS.values() for word in members]
    text = shown(main, ["bench", "--help"])
    assert [line.split()[0] for line in text.splitlines() if re.match(r"  \w", line)] == [*BENCH]


def test_what_is_used_most_comes_first(pages):
    text, _ = pages["recipes", "fixmatch"]
    titles = [line for line in text.splitlines() if re.fullmatch(r"[a-z ]+", line)]
    assert titles == ["data", "what it does", *(title for title in flags.GROUPS if title != "data")]
    order = [text.index(f"  {flag} ") for flag in ("--data", "--labels", "--steps", "--minutes", "--out", "--device",
                                                   "--image-size", "--clip")]
    assert order == sorted(order)


def test_every_setting_that_recipes_share_has_its_group():
    listed = [name for names in flags.GROUPS.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert {flag.name for flag in flags.of_settings(Settings)} <= {*listed}


def test_long_commands_go_on_in_the_next_line():
    block = '    python recipes/x.py --data mnist --how "a(b, c=2)" \\\n        --steps 100 --minutes 2'
    lines = list(flags.commands(block, 50))
    assert lines == ["    python recipes/x.py --data mnist --how \\", '        "a(b, c=2)" --steps 100 --minutes 2']


def test_arguments_are_explained_in_either_form():
    def plain(first: int, second: str = "", third: bool = False) -> None:
        """Does so.

        More of it.

        first: a number, which goes
            on. second: a text.
        third: whether.

        >>> plain(1)
        """

    def google(first: int, second: str = "", third: bool = False) -> None:
        """Does so.

        More of it.

        Args:
            first: a number, which goes
                on.
            second: a text.
            third: whether.

        Returns:
            Nothing.
        """

    texts = {"first": "a number, which goes on.", "second": "a text.", "third": "whether."}
    assert flags.explained(plain) == flags.explained(google) == ("Does so.\n\nMore of it.", texts)
    assert flags.explained(lambda: None) == ("", {})
