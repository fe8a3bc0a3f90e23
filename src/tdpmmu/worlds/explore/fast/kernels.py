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

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.compose import fill
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
    MADE,
    MISSED_SHARED,
    MISSED_START,
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
    Words,
    mix,
    prefetch,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import entry_key, find_entry

AT_ONCE = 32
"""States that are looked at before what they lead to is added."""

BATCH = 1 << 16
"""Turns that can wait: more than one state has (64 threads with 1,023 each)."""


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


@compiled
def parent_of(children, searched, number):
    """Which of the first ``searched`` states has found a state, or the last of them."""
    found = 1
    for state in range(searched):
        found += children[state]
        if found > number:
            return state
    return searched - 1


@compiled
def _add_successors(
    ctl, order, children, slots, rows, row_slots, count, turns, source, mover, hashes
):
    """Add what ``count`` turns lead to: words of the pool, from which state, by whom.

    In three rounds, so that what one of them reads the one before has asked for.
    """
    threads = ctl[THREADS]
    bits, place_bits = ctl[NUMBER_BITS], ctl[PLACE_BITS]
    for i in range(count):
        base = np.int64(order[source[i]] & LOW) * threads
        position = turns[i] & POSITION_MASK
        hashes[i] = hash_places(rows, base, threads, mover[i], position)
        prefetch(row_slots, slot_of(hashes[i], row_slots.shape[0]))
    for i in range(count):
        places = np.int64(order[source[i]] & LOW)
        base = places * threads
        position = turns[i] & POSITION_MASK
        target = places
        if position != rows[base + mover[i]]:
            target, slot, tag = find_hashed(
                rows, row_slots, place_bits, rows, base, threads, mover[i], position, hashes[i]
            )
            if target < 0:
                target = ctl[PLACES]
                ctl[PLACES] = target + 1
                row_slots[slot] = tag | (target + 1)
                for thread in range(threads):
                    rows[target * threads + thread] = rows[base + thread]
                rows[target * threads + mover[i]] = position
        hashes[i] = (uint64(turns[i]) & ~LOW) | uint64(target)
        prefetch(slots, slot_of(mix(hashes[i]), slots.shape[0]))
    found = ctl[COUNT]
    for i in range(count):
        number, slot, tag = find_state(order, slots, bits, hashes[i])
        if number < 0:
            slots[slot] = tag | (found + 1)
            order[found] = hashes[i]
            children[source[i]] += 1
            found += 1
    ctl[COUNT] = found


class Batch(NamedTuple):
    """Room for turns of some states, not yet added: words of the pool, from which state, by whom.

    ``chosen`` and ``movers``: the entries of one state that are followed.
    """

    turns: Words
    source: Words
    mover: Words
    hashes: Words
    chosen: Words
    movers: Words


def new_batch(threads: int) -> Batch:
    """Room for a batch."""
    turns, source, mover = (np.empty(BATCH, np.int64) for _ in range(3))
    hashes = np.empty(BATCH, np.uint64)
    return Batch(
        turns, source, mover, hashes, np.empty(threads, np.int64), np.empty(threads, np.int64)
    )


@compiled
def _all_ended(learnt, rows, base, lanes):
    """Whether those threads have."""
    for lane in range(lanes.shape[0]):
        if learnt.deeds[lanes[lane] << 18 | np.int64(rows[base + lanes[lane]])] >= 0:
            return False
    return True


@compiled
def advance(
    ctl,
    order,
    children,
    slots,
    rows,
    row_slots,
    table,
    learnt,
    work,
    batch,
    lanes,
    alone,
    ended,
):
    """Search on, until done, paused at ``LIMIT``, or something is missing.

    When all threads in ``lanes`` have ended, those that run alone are looked at side by side,
    whatever their entries say of others.
    """
    keys, offsets, pool = table.keys, table.offsets, table.pool
    threads = ctl[THREADS]
    turns, source, mover, scratch = batch.turns, batch.source, batch.mover, batch.hashes
    chosen, movers = batch.chosen, batch.movers
    # Slots are kept at most 4/5 full.
    most_states = min(order.shape[0], slots.shape[0] // 5 * 4)
    most_places = min(rows.shape[0] // threads, row_slots.shape[0] // 5 * 4)
    current = ctl[CURRENT]
    while True:
        waiting = np.int64(0)
        # Stop where it has to be known how many states there are.
        end = min(current + AT_ONCE, ctl[COUNT], ctl[LIMIT])
        if current < ctl[LEVEL_ENDS]:
            end = min(end, ctl[LEVEL_ENDS])
        if ctl[COUNT] > ctl[STATES]:
            return PAUSED
        if current == ctl[COUNT]:
            return DONE
        if current >= ctl[LIMIT]:
            return PAUSED
        if current == ctl[LEVEL_ENDS]:
            ctl[DEPTH] += 1
            ctl[LEVEL_ENDS] = ctl[COUNT]
        for number in range(current, end):
            key = order[number]
            base = np.int64(key & LOW) * threads
            for which in range(threads):
                look = mix(entry_key(np.int64(key >> S32), which, np.int64(rows[base + which])))
                slot = slot_of(look, keys.shape[0])
                prefetch(keys, slot)
                prefetch(offsets, slot)
            if number + AT_ONCE < ctl[COUNT]:
                prefetch(rows, np.int64(order[number + AT_ONCE] & LOW) * threads)
        while current < end:
            key = order[current]
            shared = np.int64(key >> S32)
            base = np.int64(key & LOW) * threads
            found = 0
            total = np.int64(0)
            lane = 0
            rival = np.int64(-1)
            filled = False
            code = np.int64(MADE)
            late = False
            while True:
                if lane == (alone.shape[0] if late else lanes.shape[0]):
                    if found or late or not _all_ended(learnt, rows, base, lanes):
                        break
                    late = True
                    lane = 0
                    continue
                thread = rival if rival >= 0 else (alone[lane] if late else lanes[lane])
                position = np.int64(rows[base + thread])
                if position == ended[thread] and rival < 0 and not late:
                    lane += 1
                    continue
                offset = find_entry(keys, offsets, shared, thread, position)
                if offset < 0:
                    code = fill(ctl, table, learnt, work, shared, thread, position)
                    if code == MADE:
                        filled = True
                        continue
                    ctl[MISSED_SHARED], ctl[MISSED_START] = shared, position
                    break
                head = pool[offset]
                kind = head & 3
                count = head >> 2 if kind in (FREE, URGENT) else np.int64(0)
                if filled and kind == GONE and rival < 0 and not late:
                    ended[thread] = position
                filled = False
                if rival >= 0 or (kind == URGENT and not late):
                    # Nobody else need be looked at.
                    found = 1
                    total = count
                    chosen[0] = offset
                    movers[0] = thread
                    break
                if kind == BLOCKED and not late:
                    rival = head >> 2
                    continue
                if count:
                    chosen[found] = offset
                    movers[found] = thread
                    total += count
                    found += 1
                lane += 1
            if code != MADE:
                break
            if found == 0 and not (late and _all_ended(learnt, rows, base, alone)):
                code = np.int64(HALTED)
                break
            if ctl[COUNT] + waiting + total > most_states:
                code = np.int64(FULL_STATES)
                break
            if ctl[PLACES] + waiting + total > most_places:
                code = np.int64(FULL_PLACES)
                break
            if waiting + total > BATCH or (waiting and ctl[COUNT] + waiting + total > ctl[STATES]):
                break
            for which in range(found if total else 0):
                offset = chosen[which]
                for at in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
                    turns[waiting] = pool[at]
                    source[waiting] = current
                    mover[waiting] = movers[which]
                    waiting += 1
            children[current] = 0
            current += 1
            if ctl[COUNT] + waiting > ctl[STATES]:
                break
        _add_successors(
            ctl, order, children, slots, rows, row_slots, waiting, turns, source, mover, scratch
        )
        ctl[TRANSITIONS] += waiting
        ctl[CURRENT] = current
        if code != MADE:
            return code
