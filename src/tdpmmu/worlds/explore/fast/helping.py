"""Compiled: how threads share a level of the search, and tell each other how far they are.

States are dealt out in batches.  Any thread may look at any batch whose turn it is, for what is in
the table.  What is not, one thread fills in, the leader, batch by batch: the table is filled in the
order in which one thread alone would.  And batches are added in this order, by any thread, one at a
time.

The mailbox is a few words that all threads see.  What was written before a word is seen by whoever
sees the word.  Who waits looks for a moment, then sleeps in between.
"""

from __future__ import annotations

from typing import Any

from numba import types

from tdpmmu.worlds.explore.fast.batches import (
    ABOUT,
    FIRST,
    MADE_TO,
    MISSED,
    MOST_STATES,
    MOST_TURNS,
    NEXT,
    SIZE,
    STAGE,
    add,
)
from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.control import (
    COUNT,
    CURRENT,
    FULL_STATES,
    MADE,
    NO_LIMIT,
    ROOM,
    STATES,
)
from tdpmmu.worlds.explore.fast.intrinsics import look, swap, tell
from tdpmmu.worlds.explore.fast.kernels import complete, find

DEALT, TAKEN, WHOLE, ADDED, ADDING, OVER, FULL, UPTO = range(0, 64, 8)
"""Each on a line of the cache of its own.  How many batches have been dealt out, taken by a thread
that looks at them, looked at entirely, and added; whether somebody adds one; that it is over; that
there is no room for the next one, or that a budget may end in it; which states were dealt out."""

WORDS = 64

WAITS, SEEN, READY = range(3)
"""Stages of a batch: nobody has looked at all of it; somebody has, but not all is in the table; it
can be added."""

LOOKS = 2_000
"""How often to look before one sleeps."""

MICROSECONDS = 20
"""How long to sleep then."""

_sleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))


@inlined
def _rest(looks):
    """Another look was in vain: sleep if there were many."""
    if looks >= LOOKS:
        _sleep(MICROSECONDS)
    return looks + 1


@inlined
def _ring(batches):
    """How many batches there is room for."""
    return batches.about.shape[0] // ABOUT


@inlined
def _stage(batches, which):
    return look(batches.about, which * ABOUT + STAGE)


@inlined
def _turns(batches, which):
    """How many states a batch leads to."""
    return batches.about[which * ABOUT + MADE_TO] - which * MOST_TURNS


@compiled
def post(mailbox, field, value):
    """Write a word, after all that was written before."""
    tell(mailbox, field, value)


@compiled
def deal(mailbox, batches, size, end):
    """Deal out the states before ``end``, as far as there is room for batches."""
    ring = _ring(batches)
    dealt = mailbox[DEALT]
    while mailbox[UPTO] < end and dealt < look(mailbox, ADDED) + ring:
        of = dealt % ring * ABOUT
        first = mailbox[UPTO]
        batches.about[of + FIRST] = first
        batches.about[of + SIZE] = min(size, end - first)
        batches.about[of + STAGE] = WAITS
        mailbox[UPTO] = first + batches.about[of + SIZE]
        dealt += 1
        tell(mailbox, DEALT, dealt)


@compiled
def _taken(mailbox):
    """A batch to look at, or -1."""
    while True:
        taken = look(mailbox, TAKEN)
        if taken == look(mailbox, DEALT):
            return -1
        if swap(mailbox, TAKEN, taken, taken + 1):
            return taken


@compiled
def _look_ahead(search, looking, batches, mailbox):
    """Look at the next batch, for what is in the table: whether there was one."""
    taken = _taken(mailbox)
    if taken < 0:
        return False
    which = taken % _ring(batches)
    about, of = batches.about, which * ABOUT
    first, end = about[of + FIRST], about[of + FIRST] + about[of + SIZE]
    find(search, looking, batches, which, first, end, NO_LIMIT, False)
    tell(about, of + STAGE, SEEN if about[of + MISSED] else READY)
    return True


@compiled
def _add_next(ctl, packed, batches, mailbox):
    """Add the next batch, if it is ready and nobody else is at it: whether that was done.

    A batch is added if all of it would be if one thread searched alone.
    """
    added = look(mailbox, ADDED)
    which = added % _ring(batches)
    if added == look(mailbox, DEALT) or _stage(batches, which) != READY:
        return False
    if not swap(mailbox, ADDING, 0, 1):
        return False
    done = look(mailbox, ADDED) == added
    if done:
        count = ctl[COUNT] + _turns(batches, which)
        if count > ctl[ROOM] or count > ctl[STATES]:
            tell(mailbox, FULL, 1)
            done = False
        else:
            add(ctl, packed, batches, which, batches.about[which * ABOUT + SIZE])
            tell(mailbox, ADDED, added + 1)
    tell(mailbox, ADDING, 0)
    return done


@compiled
def help_out(search, looking, batches, mailbox):
    """Look ahead and add, until it is over or there is no room."""
    looks = 0
    while not look(mailbox, OVER) and not look(mailbox, FULL):
        if _add_next(search.ctl, search.packed, batches, mailbox) or _look_ahead(
            search, looking, batches, mailbox
        ):
            looks = 0
        else:
            looks = _rest(looks)


@compiled
def lead(search, looking, batches, mailbox, size, end):
    """Have all states before ``end`` looked at and what they lead to added, and help with it.

    The code is ``MADE``, ``FULL_STATES``, or what stands in the way of filling the table.
    """
    ctl, ring = search.ctl, _ring(batches)
    looks = 0
    while not look(mailbox, FULL):
        deal(mailbox, batches, size, end)
        added, dealt = look(mailbox, ADDED), mailbox[DEALT]
        whole = max(mailbox[WHOLE], added)
        while whole < dealt and _stage(batches, whole % ring) == READY:
            whole += 1
        mailbox[WHOLE] = whole
        which = whole % ring
        if whole < dealt and _stage(batches, which) == SEEN:
            # Nothing may be filled in for states to which the budget does not reach.
            most = ctl[STATES] - ctl[COUNT]
            for batch in range(added, whole):
                most -= _turns(batches, batch % ring)
            code = complete(search, looking, batches, which, most)
            if code != MADE:
                return code
            tell(batches.about, which * ABOUT + STAGE, READY)
        elif not _look_ahead(search, looking, batches, mailbox) and not _add_next(
            ctl, search.packed, batches, mailbox
        ):
            if added == dealt and mailbox[UPTO] == end:
                ctl[CURRENT] = end
                return MADE
            looks = _rest(looks)
            continue
        looks = 0
    return FULL_STATES


@compiled
def _cut(ctl, batches, mailbox):
    """Throw away what comes behind the first state that is not dealt with."""
    about = batches.about
    ring = _ring(batches)
    batch = mailbox[ADDED]
    while batch < mailbox[DEALT]:
        which = batch % ring
        of = which * ABOUT
        if about[of + STAGE] == WAITS:
            mailbox[DEALT], mailbox[UPTO] = batch, about[of + FIRST]
        if about[of + STAGE] == SEEN:
            next_one = batches.missed[which * MOST_STATES + about[of + NEXT]]
            number = max(about[of + FIRST] + next_one, ctl[CURRENT])
            about[of + SIZE], about[of + STAGE] = number - about[of + FIRST], READY
            mailbox[DEALT], mailbox[UPTO] = batch + 1, number
        batch += 1


@compiled
def add_rest(search, batches, mailbox):
    """Add what is whole, when nobody else is at work, and throw away the rest.

    ``CURRENT`` is the first state that is not dealt with.  If there is no room, or a budget may
    end in it, that is the first one of a batch, and the code ``FULL_STATES``.
    """
    ctl = search.ctl
    _cut(ctl, batches, mailbox)
    while mailbox[ADDED] < mailbox[DEALT]:
        if not _add_next(ctl, search.packed, batches, mailbox):
            ctl[CURRENT] = batches.about[mailbox[ADDED] % _ring(batches) * ABOUT + FIRST]
            return FULL_STATES
    ctl[CURRENT] = mailbox[UPTO]
    return MADE
