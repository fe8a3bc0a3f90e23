"""Compiled: the sets of :mod:`tdpmmu.worlds.explore.storage`, which leave states out.

States are kept only until they have been searched; the sets have parts of their hashes.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import COUNT, LOW, S32, TAKEN, WIDTH, mix, slot_of
from tdpmmu.worlds.explore.fast.states import append_state, ones
from tdpmmu.worlds.explore.storage import BITS, BLOCK

WORDS = BLOCK // 32
"""Words of a block of bits."""

ODDS = 1 << 30
"""What the odds of a state to be taken for another are multiplied with, to count in integers."""

_ONE = np.uint32(1)


@inlined
def term(field, value):
    """What one number of a state adds to its hash."""
    return mix((uint64(field) << S32) | uint64(value))


@compiled
def add_fingerprints(ctl, packed, queue, begin, end, words, source, hashes):
    """Add the states in the queue's places ``begin`` to ``end``, if they seem to be new."""
    slots = packed.slots
    capacity = slots.shape[0]
    each = len(packed.shape)
    found = ctl[COUNT]
    for place in range(begin, end):
        i = queue[place]
        tag = hashes[i] & LOW
        if tag == 0:
            tag = uint64(1)
        slot = slot_of(hashes[i], capacity)
        compared = 0
        while slots[slot] != 0 and slots[slot] != tag:
            compared += 1
            slot += 1
            if slot == capacity:
                slot = 0
        if slots[slot] == 0:
            slots[slot] = tag
            append_state(packed, ctl[WIDTH], found, words, i * each, source[i])
            ctl[TAKEN] += compared
            found += 1
    ctl[COUNT] = found


@compiled
def add_bits(ctl, packed, queue, begin, end, words, source, hashes):
    """The same with three bits for each."""
    table = packed.slots
    each = len(packed.shape)
    found = ctl[COUNT]
    for place in range(begin, end):
        i = queue[place]
        first = slot_of(hashes[i], table.shape[0] // WORDS) * WORDS
        new = False
        for which in range(BITS):
            bit = np.int64(hashes[i] >> uint64(9 * which)) & (BLOCK - 1)
            if not (table[first + (bit >> 5)] >> np.uint32(bit & 31)) & _ONE:
                new = True
        if new:
            there = 0
            for word in range(first, first + WORDS):
                there += ones(uint64(table[word]))
            chance = (there / BLOCK) ** BITS
            ctl[TAKEN] += np.int64(chance / (1 - chance) * ODDS)
            for which in range(BITS):
                bit = np.int64(hashes[i] >> uint64(9 * which)) & (BLOCK - 1)
                table[first + (bit >> 5)] |= _ONE << np.uint32(bit & 31)
            append_state(packed, ctl[WIDTH], found, words, i * each, source[i])
            found += 1
    ctl[COUNT] = found


@compiled
def hash_row(row):
    """The hash of a row of positions, with the shared state behind."""
    hashed = uint64(0)
    for i in range(row.shape[0]):
        hashed += term(i, row[i])
    return hashed
