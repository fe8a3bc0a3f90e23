"""Keys of frames, and of the chain of frames that is a position."""

from __future__ import annotations

import gc
from collections.abc import Coroutine, Hashable
from types import CellType, CoroutineType, FunctionType, GeneratorType
from typing import Any, Final

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore.liveness import CodeFacts, facts_of
from tdpmmu.worlds.explore.position import encoding
from tdpmmu.worlds.explore.position.functions import CALLABLE, encode_cell, namespace_id
from tdpmmu.worlds.explore.position.refusal import (
    Unencodable,
    UnsupportedPosition,
    unsupported,
)
from tdpmmu.worlds.explore.position.visit import UNBOUND, Visit

_OP_AWAIT: Final = Op.__await__.__code__
_IN_CALL: Final = "awaits inside a call's arguments; await into a local first, then call"

Key = tuple[Hashable, ...]
"""Of a frame: facts of its code, instruction, module, live locals, value stack.
Of a position: those of its frames, outermost first, and that of the operation."""


def _frame_values(
    coro: CoroutineType[Any, Any, Any], awaited: Any, facts: CodeFacts, bound: Any
) -> tuple[list[Any], int, int]:
    """The values in a suspended frame, as ``(values, where the stack starts, where it ends)``.

    The value stack shows in no attribute, but the garbage collector sees it.  CPython 3.11 to 3.13
    report, after a few fields of the coroutine: the function, its code, then every local, cell and
    free variable in slot order, then the stack from the bottom, all without the NULLs of unbound
    locals and unfinished calls.  The awaited object is the top of the stack.  One more value
    follows if the frame has ever handled an exception: the one being handled, None outside of
    handlers.
    """
    values = gc.get_referents(coro)
    code = facts.code
    start = 1
    while values[start] is not code or type(values[start - 1]) is not FunctionType:
        start += 1
        if start >= len(values):
            raise unsupported(coro, "has a frame whose layout is unknown in this Python")
    start += 1
    end = len(values) - 1
    if values[end] is not awaited:
        end -= 1
        if values[end] is not awaited or values[end + 1] is not None:
            raise unsupported(coro, "has a frame whose layout is unknown in this Python")
    if facts.has_cells:
        there = sum([not plain or name in bound for name, plain in facts.slots])
    else:
        there = len(bound)
    return values[start:], there, end - start


def frame_key(coro: CoroutineType[Any, Any, Any], awaited: Any, visit: Visit) -> Key:
    """The key of one suspended frame.

    :raises UnsupportedPosition: its future cannot be told from a key.
    """
    frame: Any = coro.cr_frame
    facts = facts_of(coro.cr_code)
    lasti = frame.f_lasti
    site = facts.site(lasti)
    if site.trouble is not None:
        raise unsupported(coro, site.trouble)
    bound = frame.f_locals
    values, bottom, top = _frame_values(coro, awaited, facts, bound)
    if top - bottom != site.depth:
        raise unsupported(coro, _IN_CALL)
    parts: list[Hashable] = [facts, lasti, namespace_id(frame.f_globals)]
    name = ""
    try:
        for slot in site.live:
            name, plain = facts.slots[slot]
            if plain:
                value = bound.get(name, UNBOUND)
                kind = type(value)
                if kind is int or kind is str or value is None:
                    parts.append(value)
                else:
                    parts.append(visit.encode(value))
            else:
                cell = values[
                    sum([not plain or name in bound for name, plain in facts.slots[:slot]])
                ]
                parts.append(_captured(facts, slot, cell, visit))
        name = ""
        for value in values[bottom:top]:
            if type(value) in CALLABLE or isinstance(value, type):
                raise unsupported(coro, _IN_CALL)
            parts.append(visit.encode(value))
    except Unencodable as problem:
        holder = f"the local {name!r}" if name else "an unfinished expression or loop"
        raise unsupported(coro, f"awaits while {holder} holds {problem}") from None
    return tuple(parts)


def _captured(facts: CodeFacts, slot: int, cell: CellType, visit: Visit) -> Hashable:
    if slot < facts.free:
        return encode_cell(cell, visit)
    # A free variable belongs to somebody else and outlives the thread: it must be a constant.
    name = facts.rebinds
    if name is not None:
        raise Unencodable(
            f"a variable of the enclosing function and {name!r} is rebound here; return the value"
        )
    alone = encoding.visit()
    content = encode_cell(cell, alone)
    if alone.mutable is not None:
        raise Unencodable(
            f"{alone.mutable} of the enclosing function; pass it as an argument or use a tuple"
        )
    return content


def awaited_by(coro: CoroutineType[Any, Any, Any]) -> Any:
    """What a coroutine awaits.

    :raises UnsupportedPosition: nothing, or it is no coroutine.
    """
    if type(coro) is not CoroutineType:
        raise UnsupportedPosition(f"{coro!r} is not a coroutine; write 'async def'")
    awaited: Any = coro.cr_await
    if awaited is None:
        raise unsupported(coro, "is not suspended in an await")
    return awaited


def is_last(coro: CoroutineType[Any, Any, Any], awaited: Any) -> bool:
    """Whether a coroutine awaits an operation, and not another coroutine.

    :raises UnsupportedPosition: it awaits something else.
    """
    kind = type(awaited)
    if kind is CoroutineType:
        return False
    if kind is GeneratorType and awaited.gi_code is _OP_AWAIT:
        return True
    raise unsupported(
        coro,
        f"awaits a {kind.__module__}.{kind.__qualname__}; await operations and coroutines only",
    )


def operation_key(coro: CoroutineType[Any, Any, Any], op: Any) -> Key:
    """What tells the operation that a coroutine awaits from others.

    :raises UnsupportedPosition: it is none, or may change.
    """
    alone = encoding.visit()
    try:
        if not isinstance(op, Op):
            raise Unencodable(f"a {type(op).__qualname__}, which is no operation")
        found = alone.encode(op)
        if alone.mutable is not None:
            raise Unencodable(f"{alone.mutable}, which may change; use a tuple")
    except Unencodable as problem:
        raise unsupported(coro, f"awaits an operation that is or holds {problem}") from None
    return (found,)


def position_key(coro: Coroutine[Any, Any, Any], op: Any) -> Key:
    """The key of where ``coro`` stands, suspended at ``op`` (which it has just yielded).

    :raises UnsupportedPosition: its future cannot be told from a key.
    """
    visit = encoding.visit()
    frames: list[Hashable] = []
    current: Any = coro
    while True:
        awaited = awaited_by(current)
        frames.append(frame_key(current, awaited, visit))
        if is_last(current, awaited):
            return (*frames, operation_key(current, op))
        current = awaited
