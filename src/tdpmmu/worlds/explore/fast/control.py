"""The control block by which the compiled loop and its driver talk, and hashing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from tdpmmu.worlds.explore.fast.compiling import inlined

Words = npt.NDArray[Any]

CURRENT, COUNT, TRANSITIONS, DEPTH, LEVEL_ENDS, LIMIT, STATES, PLACES, ENTRIES = range(9)
THREADS, NUMBER_BITS, PLACE_BITS, MISSED_THREAD, MISSED_SHARED, MISSED_POSITION = range(9, 15)
CHUNKS, SHARED, SHARED_BITS, USED = range(15, 19)
FACTS, WRITTEN, SEQUENCES, REPORTED, ORDERED, WIDTH, COMPOSED = range(19, 26)
MISSED_AFTER, MISSED_IDLE, MISSED_START, OP_FACTS, OP_WRITTEN = range(26, 31)
STORAGE, TAKEN, ROOM = 31, 32, 33
SEGMENTS, SEGMENT_WORDS, FOUND, EARLY = range(34, 38)
FIELDS = 38

# Why the compiled loop came back.
DONE, PAUSED, HALTED, FULL_STATES, FULL_PLACES, FULL_SHARED, FULL_ENTRIES = range(7)
# It cannot compose a turn: Python has to (``ASK``), or to run an operation, or to make room.
ASK, MISSED_OPERATION, MISSED_ORDER, FULL_FACTS, FULL_WAYS = range(7, 12)
NO_ROOM = 12
"""A batch is full."""

NO_LIMIT = 1 << 62

MADE = -1
"""Nothing is in the way."""

# Kinds of entries; in the head's low bits, with the number of turns, or the rival, above.
# ``GONE``: the thread has ended.
FREE, URGENT, BLOCKED, GONE = range(4)

# Which set the states are in: see :mod:`tdpmmu.worlds.explore.storage`.
EXACT, COMPACT, BITSTATE = range(3)

LINE = 16
"""Slots of a set of states in a line of the cache: they are looked at together."""

POSITION_MASK = (1 << 31) - 1
LOW = np.uint64(0xFFFFFFFF)
S32 = np.uint64(32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@inlined
def mix(x):
    """Spread 64 bits over 64 bits (the finalizer of splitmix64)."""
    x = uint64(x) + _GOLDEN
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@inlined
def slot_of(hashed, capacity):
    """The first slot to look at: any capacity will do, since it multiplies instead of masking."""
    return np.int64(((hashed >> S32) * uint64(capacity)) >> S32)


@inlined
def line_of(hashed, capacity):
    """The first slot of the line to look at first; a capacity is whole lines."""
    return slot_of(hashed, capacity // LINE) * LINE


def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for ``array[index]`` ahead of its use: sets of states are far larger than caches."""

    tools: Any = cgutils

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        view = context.make_array(array_type)(context, builder, args[0])
        place = tools.get_item_pointer(context, builder, array_type, view, [args[1]])
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        function = tools.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0i8",
        )
        wanted = [builder.bitcast(place, byte), number(0), number(3), number(1)]
        builder.call(function, wanted)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)


def _word_pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    tools: Any = cgutils
    view = context.make_array(array_type)(context, builder, array)
    place = tools.get_item_pointer(context, builder, array_type, view, [at])
    return builder.bitcast(place, ir.IntType(64).as_pointer())


def _load_word(typingctx: Any, array: Any, at: Any) -> Any:
    """Eight bytes of an array of bytes as one number, wherever they begin."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _word_pointer(context, builder, signature.args[0], *args)
        return builder.load(place, align=1)

    return types.uint64(array, types.intp), generate


def _store_word(typingctx: Any, array: Any, at: Any, word: Any) -> Any:
    """The other way round."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _word_pointer(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), generate


def _claim(typingctx: Any, array: Any, at: Any, value: Any) -> Any:
    """Put a number where 0 is, whatever other threads do; whether it was still there."""

    tools: Any = cgutils

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        view = context.make_array(array_type)(context, builder, args[0])
        place = tools.get_item_pointer(context, builder, array_type, view, [args[1]])
        word = ir.IntType(array_type.dtype.bitwidth)
        wanted = builder.trunc(args[2], word) if word.width < 64 else args[2]
        found = builder.cmpxchg(place, word(0), wanted, "monotonic", "monotonic")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.intp, types.int64), generate


def _alike(typingctx: Any, slots: Any, first: Any, kept: Any, wanted: Any) -> Any:
    """Which of the slots of a line have those bits: one bit for each, the first one's lowest."""

    tools: Any = cgutils
    word = ir.IntType(32)
    line = ir.VectorType(word, LINE)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        view = context.make_array(array_type)(context, builder, args[0])
        place = tools.get_item_pointer(context, builder, array_type, view, [args[1]])
        slots = builder.load(builder.bitcast(place, line.as_pointer()), align=4)
        first = ir.Constant(line, ir.Undefined)
        everywhere = ir.Constant(line, [0] * LINE)

        def spread(number: Any) -> Any:
            one = builder.insert_element(first, builder.trunc(number, word), word(0))
            return builder.shuffle_vector(one, first, everywhere)

        same = builder.icmp_unsigned("==", builder.and_(slots, spread(args[2])), spread(args[3]))
        return builder.zext(builder.bitcast(same, ir.IntType(LINE)), ir.IntType(64))

    return types.int64(slots, types.intp, types.int64, types.int64), generate


def _lowest(typingctx: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set; one is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


alike: Any = intrinsic(_alike)
lowest: Any = intrinsic(_lowest)
load_word: Any = intrinsic(_load_word)
claim: Any = intrinsic(_claim)
store_word: Any = intrinsic(_store_word)
