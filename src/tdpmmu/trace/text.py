"""Read the text of a kernel trace: the tracefs file ``trace`` (or ``trace_pipe``), line by line.

Plain text or xz, from a file or from standard input, without holding more than a line.  What is
broken raises :class:`TraceError`, whose message is one line with the file's name, the line's number
and what was expected there.
"""

from __future__ import annotations

import io
import lzma
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, NoReturn, cast

_XZ_MAGIC = b"\xfd7zXZ\x00"
_TRACE_DAT_MAGIC = b"\x17\x08\x44tracing"

_LINE = re.compile(
    r"\s*(?P<task>\S.{0,15}?)-(?P<pid>\d{1,10})\s+(?:\([\s\d-]+\)\s+)?\[(?P<cpu>\d{1,6})\]"
    r"\s+(?:\S+\s+)?(?P<time>\d{1,20}(?:\.\d{1,9})?):\s+(?P<rest>.*)"
)
_EVENT = re.compile(r"(?P<event>\w+):(?:\s+(?P<text>.*))?")
_FUNCTION = re.compile(r"(?P<function>[\w.]+)(?: \[\w+\])? <-(?P<caller>[\w.]+)(?: \[\w+\])?")
_LOST = re.compile(r"CPU:\s*(?P<cpu>\d{1,6}) \[LOST (?:(?P<count>\d{1,20}) )?EVENTS\]")
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,20})/(\d{1,20})")

MAX_LINE = 1 << 16
"""Longest line in bytes; tracefs prints less than a page for each entry."""

EXPECTED = 'expected tracefs text, like "task-1 [000] ..... 1.000000: event: ..."'


class TraceError(Exception):
    """The input is not the trace it should be; the message is one line."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the ring buffer.

    ``time`` is in seconds for the trace clocks that count time.  A line of the function tracer has
    the event name ``function``, and ``function`` and ``caller`` set; others have their ``text``.
    """

    line: int
    task: str
    pid: int
    cpu: int
    time: float
    event: str
    text: str
    function: str = ""
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """``CPU:1 [LOST 42 EVENTS]``: the ring buffer of ``cpu`` overran; ``count`` None: unknown."""

    line: int
    cpu: int
    count: int | None


class TraceReader:
    """Iterates over the records of an open trace.

    After the header, ``entries_in_buffer`` and ``entries_written`` are its two numbers (None
    without a header, as in ``trace_pipe``); more written than in the buffer means that the start
    of the trace was overwritten.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self.entries_in_buffer: int | None = None
        self.entries_written: int | None = None
        self.records = 0
        self.line = 0
        self._stream = stream

    def fail(self, what: str, line: int | None = None) -> NoReturn:
        """Raise :class:`TraceError` for ``line`` (default: the one read last)."""
        raise TraceError(f"{self.name}: line {line or self.line}: {what}")

    def __iter__(self) -> Iterator[Record | Lost]:
        for raw in self._lines():
            if raw.startswith("#"):
                self._header(raw)
            elif raw.startswith(" => ") or not raw.strip():
                continue  # a frame of a stack trace
            elif match := _LOST.fullmatch(raw.strip()):
                count = match["count"]
                yield Lost(self.line, int(match["cpu"]), int(count) if count else None)
            else:
                self.records += 1
                yield self._record(raw)
        self._check_end()

    def _lines(self) -> Iterator[str]:
        stream = self._stream
        while True:
            try:
                raw = stream.readline(MAX_LINE)
            except EOFError:
                self.line += 1
                self.fail("the .xz data ends too early (truncated file); expected more entries")
            except lzma.LZMAError as error:
                self.line += 1
                self.fail(f"corrupt .xz data ({error}); expected more entries")
            except OSError as error:
                self.line += 1
                self.fail(f"cannot read on: {error.strerror}")
            if not raw:
                return
            self.line += 1
            if b"\0" in raw:
                self.fail(f"binary data; {EXPECTED}")
            if not raw.endswith(b"\n"):
                what = "is longer than 64 KiB" if len(raw) == MAX_LINE else "has no end (truncated)"
                self.fail(f"the line {what}; {EXPECTED}")
            yield raw[:-1].decode("utf-8", "replace")

    def _header(self, line: str) -> None:
        if match := _ENTRIES.match(line):
            self.entries_in_buffer = int(match[1])
            self.entries_written = int(match[2])

    def _record(self, line: str) -> Record:
        match = _LINE.fullmatch(line)
        if not match:
            self.fail(f"{EXPECTED}; found {shorten(line)}")
        rest = match["rest"]
        function = caller = ""
        if event := _EVENT.fullmatch(rest):
            name, text = event["event"], event["text"] or ""
        elif found := _FUNCTION.fullmatch(rest):
            name, text = "function", rest
            function, caller = found["function"], found["caller"]
        else:
            expected = '"event: fields" or "function <-caller"'
            self.fail(f"expected {expected} after the time; found {shorten(rest)}")
        return Record(
            self.line,
            match["task"],
            int(match["pid"]),
            int(match["cpu"]),
            float(match["time"]),
            name,
            text,
            function,
            caller,
        )

    def _check_end(self) -> None:
        if not self.line:
            raise TraceError(f"{self.name}: line 1: empty file; {EXPECTED}")
        promised = self.entries_in_buffer
        if promised is not None and self.records < promised:
            self.line += 1
            self.fail(
                f"expected {promised} entries, as the header says, but the file ends after "
                f"{self.records} (truncated)"
            )


def shorten(text: str) -> str:
    """``text`` quoted for an error message: ASCII, of at most 60 characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


@contextmanager
def open_trace(path: str) -> Iterator[TraceReader]:
    """Open a trace, xz or plain; ``-`` is standard input.  TraceError if it cannot be read."""
    if path == "-":
        yield TraceReader(_plain_or_xz(sys.stdin.buffer, "standard input"), "standard input")
        return
    with _open(path) as stream:
        yield TraceReader(_plain_or_xz(stream, path), path)


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; expected a trace file") from None


def _plain_or_xz(stream: BinaryIO, name: str) -> IO[bytes]:
    buffered = stream if isinstance(stream, io.BufferedReader) else _buffered(stream)
    start = buffered.peek(16)
    if start.startswith(_TRACE_DAT_MAGIC):
        raise TraceError(f"{name}: line 1: this is a trace.dat of trace-cmd; {EXPECTED}")
    return lzma.open(buffered, "rb") if start.startswith(_XZ_MAGIC) else buffered


def _buffered(stream: BinaryIO) -> io.BufferedReader:
    """Standard input replaced by something else, as by a test runner, may lack ``peek``."""
    return io.BufferedReader(cast(io.RawIOBase, stream))
