"""Unpack the compressed sections of a version 7 file."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from tdpmmu.trace.dat.cursor import Cursor
from tdpmmu.trace.streams import BrokenStream, zstandard

LARGEST = 1 << 28
"""The most bytes that anything may unpack to; trace-cmd's largest, all symbols, has 10 MB."""

Unpack = Callable[[bytes, int], bytes]


def unpacker(algorithm: str) -> Unpack:
    """What unpacks so many bytes; BrokenStream if nobody knows how."""
    if algorithm == "zstd":
        package = zstandard()
        decompressor = package.ZstdDecompressor()

        def zstd(data: bytes, size: int) -> bytes:
            try:
                return bytes(decompressor.decompress(data, max_output_size=size))
            except package.ZstdError as error:
                raise BrokenStream(f"corrupt zstd data ({error})") from None

        return zstd
    if algorithm == "zlib":
        return _zlib
    raise BrokenStream(f"expected the compression none, zlib or zstd; found {algorithm!a}")


def _zlib(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error as error:
        raise BrokenStream(f"corrupt zlib data ({error})") from None


def read_chunk(cursor: Cursor, unpack: Unpack, what: str) -> bytes:
    """Packed size, unpacked size, packed data; TraceError if they do not fit each other."""
    place = cursor.place
    packed = cursor.number(4, f"the size of {what}")
    size = cursor.number(4, f"the unpacked size of {what}")
    if not 0 < size <= LARGEST:
        cursor.fail(f"expected the unpacked size of {what}; found {size}", place)
    try:
        data = unpack(cursor.read(packed, what), size)
    except BrokenStream as error:
        cursor.fail(f"{error}; expected {what}", place)
    if len(data) != size:
        cursor.fail(f"expected {size} bytes of {what}; found {len(data)}", place)
    return data
