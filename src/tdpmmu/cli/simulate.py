"""``tdpmmu simulate``: what a knob costs a guest, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from tdpmmu.cli.calibrate import calibrate
from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.migration import migration
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
    Until,
    Vcpus,
    Workers,
    described,
    logged_runs,
    modes_of,
    numbers,
    run_and_show,
    runs_of,
)

simulate_app = typer.Typer(
    help="What a knob costs a guest, in virtual time.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
simulate_app.command()(calibrate)
simulate_app.command()(migration)


@simulate_app.callback()
def _simulate() -> None:
    """What a knob costs a guest, in virtual time."""


@simulate_app.command()
def presets() -> None:
    """List the shipped guests.

    Example: tdpmmu simulate presets

    Exit code: 0.
    """
    from tdpmmu.simulation.files import presets as shipped

    for name, what in shipped().items():
        print(f"{name:18s} {what}")


@simulate_app.command("nx-recovery")
def nx_recovery(
    memory: Memory = None,
    vcpus: Vcpus = None,
    backing: Backing = None,
    kernel: Kernels = "6.12,6.18",
    ratio: Annotated[
        str | None, typer.Option(help="nx_huge_pages_recovery_ratio, with commas; 0: off.")
    ] = None,
    period_ms: Annotated[
        str | None, typer.Option(help="..._period_ms, with commas; 0: an hour divided by ratio.")
    ] = None,
    guest: Guests = "server",
    until: Until = None,
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
    """What recovery of NX huge pages costs vCPUs, and what it gives them.

    Example: tdpmmu simulate nx-recovery --memory 4G --ratio 0,60 --plot nx.png

    Exit codes: 0 done, 2 bad usage.
    """
    experiment = described(guest, memory, vcpus, backing, until, preemption, host_cpus, noise)
    knobs = experiment.knobs
    runs = runs_of(
        experiment,
        costs,
        kernel,
        numbers("--ratio", ratio, knobs.ratio),
        numbers("--period-ms", period_ms, knobs.period_ms),
        numbers("--seed", seed, 1),
    )
    run_and_show(runs, engine, workers, as_json, plot or [], parquet)


@simulate_app.command("dirty-log")
def dirty_log(
    memory: Memory = None,
    vcpus: Vcpus = None,
    backing: Backing = None,
    kernel: Kernels = "6.12,6.18",
    rounds: Annotated[int, typer.Option(min=1, help="How often the log is fetched.")] = 10,
    every: Annotated[str, typer.Option(help="From one fetch to the next.")] = "1s",
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
    """What dirty logging costs vCPUs: on, fetched round by round as in a migration, off.

    Example: tdpmmu simulate dirty-log --memory 1G --mode bitmap,manual

    Exit codes: 0 done, 2 bad usage.
    """
    from tdpmmu.simulation.units import LARGEST, parse_duration
    from tdpmmu.simulation.workloads.host import HostWork

    try:
        every_ns = parse_duration(every)
        if (rounds + 3) * every_ns > LARGEST:
            raise ValueError(f"{rounds} rounds of {every} are more than 36 years")
    except ValueError as error:
        raise UsageError(f"--every: {error}") from None
    modes = modes_of(mode)
    until_ns = (rounds + 3) * every_ns
    experiment = described(guest, memory, vcpus, backing, None, preemption, host_cpus, noise)
    work = HostWork("dirty-log", every_ns, every_ns, rounds)
    try:
        experiment = replace(experiment, until_ns=until_ns).with_host(work)
    except ValueError as error:
        raise UsageError(str(error)) from None
    runs = logged_runs(experiment, costs, kernel, modes, eager_split, pml, seed)
    run_and_show(runs, engine, workers, as_json, plot or [], parquet)
