"""A store as the plain loop's lists and dicts, for whatever reads the graph after the search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.store import Store

Entry = tuple[int, ...] | list[int] | int


class Packing:
    """How the engine packs the numbers of a shared state and of positions into one integer."""

    def __init__(self, store: Store, bits: int) -> None:
        self.store = store
        self.bits = bits
        self.mask = (1 << bits) - 1
        self.shift = bits * store.threads

    def pack(self, shared: int, positions: list[int]) -> int:
        """A state as one number."""
        key = shared << self.shift
        for thread, position in enumerate(positions):
            key |= position << self.bits * thread
        return key

    def unpack(self, key: int) -> tuple[int, list[int]]:
        """The other way round."""
        return key >> self.shift, [
            key >> self.bits * thread & self.mask for thread in range(self.store.threads)
        ]


class Order(Sequence[int]):
    """The states in the order in which they were found."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing

    def __len__(self) -> int:
        return len(self._packing.store)

    @overload
    def __getitem__(self, number: int) -> int: ...
    @overload
    def __getitem__(self, number: slice) -> list[int]: ...
    def __getitem__(self, number: int | slice) -> int | list[int]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        count = len(self)
        if not -count <= number < count:
            raise IndexError(number)
        return self._packing.pack(*self._packing.store.state(number % count))


class Kept(Sequence[int]):
    """An order of which some states are at hand."""

    def __init__(self, order: Sequence[int], states: Mapping[int, int]) -> None:
        self._order = order
        self._states = states

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, number: int) -> int: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[int]: ...
    def __getitem__(self, number: int | slice) -> int | Sequence[int]:
        if isinstance(number, int) and number in self._states:
            return self._states[number]
        return self._order[number]


class Numbers(Mapping[int, int]):
    """The number of each state."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing

    def __getitem__(self, key: int) -> int:
        number = self._packing.store.number(*self._packing.unpack(key))
        if number < 0:
            raise KeyError(key)
        return number

    def __iter__(self) -> Iterator[int]:
        return iter(Order(self._packing))

    def __len__(self) -> int:
        return len(self._packing.store)


class Parents:
    """The state from which each state was found first."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, number: int) -> int:
        return self._store.parent(number)


class Table(Mapping[int, Entry]):
    """What one thread can do: the differences that its turns make to a packed state."""

    def __init__(self, packing: Packing, known: Known, thread: int) -> None:
        self.packing = packing
        self.known = known
        self.thread = thread

    def words(self, lookup: int) -> list[int]:
        """The head of an entry and its turns; KeyError if there is none."""
        packing = self.packing
        shared, position = lookup >> packing.bits, lookup & packing.mask
        return self.known.entry(self.thread, shared, position)

    def __getitem__(self, lookup: int) -> Entry:
        head, *turns = self.words(lookup)
        if head & 3 == c.BLOCKED:
            return head >> 2
        packing = self.packing
        shared, position = lookup >> packing.bits, lookup & packing.mask
        lane = packing.bits * self.thread
        deltas = [
            ((word >> 32) - shared << packing.shift) + ((word & c.POSITION_MASK) - position << lane)
            for word in turns
        ]
        return deltas if head & 3 == c.URGENT else tuple(deltas)

    def __iter__(self) -> Iterator[int]:
        for key in self.known.entry_keys():
            if (key - 1) >> 18 & 63 == self.thread:
                yield (key - 1) >> 24 << self.packing.bits | (key - 1) & (1 << 18) - 1

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Flags(Mapping[int, int]):
    """Which turns of one thread get on, as bits; look-ups without any are left out."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __getitem__(self, lookup: int) -> int:
        flags = 0
        for i, word in enumerate(self._table.words(lookup)[1:]):
            flags |= (word >> 31 & 1) << i
        if not flags:
            raise KeyError(lookup)
        return flags

    def __iter__(self) -> Iterator[int]:
        return (lookup for lookup in self._table if lookup in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
