"""What threads can do: entries, and the shared states that they lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import overload

import numpy as np

from tdpmmu.worlds.explore.chunks import Shared
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import facts as f
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.room import Room, fill
from tdpmmu.worlds.explore.fast.store import slots_for
from tdpmmu.worlds.explore.fast.together import together

MOST = 1 << 26
"""Shared states for which there is room in place."""


class Known:
    """The arrays behind look-ups."""

    def __init__(self, ctl: Words, chunks: int, shared: int = 1 << 10) -> None:
        self.ctl = ctl
        self.chunks = chunks
        ctl[c.CHUNKS], ctl[c.SHARED], ctl[c.USED] = chunks, 0, 0
        self._values = Room(np.uint32, MOST * chunks)
        self._hashes = Room(np.uint64, MOST)
        self._shared_slots = Room(np.uint32, slots_for(MOST))
        self._places = Room(np.int64, 16 * MOST)
        self._pool = Room(np.int64, 64 * MOST)
        self.threads_at_work = 1
        self._indexed = 1
        self.grow_shared(shared)
        self._grow_entries(4 * shared, 4 * shared)

    def table(self) -> f.Table:
        """The arrays, for compiled code."""
        return f.Table(self.places, self.pool, self.values, self.hashes, self.shared_slots)

    # --- growth -------------------------------------------------------------------------------

    def grow_shared(self, capacity: int = 0) -> None:
        """Room for twice as many shared states."""
        capacity = capacity or 2 * len(self.hashes)
        slots = slots_for(capacity)
        self.values: Words = self._values.grow(capacity * self.chunks)[: capacity * self.chunks]
        self.hashes: Words = self._hashes.grow(capacity)[:capacity]
        self.shared_slots: Words = self._shared_slots.grow(slots)[:slots]
        self.shared_slots[:] = 0
        self.ctl[c.SHARED_BITS] = (capacity + 1).bit_length()
        f.index_shared(
            self.values,
            self.hashes,
            self.ctl[c.SHARED],
            self.shared_slots,
            self.ctl[c.SHARED_BITS],
            self.chunks,
        )

    def grow_entries(self, turns: int = 0) -> None:
        """Room for twice as many entries, and for one of so many turns."""
        self._grow_entries(2 * len(self.places), 2 * len(self.pool) + turns + 1)

    def _grow_entries(self, slots: int, words: int) -> None:
        self.places: Words = self._places.grow(slots)[:slots]
        self.pool: Words = self._pool.grow(words)[:words]
        self.places[:] = 0
        used = int(self.ctl[c.USED])
        parts = [(1, self._indexed), (self._indexed, used)]
        if self.threads_at_work == 1:
            parts = [(1, used)]
        self._indexed = used + 1
        together([partial(f.index_entries, self.places, self.pool, *part) for part in parts])

    # --- shared states --------------------------------------------------------------------------

    def intern(self, shared: Shared) -> int:
        """The number of a shared state."""
        if self.ctl[c.SHARED] + 1 >= len(self.hashes):
            self.grow_shared()
        base = int(self.ctl[c.SHARED]) * self.chunks
        self.values[base : base + self.chunks] = shared
        return int(f.intern_row(self.ctl, self.values, self.hashes, self.shared_slots))

    def shared(self, number: int) -> Shared:
        """A shared state by its number."""
        base = number * self.chunks
        return tuple(self.values[base : base + self.chunks].tolist())

    # --- entries --------------------------------------------------------------------------------

    def add_entry(
        self,
        thread: int,
        shared: int,
        position: int,
        kind: int,
        above: int,
        turns: Sequence[tuple[int, int, bool]],
    ) -> None:
        """What a thread can do; ``above`` is the number of turns, or the rival."""
        used = int(self.ctl[c.USED])
        need = used + len(turns) + 2
        if self.ctl[c.ENTRIES] + 1 > len(self.places) // 3 * 2 or need > len(self.pool):
            self.grow_entries(len(turns))
        key = self.pool[used] = f.entry_key(shared, thread, position)
        self.pool[used + 1] = above << 2 | kind
        for i, (after, end, progress) in enumerate(turns, used + 2):
            self.pool[i] = after << 32 | progress << 31 | end
        f.enter(self.places, key, used + 1)
        self.ctl[c.ENTRIES] += 1
        self.ctl[c.USED] = need

    def entry(self, thread: int, shared: int, position: int) -> list[int]:
        """The head of an entry and its turns; KeyError if there is none."""
        offset = int(f.find_entry(self.places, self.pool, shared, thread, position))
        if offset < 0:
            raise KeyError((thread, shared, position))
        head = int(self.pool[offset])
        count = head >> 2 if head & 3 in (c.FREE, c.URGENT) else 0
        words: list[int] = self.pool[offset : offset + 1 + count].tolist()
        return words

    def entry_keys(self) -> Iterator[int]:
        """The keys of all entries."""
        at, used = 1, int(self.ctl[c.USED])
        while at < used:
            yield int(self.pool[at - 1])
            at = int(f.after_entry(self.pool, at))

    def restore(
        self, values: Iterable[Words], hashes: Iterable[Words], pool: Iterable[Words]
    ) -> None:
        """Shared states and entries as they were saved, in pieces; facts are another matter.

        Their numbers are in the control block already.
        """
        used = int(self.ctl[c.USED])
        capacity = max(2 * int(self.ctl[c.SHARED]), len(self.hashes))
        fill(self._values.grow(capacity * self.chunks), values)
        fill(self._hashes.grow(capacity), hashes)
        self.grow_shared(capacity)
        size = len(self.places)
        while self.ctl[c.ENTRIES] + 1 > size // 3 * 2:
            size *= 2
        fill(self._pool.grow(used), pool)
        self._grow_entries(size, max(2 * used, len(self.pool)))

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for: as far as they are filled."""
        shared, used = int(self.ctl[c.SHARED]), int(self.ctl[c.USED])
        return {
            "shared": self._values.bytes_of(shared * self.chunks)
            + self._hashes.bytes_of(shared)
            + self._shared_slots.bytes_of(len(self.shared_slots)),
            "turns": self._places.bytes_of(len(self.places)) + self._pool.bytes_of(used),
        }


class SharedStates(Sequence[Shared]):
    """The shared states in the order in which they were found."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def __len__(self) -> int:
        return int(self._known.ctl[c.SHARED])

    @overload
    def __getitem__(self, number: int) -> Shared: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shared]: ...
    def __getitem__(self, number: int | slice) -> Shared | list[Shared]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._known.shared(number % len(self))
