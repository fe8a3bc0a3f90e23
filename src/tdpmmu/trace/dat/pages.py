"""Walk the pages of the kernel's ring buffer (``kernel/trace/ring_buffer.c``).

A page has a header (time stamp, ``commit``: length and flags) and entries.  An entry begins with a
word: 5 bits of type or length, 27 bits of time since the entry before.  Entries of the same event
and length that follow each other, as most do, are unpacked in one go.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

from tdpmmu.trace.dat.cursor import Cursor
from tdpmmu.trace.dat.formats import Field
from tdpmmu.trace.records import LOST

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_TS_SHIFT = 27
_TS_MASK = (1 << _TS_SHIFT) - 1
_ABS_MASK = (1 << 59) - 1
_MISSED_EVENTS, _MISSED_STORED = 1 << 31, 1 << 30
_COMMIT_MASK = (1 << 27) - 1
_LETTERS = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}

SKIPPED = ""
"""In place of the name of an event that nobody asked for."""

Fail = Callable[[str], NoReturn]


class Kind(NamedTuple):
    """How to read an event: ``make`` turns the values of ``fields`` into its typed fields.

    Where that is not enough, ``resolve`` makes name and typed fields of the payload, which is in a
    page at some place; it may call what it is given to raise TraceError.  ``name`` is
    :data:`SKIPPED` for events that nobody asked for.
    """

    name: str
    fields: tuple[Field, ...] = ()
    make: Callable[[tuple[Any, ...]], Any] | None = None
    resolve: Callable[[Any, int, Fail], tuple[str, Any]] | None = None


Entry = tuple[int, int, int, str, Any, int, Any]
"""Ticks, CPU, pid, event, typed fields, offset of the payload in the page, the page.

The offset is negative if the payload's length is in a word of its own, before it.
"""


class Run(NamedTuple):
    """How to unpack entries of one event and one length."""

    struct: struct.Struct
    kind: Kind
    pick: Callable[[tuple[Any, ...]], Any]


class PageWalker:
    """Decodes pages; ``kinds`` says how, by the number of the event.

    ``odd`` is set once an entry may be no event, but :data:`LOST` or :data:`SKIPPED`.
    """

    def __init__(
        self,
        cursor: Cursor,
        header: dict[str, Field],
        common: dict[str, Field],
        kinds: Callable[[int], Kind],
    ) -> None:
        """TraceError if the formats lack what every kernel has."""
        self.odd = False
        self._order = cursor.order
        self._kinds = kinds
        self._runs: dict[tuple[int, int], Run] = {}
        self._endian = "<" if cursor.order == "little" else ">"
        little = cursor.order == "little"
        self._type_shift, self._delta_shift = (0, 5) if little else (27, 0)
        for what, fields, names in (
            ("the page header's format", header, ("timestamp", "commit", "data")),
            ("the events' formats", common, ("common_type", "common_pid")),
        ):
            for name in names:
                if name not in fields:
                    cursor.fail(f"expected {name} in {what}")
        self._timestamp, self._commit = header["timestamp"], header["commit"]
        self._start = header["data"].offset
        self._type, self._pid = common["common_type"], common["common_pid"]
        if self._pid.offset < self._type.offset:
            cursor.fail("expected common_type before common_pid in the events' formats")
        self._peek = self._struct([self._type])[0]
        self._word = struct.Struct(self._endian + "I")

    def walk(self, cpu: int, data: bytes, page: Any, cursor: Cursor, place: int) -> list[Entry]:
        """The entries of one page, found at ``place`` of ``cursor``; TraceError if it is damaged.

        ``page`` goes into the entries.
        """
        order = self._order
        ticks = _number(data, self._timestamp, order)
        commit = _number(data, self._commit, order)
        at = self._start
        end = at + (commit & _COMMIT_MASK)
        if end > len(data):
            cursor.fail(
                f"expected a page with up to {len(data) - at} bytes of events; its header says "
                f"{end - at}",
                place,
            )
        found: list[Entry] = []
        if commit & _MISSED_EVENTS:
            count = -1
            if commit & _MISSED_STORED:
                count = int.from_bytes(data[end : end + self._commit.size], order)
            found.append((ticks, cpu, count, LOST, None, 0, None))
            self.odd = True
        append = found.append
        view = memoryview(data)
        type_shift, delta_shift = self._type_shift, self._delta_shift
        type_mask = 31 << type_shift
        peek, smallest, runs = self._peek.unpack_from, self._peek.size, self._runs
        while at + smallest <= end:
            word, number = peek(data, at)
            length = word >> type_shift & 31
            if 0 < length < _PADDING:
                run = runs.get((number, length))
                if run is None:
                    run = self._run(number, length, cursor, place + at)
                size = run.struct.size
                last = at + (end - at) // size * size
                if last == at:
                    cursor.fail(
                        f"expected {size} bytes of an event; {end - at} are left", place + at
                    )
                (name, _, make, resolve), pick = run.kind, run.pick
                kind = word & type_mask
                for values in run.struct.iter_unpack(view[at:last]):
                    word = values[0]
                    if word & type_mask != kind or values[1] != number:
                        break
                    ticks += word >> delta_shift & _TS_MASK
                    if make is not None:
                        fields = make(pick(values))
                    elif resolve is not None:
                        name, fields = resolve(page, at + 4, partial(cursor.fail, place=place + at))
                        self.odd = self.odd or name == SKIPPED
                    else:
                        fields = None
                    append((ticks, cpu, values[2], name, fields, at + 4, page))
                    at += size
                continue
            delta = word >> delta_shift & _TS_MASK
            if length == _PADDING and not delta:
                return found
            if at + 8 > end:
                break
            (extra,) = self._word.unpack_from(data, at + 4)
            if length == _TIME_EXTEND:
                ticks += (extra << _TS_SHIFT) + delta
                at += 8
            elif length == _TIME_STAMP:
                ticks = _absolute((extra << _TS_SHIFT) + delta, ticks)
                at += 8
            else:
                ticks += delta
                size = 4 + (extra + 3 & ~3)
                if extra < 4 or at + size > end:
                    cursor.fail(
                        f"expected an event of up to {end - at - 4} bytes; found {extra}",
                        place + at,
                    )
                if length != _PADDING:
                    append(self._long_entry(ticks, cpu, data, at, size, page, cursor, place))
                at += size
        if at != end and end - at != 4:
            cursor.fail(f"expected an event; {end - at} bytes are left", place + at)
        return found

    def _long_entry(
        self,
        ticks: int,
        cpu: int,
        data: bytes,
        at: int,
        size: int,
        page: Any,
        cursor: Cursor,
        place: int,
    ) -> Entry:
        """An entry whose length is in a word of its own, before the payload."""
        payload = at + 8
        number = _number(data[payload : at + size], self._type, self._order)
        length = (size - 8) // 4
        run = self._runs.get((number, length)) or self._run(number, length, cursor, place + at)
        values = run.struct.unpack_from(data, at + 4)  # with the length in the place of the word
        name, _, make, resolve = run.kind
        fields = None if make is None else make(run.pick(values))
        if resolve is not None:
            name, fields = resolve(page, -payload, partial(cursor.fail, place=place + at))
            self.odd = self.odd or name == SKIPPED
        return ticks, cpu, values[2], name, fields, -payload, page

    def _run(self, number: int, length: int, cursor: Cursor, place: int) -> Run:
        kind = self._kinds(number)
        fields = [self._type, self._pid, *kind.fields]
        needed = max(one.offset + one.size for one in fields)
        if needed > 4 * length:
            cursor.fail(
                f"expected at least {needed} bytes of event {kind.name or number}; found "
                f"{4 * length}",
                place,
            )
        unpack, places = self._struct(fields, 4 * length)
        wanted = places[2:]
        pick: Callable[[tuple[Any, ...]], Any] = itemgetter(*wanted) if wanted else tuple
        if len(wanted) == 1:
            only = slice(wanted[0], wanted[0] + 1)
            pick = itemgetter(only)
        self.odd = self.odd or kind.name == SKIPPED
        run = self._runs[number, length] = Run(unpack, kind, pick)
        return run

    def _struct(self, fields: list[Field], size: int = 0) -> tuple[struct.Struct, list[int]]:
        """The entry's word and these fields of its payload; and where each value will be."""
        text = self._endian + "I"
        at = 0
        places: dict[str, int] = {}
        for field in sorted(set(fields), key=lambda one: one.offset):
            text += f"{field.offset - at}x" if field.offset > at else ""
            letters = _LETTERS.get(field.size) if not field.array else None
            text += letters[not field.signed] if letters else f"{field.size}s"
            at = field.offset + field.size
            places[field.name] = len(places) + 1
        text += f"{size - at}x" if size > at else ""
        return struct.Struct(text), [places[one.name] for one in fields]


def _number(data: bytes, field: Field, order: Any) -> int:
    return int.from_bytes(data[field.offset : field.offset + field.size], order)


def _absolute(ticks: int, before: int) -> int:
    """A full time stamp from its lower 59 bits (``rb_fix_abs_ts``)."""
    ticks |= before & ~_ABS_MASK
    return ticks + _ABS_MASK + 1 if ticks < before else ticks
