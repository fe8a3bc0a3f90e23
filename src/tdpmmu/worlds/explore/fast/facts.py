"""Compiled: the shared states, and the entries of the table: what threads can do in them.

An *entry* is what a thread can do from a position in one shared state: a head, then one word for
each turn, with the shared state and the position after it.  It is made from a *fact*, which holds
for all shared states that agree on some chunks (see :mod:`~tdpmmu.worlds.explore.fast.learnt`),
when it is first asked for.  Facts are few, entries are many.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CHUNKS,
    GONE,
    LOW,
    SHARED,
    SHARED_BITS,
    Words,
    mix,
    slot_of,
)


class Table(NamedTuple):
    """Entries by shared state, thread and position; and the shared states."""

    keys: Words
    offsets: Words
    pool: Words
    values: Words
    hashes: Words
    slots: Words


@inlined
def entry_key(shared, thread, position):
    """A look-up in the table as one number, never 0."""
    return ((np.int64(shared) << 24) | (np.int64(thread) << 18) | np.int64(position)) + 1


@compiled
def find_key(keys, offsets, key):
    """What is there, or -1."""
    capacity = keys.shape[0]
    slot = slot_of(mix(key), capacity)
    while True:
        there = keys[slot]
        if there == key:
            return offsets[slot]
        if there == 0:
            return np.int64(-1)
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def find_entry(keys, offsets, shared, thread, position):
    """The entry's offset in the pool, or -1."""
    return find_key(keys, offsets, entry_key(shared, thread, position))


@compiled
def put_entry(keys, offsets, key, offset):
    """A new entry; there has to be room."""
    capacity = keys.shape[0]
    slot = slot_of(mix(key), capacity)
    while keys[slot] != 0:
        slot += 1
        if slot == capacity:
            slot = 0
    keys[slot] = key
    offsets[slot] = offset


@compiled
def index_entries(keys, offsets, pool, used):
    """All entries of a pool, which has the key of each before its head."""
    at = 0
    while at < used:
        put_entry(keys, offsets, pool[at], at + 1)
        head = pool[at + 1]
        at += 2
        if head & 3 != BLOCKED and head & 3 != GONE:
            at += head >> 2


@compiled
def move_entries(keys, offsets, new_keys, new_offsets):
    """All entries into a larger table."""
    for i in range(keys.shape[0]):
        if keys[i] != 0:
            put_entry(new_keys, new_offsets, keys[i], offsets[i])


# --- shared states --------------------------------------------------------------------------------


@inlined
def hash_value(chunk, value):
    return mix((uint64(chunk) << np.uint64(32)) | uint64(value))


@compiled
def find_shared(values, hashes, slots, bits, chunks, candidate, hashed):
    """``(number or -1, slot, tag)`` of the row ``candidate``."""
    capacity = slots.shape[0]
    mask = (np.int64(1) << bits) - 1
    tag = np.int64(hashed & LOW) & ~mask
    slot = slot_of(hashed, capacity)
    base = candidate * chunks
    while True:
        there = np.int64(slots[slot])
        if there == 0:
            return np.int64(-1), slot, tag
        if there & ~mask == tag:
            number = (there & mask) - 1
            if hashes[number] == hashed:
                other = number * chunks
                same = True
                for i in range(chunks):
                    if values[base + i] != values[other + i]:
                        same = False
                        break
                if same:
                    return number, slot, tag
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def intern_candidate(ctl, values, hashes, slots, hashed):
    """The number of the row behind the last one, which becomes one of them if it is new."""
    candidate = ctl[SHARED]
    number, slot, tag = find_shared(
        values, hashes, slots, ctl[SHARED_BITS], ctl[CHUNKS], candidate, hashed
    )
    if number < 0:
        number = candidate
        hashes[number] = hashed
        slots[slot] = tag | (number + 1)
        ctl[SHARED] = candidate + 1
    return number


@compiled
def intern_row(ctl, values, hashes, slots):
    """The same, with its hash still to be found."""
    chunks = ctl[CHUNKS]
    base = ctl[SHARED] * chunks
    hashed = uint64(0)
    for i in range(chunks):
        hashed += hash_value(i, values[base + i])
    return intern_candidate(ctl, values, hashes, slots, hashed)


@compiled
def index_shared(values, hashes, count, slots, bits, chunks):
    """Fill the slots anew."""
    for number in range(count):
        _, slot, tag = find_shared(values, hashes, slots, bits, chunks, number, hashes[number])
        slots[slot] = tag | (number + 1)
