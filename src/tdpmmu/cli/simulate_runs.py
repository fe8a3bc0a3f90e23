"""What the commands of ``tdpmmu simulate`` have in common: options, runs, what they show."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.output import refuse_unwritable

if TYPE_CHECKING:
    from rich.table import Table

    from tdpmmu.simulation.files import Experiment
    from tdpmmu.simulation.result import Result
    from tdpmmu.simulation.sweep import Run

FORMATS = ("png", "svg", "pdf")

Memory = Annotated[str | None, typer.Option(help="Size of the guest: 16G, 1T.")]
Vcpus = Annotated[int | None, typer.Option(min=1, max=4096, help="vCPUs of the guest.")]
Backing = Annotated[str | None, typer.Option(help="The host's pages: 4K, 2M or 1G.")]
Kernels = Annotated[str, typer.Option("--kernel", help="Kernels, NAME[+PATCH...], with commas.")]
Guests = Annotated[str, typer.Option("--guest", help="A TOML file, or a preset's name.")]
Until = Annotated[str | None, typer.Option(help="Virtual time: 60s, 10min, 1h.")]
Seeds = Annotated[str, typer.Option("--seed", help="Random seeds, with commas.")]
CostFile = Annotated[Path | None, typer.Option("--costs", help="TOML with costs of your own.")]
Plot = Annotated[list[str] | None, typer.Option("--plot", help="Draw into FILE.png, .svg or .pdf.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Parquet = Annotated[str | None, typer.Option("--parquet", help="Write a Parquet table.")]
Preempt = Annotated[
    bool | None,
    typer.Option("--preemption/--no-preemption", help="CONFIG_PREEMPTION of the host."),
]
HostCpus = Annotated[
    int | None,
    typer.Option(min=0, max=8192, help="CPUs that all threads share; 0: one for each thread."),
]
Noise = Annotated[
    bool | None,
    typer.Option("--noise/--no-noise", help="Ticks (1000 Hz) and interruptions of the host."),
]
Modes = Annotated[
    str, typer.Option("--mode", help="bitmap, manual or initially-set; more than one with commas.")
]
EagerSplit = Annotated[
    bool, typer.Option("--eager-split/--no-eager-split", help="eager_page_split.")
]
Pml = Annotated[bool, typer.Option("--pml/--no-pml", help="Page-modification logging.")]
Engine = Annotated[str, typer.Option(help="processes, local, dask, or tcp://host:8786.")]
Workers = Annotated[int, typer.Option(min=0, help="Runs at a time; 0: one for each core.")]


def described(
    guest: str,
    memory: str | None,
    vcpus: int | None,
    backing: str | None,
    until: str | None,
    preemption: bool | None,
    host_cpus: int | None,
    noise: bool | None,
) -> Experiment:
    """The file or preset, with what the command line says otherwise."""
    for module in ("numpy", "numba"):
        if find_spec(module) is None:
            raise UsageError(f"simulate needs {module}: pip install 'tdpmmu[simulate]'")
    from tdpmmu.simulation.files import read_experiment
    from tdpmmu.simulation.toml_file import FileError
    from tdpmmu.simulation.units import parse_bytes, parse_duration

    try:
        found = read_experiment(guest)
    except FileError as error:
        raise UsageError(str(error)) from None
    try:
        option = "--memory"
        size = parse_bytes(memory) if memory is not None else found.guest.memory_bytes
        option = "--until"
        until_ns = parse_duration(until) if until is not None else found.until_ns
        option = "the guest"
        changed = replace(
            found.guest,
            memory_bytes=size,
            vcpus=vcpus or found.guest.vcpus,
            backing=backing or found.guest.backing,
        )
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    knobs = found.knobs
    if preemption is not None:
        knobs = replace(knobs, preemption=preemption)
    if host_cpus is not None:
        knobs = replace(knobs, host_cpus=host_cpus)
    if noise is not None:
        knobs = replace(knobs, noise=noise, tick_hz=1000 if noise else 0)
    return replace(found.of(changed), knobs=knobs, until_ns=until_ns)


def numbers(option: str, text: str | None, otherwise: int) -> list[int]:
    """Whole numbers with commas."""
    if text is None:
        return [otherwise]
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UsageError(f"{option}: expected whole numbers with commas, not {text!r}")
    return [int(part) for part in parts]


def runs_of(
    experiment: Experiment,
    costs: Path | None,
    kernels: str,
    ratios: Sequence[int],
    periods: Sequence[int],
    seeds: Sequence[int],
) -> list[Run]:
    """Every combination of what there is to compare."""
    from tdpmmu.simulation.sweep import combinations
    from tdpmmu.versions.registry import UnknownName, named
    from tdpmmu.worlds.simulate.costs import CostsError, load_costs

    names = [name.strip() for name in kernels.split(",")]
    try:
        for name in names:
            named(name)
        table = load_costs(costs)
    except (UnknownName, CostsError) as error:
        raise UsageError(str(error)) from None
    try:
        return combinations(
            experiment, table, kernels=names, ratios=ratios, periods_ms=periods, seeds=seeds
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def modes_of(text: str) -> list[str]:
    """Ways to keep the dirty log, with commas."""
    from tdpmmu.simulation.guest import MODES

    modes = text.split(",")
    for one in modes:
        if one not in MODES:
            raise UsageError(f"--mode: expected {', '.join(MODES)}, not {one!r}")
    return modes


def logged_runs(
    experiment: Experiment,
    costs: Path | None,
    kernels: str,
    modes: Sequence[str],
    eager_split: bool,
    pml: bool,
    seed: str,
) -> list[Run]:
    """A run for each way to keep the dirty log, kernel and seed."""
    seeds = numbers("--seed", seed, 1)
    runs: list[Run] = []
    for one in modes:
        knobs = replace(experiment.knobs, dirty_log=one, eager_split=eager_split, pml=pml)
        chosen = replace(experiment, knobs=knobs)
        runs += runs_of(chosen, costs, kernels, [knobs.ratio], [knobs.period_ms], seeds)
    return runs


def run_all(runs: list[Run], engine: str, workers: int) -> list[Result]:
    """Do them, with a progress bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tdpmmu.distribute.executor import DistributeError
    from tdpmmu.simulation.sweep import sweep

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        bar = progress.add_task("runs", total=len(runs))
        try:
            return sweep(runs, engine, workers, lambda _, __: progress.advance(bar))
        except DistributeError as error:
            raise UsageError(str(error)) from None


def run_and_show(
    runs: list[Run],
    engine: str,
    workers: int,
    as_json: bool,
    plots: Sequence[str],
    parquet: str | None,
    show: Callable[[list[Result]], None] | None = None,
) -> None:
    """Run all, show all; what cannot be written is refused before anything is run.

    ``show``: what to print, if it is about migrations.
    """
    for path in plots:
        _form(path)
        _needs("--plot", "matplotlib", "plots")
    if parquet is not None:
        _needs("--parquet", "pyarrow", "parquet")
    for path in (*plots, *([] if parquet is None else [parquet])):
        refuse_unwritable(path)
    results = run_all(runs, engine, workers)
    if as_json:
        from tdpmmu.simulation.export import to_json

        json.dump(to_json(results), sys.stdout, indent=1)
        print()
    elif show is not None:
        show(results)
    else:
        _show(results)
    _write(results, plots, parquet)


def _needs(option: str, module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"{option} needs {module}: pip install 'tdpmmu[{extra}]'")


def _show(results: list[Result]) -> None:
    from tdpmmu.simulation.answer import answers
    from tdpmmu.simulation.show import NOTES, causes, table

    print_tables((table(results), causes(results)), NOTES)
    for number, sentence in enumerate(answers(results)):
        print(sentence if number else f"\n{sentence}")


def print_tables(tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Tables, and what their columns mean."""
    from rich.console import Console

    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    for table in tables:
        console.print(table)
        console.print()
    for note in notes:
        print(note)


def _write(results: list[Result], plots: Sequence[str], parquet: str | None) -> None:
    from tdpmmu.cli.output import whole_file
    from tdpmmu.simulation.export import write_parquet

    for path in plots:
        _draw(results, path)
    if parquet is not None:
        with whole_file(parquet) as file:
            write_parquet(results, file)


def _form(path: str) -> str:
    """What kind of picture a file's name asks for."""
    form = Path(path).suffix.lstrip(".").lower()
    if form not in FORMATS:
        raise UsageError(f"--plot: expected a file that ends with {', '.join(FORMATS)}: {path!r}")
    return form


def _draw(results: list[Result], path: str) -> None:
    from tdpmmu.cli.output import whole_file
    from tdpmmu.simulation.plots import plot, plot_migrations

    draw = plot_migrations if all(one.migrated is not None for one in results) else plot
    with whole_file(path) as file:
        draw(results, file, _form(path))
