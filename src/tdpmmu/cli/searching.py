"""Putting a question to the explorer: how to search, and the file that the search is kept in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question, Verdict
    from tdpmmu.worlds.explore.engine import Explorer
    from tdpmmu.worlds.explore.exploration import Budget
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint
    from tdpmmu.worlds.explore.reductions import Reduce, Reductions
    from tdpmmu.worlds.explore.storage import Storage


def run(
    question: Question,
    budget: Budget,
    *,
    first: bool,
    reduce: Reduce,
    loop: str = "auto",
    keeper: Checkpoint | None = None,
    workers: int = 1,
    storage: Storage | None = None,
) -> Verdict:
    """Explore with progress on a terminal; errors in the user's code are one line."""
    import sys

    from tdpmmu.arch.table import PoolExhausted
    from tdpmmu.scenarios.question import ask
    from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
    from tdpmmu.worlds.explore.search import COMPILED, LOOPS, can_compile

    if loop not in LOOPS:
        raise UsageError(f"--loop: expected {', '.join(LOOPS)}, not {loop!r}")
    if loop == COMPILED and not can_compile():
        raise UsageError("--loop compiled needs numba: pip install 'tdpmmu[fast]'")
    workers = _workers(workers, loop)
    failures: tuple[type[Exception], ...] = (UnsupportedPosition, PoolExhausted)
    if keeper is not None:
        from tdpmmu.worlds.explore.fast.checkpoint import CheckpointError

        failures += (CheckpointError,)
    show = None
    if sys.stderr.isatty():

        def show(explorer: Explorer) -> None:
            result = explorer.result
            sys.stderr.write(
                f"\r{len(explorer.order):>12,} states, depth {result.depth}, "
                f"{len(result.violations)} violated {explorer.doing}\x1b[K"
            )
            sys.stderr.flush()

    try:
        return ask(
            question,
            budget=budget,
            first=first,
            reduce=reduce,
            progress=show,
            loop=loop,
            keeper=keeper,
            workers=workers,
            storage=storage,
        )
    except failures as error:
        raise UsageError(str(error)) from None
    finally:
        if show is not None:
            sys.stderr.write("\r\x1b[K")


def _workers(asked: int, loop: str) -> int:
    """How many threads are to search."""
    from tdpmmu.distribute.processes import cores
    from tdpmmu.worlds.explore.search import MOST_WORKERS, PLAIN, can_compile

    if asked < 0:
        raise UsageError(f"--workers: expected a number of threads, or 0 for all, not {asked}")
    workers = min(asked or cores(), MOST_WORKERS)
    if workers > 1:
        if loop == PLAIN:
            raise UsageError("--workers: the plain loop is one thread")
        if not can_compile():
            raise UsageError("--workers needs numba: pip install 'tdpmmu[fast]'")
    return workers


def reductions_of(names: str | None, reduce: bool) -> Reductions:
    """The reductions of ``--reductions`` and ``--no-reduce``."""
    from tdpmmu.worlds.explore.reductions import named, reductions

    if names is None:
        return reductions(reduce)
    if not reduce:
        raise UsageError("--reductions says which; --no-reduce means none: leave one of them out")
    try:
        return named(names)
    except ValueError as error:
        raise UsageError(f"--reductions: {error}") from None


def open_checkpoint(
    question: Question,
    new: Path | None,
    old: Path | None,
    every: float,
    options: tuple[bool, list[str]],
) -> Checkpoint:
    """The file that a search is kept in; it must be of this question, asked of the same sources."""
    import dataclasses
    import json

    from tdpmmu.scenarios.sources import fingerprint, sources_of
    from tdpmmu.worlds.explore.search import can_compile

    if not can_compile():
        raise UsageError("checkpoints need numba: pip install 'tdpmmu[fast]'")
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint, CheckpointError

    built = question.build()
    classes = [question.mmu_class, type(question.scenario)]
    classes += [type(ghost) for ghost in built.machine.ghosts]
    identity = json.dumps(
        [
            question.scenario_name or question.scenario.name,
            dataclasses.asdict(question.scenario),
            question.kernel,
            question.patches,
            question.properties,
            options,
            fingerprint(sources_of(classes)),
        ]
    )
    path = old or new
    assert path is not None
    try:
        return Checkpoint(path, identity, resume=old is not None, every=every)
    except CheckpointError as error:
        raise UsageError(str(error)) from None
