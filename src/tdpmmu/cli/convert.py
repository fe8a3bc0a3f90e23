"""``tdpmmu trace convert``: a kernel's trace for other viewers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.trace.perfetto import Conversion


def convert(
    file: Annotated[
        str, typer.Argument(help="A trace, as for trace stats; it is read twice, so not stdin.")
    ],
    perfetto: Annotated[
        str, typer.Option(metavar="OUT", help="Write a timeline for the Perfetto UI; - is stdout.")
    ],
    format_name: Annotated[
        str | None, typer.Option("--format", help="npt or ept; default: found out.")
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="5.12-rc4, 5.12, 5.13, 6.1, 6.12 or 6.18; default: found out."),
    ] = None,
) -> None:
    """Show a trace in the Perfetto UI: faults, SPTE changes, flushes, pages mapped over time.

    Example: tdpmmu trace convert trace.txt --perfetto trace.pftrace

    Exit codes: 0 written, 2 bad usage or a broken trace; then nothing is written.
    """
    from tdpmmu.cli.output import whole_file
    from tdpmmu.timeline.builder import PerfettoMissing
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.opening import open_trace
    from tdpmmu.trace.perfetto import Conversion
    from tdpmmu.trace.records import TraceError
    from tdpmmu.trace.survey import survey

    if file == "-" or (os.path.exists(file) and not os.path.isfile(file)):
        raise UsageError(f"{file}: expected a file, since the trace is read twice")
    if os.path.exists(perfetto) and os.path.exists(file) and os.path.samefile(file, perfetto):
        raise UsageError(f"{perfetto}: this is the trace itself; expected another file to write")
    try:
        detector = Detector(format_name, kernel)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        with open_trace(file) as reader:
            found = survey(reader, detector)
        with open_trace(file) as reader, whole_file(perfetto) as out:
            conversion = Conversion(out, reader, found, os.path.basename(file))
            for record in reader:
                conversion.take(record)
            conversion.finish()
    except TraceError as error:
        raise UsageError(str(error)) from None
    except PerfettoMissing as error:
        raise UsageError(f"--perfetto: {error}") from None
    if perfetto != "-":
        print(f"{perfetto}: {conversion.events} events; {_exactness(conversion)}")


def _exactness(conversion: Conversion) -> str:
    if conversion.tables is None:
        return "no changes of the TDP MMU, so no pages"
    if conversion.doubt is None:
        return "pages are exact"
    line, why = conversion.doubt
    return f"pages are not exact from {conversion.unit} {line} on: {why}"
