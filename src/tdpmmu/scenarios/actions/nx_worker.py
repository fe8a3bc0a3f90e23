"""Actions of the NX recovery worker's life."""

from __future__ import annotations

from tdpmmu.scenarios.actions.base import Action, Context, Run, alone, integer


def set_period(context: Context, text: str) -> Run:
    """``set-period:MS``: a write to ``nx_huge_pages_recovery_period_ms``."""
    period = integer(text, "period")
    if period < 0:
        raise ValueError(f"period {text}: milliseconds, from 0")
    return lambda: context.mmu.set_recovery_period(period)


@alone
def first_run(context: Context) -> Run:
    """``first-run``: a vCPU runs for the first time in its VM's life."""
    return lambda: context.mmu.first_run()


@alone
def nx_sleep(context: Context) -> Run:
    """``nx-sleep``: the worker sleeps for its period."""
    return lambda: context.mmu.worker_sleeps()


ACTIONS: dict[str, Action] = {
    "set-period": set_period,
    "first-run": first_run,
    "nx-sleep": nx_sleep,
}
