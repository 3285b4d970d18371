"""`--help` of every word and recipe: all flags that are taken, each explained, in 80 columns."""

import contextlib
import functools
import importlib
import io
import re

import pytest
import tyro
from small_runs import finish, start
from test_recipes import RECIPES, recipe

from ssl_lab import flags
from ssl_lab.cli import BENCH, WORDS, main
from ssl_lab.command_line import parse
from ssl_lab.config import Settings
from ssl_lab.errors import UsageError
from ssl_lab.signatures import announced

PLACES = {("ssl-lab", word): place for words in WORDS.values() for word, (place, _) in words.items() if word != "bench"}
PLACES |= {("ssl-lab bench", word): place for word, place in BENCH.items()}
NAMES = [("ssl-lab", word) for words in WORDS.values() for word in words if word != "bench"]
NAMES += [("ssl-lab bench", word) for word in BENCH] + [("recipes", name) for name in RECIPES]


@functools.cache
def what(place: str, name: str):
    """What takes the flags: a dataclass or a function."""
    if place == "recipes":
        return recipe(name).Settings
    module, _, function = PLACES[place, name].partition(":")
    return getattr(importlib.import_module(f"ssl_lab.{module}"), function)


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


@pytest.mark.parametrize("name", PLACES, ids=" ".join)
def test_what_is_read_from_a_words_file_is_what_it_takes(name):
    read, real = announced(PLACES[name]), what(*name)
    assert flags.of_function(read) == flags.of_function(real)
    assert (read.__name__, read.__doc__) == (real.__name__, real.__doc__)


def test_a_word_that_is_called_does_its_work():
    with pytest.raises(UsageError, match="fetch what"):
        announced("fetch:fetch")(())


SLOW = ("torch", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "PIL")


def test_help_waits_for_no_import():
    """Of every recipe and word, in a process of its own, where nothing was imported before."""
    script = f"""
import contextlib, io, pathlib, runpy, sys
from ssl_lab.cli import BENCH, WORDS, main
words = [word for words in WORDS.values() for word in words if word != "bench"]
given = [["--help"], *([word, "--help"] for word in words), *(["bench", word, "--help"] for word in BENCH)]
given += [["train", "photos", "--minute", "3"]]  # a mistake is told as soon
asked = dict((" ".join(each), lambda each=each: main(each)) for each in given)
for path in sorted(pathlib.Path("recipes").glob("*.py")):
    asked[str(path)] = lambda path=str(path): (setattr(sys, "argv", [path, "--help"]),
                                               runpy.run_path(path, run_name="__main__"))
for name, show in asked.items():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: show()
        except SystemExit: pass
    print(name, *(each for each in {SLOW} if each in sys.modules), ":", (out.getvalue() + err.getvalue()).split()[0])
"""
    status, out, err = finish(start("-c", script))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert lines.pop([line.partition(" : ")[0] for line in lines].index("train photos --minute 3")).endswith("error:")
    assert {line.partition(" : ")[2] for line in lines} == {"usage:"}
    assert [line for line in lines if {*line.partition(" : ")[0].split()} & {*SLOW}] == []


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


def test_arguments_are_explained_by_their_section():
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
    assert flags.explained(google) == ("Does so.\n\nMore of it.", texts)
    assert flags.explained(lambda: None) == ("", {})
