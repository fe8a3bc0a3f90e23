"""``tdpmmu check --mode`` and ``--storage``: searches that leave something out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question, Verdict
    from tdpmmu.worlds.explore.exploration import Budget
    from tdpmmu.worlds.explore.partly.situations import Search
    from tdpmmu.worlds.explore.reductions import Reduce
    from tdpmmu.worlds.explore.storage import Storage

OF_MODE = {
    "exhaustive": (),
    "pct": ("depth", "runs", "seed"),
    "context-bounded": ("switches",),
}
"""Which options each mode has."""

DEFAULTS = {"depth": 3, "runs": 1000, "seed": 0, "switches": 2}

MOST_MIB = 1 << 24
"""A table of more is not to be had: half of it is a sixteenth of the address space."""


def search_of(mode: str, given: dict[str, int | None]) -> Search | None:
    """The search that the options ask for, None for the exhaustive one; UsageError otherwise."""
    if mode not in OF_MODE:
        raise UsageError(f"--mode {mode}: expected {', '.join(OF_MODE)}")
    for name, value in given.items():
        if value is not None and name not in OF_MODE[mode]:
            its = next(other for other, names in OF_MODE.items() if name in names)
            raise UsageError(f"--{name} is of --mode {its}")
    if mode == "exhaustive":
        return None
    from tdpmmu.scenarios.partly import few_switches, random_runs

    numbers = {
        name: DEFAULTS[name] if (value := given[name]) is None else value for name in OF_MODE[mode]
    }
    try:
        if mode == "pct":
            return random_runs(numbers["depth"], numbers["runs"], numbers["seed"])
        return few_switches(numbers["switches"])
    except ValueError as error:
        raise UsageError(str(error)) from None


def run(
    question: Question, search: Search, budget: Budget, *, first: bool, reduce: Reduce
) -> Verdict:
    """Search; errors in the user's code are one line."""
    from tdpmmu.arch.table import PoolExhausted
    from tdpmmu.scenarios.partly import ask_partly
    from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition

    try:
        return ask_partly(question, search, budget=budget, first=first, reduce=reduce)
    except (UnsupportedPosition, PoolExhausted) as error:
        raise UsageError(str(error)) from None


def storage_of(kind: str, memory: int) -> Storage | None:
    """The set of states that ``--storage`` asks for, None for the exact one; UsageError otherwise.

    Its table takes half of the budget of memory.
    """
    from tdpmmu.worlds.explore.search import can_compile
    from tdpmmu.worlds.explore.storage import DEFAULT_MIB, EXACT, STORAGES, Storage

    if kind not in STORAGES:
        raise UsageError(f"--storage {kind}: expected {', '.join(STORAGES)}")
    if kind == EXACT:
        return None
    if not can_compile():
        raise UsageError(f"--storage {kind} needs numba: pip install 'tdpmmu[fast]'")
    if memory > MOST_MIB:
        raise UsageError(f"--storage {kind}: --memory {memory}: at most {MOST_MIB:,} MiB")
    return Storage(kind, (memory << 20) // 2 or DEFAULT_MIB << 20)


def refuse(wanted: str, asked: dict[str, bool]) -> None:
    """UsageError if one of these was asked for, which take something else."""
    for what, given in asked.items():
        if given:
            raise UsageError(f"{what} takes {wanted}")
