"""``tdpmmu campaign``: random scenarios, as many as you have time for."""

from __future__ import annotations

from typing import Annotated

import typer

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.tasks import Engine, Keep, Resume, Workers

BATCH = 20
"""Scripts in one task: enough to be worth handing out, few enough to lose."""


def campaign(
    kernel: Annotated[str, typer.Option("--kernel", "-k", help="Kernels, with commas.")] = (
        "6.12,6.18"
    ),
    count: Annotated[int, typer.Option(help="Scripts to draw, for each kernel.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same scripts.")] = 1,
    states: Annotated[int, typer.Option(help="Budget of one script, in states.")] = 200_000,
    workers: Workers = 0,
    engine: Engine = "processes",
    checkpoint: Keep = None,
    resume: Resume = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hold random scenarios to every property; what breaks one is shrunk, with its token.

    What docs/findings.md explains is only counted.

    Example: tdpmmu campaign --count 10000 --checkpoint night.db

    Exit codes: 0 nothing new, 1 a property is broken, 2 bad usage, 130 Ctrl-C.
    """
    import json
    import time

    from tdpmmu.cli.tasks import run_tasks
    from tdpmmu.versions.registry import UnknownName, kernel_class

    try:
        from tdpmmu.scenarios.campaign import batches, run_batch, summarize
    except ImportError:
        raise UsageError("campaigns need Hypothesis: pip install 'tdpmmu[campaign]'") from None
    if count < 1 or states < 1 or seed < 0:
        raise UsageError("--count and --states: expected 1 or more; --seed: 0 or more")
    kernels = kernel.split(",")
    try:
        for name in kernels:
            kernel_class(name)
    except UnknownName as error:
        raise UsageError(str(error)) from None
    # Seeds of different campaigns do not run into each other.
    tasks = [batch for name in kernels for batch in batches(name, seed << 24, count, BATCH, states)]
    began = time.monotonic()
    results = run_tasks(
        run_batch,
        tasks,
        "batches",
        engine=engine,
        workers=workers,
        checkpoint=checkpoint,
        resume=resume,
    )
    summaries = summarize(results)
    if as_json:
        print(json.dumps([vars(one) for one in summaries], indent=2))
    else:
        for one in summaries:
            told = ", ".join(f"{n:,} {status}" for status, n in sorted(one.verdicts.items()))
            print(
                f"{one.kernel}: {one.explorations:,} explorations, {one.states:,} states, "
                f"largest {one.largest:,}: {told}"
            )
            for found in one.found:
                print(f"  {found['property']}: {found['sentence']}\n    {found['script']}")
                print(f"    replay with: tdpmmu explain {found['token']}")
        print(f"{time.monotonic() - began:.0f} s")
    raise typer.Exit(1 if any(one.found for one in summaries) else 0)
