"""A few random scripts, the same ones every time; the campaign is in benchmarks."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tdpmmu.arch.table import PoolExhausted
from tdpmmu.scenarios.question import VIOLATED, Question, ask
from tdpmmu.scenarios.random_scripts import scripts
from tdpmmu.scenarios.random_shadow import shadow_scripts
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.registry import kernel_class
from tdpmmu.worlds.explore.engine import Budget

FEW = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def holds(script: Script, kernel: str) -> None:
    try:
        verdict = ask(Question(script, kernel_class(kernel), kernel), budget=Budget(states=5_000))
    except PoolExhausted:
        return
    assert verdict.status != VIOLATED, verdict.sentence()


@FEW
@given(scripts())
def test_the_latest_kernel_holds(script: Script) -> None:
    holds(script, "6.18")


@FEW
@given(scripts())
def test_the_kernel_before_it_holds(script: Script) -> None:
    holds(script, "6.12")


@FEW
@given(shadow_scripts())
def test_shadow_paging_holds(script: Script) -> None:
    holds(script, "6.18")
