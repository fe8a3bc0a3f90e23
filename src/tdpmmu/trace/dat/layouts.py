"""How to unpack the entries of one event: by the event's format, nothing of it built in."""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

from tdpmmu.trace.dat.formats import Field

SKIPPED = ""
"""In place of the name of an event that nobody asked for."""

Fail = Callable[[str], NoReturn]

_LETTERS = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}


class Kind(NamedTuple):
    """How to read an event: ``make`` turns the values of ``fields`` into its typed fields.

    Where that is not enough, ``resolve`` makes name and typed fields of the payload, which is in a
    page at some place; it may call what it is given to raise TraceError.  ``name`` is
    :data:`SKIPPED` for events that nobody asked for.  ``limits`` are the least and the greatest
    value of some fields.
    """

    name: str
    fields: tuple[Field, ...] = ()
    make: Callable[[tuple[Any, ...]], Any] | None = None
    resolve: Callable[[Any, int, Fail], tuple[str, Any]] | None = None
    limits: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - nobody changes it


class Layout:
    """Entries of one kind and one ``size``, which includes the word that each begins with.

    ``struct`` unpacks one into ``width`` values: the word, the event's number, the pid, and the
    kind's fields.  ``wanted`` are the places of the fields, ``pick`` gets them.  ``limits`` are
    (place, least, greatest, name) of fields that have them.
    """

    __slots__ = (
        "_body",
        "_endian",
        "_many",
        "kind",
        "limits",
        "pick",
        "size",
        "struct",
        "wanted",
        "width",
    )

    def __init__(self, kind: Kind, common: tuple[Field, Field], size: int, endian: str) -> None:
        body, places = body_of([*common, *kind.fields], size - 4)
        self.kind = kind
        self.size = size
        self.struct = struct.Struct(endian + body)
        self.width = len(set(places)) + 1
        self.wanted = places[2:]
        self.pick = _picker(self.wanted)
        self.limits = [
            (place, *kind.limits[field.name], field.name)
            for place, field in zip(self.wanted, kind.fields, strict=True)
            if field.name in kind.limits
        ]
        self._body = body
        self._endian = endian
        self._many: dict[int, struct.Struct] = {}

    def many(self, count: int) -> struct.Struct:
        """What unpacks ``count`` entries in one go, into one flat tuple."""
        found = self._many.get(count)
        if found is None:
            found = self._many[count] = struct.Struct(self._endian + self._body * count)
        return found

    def check(self, values: tuple[Any, ...], fail: Fail) -> None:
        """Call ``fail`` if a field of any entry in the flat ``values`` is beyond its limits."""
        for place, low, high, name in self.limits:
            for value in set(values[place :: self.width]):
                if not low <= value <= high:
                    fail(f"{self.kind.name}: expected {name} {low} to {high}; found {value}")


def body_of(fields: list[Field], size: int = 0) -> tuple[str, list[int]]:
    """An entry's word and these fields of its payload, for struct, and where each value will be."""
    text = "I"
    at = 0
    places: dict[str, int] = {}
    for field in sorted(set(fields), key=lambda one: one.offset):
        text += f"{field.offset - at}x" if field.offset > at else ""
        letters = _LETTERS.get(field.size) if not field.array else None
        text += letters[not field.signed] if letters else f"{field.size}s"
        at = field.offset + field.size
        places[field.name] = len(places) + 1
    text += f"{size - at}x" if size > at else ""
    return text, [places[one.name] for one in fields]


def _picker(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    if not places:
        return _nothing
    if len(places) == 1:
        return itemgetter(slice(places[0], places[0] + 1))
    return itemgetter(*places)


def _nothing(_: tuple[Any, ...]) -> tuple[Any, ...]:
    return ()
