"""The arrays of facts, and their growth."""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast import learnt as le
from tdpmmu.worlds.explore.fast.control import Words


class FactArrays:
    """Facts of one sort.

    ``count`` and ``written`` are where the control block has how many there are, and how many words
    they take.
    """

    def __init__(self, ctl: Words, count: int, written: int, questions: int, words: int) -> None:
        self._ctl = ctl
        self._count = count
        self._written = written
        ctl[count], ctl[written] = 0, 1
        self.words: Words = np.empty(words, np.uint32)
        self.slots: Words = np.zeros(words // 8, np.int64)
        self.views: Words = np.zeros(questions, np.uint32)

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self.words.nbytes + self.slots.nbytes

    def arrays(self) -> le.Facts:
        """The arrays, for compiled code."""
        return le.Facts(self.words, self.slots, self.views)

    def make_room_for(self, words: int, facts: int) -> None:
        """Room for so many more."""
        if (
            self._ctl[self._written] + words > len(self.words)
            or self._ctl[self._count] + facts > len(self.slots) // 3 * 2
        ):
            self.grow(words, facts)

    def grow(self, words: int = 0, facts: int = 0) -> None:
        """Room for so many more, and at least for half as many more as there are."""
        written, count = int(self._ctl[self._written]), int(self._ctl[self._count])
        if written + words > len(self.words) // 2:
            self.words.resize(2 * (written + words), refcheck=False)
        if count + facts > len(self.slots) // 3:
            slots = np.zeros(4 * (count + facts), np.int64)
            le.move_facts(self.words, self.slots, slots)
            self.slots = slots
