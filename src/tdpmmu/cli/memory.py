"""``--memory``: what is refused because it cannot be kept to."""

from __future__ import annotations

from tdpmmu.cli.errors import UsageError


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
