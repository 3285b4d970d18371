"""`python -m ssl_lab.docs FOLDER`: pages of what is public, made of the docstrings by pdoc (`pip install ".[docs]"`).

Each example on them is run by the tests. Ends with 1 where pdoc warns of something.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc
from pdoc import doc

import ssl_lab
from ssl_lab.docstrings import with_inherited

MODULES = ("active", "analysis", "compress", "data", "engine", "features", "losses", "methods", "nets", "optim",
           "report", "schedule", "techniques", "testing", "views")
"""What is public, beside the names of `ssl_lab` itself."""
EQUATION = re.compile(r"(L [+a]|[^\s.]{1,16}( \w{1,6})? (=|<-|~) )")
WIDER = "main.pdoc { max-width: 74rem !important; } .pdoc .docstring pre { font-size: 85%; }"
PAPER = re.compile(r"arXiv\s+(\d{4}\.\d{4,5})")


class ArrayLike:
    """In place of numpy's, which is shown as all that it is made of."""

    __module__ = "numpy.typing"


def write(folder: Path) -> list[str]:
    """Writes index.html and a page for each module into the folder; returns what pdoc warned of."""
    homes = {name for name in dir(ssl_lab) if name not in {*ssl_lab.methods.__all__, *ssl_lab.techniques.__all__}}
    names = sorted(homes - {*MODULES, "report"}, key=str.lower)
    shown = {name: ssl_lab.function_of(name) if name in ssl_lab.WORDS else getattr(ssl_lab, name) for name in names}
    vars(ssl_lab).update(shown, __all__=[*MODULES, *names])
    pages = {f"ssl_lab{'.' * bool(name)}{name}": doc.Module(getattr(ssl_lab, name) if name else ssl_lab)
             for name in ("", *MODULES)}
    for name, module in list(sys.modules.items()):
        if name.startswith("ssl_lab.") and "ArrayLike" in vars(module):
            vars(module)["ArrayLike"] = ArrayLike
    pdoc.render.configure(docformat="google", include_undocumented=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for page in pages.values():
            for each in _all(page):
                _prepare(each)
        for name, page in pages.items():
            file = folder / f"{name.replace('.', '/')}.html"
            file.parent.mkdir(parents=True, exist_ok=True)
            html = pdoc.render.html_module(page, pages).replace("</head>", f"<style>{WIDER}</style></head>")
            file.write_text(html, encoding="utf-8")
        (folder / "index.html").write_text(pdoc.render.html_index(pages), encoding="utf-8")
        (folder / "search.js").write_text(pdoc.render.search_index(pages), encoding="utf-8")
    return [str(each.message) for each in found]


def _all(part: doc.Module | doc.Class) -> Iterator[doc.Doc[typing.Any]]:
    """It, and what it holds, but for modules."""
    yield part
    for member in part.members.values():
        if isinstance(member, doc.Class):
            yield from _all(member)
        elif not isinstance(member, doc.Module):
            yield member


def _prepare(part: doc.Doc[typing.Any]) -> None:
    """An equation at the beginning stands by itself, papers are links, fields of tuples have their types, and arguments
    that a base class describes are there too."""
    text = "" if part.docstring.startswith("Initialize internal Module state") else part.docstring  # torch's
    text = with_inherited(part.obj, text) if inspect.isclass(part.obj) and text else text
    first, _, rest = text.partition("\n\n")
    if EQUATION.match(first) and not isinstance(part, doc.Module):
        text = "\n".join(f"    {line}" for line in first.splitlines()) + "\n\n" + rest
    arxiv, paper = (vars(part.obj).get(name) if inspect.isclass(part.obj) else None for name in ("arxiv", "paper"))
    if arxiv and text:
        before, mark, example = text.partition("\n>>> ")
        text = f"{before.rstrip()}\n\n*{paper}*, arXiv {arxiv}\n{mark}{example}"
    part.docstring = PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    if inspect.isclass(part.obj) and hasattr(part.obj, "_fields"):
        part.obj.__new__.__annotations__ = typing.get_type_hints(part.obj)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m ssl_lab.docs FOLDER")
    said = write(Path(sys.argv[1]))
    print("\n".join(said) or f"The pages begin at {Path(sys.argv[1]) / 'ssl_lab.html'}")
    raise SystemExit(bool(said))
