"""What several people say of one image, and what follows from it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from ssl_lab.active.people.annotators import dawid_skene
from ssl_lab.active.people.keys import Answer
from ssl_lab.errors import UsageError

Agreement = Literal["majority", "first", "newest", "ask-again", "dawid-skene"]
"""Which of several people's answers counts: what most of them say (of a tie none), the first or the newest one, none
until they agree, or what is likeliest if each is as reliable as their answers to all images show (`dawid_skene`)."""

TIE = 1e-6  # of chances


@dataclass(frozen=True)
class Vote:
    """One answer. who: the person, None if that is not said. when, since: its last change and its beginning in seconds
    since 1970, None likewise. annotation: Label Studio's number of it, which stays when it is corrected. where: the
    file and row, for errors."""

    row: int
    answer: Answer
    who: str | None = None
    when: float | None = None
    since: float | None = None
    annotation: str | None = None
    where: str = ""


class Agreed(NamedTuple):
    """answers: of each row that has one. disagreed: the rows of which people say different things; open: those among
    them that have no answer therefore."""

    answers: dict[int, Answer]
    disagreed: tuple[int, ...]
    open: tuple[int, ...]


def agree(votes: Iterable[Vote], how: Agreement = "majority") -> Agreed:
    """The answers that votes, oldest file first, come to.

    A person's later answer replaces the earlier one, by time, else by order. One who skips an image says nothing of
    it where another one answers; where all skip it, it is abstained. UsageError where one file says two things of an
    image, and neither who nor when.
    """
    by_row: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_row[vote.row].append(vote)
    answers: dict[int, Answer] = {}
    disagreed, left = [], []
    now = {row: _current(said) for row, said in by_row.items()}
    likeliest = _likeliest([vote for current in now.values() for vote in current]) if how == "dawid-skene" else {}
    for row, current in now.items():
        given = [vote for vote in current if vote.answer is not None]
        different = len({vote.answer for vote in given}) > 1
        if different:
            disagreed.append(row)
        chosen: Vote | None = (given or current)[-1]
        if different:
            chosen = likeliest.get(row) if how == "dawid-skene" else _chosen(given, how)
        if chosen is None:
            left.append(row)
        else:
            answers[row] = chosen.answer
    return Agreed(answers, tuple(disagreed), tuple(left))


def _current(votes: Sequence[Vote]) -> list[Vote]:
    """What each person says now, in the order of time, each with the beginning of the first that this person said."""
    newest: dict[object, Vote] = {}
    for number, vote in enumerate(sorted(votes, key=lambda vote: _time(vote.when))):
        key = number if vote.annotation is None else vote.annotation  # which may be exported twice, in two formats
        newest.pop(key, None)
        newest[key] = vote
    begun: dict[str | None, float | None] = {}
    for vote in votes:
        since = vote.when if vote.since is None else vote.since
        begun[vote.who] = min(since, begun.get(vote.who, since), key=_time)
    people: dict[str | None, Vote] = {}
    for vote in newest.values():
        before = people.pop(vote.who, None)
        unclear = before is not None and vote.who is None and before.when is vote.when is None
        if before is not None and unclear and before.answer != vote.answer:
            raise UsageError(f"{vote.where} is {vote.answer!r} there, but {before.answer!r} before; expected one "
                             "label, or a column `annotator` that says who")
        people[vote.who] = replace(vote, since=begun[vote.who])
    return list(people.values())


def _time(when: float | None) -> float:
    return -math.inf if when is None else when


def _chosen(votes: Sequence[Vote], how: Agreement) -> Vote | None:
    """The vote that counts among several that differ."""
    if how == "first":
        return min(votes, key=lambda vote: _time(vote.since))
    if how == "newest":
        return votes[-1]
    counts = Counter(vote.answer for vote in votes).most_common(2)
    if how == "ask-again" or counts[0][1] == counts[1][1]:
        return None
    return next(vote for vote in votes if vote.answer == counts[0][0])


def _likeliest(votes: Sequence[Vote]) -> dict[int, Vote]:
    """Of each row a vote for its likeliest answer by `dawid_skene`, of all people's votes; none where two are equally
    likely. To ignore an image is an answer like the others. Who is not named counts as one person."""
    given = [vote for vote in votes if vote.answer is not None]
    if not given:
        return {}
    answers = sorted({vote.answer for vote in given}, key=str)
    number = {answer: place for place, answer in enumerate(answers)}
    found = dawid_skene([(vote.row, vote.who or "", number[vote.answer]) for vote in given], len(answers))
    chances = dict(zip(found.rows.tolist(), found.classes, strict=True))
    chosen: dict[int, Vote] = {}
    for vote in given:
        best = sorted(chances[vote.row])[-2:]
        if chances[vote.row][number[vote.answer]] == best[-1] and (len(best) == 1 or best[1] - best[0] > TIE):
            chosen[vote.row] = vote
    return chosen


def seconds_of(value: object) -> float | None:
    """When that was, from a time as Label Studio writes it; without a zone in UTC. None if it is no time."""
    try:
        time = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
