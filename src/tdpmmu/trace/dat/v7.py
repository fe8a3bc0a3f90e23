"""``trace.dat`` of version 7: sections, which may be compressed, and options that point to them."""

from __future__ import annotations

import io

from tdpmmu.trace.dat import parts
from tdpmmu.trace.dat.container import Container, CpuData
from tdpmmu.trace.dat.cursor import Cursor
from tdpmmu.trace.dat.packing import read_chunk, unpacker
from tdpmmu.trace.streams import BrokenStream

_COMPRESSED = 1
_SECTIONS = {
    parts.HEADER_INFO: (parts.header_info, "the headers"),
    parts.FTRACE_EVENTS: (parts.ftrace_events, "the formats of ftrace's events"),
    parts.EVENT_FORMATS: (parts.event_formats, "the formats of the events"),
    parts.PRINTK: (parts.printk, "the printk formats"),
    parts.CMDLINES: (parts.cmdlines, "the tasks' names"),
}


def read(found: Container) -> None:
    """All that comes after the page size."""
    cursor = found.cursor
    found.compression = cursor.string("a compression", 64)
    cursor.string("the version of the compression", 256)
    place = cursor.number(8, "the place of the options")
    seen = set()
    while place:
        if place in seen:
            cursor.fail("expected more options; these were there before", place)
        seen.add(place)
        section = _section(found, place, parts.DONE, "options")
        place = 0
        for option, data in parts.options(section, bare_end=False):
            if option == parts.DONE:
                place = data.number(8, "the place of more options")
            else:
                _option(found, option, data)
    for what, there in (("page header", found.header_page), ("event formats", found.formats)):
        if not there:
            cursor.fail(f"expected options with the place of the {what}; they have none")


def _option(found: Container, option: int, data: Cursor) -> None:
    if option == parts.BUFFER:
        _buffer(found, data)
    elif option == parts.KALLSYMS:
        place = data.number(8, "the place of the symbols")
        found.kallsyms = lambda: parts.kallsyms(_section(found, place, option, "the symbols"))
    elif option in _SECTIONS:
        read_part, what = _SECTIONS[option]
        read_part(found, _section(found, data.number(8, f"the place of {what}"), option, what))
    else:
        parts.common_option(found, option, data)


def _buffer(found: Container, data: Cursor) -> None:
    cursor = found.cursor
    place = data.number(8, "the place of a buffer")
    data.string("the name of a buffer")
    found.clock = data.string("a trace clock") or found.clock
    page_size = parts.page_size(data)
    cpus = parts.count(data, "the number of CPUs")
    packed = bool(cpus) and _header(cursor, place, parts.BUFFER, "events")[0]
    for _ in range(cpus):
        cpu = data.number(4, "the number of a CPU")
        place = data.number(8, "the place of a CPU's events")
        size = data.number(8, "the size of a CPU's events")
        found.cpus.append(CpuData(cpu, place, size, page_size, packed))


def _header(cursor: Cursor, place: int, expected: int, what: str) -> tuple[bool, int]:
    """Is the section compressed, and its size in the file."""
    cursor.place = place
    section = cursor.number(2, f"the section of {what}")
    if section != expected:
        cursor.fail(f"expected section {expected}, {what}; found section {section}", place)
    flags = cursor.number(2, "the flags of a section")
    cursor.number(4, "the name of a section")
    return bool(flags & _COMPRESSED), cursor.number(8, "the size of a section")


def _section(found: Container, place: int, expected: int, what: str) -> Cursor:
    cursor = found.cursor
    packed, size = _header(cursor, place, expected, what)
    place = cursor.place
    if not packed:
        return cursor.part(io.BytesIO(cursor.read(size, what)), place)
    try:
        unpack = unpacker(found.compression)
    except BrokenStream as error:
        cursor.fail(str(error))
    return cursor.part(io.BytesIO(read_chunk(cursor, unpack, what)), place, packed=True)
