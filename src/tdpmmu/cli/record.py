"""``tdpmmu record``: a trace of the machine that this runs on."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from tdpmmu.cli.errors import UsageError


def record(
    out: Annotated[str, typer.Option("-o", help="Where the trace goes; - is stdout.")] = (
        "tdpmmu-trace.txt"
    ),
    duration: Annotated[
        float | None, typer.Option(min=0, help="Seconds; default: until Ctrl-C or SIGTERM.")
    ] = None,
    buffer_kb: Annotated[
        int, typer.Option(min=64, help="Size of the ring buffer of each CPU in KiB.")
    ] = 8192,
    no_functions: Annotated[
        bool, typer.Option("--no-functions", help="No lines of the function tracer: less load.")
    ] = False,
    tracefs: Annotated[
        Path | None, typer.Option(help="Where tracefs is mounted; default: found out.")
    ] = None,
) -> None:
    """Record what KVM's MMU does on this machine, for the trace commands.

    Uses an instance of tracefs and probes of its own, and leaves neither behind; what a SIGKILL
    left is removed at the next start. Others who trace are not disturbed.

    Example: tdpmmu record -o trace.txt --duration 10

    Exit codes: 0 recorded, 2 bad usage or nothing to record (not root, no tracefs, no KVM).
    """
    from tdpmmu.record.errors import RecordError
    from tdpmmu.record.recorder import record as run
    from tdpmmu.record.recorder import stop_on_signals
    from tdpmmu.record.session import open_session, remove_left_behind
    from tdpmmu.record.tracefs import Tracefs, find_tracefs

    try:
        with ExitStack() as stack:
            root = Tracefs(tracefs or find_tracefs())
            for name in remove_left_behind(root):
                print(f"tdpmmu: removed {name}, which a killed recording left", file=sys.stderr)
            stop = stack.enter_context(stop_on_signals())
            session = open_session(root, buffer_kb, not no_functions, Path("/sys/kernel/btf"))
            stack.callback(session.close)
            file = sys.stdout.buffer if out == "-" else stack.enter_context(open(out, "wb"))

            def started() -> None:
                end = "" if duration is not None else "; Ctrl-C ends it"
                counts = f"{session.probes} probes, {session.functions} functions"
                print(f"tdpmmu: recording; {counts}{end}", file=sys.stderr, flush=True)

            written = run(session, file, stop, duration, started)
    except RecordError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"{error.filename or out}: {error.strerror or os.strerror(5)}") from None
    if out != "-":
        print(f"{out}: {written} bytes of trace", file=sys.stderr)
