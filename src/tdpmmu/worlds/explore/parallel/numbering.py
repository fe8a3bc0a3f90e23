"""Numbers for positions and values on which all workers agree.

Every worker numbers what its own threads' code comes across, in :class:`ChunkTable` and
:class:`Positions`.  What others have to know of is announced, and numbered again, by all workers
alike.  A position is announced with the turn that led there, so that whoever has to run code from
there can get there, too; few ever have to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdpmmu.worlds.explore.chunks import ChunkTable, Shared
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.position import Positions, UnsupportedPosition
from tdpmmu.worlds.explore.turn import Turns


@dataclass(frozen=True, slots=True)
class Way:
    """How to get to a position: by this outcome of the turn that ``thread`` takes from ``before``.

    ``steady``: whatever the state, its turns are neither urgent nor do they wait for one thread.
    """

    thread: int
    digest: bytes
    shared: Shared
    before: int
    alternatives: tuple[int, ...]
    steady: bool


class Numbering:
    """From a worker's own numbers to everybody's, and back."""

    def __init__(
        self, turns: Turns, positions: list[Positions], chunks: ChunkTable, constants: Constants
    ) -> None:
        self.turns = turns
        self.positions = positions
        self.chunks = chunks
        self.constants = constants
        self.ways: list[list[Way | None]] = [[None] for _ in positions]
        self._by_digest = [{constants.digest(p._keys[p.initial]): 0} for p in positions]
        self._mine = [[p.initial] for p in positions]
        self._everybodys = [{p.initial: 0} for p in positions]
        # A chunk's first value is that of the initial state.
        self._value_of = [[0] for _ in chunks._values]
        self._number_of = [{0: 0} for _ in chunks._values]
        self.announced: list[tuple[int, bytes]] = []

    # --- values -----------------------------------------------------------------------------------

    def value(self, chunk: int, mine: int) -> int:
        """Everybody's number for one of a chunk's values, or -1."""
        return self._number_of[chunk].get(mine, -1)

    def shared(self, everybodys: Sequence[int]) -> Shared:
        """A shared state in this worker's numbers."""
        return tuple([of[n] for of, n in zip(self._value_of, everybodys, strict=True)])

    def announce_value(self, chunk: int, mine: int) -> tuple[int, bytes]:
        """A value that others may not know."""
        return chunk, self.constants.dumps(self.chunks._values[chunk][mine])

    def learn_value(self, chunk: int, data: bytes) -> int:
        """Everybody's number for a value that was announced."""
        mine = self.chunks.number(chunk, self.constants.loads(data))
        number = self._number_of[chunk].get(mine)
        if number is None:
            number = self.adopt_value(chunk, mine)
            self.announced.append((chunk, data))
        return number

    def adopt_value(self, chunk: int, mine: int) -> int:
        """A number for a value, if need be one that nobody else knows."""
        number = self._number_of[chunk].get(mine)
        if number is None:
            number = self._number_of[chunk][mine] = len(self._value_of[chunk])
            self._value_of[chunk].append(mine)
        return number

    # --- positions --------------------------------------------------------------------------------

    def position(self, thread: int, mine: int) -> int:
        """Everybody's number for a position, or -1."""
        return self._everybodys[thread].get(mine, -1)

    def announce_position(
        self, thread: int, mine: int, shared: Shared, before: int, alternatives: tuple[int, ...]
    ) -> Way:
        """A position that others may not know; ``shared`` and ``before`` in everybody's numbers."""
        table = self.positions[thread]
        steady = not hasattr(table.op(mine), "vcpu")
        return Way(
            thread, self.constants.digest(table._keys[mine]), shared, before, alternatives, steady
        )

    def learn_position(self, way: Way, mine: int = -1) -> int:
        """Everybody's number for a position that was announced; ``mine``: if it is known here."""
        numbers = self._by_digest[way.thread]
        number = numbers.get(way.digest)
        if number is None:
            number = numbers[way.digest] = len(self._mine[way.thread])
            self._mine[way.thread].append(-1)
            self.ways[way.thread].append(way)
        if mine >= 0:
            self._mine[way.thread][number] = mine
            self._everybodys[way.thread][mine] = number
        return number

    def adopt_position(self, thread: int, mine: int) -> int:
        """A number for a position, if need be one that nobody else knows."""
        number = self._everybodys[thread].get(mine)
        if number is None:
            number = self._by_digest[thread].get(
                self.constants.digest(self.positions[thread]._keys[mine]), -1
            )
            if number < 0:
                number = len(self._mine[thread])
                self._mine[thread].append(mine)
                self.ways[thread].append(None)
            self._everybodys[thread][mine] = number
            self._mine[thread][number] = mine
        return number

    def go_to(self, thread: int, number: int) -> int:
        """This worker's number for a position, which it may have to run code to get to."""
        mine = self._mine[thread]
        chain = []
        while mine[number] < 0:
            chain.append(number)
            way = self.ways[thread][number]
            assert way is not None
            number = way.before
        for there in reversed(chain):
            way = self.ways[thread][there]
            assert way is not None
            outcomes = self.turns.outcomes(self.shared(way.shared), thread, mine[number])
            found = [o.position for o in outcomes if o.alternatives == way.alternatives]
            table = self.positions[thread]
            if not found or self.constants.digest(table._keys[found[0]]) != way.digest:
                name = table.line(mine[number])
                raise UnsupportedPosition(f"{name}: another process gets somewhere else from here")
            mine[there] = found[0]
            self._everybodys[thread][found[0]] = there
            number = there
        return mine[number]

    def __len__(self) -> int:
        return sum(map(len, self._mine))

    def counts(self) -> list[int]:
        """Positions known to everybody, by thread."""
        return [len(mine) for mine in self._mine]
