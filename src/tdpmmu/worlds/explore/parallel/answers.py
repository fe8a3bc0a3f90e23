"""Questions put to the threads' code, and the answers as all workers can read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tdpmmu.machine.ghost import HARM
from tdpmmu.worlds.explore.chunks import Shared
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.parallel.numbering import Numbering, Way
from tdpmmu.worlds.explore.turn import Choices, Segment, Turns


class Moment(NamedTuple):
    """When one loop would have come across something: in which state, looking at which thread."""

    state: int
    lane: int
    nth: int = 0


class Question(NamedTuple):
    """What can ``thread`` do from ``position`` in this shared state?"""

    when: Moment
    thread: int
    position: int
    shared: Shared


class Report(NamedTuple):
    """A property broken by a turn; ``alternatives``: which turn of those from there."""

    prop: str
    kind: str
    sentence: str
    thread: int
    position: int
    chunks: tuple[int, ...]
    values: tuple[int, ...]
    alternatives: tuple[int, ...]


class Trouble(NamedTuple):
    """Code that failed in a way that is no verdict, and when."""

    when: Moment
    error: Exception


@dataclass(slots=True)
class Answers:
    """What one worker has found out.

    ``words`` is as :func:`~tdpmmu.worlds.explore.parallel.kernels.add_facts` wants it, but that
    numbers of what is new have still to be put in, at the places noted.
    """

    words: Words
    positions: list[Way]
    values: list[tuple[int, bytes]]
    position_at: list[tuple[int, int]]
    value_at: list[tuple[int, int]]
    reports: list[Report]
    nested: list[tuple[str, str]]
    seen: dict[str, Moment]
    trouble: Trouble | None = None


@dataclass(slots=True)
class Writing:
    """Answers while they are written."""

    words: list[int] = field(default_factory=list)
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    ways: list[Way] = field(default_factory=list)
    values: dict[tuple[int, int], int] = field(default_factory=dict)
    position_at: list[tuple[int, int]] = field(default_factory=list)
    value_at: list[tuple[int, int]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)


class Answering:
    """Runs threads' code for questions."""

    def __init__(self, turns: Turns, numbering: Numbering, most_positions: int) -> None:
        self.turns = turns
        self.numbering = numbering
        self.most_positions = most_positions
        self.own: list[int] = []
        self._told: set[int] = set()
        self._nested: set[tuple[str, str]] = set()

    def answer(self, questions: list[Question]) -> Answers:
        """The answers that were not given before; up to the first trouble in the order given."""
        writing = Writing()
        seen: dict[str, Moment] = {}
        trouble = None
        turns = self.turns
        for question in questions:
            unseen = len(turns.unseen)
            before = list(turns.unseen) if unseen else []
            try:
                self._answer(question, writing)
            except Exception as error:
                trouble = Trouble(question.when, error)
                break
            finally:
                if len(turns.unseen) != unseen:
                    for label in before:
                        if label not in turns.unseen:
                            seen[label] = question.when
        nested = {(a, b) for a, inner in turns.acts.inside.items() for b in inner}
        new = sorted(nested - self._nested)
        self._nested = nested
        self.own = [mine for _, mine in writing.positions]
        announced = [self.numbering.announce_value(*key) for key in writing.values]
        return Answers(
            np.array(writing.words, np.int64),
            writing.ways,
            announced,
            writing.position_at,
            writing.value_at,
            writing.reports,
            new,
            seen,
            trouble,
        )

    def _answer(self, question: Question, writing: Writing) -> None:
        numbering = self.numbering
        _, thread, position, shared = question
        mine = numbering.go_to(thread, position)
        choices = self.turns.choices(numbering.shared(shared), thread, mine)
        if id(choices) in self._told:
            return
        self._told.add(id(choices))
        values = tuple([shared[chunk] for chunk in choices.chunks])
        outcomes = []
        for outcome in choices.outcomes:
            if outcome.violations or outcome.failure:
                self._report(question, choices, values, outcome, writing)
                if outcome.failure or any(ghost.kind == HARM for ghost, _ in outcome.violations):
                    continue
            outcomes.append(outcome)
        kind, above = c.URGENT if choices.urgent else c.FREE, len(outcomes)
        if choices.rival is not None:
            kind, above, outcomes = c.BLOCKED, choices.rival, []
        elif not outcomes and numbering.positions[thread].op(mine) is None:
            kind = c.GONE
        if above >= 1 << 10:
            raise OverflowError("too many turns from one place")
        words = writing.words
        words += (thread, position, len(values), *choices.chunks, *values)
        length_at = len(words)
        words += (0, above << 2 | kind)
        for outcome in outcomes:
            words.append(self._position(question, outcome, writing, len(words)))
            words[-1] |= outcome.progress << 31
            words.append(len(outcome.chunks))
            for chunk, value in outcome.chunks:
                words.append(chunk)
                words.append(self._value(chunk, value, writing, len(words)))
        words[length_at] = len(words) - length_at - 1

    def _report(
        self,
        question: Question,
        choices: Choices,
        values: tuple[int, ...],
        outcome: Segment,
        writing: Writing,
    ) -> None:
        said = [(ghost.name, ghost.kind, sentence) for ghost, sentence in outcome.violations]
        if outcome.failure is not None:
            said.append(("exception", HARM, outcome.failure))
        for prop, kind, sentence in said:
            writing.reports.append(
                Report(
                    prop,
                    kind,
                    sentence,
                    question.thread,
                    question.position,
                    choices.chunks,
                    values,
                    outcome.alternatives,
                )
            )

    def _position(self, question: Question, outcome: Segment, writing: Writing, at: int) -> int:
        thread = question.thread
        number = self.numbering.position(thread, outcome.position)
        if number >= 0:
            return number
        key = (thread, outcome.position)
        nth = writing.positions.get(key)
        if nth is None:
            if len(self.numbering.positions[thread]) > self.most_positions:
                raise OverflowError("too many positions in one thread")
            nth = writing.positions[key] = len(writing.ways)
            writing.ways.append(
                self.numbering.announce_position(
                    thread,
                    outcome.position,
                    question.shared,
                    question.position,
                    outcome.alternatives,
                )
            )
        writing.position_at.append((at, nth))
        return 0

    def _value(self, chunk: int, value: int, writing: Writing, at: int) -> int:
        number = self.numbering.value(chunk, value)
        if number >= 0:
            return number
        nth = writing.values.setdefault((chunk, value), len(writing.values))
        writing.value_at.append((at, nth))
        return 0


def read(answers: list[Answers], me: int, own: list[int], numbering: Numbering) -> list[Words]:
    """Number what is new, the same way in all workers, and put the numbers in.

    ``own``: this worker's numbers for the positions that it, being ``me``, has announced.
    """
    for worker, one in enumerate(answers):
        if one.positions:
            known = own if worker == me else [-1] * len(one.positions)
            numbers = [
                numbering.learn_position(way, mine)
                for way, mine in zip(one.positions, known, strict=True)
            ]
            for at, nth in one.position_at:
                one.words[at] |= numbers[nth]
        if one.values:
            numbers = [numbering.learn_value(chunk, data) for chunk, data in one.values]
            for at, nth in one.value_at:
                one.words[at] = numbers[nth]
    return [one.words for one in answers if len(one.words)]
