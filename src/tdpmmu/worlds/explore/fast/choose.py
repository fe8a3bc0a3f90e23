"""Compiled: which threads' turns are followed from a state."""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.compose import fill
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    FREE,
    GONE,
    HALTED,
    MADE,
    MISSED_SHARED,
    MISSED_START,
    MISSED_THREAD,
    URGENT,
    WANTING,
)
from tdpmmu.worlds.explore.fast.facts import find_entry

ENDED = 101
"""All threads have ended."""


@compiled
def choose(
    ctl, table, learnt, work, lanes, alone, gone, asked, shared, positions, base, chosen, movers
):
    """``(code, how many)``: the entries whose turns are followed from a state.

    Its threads' positions are at ``base``.  The code may be what stands in the way of knowing them:
    what :func:`~tdpmmu.worlds.explore.fast.compose.fill` says, or ``WANTING`` if that has been
    asked already.  ``gone``: where each thread stands when it has ended, as far as known.
    """
    found = 0
    ended = True
    rival = np.int64(-1)
    for late in range(2):
        those = alone if late else lanes
        lane = 0
        while lane < those.shape[0]:
            thread = those[lane] if rival < 0 else rival
            position = np.int64(positions[base + thread])
            if position == gone[thread] and rival < 0 and not late:
                lane += 1
                continue
            offset = find_entry(table.keys, table.offsets, shared, thread, position)
            if offset < 0:
                if asked.shape[0] and asked[thread << 18 | position]:
                    return np.int64(WANTING), 0
                ctl[MISSED_THREAD], ctl[MISSED_SHARED] = thread, shared
                ctl[MISSED_START] = position
                code = fill(ctl, table, learnt, work, shared, thread, position)
                if code != MADE:
                    return code, 0
                continue
            head = table.pool[offset]
            kind = head & 3
            if rival >= 0 or (kind == URGENT and not late):
                # Nobody else need be looked at.
                chosen[0] = offset
                movers[0] = thread
                return np.int64(MADE), 1
            if kind == BLOCKED and not late:
                rival = head >> 2
                ended = False
                continue
            if kind != GONE:
                ended = False
            elif not late:
                gone[thread] = position
            if kind in (FREE, URGENT) and head >> 2:
                chosen[found] = offset
                movers[found] = thread
                found += 1
            lane += 1
        if found:
            return np.int64(MADE), found
        if not ended:
            return np.int64(HALTED), 0
    return np.int64(ENDED), 0
