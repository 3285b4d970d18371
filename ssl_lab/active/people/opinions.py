"""What each person said of each image, by a ledger that keeps who said what; and what they agree on."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_lab.active.people.oracle import differing
from ssl_lab.active.people.votes import Agreement, Vote, agree
from ssl_lab.active.queries.view import UNLABELED
from ssl_lab.data.ledger import SPLIT, Entry

UNDO = " (undo)"
"""What follows a person's name in the source of an entry that takes an answer back."""

Opinions = dict[int, dict[str, Vote]]
"""row -> who -> what they said last."""


def opinions(entries: Sequence[Entry]) -> Opinions:
    """By the entries of a ledger, in their order, of which the sources are people; without what was taken back."""
    said: Opinions = {}
    for time, entry in enumerate(entries):
        if entry.source == SPLIT:
            continue
        who = entry.source.removesuffix(UNDO)
        for row, label in zip(entry.indices.tolist(), entry.labels.tolist(), strict=True):
            before = said.get(row, {}).pop(who, None)
            if not entry.source.endswith(UNDO) and label != UNLABELED:
                since = time if before is None or before.since is None else before.since
                said.setdefault(row, {})[who] = Vote(row, label, who, float(time), float(since))
    return {row: by for row, by in said.items() if by}


def settled(entries: Sequence[Entry], how: Agreement) -> tuple[dict[int, tuple[int | None, str]], list[str]]:
    """Of each row of which people say different things, the class that counts (None: none does) and who said
    something; and a line on them."""
    said = opinions(entries)
    agreed = agree([vote for by in said.values() for vote in by.values()], how)
    found: dict[int, tuple[int | None, str]] = {}
    for row in agreed.disagreed:
        answer = agreed.answers.get(row)
        found[row] = (None if answer is None else int(answer), ", ".join(sorted(said[row])))
    return found, differing(agreed, how)
