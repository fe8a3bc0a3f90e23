"""Compiled: what numba has no words for, as LLVM's instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tdpmmu.worlds.explore.fast.control import LINE

_WORD = ir.IntType(64).as_pointer()


def _item(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Where the item is of the array that comes first, by the index that comes next."""
    tools: Any = cgutils
    view = context.make_array(signature.args[0])(context, builder, args[0])
    return tools.get_item_pointer(context, builder, signature.args[0], view, [args[1]])


def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for ``array[index]`` ahead of its use: sets of states are far larger than caches."""

    tools: Any = cgutils

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
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


def _load_word(typingctx: Any, array: Any, at: Any) -> Any:
    """Eight bytes of an array of bytes as one number, wherever they begin."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
        return builder.load(builder.bitcast(place, _WORD), align=1)

    return types.uint64(array, types.intp), generate


def _store_word(typingctx: Any, array: Any, at: Any, word: Any) -> Any:
    """The other way round."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
        builder.store(args[2], builder.bitcast(place, _WORD), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), generate


def _claim(typingctx: Any, array: Any, at: Any, value: Any) -> Any:
    """Put a number where 0 is, after all that was written before; whether it was still there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
        word = place.type.pointee
        wanted = builder.trunc(args[2], word) if word.width < 64 else args[2]
        found = builder.cmpxchg(place, word(0), wanted, "release", "monotonic")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.intp, types.int64), generate


def _swap(typingctx: Any, array: Any, at: Any, old: Any, new: Any) -> Any:
    """Put a word where another one is; whether that was still there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
        found = builder.cmpxchg(place, args[2], args[3], "acq_rel", "monotonic")
        return builder.extract_value(found, 1)

    return types.boolean(array, types.intp, types.int64, types.int64), generate


def _alike(typingctx: Any, slots: Any, first: Any, kept: Any, wanted: Any) -> Any:
    """Which of the slots of a line have those bits: one bit for each, the first one's lowest."""

    word = ir.IntType(32)
    line = ir.VectorType(word, LINE)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
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


def _look(typingctx: Any, array: Any, at: Any) -> Any:
    """A word that another thread may write: what it wrote before is seen, too."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_item(context, builder, signature, args), "acquire", 8)

    return types.int64(array, types.intp), generate


def _tell(typingctx: Any, array: Any, at: Any, value: Any) -> Any:
    """Write a word that another thread looks at, after all that was written before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _item(context, builder, signature, args)
        builder.store_atomic(args[2], place, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


prefetch: Any = intrinsic(_prefetch)
load_word: Any = intrinsic(_load_word)
store_word: Any = intrinsic(_store_word)
claim: Any = intrinsic(_claim)
swap: Any = intrinsic(_swap)
alike: Any = intrinsic(_alike)
lowest: Any = intrinsic(_lowest)
look: Any = intrinsic(_look)
tell: Any = intrinsic(_tell)
