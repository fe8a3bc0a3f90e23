"""The compiled part: look-ups, additions, and the two sets that a breadth-first search needs.

A state is 64 bits: the number of its shared state, and the number of the *places* of its threads (a
row of positions, itself interned).  All sets are arrays with open addressing and linear probing;
their capacity is any number, since a slot is found by multiplying instead of masking.  A slot of
the set of states has the state's number in its low bits, and as many bits of its hash above as
there is room for, so that a look at the state itself is seldom in vain.

What a thread can do is found by thread, position and shared state.  It is an offset into a pool: a
head, then one word for each turn, with the shared state and the position after it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

# Fields of the control block, by which the compiled loop and its driver talk.
CURRENT, COUNT, TRANSITIONS, DEPTH, LEVEL_ENDS, LIMIT, STATES, PLACES, ENTRIES = range(9)
THREADS, NUMBER_BITS, PLACE_BITS, MISSED_THREAD, MISSED_SHARED, MISSED_POSITION = range(9, 15)
FIELDS = 15

# Why the compiled loop came back.
DONE, PAUSED, MISSED, HALTED, FULL_STATES, FULL_PLACES = range(6)

# Kinds of entries; in the head's low bits, with the number of turns, or the rival, above.
FREE, URGENT, BLOCKED = range(3)

POSITION_MASK = (1 << 31) - 1
PROGRESS = 1 << 31
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@njit(cache=True, inline="always")
def mix(x):
    """Spread 64 bits over 64 bits (the finalizer of splitmix64)."""
    x = uint64(x) + _GOLDEN
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(cache=True, inline="always")
def slot_of(hashed, capacity):
    """The first slot to look at."""
    return np.int64(((hashed >> _S32) * uint64(capacity)) >> _S32)


@njit(cache=True, inline="always")
def entry_key(shared, thread, position):
    """A look-up in the table as one number, never 0."""
    return ((np.int64(shared) << 24) | (np.int64(thread) << 18) | np.int64(position)) + 1


@njit(cache=True)
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


@njit(cache=True)
def put_entry(keys, offsets, shared, thread, position, offset):
    """A new entry; there has to be room."""
    key = entry_key(shared, thread, position)
    capacity = keys.shape[0]
    slot = slot_of(mix(key), capacity)
    while keys[slot] != 0:
        slot += 1
        if slot == capacity:
            slot = 0
    keys[slot] = key
    offsets[slot] = offset


@njit(cache=True)
def move_entries(keys, offsets, new_keys, new_offsets):
    """All entries into a larger table."""
    capacity = new_keys.shape[0]
    for i in range(keys.shape[0]):
        key = keys[i]
        if key == 0:
            continue
        slot = slot_of(mix(key), capacity)
        while new_keys[slot] != 0:
            slot += 1
            if slot == capacity:
                slot = 0
        new_keys[slot] = key
        new_offsets[slot] = offsets[i]


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
    tag = np.int64(hashed & _LOW) & ~mask
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
    tag = np.int64(hashed & _LOW) & ~mask
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
    ctl, order, children, slots, rows, row_slots, keys, offsets, pool, lanes, ended, together
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
        shared = np.int64(key >> _S32)
        places = np.int64(key & _LOW)
        base = places * threads
        found = 0
        total = 0
        for lane in range(lanes.shape[0]):
            thread = lanes[lane]
            position = np.int64(rows[base + thread])
            if position == ended[thread]:
                continue
            offset = find_entry(keys, offsets, shared, thread, position)
            if offset < 0:
                ctl[MISSED_THREAD], ctl[MISSED_SHARED] = thread, shared
                ctl[MISSED_POSITION] = position
                return MISSED
            head = pool[offset]
            kind = head & 3
            if kind == FREE or (together and kind == URGENT):
                if head >> 2:
                    chosen[found] = offset
                    movers[found] = thread
                    total += head >> 2
                    found += 1
                continue
            if together:
                continue
            if kind == BLOCKED:
                thread = head >> 2
                position = np.int64(rows[base + thread])
                offset = find_entry(keys, offsets, shared, thread, position)
                if offset < 0:
                    ctl[MISSED_THREAD], ctl[MISSED_SHARED] = thread, shared
                    ctl[MISSED_POSITION] = position
                    return MISSED
                head = pool[offset]
            found = 1
            total = 0
            chosen[0] = offset
            movers[0] = thread
            if head & 3 != BLOCKED:
                total = head >> 2
            break
        if found == 0:
            return HALTED
        count = ctl[COUNT]
        if count + total > most_states:
            return FULL_STATES
        if ctl[PLACES] + total > most_places:
            return FULL_PLACES
        if total:
            for which in range(found):
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
                    successor = (uint64(word) & ~_LOW) | uint64(target)
                    number, slot, tag = find_state(order, slots, bits, successor)
                    if number < 0:
                        slots[slot] = tag | (count + 1)
                        order[count] = successor
                        count += 1
            ctl[TRANSITIONS] += total
            children[current] = count - ctl[COUNT]
            ctl[COUNT] = count
        else:
            children[current] = 0
        ctl[CURRENT] = current + 1
