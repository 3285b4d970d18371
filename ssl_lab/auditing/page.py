"""An audit as one page: what was found, with the images beside what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_lab.auditing.findings import FAR, KINDS, PARTS, Audit, Issue
from ssl_lab.auditing.written import ISSUES
from ssl_lab.data import Pool
from ssl_lab.report import Column, Markup, Report, Table, image_grid
from ssl_lab.report.images import DISPLAY, thumbnails
from ssl_lab.report.tables import Cell

SHOWN = {"label": 24, "leak": 20, "duplicate": 24, "off_topic": 40, "blank": 12, "size": 12, "shape": 12, "color": 12}
"""How many of each kind are shown; issues.csv has all."""
EXAMPLES = 2

HEADINGS = {"label": "Labels", "leak": "Leaks", "duplicate": "Duplicates", "off_topic": "Off-topic images",
            "blank": "Blank images", "size": "Sizes", "shape": "Shapes", "color": "Color modes"}


def page(audit: Audit, steps: Sequence[str] = ()) -> Report:
    """The page. steps: what to do next, a line each."""
    pool = audit.pool
    report = Report(f"Audit of {pool.name}", str(pool).partition(": ")[2])
    for note in (*pool.notes, *audit.notes):
        report.text(f"Note: {note}.")
    report.table(counts_table(audit))
    found: dict[str, list[Issue]] = {}
    for issue in audit.issues():
        found.setdefault(issue.kind, []).append(issue)
    if steps:
        report.section("What to do next")
        for step in steps:
            report.text(step)
    for kind, issues in found.items():
        report.section(HEADINGS[kind])
        report.text(_WHY[kind](audit))
        if kind in ("leak", "duplicate"):
            issues = _one_of_each_first(issues)
        some = issues[:SHOWN[kind]]
        grid = (_label_rows(audit, some) if kind == "label" else
                _pair_rows(audit, some) if kind in ("leak", "duplicate") else
                image_grid(_thumbnails(pool, [issue.row for issue in some]),
                           [_caption(audit, issue) for issue in some]))
        more = len(issues) - len(some)
        report.images(grid, f"The first {len(some)} of {len(issues):,}; all are in {ISSUES}." if more else
                      f"All {len(issues):,}, the worst first." if len(issues) > 1 else "The only one.")
    if audit.doubts is not None and found.get("label"):
        report.table(_confusions(audit))
    return report


def counts_table(audit: Audit) -> Table:
    """How much there is of each kind."""
    rows: list[list[Cell]] = [[HEADINGS[kind], count, KINDS[kind]] for kind, count in audit.counts.items()]
    return Table(f"Audit of {audit.pool.name}: {len(audit.pool):,} images",
                 [Column("what"), Column("how many", "right", ","), Column("which are")], rows)


def _confusions(audit: Audit) -> Table:
    doubts, names = audit.doubts, audit.pool.class_names
    assert doubts is not None
    pairs, counts = np.unique(np.stack([doubts.given, doubts.likelier], axis=1)[doubts.wrong], axis=0,
                              return_counts=True)
    order = np.argsort(-counts, kind="stable")[:15]
    return Table("Which labels are doubted most often", [Column("given"), Column("likelier"),
                                                         Column("how many", "right", ",")],
                 [[names[pairs[i, 0]], names[pairs[i, 1]], int(counts[i])] for i in order.tolist()])


def _why_label(audit: Audit) -> str:
    doubts = audit.doubts
    assert doubts is not None
    return (f"{int(doubts.wrong.sum()):,} of {len(doubts.rows):,} labels are likely wrong by confident learning: what "
            f"a {doubts.learner} on the features says of each image when its label is held out. It agrees with "
            f"{doubts.agreement:.1%} of the labels of train, and is wrong itself at times: look before you correct. "
            "Beside each image stand typical ones of the class that was given and of the likelier one.")


def _why_duplicate(audit: Audit) -> str:
    bar = audit.bar
    return ("Exactly alike are images with the same pixels. Nearly alike are those that differ as little as copies do: "
            "some images here were saved as JPEG, shifted by 3% of a side and darkened by 15%, and 95% of these copies "
            f"have a correlation of brightness of at least {bar.alike:.3f} with their original (at the best small "
            f"shift), a cosine of features of at least {bar.cosine:.3f} and at most {bar.bits} of 63 bits of a "
            "perceptual hash apart. A pair needs the first, one of the other two, and about the same color. Drawings, "
            "signs and digits can be as alike without being copies.")


_WHY: dict[str, Callable[[Audit], str]] = {
    "label": _why_label,
    "leak": lambda audit: ("Images that are in two parts make a test easier than it is: take them out of train, or out "
                           "of test. " + _why_duplicate(audit)),
    "duplicate": _why_duplicate,
    "off_topic": lambda audit: (
        "Images that are far from 98% of all images and from most of their class, by the cosine of features, more than "
        f"{FAR} usual deviations further than usual. They may be of another kind (a chart among photographs), damaged, "
        "or merely rare: look before you take them out."),
    "blank": lambda audit: "Images of nearly one brightness all over: nothing can be learned from them.",
    "size": lambda audit: "Files much smaller or larger than the others: thumbnails, scans, screenshots.",
    "shape": lambda audit: "Files much longer than the others: what is cropped or squashed may be what matters.",
    "color": lambda audit: ("Fewer than 5% of the images are like these. A net may learn the color mode in place of "
                            "the class, where the two go together."),
}


def _caption(audit: Audit, issue: Issue) -> str:
    given = audit.pool.class_names[issue.given] if issue.given >= 0 else ""
    return ", ".join(filter(None, [_name(audit.pool, issue.row), given, issue.note]))


def _name(pool: Pool, row: int) -> str:
    return Path(pool.files[row]).name if pool.files else f"id {row}"


def _label_rows(audit: Audit, issues: Sequence[Issue]) -> Markup:
    """Each image, and typical ones of both classes."""
    names = audit.pool.class_names
    rows, captions = list[int](), list[str]()
    for issue in issues:
        examples = [(label, row) for label in (issue.given, issue.likelier) for row in _typical(audit, label)]
        rows += [issue.row, *(row for _, row in examples)]
        captions += [f"{_name(audit.pool, issue.row)} ({PARTS[audit.part[issue.row]]})",
                     *(names[label] for label, _ in examples)]
    headings = [f"{names[issue.given]}? {names[issue.likelier]}" for issue in issues]
    return image_grid(_thumbnails(audit.pool, rows), captions, columns=1 + 2 * EXAMPLES, rows=headings)


def _typical(audit: Audit, label: int) -> list[int]:
    """Rows of a class that nobody doubts."""
    doubts = audit.doubts
    assert doubts is not None
    mine = np.flatnonzero(doubts.given == label)
    if not len(mine):
        mine = np.flatnonzero(doubts.likelier == label)
    return [int(doubts.rows[i]) for i in [*mine[::-1][:EXAMPLES].tolist(), *[mine[-1]] * EXAMPLES][:EXAMPLES]]


def _one_of_each_first(issues: list[Issue]) -> list[Issue]:
    """Of an image that is there ten times, one pair before those of other images, then the rest."""
    first = {issue.other: issue for issue in reversed(issues)}
    return [*(issue for issue in issues if first[issue.other] is issue),
            *(issue for issue in issues if first[issue.other] is not issue)]


def _pair_rows(audit: Audit, issues: Sequence[Issue]) -> Markup:
    rows = [row for issue in issues for row in (issue.other, issue.row)]
    return image_grid(_thumbnails(audit.pool, rows), [_name(audit.pool, row) for row in rows], columns=2,
                      rows=[issue.note for issue in issues])


def _thumbnails(pool: Pool, rows: Sequence[int]) -> NDArray[np.uint8]:
    """uint8 [n, 1 or 3, H, W]: images of the pool."""
    images = pool.images.take(np.asarray(rows, dtype=np.int64)).numpy()
    return thumbnails(images[:, :3] if images.shape[1] >= 3 else images[:, :1], DISPLAY)
