"""The compiled part: look-ups, additions, and the set that a breadth-first search needs.

What a thread can do is an entry, found by thread, position and shared state (see
:mod:`~tdpmmu.worlds.explore.fast.facts`): an offset into a pool, where there is a head, then one
word for each turn, with the shared state and the position after it.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.adding import AT_ONCE, BATCH, THREAD_BITS, TURNS, add
from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.compose import fill
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    COUNT,
    CURRENT,
    DEPTH,
    DONE,
    FREE,
    FULL_STATES,
    GONE,
    HALTED,
    LEVEL_ENDS,
    LIMIT,
    MADE,
    MISSED_SHARED,
    MISSED_START,
    NO_ROOM,
    PAUSED,
    ROOM,
    STATES,
    THREADS,
    TRANSITIONS,
    URGENT,
    WIDTH,
    mix,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import AT, AT_BITS, entry_key, find_entry, tag_of_key
from tdpmmu.worlds.explore.fast.intrinsics import prefetch
from tdpmmu.worlds.explore.fast.states import (
    field_of,
    load_state,
)

NEAR = 1 << 12
"""Before the budget of states ends by fewer than this, they are searched one by one."""


@compiled
def _all_ended(learnt, positions, base, lanes):
    """Whether those threads have."""
    for lane in range(lanes.shape[0]):
        if learnt.deeds[lanes[lane] << 18 | positions[base + lanes[lane]]] >= 0:
            return False
    return True


@compiled
def _look_up(ctl, packed, table, batch, ended, first, end):
    """Unpack some states, and find where entries of their threads seem to be, or -1."""
    threads = ctl[THREADS]
    each = len(packed.shape)
    width = ctl[WIDTH]
    places, pool = table.places, table.pool
    states, positions = batch.states, batch.positions
    base = 0
    for number in range(first, end):
        at = (number - first) * each
        load_state(packed, width, number, states, at)
        shared = field_of(packed, states, at, threads)
        for thread in range(threads):
            position = field_of(packed, states, at, thread)
            positions[base] = position
            hashed = uint64(0)
            if position != ended[thread]:
                hashed = mix(entry_key(shared, thread, position))
                prefetch(places, slot_of(hashed, places.shape[0]))
            batch.hashes[base] = hashed
            base += 1
    for base in range((end - first) * threads):
        offset = np.int64(-1)
        hashed = batch.hashes[base]
        if hashed:
            tag = tag_of_key(hashed)
            place = slot_of(hashed, places.shape[0])
            while places[place] != 0:
                if places[place] >> AT_BITS == tag:
                    offset = places[place] & AT
                    prefetch(pool, offset - 1)
                    break
                place += 1
                if place == places.shape[0]:
                    place = 0
        batch.offsets[base] = offset


@compiled
def _chosen(ctl, table, learnt, work, batch, lanes, alone, ended, shared, base):
    """``(code, entries, turns)``: how many of either are followed from one state.

    Its entries are in ``batch.chosen``, whose threads in ``batch.movers``.  Or what stands in the
    way: what :func:`~tdpmmu.worlds.explore.fast.compose.fill` says, or ``HALTED``.
    """
    places, pool = table.places, table.pool
    positions, chosen, movers = batch.positions, batch.chosen, batch.movers
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
        if offset < 0 or pool[offset - 1] != entry_key(shared, thread, position):
            offset = find_entry(places, pool, shared, thread, position)
            batch.offsets[base + thread] = offset
        if offset < 0:
            code = fill(ctl, table, learnt, work, shared, thread, position)
            if code == MADE:
                filled = True
                continue
            ctl[MISSED_SHARED], ctl[MISSED_START] = shared, position
            return code, 0, total
        head = pool[offset]
        kind = head & 3
        count = head >> 2 if kind in (FREE, URGENT) else np.int64(0)
        if filled and kind == GONE and rival < 0 and not late:
            ended[thread] = position
        filled = False
        if rival >= 0 or (kind == URGENT and not late):
            # Nobody else need be looked at.
            chosen[0] = offset
            movers[0] = thread
            return np.int64(MADE), 1, count
        if kind == BLOCKED and not late:
            rival = head >> 2
            continue
        if count:
            chosen[found] = offset
            movers[found] = thread
            total += count
            found += 1
        lane += 1
    if found == 0 and not (late and _all_ended(learnt, positions, base, alone)):
        return np.int64(HALTED), 0, total
    return np.int64(MADE), found, total


@compiled
def look(ctl, packed, table, learnt, work, batch, lanes, alone, ended, first, end, begin):
    """``(code, searched, found, turns)``: what is followed from states ``first`` to ``end``.

    The entries are in ``batch``, from ``begin`` to ``found``, and have so many turns in all; all
    states before ``searched`` have been dealt with.
    """
    threads = ctl[THREADS]
    each = len(packed.shape)
    chosen, movers = batch.chosen, batch.movers
    room = begin + BATCH
    found = begin
    turns = np.int64(0)
    current = first
    while current < end:
        some = current
        until = min(some + AT_ONCE, end)
        _look_up(ctl, packed, table, batch, ended, some, until)
        while current < until:
            shared = field_of(packed, batch.states, (current - some) * each, threads)
            base = (current - some) * threads
            code, count, total = _chosen(
                ctl, table, learnt, work, batch, lanes, alone, ended, shared, base
            )
            if code != MADE:
                return code, current, found, turns
            if found + count > room or turns + total > TURNS:
                return np.int64(NO_ROOM), current, found, turns
            for which in range(count if total else 0):
                batch.source[found] = current
                batch.entries[found] = chosen[which] << THREAD_BITS | movers[which]
                found += 1
            turns += total
            current += 1
    return np.int64(MADE), current, found, turns


@compiled
def advance(ctl, packed, table, learnt, work, batch, window, lanes, alone, ended):
    """Search on, until done, paused at ``LIMIT``, or something is missing."""
    current = ctl[CURRENT]
    while True:
        # Stop where it has to be known how many states there are.
        near = ctl[COUNT] + NEAR > ctl[STATES]
        end = min(current + (1 if near else AT_ONCE), ctl[COUNT], ctl[LIMIT])
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
        code, searched, found, turns = look(
            ctl, packed, table, learnt, work, batch, lanes, alone, ended, current, end, 0
        )
        if ctl[COUNT] + turns > ctl[ROOM]:
            return FULL_STATES
        add(ctl, packed, table.pool, batch, window, 0, found)
        ctl[TRANSITIONS] += turns
        ctl[CURRENT] = current = searched
        if code != MADE and code != NO_ROOM:
            return code
