"""Compiled: one worker's part of a level.

What the threads can do in a state is chosen as :func:`tdpmmu.worlds.explore.fast.kernels.advance`
does.  States are added in the order in which a single loop would have met them: each has a *key*,
made of the number of the state that it was found from and of the turn's place among that state's
turns.
"""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast.compiling import allocating, compiled
from tdpmmu.worlds.explore.fast.compose import fill
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CHUNKS,
    COUNT,
    FREE,
    FULL_PLACES,
    FULL_STATES,
    GONE,
    HALTED,
    LOW,
    MADE,
    MISSED_SHARED,
    MISSED_START,
    MISSED_THREAD,
    NUMBER_BITS,
    PLACE_BITS,
    PLACES,
    POSITION_MASK,
    S32,
    SHARED,
    THREADS,
    URGENT,
)
from tdpmmu.worlds.explore.fast.facts import entry_key, find_entry, intern_row
from tdpmmu.worlds.explore.parallel.sets import find_places, find_state

TURN_BITS = 17
"""Room for a turn's place among a state's turns: 64 threads with 1,023 each."""

ENOUGH = 100
"""There is no room for more candidates."""

ENDED = 101
"""All threads have ended."""

AT, LEFT, FOUND = range(3)
"""Fields of a pass: where it is, states from which nobody moves, candidates."""


@compiled
def choose(ctl, table, learnt, work, rows, lanes, alone, state, chosen, movers):
    """``(code, how many)``: the entries whose turns are followed from a state.

    Or what stands in the way of knowing them: what :func:`~tdpmmu.worlds.explore.fast.compose.fill`
    says.
    """
    shared = np.int64(state >> S32)
    base = np.int64(state & LOW) * ctl[THREADS]
    found = 0
    ended = True
    rival = np.int64(-1)
    for late in range(2):
        those = alone if late else lanes
        lane = 0
        while lane < those.shape[0]:
            thread = those[lane] if rival < 0 else rival
            position = np.int64(rows[base + thread])
            offset = find_entry(table.keys, table.offsets, shared, thread, position)
            if offset < 0:
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
            ended = ended and kind == GONE
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


@allocating
def expand(
    ctl,
    table,
    learnt,
    work,
    order,
    rows,
    row_slots,
    lanes,
    alone,
    steps,
    end,
    ranks,
    candidates,
    halted,
):
    """What the turns of the states up to ``end`` lead to: ``(key, shared state, places)``."""
    threads = ctl[THREADS]
    pool = table.pool
    chosen = np.empty(threads, np.int64)
    movers = np.empty(threads, np.int64)
    place_bits = ctl[PLACE_BITS]
    most_places = min(rows.shape[0] // threads, row_slots.shape[0] // 5 * 4)
    while steps[AT] < end:
        state = order[steps[AT]]
        code, found = choose(ctl, table, learnt, work, rows, lanes, alone, state, chosen, movers)
        if code != MADE and code != HALTED and code != ENDED:
            return code
        if code == HALTED:
            halted[steps[LEFT]] = steps[AT]
            steps[LEFT] += 1
        total = np.int64(0)
        for which in range(found):
            head = pool[chosen[which]]
            if head & 3 == FREE or head & 3 == URGENT:
                total += head >> 2
        if steps[FOUND] + total > candidates.shape[1]:
            return np.int64(ENOUGH)
        if ctl[PLACES] + total > most_places:
            return np.int64(FULL_PLACES)
        places = np.int64(state & LOW)
        base = places * threads
        turn = np.int64(0)
        key = np.int64(ranks[steps[AT]]) << TURN_BITS
        for which in range(found if total else 0):
            offset = chosen[which]
            mover = movers[which]
            for at in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
                word = pool[at]
                position = word & POSITION_MASK
                target = places
                if position != rows[base + mover]:
                    target, slot, tag = find_places(
                        rows, row_slots, place_bits, rows, base, threads, mover, position
                    )
                    if target < 0:
                        target = ctl[PLACES]
                        ctl[PLACES] = target + 1
                        row_slots[slot] = tag | (target + 1)
                        for thread in range(threads):
                            rows[target * threads + thread] = rows[base + thread]
                        rows[target * threads + mover] = position
                candidates[0, steps[FOUND]] = key + turn
                candidates[1, steps[FOUND]] = word >> 32
                candidates[2, steps[FOUND]] = target
                steps[FOUND] += 1
                turn += 1
        steps[AT] += 1
    return np.int64(MADE)


@compiled
def renumber(numbers, sent, fresh, next_number):
    """Numbers as the receiver knows them; what was not sent yet is noted in ``fresh``."""
    count = 0
    for i in range(numbers.shape[0]):
        there = np.int64(sent[numbers[i]])
        if there == 0:
            fresh[count] = numbers[i]
            count += 1
            there = next_number + count
            sent[numbers[i]] = there
        numbers[i] = there - 1
    return count


@compiled
def intern_places(ctl, rows, row_slots, new, numbers):
    """The numbers of rows of places; there has to be room."""
    threads = ctl[THREADS]
    for i in range(numbers.shape[0]):
        number, slot, tag = find_places(
            rows, row_slots, ctl[PLACE_BITS], new, i * threads, threads, -1, 0
        )
        if number < 0:
            number = ctl[PLACES]
            ctl[PLACES] = number + 1
            row_slots[slot] = tag | (number + 1)
            for thread in range(threads):
                rows[number * threads + thread] = new[i * threads + thread]
        numbers[i] = number


@compiled
def intern_rows(ctl, values, hashes, slots, new, numbers):
    """The numbers of shared states; there has to be room."""
    chunks = ctl[CHUNKS]
    for i in range(numbers.shape[0]):
        base = ctl[SHARED] * chunks
        for chunk in range(chunks):
            values[base + chunk] = new[i * chunks + chunk]
        numbers[i] = intern_row(ctl, values, hashes, slots)


@compiled
def mark_ends(pool, ends):
    """Note all positions that entries begin with, or lead to."""
    at = 0
    while at < pool.shape[0]:
        key = pool[at] - 1
        thread = key >> 18 & 63
        ends[thread, key & ((1 << 18) - 1)] = True
        head = pool[at + 1]
        at += 2
        if head & 3 == FREE or head & 3 == URGENT:
            for at_turn in range(at, at + (head >> 2)):
                ends[thread, pool[at_turn] & POSITION_MASK] = True
            at += head >> 2


@compiled
def move_pool(pool, shared, positions, moved):
    """Entries with shared states and positions numbered anew; how many there are."""
    at = 0
    entries = 0
    while at < pool.shape[0]:
        key = pool[at] - 1
        thread = key >> 18 & 63
        moved[at] = entry_key(shared[key >> 24], thread, positions[thread, key & ((1 << 18) - 1)])
        head = pool[at + 1]
        moved[at + 1] = head
        at += 2
        entries += 1
        if head & 3 == FREE or head & 3 == URGENT:
            for at_turn in range(at, at + (head >> 2)):
                word = pool[at_turn]
                after = shared[word >> 32] << 32 | (word & (1 << 31))
                moved[at_turn] = after | positions[thread, word & POSITION_MASK]
            at += head >> 2
    return entries


@compiled
def insert(ctl, order, slots, keys, states, heads, ends, new_keys):
    """Add states in the order of their keys, which is that of each worker's part of them."""
    most = min(order.shape[0], slots.shape[0] // 5 * 4)
    found = ctl[COUNT]
    first = found
    while True:
        best = -1
        for source in range(heads.shape[0]):
            if heads[source] < ends[source] and (
                best < 0 or keys[heads[source]] < keys[heads[best]]
            ):
                best = source
        if best < 0:
            break
        if found == most:
            ctl[COUNT] = found
            return np.int64(FULL_STATES), found - first
        at = heads[best]
        number, slot, tag = find_state(order, slots, ctl[NUMBER_BITS], states[at])
        if number < 0:
            slots[slot] = tag | (found + 1)
            order[found] = states[at]
            new_keys[found - first] = keys[at]
            found += 1
        heads[best] += 1
    ctl[COUNT] = found
    return np.int64(MADE), found - first
