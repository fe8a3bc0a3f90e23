"""``trace.dat`` of version 6: one part after the other."""

from __future__ import annotations

from tdpmmu.trace.dat import parts
from tdpmmu.trace.dat.container import Container, CpuData
from tdpmmu.trace.dat.cursor import Cursor

_EVENTS = b"flyrecord\0"


def read(found: Container) -> None:
    """All that comes after the page size."""
    cursor = found.cursor
    parts.header_info(found, cursor)
    parts.ftrace_events(found, cursor)
    parts.event_formats(found, cursor)
    place = cursor.place
    cursor.skip(cursor.number(4, "the size of the symbols"), "symbols")

    def kallsyms() -> bytes:
        cursor.place = place
        return parts.kallsyms(cursor)

    found.kallsyms = kallsyms
    parts.printk(found, cursor)
    parts.cmdlines(found, cursor)
    cpus = parts.count(cursor, "the number of CPUs")
    instances = []
    start = cursor.place
    kind = cursor.read(10, "options")
    if kind.startswith(b"options"):
        for option, data in parts.options(cursor, bare_end=True):
            if option == parts.BUFFER:
                instances.append(data.number(8, "the place of a buffer"))
            elif option == parts.CPUCOUNT:
                cpus = parts.count(data, "the number of CPUs")
            else:
                parts.common_option(found, option, data)
        start = cursor.place
        kind = cursor.read(10, "the kind of events")
    if kind != _EVENTS:
        cursor.fail(f"expected recorded events; found {kind.decode('latin1')!a}", start)
    _cpus(found, cursor, cpus)
    for place in instances:
        cursor.place = place
        cursor.expect(_EVENTS, "the events of an instance")
        _cpus(found, cursor, cpus)


def _cpus(found: Container, cursor: Cursor, cpus: int) -> None:
    for cpu in range(cpus):
        place = cursor.number(8, "the place of a CPU's events")
        size = cursor.number(8, "the size of a CPU's events")
        found.cpus.append(CpuData(cpu, place, size, found.page_size, False))
