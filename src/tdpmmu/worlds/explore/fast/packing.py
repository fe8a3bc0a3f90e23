"""How a state is packed into a few bytes: the number of its shared state, and threads' positions.

Each number has a field of so many bits in one of the state's words of 64 bits.  The last word is
kept only as far as it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tdpmmu.worlds.explore.fast.control import Words

WORD = 64

LEAST_WORDS = 2
"""Code is compiled for a number of words; nearly all searches need no more than this."""

WIDEST = 31
"""Bits of a field, at most."""


class Packed(NamedTuple):
    """The sets of a search, and the fields of a state, for compiled code.

    ``order`` has the states one after the other, ``width`` bytes each; ``slots`` is the set of
    them.  ``links`` has one bit for each state but the first, in the order in which they were found
    (set), and one for each state searched (clear): from which state one was found is the number of
    clear bits before its own.  Field ``i`` is in ``word[i]``, ``shift[i]`` up, ``mask[i]`` wide;
    the last one is the shared state's.  ``kept`` says which bits of each word are kept.  ``shape``
    is as long as a state has words, which makes that number a constant where code is compiled.
    """

    order: Words
    slots: Words
    links: Words
    word: Words
    shift: Words
    mask: Words
    kept: Words
    shape: tuple[int, ...]


class Fields:
    """Where each number is in a packed state.  ``bits``: how wide each is, the shared state's last.

    They are put into as few words as can be, none into two of them.
    """

    def __init__(self, bits: Sequence[int]) -> None:
        self.bits = list(bits)
        self.word = np.zeros(len(bits), np.int64)
        self.shift = np.zeros(len(bits), np.uint64)
        self.mask = np.array([(1 << wide) - 1 for wide in bits], np.uint64)
        kept: list[int] = []
        left = list(range(len(bits)))
        while left:
            used = 0
            for field in _fullest(self.bits, left):
                self.word[field], self.shift[field] = len(kept), used
                used += self.bits[field]
                left.remove(field)
            kept.append(-(-used // 8) * 8 if not left else WORD)
        self.width = sum(kept) // 8
        kept += [0] * (LEAST_WORDS - len(kept))
        self.kept = np.array([(1 << wide) - 1 for wide in kept], np.uint64)
        self.shape = (0,) * len(kept)

    def packed(self, order: Words, slots: Words, links: Words) -> Packed:
        """For compiled code."""
        return Packed(order, slots, links, self.word, self.shift, self.mask, self.kept, self.shape)


def _fullest(bits: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
    """Which of the fields that are left fill a word best."""
    ways: dict[int, tuple[int, ...]] = {0: ()}
    for field in left:
        for used, way in list(ways.items()):
            total = used + bits[field]
            if total <= WORD and total not in ways:
                ways[total] = (*way, field)
    return ways[max(ways)]


def least_bits(positions: Sequence[int], shared: int) -> list[int]:
    """Bits that suffice for so many positions of each thread, and for so many shared states."""
    return [max(1, (count - 1).bit_length()) for count in (*positions, shared)]


def tight_bits(positions: Sequence[int], shared: int) -> list[int]:
    """The same with as much room to grow as costs no byte more."""
    bits = least_bits(positions, shared)
    width = Fields(bits).width
    widest_first = sorted(range(len(bits)), key=lambda field: -bits[field])
    grown = True
    while grown:
        grown = False
        for field in widest_first:
            more = bits.copy()
            more[field] += 1
            if more[field] <= WIDEST and Fields(more).width == width:
                bits, grown = more, True
    return bits


def roomy_bits(positions: Sequence[int], shared: int) -> list[int]:
    """The same with as much room to grow as costs no word more."""
    bits = least_bits(positions, shared)
    words = len(Fields(bits).shape)
    spare = words * WORD // len(bits)
    while True:
        roomy = [min(WIDEST, wide + spare) for wide in bits]
        if spare == 0 or len(Fields(roomy).shape) == words:
            return roomy
        spare -= 1
