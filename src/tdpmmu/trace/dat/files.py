"""Open a ``trace.dat`` of either version."""

from __future__ import annotations

from typing import IO

from tdpmmu.trace.dat import parts, v6, v7
from tdpmmu.trace.dat.container import Container
from tdpmmu.trace.dat.cursor import Cursor

MAGIC = b"\x17\x08\x44tracing"
_VERSIONS = {"6": v6.read, "7": v7.read}


def read_container(stream: IO[bytes], name: str) -> Container:
    """Read all but the events; TraceError for what is no trace.dat, or a broken one."""
    cursor = Cursor(stream, name)
    cursor.expect(MAGIC, "the start of a trace.dat")
    place = cursor.place
    version = cursor.string("a version", 16)
    if version not in _VERSIONS:
        cursor.fail(f"expected version 6 or 7 of trace.dat; found {version!a}", place)
    order = cursor.number(1, "the byte order")
    if order > 1:
        cursor.fail(f"expected a byte order of 0 or 1; found {order}", cursor.place - 1)
    cursor.order = "big" if order else "little"
    found = Container(cursor, long_size=cursor.number(1, "the size of a long"))
    if found.long_size not in (4, 8):
        cursor.fail(f"expected longs of 4 or 8 bytes; found {found.long_size}", cursor.place - 1)
    found.page_size = parts.page_size(cursor)
    _VERSIONS[version](found)
    return found
