"""``tdpmmu compare``: can two kernels be told apart?"""

from __future__ import annotations

from typing import Annotated

import typer

from tdpmmu.cli.errors import UsageError


def compare(
    one: Annotated[str, typer.Argument(help="KERNEL[+PATCH...], for example 5.12-rc4+a+b.")],
    other: Annotated[str, typer.Argument(help="The same for the other side.")],
    scenario: Annotated[str, typer.Option(help="nx-recovery, or FILE.py[:CLASS].")] = (
        "nx-recovery"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A scenario parameter, NAME=VALUE; repeatable."),
    ] = None,
    states: Annotated[int, typer.Option(help="Budget in states for each side.")] = 200_000,
) -> None:
    """Say whether two kernels or patches show the same in a scenario, or the run that differs.

    Example: tdpmmu compare 5.12 5.12-rc4+flush-on-nx-zap --set levels=2

    Exit codes: 0 equal, 1 different, 2 bad usage, 3 budget ran out.
    """
    from tdpmmu.cli.limits import budget_of
    from tdpmmu.cli.questions import make_question
    from tdpmmu.worlds.explore.compare import DIFFERENT, EQUAL
    from tdpmmu.worlds.explore.compare import compare as compare_graphs
    from tdpmmu.worlds.explore.search import explore

    parameters = parse_parameters(set_ or [])
    budget = budget_of(states=states)
    sides = []
    for text in (one, other):
        kernel, *patches = text.split("+")
        question = make_question(scenario, kernel, tuple(patches), parameters, "harm")
        explorer = explore(question.build().machine, budget=budget)
        if not explorer.result.exhausted:
            print(f"unknown: {text}: {explorer.result.stopped}")
            raise typer.Exit(3)
        sides.append(explorer)
    found = compare_graphs(sides[0], sides[1])
    figures = f"{len(sides[0].order):,} and {len(sides[1].order):,} states"
    if found.answer == EQUAL:
        print(f"equal: both show the same in every interleaving ({figures})")
        return
    if found.answer != DIFFERENT:
        print(f"unknown: {found.pairs:,} pairs looked at without an answer ({figures})")
        raise typer.Exit(3)
    who = one if found.shown_by == "first" else other
    print(f"different: after the same run only {who} can show the last step ({figures})")
    for number, (thread, event) in enumerate(found.run, 1):
        print(f"{number:4d}  {thread:14s} {event}")
    raise typer.Exit(1)


def parse_parameters(texts: list[str]) -> dict[str, object]:
    """``NAME=VALUE`` pairs; numbers and true/false are recognised."""
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text}: write NAME=VALUE")
        word = value.lower()
        if word in ("true", "false"):
            found[name.replace("-", "_")] = word == "true"
        else:
            try:
                found[name.replace("-", "_")] = int(value, 0)
            except ValueError:
                found[name.replace("-", "_")] = value
    return found
