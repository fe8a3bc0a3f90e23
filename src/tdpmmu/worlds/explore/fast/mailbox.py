"""Compiled: how two threads in compiled code tell each other how far they are.

A mailbox is a few words that one thread writes and the other reads.  What was written before a
word is seen by whoever sees the word.  Who waits looks for a moment, then sleeps in between.
"""

from __future__ import annotations

from typing import Any

from numba import types

from tdpmmu.worlds.explore.fast.compiling import compiled, inlined
from tdpmmu.worlds.explore.fast.intrinsics import look, tell

POSTED, DONE, OVER, FULL, FIELDS = range(5)
"""Batches that were posted, and those that are done; that there will be no more; that there is no
room."""

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


@compiled
def post(mailbox, field, value):
    """Write a word, after all that was written before."""
    tell(mailbox, field, value)


@compiled
def wait_for_batch(mailbox):
    """Whether there is a batch to be added; False when there will be no more."""
    looks = 0
    while look(mailbox, POSTED) == look(mailbox, DONE):
        if look(mailbox, OVER):
            return False
        looks = _rest(looks)
    return True


@compiled
def wait_until_done(mailbox, but):
    """Whether all batches but so many have been added; False if there is no room for one."""
    looks = 0
    while look(mailbox, POSTED) - look(mailbox, DONE) > but:
        if look(mailbox, FULL):
            return False
        looks = _rest(looks)
    return True
