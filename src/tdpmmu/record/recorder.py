"""Record a live host until somebody says that it is enough."""

from __future__ import annotations

import os
import platform
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tdpmmu.record.session import Session

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CHUNK = 1 << 18


@contextmanager
def stop_on_signals() -> Iterator[int]:
    """A descriptor that becomes readable when SIGINT, SIGTERM or SIGHUP comes.

    Within it these signals do nothing else, so that what was set up is taken down in peace.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {one: signal.signal(one, lambda *_: os.write(writing, b"!")) for one in _SIGNALS}
    try:
        yield reading
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        os.close(reading)
        os.close(writing)


def record(
    session: Session,
    out: IO[bytes],
    stop: int,
    duration: float | None,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Write the instance's text to ``out`` as it comes; the number of bytes of it.

    ``started`` is called when from now on everything is recorded.  Ends after ``duration`` seconds
    or when ``stop`` is readable, and then writes what is left in the buffers.
    """
    written = 0
    out.write(header(session).encode())
    pipe = os.open(session.instance.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        session.instance.write("tracing_on", "1")
        started()
        end = None if duration is None else time.monotonic() + duration
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(stop, selectors.EVENT_READ)
            while end is None or time.monotonic() < end:
                left = None if end is None else max(0, end - time.monotonic())
                ready = {key.fd for key, _ in selector.select(left)}
                if stop in ready:
                    break
                written += _copy(pipe, out)
        session.instance.write("tracing_on", "0")
        while more := _copy(pipe, out):
            written += more
    finally:
        os.close(pipe)
    out.flush()
    return written


def _copy(pipe: int, out: IO[bytes]) -> int:
    try:
        data = os.read(pipe, _CHUNK)
    except BlockingIOError:
        return 0
    out.write(data)
    return len(data)


def header(session: Session) -> str:
    """What the trace was recorded on, as comments."""
    lines = [f"recorded by tdpmmu on Linux {platform.release()} {platform.machine()}"]
    for parameter in sorted(Path("/sys/module").glob("kvm*/parameters/*")):
        try:
            value = parameter.read_text().strip()
        except OSError:
            continue
        lines.append(f"{parameter.parts[3]}.{parameter.name}={value}")
    lines += [f"not there: {what}" for what in session.missing]
    return "".join(f"# {line}\n" for line in lines)
