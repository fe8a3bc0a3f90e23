"""How workers speak of positions and values.

Every worker numbers what its own threads' code comes across.  What is in the states that it sends
to others it announces first, to all: values as they are, positions by the results that lead there
from one that was announced before, so that whoever is told gets there, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tdpmmu.worlds.explore.chunks import ChunkTable
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.parallel.naming import Constants
from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.position.table import Positions


@dataclass(slots=True)
class News:
    """What is new: ``values`` of each chunk in the order of their numbers, from where they were.

    ``positions``: thread, number, digest of the key, and from where which results lead there.
    """

    values: list[tuple[int, bytes]] = field(default_factory=list)
    positions: list[tuple[int, int, bytes, int, bytes]] = field(default_factory=list)


class Speaker:
    """What a worker has told the others."""

    def __init__(
        self, positions: list[Positions], chunks: ChunkTable, constants: Constants
    ) -> None:
        self._positions = positions
        self._chunks = chunks
        self._constants = constants
        # The first value of each chunk, and the first position, are those of the initial state.
        self._told_values = [1] * len(chunks._values)
        self._told = [{table.initial} for table in positions]

    def news(self, rows: Words) -> News:
        """What was not told yet of the values, and of the positions in rows of places."""
        news = News()
        for chunk, values in enumerate(self._chunks._values):
            for value in values[self._told_values[chunk] :]:
                news.values.append((chunk, self._constants.dumps(value)))
            self._told_values[chunk] = len(values)
        for thread in range(len(self._told)):
            self._tell(news, thread, np.unique(rows[:, thread]).tolist())
        return news

    def everything(self, ends: Words) -> News:
        """All values, and the positions that are marked, by thread."""
        news = self.news(np.empty((0, len(self._told)), np.uint32))
        for thread, marked in enumerate(ends):
            self._tell(news, thread, np.flatnonzero(marked).tolist())
        return news

    def _tell(self, news: News, thread: int, numbers: list[int]) -> None:
        told, table = self._told[thread], self._positions[thread]
        for number in numbers:
            if number in told:
                continue
            results = []
            before = number
            while before not in told:
                step = table._came_from[before]
                assert step is not None  # the initial position was told
                results.append(step[1])
                before = step[0]
            told.add(number)
            digest = self._constants.digest(table.key(number))
            path = self._constants.dumps(results[::-1])
            news.positions.append((thread, number, digest, before, path))


class Listener:
    """What one other worker's numbers mean here."""

    def __init__(
        self, positions: list[Positions], chunks: ChunkTable, constants: Constants
    ) -> None:
        self._positions = positions
        self._chunks = chunks
        self._constants = constants
        self._values = [[0] for _ in chunks._values]
        self._numbers: list[dict[int, int]] = [{t.initial: t.initial} for t in positions]

    def hear(self, news: News) -> None:
        """Learn what is new, running threads' code to get to positions."""
        for chunk, data in news.values:
            number = self._chunks.number(chunk, self._constants.loads(data))
            self._values[chunk].append(number)
        for thread, number, digest, before, path in news.positions:
            table = self._positions[thread]
            here = self._numbers[thread][before]
            for result in self._constants.loads(path):
                here = table.next(here, result)
            if self._constants.digest(table.key(here)) != digest:
                raise UnsupportedPosition(
                    f"{table.line(here)}: another process gets somewhere else by the same results"
                )
            self._numbers[thread][number] = here

    def shared(self, rows: Words) -> Words:
        """Rows of shared states in this worker's numbers."""
        mine = np.empty_like(rows)
        for chunk, numbers in enumerate(self._values):
            mine[:, chunk] = np.array(numbers, np.uint32)[rows[:, chunk]]
        return mine

    def places(self, rows: Words) -> Words:
        """Rows of places in this worker's numbers."""
        mine = np.empty(rows.shape, np.uint32)
        for thread, numbers in enumerate(self.positions()):
            mine[:, thread] = numbers[rows[:, thread]]
        return mine

    def positions(self) -> list[Words]:
        """By thread, this worker's number for each of the other's."""
        tables = []
        for numbers in self._numbers:
            table = np.zeros(max(numbers) + 1, np.uint32)
            table[list(numbers)] = list(numbers.values())
            tables.append(table)
        return tables
