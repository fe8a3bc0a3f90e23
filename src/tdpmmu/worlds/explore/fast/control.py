"""The control block by which the compiled loop and its driver talk, and hashing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import inlined

Words = npt.NDArray[Any]

CURRENT, COUNT, TRANSITIONS, DEPTH, LEVEL_ENDS, LIMIT, STATES, ENTRIES = range(8)
THREADS, NUMBER_BITS, MISSED_THREAD, MISSED_SHARED, MISSED_POSITION = range(8, 13)
CHUNKS, SHARED, SHARED_BITS, USED = range(13, 17)
FACTS, WRITTEN, SEQUENCES, REPORTED, ORDERED, WIDTH, COMPOSED = range(17, 24)
MISSED_AFTER, MISSED_IDLE, MISSED_START, OP_FACTS, OP_WRITTEN = range(24, 29)
STORAGE, TAKEN, ROOM = range(29, 32)
SEGMENTS, SEGMENT_WORDS, FOUND, EARLY = range(32, 36)
FIELDS = 36

# Why the compiled loop came back.
DONE, PAUSED, HALTED, FULL_STATES, FULL_SHARED, FULL_ENTRIES = range(6)
# It cannot compose a turn: Python has to (``ASK``), or to run an operation, or to make room.
ASK, MISSED_OPERATION, MISSED_ORDER, FULL_FACTS, FULL_WAYS = range(6, 11)
NO_ROOM, UNKNOWN = 11, 12
"""A batch is full; what a thread can do is not in the table."""

NO_LIMIT = 1 << 62

MADE = -1
"""Nothing is in the way."""

# Kinds of entries; in the head's low bits, with the number of turns, or the rival, above.
# ``GONE``: the thread has ended, there are none.
FREE, URGENT, BLOCKED, GONE = range(4)

# Which set the states are in: see :mod:`tdpmmu.worlds.explore.storage`.
EXACT, COMPACT, BITSTATE = range(3)

LINE = 16
"""Slots of a set of states in a line of the cache: they are looked at together."""

POSITION_MASK = (1 << 31) - 1
LOW = np.uint64(0xFFFFFFFF)
S32 = np.uint64(32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@inlined
def mix(x):
    """Spread 64 bits over 64 bits (the finalizer of splitmix64)."""
    x = uint64(x) + _GOLDEN
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@inlined
def slot_of(hashed, capacity):
    """The first slot to look at: any capacity will do, since it multiplies instead of masking."""
    return np.int64(((hashed >> S32) * uint64(capacity)) >> S32)


@inlined
def line_of(hashed, capacity):
    """The first slot of the line to look at first; a capacity is whole lines."""
    return slot_of(hashed, capacity // LINE) * LINE
