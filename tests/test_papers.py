"""`ssl-lab list --papers`: all papers, and what it names is what there is."""

import inspect
import json
import re
from pathlib import Path

from ssl_lab.cli import main
from ssl_lab.methods import METHODS
from ssl_lab.papers import listed, papers
from ssl_lab.techniques import technique

ROOT = Path(__file__).parent.parent


def test_all_86_papers_are_listed_once():
    every = papers()
    assert [each.number for each in every] == list(range(1, 87))
    numbers = [each.arxiv for each in every if each.arxiv]
    assert len(numbers) == len(set(numbers)) == 84  # Dropout is in a journal, and of a thesis we know the abstract
    assert all(re.fullmatch(r"\d{4}\.\d{5}|\d{4}\.\d{4}", number) for number in numbers)
    assert len({each.title for each in every}) == 86


def test_each_named_thing_exists():
    assert [place for each in papers() for place in each.missing] == []


def test_what_is_named_names_the_paper():
    """Where a paper's number is nowhere in the code of what it is said to be, the table is wrong."""
    wrong = []
    for each in papers():
        for kind, _, name in (place.partition(" ") for place in each.places if place not in each.missing):
            if kind not in ("method", "with") or not each.arxiv:
                continue
            thing = METHODS[name] if kind == "method" else type(technique(name))
            if each.arxiv not in Path(inspect.getfile(thing)).read_text():
                wrong.append((each.title, name))
    assert not wrong
    sources = "".join(path.read_text() for path in (ROOT / "ssl_lab").rglob("*.py"))
    assert [each.title for each in papers() if each.arxiv and each.here and each.arxiv not in sources] == []


def test_what_is_missing_is_not_claimed(monkeypatch):
    row = papers()[19]
    monkeypatch.setitem(row.__dict__, "places", ("with nosuch", "net tiny_8", "code optim:nothing", "cited optim",
                                                 "compress nosuch", "recipe nosuch"))
    assert row.missing == [place for place in row.places if place != "net tiny_8"]
    assert row.how == "not yet; --net tiny_8; not yet; not yet; not yet; not yet"


def test_list_papers_says_how_to_run_each(capsys):
    main(["list", "--papers", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == listed()
    assert rows[0] == {"row": "1", "arxiv": "2001.07685", "name": "fixmatch", "how": "python recipes/fixmatch.py",
                       "paper": "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"}
    assert rows[1]["how"] == "python recipes/consistency.py --method mixmatch"
    assert rows[20]["how"].startswith('--with "sam(parts=4, after=0.8)"; ')
