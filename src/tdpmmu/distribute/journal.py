"""Results kept in one file as they come, so that a campaign can be killed and go on later.

Each result is written with a checksum in a transaction of its own, as soon as it is there: whoever
kills the process, or fills the disk, loses at most the tasks that were running.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdpmmu.distribute.executor import Executor, T
from tdpmmu.distribute.kept import KeptError, KeptFile

FORMAT = 2


class JournalError(KeptError):
    """The file cannot be written, or is not what it should be: one line that says so."""


class Journal(KeptFile):
    """One file.  ``identity`` says which tasks it is about, and on what code they depend."""

    error = JournalError
    kind = "a journal"
    keeps = "results"
    whole = "the results before it are whole"

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self.results: dict[int, Any] = {}
        super().__init__(path, identity, resume=resume)

    def _create(self, identity: str) -> None:
        db = self._db
        db.execute("CREATE TABLE journal (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute(
            "CREATE TABLE results (task INTEGER PRIMARY KEY, result TEXT NOT NULL, "
            "crc INTEGER NOT NULL)"
        )
        db.execute("INSERT INTO journal VALUES ('format', ?)", (str(FORMAT),))
        db.execute("INSERT INTO journal VALUES ('identity', ?)", (identity,))

    def _open(self, identity: str) -> None:
        about = dict(self._db.execute("SELECT key, value FROM journal").fetchall())
        if about.get("format") != str(FORMAT):
            raise JournalError(
                f"{self.path}: format {about.get('format', 'unknown')!s:.20}, expected {FORMAT}"
            )
        if about.get("identity") != identity:
            raise JournalError(f"{self.path}: is of other tasks, or the sources have changed since")
        for task, text, crc in self._db.execute("SELECT task, result, crc FROM results"):
            if not isinstance(text, str) or _crc(task, text) != crc:
                raise JournalError(f"{self.path}: damaged: the result of task {task}")
            self.results[task] = json.loads(text)

    def add(self, task: int, result: Any) -> None:
        """Keep a result, which is made of what JSON has."""
        text = json.dumps(result)
        with self.transaction() as db:
            db.execute("INSERT INTO results VALUES (?, ?, ?)", (task, text, _crc(task, text)))
        self.results[task] = json.loads(text)


def _crc(task: int, text: str) -> int:
    return zlib.crc32(f"{task} {text}".encode(errors="surrogatepass"))


def map_kept(
    executor: Executor,
    function: Callable[[T], Any],
    tasks: Sequence[T],
    journal: Journal | None,
    done: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """As :meth:`Executor.map_unordered`, but for tasks whose results are in the journal already.

    ``done`` hears of new results only.  Results come out as JSON has them, kept or not.
    """
    if journal is None:
        return executor.map_unordered(function, tasks, done)
    left = [number for number in range(len(tasks)) if number not in journal.results]

    def keep(index: int, result: Any) -> None:
        journal.add(left[index], result)
        if done is not None:
            done(left[index], result)

    executor.map_unordered(function, [tasks[number] for number in left], keep)
    return [journal.results[number] for number in range(len(tasks))]
