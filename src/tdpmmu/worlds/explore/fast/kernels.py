"""The compiled part: look-ups, additions, and the set that a breadth-first search needs.

What a thread can do is an entry, found by thread, position and shared state (see
:mod:`~tdpmmu.worlds.explore.fast.facts`): an offset into a pool, where there is a head, then one
word for each turn, with the shared state and the position after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.compose import fill
from tdpmmu.worlds.explore.fast.control import (
    BITSTATE,
    BLOCKED,
    COMPACT,
    COUNT,
    CURRENT,
    DEPTH,
    DONE,
    EXACT,
    FREE,
    FULL_STATES,
    GONE,
    HALTED,
    LEVEL_ENDS,
    LIMIT,
    MADE,
    MISSED_SHARED,
    MISSED_START,
    PAUSED,
    POSITION_MASK,
    ROOM,
    S32,
    STATES,
    STORAGE,
    THREADS,
    TRANSITIONS,
    URGENT,
    WIDTH,
    Words,
    mix,
    prefetch,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import entry_key, find_entry
from tdpmmu.worlds.explore.fast.lossy import WORDS, add_bits, add_fingerprints, term
from tdpmmu.worlds.explore.fast.states import (
    add_hashed,
    clear_field,
    field_of,
    hash_state,
    load_state,
    put_field,
)

AT_ONCE = 32
"""States that are looked at before what they lead to is added."""

BATCH = 1 << 16
"""Turns that can wait: more than one state has (64 threads with 1,023 each)."""


class Batch(NamedTuple):
    """Room for some states and for what their turns lead to, not yet added.

    ``states``: their words, and ``positions``, ``offsets``: those of their threads, and of their
    entries.  ``words``, ``source``, ``hashes``, ``slots``: the states that they lead to, from which
    state, and where these might be.  ``chosen`` and ``movers``: the entries of one state that are
    followed.
    """

    states: Words
    positions: Words
    offsets: Words
    words: Words
    source: Words
    hashes: Words
    slots: Words
    chosen: Words
    movers: Words


def new_batch(threads: int, words: int) -> Batch:
    """Room for a batch; what is not touched takes no memory."""
    return Batch(
        np.empty((AT_ONCE + 1) * words, np.uint64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(BATCH * words, np.uint64),
        np.empty(BATCH, np.int64),
        np.empty(BATCH, np.uint64),
        np.empty(BATCH, np.int64),
        np.empty(threads, np.int64),
        np.empty(threads, np.int64),
    )


@compiled
def _all_ended(learnt, positions, base, lanes):
    """Whether those threads have."""
    for lane in range(lanes.shape[0]):
        if learnt.deeds[lanes[lane] << 18 | positions[base + lanes[lane]]] >= 0:
            return False
    return True


@compiled
def _look_up(ctl, packed, table, batch, ended, first, end):
    """Unpack some states, and find what their threads can do, or -1."""
    threads = ctl[THREADS]
    each = len(packed.shape)
    width = ctl[WIDTH]
    keys, offsets = table.keys, table.offsets
    states, positions = batch.states, batch.positions
    base = 0
    for number in range(first, end):
        at = (number - first) * each
        load_state(packed, width, number, states, at)
        shared = field_of(packed, states, at, threads)
        for thread in range(threads):
            position = field_of(packed, states, at, thread)
            positions[base] = position
            slot = -1
            if position != ended[thread]:
                slot = slot_of(mix(entry_key(shared, thread, position)), keys.shape[0])
                prefetch(keys, slot)
                prefetch(offsets, slot)
            batch.offsets[base] = slot
            base += 1
    base = 0
    for number in range(first, end):
        shared = field_of(packed, states, (number - first) * each, threads)
        for thread in range(threads):
            slot = batch.offsets[base]
            if slot >= 0:
                key = entry_key(shared, thread, positions[base])
                while keys[slot] != key and keys[slot] != 0:
                    slot += 1
                    if slot == keys.shape[0]:
                        slot = 0
                offset = np.int64(-1)
                if keys[slot]:
                    offset = offsets[slot]
                    prefetch(table.pool, offset)
                batch.offsets[base] = offset
            base += 1


@compiled
def advance(ctl, packed, table, learnt, work, batch, lanes, alone, ended):
    """Search on, until done, paused at ``LIMIT``, or something is missing.

    When all threads in ``lanes`` have ended, those that run alone are looked at side by side,
    whatever their entries say of others.
    """
    keys, offsets, pool, slots = table.keys, table.offsets, table.pool, packed.slots
    threads = ctl[THREADS]
    each = len(packed.shape)
    states, words, hashes, source = batch.states, batch.words, batch.hashes, batch.source
    positions, chosen, movers = batch.positions, batch.chosen, batch.movers
    rest = AT_ONCE * each
    most = ctl[ROOM]
    # Places of the set: slots, or blocks of bits.
    storage = ctl[STORAGE]
    each_place = WORDS if storage == BITSTATE else 1
    all_places = slots.shape[0] // each_place
    left = uint64(0)
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
        first = current
        _look_up(ctl, packed, table, batch, ended, first, end)
        code = np.int64(MADE)
        while current < end:
            at = (current - first) * each
            base = (current - first) * threads
            shared = field_of(packed, states, at, threads)
            found = 0
            total = np.int64(0)
            lane = 0
            rival = np.int64(-1)
            filled = False
            late = False
            while True:
                if lane == (alone.shape[0] if late else lanes.shape[0]):
                    if found or late or not _all_ended(learnt, positions, base, lanes):
                        break
                    late = True
                    lane = 0
                    continue
                thread = rival if rival >= 0 else (alone[lane] if late else lanes[lane])
                position = positions[base + thread]
                if position == ended[thread] and rival < 0 and not late:
                    lane += 1
                    continue
                offset = batch.offsets[base + thread]
                if offset < 0:
                    offset = find_entry(keys, offsets, shared, thread, position)
                    batch.offsets[base + thread] = offset
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
            if found == 0 and not (late and _all_ended(learnt, positions, base, alone)):
                code = np.int64(HALTED)
                break
            if ctl[COUNT] + waiting + total > most:
                code = np.int64(FULL_STATES)
                break
            if waiting + total > BATCH or (waiting and ctl[COUNT] + waiting + total > ctl[STATES]):
                break
            for which in range(found if total else 0):
                offset, thread = chosen[which], movers[which]
                for i in range(each):
                    states[rest + i] = states[at + i]
                clear_field(packed, states, rest, thread)
                clear_field(packed, states, rest, threads)
                if storage != EXACT:
                    left = uint64(0)
                    for other in range(threads):
                        if other != thread:
                            left += term(other, positions[base + other])
                for turn in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
                    to = waiting * each
                    for i in range(each):
                        words[to + i] = states[rest + i]
                    position = pool[turn] & POSITION_MASK
                    after = uint64(pool[turn]) >> S32
                    put_field(packed, words, to, thread, position)
                    put_field(packed, words, to, threads, after)
                    if storage == EXACT:
                        hashes[waiting] = hash_state(packed, words, to)
                    else:
                        hashes[waiting] = left + term(thread, position) + term(threads, after)
                    prefetch(slots, slot_of(hashes[waiting], all_places) * each_place)
                    source[waiting] = current
                    waiting += 1
            current += 1
            if ctl[COUNT] + waiting > ctl[STATES]:
                break
        if storage == EXACT:
            add_hashed(ctl, packed, waiting, words, source, hashes, batch.slots)
        elif storage == COMPACT:
            add_fingerprints(ctl, packed, waiting, words, source, hashes)
        else:
            add_bits(ctl, packed, waiting, words, source, hashes)
        ctl[TRANSITIONS] += waiting
        ctl[CURRENT] = current
        if code != MADE:
            return code
