"""Builtin values as parts of a key."""

from __future__ import annotations

from collections.abc import Hashable
from sys import getsizeof
from types import EllipsisType, NotImplementedType
from typing import Any, Final

from tdpmmu.worlds.explore.position.visit import EXHAUSTED, Encoder, Mark, Visit

_TRUE: Final = (bool, 1)
_FALSE: Final = (bool, 0)


def _bool(value: bool, visit: Visit) -> Hashable:
    return _TRUE if value else _FALSE


def _float(value: float, visit: Visit) -> Hashable:
    return (float, repr(value))  # 0.0 and -0.0 are equal, but not the same value


def encode_tagged(value: Any, visit: Visit) -> Hashable:
    """A value that says it all, and its type."""
    return (type(value), value)


def encode_tuple(value: tuple[Any, ...], visit: Visit) -> Hashable:
    """A tuple, named or not."""
    return (type(value), *[visit.encode(item) for item in value])


def _frozenset(value: frozenset[Any], visit: Visit) -> Hashable:
    # In the order of iteration, which a thread can see.
    return (frozenset, *[visit.encode(item) for item in value])


def _range(value: range, visit: Visit) -> Hashable:
    return (range, value.start, value.stop, value.step)


def _slice(value: slice, visit: Visit) -> Hashable:
    return (
        slice,
        visit.encode(value.start),
        visit.encode(value.stop),
        visit.encode(value.step),
    )


def _list(value: list[Any], visit: Visit) -> Hashable:
    visit.mutable = "a list"
    return visit.again(value) or (list, *[visit.encode(item) for item in value])


def _dict(value: dict[Any, Any], visit: Visit) -> Hashable:
    visit.mutable = "a dict"
    again = visit.again(value)
    if again is not None:
        return again
    return (dict, *[(visit.encode(key), visit.encode(item)) for key, item in value.items()])


def _set(value: set[Any], visit: Visit) -> Hashable:
    visit.mutable = "a set"
    again = visit.again(value)
    if again is not None:
        return again
    # The size of the table decides where later items land, and so the order of iteration.
    return (set, getsizeof(value), *[visit.encode(item) for item in value])


def _iterator(value: Any, visit: Visit) -> Hashable:
    """By what ``copy`` would rebuild it from: the iterated objects and the state."""
    visit.mutable = "an iterator"
    again = visit.again(value)
    if again is not None:
        return again
    reduced = value.__reduce__()
    if len(reduced) == 2 and reduced[1] in (((),), ([],), ("",), (b"",)):
        return (type(value), EXHAUSTED)
    return (type(value), *[visit.encode(part) for part in reduced[1:]])


ITERATORS: Final[tuple[type, ...]] = (
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

VALUES: Final[dict[type, Encoder]] = {
    bool: _bool,
    float: _float,
    bytes: encode_tagged,
    EllipsisType: encode_tagged,
    NotImplementedType: encode_tagged,
    Mark: encode_tagged,
    tuple: encode_tuple,
    frozenset: _frozenset,
    range: _range,
    slice: _slice,
    list: _list,
    dict: _dict,
    set: _set,
    **dict.fromkeys(ITERATORS, _iterator),
}
