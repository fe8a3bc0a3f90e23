"""Compiled: whose turns are followed from a state.

What a thread can do is an entry, found by thread, position and shared state (see
:mod:`~tdpmmu.worlds.explore.fast.facts`): an offset into a pool, where there is a head, then one
word for each turn, with the shared state and the position after it.

Sets of states and tables are far larger than caches, so states are looked at some at a time, one
step after the other: memory that one step asks for is there by the next one.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    GONE,
    HALTED,
    MADE,
    THREADS,
    UNKNOWN,
    URGENT,
    WIDTH,
    mix,
    slot_of,
)
from tdpmmu.worlds.explore.fast.facts import AT, AT_BITS, entry_key, find_entry, tag_of_key
from tdpmmu.worlds.explore.fast.intrinsics import prefetch
from tdpmmu.worlds.explore.fast.states import field_of, load_state


@inlined
def unpack(search, looking, number, which):
    """Unpack a state, and ask for the places of entries of its threads."""
    packed, places = search.packed, search.table.places
    threads = search.ctl[THREADS]
    at = which * len(packed.shape)
    base = which * threads
    load_state(packed, search.ctl[WIDTH], number, looking.states, at)
    shared = field_of(packed, looking.states, at, threads)
    for thread in range(threads):
        position = field_of(packed, looking.states, at, thread)
        looking.positions[base + thread] = position
        hashed = uint64(0)
        if position != search.ended[thread]:
            hashed = mix(entry_key(shared, thread, position))
            prefetch(places, slot_of(hashed, places.shape[0]))
        looking.hashes[base + thread] = hashed


@inlined
def look_up(search, looking, states):
    """Find where entries seem to be, or -1, of the states that were unpacked."""
    places, pool = search.table.places, search.table.pool
    for base in range(states * search.ctl[THREADS]):
        offset = np.int64(-1)
        hashed = looking.hashes[base]
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
        looking.offsets[base] = offset


@compiled
def _all_ended(deeds, positions, base, lanes):
    """Whether those threads have."""
    for lane in range(lanes.shape[0]):
        if deeds[lanes[lane] << 18 | positions[base + lanes[lane]]] >= 0:
            return False
    return True


@inlined
def choose(search, looking, shared, base, new):
    """``(code, entries, turns)``: how many of either are followed from one state.

    Its entries are in ``looking.chosen``, whose threads in ``looking.movers``, from ``base`` on.
    Or the code is ``HALTED``, or else ``UNKNOWN`` if an entry is not there; ``entries`` is the
    thread then.  ``new`` is the thread whose entry is there only now, or -1.
    """
    places, pool = search.table.places, search.table.pool
    lanes, alone, ended = search.lanes, search.alone, search.ended
    deeds = search.learnt.deeds
    positions, chosen, movers = looking.positions, looking.chosen, looking.movers
    found = 0
    total = np.int64(0)
    lane = 0
    rival = np.int64(-1)
    late = False
    while True:
        if lane == (alone.shape[0] if late else lanes.shape[0]):
            if found or late or not _all_ended(deeds, positions, base, lanes):
                break
            late = True
            lane = 0
            continue
        thread = rival if rival >= 0 else (alone[lane] if late else lanes[lane])
        position = positions[base + thread]
        if position == ended[thread] and rival < 0:
            lane += 1
            continue
        offset = looking.offsets[base + thread]
        if offset < 0 or pool[offset - 1] != entry_key(shared, thread, position):
            offset = find_entry(places, pool, shared, thread, position)
            looking.offsets[base + thread] = offset
        if offset < 0:
            return np.int64(UNKNOWN), np.int64(thread), np.int64(0)
        head = pool[offset]
        kind = head & 3
        count = np.int64(0) if kind == BLOCKED else head >> 2
        if thread == new and kind == GONE:
            ended[thread] = position
        if rival >= 0 or (kind == URGENT and not late):
            # Nobody else need be looked at.
            chosen[base] = offset
            movers[base] = thread
            return np.int64(MADE), np.int64(1), count
        if kind == BLOCKED and not late:
            rival = head >> 2
            continue
        if count:
            chosen[base + found] = offset
            movers[base + found] = thread
            total += count
            found += 1
        lane += 1
    if found == 0 and not (late and _all_ended(deeds, positions, base, alone)):
        return np.int64(HALTED), np.int64(0), np.int64(0)
    return np.int64(MADE), np.int64(found), total
