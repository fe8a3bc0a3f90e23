"""Sweeps: the same results to the last digit, whoever does the runs."""

from functools import cache

import pytest

from tdpmmu.simulation.files import Experiment
from tdpmmu.simulation.guest import Guest, Knobs
from tdpmmu.simulation.result import Result
from tdpmmu.simulation.sweep import Run, combinations, sweep
from tdpmmu.simulation.workloads.phases import Phase, PhasedWorkload
from tdpmmu.worlds.simulate.costs import load_costs


def runs() -> list[Run]:
    guest = Guest(32 << 20, 2)
    work = PhasedWorkload(guest, (Phase(executes=0.5, executed=0.5, visits_per_s=5000),))
    experiment = Experiment("sweep", Knobs(), work, 150_000_000)
    return combinations(
        experiment,
        load_costs(),
        kernels=["6.1", "6.18"],
        ratios=[60, 2],
        periods_ms=[0, 40],
        seeds=[1],
    )


@cache
def one_by_one() -> list[Result]:
    return sweep(runs(), "local")


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_any_engine_says_the_same(engine: str) -> None:
    if engine == "dask":
        pytest.importorskip("distributed")
    told: list[int] = []
    results = sweep(runs(), engine, 2, lambda index, _: told.append(index))
    assert sorted(told) == list(range(8))
    for mine, theirs in zip(one_by_one(), results, strict=True):
        assert mine.same_as(theirs) == []
    recovered = [result.counts.get("NxPageRecovered", 0) for result in results]
    assert recovered[3] > recovered[1] > 0
    assert results[3].same_as(results[7]) != []
