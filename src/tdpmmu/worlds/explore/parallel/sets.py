"""Compiled: a worker's sets, of states and of the *places* of threads.

A state is 64 bits: the number of its shared state, and the number of the places of its threads (a
row of positions, itself interned), since these two are what workers tell each other.  All sets are
arrays with open addressing and linear probing.  A slot has a number in its low bits, and as many
bits of the hash above as there is room for, so that a look at the thing itself is seldom in vain.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import LOW, S32, mix, slot_of


@inlined
def hash_places(source, base, threads, thread, position):
    """The hash of a row in which one thread stands elsewhere."""
    hashed = uint64(threads)
    for i in range(threads):
        value = position if i == thread else source[base + i]
        hashed += mix(uint64(value) | (uint64(i) << S32))
    return hashed


@compiled
def find_hashed(rows, slots, bits, source, base, threads, thread, position, hashed):
    """``(number or -1, slot, tag)`` of that row, which is ``source[base:]`` but for one thread."""
    capacity = slots.shape[0]
    mask = (np.int64(1) << bits) - 1
    tag = np.int64(hashed & LOW) & ~mask
    slot = slot_of(hashed, capacity)
    while True:
        there = np.int64(slots[slot])
        if there == 0:
            return np.int64(-1), slot, tag
        if there & ~mask == tag:
            number = (there & mask) - 1
            other = number * threads
            same = True
            for i in range(threads):
                value = position if i == thread else source[base + i]
                if rows[other + i] != value:
                    same = False
                    break
            if same:
                return number, slot, tag
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def find_places(rows, slots, bits, source, base, threads, thread, position):
    """The same, with its hash still to be found."""
    hashed = hash_places(source, base, threads, thread, position)
    return find_hashed(rows, slots, bits, source, base, threads, thread, position, hashed)


@compiled
def find_state(order, slots, bits, key):
    """``(number or -1, slot, tag)`` of a state."""
    hashed = mix(key)
    capacity = slots.shape[0]
    mask = (np.int64(1) << bits) - 1
    tag = np.int64(hashed & LOW) & ~mask
    slot = slot_of(hashed, capacity)
    while True:
        there = np.int64(slots[slot])
        if there == 0:
            return np.int64(-1), slot, tag
        if there & ~mask == tag:
            number = (there & mask) - 1
            if order[number] == key:
                return number, slot, tag
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def index_states(order, count, slots, bits):
    """Fill the slots anew."""
    for number in range(count):
        _, slot, tag = find_state(order, slots, bits, order[number])
        slots[slot] = tag | (number + 1)


@compiled
def index_places(rows, count, threads, slots, bits):
    """Fill the slots anew."""
    for number in range(count):
        _, slot, tag = find_places(rows, slots, bits, rows, number * threads, threads, -1, 0)
        slots[slot] = tag | (number + 1)
