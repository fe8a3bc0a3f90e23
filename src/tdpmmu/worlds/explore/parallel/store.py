"""A worker's arrays of states and places, and their growth (see :mod:`~.sets`)."""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.store import slots_for
from tdpmmu.worlds.explore.parallel import sets as k

MANY = 1 << 22

MOST_NUMBERS = 1 << 31
"""States, or places, beyond which numbers have no room in a slot."""


def more(capacity: int) -> int:
    """The next capacity."""
    return capacity + capacity // (2 if capacity < MANY else 4)


class Store:
    """States in the order in which they were found, and places."""

    def __init__(self, ctl: Words, states: int = 1 << 16) -> None:
        self.ctl = ctl
        self.threads = int(ctl[c.THREADS])
        self.order: Words = np.empty(0, np.uint64)
        self.slots: Words = np.empty(0, np.uint32)
        self.rows: Words = np.empty(0, np.uint16)
        self.row_slots: Words = np.empty(0, np.uint32)
        self.grow_states(states)
        self.grow_places(states // 4)

    # --- growth -------------------------------------------------------------------------------

    def grow_states(self, capacity: int = 0) -> None:
        """Room for more states, or for ``capacity``."""
        capacity = capacity or more(len(self.order))
        if capacity >= MOST_NUMBERS:
            raise OverflowError(f"more than {MOST_NUMBERS:,} states")
        self.slots = np.empty(0, np.uint32)  # given back before the new ones are asked for
        self.order.resize(capacity, refcheck=False)
        self.slots = np.zeros(slots_for(capacity), np.uint32)
        self.ctl[c.NUMBER_BITS] = (capacity + 1).bit_length()
        count = int(self.ctl[c.COUNT])
        k.index_states(self.order, count, self.slots, self.ctl[c.NUMBER_BITS])

    def grow_places(self, capacity: int = 0) -> None:
        """Room for more places, or for ``capacity``."""
        capacity = capacity or more(len(self.rows) // self.threads)
        self.row_slots = np.empty(0, np.uint32)
        self.rows.resize(capacity * self.threads, refcheck=False)
        self.row_slots = np.zeros(slots_for(capacity), np.uint32)
        self.ctl[c.PLACE_BITS] = (capacity + 1).bit_length()
        count = int(self.ctl[c.PLACES])
        k.index_places(self.rows, count, self.threads, self.row_slots, self.ctl[c.PLACE_BITS])

    def make_room_for(self, position: int) -> None:
        """Widen rows that a position would not fit into."""
        if position > np.iinfo(self.rows.dtype).max:
            self.rows = self.rows.astype(np.uint32)

    # --- looking ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.ctl[c.COUNT])

    def state(self, number: int) -> tuple[int, list[int]]:
        """The shared state and the positions of a state."""
        key = int(self.order[number])
        base = (key & 0xFFFFFFFF) * self.threads
        return key >> 32, self.rows[base : base + self.threads].tolist()
