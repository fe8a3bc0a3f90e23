"""Walk the pages of the kernel's ring buffer (``kernel/trace/ring_buffer.c``).

A page has a header (time stamp, ``commit``: length and flags) and entries.  An entry begins with a
word: 5 bits of type or length, 27 bits of time since the entry before.  Entries of the same event
and length that follow each other, as most do, are unpacked in one go.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from itertools import accumulate, repeat
from typing import Any

from tdpmmu.trace.dat.cursor import Cursor
from tdpmmu.trace.dat.formats import Field
from tdpmmu.trace.dat.layouts import SKIPPED, Fail, Kind, Layout, body_of
from tdpmmu.trace.records import LOST, Run

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_TS_SHIFT = 27
_TS_MASK = (1 << _TS_SHIFT) - 1
_ABS_MASK = (1 << 59) - 1
_MISSED_EVENTS, _MISSED_STORED = 1 << 31, 1 << 30
_COMMIT_MASK = (1 << 27) - 1
_STRETCH = 8
"""From how many alike entries on it pays to unpack them in one go."""

Entry = tuple[int, int, int, str, Any, int, Any]
"""Ticks, CPU, pid, event, typed fields, offset of the payload in the page, the page.

The offset is negative if the payload's length is in a word of its own, before it.
"""


class PageWalker:
    """Decodes pages; ``kinds`` says how, by the number of the event.

    ``odd`` is set once an entry may be no event, but :data:`LOST` or :data:`SKIPPED`.  With
    ``runs``, many alike entries of a thread are one :class:`Run`.
    """

    def __init__(
        self,
        cursor: Cursor,
        header: dict[str, Field],
        common: dict[str, Field],
        kinds: Callable[[int], Kind],
        *,
        runs: bool = False,
    ) -> None:
        """TraceError if the formats lack what every kernel has."""
        self.odd = False
        self._bulk = runs
        self._reach = _STRETCH
        self._order = cursor.order
        self._kinds = kinds
        self._layouts: dict[tuple[int, int], Layout] = {}
        little = cursor.order == "little"
        self._endian = "<" if little else ">"
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
        self._peek = struct.Struct(self._endian + body_of([self._type])[0])
        self._word = struct.Struct(self._endian + "I")

    def begins(self, data: bytes) -> int:
        """When a page begins: none of its entries is earlier."""
        return _number(data, self._timestamp, self._order)

    def walk(
        self, cpu: int, data: bytes, page: Any, cursor: Cursor, place: int
    ) -> list[Entry | Run]:
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
        found: list[Entry | Run] = []
        if commit & _MISSED_EVENTS:
            count = -1
            if commit & _MISSED_STORED:
                count = int.from_bytes(data[end : end + self._commit.size], order)
            found.append((ticks, cpu, count, LOST, None, 0, None))
            self.odd = True
        append = found.append
        type_shift, delta_shift = self._type_shift, self._delta_shift
        type_mask = 31 << type_shift
        peek, smallest, layouts = self._peek.unpack_from, self._peek.size, self._layouts
        while at + smallest <= end:
            word, number = peek(data, at)
            length = word >> type_shift & 31
            if 0 < length < _PADDING:
                layout = layouts.get((number, length))
                if layout is None:
                    layout = self._layout(number, length, cursor, place + at)
                size = layout.size
                alike = (end - at) // size
                if not alike:
                    cursor.fail(
                        f"expected {size} bytes of an event; {end - at} are left", place + at
                    )
                name, _, make, resolve, _ = layout.kind
                kind = word & type_mask
                if alike > _STRETCH and resolve is None:
                    following, next_number = peek(data, at + size)
                    ahead, far_number = peek(data, at + _STRETCH * size)
                    if (
                        next_number == far_number == number
                        and following & type_mask == ahead & type_mask == kind
                    ):
                        count, ticks = self._stretch(
                            found,
                            layout,
                            min(alike, self._reach),
                            ticks,
                            cpu,
                            data,
                            at,
                            kind,
                            number,
                            page,
                            partial(cursor.fail, place=place + at),
                        )
                        at += count * size
                        continue
                values = layout.struct.unpack_from(data, at)
                ticks += word >> delta_shift & _TS_MASK
                if make is not None:
                    if layout.limits:
                        layout.check(values, partial(cursor.fail, place=place + at))
                    fields = make(layout.pick(values))
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
        layout = self._layouts.get((number, length))
        if layout is None:
            layout = self._layout(number, length, cursor, place + at)
        values = layout.struct.unpack_from(data, at + 4)  # the length is where a word would be
        name, _, make, resolve, _ = layout.kind
        layout.check(values, partial(cursor.fail, place=place + at))
        fields = None if make is None else make(layout.pick(values))
        if resolve is not None:
            name, fields = resolve(page, -payload, partial(cursor.fail, place=place + at))
            self.odd = self.odd or name == SKIPPED
        return ticks, cpu, values[2], name, fields, -payload, page

    def _stretch(
        self,
        found: list[Entry | Run],
        layout: Layout,
        alike: int,
        ticks: int,
        cpu: int,
        data: bytes,
        at: int,
        kind: int,
        number: int,
        page: Any,
        fail: Fail,
    ) -> tuple[int, int]:
        """Up to ``alike`` entries of a layout; how many there were, and the time of the last."""
        width, delta_shift, type_mask = layout.width, self._delta_shift, 31 << self._type_shift
        flat = layout.many(alike).unpack_from(data, at)
        words, numbers = flat[::width], flat[1::width]
        count = alike
        if numbers.count(number) != alike or [w & type_mask for w in words].count(kind) != alike:
            count = next(
                i
                for i, word in enumerate(words)
                if word & type_mask != kind or numbers[i] != number
            )
            flat, words = flat[: count * width], words[:count]
        # Twice as far as it went well, or farther if it always did: little is unpacked in vain.
        self._reach = max(2 * count, _STRETCH if count < alike else self._reach)
        layout.check(flat, fail)
        deltas = [word >> delta_shift & _TS_MASK for word in words]
        deltas[0] += ticks
        times = tuple(accumulate(deltas))
        pids = flat[2::width]
        columns = tuple([flat[i::width] for i in layout.wanted])
        name, _, make, _, _ = layout.kind
        places = range(at + 4, at + 4 + count * layout.size, layout.size)
        if self._bulk and make is not None and pids.count(pids[0]) == count:
            run = Run(times[0], 0, cpu, pids[0], name, times, columns, make, places, page)
            found.append(run)
        else:
            fields = repeat(None) if make is None else map(make, zip(*columns, strict=True))
            found += zip(times, repeat(cpu), pids, repeat(name), fields, places, repeat(page))
        return count, times[-1]

    def _layout(self, number: int, length: int, cursor: Cursor, place: int) -> Layout:
        kind = self._kinds(number)
        common = self._type, self._pid
        needed = max(one.offset + one.size for one in (*common, *kind.fields))
        if needed > 4 * length:
            cursor.fail(
                f"expected at least {needed} bytes of event {kind.name or number}; found "
                f"{4 * length}",
                place,
            )
        self.odd = self.odd or kind.name == SKIPPED
        layout = Layout(kind, common, 4 + 4 * length, self._endian)
        self._layouts[number, length] = layout
        return layout


def _number(data: bytes, field: Field, order: Any) -> int:
    return int.from_bytes(data[field.offset : field.offset + field.size], order)


def _absolute(ticks: int, before: int) -> int:
    """A full time stamp from its lower 59 bits (``rb_fix_abs_ts``)."""
    ticks |= before & ~_ABS_MASK
    return ticks + _ABS_MASK + 1 if ticks < before else ticks
