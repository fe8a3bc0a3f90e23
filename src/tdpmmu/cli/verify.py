"""``tdpmmu trace verify``: hold a real kernel's trace against the rules."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from tdpmmu.cli.errors import UsageError


def verify(
    file: Annotated[str, typer.Argument(help="A trace; - is stdin.")],
    kernel: Annotated[
        str | None,
        typer.Option(help="5.12-rc4, 5.12, 5.13, 6.1, 6.12 or 6.18; default: found out."),
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="npt or ept; default: found out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Rebuild every VM's TDP page tables and check all properties that the events allow.

    Example: tdpmmu trace verify trace.txt.xz

    Exit codes: 0 all hold, 1 one is violated, 2 bad usage or a broken trace.
    """
    from tdpmmu.trace.detect import Detector
    from tdpmmu.trace.opening import open_trace
    from tdpmmu.trace.records import TraceError
    from tdpmmu.trace.verify.report import to_json, to_text
    from tdpmmu.trace.verify.verifier import verify as verify_trace

    try:
        detector = Detector(format_name, kernel)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        with open_trace(file) as reader:
            result = verify_trace(reader, detector)
    except TraceError as error:
        raise UsageError(str(error)) from None
    if as_json:
        json.dump(to_json(result), sys.stdout, indent=2)
        print()
    else:
        print(to_text(result))
    if result.violations:
        raise typer.Exit(1)
