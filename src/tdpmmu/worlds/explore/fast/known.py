"""What threads can do: entries, and the shared states that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from tdpmmu.worlds.explore.chunks import Shared
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast import facts as f
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.store import slots_for


class Known:
    """The arrays behind look-ups."""

    def __init__(self, ctl: Words, chunks: int, shared: int = 1 << 10) -> None:
        self.ctl = ctl
        self.chunks = chunks
        ctl[c.CHUNKS], ctl[c.SHARED], ctl[c.USED] = chunks, 0, 0
        self.values: Words = np.empty(0, np.uint32)
        self.hashes: Words = np.empty(0, np.uint64)
        self.shared_slots: Words = np.empty(0, np.uint32)
        self.keys: Words = np.zeros(4 * shared, np.int64)
        self.offsets: Words = np.zeros(4 * shared, np.int64)
        self.pool: Words = np.empty(4 * shared, np.int64)
        self.grow_shared(shared)

    def table(self) -> f.Table:
        """The arrays, for compiled code."""
        return f.Table(
            self.keys, self.offsets, self.pool, self.values, self.hashes, self.shared_slots
        )

    # --- growth -------------------------------------------------------------------------------

    def grow_shared(self, capacity: int = 0) -> None:
        """Room for twice as many shared states."""
        capacity = capacity or 2 * len(self.hashes)
        self.values.resize(capacity * self.chunks, refcheck=False)
        self.hashes.resize(capacity, refcheck=False)
        self.shared_slots = np.zeros(slots_for(capacity), np.uint32)
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
        keys = np.zeros(2 * len(self.keys), np.int64)
        offsets = np.zeros(2 * len(self.keys), np.int64)
        f.move_entries(self.keys, self.offsets, keys, offsets)
        self.keys, self.offsets = keys, offsets
        self.pool.resize(2 * len(self.pool) + turns + 1, refcheck=False)

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
        if self.ctl[c.ENTRIES] + 1 > len(self.keys) // 3 * 2 or need > len(self.pool):
            self.grow_entries(len(turns))
        self.pool[used] = f.entry_key(shared, thread, position)
        self.pool[used + 1] = above << 2 | kind
        for i, (after, end, progress) in enumerate(turns, used + 2):
            self.pool[i] = after << 32 | progress << 31 | end
        f.put_entry(self.keys, self.offsets, self.pool[used], used + 1)
        self.ctl[c.ENTRIES] += 1
        self.ctl[c.USED] = need

    def entry(self, thread: int, shared: int, position: int) -> list[int]:
        """The head of an entry and its turns; KeyError if there is none."""
        offset = int(f.find_entry(self.keys, self.offsets, shared, thread, position))
        if offset < 0:
            raise KeyError((thread, shared, position))
        head = int(self.pool[offset])
        count = head >> 2 if head & 3 in (c.FREE, c.URGENT) else 0
        words: list[int] = self.pool[offset : offset + 1 + count].tolist()
        return words

    def restore(self, values: Words, hashes: Words, pool: Words) -> None:
        """Shared states and entries as they were saved; facts are another matter."""
        capacity = max(2 * len(hashes), len(self.hashes))
        self.values.resize(capacity * self.chunks, refcheck=False)
        self.hashes.resize(capacity, refcheck=False)
        self.values[: len(values)] = values
        self.hashes[: len(hashes)] = hashes
        self.grow_shared(capacity)
        size = len(self.keys)
        while self.ctl[c.ENTRIES] + 1 > size // 3 * 2:
            size *= 2
        self.keys, self.offsets = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.pool.resize(max(2 * len(pool), len(self.pool)), refcheck=False)
        self.pool[: len(pool)] = pool
        f.index_entries(self.keys, self.offsets, self.pool, len(pool))

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for."""
        return {
            "shared": self.values.nbytes + self.hashes.nbytes + self.shared_slots.nbytes,
            "turns": self.keys.nbytes + self.offsets.nbytes + self.pool.nbytes,
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
