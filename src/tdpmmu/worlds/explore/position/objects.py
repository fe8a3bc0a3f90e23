"""Instances of classes as parts of a key."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from enum import Enum
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from tdpmmu.worlds.explore.position.refusal import ADVICE, Unencodable
from tdpmmu.worlds.explore.position.values import encode_tagged, encode_tuple
from tdpmmu.worlds.explore.position.visit import UNBOUND, Encoder, Visit


def encoder_for(kind: type) -> Encoder:
    """How to encode the instances of a class.

    :raises Unencodable: they hold what a key cannot tell.
    """
    what = kind.__qualname__
    if issubclass(kind, type):
        return encode_tagged
    if issubclass(kind, Enum):
        return encode_tagged
    fields = getattr(kind, "position_fields", None)
    if callable(getattr(kind, "position_key", None)):
        if fields is not None:
            raise Unencodable(f"a {what}, which has position_key() and position_fields; keep one")
        return _constant
    if fields is not None:
        if not isinstance(fields, tuple) or not all(type(name) is str for name in fields):
            raise Unencodable(f"a {what} whose position_fields are not a tuple of names")
        return _fields_encoder(kind, fields, True, "is not in position_fields")
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and kind.__dictoffset__ == 0:
        return encode_tuple
    if dataclasses.is_dataclass(kind):
        parameters = kind.__dataclass_params__  # type: ignore[attr-defined]
        if not parameters.frozen:
            raise Unencodable(f"a {what}, a dataclass that is not frozen; freeze it or {ADVICE}")
        if not parameters.eq:
            raise Unencodable(f"a {what}, compared by identity; give it a position_key()")
        names = tuple(field.name for field in dataclasses.fields(kind))
        return _fields_encoder(kind, names, False, "is no dataclass field")
    if issubclass(kind, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        raise Unencodable(f"a suspended {kind.__name__}; await it, or write a loop, on the spot")
    raise Unencodable(f"a {kind.__module__}.{what}; {ADVICE}")


def _constant(value: Any, visit: Visit) -> Hashable:
    key = value.position_key()
    if type(key) is str:
        return (type(value), key)
    if key is value:
        raise Unencodable(f"a {type(value).__qualname__} whose position_key() is the object itself")
    try:
        return (type(value), visit.encode(key))
    except Unencodable as problem:
        raise Unencodable(
            f"a {type(value).__qualname__} whose position_key() contains {problem}"
        ) from None


_HEAP_TYPE: Final = 1 << 9


def _fields_encoder(kind: type, fields: tuple[str, ...], mutable: bool, declare: str) -> Encoder:
    """Encode an object by its fields, sure that it has no other state."""
    what = kind.__qualname__
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & _HEAP_TYPE:
            raise Unencodable(f"a {what}, whose base class {base.__name__} has state of its own")
    stray = sorted(_slots(kind) - set(fields))
    if stray:
        raise Unencodable(f"a {what} whose slot {stray[0]!r} {declare}")
    declared = frozenset(fields)

    def encode(value: Any, visit: Visit) -> Hashable:
        if mutable:
            visit.mutable = f"a {what}"
            again = visit.again(value)
            if again is not None:
                return again
        attributes = getattr(value, "__dict__", None)
        if attributes and not declared.issuperset(attributes):
            name = min(attributes.keys() - declared)
            raise Unencodable(f"a {what} whose attribute {name!r} {declare}")
        return (kind, *[visit.encode(getattr(value, name, UNBOUND)) for name in fields])

    return encode


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
