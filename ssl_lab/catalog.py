"""What there is, by kind: the rows that `ssl-lab list` prints, and their layout for a terminal or a file."""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]
NAME = 22  # columns of a terminal that a name has; a longer one stands on a line of its own


@dataclass(frozen=True)
class Kind:
    """rows: of everything of this kind, each with its `name` and other texts. given: how one of them is asked for."""

    rows: Callable[[], list[Row]]
    given: str


def _methods() -> list[Row]:
    from ssl_lab.methods import METHODS

    return [{key: getattr(method, key) for key in ("name", "family", "arxiv", "recipe", "paper")}
            for method in METHODS.values()]


def _techniques() -> list[Row]:
    from ssl_lab.techniques import TECHNIQUES

    return [{"name": name, "family": each.kind if each.serves == "accuracy" else f"{each.kind}, for {each.serves}",
             "arxiv": each.arxiv, "recipe": f"recipes/{_MEASURED.get(each.serves, 'techniques')}.py",
             "paper": each.paper}
            for name, each in TECHNIQUES.items()]


_MEASURED = {"size": "compress", "robustness": "robustness", "insight": "analyze"}
"""What a technique serves -> the recipe that shows what it is worth, where that is not accuracy."""


def _optimizers() -> list[Row]:
    from ssl_lab.optim import OPTIMIZERS

    return [{"name": name, "what": first_line(str(each.__doc__))} for name, each in OPTIMIZERS.items()]


def _queries() -> list[Row]:
    from ssl_lab.active.queries import QUERIES, WRAPPERS

    return [{"name": name, "family": query.family, "needs": ", ".join(sorted(query.needs)), "arxiv": query.arxiv,
             "recipe": "recipes/active.py", "paper": query.paper} for name, query in (QUERIES | WRAPPERS).items()]


def _views() -> list[Row]:
    from ssl_lab.views import VIEWS, kornia, torchvision

    named = VIEWS | {f"views.{each.__name__}(...)": each for each in (kornia, torchvision)}
    return [{"name": name, "what": first_line(str(view.__doc__))} for name, view in named.items()]


def _nets() -> list[Row]:
    from ssl_lab.at_hand import PRETRAINED
    from ssl_lab.nets import NETS

    here = {name: "here" if known.is_here else f"not here: {known.fetched_by} ({known.megabytes} MB)"
            for name, known in PRETRAINED.items()}
    return [{"name": name, "what": f"{what}; {here[name]}" if name in here else what} for name, what in NETS.items()]


def _data() -> list[Row]:
    from ssl_lab.data import DATASETS

    return [{"name": name, "what": what} for name, what in DATASETS.items()]


def _recipes() -> list[Row]:
    """Those beside the package, in a checkout; what is installed alone has none."""
    found = []
    for path in sorted((Path(__file__).parent.parent / "recipes").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found.append({"name": path.stem, "what": first_line(text)})
    return found


def first_line(docstring: str) -> str:
    """Its first paragraph as one line, up to the equations."""
    return " ".join(docstring.strip().partition("\n\n")[0].split())


KINDS: Mapping[str, Kind] = {
    "methods": Kind(_methods, 'what is learned from a batch. --method NAME, "fixmatch(threshold=0.9)", or '
                              "package.module:Mine, of the recipe that is named, or of ssl-lab train"),
    "techniques": Kind(_techniques, 'what changes how any method trains. --with NAME or "sam(rho=0.1)", as often as '
                                    "you like, in a recipe that trains; techniques=[...] of sl.Trainer; yours by "
                                    "package.module:Mine. The recipe that is named shows what it is worth"),
    "optimizers": Kind(_optimizers, '--optimizer NAME or "adamw(lr=0.001)", in a recipe that trains; yours by '
                                    "package.module:Mine. ssl-lab find-lr tests rates"),
    "queries": Kind(_queries, 'what to label next. --query NAME or "class_balanced(badge)" of recipes/active.py, '
                              "ssl-lab label and ssl-lab query; yours by package.module:Mine"),
    "views": Kind(_views, 'what a net sees of an image. --view weak=NAME or "strong=strong(ops=3, cutout=0.25)", in '
                          "place of a view that a method has; yours by package.module:Mine. ssl-lab bench views times "
                          "them here"),
    "nets": Kind(_nets, "--net NAME. ssl-lab bench nets shows parameters, FLOPs and speed here"),
    "data": Kind(_data, "--data NAME; ssl-lab fetch NAME brings it. Or yours: a folder of images, a CSV of path,label, "
                        "tar shards, an .npz file, or package.module:Mine, which gives a data set of PyTorch or Hugging"
                        " Face, or a pool; in code also arrays and lists of files"),
    "recipes": Kind(_recipes, "scripts of a checkout, to run and to copy from. python recipes/NAME.py --help; "
                              "recipes/README.md shows what each gave"),
}

ABOUT = {
    "net": "the net, before training", "term": "the loss, and the images it is of",
    "weights": "the weights, as they train", "data": "which rows are drawn", "uncertainty": "where predictions waver",
    "diversity": "rows that cover the others", "hybrid": "both, or several nets", "training": "a training of its own",
    "wrapper": 'around another query: "class_balanced(badge)"', "pretraining": "no labels",
    "distillation": "from a teacher", "consistency": "labeled and unlabeled images together",
    "supervised": "labeled images alone",
}
"""Families -> what they are of."""


def tables(kind: str | None = None) -> dict[str, list[Row]]:
    """The rows of one kind, or of all."""
    return {name: each.rows() for name, each in KINDS.items() if kind in (None, name)}


def laid_out(tables: Mapping[str, Sequence[Row]], width: int | None) -> Iterator[str]:
    """The lines of a text of these tables; titles are those that do not begin with a space.

    width: columns of a terminal, which no line passes; None where it goes to a file or another program: there a row is
    a line, whole, and says all of itself.
    """
    for name, rows in tables.items():
        yield from filled(f"{name}: {KINDS[name].given}", width, "", "  ")
        names = [row["name"] for row in rows]
        for family in dict.fromkeys(row.get("family", "") for row in rows):
            members = [row for row in rows if row.get("family", "") == family]
            recipes = Counter(row["recipe"] for row in members if "recipe" in row)
            usual = max(recipes, key=recipes.__getitem__, default="")
            if family:
                about = "; ".join(filter(None, (ABOUT.get(family.partition(",")[0], ""), usual)))
                yield from filled(f"{family} ({about})" if about else family, width, " ", "   ")
            for row in members:
                known = usual if width is not None else ""
                yield from row_of(row["name"], _told(row, known), width, max(map(len, names)))
        yield ""


def of_papers(rows: Sequence[Row], width: int | None) -> Iterator[str]:
    """The lines of `ssl-lab list --papers`; see `laid_out`."""
    yield f"papers: {len(rows)}"
    for row in rows:
        said = f"{row['paper']} (arXiv {row['arxiv']}): {row['how']}"
        yield from row_of(row["row"], said, width, longest=2)


def row_of(name: str, text: str, width: int | None, longest: int) -> Iterator[str]:
    """A name and a text beside it, or beneath a name that is too long for that."""
    column = longest if width is None else min(longest, NAME)
    first = f"   {name.ljust(column)}  "
    if width is not None and len(name) > column:
        yield first.rstrip()
        first = " " * (column + 5)
    yield from filled(text, width, first, " " * (column + 5))


def filled(text: str, width: int | None, first: str, then: str) -> list[str]:
    if width is None:
        return [f"{first}{text}".rstrip()]
    whole = text.replace("arXiv ", "arXiv\xa0")  # a number stays beside the word
    lines = textwrap.wrap(whole, max(width, 40), initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines]


def _told(row: Row, known: str) -> str:
    """What a row says beside its name. known: the recipe that a title has said."""
    if "what" in row:
        return row["what"]
    facts = (row["arxiv"] and f"arXiv {row['arxiv']}", row.get("needs") and f"sees {row['needs']}",
             "" if row["recipe"] == known else row["recipe"])
    said = "; ".join(filter(None, facts))
    return f"{row['paper']} ({said})" if said else row["paper"]
