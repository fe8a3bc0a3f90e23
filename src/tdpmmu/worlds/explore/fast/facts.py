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

from tdpmmu.worlds.explore.fast.compiling import allocating, compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CHUNKS,
    LOW,
    SHARED,
    SHARED_BITS,
    Words,
    mix,
    slot_of,
)
from tdpmmu.worlds.explore.fast.intrinsics import claim, prefetch

AT_BITS = 40
AT = (np.int64(1) << AT_BITS) - 1
"""The part of a place that says where the entry is."""

TAG_BITS = 22

AT_ONCE = 32
"""Entries for whose places memory is asked before they are put there."""


class Table(NamedTuple):
    """Entries by shared state, thread and position; and the shared states.

    ``places`` says where in the pool entries are, with bits of their keys' hashes above.  There,
    an entry's key comes before it.
    """

    places: Words
    pool: Words
    values: Words
    hashes: Words
    slots: Words


@inlined
def entry_key(shared, thread, position):
    """A look-up in the table as one number, never 0."""
    return ((np.int64(shared) << 24) | (np.int64(thread) << 18) | np.int64(position)) + 1


@compiled
def find_key(keys, values, key):
    """What is there, or -1."""
    capacity = keys.shape[0]
    slot = slot_of(mix(key), capacity)
    while True:
        there = keys[slot]
        if there == key:
            return values[slot]
        if there == 0:
            return np.int64(-1)
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def put_key(keys, values, key, value):
    """A new key; there has to be room."""
    capacity = keys.shape[0]
    slot = slot_of(mix(key), capacity)
    while keys[slot] != 0:
        slot += 1
        if slot == capacity:
            slot = 0
    keys[slot] = key
    values[slot] = value


@compiled
def move_keys(keys, values, new_keys, new_values):
    """All keys into a larger table."""
    for i in range(keys.shape[0]):
        if keys[i] != 0:
            put_key(new_keys, new_values, keys[i], values[i])


# --- entries --------------------------------------------------------------------------------------


@inlined
def tag_of_key(hashed):
    """What a place has above where the entry is."""
    return np.int64(hashed) & ((np.int64(1) << TAG_BITS) - 1)


@compiled
def find_entry(places, pool, shared, thread, position):
    """Where in the pool an entry is, or -1."""
    key = entry_key(shared, thread, position)
    hashed = mix(key)
    tag = tag_of_key(hashed)
    place = slot_of(hashed, places.shape[0])
    while places[place] != 0:
        if places[place] >> AT_BITS == tag:
            at = places[place] & AT
            if pool[at - 1] == key:
                return at
        place += 1
        if place == places.shape[0]:
            place = 0
    return np.int64(-1)


@compiled
def put_entry(places, hashed, at):
    """A new entry; there has to be room."""
    entry = tag_of_key(hashed) << AT_BITS | at
    place = slot_of(hashed, places.shape[0])
    while places[place] != 0 or not claim(places, place, entry):
        place += 1
        if place == places.shape[0]:
            place = 0


@compiled
def enter(places, key, at):
    """The same, for Python."""
    put_entry(places, mix(key), at)


@compiled
def after_entry(pool, at):
    """Where the next entry of a pool is, behind its key."""
    head = pool[at]
    if head & 3 == BLOCKED:
        return at + 2
    return at + 2 + (head >> 2)


@allocating
def index_entries(places, pool, begin, end):
    """The entries of a part of a pool; several threads can do this at once, each with a part."""
    hashes = np.empty(AT_ONCE, np.uint64)
    entries = np.empty(AT_ONCE, np.int64)
    at = np.int64(begin)
    while at < end:
        some = 0
        while some < AT_ONCE and at < end:
            entries[some] = at
            hashes[some] = mix(pool[at - 1])
            prefetch(places, slot_of(hashes[some], places.shape[0]))
            some += 1
            at = after_entry(pool, at)
        for i in range(some):
            put_entry(places, hashes[i], entries[i])


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
