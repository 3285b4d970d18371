"""Curves as inline SVG, for a page without scripts, files or a network.

The SVG follows its page: text and axes take the font and the color of the text around it, in light and in
dark. The same numbers give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from itertools import cycle, product
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator
from rich.cells import cell_len
from rich.text import Text

from ssl_lab.report.metrics import Band, FloatArray
from ssl_lab.report.text import Markup, printable

INK = "#010203"  # drawn in this color, then replaced by `currentColor`
# Okabe and Ito's palette for color-blind readers; the first ones stand out on white and on black.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
STYLES = [(color, dashes) for dashes, color in product(DASHES, PALETTE)]
WIDTH, HEIGHT = 460.0, 270.0  # of a figure, in points
TOP, BOTTOM = 34.0, 44.0  # margins, in points
FONT, SWATCH, LABEL_GAP, LABEL_WIDTH = 12.0, 26.0, 16.0, 24  # points; the last: half-wide characters
POINTS = 300  # of a line
RC = {"svg.fonttype": "none", "svg.hashsalt": "ssl_lab", "font.family": "sans-serif", "font.size": FONT,
      "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
      "text.color": INK, "axes.linewidth": 0.8, "lines.linewidth": 2.0}


def curves(lines: Mapping[str, Band], y: str, x: str = "training step", percent: bool = False,
           log: bool = False) -> Markup:
    """Labeled lines with shaded bands (mean ± spread), as an SVG that may stand in a page beside others.

    Each label stands beside the end of its line. A line's color and dashes come from its place in `lines`: pass the
    same labels to each figure of a page. An empty band is not drawn but keeps its place. Of a line with more than 300
    points, equal groups of neighbors are averaged.

    Args:
        lines: label -> its values.
        y, x: what the axes show, with their units.
        percent: the values are fractions, shown times 100 with "(%)".
        log: x is positive and on a log scale, where the values themselves are ticked, as far as there is room, e.g.
            counts of labels.

    >>> band = sl.report.Band(np.arange(3), np.array([0.1, 0.5, 0.6]), np.array([0.01, 0.02, 0.02]))
    >>> "<svg" in sl.report.curves({"fixmatch": band}, y="test accuracy", percent=True)
    True
    """
    y = printable(f"{y} (%)" if percent else y)
    labels = [shortened(printable(label)) for label in lines]
    drawn = [(label, style, _scaled(line, 100 if percent else 1))
             for label, line, style in zip(labels, lines.values(), cycle(STYLES), strict=False)
             if len(line.x)]
    height = max(HEIGHT, TOP + BOTTOM + LABEL_GAP * len(drawn))
    with rc_context(RC), warnings.catch_warnings():
        # Only the font that measures may lack a glyph: the reader's browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)  # one pixel is one point
        axes = figure.add_subplot()
        for _, (color, dashes), line in drawn:
            axes.fill_between(line.x, line.mean - line.spread, line.mean + line.spread,
                              color=color, alpha=0.16, linewidth=0)
            axes.plot(line.x, line.mean, color=color, linestyle=dashes,
                      marker="o" if len(line.x) <= 12 else "", markersize=4.5)
        _dress(axes, x, percent)
        if log and drawn:
            axes.set_xscale("log")
        if not drawn:
            axes.text(0.5, 0.5, "nothing was logged", transform=axes.transAxes, ha="center", alpha=0.6)
            axes.set(xticks=[], yticks=[])
        ticks = [f"{tick:.4g}" for tick in axes.get_yticks()]
        left, right = (12 + 0.6 * FONT * max(map(cell_len, texts), default=0) for texts in (ticks, labels))
        right += SWATCH
        axes.set_position((left / WIDTH, BOTTOM / height, (WIDTH - left - right) / WIDTH,
                           (height - TOP - BOTTOM) / height))
        if log and drawn:
            _tick_values(axes, np.unique(np.concatenate([line.x for _, _, line in drawn])))
        figure.text(0, 1 - FONT / height, y, va="center_baseline", weight="bold", size=FONT + 1,
                    parse_math=False)
        ends = np.array([axes.transData.transform((line.x[-1], line.mean[-1]))[1] for _, _, line in drawn])
        for (label, (color, dashes), _), end in zip(drawn, _apart(ends, BOTTOM, height - TOP), strict=True):
            start, stop = WIDTH - right + 8, WIDTH - right + SWATCH
            figure.add_artist(Line2D([start / WIDTH, stop / WIDTH], [end / height] * 2, color=color,
                                     linestyle=dashes))
            figure.text((stop + 5) / WIDTH, end / height, label, va="center_baseline", parse_math=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    names = ", ".join(label for label, _, _ in drawn)
    return _inline(file.getvalue(), f"{y} against {printable(x)}: {names}")


def heat_map(lines: Mapping[str, Band], title: str, x: str = "training step") -> Markup:
    """One row of color for each label, from none at 0 to full at 1, over x; as an SVG beside others in a page.

    Where a line has no value, its row is empty.

    Args:
        lines: label -> fractions, in [0, 1].
        title: above it.
        x: what the axis shows, with its unit.

    >>> band = sl.report.Band(np.arange(3), np.array([0.1, 0.5, 0.6]), np.zeros(3))
    >>> "<svg" in sl.report.heat_map({"cat": band, "dog": band}, title="coverage")
    True
    """
    title, labels = printable(title), [shortened(printable(label)) for label in lines]
    height = TOP + BOTTOM + 1.2 * FONT * len(labels)
    left = 12 + 0.6 * FONT * max(map(cell_len, labels), default=0)
    with rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        axes = figure.add_axes((left / WIDTH, BOTTOM / height, (WIDTH - left - 12) / WIDTH,
                                (height - TOP - BOTTOM) / height))
        for row, line in enumerate(lines.values()):
            edges = np.concatenate([[0.0], line.x]) if len(line.x) else np.zeros(1)
            for start, stop, value in zip(edges, edges[1:], line.mean, strict=False):
                axes.barh(row, stop - start, left=start, height=0.9, color=PALETTE[0], linewidth=0,
                          alpha=float(np.clip(value, 0, 1)))
        _dress(axes, x, percent=False)
        axes.grid(visible=False)
        axes.set(yticks=range(len(labels)), ylim=(len(labels) - 0.5, -0.5))
        axes.set_yticklabels(labels, parse_math=False)
        figure.text(0, 1 - FONT / height, title, va="center_baseline", weight="bold", size=FONT + 1, parse_math=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), f"{title}, by {', '.join(labels)}")


def shortened(label: str) -> str:
    text = Text(label)
    text.truncate(LABEL_WIDTH, overflow="ellipsis")
    return text.plain


def _scaled(line: Band, factor: float) -> Band:
    x, mean, spread = (np.array([group.mean() for group in np.array_split(values, min(POINTS, len(values)))])
                       for values in line)
    return Band(x, mean * factor, spread * factor)


def _dress(axes: Any, x: str, percent: bool) -> None:
    """The name of the x axis, light grid lines, few and short tick labels."""
    axes.margins(x=0.01)
    if percent:  # a band may promise more than 100%, the axis need not
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2), min(high, 102))
    axes.set_xlabel(printable(x), labelpad=6, alpha=0.75, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:.4g}")
    axes.tick_params(length=0, pad=6)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_alpha(0.75)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_alpha(0.4)


def _tick_values(axes: Any, values: FloatArray) -> None:
    """Ticks at these values, as plain numbers; of two that would touch, only at the larger one."""
    places = axes.transData.transform(np.column_stack([values, np.zeros(len(values))]))[:, 0]
    ticks: list[float] = []
    free = np.inf
    for value, place in reversed([*zip(values.tolist(), places.tolist(), strict=True)]):
        half = 0.3 * FONT * (len(_plain(value)) + 1)
        if place + half <= free:
            ticks.append(value)
            free = place - half
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda tick, _: _plain(tick))
    for tick in axes.get_xticklabels():
        tick.set_alpha(0.75)


def _plain(value: float) -> str:
    return f"{value:.6g}"


def _apart(positions: FloatArray, low: float, high: float) -> FloatArray:
    """`positions`, moved as little as lets them stand LABEL_GAP apart, in order and within low..high."""
    order = np.argsort(positions, kind="stable")
    gaps = LABEL_GAP * np.arange(len(positions))
    groups: list[list[float]] = []  # isotonic regression: neighbors too close stand around their common mean
    for position in positions[order] - gaps:
        groups.append([position])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    placed = np.array([fmean(group) for group in groups for _ in group])
    apart = np.empty(len(positions))
    apart[order] = placed.clip(low, high - gaps.max(initial=0)) + gaps
    return apart


def _inline(svg: str, description: str) -> Markup:
    """Matplotlib's SVG without its metadata and fonts, in the page's color, with ids that are its own."""
    own = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    root = ElementTree.fromstring(svg)
    for tag in ("{*}metadata", "{*}defs"):  # the first <defs> is a style sheet, which would apply to the page
        root.remove(next(root.iterfind(tag)))
    for element in root.iter():
        element.tag = element.tag.split("}")[1]
        element.attrib = {name.split("}")[-1]: value for name, value in element.attrib.items()}
        if element.tag == "g":
            element.attrib.pop("id", None)  # names such as "axes_1", to which nothing refers
        for name, value in element.attrib.items():
            if name == "id":
                value = own + value
            elif name in ("href", "clip-path"):
                value = value.replace("#", f"#{own}")
            else:
                value = " ".join(value.split()).replace(INK, "currentColor")
                value = re.sub("font-family: [^;]*(; )?", "", value)
                value = re.sub(r"\d+\.\d+", lambda number: str(round(float(number[0]), 2)), value)
            element.attrib[name] = value
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": description,
                    "stroke-linejoin": "round"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
