"""``tdpmmu explore``: drive a scenario by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdpmmu.cli.errors import UsageError


def explore(
    scenario: Annotated[str, typer.Argument(help="nx-recovery, script, or a FILE.py.")] = "script",
    kernel: Annotated[str, typer.Option("--kernel", "-k", help="See 'tdpmmu kernels'.")] = "6.12",
    patch: Annotated[
        list[str] | None,
        typer.Option("--patch", "-p", help="A patch by name, or FILE.py[:CLASS]; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any parameter of the scenario, NAME=VALUE; repeatable."),
    ] = None,
    save: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the key w writes a token.")
    ] = Path("run.token"),
) -> None:
    """Drive a scenario by hand: say who moves, see the state, go back, keep what you find.

    Example: tdpmmu explore script --set "threads=vcpu0: w0; host: unmap:0"

    Needs a terminal, and the package textual (pip install 'tdpmmu[tui]').

    Exit codes: 0 done, 2 bad usage.
    """
    import sys

    from tdpmmu.cli.check import make_question
    from tdpmmu.scenarios.by_hand import World

    question = make_question(scenario, kernel, tuple(patch or ()), {}, "all", tuple(settings or ()))
    try:
        from tdpmmu.tui.app import Explore
    except ImportError:
        raise UsageError("explore needs textual: pip install 'tdpmmu[tui]'") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("explore needs a terminal")
    Explore(World(question), save).run()
