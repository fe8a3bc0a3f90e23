"""The parts of a ``trace.dat`` that both versions have: headers, formats, names, options."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.cursor import Cursor

DONE, DATE, CPUSTAT, BUFFER, CLOCK = 0, 1, 2, 3, 4
OFFSET, CPUCOUNT, TSC2NSEC = 7, 8, 14
HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK, CMDLINES = range(16, 22)
"""Options, and sections of the same numbers."""

_MANY = 1 << 16
_OVERRUN = re.compile(rb"^(?:overrun|dropped events): (\d+)", re.MULTILINE)
_ENTRIES = re.compile(rb"^(?:entries|read events): (\d+)", re.MULTILINE)
_CLOCK_IN_USE = re.compile(rb"\[([\w-]+)\]")


def count(cursor: Cursor, what: str) -> int:
    """A number of things of which there are not too many."""
    number = cursor.number(4, what)
    if number > _MANY:
        cursor.fail(f"expected {what}; found {number}", cursor.place - 4)
    return number


def page_size(cursor: Cursor) -> int:
    """The size of a page, in bytes."""
    size = cursor.number(4, "the page size")
    if not 512 <= size <= 1 << 24:
        cursor.fail(f"expected the size of a page; found {size}", cursor.place - 4)
    return size


def header_info(found: Container, cursor: Cursor) -> None:
    """``header_page`` and ``header_event``; of the latter only the name matters."""
    cursor.expect(b"header_page\0", "the page header's format")
    text = cursor.read(cursor.number(8, "the size of the page header's format"), "the page header")
    found.header_page = text.decode("latin1")
    cursor.expect(b"header_event\0", "the event header's format")
    cursor.read(cursor.number(8, "the size of the event header's format"), "the event header")


def ftrace_events(found: Container, cursor: Cursor) -> None:
    """The formats of ftrace's own events."""
    _formats(found, "ftrace", cursor)


def event_formats(found: Container, cursor: Cursor) -> None:
    """The formats of all other events, by system."""
    for _ in range(count(cursor, "the number of event systems")):
        _formats(found, cursor.string("the name of an event system"), cursor)


def _formats(found: Container, system: str, cursor: Cursor) -> None:
    for _ in range(count(cursor, f"the number of {system} events")):
        size = cursor.number(8, f"the size of a {system} event's format")
        found.formats.append((system, cursor.read(size, f"a {system} event's format")))


def kallsyms(cursor: Cursor) -> bytes:
    """All symbols of the kernel: megabytes."""
    return cursor.read(cursor.number(4, "the size of the symbols"), "symbols")


def printk(found: Container, cursor: Cursor) -> None:
    """The formats of ``trace_printk``."""
    found.printk = cursor.read(cursor.number(4, "the size of the printk formats"), "printk formats")


def cmdlines(found: Container, cursor: Cursor) -> None:
    """The names of the tasks."""
    found.cmdlines = cursor.read(cursor.number(8, "the size of the tasks' names"), "tasks' names")


def options(cursor: Cursor, *, bare_end: bool) -> Iterator[tuple[int, Cursor]]:
    """(number, content) up to the one that ends them, which is ``bare`` in version 6."""
    while True:
        option = cursor.number(2, "an option")
        if option == DONE and bare_end:
            return
        size = cursor.number(4, "the size of an option")
        place = cursor.place
        yield option, cursor.part(io.BytesIO(cursor.read(size, f"option {option}")), place)
        if option == DONE:
            return


def common_option(found: Container, option: int, data: Cursor) -> None:
    """Options that mean the same in both versions."""
    if option == CPUSTAT:
        text = data.read(data.size, "statistics")
        found.overrun = (found.overrun or 0) + sum(map(int, _OVERRUN.findall(text)))
        found.promised += sum(map(int, _ENTRIES.findall(text)))
    elif option == CLOCK:
        if clock := _CLOCK_IN_USE.search(data.read(data.size, "a trace clock")):
            found.clock = clock[1].decode()
    elif option == DATE:
        found.shift_ns += 1000 * _offset(data)
    elif option == OFFSET:
        found.shift_ns += _offset(data)
    elif option == TSC2NSEC:
        found.tsc = data.number(4, "a multiplier"), data.number(4, "a shift")
        if found.tsc[1] > 63:
            data.fail(f"expected a shift of up to 63; found {found.tsc[1]}", 4)


def _offset(data: Cursor) -> int:
    text = data.read(data.size, "an offset").split(b"\0")[0].decode("latin1").strip()
    try:
        return int(text, 0)
    except ValueError:
        data.fail(f"expected a number; found {text[:40]!a}", 0)
