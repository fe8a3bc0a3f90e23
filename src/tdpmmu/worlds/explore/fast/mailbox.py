"""Compiled: how two threads in compiled code tell each other how far they are.

A mailbox is a few words that one thread writes and the other reads.  What was written before a
word is seen by whoever sees the word.  Who waits looks for a moment, then sleeps in between.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tdpmmu.worlds.explore.fast.compiling import compiled

POSTED, DONE, OVER, FULL, FIELDS = range(5)
"""Batches that were posted, and those that are done; that there will be no more; that there is no
room."""

LOOKS = 2_000
"""How often to look before one sleeps."""

MICROSECONDS = 20
"""How long to sleep then."""

_sleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    tools: Any = cgutils
    array_type = signature.args[0]
    view = context.make_array(array_type)(context, builder, args[0])
    return tools.get_item_pointer(context, builder, array_type, view, [args[1]])


def _look(typingctx: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, args), "acquire", 8)

    return types.int64(array, types.intp), generate


def _tell(typingctx: Any, array: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        word = builder.bitcast(place, ir.IntType(64).as_pointer())
        builder.store_atomic(args[2], word, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


look: Any = intrinsic(_look)
tell: Any = intrinsic(_tell)


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
        looks += 1
        if looks > LOOKS:
            _sleep(MICROSECONDS)
    return True


@compiled
def wait_until_done(mailbox, but):
    """Whether all batches but so many have been added; False if there is no room for one."""
    looks = 0
    while look(mailbox, POSTED) - look(mailbox, DONE) > but:
        if look(mailbox, FULL):
            return False
        looks += 1
        if looks > LOOKS:
            _sleep(MICROSECONDS)
    return True
