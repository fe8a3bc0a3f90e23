"""The states that a search has found, and their growth.

Each takes a few bytes for itself, two bits to find the one that it was found from, and a slot of 4
bytes in the set, slots being at most 7/8 full.  All of it grows in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import states as st
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.packing import Fields, Packed, least_bits, roomy_bits, tight_bits
from tdpmmu.worlds.explore.fast.room import Room, fill
from tdpmmu.worlds.explore.fast.together import together

MANY = 1 << 17
"""States from which on it matters how much memory each takes."""

MOST = 1 << 31
"""States beyond which numbers have no room in a slot."""

BEHIND = 256
"""Bytes behind the last state: words are read and written whole."""


def slots_for(capacity: int) -> int:
    """Slots for so many states: whole lines of the cache."""
    return (capacity * 8 // 7 // c.LINE + 1) * c.LINE


def more(capacity: int) -> int:
    """The next capacity."""
    return capacity * 2 if capacity < MANY else capacity + capacity // 4


class Store:
    """States in the order in which they were found."""

    most = c.NO_LIMIT
    """States for which there is room, whatever memory there is."""

    given_back = 0
    """How many of the first ones are not kept any more."""

    def __init__(self, ctl: Words, states: int = 1 << 16) -> None:
        self.ctl = ctl
        self.threads = int(ctl[c.THREADS])
        self.capacity = 0
        self.threads_at_work = 1
        self.before_repacking: Callable[[], object] = tuple
        self._positions = [1] * self.threads
        self._shared = 1
        self._order = Room(np.uint8, MOST * 16)
        self._slots = Room(np.uint32, slots_for(MOST))
        self._links = Room(np.uint64, 2 * MOST // 64)
        self.fields = Fields(roomy_bits(self._positions, self._shared))
        ctl[c.WIDTH] = self.fields.width
        self.grow_states(states)

    def packed(self) -> Packed:
        """The arrays, for compiled code."""
        return self.fields.packed(self._order.array, self.slots, self._links.array)

    @property
    def slots(self) -> Words:
        """The set."""
        return self._slots.array[: slots_for(self.capacity)]

    @property
    def order(self) -> Words:
        """The bytes of all states."""
        return self._order.array[: len(self) * self.fields.width]

    # --- growth -------------------------------------------------------------------------------

    def bytes_for(self, states: int) -> int:
        """What so many more states take."""
        return states * (self.fields.width + 1) + 4 * slots_for(states)

    def grow_states(self, capacity: int = 0, *, most: int = 0, narrow: bool = True) -> None:
        """Room for more states, or for ``capacity``; ``most`` is how many bytes they may take.

        ``narrow``: states may be packed in fewer bytes, if they can.
        """
        before, capacity = self.capacity, capacity or more(self.capacity)
        if most and most < self.bytes_for(capacity - before):
            capacity = before + most * before // self.bytes_for(before)
        self.capacity = capacity
        if self.capacity >= MOST:
            raise OverflowError(f"more than {MOST:,} states")
        self._order.grow(self.capacity * self.fields.width + BEHIND)
        self._links.grow(2 * self.capacity // 64 + 2)
        self._slots.grow(slots_for(self.capacity))
        self.ctl[c.NUMBER_BITS] = (self.capacity + 1).bit_length()
        self.ctl[c.ROOM] = self.capacity
        if narrow:
            best = Fields(self._wanted())
            if best.width < self.fields.width:
                self._repack(best)
        if len(self):
            self._index()

    def make_room_for(self, positions: Sequence[int], shared: int) -> None:
        """Widen the fields that so many positions of each thread, or shared states, overflow."""
        if shared == self._shared and positions == self._positions:
            return
        self._positions, self._shared = list(positions), shared
        least = least_bits(positions, shared)
        if any(wide < need for wide, need in zip(self.fields.bits, least, strict=True)):
            self.before_repacking()
            self._repack(Fields(self._wanted()))
            if len(self):
                self._index()

    def _wanted(self) -> list[int]:
        bits = tight_bits if self.capacity > MANY else roomy_bits
        return bits(self._positions, self._shared)

    def _repack(self, fields: Fields) -> None:
        self._order.grow(self.capacity * fields.width + BEHIND)
        old, self.fields = self.packed(), fields
        st.repack(
            self.given_back, len(self), int(self.ctl[c.WIDTH]), old, fields.width, self.packed()
        )
        self.ctl[c.WIDTH] = fields.width

    def _index(self) -> None:
        """Fill the slots anew, by several threads if there are."""
        self.slots[:] = 0
        packed, threads = self.packed(), self.threads_at_work
        ends = [len(self) * part // threads for part in range(threads + 1)]
        together([partial(st.index_states, self.ctl, packed, *part) for part in pairwise(ends)])

    # --- filling ------------------------------------------------------------------------------

    def fill(self, shared: Words, rows: Words, parents: Words, searched: int) -> None:
        """Begin with states that were found already, the first ``searched`` of them searched.

        ``rows`` has a row of positions for each, ``parents`` the state it was found from.
        """
        count = len(shared)
        self._grow_to(count)
        packed = self.packed()
        st.put_states(packed, self.fields.width, 0, shared, rows)
        st.put_links(packed.links, 1, parents[1:])
        self.ctl[c.COUNT], self.ctl[c.CURRENT] = count, searched
        self._index()

    def restore(
        self, bits: Sequence[int], order: Iterable[Words], links: Iterable[Words], last_link: int
    ) -> None:
        """States as they were saved; their number is in the control block already.

        ``order`` and ``links`` come in pieces, ``last_link`` is behind all of these.
        """
        count, self.ctl[c.COUNT] = int(self.ctl[c.COUNT]), 0
        self.grow_states(max(self.capacity, count + 1))  # more is for a budget of memory to give
        # Only now: growing gives states the fields that suit what is known of threads so far.
        self.fields = Fields(bits)
        self.ctl[c.WIDTH] = self.fields.width
        self._order.grow(self.capacity * self.fields.width + BEHIND)
        fill(self._order.array, order)
        self._links.array[fill(self._links.array, links)] = last_link
        self.ctl[c.COUNT] = count
        self._index()

    def _grow_to(self, count: int) -> None:
        """Room for so many, while there are none."""
        while self.capacity < 2 * count:
            self.grow_states()

    # --- looking ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.ctl[c.COUNT])

    def links(self) -> Words:
        """The bits by which states are linked to those that they were found from."""
        used = len(self) + int(self.ctl[c.CURRENT])
        return self._links.array[: (used + 63) // 64]

    def state(self, number: int) -> tuple[int, list[int]]:
        """The shared state and the positions of a state."""
        fields = self.fields
        words = np.zeros(len(fields.shape), np.uint64)
        st.unpack_state(self.packed(), fields.width, number, words)
        *positions, shared = (
            int(words[fields.word[i]]) >> int(fields.shift[i]) & int(fields.mask[i])
            for i in range(self.threads + 1)
        )
        return shared, positions

    def number(self, shared: int, positions: list[int]) -> int:
        """The number of a state, or -1."""
        fields = self.fields
        words = [0] * len(fields.shape)
        for i, value in enumerate((*positions, shared)):
            if value > int(fields.mask[i]):
                return -1
            words[fields.word[i]] |= value << int(fields.shift[i])
        packed = np.array(words, np.uint64)
        bits = int(self.ctl[c.NUMBER_BITS])
        return int(st.find_state(self.packed(), fields.width, bits, packed, 0))

    def parent(self, number: int) -> int:
        """The state from which a state was found first."""
        return int(st.parent_of(self._links.array, number)) if number else 0

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for."""
        width, count = self.fields.width, len(self)
        return {
            "states": self._order.bytes_of(count * width + BEHIND)
            + self._links.bytes_of(2 * count // 64 + 1)
            + self._slots.bytes_of(slots_for(self.capacity))
        }
