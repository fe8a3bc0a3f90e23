"""``tdpmmu``: the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Annotated

import typer

from tdpmmu.cli.audit import audit, flushes
from tdpmmu.cli.campaign import campaign
from tdpmmu.cli.check import check
from tdpmmu.cli.compare import compare
from tdpmmu.cli.decode import CONTEXT_SETTINGS, decode
from tdpmmu.cli.entry import main
from tdpmmu.cli.explain import explain
from tdpmmu.cli.explore import explore
from tdpmmu.cli.kernels import kernels
from tdpmmu.cli.lab import lab_app
from tdpmmu.cli.record import record
from tdpmmu.cli.simulate import simulate_app
from tdpmmu.cli.sweep import sweep
from tdpmmu.cli.trace import trace_app
from tdpmmu.cli.zoo import zoo

app = typer.Typer(
    # Boxes around the help cost more time than all the rest of it.
    rich_markup_mode=None,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="Explore every interleaving of a scenario.")(check)
app.command(short_help="Replay a token: what each CPU does, step by step.")(explain)
app.command(short_help="Drive a scenario by hand.")(explore)
app.command(short_help="Can two kernels or patches be told apart?")(compare)
app.command(short_help="Explain SPTEs.", context_settings=CONTEXT_SETTINGS)(decode)
app.command(short_help="List the kernels and patches.")(kernels)
app.command(short_help="Real upstream bugs: find each, hold its fix clean.")(zoo)
app.command(short_help="Check every combination of parameters and kernels.")(sweep)
app.command(short_help="Random scenarios, held to every property.")(campaign)
app.command(short_help="Take each TLB flush away: was it needed?")(flushes)
app.command(short_help="The same for locks, RCU and zaps that may not yield.")(audit)
app.command(short_help="Record this machine's KVM for the trace commands.")(record)
app.add_typer(trace_app, name="trace", short_help="Read traces of real kernels.")
app.add_typer(
    simulate_app, name="simulate", short_help="What a knob costs a guest, in virtual time."
)
app.add_typer(lab_app, name="lab", short_help="Boot real kernels and trace them.")


@app.callback(invoke_without_command=True)
def tdpmmu(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """An executable model of KVM's x86 MMU, and tools that make it answer questions.

    Without a command: what it can do, with examples.
    """
    if version:
        from importlib.metadata import version as version_of

        print(f"tdpmmu {version_of('tdpmmu')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        from tdpmmu.cli.overview import show

        show()


@contextmanager
def options_of(wanted: str) -> Iterator[None]:
    """Leave the options of all commands but one out: reading them takes as long as the rest."""

    def nothing() -> None: ...

    commands, groups = app.registered_commands, app.registered_groups
    app.registered_commands, app.registered_groups = [*map(copy, commands)], [*map(copy, groups)]
    for command in app.registered_commands:
        assert command.callback is not None
        command.name = command.name or command.callback.__name__
        if command.name != wanted:
            command.callback = nothing
    for group in app.registered_groups:
        if group.name != wanted:
            group.typer_instance = typer.Typer()
    try:
        yield
    finally:
        app.registered_commands, app.registered_groups = commands, groups


if __name__ == "__main__":
    main()
