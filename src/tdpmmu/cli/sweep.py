"""``tdpmmu sweep``: one scenario with every combination of parameters, kernels and patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.tasks import Engine, Keep, Resume, Workers

if TYPE_CHECKING:
    from pathlib import Path


def sweep(
    scenario: Annotated[str, typer.Argument(help="A scenario by name, or FILE.py[:CLASS].")],
    kernel: Annotated[str, typer.Option("--kernel", "-k", help="Kernels, with commas.")] = "6.12",
    patch: Annotated[
        list[str] | None,
        typer.Option("--patch", "-p", help="A patch by name, or FILE.py[:CLASS]; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE,VALUE,...: all of these values; repeatable."),
    ] = None,
    properties: Annotated[str, typer.Option(help="harm, discipline or all.")] = "all",
    states: Annotated[int, typer.Option(help="Budget of each in states; 0: none.")] = 0,
    seconds: Annotated[float, typer.Option("--time", help="Budget of each in seconds.")] = 0,
    workers: Workers = 0,
    engine: Engine = "processes",
    checkpoint: Keep = None,
    resume: Resume = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a scenario with every combination of the values given.

    Example: tdpmmu sweep nx-recovery -k 5.12-rc4,5.12 --set vcpus=1,2

    Exit codes: 0 all hold, 1 some are violated, 2 bad usage, 3 a budget ran out, 4 some vacuous,
    130 Ctrl-C.
    """
    import json

    from tdpmmu.cli.limits import budget_of
    from tdpmmu.cli.tasks import run_tasks
    from tdpmmu.scenarios.question import BUDGET, EXIT_CODES, HOLDS, VACUOUS, VIOLATED

    budget_of(states=states, seconds=seconds)
    grid = _grid(settings or [])
    tasks = [
        [scenario, name, patch or [], values, properties, states, seconds]
        for name in kernel.split(",")
        for values in grid
    ]
    for task in tasks:
        _question(task)
    results = run_tasks(
        answer,
        tasks,
        "questions",
        engine=engine,
        workers=workers,
        checkpoint=checkpoint,
        resume=resume,
        files=_files(scenario, *(patch or ())),
    )
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _print(tasks, results)
    verdicts = {result["verdict"] for result in results}
    worst = next(one for one in (VIOLATED, BUDGET, VACUOUS, HOLDS) if one in verdicts)
    raise typer.Exit(1 if worst == VIOLATED else EXIT_CODES[worst])


def answer(task: list[Any]) -> dict[str, Any]:
    """One question, asked in whatever process."""
    from tdpmmu.cli.searching import run
    from tdpmmu.cli.verdicts import to_json
    from tdpmmu.scenarios.question import heeded
    from tdpmmu.worlds.explore.exploration import Budget

    *_, states, seconds = task
    verdict = run(_question(task), Budget(states, seconds), first=False, reduce=True)
    return to_json(heeded(verdict))


def _question(task: list[Any]) -> Any:
    from tdpmmu.cli.questions import make_question

    scenario, kernel, patches, values, properties, *_ = task
    return make_question(scenario, kernel, tuple(patches), {}, properties, tuple(values))


def _grid(settings: list[str]) -> list[list[str]]:
    from itertools import product

    axes: dict[str, list[str]] = {}
    for text in settings:
        name, equals, values = text.partition("=")
        if not equals or not all(values.split(",")):
            raise UsageError(f"--set: expected NAME=VALUE,VALUE,..., not {text!r}")
        name = name.replace("-", "_")
        if name in axes:
            raise UsageError(f"--set {name}: is there already; expected NAME=VALUE,VALUE,... once")
        axes[name] = [f"{name}={value}" for value in values.split(",")]
    return [list(point) for point in product(*axes.values())]


def _files(*specs: str) -> list[Path]:
    from pathlib import Path

    from tdpmmu.cli.user_files import is_file, split

    return [Path(split(spec)[0]) for spec in specs if is_file(spec)]


def _print(tasks: list[list[Any]], results: list[dict[str, Any]]) -> None:
    for task, result in zip(tasks, results, strict=True):
        _, kernel, _, values, *_ = task
        where = " ".join([kernel, *values])
        print(f"{where}: {result['sentence']} ({result['states']:,} states)")
        for found in result["violations"]:
            print(f"    {found['property']}: tdpmmu explain {found['token']}")
