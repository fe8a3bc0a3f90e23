"""``tdpmmu trace``: what a real kernel's trace says."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.convert import convert
from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.replay import replay
from tdpmmu.cli.verify import verify

if TYPE_CHECKING:
    from tdpmmu.trace.stats import Difference, TraceStats

trace_app = typer.Typer(
    help="Read traces of real kernels.", no_args_is_help=True, rich_markup_mode=None
)
trace_app.command()(convert)
trace_app.command()(replay)
trace_app.command()(verify)

_COLUMNS = ("pages_4k", "pages_2m", "pages_1g", "nx_lpage_splits")


@trace_app.callback()
def _trace() -> None:
    """Read traces of real kernels."""


@trace_app.command()
def stats(
    file: Annotated[
        str, typer.Argument(help="tracefs or perf script text, or a trace.dat; - is stdin.")
    ],
    format_name: Annotated[
        str | None, typer.Option("--format", help="npt or ept; default: found out.")
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="5.12-rc4, 5.12, 5.13, 6.1, 6.12 or 6.18; default: found out."),
    ] = None,
    prog: Annotated[
        str | None,
        typer.Option(help="The lab program's log: compare with the kernel's own statistics."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Rebuild the TDP page tables from a trace and count what lives at each marker.

    Example: tdpmmu trace stats trace.txt.xz --json

    Exit codes: 0 done, 1 a number differs from the kernel's own (--prog), 2 bad usage or trace.
    """
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.opening import open_trace
    from tdpmmu.trace.prog import read_prog
    from tdpmmu.trace.records import TraceError
    from tdpmmu.trace.stats import compare, trace_stats

    differences: list[Difference] | None = None
    compared = 0
    try:
        detector = Detector(format_name, kernel)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        steps = read_prog(prog) if prog is not None else None
        with open_trace(file) as reader:
            result = trace_stats(reader, detector)
        if steps is not None and prog is not None:
            compared, differences = compare(result, steps, prog)
    except TraceError as error:
        raise UsageError(str(error)) from None
    if as_json:
        json.dump(to_json(result, compared, differences), sys.stdout, indent=2)
        print()
    else:
        print(to_text(result, compared, differences))
    if differences:
        raise typer.Exit(1)


def to_json(
    result: TraceStats, compared: int, differences: list[Difference] | None
) -> dict[str, Any]:
    """The result as plain data; ``comparison`` is null without a log to compare with."""
    comparison = None
    if differences is not None:
        comparison = {"compared": compared, "differences": [asdict(one) for one in differences]}
    return {
        "file": result.name,
        "lines_are": f"{result.unit}s",
        "format": result.format_name,
        "kernel": result.kernel_text,
        "events": result.events,
        "spte_changes": result.changes,
        "exact": result.exact,
        "doubts": [{"line": line, "what": what} for line, what in result.doubts],
        "more_doubts": result.more_doubts,
        "nx_lpage_splits_are": result.nx_how,
        "markers": [asdict(row) for row in result.rows],
        "comparison": comparison,
    }


def to_text(result: TraceStats, compared: int, differences: list[Difference] | None) -> str:
    """The result for a terminal, without the final newline."""
    found = ", found out" if result.detected else ""
    lines = [
        f"{result.name}: {result.format_name}, kernel {result.kernel_text}{found}; "
        f"{result.events} events, {result.changes} of them SPTE changes",
        "",
        f"{result.unit:>8} {'time':>14}  {'marker':<20}"
        + "".join(f"{name:>17}" for name in _COLUMNS),
    ]
    for row in result.rows:
        numbers = [getattr(row, name) for name in _COLUMNS]
        cells = "".join(f"{'not known' if one is None else one:>17}" for one in numbers)
        lines.append(f"{row.line:>8} {row.time:>14.6f}  {row.marker:<20}{cells}")
    lines.append("")
    lines.append(f"nx_lpage_splits {result.nx_how}.")
    if result.exact:
        lines.append("Exact: nothing was lost, and every change fits the one before it.")
    else:
        lines.append(f"Not exact from {result.unit} {result.doubts[0][0]} on:")
        lines += [f"  {result.unit} {line}: {what}" for line, what in result.doubts[:10]]
        more = len(result.doubts) - 10 + result.more_doubts
        if more > 0:
            lines.append(f"  and {more} more")
    if differences is not None:
        lines += _comparison(compared, differences)
    return "\n".join(lines)


def _comparison(compared: int, differences: list[Difference]) -> list[str]:
    if not differences:
        return [f"All {compared} numbers are the kernel's own."]
    lines = [
        f"{len(differences)} of {compared} numbers are not the kernel's own:",
        f"{'trace line':>12} {'log line':>9}  {'marker':<20}{'number':<17}{'rebuilt':>10}"
        f"{'kernel':>10}",
    ]
    for one in differences:
        lines.append(
            f"{one.row.line:>12} {one.prog_line:>9}  {one.row.marker:<20}{one.stat:<17}"
            f"{one.rebuilt:>10}{one.kernel:>10}"
        )
    return lines
