"""Compiled: which turns of a finished search can lie on a cycle without progress.

The same as :mod:`tdpmmu.worlds.explore.progress` does on the plain loop's tables, and with the same
result, in the same order.
"""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast.compiling import allocating, compiled
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CURRENT,
    FREE,
    NUMBER_BITS,
    POSITION_MASK,
    THREADS,
    URGENT,
    WIDTH,
)
from tdpmmu.worlds.explore.fast.facts import after_entry, find_entry
from tdpmmu.worlds.explore.fast.lossy import term
from tdpmmu.worlds.explore.fast.states import (
    clear_field,
    field_of,
    find_state,
    load_state,
    put_field,
)


@allocating
def components(count, tails, heads):
    """The strongly connected component of each node (Tarjan, without recursion)."""
    first = np.zeros(count + 2, np.int64)
    for i in range(len(tails)):
        first[tails[i] + 2] += 1
    for i in range(1, count + 2):
        first[i] += first[i - 1]
    targets = np.empty(len(heads), np.int64)
    for i in range(len(tails)):
        targets[first[tails[i] + 1]] = heads[i]
        first[tails[i] + 1] += 1
    # Now the edges of node n are targets[first[n]:first[n + 1]].
    component = np.full(count, -1, np.int64)
    low = np.zeros(count, np.int64)  # 0: not met yet
    index = np.zeros(count, np.int64)
    at = first[:count].copy()
    waiting = np.empty(count, np.int64)
    entered = np.empty(count, np.int64)
    waits = deep = met = found = 0
    for root in range(count):
        if low[root] or first[root] == first[root + 1]:
            continue
        met += 1
        low[root] = index[root] = met
        entered[0] = waiting[waits] = root
        deep = 1
        waits += 1
        while deep:
            node = entered[deep - 1]
            edge = at[node]
            if edge < first[node + 1]:
                at[node] = edge + 1
                head = targets[edge]
                if low[head] == 0:
                    met += 1
                    low[head] = index[head] = met
                    entered[deep] = waiting[waits] = head
                    deep += 1
                    waits += 1
                elif component[head] < 0 and low[head] < low[node]:
                    low[node] = low[head]
                continue
            deep -= 1
            if low[node] == index[node]:
                while True:
                    waits -= 1
                    component[waiting[waits]] = found
                    if waiting[waits] == node:
                        break
                found += 1
            if deep and component[node] < 0 and low[node] < low[entered[deep - 1]]:
                low[entered[deep - 1]] = low[node]
    for node in range(count):
        if component[node] < 0:
            component[node] = found
            found += 1
    return component


@allocating
def local_edges(pool, used, first_place, urgent):
    """``(where in the pool, shared before and after, place ...)`` of all turns without progress.

    Or else of all urgent turns.
    """
    count = 0
    for turn in (False, True):
        edges = np.empty((5, count if turn else 0), np.int64)
        count = 0
        offset = np.int64(1)
        while offset < used:
            key = pool[offset - 1] - 1
            shared, thread, position = key >> 24, key >> 18 & 63, key & ((1 << 18) - 1)
            head = pool[offset]
            first = offset + 1
            offset = after_entry(pool, offset)
            if head & 3 != URGENT and (urgent or head & 3 != FREE):
                continue
            for at in range(first, first + (head >> 2)):
                word = pool[at]
                if word >> 31 & 1 and not urgent:
                    continue
                if turn:
                    edges[0, count] = at
                    edges[1, count] = shared
                    edges[2, count] = word >> 32
                    edges[3, count] = first_place[thread] + position
                    edges[4, count] = first_place[thread] + (word & POSITION_MASK)
                count += 1
    return edges


@compiled
def mark(pool, used, kept, marks):
    """Mark turns, and the heads of the entries that they are in."""
    for i in range(kept.shape[0]):
        marks[kept[i]] = 1
    offset = np.int64(1)
    while offset < used:
        head = pool[offset]
        if head & 3 == FREE or head & 3 == URGENT:
            for at in range(offset + 1, offset + 1 + (head >> 2)):
                if marks[at]:
                    marks[offset] = 1
                    break
        offset = after_entry(pool, offset)


@allocating
def marked_edges(ctl, packed, places, pool, alone, marks, first, hashed, most):
    """``(thread, from, to, who can move, hash)`` of marked turns that the search followed.

    In the states' order, from the state ``first`` on, to those that were searched; no more than
    ``most``.  Who can move there for sure, of those that are not ``alone``, is a mask of threads.
    ``hashed``: ``to`` is the state's hash, as where states have no numbers; the hash that comes
    last is that of the state before.
    """
    found = np.empty((1024, 5), np.int64)
    edges = 0
    threads = ctl[THREADS]
    width, bits = ctl[WIDTH], ctl[NUMBER_BITS]
    words = np.empty(len(packed.shape), np.uint64)
    successor = np.empty(len(packed.shape), np.uint64)
    at_of = np.empty(threads, np.int64)
    follow = np.empty(threads, np.bool_)
    for number in range(first, ctl[CURRENT]):
        load_state(packed, width, number, words, 0)
        shared = field_of(packed, words, 0, threads)
        some = False
        for thread in range(threads):
            position = field_of(packed, words, 0, thread)
            at = find_entry(places, pool, shared, thread, position)
            at_of[thread] = at
            if at >= 0 and marks[at]:
                some = True
        if not some:
            continue
        # Whom the search has followed: see choosing.choose().
        anybody = False
        movers = np.int64(0)
        for thread in range(threads):
            if not alone[thread] and at_of[thread] >= 0:
                head = pool[at_of[thread]]
                if (head & 3 == FREE or head & 3 == URGENT) and head >> 2:
                    movers |= np.int64(1) << thread
        only = np.int64(-1)
        for thread in range(threads):
            follow[thread] = False
            if alone[thread] or at_of[thread] < 0:
                continue
            head = pool[at_of[thread]]
            if head & 3 == BLOCKED:
                only = head >> 2
                break
            if head & 3 == URGENT:
                only = np.int64(thread)
                break
            if head & 3 == FREE and head >> 2:
                follow[thread] = True
                anybody = True
        for thread in range(threads):
            at = at_of[thread]
            if at < 0 or not marks[at]:
                continue
            if only >= 0:
                if thread != only:
                    continue
            elif anybody:
                if not follow[thread]:
                    continue
            elif not alone[thread]:
                continue
            for turn in range(at + 1, at + 1 + (pool[at] >> 2)):
                if not marks[turn]:
                    continue
                word = pool[turn]
                if edges == most:
                    return found
                if edges == found.shape[0]:
                    found = np.concatenate((found, np.empty_like(found)))
                if hashed:
                    here = np.uint64(0)
                    there = np.uint64(0)
                    for field in range(threads + 1):
                        value = field_of(packed, words, 0, field)
                        here += term(field, value)
                        if field == thread:
                            value = word & POSITION_MASK
                        elif field == threads:
                            value = word >> 32
                        there += term(field, value)
                    found[edges, 2], found[edges, 4] = np.int64(there), np.int64(here)
                else:
                    successor[:] = words
                    clear_field(packed, successor, 0, thread)
                    clear_field(packed, successor, 0, threads)
                    put_field(packed, successor, 0, thread, word & POSITION_MASK)
                    put_field(packed, successor, 0, threads, word >> 32)
                    target = find_state(packed, width, bits, successor, 0)
                    if target < 0:
                        continue
                    found[edges, 2] = target
                found[edges, 0], found[edges, 1], found[edges, 3] = thread, number, movers
                edges += 1
    return found[:edges]
