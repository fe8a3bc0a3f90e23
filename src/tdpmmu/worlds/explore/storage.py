"""How a search remembers which states it has met: exactly, or so that more of them fit.

*Compact* (Wolper and Leroy, 1993; Stern and Dill, 1995) keeps 32 bits of a state's hash in a table
whose slots are found by 32 others.  *Bitstate* (Holzmann, 1988) sets three bits for each state.
Both take a state that they have not met for one that they have, now and then; it is left out, with
what only comes after it.  So neither can say that something holds.  How many are to be expected is
counted on the way.

The classes here are these sets in plain Python: what the compiled ones are held to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STORAGES = EXACT, COMPACT, BITSTATE = "exact", "compact", "bitstate"
"""How ``tdpmmu check`` keeps states."""

DEFAULT_MIB = 64
"""The table's size if there is no budget of memory, of which it takes half."""

BLOCK = 512
"""Bits among which a state's three are: a line of a cache, so that a look costs one miss."""

BITS = 3
"""Bits for a state."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Storage:
    """A set that leaves states out: ``kind`` is compact or bitstate, its table so large."""

    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class Left:
    """What such a set left out.  ``taken``: states expected to have been taken for others.

    ``ended``: the search came to its end, so nothing else was left out.
    """

    kind: str
    size: int
    states: int
    taken: float
    ended: bool

    @property
    def coverage(self) -> float:
        """The part of the states met that is not expected to have been left out."""
        return self.states / (self.states + self.taken)

    def as_dict(self) -> dict[str, str | int | float]:
        """All of it, for machines."""
        return {
            "kind": self.kind,
            "bytes": self.size,
            "expected_taken_for_others": self.taken,
            "coverage": self.coverage,
        }

    def sentence(self) -> str:
        """What it comes to, in words."""
        how = {
            COMPACT: "32-bit fingerprints (compact)",
            BITSTATE: f"{BITS} bits each (bitstate)",
        }[self.kind]
        return (
            f"{self.states:,} states visited, kept as {how} in {_bytes(self.size)}; "
            f"{self.taken:.2g} expected to have been taken for others and left out, "
            f"with what comes after them: coverage of the states met estimated "
            f"{_percent(self.coverage)}"
        )


def _bytes(size: int) -> str:
    return f"{size >> 20:,} MiB" if size >= 1 << 20 else f"{size:,} bytes"


def _percent(part: float) -> str:
    """As many nines as there are, and one digit more; never 100 %."""
    for digits in range(1, 10):
        if round(100 * part, digits) < 100:
            return f"{math.floor(100 * part * 10**digits) / 10**digits:.{digits}f} %"
    return "more than 99.999999999 %"


# --- in plain Python ------------------------------------------------------------------------------


def mix(x: int) -> int:
    """Spread 64 bits over 64 bits (the finalizer of splitmix64)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def state_hash(shared: int, positions: Sequence[int]) -> int:
    """A sum, so that one turn changes two of its terms."""
    return sum(mix(i << 32 | value) for i, value in enumerate((*positions, shared))) & _MASK


class Fingerprints:
    """The compact set, of so many slots."""

    def __init__(self, slots: int) -> None:
        self.slots = [0] * slots
        self.count = self.compared = 0

    def add(self, hashed: int) -> bool:
        """Whether that state seems to be new."""
        tag = hashed & 0xFFFFFFFF or 1
        slot = (hashed >> 32) * len(self.slots) >> 32
        compared = 0
        while self.slots[slot]:
            if self.slots[slot] == tag:
                return False
            compared += 1
            slot = (slot + 1) % len(self.slots)
        self.slots[slot] = tag
        self.count += 1
        self.compared += compared
        return True

    def full(self) -> bool:
        """Whether it should not be filled further: 7 of 8 slots are taken."""
        return self.count >= len(self.slots) // 8 * 7

    def taken(self) -> float:
        """States expected to have been taken for others: each comparison may be wrong."""
        return (self.compared + 1) / 0xFFFFFFFF


class Bits:
    """The bitstate set, of so many blocks."""

    def __init__(self, blocks: int) -> None:
        self.blocks = [0] * blocks
        self.omitted = 0.0

    def add(self, hashed: int) -> bool:
        """Whether that state seems to be new."""
        block = (hashed >> 32) * len(self.blocks) >> 32
        wanted = 0
        for i in range(BITS):
            wanted |= 1 << (hashed >> 9 * i & BLOCK - 1)
        there = self.blocks[block]
        if there & wanted == wanted:
            return False
        chance = (there.bit_count() / BLOCK) ** BITS
        self.omitted += chance / (1 - chance)
        self.blocks[block] = there | wanted
        return True

    def taken(self) -> float:
        """States expected to have been taken for others: for each that was not, its odds."""
        return self.omitted
