"""Numbers on the command line: what is refused because it makes no sense, or cannot be kept to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.exploration import Budget

NARROWEST = 60
"""Columns below which an interleaving cannot be read."""


def check_width(columns: int) -> None:
    """UsageError if interleavings do not fit."""
    if columns < NARROWEST:
        raise UsageError(f"--width {columns}: at least {NARROWEST}")


def check_not_negative(
    option: str, number: float, expected: str = "a number that is not negative"
) -> None:
    """UsageError if it is negative, or no number."""
    if not number >= 0:  # nor is NaN
        raise UsageError(f"{option} {number}: expected {expected}")


def budget_of(*, states: int = 0, seconds: float = 0, memory: int = 0) -> Budget:
    """The budget of ``--states``, ``--time`` and ``--memory``; UsageError if it is none."""
    from tdpmmu.worlds.explore.exploration import Budget

    for option, number in (("--states", states), ("--time", seconds), ("--memory", memory)):
        check_not_negative(option, number)
    return Budget(states, seconds, memory)


def check_memory(budget: int, needs: dict[str, int]) -> None:
    """UsageError if the budget is used up before the search begins.

    ``needs``: the MiB that each option takes at least, 0 if it was not given.
    """
    from tdpmmu.worlds.explore.memory import most_resident

    if not budget:
        return
    taken = most_resident() >> 20
    if budget <= taken:
        raise UsageError(
            f"--memory {budget}: {taken} MiB are taken before the search begins; expected more"
        )
    for option, least in needs.items():
        if budget < least:
            raise UsageError(f"--memory {budget}: {option} needs {least} at least")
