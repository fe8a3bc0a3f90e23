"""The compiled part: states are looked at, and what their turns lead to is made and added."""

from __future__ import annotations

import numpy as np

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
from tdpmmu.worlds.explore.fast.choosing import choose, look_up, unpack
from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.compose import fill
from tdpmmu.worlds.explore.fast.control import (
    COUNT,
    CURRENT,
    DEPTH,
    DONE,
    FULL_STATES,
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
    UNKNOWN,
)
from tdpmmu.worlds.explore.fast.states import field_of

ALONE = 256
"""States of a batch that one thread looks at and then adds: they stay in its cache."""


@compiled
def _look_at(search, looking, batches, which, states, most, fills):
    """``(code, states)``: choose what is followed from some states of a batch.

    They are those before one for which the code says what stands in the way: ``HALTED``, what
    :func:`~tdpmmu.worlds.explore.fast.compose.fill` says, or ``NO_ROOM`` for one before which the
    batch leads to more than ``most`` states.  If the table is not to be filled, those that cannot
    be looked at are marked instead.
    """
    ctl, packed = search.ctl, search.packed
    about, of = batches.about, which * ABOUT
    each, threads = len(packed.shape), ctl[THREADS]
    for i in range(states):
        unpack(search, looking, about[of + FIRST] + looking.places[i], i)
    look_up(search, looking, states)
    made = about[of + MADE_TO] - which * MOST_TURNS
    for i in range(states):
        code = np.int64(NO_ROOM)
        count = turns = np.int64(0)
        if made <= most:
            shared, base = field_of(packed, looking.states, i * each, threads), i * threads
            new = np.int64(-1)
            while True:
                code, count, turns = choose(search, looking, shared, base, new)
                if code != UNKNOWN or not fills:
                    break
                new, start = count, looking.positions[base + count]
                code = fill(ctl, search.table, search.learnt, search.work, shared, new, start)
                if code != MADE:
                    ctl[MISSED_SHARED], ctl[MISSED_START] = shared, start
                    break
            if code == MADE and made + turns > MOST_TURNS:
                code = np.int64(NO_ROOM)
        if code != MADE:
            if fills:
                return code, i
            count, turns = np.int64(-1), np.int64(0)
        looking.counts[i], looking.turns[i] = count, turns
        made += turns
    return np.int64(MADE), states


@compiled
def find(search, looking, batches, which, first, end, most, fills):
    """``(code, searched)``: put what states ``first`` to ``end`` lead to into a batch.

    It ends with the state from which on that is more than ``most``, with ``NO_ROOM``.  If the table
    is not to be filled, those that cannot be looked at are put off.
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
        code, states = _look_at(search, looking, batches, which, states, most, fills)
        make(search.ctl, search.packed, search.table.pool, looking, batches, which, states, True)
        current += states
    about[of + SIZE] = current - first
    return code, current


@compiled
def complete(search, looking, batches, which, most):
    """Look at those states of a batch that were put off, which fills the table.

    The code is ``MADE``, or what stands in the way of the state at ``CURRENT``; if it comes back
    with another one there, that state has been dealt with.  ``NO_ROOM`` as well once the batch
    leads to more than ``most`` states.
    """
    ctl, about, of = search.ctl, batches.about, which * ABOUT
    missed = batches.missed[which * MOST_STATES : (which + 1) * MOST_STATES]
    if about[of + FIRST] + missed[about[of + NEXT]] < ctl[CURRENT]:
        about[of + NEXT] += 1
    while about[of + NEXT] < about[of + MISSED]:
        states = min(AT_ONCE, about[of + MISSED] - about[of + NEXT])
        for i in range(states):
            looking.places[i] = missed[about[of + NEXT] + i]
        code, states = _look_at(search, looking, batches, which, states, most, True)
        # Others may have been made before that are to be added behind these.
        make(ctl, search.packed, search.table.pool, looking, batches, which, states, False)
        about[of + NEXT] += states
        if code != MADE:
            ctl[CURRENT] = about[of + FIRST] + missed[about[of + NEXT]]
            return code
    return np.int64(MADE)


@compiled
def advance(search, looking, batches):
    """Search on, until done, paused at ``LIMIT``, or something is missing.

    Paused as well once there are more states than ``STATES``: not a state is looked at after that.
    """
    ctl = search.ctl
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
        end = min(current + ALONE, ctl[LEVEL_ENDS], ctl[LIMIT])
        most = ctl[STATES] - ctl[COUNT]
        code, searched = find(search, looking, batches, 0, current, end, most, True)
        if ctl[COUNT] + batches.about[MADE_TO] > ctl[ROOM]:
            return FULL_STATES
        add(ctl, search.packed, batches, 0, searched - current)
        ctl[CURRENT] = searched
        if code != MADE and code != NO_ROOM:
            return code
