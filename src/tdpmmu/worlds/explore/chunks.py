"""Shared states as tuples of small integers: one number for each chunk's value."""

from __future__ import annotations

from typing import Any

from tdpmmu.machine.state import State

Shared = tuple[int, ...]
"""A shared state: the numbers of its chunks."""


class ChunkTable:
    """Numbers for the values that each chunk has taken."""

    def __init__(self, chunks: int) -> None:
        self._numbers: list[dict[tuple[Any, ...], int]] = [{} for _ in range(chunks)]
        self._values: list[list[tuple[Any, ...]]] = [[] for _ in range(chunks)]

    def number(self, index: int, value: tuple[Any, ...]) -> int:
        """The number of one chunk's value."""
        numbers = self._numbers[index]
        found = numbers.get(value)
        if found is None:
            found = numbers[value] = len(numbers)
            self._values[index].append(value)
        return found

    def values_of(self, index: int) -> list[tuple[Any, ...]]:
        """The values of one chunk, by number."""
        return self._values[index]

    def intern(self, state: State) -> Shared:
        """A state as numbers."""
        return tuple([self.number(i, value) for i, value in enumerate(state)])

    def state(self, shared: Shared) -> State:
        """A state in full."""
        return tuple([values[i] for values, i in zip(self._values, shared, strict=True)])

    def view(self, shared: Shared) -> ChunkView:
        """The same, chunk by chunk as it is asked for."""
        return ChunkView(self._values, shared)


class ChunkView(dict[int, tuple[Any, ...]]):
    """A state of which only the chunks that somebody looked at are there."""

    __slots__ = ("shared", "values_of")

    def __init__(self, values_of: list[list[tuple[Any, ...]]], shared: Shared) -> None:
        super().__init__()
        self.values_of = values_of
        self.shared = shared

    def __missing__(self, index: int) -> tuple[Any, ...]:
        value = self[index] = self.values_of[index][self.shared[index]]
        return value

    def changes(self) -> list[tuple[int, tuple[Any, ...]]]:
        """The chunks that are not what they were."""
        values_of, shared = self.values_of, self.shared
        found = []
        for index, value in self.items():
            before = values_of[index][shared[index]]
            if value is not before and value != before:
                found.append((index, value))
        return found
