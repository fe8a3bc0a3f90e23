"""States that are kept until they have been searched, beside a set of parts of their hashes."""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import lossy
from tdpmmu.worlds.explore.fast import states as st
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.room import Room
from tdpmmu.worlds.explore.fast.store import Store
from tdpmmu.worlds.explore.storage import BITSTATE, COMPACT, Left, Storage

_NUMBERS = {COMPACT: c.COMPACT, BITSTATE: c.BITSTATE}


class Frontier(Store):
    """Numbers, links and the order are those of :class:`Store`; its beginning is given back."""

    def __init__(self, ctl: Words, storage: Storage) -> None:
        self.storage = storage
        words = storage.size // 4 // lossy.WORDS * lossy.WORDS
        self._table = Room(np.uint32, words, words).array[:words]
        if storage.kind == COMPACT:
            self.most = words // 8 * 7
        self.given_back = 0
        self._start: tuple[Words, Words] | None = None
        super().__init__(ctl)
        ctl[c.STORAGE] = _NUMBERS[storage.kind]

    @property
    def slots(self) -> Words:
        """The set."""
        return self._table

    def full(self) -> bool:
        """Whether the table is."""
        return int(self.ctl[c.ROOM]) == self.most

    def grow_states(self, capacity: int = 0, *, most: int = 0, narrow: bool = True) -> None:
        """Room for more states in the order in which they were found: it is given back again."""
        super().grow_states(capacity, narrow=narrow)
        self.ctl[c.ROOM] = min(self.capacity, self.most)

    def fill(self, shared: Words, rows: Words, parents: Words, searched: int) -> None:
        """Begin with the first state."""
        if len(shared) > 1:
            raise ValueError("states that were found already are not in the set")
        self._start = shared, rows
        super().fill(shared, rows, parents, searched)

    def begin_again(self) -> None:
        """Forget all states but the first."""
        assert self._start is not None
        self.given_back = 0
        self.slots[:] = 0
        self.ctl[[c.CURRENT, c.TAKEN, c.TRANSITIONS, c.DEPTH, c.LEVEL_ENDS]] = 0
        super().fill(*self._start, np.zeros(1, np.int64), 0)

    def give_back(self) -> None:
        """Give the memory of the states that have been searched back."""
        self._order.give_back(int(self.ctl[c.CURRENT]) * self.fields.width)
        self.given_back = int(self.ctl[c.CURRENT])

    def _index(self) -> None:
        """Put the first state into the set; the others are there, however they are packed."""
        if len(self) == 1:
            shared, positions = self.state(0)
            hashed = lossy.hash_row(np.array([*positions, shared], np.int64))
            words = np.zeros(len(self.fields.shape), np.uint64)
            st.unpack_state(self.packed(), self.fields.width, 0, words)
            add = lossy.add_fingerprints if self.storage.kind == COMPACT else lossy.add_bits
            self.ctl[c.COUNT] = 0
            self.slots[:] = 0
            queue, hashes = np.zeros(1, np.int64), np.array([hashed], np.uint64)
            add(self.ctl, self.packed(), queue, 0, 1, words, np.ones(1, np.int64), hashes)
            self._links.array[0] = 0  # it was found from none

    def state(self, number: int) -> tuple[int, list[int]]:
        """The shared state and the positions of a state that has not been given back."""
        if number < self.given_back:
            raise LookupError(f"state {number} is not kept any more")
        return super().state(number)

    def number(self, shared: int, positions: list[int]) -> int:
        """States cannot be found."""
        raise LookupError("no state is found in a set of hashes")

    def left(self, ended: bool) -> Left:
        """What the set is expected to have left out."""
        unit = 0xFFFFFFFF if self.storage.kind == COMPACT else lossy.ODDS
        taken = (int(self.ctl[c.TAKEN]) + 1) / unit
        return Left(self.storage.kind, self.slots.nbytes, len(self), taken, ended)

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for; the table as if all of it were touched."""
        width = self.fields.width
        count = len(self)
        return {
            "states": self.slots.nbytes + self._links.bytes_of(2 * count // 64 + 1),
            "frontier": self._order.bytes_of((count - self.given_back) * width),
        }
