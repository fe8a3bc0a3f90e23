"""The compiled part: look-ups, additions, and the set that a breadth-first search needs.

What a thread can do is an entry, found by thread, position and shared state (see
:mod:`~tdpmmu.worlds.explore.fast.facts`): an offset into a pool, where there is a head, then one
word for each turn, with the shared state and the position after it.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.batches import (
    ABOUT,
    AT_ONCE,
    FIRST,
    MADE_TO,
    MISSED,
    MOST_STATES,
    MOST_TURNS,
    NEXT,
    SIZE,
    add,
    make,
)
from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
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
    NO_LIMIT,
    NO_ROOM,
    PAUSED,
    ROOM,
    STATES,
    THREADS,
    UNKNOWN,
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

ALONE = 256
"""States of a batch that one thread looks at and then adds: they stay in its cache."""

NEAR = 128 * ALONE
"""Before the budget of states ends by fewer than this, they are searched one by one."""


@compiled
def _all_ended(learnt, positions, base, lanes):
    """Whether those threads have."""
    for lane in range(lanes.shape[0]):
        if learnt.deeds[lanes[lane] << 18 | positions[base + lanes[lane]]] >= 0:
            return False
    return True


@inlined
def _unpack(ctl, packed, places, looking, ended, number, which):
    """Unpack a state, and ask for the places of entries of its threads."""
    threads = ctl[THREADS]
    at = which * len(packed.shape)
    base = which * threads
    load_state(packed, ctl[WIDTH], number, looking.states, at)
    shared = field_of(packed, looking.states, at, threads)
    for thread in range(threads):
        position = field_of(packed, looking.states, at, thread)
        looking.positions[base + thread] = position
        hashed = uint64(0)
        if position != ended[thread]:
            hashed = mix(entry_key(shared, thread, position))
            prefetch(places, slot_of(hashed, places.shape[0]))
        looking.hashes[base + thread] = hashed


@inlined
def _look_up(ctl, places, pool, looking, states):
    """Find where entries seem to be, or -1, of those that were unpacked."""
    for base in range(states * ctl[THREADS]):
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
def _chosen(ctl, table, learnt, work, looking, lanes, alone, ended, fills, shared, base):
    """``(code, entries, turns)``: how many of either are followed from one state.

    Its entries are in ``looking.chosen``, whose threads in ``looking.movers``, from ``base`` on.
    Or what stands in the way: what :func:`~tdpmmu.worlds.explore.fast.compose.fill` says, or
    ``HALTED``.  ``UNKNOWN`` if an entry is not there, unless it ``fills`` the table.
    """
    places, pool = table.places, table.pool
    positions, chosen, movers = looking.positions, looking.chosen, looking.movers
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
        offset = looking.offsets[base + thread]
        if offset < 0 or pool[offset - 1] != entry_key(shared, thread, position):
            offset = find_entry(places, pool, shared, thread, position)
            looking.offsets[base + thread] = offset
        if offset < 0:
            if not fills:
                return np.int64(UNKNOWN), 0, total
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
            chosen[base] = offset
            movers[base] = thread
            return np.int64(MADE), 1, count
        if kind == BLOCKED and not late:
            rival = head >> 2
            continue
        if count:
            chosen[base + found] = offset
            movers[base + found] = thread
            total += count
            found += 1
        lane += 1
    if found == 0 and not (late and _all_ended(learnt, positions, base, alone)):
        return np.int64(HALTED), 0, total
    return np.int64(MADE), found, total


@inlined
def _look_at(
    ctl,
    packed,
    table,
    learnt,
    work,
    lanes,
    alone,
    ended,
    looking,
    batches,
    which,
    states,
    fills,
    most,
):
    """``(code, states)``: choose what is followed from some states of a batch.

    They are those before one for which the code says what stands in the way; that is ``NO_ROOM``
    for one before which the batch leads to more than ``most`` states.  If the table is not to be
    filled, those that cannot be looked at are marked instead.
    """
    about, of = batches.about, which * ABOUT
    each, threads = len(packed.shape), ctl[THREADS]
    for i in range(states):
        number = about[of + FIRST] + looking.places[i]
        _unpack(ctl, packed, table.places, looking, ended, number, i)
    _look_up(ctl, table.places, table.pool, looking, states)
    made = about[of + MADE_TO] - which * MOST_TURNS
    code = np.int64(MADE)
    for i in range(states):
        if made > most:
            code = np.int64(NO_ROOM)
        else:
            shared = field_of(packed, looking.states, i * each, threads)
            code, count, turns = _chosen(
                ctl, table, learnt, work, looking, lanes, alone, ended, fills, shared, i * threads
            )
        if code == MADE and made + turns > MOST_TURNS:
            code = np.int64(NO_ROOM)
        if code != MADE:
            if fills:
                states = i
                break
            code = np.int64(MADE)
            count = -1
            turns = np.int64(0)
        looking.counts[i], looking.turns[i] = count, turns
        made += turns
    return code, states


@compiled
def find(
    ctl,
    packed,
    table,
    learnt,
    work,
    lanes,
    alone,
    ended,
    looking,
    batches,
    which,
    first,
    end,
    fills,
):
    """``(code, searched)``: put what states ``first`` to ``end`` lead to into a batch.

    If the table is not to be filled, those that cannot be looked at are put off.
    """
    about, of = batches.about, which * ABOUT
    about[of + FIRST], about[of + MADE_TO] = first, which * MOST_TURNS
    about[of + MISSED] = about[of + NEXT] = 0
    code = np.int64(MADE)
    current = first
    while current < end and code == MADE:
        states = min(AT_ONCE, end - current)
        for i in range(states):
            looking.places[i] = current - first + i
        code, states = _look_at(
            ctl, packed, table, learnt, work, lanes, alone, ended, looking, batches, which, states,
            fills, NO_LIMIT,
        )  # fmt: skip
        make(ctl, packed, table.pool, looking, batches, which, states, True)
        current += states
    about[of + SIZE] = current - first
    return code, current


@compiled
def complete(ctl, packed, table, learnt, work, lanes, alone, ended, looking, batches, which, most):
    """Look at those states of a batch that were put off, which fills the table.

    The code is ``MADE``, or what stands in the way of the state at ``CURRENT``; if it comes back
    with another one there, that state has been dealt with.  ``NO_ROOM`` as well once the batch
    leads to more than ``most`` states.
    """
    about, of = batches.about, which * ABOUT
    missed = batches.missed[which * MOST_STATES : (which + 1) * MOST_STATES]
    if about[of + FIRST] + missed[about[of + NEXT]] < ctl[CURRENT]:
        about[of + NEXT] += 1
    while about[of + NEXT] < about[of + MISSED]:
        states = min(AT_ONCE, about[of + MISSED] - about[of + NEXT])
        for i in range(states):
            looking.places[i] = missed[about[of + NEXT] + i]
        code, states = _look_at(
            ctl, packed, table, learnt, work, lanes, alone, ended, looking, batches, which, states,
            True, most,
        )  # fmt: skip
        # Others may have been made before that are to be added behind these.
        make(ctl, packed, table.pool, looking, batches, which, states, False)
        about[of + NEXT] += states
        if code != MADE:
            ctl[CURRENT] = about[of + FIRST] + missed[about[of + NEXT]]
            return code
    return np.int64(MADE)


@compiled
def advance(ctl, packed, table, learnt, work, lanes, alone, ended, looking, batches):
    """Search on, until done, paused at ``LIMIT``, or something is missing."""
    current = ctl[CURRENT]
    while True:
        # Stop where it has to be known how many states there are.
        near = ctl[COUNT] + NEAR > ctl[STATES]
        end = min(current + (1 if near else ALONE), ctl[COUNT], ctl[LIMIT])
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
        code, searched = find(
            ctl,
            packed,
            table,
            learnt,
            work,
            lanes,
            alone,
            ended,
            looking,
            batches,
            0,
            current,
            end,
            True,
        )
        if ctl[COUNT] + batches.about[MADE_TO] > ctl[ROOM]:
            return FULL_STATES
        add(ctl, packed, batches, 0, searched - current)
        ctl[CURRENT] = current = searched
        if code != MADE and code != NO_ROOM:
            return code
