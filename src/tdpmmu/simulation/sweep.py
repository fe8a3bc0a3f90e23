"""Many runs: every combination of kernels and knobs, on all cores or on a cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tdpmmu.distribute.engines import open_executor, require_engine
from tdpmmu.simulation.files import Experiment
from tdpmmu.simulation.guest import Guest, Knobs, Workload
from tdpmmu.simulation.machine import Simulation
from tdpmmu.simulation.result import Result
from tdpmmu.worlds.simulate.costs import Costs


@dataclass(frozen=True)
class Run:
    """One simulation, as another process can be given it."""

    kernel: str
    guest: Guest
    knobs: Knobs
    costs: Costs
    workload: Workload
    until_ns: int
    seed: int
    bulk: bool = True


def combinations(
    experiment: Experiment,
    costs: Costs,
    *,
    kernels: Sequence[str],
    ratios: Sequence[int],
    periods_ms: Sequence[int],
    seeds: Sequence[int],
    bulk: bool = True,
) -> list[Run]:
    """Each kernel with each ratio, each period and each seed, in that order.

    A ratio of 0 has no period: it is taken once.
    """
    return [
        Run(
            kernel,
            experiment.guest,
            replace(experiment.knobs, ratio=ratio, period_ms=period),
            costs,
            experiment.workload,
            experiment.until_ns,
            seed,
            bulk,
        )
        for kernel, ratio, period, seed in itertools.product(kernels, ratios, periods_ms, seeds)
        if ratio or period == periods_ms[0]
    ]


def simulate(run: Run) -> Result:
    """Do one run."""
    simulation = Simulation(
        run.kernel, run.guest, run.knobs, run.costs, run.workload, run.seed, bulk=run.bulk
    )
    return simulation.run(run.until_ns)


def sweep(
    runs: Sequence[Run],
    engine: str = "processes",
    workers: int = 0,
    done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """The results, in the order of ``runs``, whatever the number of workers.

    ``done(index, result)`` is called as each ends.  DistributeError if the engine fails.
    """
    require_engine(engine)
    workers = min(workers, len(runs)) if workers else 0
    with open_executor(engine if len(runs) > 1 else "local", workers) as executor:
        return executor.map_unordered(simulate, runs, done)
