"""``tdpmmu explore``: drive a scenario by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.by_hand import World


def explore(
    scenario: Annotated[
        str,
        typer.Argument(
            help="nx-recovery, script, or a FILE.py; or a token, as TOKEN or @FILE, "
            "to start where its run ends."
        ),
    ] = "script",
    kernel: Annotated[
        str | None,
        typer.Option("--kernel", "-k", help="See 'tdpmmu kernels'; 6.12 unless given."),
    ] = None,
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

    From the end of a token's run, u goes back to where another order might matter.

    Needs a terminal, and the package textual (pip install 'tdpmmu[tui]').

    Exit codes: 0 done, 2 bad usage.
    """
    import re
    import sys

    from tdpmmu.cli.questions import make_question
    from tdpmmu.scenarios.by_hand import World

    if re.match(r"@|tdpmmu\d+-", scenario):
        if kernel or patch or settings:
            raise UsageError("a token has its own kernel, patches and parameters: give none")
        world = _at_the_end_of(scenario)
    else:
        question = make_question(
            scenario, kernel or "6.12", tuple(patch or ()), {}, "all", tuple(settings or ())
        )
        world = World(question)
    try:
        from tdpmmu.tui.app import Explore
    except ImportError:
        raise UsageError("explore needs textual: pip install 'tdpmmu[tui]'") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("explore needs a terminal")
    Explore(world, save).run()


def _at_the_end_of(text: str) -> World:
    from tdpmmu.cli.explain import read_token
    from tdpmmu.scenarios.by_hand import World
    from tdpmmu.scenarios.token import decode

    try:
        return World.at_the_end_of(decode(read_token(text)))
    except ValueError as error:
        raise UsageError(str(error)) from None
