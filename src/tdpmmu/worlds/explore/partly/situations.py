"""Situations of a machine and the turns that lead from one to the next, for searches of a part.

A situation is the shared state and the position of every thread, both as the explorer interns
them.  Turns are the explorer's; which of them come first without anybody noticing (urgent ones,
waits for a kick) is not used here, since a bounded search may not reach what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tdpmmu.machine.ghost import HARM, Ghost
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.chunks import ChunkTable, Shared
from tdpmmu.worlds.explore.exploration import Budget, Counterexample, Exploration
from tdpmmu.worlds.explore.position.table import Positions
from tdpmmu.worlds.explore.reductions import MOVERS, Reduce, reductions
from tdpmmu.worlds.explore.turn import Turns


class Situation(NamedTuple):
    """Where everything stands."""

    shared: Shared
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """A turn that was taken: all that a schedule needs."""

    thread: int
    alternatives: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome of a thread's turn.  ``harmed``: there is no point in going on."""

    taken: Taken
    after: Situation
    violations: tuple[tuple[str, str, str], ...]
    harmed: bool


@dataclass(slots=True)
class PartialExploration(Exploration):
    """What came of a search of a part; ``bound`` says which part, for machines."""

    bound: dict[str, Any] = field(default_factory=dict)


class Situations:
    """A machine as a graph that is made as one walks it."""

    def __init__(self, machine: Machine, *, reduce: Reduce = True) -> None:
        self.machine = machine
        self.positions = [Positions(thread.start) for thread in machine.threads]
        self.chunks = ChunkTable(len(machine.initial))
        self.turns = Turns(
            machine, self.positions, self.chunks, reduce=reductions(reduce) & {MOVERS}
        )
        self.regular = [t for t, thread in enumerate(machine.threads) if not thread.alone]
        self.alone = [t for t, thread in enumerate(machine.threads) if thread.alone]
        self.start = Situation(
            self.chunks.intern(machine.initial), tuple(table.initial for table in self.positions)
        )

    def ended(self, situation: Situation, thread: int) -> bool:
        """Whether a thread has come to its end."""
        return self.positions[thread].op(situation.positions[thread]) is None

    def enabled(self, situation: Situation) -> list[int]:
        """Who can take a turn; those that run alone once all others have ended."""
        found = [t for t in self.regular if self.can_move(situation, t)]
        if not found and all(self.ended(situation, t) for t in self.regular):
            found = [t for t in self.alone if self.can_move(situation, t)][:1]
        return found

    def can_move(self, situation: Situation, thread: int) -> bool:
        """Whether a thread can."""
        position = situation.positions[thread]
        return bool(self.turns.choices(situation.shared, thread, position).outcomes)

    def outcomes(self, situation: Situation, thread: int) -> list[Outcome]:
        """Every outcome of a thread's next turn, in a fixed order."""
        shared, positions = situation
        found: list[Outcome] = []
        for segment in self.turns.choices(shared, thread, positions[thread]).outcomes:
            after = list(shared)
            for index, number in segment.chunks:
                after[index] = number
            places = (*positions[:thread], segment.position, *positions[thread + 1 :])
            broken = [_told(ghost, sentence) for ghost, sentence in segment.violations]
            if segment.failure is not None:
                broken.append(("exception", HARM, segment.failure))
            found.append(
                Outcome(
                    Taken(thread, segment.alternatives),
                    Situation(tuple(after), places),
                    tuple(broken),
                    any(kind == HARM for _, kind, _ in broken),
                )
            )
        return found

    def deadlock(self, situation: Situation) -> str | None:
        """Who waits for whom, if nobody can move and somebody has not ended."""
        waiting = [
            (thread.name, op)
            for thread, table, position in zip(
                self.machine.threads, self.positions, situation.positions, strict=True
            )
            if (op := table.op(position)) is not None and not thread.alone
        ]
        if not waiting:
            return None
        return "everybody waits: " + "; ".join(f"{who} at {op.describe()}" for who, op in waiting)


def _told(ghost: Ghost, sentence: str) -> tuple[str, str, str]:
    return ghost.name, ghost.kind, sentence


class Findings:
    """The first way found to break each property."""

    def __init__(self, result: PartialExploration) -> None:
        self.result = result
        self._reported: set[str] = set()

    def add(self, violations: tuple[tuple[str, str, str], ...], way: Callable[[], Any]) -> None:
        """Report what is new; ``way`` gives the turns that lead there."""
        for prop, kind, sentence in violations:
            if prop not in self._reported:
                self._reported.add(prop)
                self.result.violations.append(Counterexample(prop, kind, sentence, way(), 0))

    def stops(self, first: bool | str) -> bool:
        """Whether the violation that was looked for is there."""
        return bool(self._reported) if first is True else first in self._reported


Search = Callable[[Machine, Reduce, Budget, bool | str], PartialExploration]
"""A way to search a machine: with reduction or without, within a budget, up to what."""


def search_partly(
    machine: Machine,
    search: Search,
    *,
    reduce: Reduce = True,
    budget: Budget | None = None,
    first: bool | str = False,
) -> PartialExploration:
    """Search; again without a guard that a thread does not keep to."""
    mistrusted: list[str] = []
    while True:
        try:
            result = search(machine, reduce, budget or Budget(), first)
        except Mistrust as found:
            mistrusted += [name for name in str(found).split(", ") if name not in mistrusted]
            continue
        result.mistrusted = tuple(mistrusted)
        return result
