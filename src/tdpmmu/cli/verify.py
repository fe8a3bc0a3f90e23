"""``tdpmmu trace verify``: hold a real kernel's trace against the rules."""

from __future__ import annotations

from typing import Annotated

import typer


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
    from tdpmmu.cli.verifying import verify_file

    code = verify_file(file, kernel, format_name, as_json)
    if code:
        raise typer.Exit(code)
