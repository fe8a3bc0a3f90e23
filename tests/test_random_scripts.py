"""A few random scripts, the same ones every time; the campaign is in benchmarks."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings

from tdpmmu.arch.table import PoolExhausted
from tdpmmu.scenarios.question import ask
from tdpmmu.scenarios.random_findings import FINDINGS, finding
from tdpmmu.scenarios.random_scripts import question, scripts
from tdpmmu.scenarios.random_shadow import shadow_scripts
from tdpmmu.scenarios.script import Script
from tdpmmu.worlds.explore.exploration import Budget

FEW = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def holds(script: Script, kernel: str) -> None:
    try:
        verdict = ask(question(script, kernel), budget=Budget(states=5_000))
    except PoolExhausted:
        return
    new = [found for found in verdict.violations if finding(script, found.prop) is None]
    assert not new, verdict.sentence()


def test_findings_are_written_up() -> None:
    text = (Path(__file__).parents[1] / "docs" / "findings.md").read_text()
    for one in FINDINGS:
        assert f"\n## {one.heading}\n" in text


def test_a_finding_does_not_explain_everything() -> None:
    assert finding(Script(threads="shadow0: cr3; vcpu1: w2"), "no-progress") is not None
    assert finding(Script(threads="shadow0: cr3 w2; vcpu1: r2"), "no-progress") is None
    assert finding(Script(threads="shadow0: cr3; vcpu1: w2"), "guest-translation") is None
    assert finding(Script(threads="shadow0: r0; shadow1: w0; t: zap-all-fast"), "no-progress")
    assert finding(Script(threads="shadow0: r0; shadow1: w0; t: unmap:0"), "no-progress") is None


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
