"""Charts as SVG in the colors of the page: a confusion matrix, shares and differences with intervals, reliability.

Each mark says its numbers under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.cells import cell_len

from ssl_lab.intervals import wilson
from ssl_lab.report.plots import FONT, PALETTE, WIDTH, shortened
from ssl_lab.report.predicted import Bin
from ssl_lab.report.text import Markup, escape, printable

BLUE, ORANGE = PALETTE[:2]
CELL = 36.0  # points, of a confusion matrix, at most
NUMBERED = 16  # classes, up to which cells have room for numbers
ROW = 20.0  # points, of a class in `share_chart`


def confusion_chart(counts: NDArray[np.int64], names: Sequence[str]) -> Markup:
    """counts: [C, C], rows are true classes. Blue: right, orange: wrong; stronger for a larger share of the row."""
    labels, classes = [shortened(printable(name)) for name in names], len(names)
    longest = max(map(_width, labels))
    turned = longest > CELL
    left, top = 8 + longest, (0.71 * longest if turned else FONT) + 14
    size = min(CELL, (WIDTH - left - (0.71 * longest if turned else 0) - 2) / classes)
    font = min(FONT, 0.9 * size)
    width, sizes = left + classes * size + (0.71 * longest if turned else 0), counts.sum(axis=1)
    parts = []
    for i, label in enumerate(labels):
        middle = (i + 0.5) * size
        parts.append(_text(left - 6, top + middle + 0.35 * font, label, font, "end"))
        if turned:
            parts.append(f'<g transform="translate({left + middle:.1f} {top - 6:.1f}) rotate(-45)">'
                         f"{_text(0, 0, label, font)}</g>")
        else:
            parts.append(_text(left + middle, top - 6, label, font, "middle"))
    for row, column in np.argwhere(counts).tolist():
        count, share = int(counts[row, column]), float(counts[row, column] / sizes[row])
        opacity = share if row == column else 0.2 + 0.8 * share
        x, y = left + column * size, top + row * size
        said = f"{names[row]} called {names[column]}: {count:,} of {int(sizes[row]):,} ({share:.1%})"
        number = ""
        if classes <= NUMBERED:
            small = min(font, 1.6 * size / len(f"{count:,}"))
            number = _text(x + size / 2, y + size / 2 + 0.35 * small, f"{count:,}", small, "middle",
                           "#fff" if opacity > 0.6 else "currentColor")
        parts.append(f'<g><title>{escape(said)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" '
                     f'height="{size - 1:.1f}" fill="{BLUE if row == column else ORANGE}" '
                     f'fill-opacity="{opacity:.2f}"/>{number}</g>')
    parts.append(f'<rect x="{left - 0.5:.1f}" y="{top - 0.5:.1f}" width="{classes * size:.1f}" '
                 f'height="{classes * size:.1f}" fill="none" stroke="currentColor" stroke-opacity="0.25"/>')
    return _svg(max(width, WIDTH), top + classes * size + 2, f"confusion matrix of {classes} classes", parts)


def share_chart(rows: Sequence[tuple[str, int, int]]) -> Markup:
    """A dot and its 95% interval (Wilson) for each (name, right, of how many), from 0 to 100%, in the order given."""
    labels = [shortened(printable(name)) for name, _, _ in rows]
    left, right, top = 10 + max(map(_width, labels)), 84.0, 26.0
    span = WIDTH - left - right
    parts = [_grid(left + span * tick, top, top + ROW * len(rows), f"{100 * tick:.0f}%") for tick in _TICKS]
    for place, (label, (name, good, total)) in enumerate(zip(labels, rows, strict=True)):
        y, share, (low, high) = top + ROW * (place + 0.5), good / total, wilson(good, total)
        said = f"{name}: {good:,} of {total:,} right, {share:.1%} (95%: {low:.1%} to {high:.1%})"
        parts.append(
            f"<g><title>{escape(said)}</title>{_text(left - 8, y + 4, label, FONT, 'end')}"
            f'<line x1="{left + span * low:.1f}" x2="{left + span * high:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{BLUE}" stroke-width="3" stroke-opacity="0.6" stroke-linecap="round"/>'
            f'<circle cx="{left + span * share:.1f}" cy="{y:.1f}" r="4.5" fill="{BLUE}"/>'
            f"{_text(WIDTH, y + 4, f'{share:.1%}', FONT, 'end')}</g>")
    return _svg(WIDTH, top + ROW * len(rows) + 6, f"accuracy of {len(rows)} classes", parts)


def difference_chart(rows: Sequence[tuple[str, float, float]]) -> Markup:
    """A dot and its interval for each (name, difference, half of the interval), in points, around 0, in order.

    Blue: above 0, orange: below, gray: 0 lies within, or the half is NaN, of one run.
    """
    labels = [shortened(printable(name)) for name, _, _ in rows]
    known = [(mean, 0.0 if math.isnan(half) else half) for _, mean, half in rows]
    low = min(0.0, *(mean - half for mean, half in known))
    high = max(0.0, *(mean + half for mean, half in known))
    left, right, top = 10 + max(map(_width, labels)), 64.0, 26.0
    scale = (WIDTH - left - right) / ((high - low) or 1.0)
    ticks = MaxNLocator(5).tick_values(low, high)
    bottom = top + ROW * len(rows)
    parts = [_grid(left + scale * (tick - low), top, bottom, f"{tick:+.4g}" if tick else "0")
             for tick in ticks if low <= tick <= high]
    zero = left - scale * low
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="currentColor" '
                 'stroke-opacity="0.6"/>')
    for place, (label, (name, mean, half), (_, width)) in enumerate(zip(labels, rows, known, strict=True)):
        y, clear = top + ROW * (place + 0.5), abs(mean) > half  # never, where it is NaN
        color = (BLUE if mean > 0 else ORANGE) if clear else "currentColor"
        said = f"{name}: {mean:+.1f} points" + ("" if math.isnan(half) else f" ± {half:.1f}")
        parts.append(
            f"<g><title>{escape(said)}</title>{_text(left - 8, y + 4, label, FONT, 'end')}"
            f'<line x1="{zero + scale * (mean - width):.1f}" x2="{zero + scale * (mean + width):.1f}" y1="{y:.1f}" '
            f'y2="{y:.1f}" stroke="{color}" stroke-width="3" stroke-opacity="0.6" stroke-linecap="round"/>'
            f'<circle cx="{zero + scale * mean:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'
            f"{_text(WIDTH, y + 4, f'{mean:+.1f}', FONT, 'end')}</g>")
    return _svg(WIDTH, bottom + 6, f"differences of {len(rows)}", parts)


def reliability_chart(bins: Sequence[Bin]) -> Markup:
    """Accuracy against confidence, a bar and its 95% interval for each bin, and below how many images there are."""
    left, top, side, strip = 46.0, 26.0, 250.0, 50.0
    wide, total = WIDTH - left - 20, sum(each.images for each in bins)
    bottom, most = top + side, max(each.images for each in bins)
    parts = [_text(0, FONT, "accuracy", FONT + 1, weight="bold")]
    for tick in _TICKS:
        y = bottom - side * tick
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
                     f'stroke-opacity="0.12"/>{_text(left - 8, y + 4, f"{100 * tick:.0f}%", FONT, "end")}'
                     + _text(left + wide * tick, bottom + strip + 34, f"{100 * tick:.0f}%", FONT, "middle"))
    for each in bins:
        share, (low, high) = each.right / each.images, wilson(each.right, each.images)
        x, width = left + wide * each.low, wide * (each.high - each.low) - 1
        center = x + width / 2
        depth = strip * each.images / most
        said = (f"confidence {each.low:.0%} to {each.high:.0%}, {each.confidence:.1%} on average: {each.right:,} of "
                f"{each.images:,} right, {share:.1%} (95%: {low:.1%} to {high:.1%})")
        parts.append(
            f'<g><title>{escape(said)}</title>{_bar(x, bottom - side * share, width, side * share, 0.75)}'
            f'<line x1="{center:.1f}" x2="{center:.1f}" y1="{bottom - side * low:.1f}" y2="{bottom - side * high:.1f}" '
            f'stroke="currentColor" stroke-width="1.5" stroke-opacity="0.7"/>'
            f"{_bar(x, bottom + 10 + strip - depth, width, depth, 0.45)}</g>")
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{left + wide}" y2="{top}" stroke="{ORANGE}" stroke-width="1.5" '
                 'stroke-dasharray="5 3"/>')
    parts.append(_text(left + wide / 2, bottom + strip + 52, f"confidence; below, how many of {total:,} images", FONT,
                       "middle"))
    return _svg(WIDTH, bottom + strip + 58, "reliability diagram", parts)


_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _bar(x: float, y: float, width: float, height: float, opacity: float) -> str:
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{BLUE}" '
            f'fill-opacity="{opacity}"/>')


def _grid(x: float, top: float, bottom: float, label: str) -> str:
    return (f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="currentColor" '
            f'stroke-opacity="0.12"/>{_text(x, top - 8, label, FONT, "middle")}')


def _text(x: float, y: float, text: str, size: float, anchor: str = "start", color: str = "currentColor",
          weight: str = "normal") -> str:
    bold = "" if weight == "normal" else f' font-weight="{weight}"'
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" text-anchor="{anchor}" fill="{color}"{bold}>'
            f"{escape(text)}</text>")


def _width(label: str) -> float:
    return 0.6 * FONT * cell_len(label)


def _svg(width: float, height: float, description: str, parts: Sequence[str]) -> Markup:
    return Markup(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
                  f'aria-label="{escape(description)}">\n' + "\n".join(parts) + "\n</svg>")
