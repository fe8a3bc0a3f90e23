"""What threads can do by the chunks that it depends on, as workers tell each other: whole turns.

A view of a position is ``[chunks, next view or 0, chunk, chunk, ...]``, a fact of it
``[view, value, value, ..., head, turn, turn, ...]``: see
:mod:`~tdpmmu.worlds.explore.fast.learnt`.
"""

from __future__ import annotations

import numpy as np

from tdpmmu.worlds.explore.fast.compiling import compiled
from tdpmmu.worlds.explore.fast.control import (
    BLOCKED,
    CHUNKS,
    ENTRIES,
    FULL_ENTRIES,
    FULL_SHARED,
    GONE,
    SHARED,
    THREADS,
    USED,
    Words,
)
from tdpmmu.worlds.explore.fast.facts import (
    entry_key,
    hash_value,
    intern_candidate,
    put_entry,
)
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.learnt import find_fact

POSITIONS = 1 << 18
"""Room for one thread's positions."""

FILLED = -1
MISSED = 102
"""It is not known what the thread can do."""


class KnownFacts(Known):
    """Entries, shared states, and the facts that entries are made of."""

    def __init__(self, ctl: Words, chunks: int) -> None:
        super().__init__(ctl, chunks)
        threads = int(ctl[THREADS])
        # By thread and position; what is not touched takes no memory.
        self.first_view: Words = np.zeros((threads, POSITIONS), np.int64)
        self.facts: Words = np.empty(1 << 12, np.int64)
        self.fact_slots: Words = np.zeros(1 << 8, np.int64)

    def bytes_used(self) -> dict[str, int]:
        """What the arrays take, by what they are for."""
        return {**super().bytes_used(), "facts": self.facts.nbytes + self.fact_slots.nbytes}


@compiled
def fill(
    ctl,
    values,
    hashes,
    shared_slots,
    keys,
    offsets,
    pool,
    first_view,
    facts,
    fact_slots,
    shared,
    thread,
    position,
):
    """Make the entry that is missing from a fact: ``FILLED``, or what there is no room for."""
    chunks = ctl[CHUNKS]
    base = shared * chunks
    view = first_view[thread, position]
    at = np.int64(-1)
    while view != 0:
        at, _ = find_fact(facts, fact_slots, view, values, base)
        if at >= 0:
            break
        view = facts[view + 1]
    if at < 0:
        return MISSED
    at += 1 + facts[view]
    head = facts[at]
    turns = head >> 2
    if head & 3 == BLOCKED or head & 3 == GONE:
        turns = 0
    if ctl[ENTRIES] + 1 > keys.shape[0] // 3 * 2 or ctl[USED] + turns + 2 > pool.shape[0]:
        return FULL_ENTRIES
    if ctl[SHARED] + turns + 1 > min(values.shape[0] // chunks, shared_slots.shape[0] // 5 * 4):
        return FULL_SHARED
    offset = ctl[USED] + 1
    pool[offset - 1] = entry_key(shared, thread, position)
    pool[offset] = head
    at += 1
    for turn in range(turns):
        end = facts[at]
        changed = facts[at + 1]
        at += 2
        after = shared
        if changed:
            hashed = hashes[shared]
            candidate = ctl[SHARED] * chunks
            for i in range(chunks):
                values[candidate + i] = values[base + i]
            for i in range(at, at + 2 * changed, 2):
                chunk, value = facts[i], facts[i + 1]
                hashed -= hash_value(chunk, values[candidate + chunk])
                hashed += hash_value(chunk, value)
                values[candidate + chunk] = value
            after = intern_candidate(ctl, values, hashes, shared_slots, hashed)
            at += 2 * changed
        pool[offset + 1 + turn] = (after << 32) | end
    put_entry(keys, offsets, pool[offset - 1], offset)
    ctl[ENTRIES] += 1
    ctl[USED] = offset + turns + 1
    return FILLED
