"""Actions of the NX recovery worker's life."""

from __future__ import annotations

from tdpmmu.scenarios.actions.base import Action, Context, Run, integer


def set_period(context: Context, text: str) -> Run:
    """``set-period:MS``: a write to ``nx_huge_pages_recovery_period_ms``."""
    period = integer(text, "period")
    return lambda: context.mmu.set_recovery_period(period)


def first_run(context: Context, text: str) -> Run:
    """``first-run``: a vCPU runs for the first time in its VM's life."""
    return lambda: context.mmu.first_run()


def nx_sleep(context: Context, text: str) -> Run:
    """``nx-sleep``: the worker sleeps for its period."""
    return lambda: context.mmu.worker_sleeps()


ACTIONS: dict[str, Action] = {
    "set-period": set_period,
    "first-run": first_run,
    "nx-sleep": nx_sleep,
}
