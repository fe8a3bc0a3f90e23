"""What running guests have planned with, and what their TLBs hold, on arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tdpmmu.worlds.simulate.thread import SimThread

if TYPE_CHECKING:
    from tdpmmu.simulation.bulk_guest import BulkGuest

SMALLEST, LARGEST = 64, 2048
"""Touches in a window: more each time one was of use."""

Ints = npt.NDArray[np.int64]
NONE: Ints = np.empty(0, dtype=np.int64)

LEVEL_SHIFT = 56


class Windows:
    """The 2 MiB regions of all guests' windows, so that one look finds who is concerned."""

    def __init__(self, guests: int) -> None:
        self.rows = np.full((guests, LARGEST), -1, dtype=np.int32)
        self._flat = self.rows.reshape(-1)
        self.guests: list[BulkGuest] = []

    def changed(self, first: int, pages: int, by: SimThread) -> None:
        """What maps these gfns is not what it was: touches of them are looked at one by one."""
        mine, last = first >> 9, (first + pages - 1) >> 9
        if mine == last:
            found = np.flatnonzero(self._flat == mine)
        else:
            found = np.flatnonzero((self._flat >= mine) & (self._flat <= last))
        if not len(found):
            return
        self._flat[found] = -1
        owners: dict[int, list[int]] = {}
        for at in found.tolist():
            owners.setdefault(at // LARGEST, []).append(at % LARGEST)
        for number, touches in owners.items():
            self.guests[number].unsettle(touches, by)


class Tlb:
    """The pages that were touched since the last flush, as far as there is room.

    A key is a page number of its level's size, and the level above ``LEVEL_SHIFT``.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._keys: set[int] = set()
        self._sorted: Ints = NONE
        self._arrays: list[Ints] = []
        self._single: list[int] = []

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    @property
    def room(self) -> int:
        """How many more pages it can hold."""
        return self._entries - len(self._keys)

    def add(self, key: int) -> None:
        """Hold one more."""
        self._keys.add(key)
        self._single.append(key)

    def update(self, keys: Ints) -> None:
        """Hold these, too."""
        self._keys.update(keys.tolist())
        self._arrays.append(keys)

    def clear(self) -> None:
        """A flush."""
        self._keys.clear()
        self._arrays.clear()
        self._single.clear()
        self._sorted = NONE

    def held(self) -> Ints:
        """All keys, in order."""
        if self._arrays or self._single:
            single = np.array(self._single, dtype=np.int64)
            self._sorted = np.sort(np.concatenate([self._sorted, single, *self._arrays]))
            self._arrays.clear()
            self._single.clear()
        return self._sorted
