"""``tdpmmu zoo``: real upstream bugs, put back and found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.limits import budget_of, check_width
from tdpmmu.cli.tasks import Engine, Keep, Resume, Workers, run_tasks

if TYPE_CHECKING:
    from tdpmmu.scenarios.zoo.run import Answer


def zoo(
    entry: Annotated[str | None, typer.Argument(help="One entry, as z6; none: all.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the interleaving that shows the bug.")
    ] = False,
    only_list: Annotated[bool, typer.Option("--list", help="List without exploring.")] = False,
    seconds: Annotated[float, typer.Option("--time", help="Budget of a side, in seconds.")] = 120,
    workers: Workers = 0,
    engine: Engine = "processes",
    checkpoint: Keep = None,
    resume: Resume = None,
    width: Annotated[int, typer.Option(help="Columns of the interleaving.")] = 80,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put each real bug back and find it; hold its fix, and every later kernel, clean.

    Example: tdpmmu zoo z6 --explain

    Exit codes: 0 all as expected, 1 something is not, 2 bad usage, 130 Ctrl-C.
    """
    from tdpmmu.scenarios.zoo import entries
    from tdpmmu.scenarios.zoo import entry as find
    from tdpmmu.scenarios.zoo.run import Answer, sides

    budget = budget_of(seconds=seconds)
    check_width(width)
    try:
        chosen = entries() if entry is None else (find(entry),)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if only_list:
        _list(chosen, as_json)
        return
    if explain:
        if entry is None:
            raise UsageError("--explain: name one entry, as in: tdpmmu zoo z6 --explain")
        raise typer.Exit(_explain(entry, budget, width))
    tasks = [[one.id, side, seconds] for one in chosen for side in sides(one.id)]
    found = run_tasks(
        _ask,
        tasks,
        "sides",
        engine=engine,
        workers=workers,
        checkpoint=checkpoint,
        resume=resume,
    )
    answers = [Answer(**{**one, "properties": tuple(one["properties"])}) for one in found]
    if as_json:
        import json

        print(json.dumps([dataclasses.asdict(a) for a in answers], indent=2))
    else:
        _print(chosen, answers, whole=entry is None)
    raise typer.Exit(0 if all(answer.right for answer in answers) else 1)


def _list(chosen: tuple[Any, ...], as_json: bool) -> None:
    from tdpmmu.scenarios.zoo.not_expressed import NOT_EXPRESSED

    if as_json:
        import json

        keys = ("id", "title", "commit", "fixed", "kernel", "prop", "mechanism", "fix_of")
        print(json.dumps([{k: getattr(one, k) for k in keys} for one in chosen], indent=2))
        return
    for one in chosen:
        print(f"{one.id:10s} {one.fixed:5s} {one.commit:12s}  {one.prop:22s} {one.title}")
    if len(chosen) > 1:
        print(f"\n{len(chosen)} entries; {len(NOT_EXPRESSED)} bugs that the model cannot say")


def _ask(task: list[Any]) -> dict[str, Any]:
    """One side, asked in whatever process."""
    from tdpmmu.scenarios.zoo.run import answer
    from tdpmmu.worlds.explore.exploration import Budget

    name, side, seconds = task
    return dataclasses.asdict(answer(name, side, Budget(0, seconds, 0)))


def _print(chosen: tuple[Any, ...], answers: list[Answer], *, whole: bool) -> None:
    import shutil
    import textwrap

    from tdpmmu.scenarios.zoo.not_expressed import NOT_EXPRESSED
    from tdpmmu.scenarios.zoo.run import BUG, FIXED

    columns = max(72, shutil.get_terminal_size((100, 24)).columns)
    found = clean = others = alarms = 0
    for one in chosen:
        mine = {answer.side: answer for answer in answers if answer.id == one.id}
        bug, fixed = mine[BUG], mine[FIXED]
        print(f"{one.id:10s} {one.title}")
        commit = f" ({one.commit})" if one.commit else ""
        print(f"           fixed in {one.fixed}{commit}; {one.kernel} explored")
        verdict = "found" if bug.right else f"NOT FOUND ({bug.status})"
        print(f"           bug {verdict}: {one.prop}; {bug.states:,} states, {bug.seconds:.1f} s")
        verdict = "clean" if fixed.right else f"NOT CLEAN ({fixed.sentence})"
        print(f"           fix {verdict}: {fixed.states:,} states, {fixed.seconds:.1f} s")
        more = [answer for side, answer in mine.items() if side not in (BUG, FIXED)]
        if more:
            names = ", ".join(
                a.kernel if a.right else f"{a.kernel} NOT ({a.sentence})" for a in more
            )
            print(f"           clean on {names}")
        if not whole:
            print()
            print(textwrap.fill(one.mechanism, columns))
            if one.fix_of:
                print(f"\nThe fix of {one.fix_of} made it.")
            if bug.token:
                print(f"\nreplay with: tdpmmu explain {bug.token}")
        found += bug.right
        clean += fixed.right
        others += len(more)
        alarms += sum(not answer.right for answer in more) + (not fixed.right)
    if not whole:
        return
    print("\nnot expressed:")
    for missing in NOT_EXPRESSED:
        print(f"{missing.id:10s} {missing.title}"[:columns])
        indent = " " * 11
        print(
            textwrap.fill(missing.reason, columns, initial_indent=indent, subsequent_indent=indent)
        )
    total = sum(answer.seconds for answer in answers)
    print(
        f"\n{found} of {len(chosen)} bugs found, {clean} fixes clean, {others} runs on other "
        f"kernels, {alarms} false alarms; {total:.0f} s of exploration; "
        f"{len(NOT_EXPRESSED)} not expressed"
    )


def _explain(name: str, budget: Any, width: int) -> int:
    from tdpmmu.scenarios.showing import text_of
    from tdpmmu.scenarios.zoo import entry
    from tdpmmu.scenarios.zoo.run import BUG, explore_side

    one = entry(name)
    answer, _ = explore_side(name, BUG, budget)
    print(f"{one.id}: {one.title} ({one.commit or 'id unknown'}, {one.fixed})")
    print(one.mechanism)
    print()
    if not answer.token:
        print(f"not found: {answer.sentence}")
        return 1
    print(text_of(answer.token, width=width))
    print(f"\nreplay with: tdpmmu explain {answer.token}")
    return 0
