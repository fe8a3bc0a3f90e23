"""Bytes of a trace file, unpacked on the way: xz, gzip and zstd, from a file or standard input."""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 1 << 13


class BrokenStream(Exception):
    """What follows cannot be read; the message says why, the reader where."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class Packing(NamedTuple):
    """A compression format: the suffix it goes by, what its files start with, how to unpack."""

    name: str
    magic: bytes
    unpacker: Callable[[], _Unpacker]


def zstandard() -> Any:
    """The ``zstandard`` package; BrokenStream if it is not there."""
    try:
        import zstandard as package
    except ImportError:
        raise BrokenStream(
            "zstd data, for which the zstandard package is missing; "
            "expected it to be installed (pip install 'tdpmmu[zstd]')"
        ) from None
    return package


PACKINGS = (
    Packing(".xz", b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    Packing(".gz", b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    Packing(".zst", b"\x28\xb5\x2f\xfd", lambda: zstandard().ZstdDecompressor().decompressobj()),
)


class Unpacked(io.RawIOBase):
    """The unpacked bytes of ``stream``; reading raises BrokenStream where it is damaged."""

    def __init__(self, stream: IO[bytes], packing: Packing) -> None:
        self._stream = stream
        self._packing = packing
        self._unpacker = packing.unpacker()
        self._fed = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        while not self._ready and self._more():
            pass
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bool:
        """Unpack a little; False at the end."""
        data = b""
        if self._unpacker.eof:
            data = self._unpacker.unused_data
            self._unpacker = self._packing.unpacker()
            self._fed = False
        data = data or self._stream.read(_CHUNK)
        name = self._packing.name
        if not data:
            if self._fed:
                raise BrokenStream(
                    f"the {name} data ends too early (truncated file); expected more entries"
                )
            return False
        self._fed = True
        try:
            self._ready = self._unpacker.decompress(data)
        except Exception as error:  # each package has a class of its own
            raise BrokenStream(f"corrupt {name} data ({error}); expected more entries") from None
        return True


def unpacked(stream: io.BufferedReader) -> io.BufferedReader:
    """``stream``, or what is packed in it."""
    start = stream.peek(16)
    for packing in PACKINGS:
        if start.startswith(packing.magic):
            return io.BufferedReader(Unpacked(stream, packing), 1 << 16)
    return stream
