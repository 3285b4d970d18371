"""One self-contained HTML file: nothing is fetched, nothing is run, every string from outside is escaped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from ssl_lab.files import write_text
from ssl_lab.report.tables import Table
from ssl_lab.report.text import Markup, escape

NAME = "report.html"
Blocks = list[tuple[str, str]]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5c6670; --line: #d9dde2; --page: #fdfdfc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa4af; --line: #343b44; --page: #15181c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.5rem 4rem; max-width: 64rem;
       background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
       font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.5rem; margin-bottom: 2rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; font-weight: 650; margin: 0;
     text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3;
     letter-spacing: -0.01em; font-weight: 650; margin: 3rem 0 0.75rem; }
p { max-width: 42rem; margin: 0.75rem 0; overflow-wrap: anywhere; text-wrap: pretty; }
header p { color: var(--soft); font-size: 1.1rem; margin: 0.5rem 0 0; }
footer { color: var(--soft); font-size: 0.85rem; border-top: 1px solid var(--line); margin-top: 3.5rem;
         padding-top: 1rem; }
figcaption { color: var(--soft); font-size: 0.9rem; line-height: 1.45; overflow-wrap: anywhere; }

.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--soft); }
caption { text-align: left; font-weight: 600; padding-bottom: 0.5rem; }
th, td { text-align: left; font-weight: 400; padding: 0.4rem 1rem; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0.25rem; }
th:last-child, td:last-child { padding-right: 0.25rem; }
.right { text-align: right; }
td { white-space: nowrap; }
thead th { color: var(--soft); font-size: 0.9rem; vertical-align: bottom; border-top: 1px solid var(--soft);
           border-bottom: 1px solid var(--soft); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
           gap: 2.25rem 3rem; margin: 1.5rem 0; }
.figures figure { margin: 0; max-width: 38rem; break-inside: avoid; }
.figures svg { display: block; width: 100%; height: auto; }
.figures figcaption { margin-top: 0.5rem; }

ul { max-width: 42rem; margin: 0.75rem 0; padding-left: 1.25rem; overflow-wrap: anywhere; }
a { color: inherit; text-underline-offset: 0.15em; }
pre { margin: 0.5rem 0 1.25rem; padding: 0.6rem 0.8rem; border: 1px solid var(--line); border-radius: 4px;
      overflow-x: auto; font: 0.9rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
details { margin: 1.5rem 0; }
summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: 0.5rem; }

.images { margin: 1.5rem 0; }
.images > figcaption { max-width: 42rem; margin-top: 0.75rem; }
.grid { display: grid; gap: 0.75rem 0.6rem; align-items: start; }
.grid figure { margin: 0; }
.grid img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 2px; }
.grid figcaption { font-size: 0.75rem; line-height: 1.3; margin-top: 0.25rem; }
.grid .row { align-self: center; color: var(--soft); font-size: 0.85rem; padding-right: 0.5rem; }
@media (max-width: 40rem) {
  body { padding: 2rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  table { font-size: 0.875rem; }
  th, td { padding: 0.4rem 0.5rem; }
  td:not(.right) { white-space: normal; }
  caption span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2rem); }
  .grid { gap: 0.4rem 0.25rem; }
  .grid .row { font-size: 0.7rem; padding-right: 0.1rem; }
}
"""


class Report:
    """A page that is filled from top to bottom and then written.

    Args:
        title, subtitle: the head.
        footer: e.g. the version and the date; by default there is none, and the page depends on nothing but what
            was added.

    >>> page = sl.report.Report("Digits", "ten labels")
    >>> page.text("One line.")
    >>> "<title>Digits" in page.html()
    True
    """

    def __init__(self, title: str, subtitle: str = "", footer: str = "") -> None:
        self.title, self.subtitle, self.footer = title, subtitle, footer
        self._blocks: Blocks = []  # (kind, HTML)

    def section(self, heading: str) -> None:
        """Start a section."""
        self._blocks.append(("section", f"<h2>{escape(heading)}</h2>"))

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._blocks.append(("text", f"<p>{escape(paragraph)}</p>"))

    def list(self, lines: Sequence[str]) -> None:
        """Add a list; nothing of an empty one."""
        if lines:
            items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
            self._blocks.append(("list", f"<ul>\n{items}\n</ul>"))

    def command(self, command: str) -> None:
        """Add a command line to copy."""
        self._blocks.append(("command", f"<pre><code>{escape(command)}</code></pre>"))

    def runs(self, folders: Mapping[str, Path], beside: Path) -> None:
        """Add links to the pages of single runs, name -> folder, as far as they have one; nothing if none has.

        Args:
            beside: the folder of this page; the links are relative to it, so that all may move together.
        """
        links = [f'<a href="{escape(quote(os.path.relpath(folder / NAME, beside)))}">{escape(name)}</a>'
                 for name, folder in folders.items() if (folder / NAME).exists()]
        if links:
            self._blocks.append(("text", f"<p>The pages of the single runs: {', '.join(links)}</p>"))

    def table(self, table: Table) -> None:
        """Add a table."""
        self._blocks.append(("table", f'<div class="scroll">{table.html()}</div>'))

    def folded(self, said: str, table: Table) -> None:
        """Add a table that shows when its line `said` is opened."""
        self._blocks.append(("table", f"<details>\n<summary>{escape(said)}</summary>\n"
                                      f'<div class="scroll">{table.html()}</div>\n</details>'))

    def figure(self, svg: Markup, caption: str) -> None:
        """Add a plot. Plots that follow each other stand side by side where there is room."""
        self._blocks.append(("figure", f"<figure>{svg}\n<figcaption>{escape(caption)}</figcaption></figure>"))

    def images(self, grid: Markup, caption: str) -> None:
        """Add a grid of images."""
        self._blocks.append(("images", f'<figure class="images">{grid}\n'
                                       f"<figcaption>{escape(caption)}</figcaption></figure>"))

    def html(self) -> str:
        """The page."""
        parts = []
        for kind, blocks in groupby(self._blocks, key=lambda block: block[0]):
            content = "\n".join(html for _, html in blocks)
            parts.append(f'<div class="figures">\n{content}\n</div>' if kind == "figure" else content)
        subtitle = f"\n<p>{escape(self.subtitle)}</p>" if self.subtitle else ""
        footer = f"\n<footer>{escape(self.footer)}</footer>" if self.footer else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header>\n<h1>{escape(self.title)}</h1>{subtitle}\n</header>\n"
            "<main>\n" + "\n".join(parts) + f"\n</main>{footer}\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Write the page atomically: a failure or a kill leaves the file that was there.

        Raises UsageError if the file cannot be written.
        """
        write_text(Path(path), self.html())
