"""``tdpmmu decode``: explain SPTEs."""

from __future__ import annotations

from typing import Annotated

import typer

from tdpmmu.cli.decoding import FORMAT, KERNEL, PHYS_BITS, explain_sptes

CONTEXT_SETTINGS = {"ignore_unknown_options": True}
"""For ``app.command``: lets a negative number reach the parser of SPTEs, which explains it."""


def decode(
    sptes: Annotated[
        list[str],
        typer.Argument(metavar="SPTE...", help="64-bit hexadecimal values, 0x optional."),
    ],
    format_name: Annotated[
        str, typer.Option("--format", help="npt, ept, or shadow (legacy shadow paging).")
    ] = FORMAT,
    kernel: Annotated[
        str,
        typer.Option(help="Whose encoding: 5.12-rc4, 5.12, 5.13, 6.1, 6.12 or 6.18."),
    ] = KERNEL,
    level: Annotated[
        int | None,
        typer.Option(help="Level of the page table it is in, 1 (4K) to 5; default: any."),
    ] = None,
    phys_bits: Annotated[
        int, typer.Option(help="The CPU's physical address width, 13 to 51 bits.")
    ] = PHYS_BITS,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Explain SPTEs: state, page, permissions, every bit, and what is wrong with them.

    Example: tdpmmu decode 800000000ce00ee7 --format npt --level 2

    Exit codes: 0 explained, 2 not an SPTE, or bad usage.
    """
    explain_sptes(sptes, format_name, kernel, level, phys_bits, as_json)
