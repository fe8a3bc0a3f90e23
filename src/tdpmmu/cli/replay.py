"""``tdpmmu trace replay``: the model against a real kernel's trace."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError


def replay(
    file: Annotated[str, typer.Argument(help="A trace, as for trace stats; - is stdin.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="npt or ept; default: found out.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="A kernel of the model; default: the trace's, found out.")
    ] = None,
    patch: Annotated[
        list[str] | None,
        typer.Option("--patch", "-p", help="A patch by name, or FILE.py[:CLASS]; repeatable."),
    ] = None,
    recovery_ratio: Annotated[
        int, typer.Option(min=0, help="nx_huge_pages_recovery_ratio of the kernel.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Drive the model with what a trace says came from outside; compare every SPTE change.

    Example: tdpmmu trace replay trace.txt.xz

    Exit codes: 0 all agree, 1 they part, 2 bad usage or a broken trace.
    """
    from tdpmmu.conformance.replay.report import to_json, to_text
    from tdpmmu.conformance.replay.run import replay_trace
    from tdpmmu.trace.opening import open_trace
    from tdpmmu.trace.records import TraceError

    patches = _patches(patch or [])
    try:
        with open_trace(file) as reader:
            result = replay_trace(
                reader,
                format_name=format_name,
                kernel=kernel,
                patches=patches,
                recovery_ratio=recovery_ratio,
            )
    except (TraceError, ValueError) as error:
        raise UsageError(str(error)) from None
    if as_json:
        json.dump(to_json(result), sys.stdout, indent=2)
        print()
    else:
        print(to_text(result))
    if not result.agrees:
        raise typer.Exit(1)


def _patches(names: list[str]) -> tuple[type[Any], ...]:
    from tdpmmu.cli import user_files as files
    from tdpmmu.versions.registry import UnknownName, patch_class

    found: list[type[Any]] = []
    for name in names:
        if files.is_file(name):
            path, cls = files.split(name)
            found.append(files.the_one("patch", path, cls, files.patches_in(path)))
            continue
        try:
            found.append(patch_class(name))
        except UnknownName as error:
            raise UsageError(str(error)) from None
    return tuple(found)
