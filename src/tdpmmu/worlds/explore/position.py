"""Positions: where a thread stands, as a value.

A thread is a deterministic function of the results it receives, so what it will do is fixed by
the frames of its coroutine chain.  :func:`position_key` turns those into a hashable key.  Equal
keys must mean equal futures, so whatever the key does not understand is refused with
:class:`UnsupportedPosition` rather than left out.  :class:`Positions` interns the keys of one
thread.

The key speaks of what a thread owns.  Objects with ``position_key()`` are constants whatever their
attributes; module globals are constants too.  Whether two *immutable* values are the same object
(``is``) is not part of it, nor is the hidden history which lets two equal sets iterate differently
after further insertions.
"""

from __future__ import annotations

import dataclasses
import gc
import traceback
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from enum import Enum
from sys import getsizeof
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CoroutineType,
    EllipsisType,
    FunctionType,
    GeneratorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    NotImplementedType,
    WrapperDescriptorType,
)
from typing import Any, Final

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore.liveness import CodeFacts, facts_of

LIVE_LIMIT: Final = 4096
"""How many suspended coroutines a :class:`Positions` keeps; the rest are replayed when needed."""

_ADVICE: Final = (
    "use an int, str, tuple, frozen dataclass, or a class with position_fields or position_key()"
)


class UnsupportedPosition(Exception):
    """A thread stands where its future cannot be told from a key.  One line says where and why."""


class _Unencodable(Exception):
    """A value that is not understood; the text completes "... holds"."""


class _Mark:
    """A part of a key that equals nothing but itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


_UNBOUND: Final = _Mark("unbound")
_SAME: Final = _Mark("same as object")
_EXHAUSTED: Final = _Mark("exhausted")
_TRUE: Final = (bool, 1)
_FALSE: Final = (bool, 0)


class _Visit:
    """One walk over a position: the objects with an identity, numbered in the order first met."""

    __slots__ = ("mutable", "seen")

    def __init__(self) -> None:
        # The objects are kept alive here: some exist only during the walk, and ids come back.
        self.seen: dict[int, tuple[int, Any]] = {}
        self.mutable: str | None = None

    def again(self, value: Any) -> Hashable | None:
        """The back reference to an object met before; otherwise number it."""
        known = self.seen.get(id(value))
        if known is not None:
            return (_SAME, known[0])
        self.seen[id(value)] = (len(self.seen), value)
        return None


_Encoder = Callable[[Any, _Visit], Hashable]


def _encode(value: Any, visit: _Visit) -> Hashable:
    """What stands for ``value`` in a key: itself for the commonest types, else a tuple."""
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value  # type: ignore[no-any-return]
    encoder = _ENCODERS.get(kind)
    if encoder is None:
        encoder = _ENCODERS[kind] = _encoder_for(kind)
    return encoder(value, visit)


# -- builtin values --------------------------------------------------------------------------


def _encode_bool(value: bool, visit: _Visit) -> Hashable:
    return _TRUE if value else _FALSE


def _encode_float(value: float, visit: _Visit) -> Hashable:
    return (float, repr(value))  # 0.0 and -0.0 are equal, but not the same value


def _encode_tagged(value: Any, visit: _Visit) -> Hashable:
    return (type(value), value)


def _encode_tuple(value: tuple[Any, ...], visit: _Visit) -> Hashable:
    return (type(value), *[_encode(item, visit) for item in value])


def _encode_frozenset(value: frozenset[Any], visit: _Visit) -> Hashable:
    # In the order of iteration, which a thread can see.
    return (frozenset, *[_encode(item, visit) for item in value])


def _encode_range(value: range, visit: _Visit) -> Hashable:
    return (range, value.start, value.stop, value.step)


def _encode_slice(value: slice, visit: _Visit) -> Hashable:
    return (
        slice,
        _encode(value.start, visit),
        _encode(value.stop, visit),
        _encode(value.step, visit),
    )


def _encode_list(value: list[Any], visit: _Visit) -> Hashable:
    visit.mutable = "a list"
    return visit.again(value) or (list, *[_encode(item, visit) for item in value])


def _encode_dict(value: dict[Any, Any], visit: _Visit) -> Hashable:
    visit.mutable = "a dict"
    again = visit.again(value)
    if again is not None:
        return again
    return (dict, *[(_encode(key, visit), _encode(item, visit)) for key, item in value.items()])


def _encode_set(value: set[Any], visit: _Visit) -> Hashable:
    visit.mutable = "a set"
    again = visit.again(value)
    if again is not None:
        return again
    # The size of the table decides where later items land, and so the order of iteration.
    return (set, getsizeof(value), *[_encode(item, visit) for item in value])


def _encode_iterator(value: Any, visit: _Visit) -> Hashable:
    """By what ``copy`` would rebuild it from: the iterated objects and the state."""
    visit.mutable = "an iterator"
    again = visit.again(value)
    if again is not None:
        return again
    reduced = value.__reduce__()
    if len(reduced) == 2 and reduced[1] in (((),), ([],), ("",), (b"",)):
        return (type(value), _EXHAUSTED)
    return (type(value), *[_encode(part, visit) for part in reduced[1:]])


# -- code and classes ------------------------------------------------------------------------


def _encode_identity(value: Any, visit: _Visit) -> Hashable:
    return (type(value), value)


def _encode_function(value: FunctionType, visit: _Visit) -> Hashable:
    """A module's function is a constant; one made inside a function is its code and captures."""
    code = value.__code__
    if "<locals>" not in code.co_qualname:
        return (FunctionType, value)
    again = visit.again(value)
    if again is not None:
        return again
    facts = facts_of(code)
    name = facts.rebinds
    if name is not None:
        raise _Unencodable(
            f"a function that rebinds the captured variable {name!r}; return the value instead"
        )
    if value.__dict__:
        raise _Unencodable("a nested function with attributes; use a class with position_fields")
    return (
        FunctionType,
        facts,
        _globals_id(value.__globals__),
        _encode(value.__defaults__, visit),
        _encode(value.__kwdefaults__, visit),
        *[_encode_cell(cell, visit) for cell in value.__closure__ or ()],
    )


def _encode_cell(cell: CellType, visit: _Visit) -> Hashable:
    again = visit.again(cell)
    if again is not None:
        return again
    try:
        content = cell.cell_contents
    except ValueError:
        return (CellType, _UNBOUND)
    return (CellType, _encode(content, visit))


def _encode_method(value: MethodType, visit: _Visit) -> Hashable:
    return (MethodType, _encode(value.__func__, visit), _encode(value.__self__, visit))


def _encode_builtin(value: BuiltinFunctionType, visit: _Visit) -> Hashable:
    owner = value.__self__
    if owner is None or isinstance(owner, ModuleType):
        return (BuiltinFunctionType, value)
    return (BuiltinFunctionType, value.__name__, _encode(owner, visit))


_GLOBALS: dict[int, dict[str, Any]] = {}


def _globals_id(namespace: dict[str, Any]) -> int:
    """Which module code runs in (kept alive, so that the id stays true)."""
    _GLOBALS.setdefault(id(namespace), namespace)
    return id(namespace)


# -- objects ---------------------------------------------------------------------------------


def _encode_constant(value: Any, visit: _Visit) -> Hashable:
    key = value.position_key()
    if type(key) is str:
        return (type(value), key)
    if key is value:
        raise _Unencodable(
            f"a {type(value).__qualname__} whose position_key() is the object itself"
        )
    try:
        return (type(value), _encode(key, visit))
    except _Unencodable as problem:
        raise _Unencodable(
            f"a {type(value).__qualname__} whose position_key() contains {problem}"
        ) from None


def _slots(kind: type) -> set[str]:
    """The attributes that ``__slots__`` of a class and its bases make room for."""
    found = set()
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            found.add(name)
    return found - {"__dict__", "__weakref__"}


_HEAP_TYPE: Final = 1 << 9


def _fields_encoder(kind: type, fields: tuple[str, ...], mutable: bool, declare: str) -> _Encoder:
    """Encode an object by its fields, sure that it has no other state."""
    what = kind.__qualname__
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & _HEAP_TYPE:
            raise _Unencodable(f"a {what}, whose base class {base.__name__} has state of its own")
    stray = sorted(_slots(kind) - set(fields))
    if stray:
        raise _Unencodable(f"a {what} whose slot {stray[0]!r} {declare}")
    declared = frozenset(fields)

    def encode(value: Any, visit: _Visit) -> Hashable:
        if mutable:
            visit.mutable = f"a {what}"
            again = visit.again(value)
            if again is not None:
                return again
        attributes = getattr(value, "__dict__", None)
        if attributes and not declared.issuperset(attributes):
            name = min(attributes.keys() - declared)
            raise _Unencodable(f"a {what} whose attribute {name!r} {declare}")
        return (kind, *[_encode(getattr(value, name, _UNBOUND), visit) for name in fields])

    return encode


def _encoder_for(kind: type) -> _Encoder:
    """How to encode the instances of a class that is not in the table yet."""
    what = kind.__qualname__
    if issubclass(kind, type):
        return _encode_identity
    if issubclass(kind, Enum):
        return _encode_tagged
    fields = getattr(kind, "position_fields", None)
    if callable(getattr(kind, "position_key", None)):
        if fields is not None:
            raise _Unencodable(f"a {what}, which has position_key() and position_fields; keep one")
        return _encode_constant
    if fields is not None:
        if not isinstance(fields, tuple) or not all(type(name) is str for name in fields):
            raise _Unencodable(f"a {what} whose position_fields are not a tuple of names")
        return _fields_encoder(kind, fields, True, "is not in position_fields")
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and kind.__dictoffset__ == 0:
        return _encode_tuple
    if dataclasses.is_dataclass(kind):
        parameters = kind.__dataclass_params__  # type: ignore[attr-defined]
        if not parameters.frozen:
            raise _Unencodable(f"a {what}, a dataclass that is not frozen; freeze it or {_ADVICE}")
        if not parameters.eq:
            raise _Unencodable(f"a {what}, compared by identity; give it a position_key()")
        names = tuple(field.name for field in dataclasses.fields(kind))
        return _fields_encoder(kind, names, False, "is no dataclass field")
    if issubclass(kind, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        raise _Unencodable(f"a suspended {kind.__name__}; await it, or write a loop, on the spot")
    raise _Unencodable(f"a {kind.__module__}.{what}; {_ADVICE}")


_ITERATORS: Final[tuple[type, ...]] = (
    type(iter(())),
    type(iter([])),
    type(iter(range(0))),
    type(iter(range(1 << 100))),
    type(iter("")),
    type(iter("\u1234")),
    type(iter(b"")),
    type(reversed([])),
    enumerate,
    reversed,
    zip,
)

_ENCODERS: dict[type, _Encoder] = {
    bool: _encode_bool,
    float: _encode_float,
    bytes: _encode_tagged,
    EllipsisType: _encode_tagged,
    NotImplementedType: _encode_tagged,
    _Mark: _encode_tagged,
    tuple: _encode_tuple,
    frozenset: _encode_frozenset,
    range: _encode_range,
    slice: _encode_slice,
    list: _encode_list,
    dict: _encode_dict,
    set: _encode_set,
    type: _encode_identity,
    ModuleType: _encode_identity,
    FunctionType: _encode_function,
    MethodType: _encode_method,
    BuiltinFunctionType: _encode_builtin,
    MethodDescriptorType: _encode_identity,
    WrapperDescriptorType: _encode_identity,
    ClassMethodDescriptorType: _encode_identity,
    **dict.fromkeys(_ITERATORS, _encode_iterator),
}

_CALLABLE: Final = frozenset(
    {
        FunctionType,
        MethodType,
        BuiltinFunctionType,
        MethodDescriptorType,
        WrapperDescriptorType,
        ClassMethodDescriptorType,
    }
)

# -- frames ----------------------------------------------------------------------------------

_OP_AWAIT: Final = Op.__await__.__code__
_IN_CALL: Final = "awaits inside a call's arguments; await into a local first, then call"


def _unsupported(coro: CoroutineType[Any, Any, Any], what: str) -> UnsupportedPosition:
    code, frame = coro.cr_code, coro.cr_frame
    line = code.co_firstlineno if frame is None else frame.f_lineno
    return UnsupportedPosition(f"{code.co_filename}:{line}: {code.co_qualname} {what}")


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
            raise _unsupported(coro, "has a frame whose layout is unknown in this Python")
    start += 1
    end = len(values) - 1
    if values[end] is not awaited:
        end -= 1
        if values[end] is not awaited or values[end + 1] is not None:
            raise _unsupported(coro, "has a frame whose layout is unknown in this Python")
    if facts.has_cells:
        there = sum([not plain or name in bound for name, plain in facts.slots])
    else:
        there = len(bound)
    return values[start:], there, end - start


def _frame_key(
    coro: CoroutineType[Any, Any, Any], awaited: Any, visit: _Visit
) -> tuple[Hashable, ...]:
    frame: Any = coro.cr_frame
    facts = facts_of(coro.cr_code)
    lasti = frame.f_lasti
    site = facts.site(lasti)
    if site.trouble is not None:
        raise _unsupported(coro, site.trouble)
    bound = frame.f_locals
    values, bottom, top = _frame_values(coro, awaited, facts, bound)
    if top - bottom != site.depth:
        raise _unsupported(coro, _IN_CALL)
    parts: list[Hashable] = [facts, lasti, _globals_id(frame.f_globals)]
    name = ""
    try:
        for slot in site.live:
            name, plain = facts.slots[slot]
            if plain:
                value = bound.get(name, _UNBOUND)
                kind = type(value)
                if kind is int or kind is str or value is None:
                    parts.append(value)
                else:
                    parts.append(_encode(value, visit))
            else:
                cell = values[
                    sum([not plain or name in bound for name, plain in facts.slots[:slot]])
                ]
                parts.append(_captured(facts, slot, cell, visit))
        name = ""
        for value in values[bottom:top]:
            if type(value) in _CALLABLE or isinstance(value, type):
                raise _unsupported(coro, _IN_CALL)
            parts.append(_encode(value, visit))
    except _Unencodable as problem:
        holder = f"the local {name!r}" if name else "an unfinished expression or loop"
        raise _unsupported(coro, f"awaits while {holder} holds {problem}") from None
    return tuple(parts)


def _captured(facts: CodeFacts, slot: int, cell: CellType, visit: _Visit) -> Hashable:
    if slot < facts.free:
        return _encode_cell(cell, visit)
    # A free variable belongs to somebody else and outlives the thread: it must be a constant.
    name = facts.rebinds
    if name is not None:
        raise _Unencodable(
            f"a variable of the enclosing function and {name!r} is rebound here; return the value"
        )
    alone = _Visit()
    content = _encode_cell(cell, alone)
    if alone.mutable is not None:
        raise _Unencodable(
            f"{alone.mutable} of the enclosing function; pass it as an argument or use a tuple"
        )
    return content


_Outer = list[tuple[Any, Any, Hashable]]
"""The outer frames of a coroutine that stand where they stood: coroutine, awaited, their keys."""


def position_key(
    coro: Coroutine[Any, Any, Any], op: Any, outer: _Outer | None = None
) -> tuple[Hashable, ...]:
    """The key of where ``coro`` stands, suspended at ``op`` (which it has just yielded).

    ``outer`` is what an earlier call for the same coroutine has left there.  A frame that still
    awaits what it awaited then has not moved, so if it holds nothing that others could have
    changed, its part of the key is the same.
    """
    visit = _Visit()
    frames: list[Hashable] = []
    current: Any = coro
    outer = [] if outer is None else outer
    known = iter(outer.copy())
    alike = True
    while True:
        if alike:
            before = next(known, None)
            if before is not None and before[0] is current and before[1] is current.cr_await:
                frames.append(before[2])
                current = before[1]
                continue
            alike = False
            del outer[len(frames) :]
        if type(current) is not CoroutineType:
            raise UnsupportedPosition(f"{current!r} is not a coroutine; write 'async def'")
        awaited: Any = current.cr_await
        if awaited is None:
            raise _unsupported(current, "is not suspended in an await")
        frames.append(_frame_key(current, awaited, visit))
        kind = type(awaited)
        if (
            kind is CoroutineType
            and len(outer) == len(frames) - 1
            and not visit.seen
            and visit.mutable is None
        ):
            outer.append((current, awaited, frames[-1]))
        if kind is GeneratorType and awaited.gi_code is _OP_AWAIT:
            break
        if kind is not CoroutineType:
            raise _unsupported(
                current,
                f"awaits a {kind.__module__}.{kind.__qualname__}; "
                "await operations and coroutines only",
            )
        current = awaited
    try:
        if not isinstance(op, Op):
            raise _Unencodable(f"a {type(op).__qualname__}, which is no operation")
        visit.mutable = None
        frames.append((_encode(op, visit),))
        if visit.mutable is not None:
            raise _Unencodable(f"{visit.mutable}, which may change; use a tuple")
        return tuple(frames)
    except _Unencodable as problem:
        raise _unsupported(current, f"awaits an operation that is or holds {problem}") from None


# -- the table -------------------------------------------------------------------------------

_FINISHED: Final = _Mark("finished")
_RAISED: Final = _Mark("raised")

Frame = tuple[str, str, int]
"""A line of code: function, file name, line number."""


class Positions:
    """The positions of one thread, numbered, and the steps between them as far as known.

    ``steps`` has those in the order in which they were found: position, result, position.
    """

    def __init__(
        self, start: Callable[[], Coroutine[Any, Any, Any]], live_limit: int = LIVE_LIMIT
    ) -> None:
        self._start = start
        self._live_limit = live_limit
        self._numbers: dict[Hashable, int] = {}
        self._keys: list[tuple[Hashable, ...]] = []
        self._ops: list[Op | None] = []
        self._came_from: list[tuple[int, Any] | None] = []
        self._next: dict[tuple[int, Hashable], int] = {}
        self._live: OrderedDict[int, tuple[CoroutineType[Any, Any, Any], _Outer]] = OrderedDict()
        self._raised: dict[int, tuple[BaseException, list[Frame], str]] = {}
        self.steps: list[tuple[int, Hashable, int]] = []
        self.replays = 0
        self.misses = 0
        self.initial = self._advance(self._begin(), [], None, None)

    def __len__(self) -> int:
        return len(self._keys)

    def op(self, pos: int) -> Op | None:
        """The pending operation; None if the thread has finished or raised."""
        return self._ops[pos]

    def op_key(self, pos: int) -> Hashable:
        """What tells the pending operation from others."""
        return self._keys[pos][-1]

    def next(self, pos: int, result: Any) -> int:
        """The position after the pending operation returned ``result``."""
        kind = type(result)
        typed: Hashable
        typed = result if kind is int or kind is str or result is None else self.typed(result)
        known = self._next.get((pos, typed))
        if known is not None:
            return known
        if self._ops[pos] is None:
            raise ValueError(f"position {pos} has no pending operation")
        self.misses += 1
        if pos in self._live:
            coro, outer = self._live.pop(pos)
        else:
            coro, outer = self._replay(pos), []
        new = self._next[pos, typed] = self._advance(coro, outer, pos, result)
        self.steps.append((pos, typed, new))
        return new

    def raised(self, pos: int) -> BaseException | None:
        """The exception with which the thread ended here, if it did."""
        found = self._raised.get(pos)
        return None if found is None else found[0]

    def traceback(self, pos: int) -> str:
        """The traceback text of :meth:`raised`, empty without one."""
        found = self._raised.get(pos)
        return "" if found is None else found[2]

    def path(self, pos: int) -> list[Any]:
        """Results that lead here from the start."""
        results = []
        step = self._came_from[pos]
        while step is not None:
            results.append(step[1])
            step = self._came_from[step[0]]
        return results[::-1]

    def line(self, pos: int) -> list[Frame]:
        """Where it stands: the lines of the frames, innermost last; none if finished."""
        found = self._raised.get(pos)
        if found is not None:
            return found[1]
        if self._ops[pos] is None:
            return []
        key: Any = self._keys[pos]
        frames = []
        for frame in key[:-1]:
            facts: CodeFacts = frame[0]
            code = facts.code
            frames.append((code.co_qualname, code.co_filename, facts.line(frame[1])))
        return frames

    def frames(self, pos: int) -> list[tuple[tuple[str, int], dict[str, Hashable]]]:
        """Where it stands, as functions and instructions, with what the key has of live locals.

        What is half-evaluated goes by ``#0``, ``#1``, ...; none if finished.
        """
        if self._ops[pos] is None:
            return []
        key: Any = self._keys[pos]
        found = []
        for frame in key[:-1]:
            facts: CodeFacts = frame[0]
            names = [facts.slots[slot][0] for slot in facts.site(frame[1]).live]
            names += [f"#{i}" for i in range(len(frame) - 3 - len(names))]
            here = facts.code.co_qualname, frame[1]
            found.append((here, dict(zip(names, frame[3:], strict=True))))
        return found

    def close(self) -> None:
        """Let go of all coroutines; the table stays, and replays as needed."""
        while self._live:
            _close(self._live.popitem()[1][0])

    # -- how positions come about ------------------------------------------------------------

    def typed(self, result: Any) -> Hashable:
        """What tells a result from others: 1 from True, too."""
        visit = _Visit()
        try:
            typed = _encode(result, visit)
            if visit.mutable is not None:
                raise _Unencodable(visit.mutable)
        except _Unencodable as problem:
            raise UnsupportedPosition(
                f"the result of an operation is or holds {problem}; results must be immutable"
            ) from None
        return typed

    def _begin(self) -> CoroutineType[Any, Any, Any]:
        coro = self._start()
        if not isinstance(coro, CoroutineType):
            raise UnsupportedPosition(f"{coro!r} is not a coroutine; write 'async def'")
        return coro

    def _advance(
        self, coro: CoroutineType[Any, Any, Any], outer: _Outer, before: int | None, result: Any
    ) -> int:
        """Send ``result`` and intern where the thread stands then."""
        op: Op | None = None
        failure: tuple[BaseException, list[Frame], str] | None = None
        key: tuple[Hashable, ...]
        try:
            op = coro.send(result)
        except StopIteration:
            key = (_FINISHED,)
        except Exception as exception:
            failure = _failure(exception)
            kind: Any = type(exception)
            key = (_RAISED, kind, str(exception), *failure[1])
        else:
            try:
                key = position_key(coro, op, outer)
            except UnsupportedPosition:
                _close(coro)
                raise
        pos = self._numbers.setdefault(key, len(self._keys))
        if pos == len(self._keys):
            self._keys.append(key)
            self._ops.append(op)
            self._came_from.append(None if before is None else (before, result))
            if failure is not None:
                self._raised[pos] = failure
        if op is not None:
            self._keep(pos, coro, outer)
        return pos

    def _keep(self, pos: int, coro: CoroutineType[Any, Any, Any], outer: _Outer) -> None:
        """Remember a coroutine that stands at ``pos``, whichever way it came there."""
        if pos in self._live:
            _close(coro)
            return
        self._live[pos] = (coro, outer)
        if len(self._live) > self._live_limit:
            _close(self._live.popitem(last=False)[1][0])

    def _replay(self, pos: int) -> CoroutineType[Any, Any, Any]:
        """A coroutine that stands at ``pos``, from the start: coroutines cannot be copied."""
        self.replays += 1
        coro = self._begin()
        key: tuple[Hashable, ...]
        try:
            op = coro.send(None)
            for result in self.path(pos):
                op = coro.send(result)
            key = position_key(coro, op)
        except Exception as exception:
            key = (exception,)
        if key != self._keys[pos]:
            function, file, line = self.line(pos)[-1]
            raise UnsupportedPosition(
                f"{file}:{line}: {function} is not reached again by the same results; "
                "keep what a thread knows in locals, and what others see in cells"
            )
        return coro


def _close(coro: CoroutineType[Any, Any, Any]) -> None:
    """Drop a coroutine.  Where positions are supported no handler is there that could run."""
    for _ in range(100):
        try:
            coro.close()
        except Exception:  # a refused position: 'finally' that awaits, or raises
            continue
        return


def _failure(exception: BaseException) -> tuple[BaseException, list[Frame], str]:
    """An exception without the frames that it keeps alive, the lines it went through, its text."""
    own = __file__
    frames = [
        (frame.f_code.co_qualname, frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(exception.__traceback__)
        if frame.f_code.co_filename != own
    ]
    text = "".join(traceback.format_exception(exception))
    seen: set[int] = set()
    chain: list[BaseException | None] = [exception]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
    return exception, frames, text
