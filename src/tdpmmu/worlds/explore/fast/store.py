"""The arrays that :mod:`~tdpmmu.worlds.explore.fast.kernels` works on, and their growth.

For each state: 8 bytes for itself, 1 for the number of states first found from it (which is all
that is needed to find its parent, since parents come in order), and a slot of 4 bytes, slots being
at most 4/5 full.  Places are rows of 2 bytes for each thread, with slots likewise.  Where numbers
are too large for that, they are given more room.
"""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import kernels as k
from tdpmmu.worlds.explore.fast.control import Words

MANY = 1 << 22

MOST_NUMBERS = 1 << 31
"""States, or places, beyond which numbers have no room in a slot."""


def slots_for(capacity: int) -> int:
    """Slots for so many numbers."""
    return capacity * 5 // 4 + 8


def more(capacity: int) -> int:
    """The next capacity."""
    return capacity + capacity // (2 if capacity < MANY else 4)


class Store:
    """States in the order in which they were found, and places."""

    def __init__(self, ctl: Words, states: int = 1 << 16) -> None:
        self.ctl = ctl
        self.threads = int(ctl[c.THREADS])
        self.order: Words = np.empty(0, np.uint64)
        self.children: Words = np.empty(0, np.uint8)
        self.slots: Words = np.empty(0, np.uint32)
        self.rows: Words = np.empty(0, np.uint16)
        self.row_slots: Words = np.empty(0, np.uint32)
        self.grow_states(states)
        self.grow_places(states // 4)
        self.make_room_for(0, 0)

    # --- growth -------------------------------------------------------------------------------

    def grow_states(self, capacity: int = 0) -> None:
        """Room for more states, or for ``capacity``."""
        capacity = capacity or more(len(self.order))
        if capacity >= MOST_NUMBERS:
            raise OverflowError(f"more than {MOST_NUMBERS:,} states")
        self.slots = np.empty(0, np.uint32)  # given back before the new ones are asked for
        self.order.resize(capacity, refcheck=False)
        self.children.resize(capacity, refcheck=False)
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

    def make_room_for(self, position: int, turns: int) -> None:
        """Widen what a position, or the turns of one thread, would not fit into."""
        if position > np.iinfo(self.rows.dtype).max:
            self.rows = self.rows.astype(np.uint32)
        if turns * self.threads > np.iinfo(self.children.dtype).max:
            self.children = self.children.astype(np.uint16)
        self.ctl[c.MOST_TURNS] = np.iinfo(self.children.dtype).max

    # --- filling ------------------------------------------------------------------------------

    def take_over(self, shared: Words, rows: Words, children: Words, current: int) -> None:
        """Begin with states that were found already, the first ``current`` of them searched."""
        count = len(shared)
        places, inverse = np.unique(rows, axis=0, return_inverse=True)
        while len(self.order) < 2 * count:
            self.grow_states()
        while len(self.rows) // self.threads < 2 * len(places):
            self.grow_places()
        self.rows[: places.size] = places.ravel()
        self.order[:count] = shared.astype(np.uint64) << np.uint64(32)
        self.order[:count] |= inverse.ravel().astype(np.uint64)
        self.children[: len(children)] = children
        self.ctl[c.COUNT], self.ctl[c.PLACES], self.ctl[c.CURRENT] = count, len(places), current
        k.index_states(self.order, count, self.slots, self.ctl[c.NUMBER_BITS])
        k.index_places(self.rows, len(places), self.threads, self.row_slots, self.ctl[c.PLACE_BITS])

    def restore(self, order: Words, children: Words, rows: Words) -> None:
        """States and places as they were saved."""
        self.make_room_for(int(rows.max(initial=0)), int(children.max(initial=0)))
        self.order.resize(max(len(self.order), 2 * len(order)), refcheck=False)
        self.order[: len(order)] = order
        self.rows.resize(max(len(self.rows), 2 * len(rows)), refcheck=False)
        self.rows[: len(rows)] = rows
        self.grow_states(len(self.order))
        self.grow_places(len(self.rows) // self.threads)
        self.children[:] = 0
        self.children[: len(children)] = children

    # --- looking ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.ctl[c.COUNT])

    def state(self, number: int) -> tuple[int, list[int]]:
        """The shared state and the positions of a state."""
        key = int(self.order[number])
        base = (key & 0xFFFFFFFF) * self.threads
        return key >> 32, self.rows[base : base + self.threads].tolist()

    def number(self, shared: int, positions: list[int]) -> int:
        """The number of a state, or -1."""
        row = np.array(positions, np.uint32)
        place, _, _ = k.find_places(
            self.rows, self.row_slots, self.ctl[c.PLACE_BITS], row, 0, self.threads, -1, 0
        )
        if place < 0:
            return -1
        key = np.uint64(shared << 32 | int(place))
        return int(k.find_state(self.order, self.slots, self.ctl[c.NUMBER_BITS], key)[0])

    def parent(self, number: int) -> int:
        """The state from which a state was found first."""
        if number == 0:
            return 0
        searched = min(int(self.ctl[c.CURRENT]) + 1, len(self))
        return int(k.parent_of(self.children, searched, number))

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for."""
        states = self.order.nbytes + self.children.nbytes + self.slots.nbytes
        return {
            "states": states,
            "places": self.rows.nbytes + self.row_slots.nbytes,
        }
