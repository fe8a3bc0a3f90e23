"""The states that a search has met, as packed integers, and the turns between them.

A thread's position is an integer (:mod:`~tdpmmu.worlds.explore.position`), the shared state
another; a global state is those integers packed into one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.chunks import ChunkTable, Shared
from tdpmmu.worlds.explore.position.table import Positions
from tdpmmu.worlds.explore.reductions import Reduce
from tdpmmu.worlds.explore.turn import Turn, Turns

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.loop import CompiledLoop

POSITION_BITS = 18
"""Room for one thread's positions in a packed key."""

Entry = tuple[int, ...] | list[int] | int
"""What a thread can do: the differences its turns make to the key.

A list: these turns are urgent, no other thread need be looked at.  A number: blocked until that
thread has moved, and that is all that need be looked at.
"""


class Parents(Protocol):
    """For each state the one from which it was found first."""

    def __getitem__(self, number: int, /) -> int: ...


class Graph:
    """States and turns of one machine, as far as they are known."""

    def __init__(self, machine: Machine, *, reduce: Reduce) -> None:
        self.machine = machine
        self.compiled: CompiledLoop | None = None
        self.positions = [Positions(thread.start) for thread in machine.threads]
        self.chunks = ChunkTable(len(machine.initial))
        self.turns = Turns(machine, self.positions, self.chunks, reduce=reduce)
        self.shared: Sequence[Shared] = []
        self.intern = self._interning()
        self._tables: Sequence[Mapping[int, Entry]] = [{} for _ in machine.threads]
        self._progress: Sequence[Mapping[int, int]] = [{} for _ in machine.threads]
        self.order: Sequence[int] = []
        self.number: Mapping[int, int] = {}
        self.parents: Parents = array("I")
        self.shift = POSITION_BITS * len(machine.threads)
        self.bits = POSITION_BITS
        self._mask = (1 << POSITION_BITS) - 1

    def _interning(self) -> Callable[[Shared], int]:
        numbers: dict[Shared, int] = {}
        shared: list[Shared] = []
        self.shared = shared

        def intern(one: Shared) -> int:
            """The number of a shared state."""
            number = numbers.get(one)
            if number is None:
                number = numbers[one] = len(shared)
                shared.append(one)
            return number

        return intern

    def unpack(self, key: int) -> tuple[int, list[int]]:
        """A packed global state as the numbers of the shared state and of the positions."""
        mask = self._mask
        return key >> self.shift, [
            key >> POSITION_BITS * i & mask for i in range(len(self.positions))
        ]

    def successors(self, key: int) -> list[tuple[int, int, bool]]:
        """``(thread, successor, progress)`` for every turn from a state that was searched."""
        shared = key >> self.shift << POSITION_BITS
        found: list[tuple[int, int, bool]] = []
        for thread, table in enumerate(self._tables):
            lookup = shared | key >> POSITION_BITS * thread & self._mask
            entry = table.get(lookup, ())
            if type(entry) is int:
                thread = entry
                lookup = shared | key >> POSITION_BITS * thread & self._mask
                entry = self._tables[thread].get(lookup, ())
                found = []
            urgent = type(entry) is list
            if urgent:
                found = []
            flags = self._progress[thread].get(lookup, 0)
            found += [
                (thread, key + delta, bool(flags >> i & 1))
                for i, delta in enumerate(entry)  # type: ignore[arg-type]
            ]
            if urgent or table is not self._tables[thread]:
                break
        return found

    def path(self, number: int) -> list[Turn]:
        """The turns that lead to a state, by the shortest way found."""
        numbers = [number]
        while numbers[-1]:
            numbers.append(self.parents[numbers[-1]])
        numbers.reverse()
        if self.compiled is not None:
            states = self.compiled.states_of(numbers)
        else:
            states = [self.order[number] for number in numbers]
        return [self.turn_between(a, b) for a, b in pairwise(states)]

    def turn_between(self, before: int, after: int) -> Turn:
        """One turn that leads from a global state to the next."""
        number, positions = self.unpack(before)
        number_after, positions_after = self.unpack(after)
        shared, target = self.shared[number], self.shared[number_after]
        for thread, position in enumerate(positions):
            rest = positions.copy()
            rest[thread] = positions_after[thread]
            if rest != positions_after:
                continue
            for turn in self.turns.take(shared, thread, position):
                if turn.position == positions_after[thread] and turn.shared == target:
                    return turn
        raise LookupError("no turn leads there")
