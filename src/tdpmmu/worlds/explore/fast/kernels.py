"""The compiled part: look-ups, additions, and the two sets that a breadth-first search needs.

A state is 64 bits: the number of its shared state, and the number of the *places* of its threads (a
row of positions, itself interned).  All sets are arrays with open addressing and linear probing.  A
slot of the set of states has the state's number in its low bits, and as many bits of its hash above
as there is room for, so that a look at the state itself is seldom in vain.

What a thread can do is an entry, found by thread, position and shared state (see
:mod:`~tdpmmu.worlds.explore.fast.facts`): an offset into a pool, where there is a head, then one
word for each turn, with the shared state and the position after it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    COUNT,
    CURRENT,
    DEPTH,
    DONE,
    FREE,
    FULL_PLACES,
    FULL_STATES,
    GONE,
    HALTED,
    LEVEL_ENDS,
    LIMIT,
    LOW,
    MISSED_POSITION,
    MISSED_SHARED,
    MISSED_THREAD,
    NUMBER_BITS,
    PAUSED,
    PLACE_BITS,
    PLACES,
    POSITION_MASK,
    S32,
    STATES,
    THREADS,
    TRANSITIONS,
    URGENT,
    mix,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import FILLED, fill, find_entry


@njit(cache=True, inline="always")
def hash_places(source, base, threads, thread, position):
    """The hash of a row in which one thread stands elsewhere."""
    hashed = uint64(threads)
    for i in range(threads):
        value = position if i == thread else source[base + i]
        hashed = mix(hashed ^ uint64(value))
    return hashed


@njit(cache=True)
def find_places(rows, slots, bits, source, base, threads, thread, position):
    """``(number or -1, slot, tag)`` of that row, which is ``source[base:]`` but for one thread."""
    hashed = hash_places(source, base, threads, thread, position)
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


@njit(cache=True)
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


@njit(cache=True)
def index_states(order, count, slots, bits):
    """Fill the slots anew."""
    for number in range(count):
        _, slot, tag = find_state(order, slots, bits, order[number])
        slots[slot] = tag | (number + 1)


@njit(cache=True)
def index_places(rows, count, threads, slots, bits):
    """Fill the slots anew."""
    for number in range(count):
        _, slot, tag = find_places(rows, slots, bits, rows, number * threads, threads, -1, 0)
        slots[slot] = tag | (number + 1)


@njit(cache=True)
def parent_of(children, searched, number):
    """Which of the first ``searched`` states has found a state, or the last of them."""
    found = 1
    for state in range(searched):
        found += children[state]
        if found > number:
            return state
    return searched - 1


@njit(cache=True)
def advance(
    ctl,
    order,
    children,
    slots,
    rows,
    row_slots,
    values,
    hashes,
    shared_slots,
    keys,
    offsets,
    pool,
    first_view,
    facts,
    fact_slots,
    lanes,
    ended,
    together,
):
    """Search on, until done, paused at ``LIMIT``, or something is missing.

    ``together``: the threads in ``lanes`` are looked at side by side, whatever their entries say of
    others; so it is with those that run alone when all the rest has ended.
    """
    threads = ctl[THREADS]
    chosen = np.empty(threads, np.int64)
    movers = np.empty(threads, np.int64)
    bits, place_bits = ctl[NUMBER_BITS], ctl[PLACE_BITS]
    # Slots are kept at most 4/5 full.
    most_states = min(order.shape[0], slots.shape[0] // 5 * 4)
    most_places = min(rows.shape[0] // threads, row_slots.shape[0] // 5 * 4)
    while True:
        current = ctl[CURRENT]
        if ctl[COUNT] > ctl[STATES]:
            return PAUSED
        if current == ctl[COUNT]:
            return DONE
        if current >= ctl[LIMIT]:
            return PAUSED
        if current == ctl[LEVEL_ENDS]:
            ctl[DEPTH] += 1
            ctl[LEVEL_ENDS] = ctl[COUNT]
        key = order[current]
        shared = np.int64(key >> S32)
        places = np.int64(key & LOW)
        base = places * threads
        found = 0
        total = np.int64(0)
        lane = 0
        rival = np.int64(-1)
        filled = False
        while lane < lanes.shape[0]:
            thread = lanes[lane] if rival < 0 else rival
            position = np.int64(rows[base + thread])
            if position == ended[thread] and rival < 0:
                lane += 1
                continue
            offset = find_entry(keys, offsets, shared, thread, position)
            if offset < 0:
                code = fill(
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
                )
                if code == FILLED:
                    filled = True
                    continue
                ctl[MISSED_THREAD], ctl[MISSED_SHARED] = thread, shared
                ctl[MISSED_POSITION] = position
                return code
            head = pool[offset]
            kind = head & 3
            turns = head >> 2 if kind in (FREE, URGENT) else np.int64(0)
            if filled and kind == GONE and rival < 0 and not together:
                ended[thread] = position
            filled = False
            if rival >= 0 or (kind == URGENT and not together):
                # Nobody else need be looked at.
                found = 1
                total = turns
                chosen[0] = offset
                movers[0] = thread
                break
            if kind == BLOCKED and not together:
                rival = head >> 2
                continue
            if turns:
                chosen[found] = offset
                movers[found] = thread
                total += turns
                found += 1
            lane += 1
        if found == 0:
            return HALTED
        count = ctl[COUNT]
        if count + total > most_states:
            return FULL_STATES
        if ctl[PLACES] + total > most_places:
            return FULL_PLACES
        ctl[TRANSITIONS] += total
        for which in range(found if total else 0):
            thread = movers[which]
            offset = chosen[which]
            before = np.int64(rows[base + thread])
            for at in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
                word = pool[at]
                position = word & POSITION_MASK
                target = places
                if position != before:
                    target, slot, tag = find_places(
                        rows, row_slots, place_bits, rows, base, threads, thread, position
                    )
                    if target < 0:
                        target = ctl[PLACES]
                        ctl[PLACES] = target + 1
                        row_slots[slot] = tag | (target + 1)
                        for i in range(threads):
                            rows[target * threads + i] = rows[base + i]
                        rows[target * threads + thread] = position
                successor = (uint64(word) & ~LOW) | uint64(target)
                number, slot, tag = find_state(order, slots, bits, successor)
                if number < 0:
                    slots[slot] = tag | (count + 1)
                    order[count] = successor
                    count += 1
        children[current] = count - ctl[COUNT]
        ctl[COUNT] = count
        ctl[CURRENT] = current + 1
