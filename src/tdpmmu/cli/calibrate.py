"""``tdpmmu simulate calibrate``: what a trace's timestamps say about costs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.simulation.calibrate import Measure

SHAKY = 0.5
"""Spread, as a part of the value, from which a value is called shaky."""


def calibrate(
    trace: Annotated[str, typer.Argument(help="A trace; - is stdin.")],
    out: Annotated[str | None, typer.Option("-o", "--out", help="Write costs as TOML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit costs to the timestamps of a real trace, and say which it does not tell.

    What is written with --out can be given to nx-recovery and dirty-log as --costs.

    Example: tdpmmu simulate calibrate trace.txt.xz -o costs.toml

    Exit codes: 0 done, 2 bad usage or a broken trace.
    """
    from tdpmmu.cli.output import whole_file
    from tdpmmu.simulation.calibrate import calibrate as measure
    from tdpmmu.simulation.cost_table import fitted, slowness, to_toml
    from tdpmmu.trace.opening import open_trace
    from tdpmmu.trace.records import TraceError
    from tdpmmu.worlds.simulate.costs import load_costs

    try:
        with open_trace(trace) as reader:
            found = measure(reader)
    except TraceError as error:
        raise UsageError(str(error)) from None
    shipped = load_costs()
    costs = fitted(found, shipped)
    slower = slowness(found, shipped)
    if as_json:
        plain = {"measures": [asdict(one) for one in found], "costs": costs, "slower": slower}
        json.dump(plain, sys.stdout, indent=1)
        print()
    else:
        print(to_text(trace, found, slower))
    if out is not None:
        with whole_file(out) as file:
            file.write(to_toml(trace, costs, slower).encode())


def to_text(name: str, found: list[Measure], slower: float | None) -> str:
    """For a terminal, without the final newline."""
    from tdpmmu.simulation.cost_table import warning
    from tdpmmu.simulation.units import show_ns

    lines = [f"{name}: what its timestamps tell", ""]
    for one in found:
        if one.ns is None:
            continue
        shaky = "  shaky" if one.spread_ns > SHAKY * one.ns else ""
        lines.append(
            f"  {one.name:27s}{show_ns(one.ns):>9s} +- {show_ns(one.spread_ns):9s}"
            f"{one.count:>7,} times  {one.what} ({one.how}){shaky}"
        )
    lines += ["", "What it does not tell (the shipped costs stay):", ""]
    lines += [f"  {one.name:27s}{one.what}" for one in found if one.ns is None]
    lines += ["", warning(slower)]
    return "\n".join(lines)
