"""Compiled: batches of entries that are followed, and the states that their turns lead to.

Whoever looks at states puts what is followed from them into a batch; whoever adds states makes them
of it, and adds those that are new.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    BITSTATE,
    COMPACT,
    COUNT,
    EXACT,
    LINE,
    POSITION_MASK,
    ROOM,
    S32,
    STORAGE,
    THREADS,
    WIDTH,
    Words,
    slot_of,
)
from tdpmmu.worlds.explore.fast.intrinsics import prefetch, tell
from tdpmmu.worlds.explore.fast.lossy import WORDS, add_bits, add_fingerprints, term
from tdpmmu.worlds.explore.fast.mailbox import DONE, FULL, wait_for_batch
from tdpmmu.worlds.explore.fast.states import (
    add_hashed,
    clear_field,
    field_of,
    hash_state,
    load_state,
    put_field,
)

AT_ONCE = 32
"""States that are looked at together."""

TOGETHER = 64
"""States whose places are asked for before they are added."""

BATCH = 1 << 14
"""Entries that can wait: more than ``AT_ONCE`` states have."""

TURNS = 1 << 17
"""Turns of the entries of a batch, at most: more than a state has (64 threads with 1,023 each)."""

RECENT = 1 << 15
"""States that were added recently, about a megabyte: the rest is to stay in the cache, too."""

RECENT_MASK = np.uint64(RECENT - 1)

THREAD_BITS = 6
"""Below an entry's place: whose it is."""


class Batch(NamedTuple):
    """Room for some states and for what is followed from them.

    ``states``: their words; ``positions``, ``hashes``, ``offsets``: of their threads, and of what
    these can do there.  ``chosen`` and ``movers``: the entries of one state that are followed, and
    whose they are.  ``source``, ``entries``: all that are followed, and from which state.
    """

    states: Words
    positions: Words
    hashes: Words
    offsets: Words
    chosen: Words
    movers: Words
    source: Words
    entries: Words


class Window(NamedTuple):
    """Room for states that are about to be added, and for one that they are found from.

    ``words``, ``hashes``: of two times ``TOGETHER``, while places are asked for one half the other
    is added; ``source``: which states they are found from.  ``recent``, ``recent_words``: hashes
    and words of some that were added last, so that these need not be looked for again.
    """

    state: Words
    words: Words
    hashes: Words
    source: Words
    recent: Words
    recent_words: Words


def new_batch(threads: int, words: int, batches: int = 1) -> Batch:
    """Room for batches, one behind the other; what is not touched takes no memory."""
    return Batch(
        np.empty(AT_ONCE * words, np.uint64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(AT_ONCE * threads, np.uint64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(threads, np.int64),
        np.empty(threads, np.int64),
        np.empty(batches * BATCH, np.int64),
        np.empty(batches * BATCH, np.int64),
    )


def new_window(words: int) -> Window:
    """For states of so many words."""
    return Window(
        np.empty(2 * words, np.uint64),
        np.empty(2 * TOGETHER * words, np.uint64),
        np.empty(2 * TOGETHER, np.uint64),
        np.empty(2 * TOGETHER, np.int64),
        np.zeros(RECENT, np.uint64),
        np.zeros(RECENT * words, np.uint64),
    )


@compiled
def _add_some(ctl, packed, window, first, end):
    storage = ctl[STORAGE]
    words, source, hashes = window.words, window.source, window.hashes
    if storage == EXACT:
        add_hashed(ctl, packed, first, end, words, source, hashes)
    elif storage == COMPACT:
        add_fingerprints(ctl, packed, first, end, words, source, hashes)
    else:
        add_bits(ctl, packed, first, end, words, source, hashes)


@inlined
def _was_added(window, hashed, at, each):
    """Whether a state was added recently; from now on it was."""
    words, recent = window.words, window.recent_words
    place = np.int64(hashed & RECENT_MASK)
    same = window.recent[place] == hashed
    for i in range(each):
        same = same and recent[place * each + i] == words[at + i]
        recent[place * each + i] = words[at + i]
    window.recent[place] = hashed
    return same


@compiled
def add(ctl, packed, pool, batch, window, begin, found):
    """Add what entries ``begin`` to ``found`` of a batch lead to, if it is new."""
    threads = ctl[THREADS]
    each = len(packed.shape)
    slots = packed.slots
    storage = ctl[STORAGE]
    each_place = WORDS if storage == BITSTATE else LINE if storage == EXACT else 1
    places = slots.shape[0] // each_place
    state, words, hashes, source = window.state, window.words, window.hashes, window.source
    left = uint64(0)
    loaded = np.int64(-1)
    waiting = added = 0  # both go round
    for which in range(begin, found):
        current = batch.source[which]
        offset = batch.entries[which] >> THREAD_BITS
        thread = batch.entries[which] & ((1 << THREAD_BITS) - 1)
        if current != loaded:
            load_state(packed, ctl[WIDTH], current, state, 0)
            loaded = current
        for i in range(each):
            state[each + i] = state[i]
        clear_field(packed, state, each, thread)
        clear_field(packed, state, each, threads)
        if storage != EXACT:
            left = uint64(0)
            for other in range(threads):
                if other != thread:
                    left += term(other, field_of(packed, state, 0, other))
        for turn in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
            to = waiting * each
            for i in range(each):
                words[to + i] = state[each + i]
            position = pool[turn] & POSITION_MASK
            after = uint64(pool[turn]) >> S32
            put_field(packed, words, to, thread, position)
            put_field(packed, words, to, threads, after)
            if storage == EXACT:
                hashes[waiting] = hash_state(packed, words, to)
            else:
                hashes[waiting] = left + term(thread, position) + term(threads, after)
            if _was_added(window, hashes[waiting], to, each):
                continue
            prefetch(slots, slot_of(hashes[waiting], places) * each_place)
            source[waiting] = current
            waiting += 1
            if waiting == TOGETHER:
                if added == TOGETHER:
                    _add_some(ctl, packed, window, TOGETHER, 2 * TOGETHER)
                    added = 0
            elif waiting == 2 * TOGETHER:
                _add_some(ctl, packed, window, 0, TOGETHER)
                added = TOGETHER
                waiting = 0
    if added == TOGETHER:
        _add_some(ctl, packed, window, TOGETHER, 2 * TOGETHER)
        added = 0
    _add_some(ctl, packed, window, added, waiting)


@compiled
def add_batches(ctl, packed, pool, batches, ends, turns, window, mailbox):
    """Add batches as they are posted, until all is over or the set is full.

    There is room for as many batches as there are ``ends``, which are used in turn; ``turns`` is
    how many states each may add.
    """
    while wait_for_batch(mailbox):
        done = mailbox[DONE]
        which = done % ends.shape[0]
        if ctl[COUNT] + turns[which] > ctl[ROOM]:
            tell(mailbox, FULL, 1)
            return
        add(ctl, packed, pool, batches, window, which * BATCH, ends[which])
        tell(mailbox, DONE, done + 1)
