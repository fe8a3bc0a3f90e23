"""Options and progress of the commands that have many tasks: zoo, sweep, campaign."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.distribute.journal import Journal

Workers = Annotated[int, typer.Option("--workers", help="Processes; 0: one for each core.")]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="processes, local, dask (a cluster on this machine), or tcp://HOST:PORT of a Dask "
        "scheduler; the answer is the same.",
    ),
]
Keep = Annotated[
    Path | None, typer.Option("--checkpoint", help="Keep results in this new file as they come.")
]
Resume = Annotated[
    Path | None, typer.Option("--resume", help="Go on with the tasks that this file lacks.")
]


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    what: str,
    *,
    engine: str,
    workers: int,
    checkpoint: Path | None = None,
    resume: Path | None = None,
    files: Iterable[Path] = (),
    done: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """The results, with a count on a terminal; what goes wrong outside of tasks is one line.

    Results, if they are kept, are made of what JSON has.  ``files`` are what they depend on
    beside this package.
    """
    import sys

    from tdpmmu.distribute.engines import open_executor
    from tdpmmu.distribute.executor import DistributeError
    from tdpmmu.distribute.journal import JournalError, map_kept

    journal = _journal(function, tasks, checkpoint, resume, files)
    ended = len(journal.results) if journal else 0
    terminal = sys.stderr.isatty()
    hint = f"; go on with --resume {checkpoint or resume}" if journal else ""

    def show(index: int, result: Any) -> None:
        nonlocal ended
        ended += 1
        if done is not None:
            done(index, result)
        if terminal:
            sys.stderr.write(f"\r{ended} of {len(tasks)} {what} \x1b[K")
            sys.stderr.flush()

    try:
        with open_executor(engine, min(workers, len(tasks))) as executor:
            return map_kept(executor, function, tasks, journal, show)
    except JournalError as error:
        raise UsageError(str(error)) from None
    except DistributeError as error:
        raise UsageError(f"{error}{hint}") from None
    except KeyboardInterrupt:
        print(f"interrupted after {ended} of {len(tasks)} {what}{hint}", file=sys.stderr)
        raise
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
        if journal is not None:
            journal.close()


def _journal(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    checkpoint: Path | None,
    resume: Path | None,
    files: Iterable[Path],
) -> Journal | None:
    import hashlib
    import json

    from tdpmmu.distribute.journal import Journal, JournalError
    from tdpmmu.distribute.sources import sources

    path = checkpoint or resume
    if path is None:
        return None
    if checkpoint is not None and resume is not None:
        raise UsageError("--resume goes on saving to its own file; leave --checkpoint out")
    asked = json.dumps([function.__module__, function.__qualname__, list(tasks), sources(files)])
    identity = hashlib.sha256(asked.encode()).hexdigest()
    try:
        return Journal(path, identity, resume=resume is not None)
    except JournalError as error:
        raise UsageError(str(error)) from None
