"""Open a trace, whatever it is: tracefs text, ``perf script`` text, or trace-cmd's ``trace.dat``.

Each plain or packed (xz, gzip, zstd), and from standard input.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from tdpmmu.trace.dat.files import MAGIC
from tdpmmu.trace.dat.reader import DatReader
from tdpmmu.trace.perf import PerfReader, is_perf
from tdpmmu.trace.records import Trace, TraceError
from tdpmmu.trace.streams import BrokenStream, unpacked
from tdpmmu.trace.text import TraceReader

EXPECTED = "expected a trace file"
_LOOK = 1 << 16
"""How much to look at to tell one text from the other."""


@contextmanager
def open_trace(path: str) -> Iterator[Trace]:
    """Open a trace; ``-`` is standard input.  TraceError if it cannot be read."""
    with ExitStack() as stack:
        if path == "-":
            name = "standard input"
            stream = _buffered(sys.stdin.buffer)
        else:
            name = path
            stream = stack.enter_context(_open(path))
        yield _reader(stream, name, stack)


def _reader(stream: io.BufferedReader, name: str, stack: ExitStack) -> Trace:
    try:
        plain = unpacked(stream)
        start = plain.peek(_LOOK)[:_LOOK]
    except BrokenStream as error:
        raise TraceError(f"{name}: line 1: {error}") from None
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror}; {EXPECTED}") from None
    if not start.startswith(MAGIC):
        return (PerfReader if is_perf(start) else TraceReader)(plain, name)
    if plain is not stream or not stream.seekable():
        return DatReader(_copy(plain, name, stack), name)
    return DatReader(stream, name)


def _copy(stream: IO[bytes], name: str, stack: ExitStack) -> IO[bytes]:
    """The same in a temporary file, where one can go back and forth."""
    import shutil
    import tempfile

    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    try:
        shutil.copyfileobj(stream, file, 1 << 20)
    except BrokenStream as error:
        raise TraceError(f"{name}: offset {file.tell():#x}: {error}") from None
    file.seek(0)
    return file


def _open(path: str) -> io.BufferedReader:
    try:
        return io.BufferedReader(io.FileIO(path), _LOOK)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; {EXPECTED}") from None


def _buffered(stream: object) -> io.BufferedReader:
    """Standard input replaced by something else, as by a test runner, may lack ``peek``."""
    if isinstance(stream, io.BufferedReader):
        return stream
    return io.BufferedReader(cast(io.RawIOBase, stream))
