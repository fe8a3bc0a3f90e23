"""Compiled: batches of states, what their turns lead to, and adding that to the set.

Whoever looks at a state makes the states that its turns lead to and puts them into a batch; whoever
adds a batch adds those that are new.  These may be two threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    BITSTATE,
    COMPACT,
    EXACT,
    LINE,
    POSITION_MASK,
    S32,
    STORAGE,
    THREADS,
    TRANSITIONS,
    Words,
    slot_of,
)
from tdpmmu.worlds.explore.fast.intrinsics import prefetch
from tdpmmu.worlds.explore.fast.lossy import WORDS, add_bits, add_fingerprints, term
from tdpmmu.worlds.explore.fast.states import (
    add_hashed,
    clear_field,
    field_of,
    hash_state,
    put_field,
)

AT_ONCE = 32
"""States that are looked at together."""

TOGETHER = 64
"""States whose places are asked for before they are added."""

MOST_STATES = 1 << 11
"""States of a batch, at most."""

MOST_TURNS = 1 << 16
"""States that a batch leads to, at most: more than one state does (64 threads with 1,023 each)."""

RECENT = 1 << 14
"""States made recently that are remembered, some 400 kB: the rest is to stay in the cache."""

RECENT_MASK = np.uint64(RECENT - 1)

FIRST, SIZE, MADE_TO, MISSED, NEXT, STAGE = range(6)
ABOUT = 8
"""What is said of a batch: its first state and how many it has; behind which turn there is room;
how many of its states could not be looked at, and which of these is next; how far it is."""


class Batches(NamedTuple):
    """Room for batches, one behind the other.

    ``words``, ``hashes``, ``source``: states that turns lead to, and the state each is found from.
    ``begins``, ``ends``, ``turns``: for each state of a batch, where those are that it leads to,
    and how many turns it has (some lead to states that were made just before).  ``missed``: which
    of the batch's states could not be looked at.  ``about``: ``ABOUT`` words for each batch.
    ``queue``: turns whose places have been asked for.
    """

    words: Words
    hashes: Words
    source: Words
    begins: Words
    ends: Words
    turns: Words
    missed: Words
    about: Words
    queue: Words


class Looking(NamedTuple):
    """Room for one thread to look at states.

    ``places``: which ones of a batch; ``states``: their words; ``positions``, ``hashes``,
    ``offsets``: of their threads, and of what these can do there.  ``chosen`` and ``movers``: the
    entries that are followed, and whose they are; ``counts``: how many, -1 for a state that has to
    be put off; ``turns``: how many these have.  ``state``: one that is changed.  ``recent``,
    ``recent_words``: hashes and words of some states that were made last, so that these need not be
    looked for again.
    """

    places: Words
    states: Words
    positions: Words
    hashes: Words
    offsets: Words
    chosen: Words
    movers: Words
    counts: Words
    turns: Words
    state: Words
    recent: Words
    recent_words: Words


def new_batches(words: int, batches: int = 1) -> Batches:
    """For states of so many words; what is not touched takes no memory."""
    turns, states = batches * MOST_TURNS, batches * MOST_STATES
    return Batches(
        np.empty(turns * words, np.uint64),
        np.empty(turns, np.uint64),
        np.empty(turns, np.int64),
        np.empty(states, np.int64),
        np.empty(states, np.int64),
        np.empty(states, np.int64),
        np.empty(states, np.int64),
        np.zeros(batches * ABOUT, np.int64),
        np.empty(2 * TOGETHER, np.int64),
    )


def new_looking(threads: int, words: int) -> Looking:
    """For states of so many words."""
    return Looking(
        np.empty(AT_ONCE, np.int64),
        np.empty(AT_ONCE * words, np.uint64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(AT_ONCE * threads, np.uint64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(AT_ONCE * threads, np.int64),
        np.empty(AT_ONCE, np.int64),
        np.empty(AT_ONCE, np.int64),
        np.empty(words, np.uint64),
        np.zeros(RECENT, np.uint64),
        np.zeros(RECENT * words, np.uint64),
    )


def forget(looking: Looking) -> None:
    """Forget what was made recently: some of it has not been added."""
    looking.recent[:] = 0
    looking.recent_words[:] = 0


@inlined
def _was_made(looking, hashed, words, at, each):
    """Whether a state was made recently; from now on it was."""
    recent = looking.recent_words
    place = np.int64(hashed & RECENT_MASK)
    same = looking.recent[place] == hashed
    for i in range(each):
        same = same and recent[place * each + i] == words[at + i]
        recent[place * each + i] = words[at + i]
    looking.recent[place] = hashed
    return same


@compiled
def make(ctl, packed, pool, looking, batches, which, states, in_order):
    """Make the states that the chosen entries of some states of a batch lead to.

    What was made recently need not be made again, if states are looked at ``in_order``: it is to be
    added before, then.
    """
    threads = ctl[THREADS]
    each = len(packed.shape)
    exact = ctl[STORAGE] == EXACT
    state, words, hashes = looking.state, batches.words, batches.hashes
    about, of = batches.about, which * ABOUT
    made = about[of + MADE_TO]
    left = uint64(0)
    for i in range(states):
        place = which * MOST_STATES + looking.places[i]
        number = about[of + FIRST] + looking.places[i]
        batches.begins[place] = made
        batches.turns[place] = looking.turns[i]
        if looking.counts[i] < 0:
            batches.missed[which * MOST_STATES + about[of + MISSED]] = looking.places[i]
            about[of + MISSED] += 1
        for entry in range(i * threads, i * threads + looking.counts[i]):
            offset, thread = looking.chosen[entry], looking.movers[entry]
            for word in range(each):
                state[word] = looking.states[i * each + word]
            clear_field(packed, state, 0, thread)
            clear_field(packed, state, 0, threads)
            if not exact:
                left = uint64(0)
                for other in range(threads):
                    if other != thread:
                        left += term(other, field_of(packed, state, 0, other))
            for turn in range(offset + 1, offset + 1 + (pool[offset] >> 2)):
                to = made * each
                for word in range(each):
                    words[to + word] = state[word]
                position = pool[turn] & POSITION_MASK
                after = uint64(pool[turn]) >> S32
                put_field(packed, words, to, thread, position)
                put_field(packed, words, to, threads, after)
                if exact:
                    hashed = hash_state(packed, words, to)
                else:
                    hashed = left + term(thread, position) + term(threads, after)
                if not (in_order and _was_made(looking, hashed, words, to, each)):
                    hashes[made] = hashed
                    batches.source[made] = number
                    made += 1
        batches.ends[place] = made
    about[of + MADE_TO] = made


@compiled
def _add_some(ctl, packed, batches, first, end):
    storage = ctl[STORAGE]
    words, source, hashes = batches.words, batches.source, batches.hashes
    if storage == EXACT:
        add_hashed(ctl, packed, batches.queue, first, end, words, source, hashes)
    elif storage == COMPACT:
        add_fingerprints(ctl, packed, batches.queue, first, end, words, source, hashes)
    else:
        add_bits(ctl, packed, batches.queue, first, end, words, source, hashes)


@compiled
def add(ctl, packed, batches, which, states):
    """Add what the first ``states`` of a batch lead to, if it is new."""
    slots, hashes, queue = packed.slots, batches.hashes, batches.queue
    storage = ctl[STORAGE]
    each_place = WORDS if storage == BITSTATE else LINE if storage == EXACT else 1
    places = slots.shape[0] // each_place
    waiting = added = 0  # both go round: while places are asked for one half the other is added
    for state in range(which * MOST_STATES, which * MOST_STATES + states):
        ctl[TRANSITIONS] += batches.turns[state]
        for turn in range(batches.begins[state], batches.ends[state]):
            prefetch(slots, slot_of(hashes[turn], places) * each_place)
            queue[waiting] = turn
            waiting += 1
            if waiting == TOGETHER:
                if added == TOGETHER:
                    _add_some(ctl, packed, batches, TOGETHER, 2 * TOGETHER)
                    added = 0
            elif waiting == 2 * TOGETHER:
                _add_some(ctl, packed, batches, 0, TOGETHER)
                added = TOGETHER
                waiting = 0
    if added == TOGETHER:
        _add_some(ctl, packed, batches, TOGETHER, 2 * TOGETHER)
        added = 0
    _add_some(ctl, packed, batches, added, waiting)
