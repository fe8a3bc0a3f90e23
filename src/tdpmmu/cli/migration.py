"""``tdpmmu simulate migration``: does a migration converge, and what does it cost the guest?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.simulate_runs import (
    Backing,
    CostFile,
    EagerSplit,
    Engine,
    Guests,
    HostCpus,
    Json,
    Kernels,
    Memory,
    Modes,
    Noise,
    Parquet,
    Plot,
    Pml,
    Preempt,
    Seeds,
    Vcpus,
    Workers,
    described,
    logged_runs,
    modes_of,
    print_tables,
    run_and_show,
)

if TYPE_CHECKING:
    from tdpmmu.simulation.result import Result
    from tdpmmu.simulation.sweep import Run

MARGIN_NS = 10**9
DAY = 24 * 3600


def migration(
    memory: Memory = None,
    vcpus: Vcpus = None,
    backing: Backing = None,
    kernel: Kernels = "6.12",
    bandwidth: Annotated[
        str, typer.Option(help="Bytes a second, with commas: 1.25G is what 10 Gbit/s carry.")
    ] = "1.25G",
    downtime: Annotated[
        str, typer.Option(help="How long the guest may stand still in the end.")
    ] = "300ms",
    stop_below: Annotated[
        str | None, typer.Option(help="Bytes that may be left then, instead of --downtime.")
    ] = None,
    max_passes: Annotated[int, typer.Option(min=1, help="Passes before it is given up.")] = 30,
    mode: Modes = "bitmap",
    eager_split: EagerSplit = True,
    pml: Pml = False,
    guest: Guests = "server",
    seed: Seeds = "1",
    preemption: Preempt = None,
    host_cpus: HostCpus = None,
    noise: Noise = None,
    costs: CostFile = None,
    plot: Plot = None,
    as_json: Json = False,
    parquet: Parquet = None,
    engine: Engine = "processes",
    workers: Workers = 0,
) -> None:
    """Whether a live migration converges, how long it takes, and what the guest notices.

    Example: tdpmmu simulate migration --memory 256M --plot passes.png

    Exit codes: 0 done, whether it converges or not; 2 bad usage.
    """
    from tdpmmu.simulation.guest import Migrate
    from tdpmmu.simulation.units import LARGEST, parse_bytes, parse_ns
    from tdpmmu.simulation.workloads.host import MigrationWork

    found = described(guest, memory, vcpus, backing, None, preemption, host_cpus, noise)
    modes = modes_of(mode)
    runs: list[Run] = []
    for text in bandwidth.split(","):
        option = "--bandwidth"
        try:
            speed = parse_bytes(text)
            if found.guest.memory_bytes > speed * DAY:
                raise ValueError(f"{text} a second send all memory in more than a day")
            option = "--downtime"
            still = parse_ns(downtime)
            option = "--stop-below"
            left = speed * still // 10**9 if stop_below is None else parse_bytes(stop_below)
            option = "--bandwidth"
            plan = Migrate(speed, left, max_passes)
            option = "--guest"
            experiment = found.with_host(MigrationWork(plan))
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
        longest = found.guest.memory_bytes * 10**9 // speed
        until_ns = min((max_passes + 1) * (longest + MARGIN_NS), LARGEST)
        experiment = replace(experiment, until_ns=until_ns)
        runs += logged_runs(experiment, costs, kernel, modes, eager_split, pml, seed)
    run_and_show(runs, engine, workers, as_json, plot or [], parquet, _show)


def _show(results: list[Result]) -> None:
    from tdpmmu.simulation.show_migration import NOTES, passes, table

    print_tables((table(results), passes(results)), NOTES)
