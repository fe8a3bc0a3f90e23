"""A whole search: with which loop, and again without what cannot be trusted."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.engine import Explorer, Progress
from tdpmmu.worlds.explore.exploration import INTERRUPTED, Budget
from tdpmmu.worlds.explore.memory import LEAST_COMPILED
from tdpmmu.worlds.explore.reductions import Reduce
from tdpmmu.worlds.explore.storage import Storage

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint

LOOPS = AUTO, PLAIN, COMPILED = "auto", "plain", "compiled"
"""Which loop searches."""

MANY = 1 << 12
"""States from which on compiled code is worth the time that it takes to load."""

MANY_TO_COMPILE = 1 << 16
"""The same where it has to be compiled first, which takes half a minute, once."""

LEAST_TO_COMPILE = 60
"""Seconds of a budget that leave something for the search after that."""

MOST_WORKERS = 8
"""Threads that can be of use: states are looked at by all of them, but added by one at a time."""


def can_compile() -> bool:
    """Whether the extra ``fast`` is installed."""
    return find_spec("numba") is not None


def _worth_it(budget: Budget, workers: int) -> int | None:
    """After how many states to go on in compiled code; None for never."""
    if not can_compile() or 0 < budget.memory < LEAST_COMPILED:
        return None
    from tdpmmu.worlds.explore.fast.kept import KEPT

    if not KEPT and 0 < budget.seconds < LEAST_TO_COMPILE:
        return None
    # Compiling takes memory, too: soon, or there may be none left for it.
    return MANY if KEPT or budget.memory or workers > 1 else MANY_TO_COMPILE


def explore(
    machine: Machine,
    *,
    reduce: Reduce = True,
    budget: Budget | None = None,
    first: bool | str = False,
    progress: Progress | None = None,
    loop: str = AUTO,
    keeper: Checkpoint | None = None,
    storage: Storage | None = None,
    workers: int = 1,
) -> Explorer:
    """Search ``machine``, to the end or to the first violation (of the property ``first``).

    It starts again without a guard that a thread does not keep to.  ``loop`` is whether to search
    in compiled code: from the start, never, or once there are many states, if numba is there and
    the budget has memory for it.
    What is found is the same.  ``keeper`` has it saved now and then, ``storage`` is a set of states
    that leaves some out, ``workers`` how many threads search (all compiled only).
    """
    from tdpmmu.worlds.explore.urgency import check_urgency

    compile_after = {PLAIN: None, COMPILED: 0}.get(loop, _worth_it(budget or Budget(), workers))
    mistrusted: list[str] = []
    if storage is not None:
        compile_after = 0
    if keeper is not None:
        compile_after = 0
        mistrusted += keeper.mistrusted
        machine.layout.distrust(mistrusted)
    while True:
        explorer = Explorer(
            machine,
            reduce=reduce,
            budget=budget,
            first=first,
            progress=progress,
            compile_after=compile_after,
            keeper=keeper,
            storage=storage,
            workers=workers,
        )
        try:
            explorer.run()
            check_urgency(explorer)
        except KeyboardInterrupt:
            explorer.result.stopped = INTERRUPTED
        except Mistrust as found:
            mistrusted += [name for name in str(found).split(", ") if name not in mistrusted]
            if keeper is not None:
                keeper.restart(mistrusted)
            continue
        except BaseException:
            if keeper is not None:
                keeper.close()
            raise
        explorer.result.mistrusted = tuple(mistrusted)
        if keeper is not None:
            keeper.close()
        return explorer
