"""Compiled: what threads can do, by what that depends on, and what it makes of shared states.

What a thread can do from a position depends on some chunks of the shared state only.  A *fact* is
the answer for certain values of those chunks: a head, and for each turn the position after it and
the chunks that it changes.  Python adds facts; an *entry*, the same for one shared state as a
whole, is made from a fact here, when it is first asked for.  Facts are few, entries are many.

A *view* is a set of chunks on which a position's facts depend; a position has a few views, in the
order in which they were met, linked: ``[chunks, next view or 0, chunk, chunk, ...]``.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CHUNKS,
    ENTRIES,
    FULL_ENTRIES,
    FULL_SHARED,
    GONE,
    LOW,
    MISSED,
    SHARED,
    SHARED_BITS,
    USED,
    mix,
    slot_of,
)

FILLED = -1


@inlined
def entry_key(shared, thread, position):
    """A look-up in the table as one number, never 0."""
    return ((np.int64(shared) << 24) | (np.int64(thread) << 18) | np.int64(position)) + 1


@compiled
def find_entry(keys, offsets, shared, thread, position):
    """The entry's offset in the pool, or -1."""
    key = entry_key(shared, thread, position)
    capacity = keys.shape[0]
    slot = slot_of(mix(key), capacity)
    while True:
        there = keys[slot]
        if there == key:
            return offsets[slot]
        if there == 0:
            return -1
        slot += 1
        if slot == capacity:
            slot = 0


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
def _hash_value(chunk, value):
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
        hashed += _hash_value(i, values[base + i])
    return intern_candidate(ctl, values, hashes, slots, hashed)


@compiled
def index_shared(values, hashes, count, slots, bits, chunks):
    """Fill the slots anew."""
    for number in range(count):
        _, slot, tag = find_shared(values, hashes, slots, bits, chunks, number, hashes[number])
        slots[slot] = tag | (number + 1)


# --- facts ----------------------------------------------------------------------------------------


@compiled
def find_fact(facts, fact_slots, view, values, base):
    """``(offset of the fact or -1, slot)`` of what a view has for the shared state at ``base``.

    A fact is ``[view, value, value, ..., head, turn, turn, ...]``, the values being the view's.
    """
    count = facts[view]
    hashed = mix(view)
    for i in range(count):
        hashed = mix(hashed ^ uint64(values[base + facts[view + 2 + i]]))
    capacity = fact_slots.shape[0]
    slot = slot_of(hashed, capacity)
    while True:
        at = fact_slots[slot]
        if at == 0:
            return np.int64(-1), slot
        if facts[at] == view:
            same = True
            for i in range(count):
                if facts[at + 1 + i] != values[base + facts[view + 2 + i]]:
                    same = False
                    break
            if same:
                return at, slot
        slot += 1
        if slot == capacity:
            slot = 0


@compiled
def move_facts(facts, fact_slots, new_slots):
    """All facts into a larger table."""
    capacity = new_slots.shape[0]
    for i in range(fact_slots.shape[0]):
        at = fact_slots[i]
        if at == 0:
            continue
        hashed = mix(facts[at])
        for j in range(facts[facts[at]]):
            hashed = mix(hashed ^ uint64(facts[at + 1 + j]))
        slot = slot_of(hashed, capacity)
        while new_slots[slot] != 0:
            slot += 1
            if slot == capacity:
                slot = 0
        new_slots[slot] = at


@compiled
def fill(
    ctl,
    values,
    hashes,
    shared_slots,
    keys,
    offsets,
    pool,
    first_view,
    facts,
    fact_slots,
    shared,
    thread,
    position,
):
    """Make the entry that is missing from a fact: ``FILLED``, or what there is no room for."""
    chunks = ctl[CHUNKS]
    base = shared * chunks
    view = first_view[thread, position]
    at = np.int64(-1)
    while view != 0:
        at, _ = find_fact(facts, fact_slots, view, values, base)
        if at >= 0:
            break
        view = facts[view + 1]
    if at < 0:
        return MISSED
    at += 1 + facts[view]
    head = facts[at]
    turns = head >> 2
    if head & 3 == BLOCKED or head & 3 == GONE:
        turns = 0
    if ctl[ENTRIES] + 1 > keys.shape[0] // 3 * 2 or ctl[USED] + turns + 2 > pool.shape[0]:
        return FULL_ENTRIES
    if ctl[SHARED] + turns + 1 > min(values.shape[0] // chunks, shared_slots.shape[0] // 5 * 4):
        return FULL_SHARED
    offset = ctl[USED] + 1
    pool[offset - 1] = entry_key(shared, thread, position)
    pool[offset] = head
    at += 1
    for turn in range(turns):
        end = facts[at]
        changed = facts[at + 1]
        at += 2
        after = shared
        if changed:
            hashed = hashes[shared]
            candidate = ctl[SHARED] * chunks
            for i in range(chunks):
                values[candidate + i] = values[base + i]
            for i in range(at, at + 2 * changed, 2):
                chunk, value = facts[i], facts[i + 1]
                hashed -= _hash_value(chunk, values[candidate + chunk])
                hashed += _hash_value(chunk, value)
                values[candidate + chunk] = value
            after = intern_candidate(ctl, values, hashes, shared_slots, hashed)
            at += 2 * changed
        pool[offset + 1 + turn] = (after << 32) | end
    put_entry(keys, offsets, pool[offset - 1], offset)
    ctl[ENTRIES] += 1
    ctl[USED] = offset + turns + 1
    return FILLED
