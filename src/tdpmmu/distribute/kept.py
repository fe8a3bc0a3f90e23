"""One SQLite file which one process has at a time, and which is whole at every moment.

What is written is a transaction: whoever kills the process, or fills the disk, leaves the last one.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class KeptError(Exception):
    """The file cannot be written, or is not what it should be: one line that says so."""


FAILURES = (sqlite3.Error, UnicodeError)
"""What SQLite raises; what it says of a damaged file may itself be no text."""


def line_of(error: Exception) -> str:
    """What one of them says, whatever is quoted in it."""
    return " ".join(str(error).split())[:200]


class KeptFile(ABC):
    """A file that is made (or, to ``resume``, gone on with) for what ``identity`` says."""

    error: ClassVar[type[KeptError]]
    kind: ClassVar[str]
    """What the file is."""
    keeps: ClassVar[str]
    """What is kept in it."""
    whole: ClassVar[str]
    """What is still there when something could not be written."""

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self.path = path
        if resume and not path.is_file():
            raise self.error(f"{path}: no such file to resume from")
        if not resume and path.exists():
            raise self.error(f"{path}: is there already; --resume goes on with it")
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1)
            there = path.stat()
            self._file = there.st_dev, there.st_ino
        except (sqlite3.Error, OSError) as error:
            raise self.error(f"{path}: cannot be written: {line_of(error)}") from None
        try:
            self._begin(identity, resume)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _create(self, identity: str) -> None:
        """Make the tables."""

    @abstractmethod
    def _open(self, identity: str) -> None:
        """Read what is there."""

    def _begin(self, identity: str, resume: bool) -> None:
        db = self._db
        try:
            # Whoever keeps something in the file has it alone, until the process ends.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("BEGIN IMMEDIATE")
            new = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if resume and not new:
                self._open(identity)
            else:  # resumed: it was killed before anything was written
                self._create(identity)
            db.execute("COMMIT")
        except FAILURES as error:
            what = f"not {self.kind}, or damaged" if resume else "cannot be written"
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                what = f"another process keeps {self.keeps} in it"
            raise self.error(f"{self.path}: {what}: {line_of(error)}") from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written in this, or nothing of it."""
        self._still_there()
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            told = line_of(error)
            raise self.error(f"{self.path}: not written: {told}; {self.whole}") from None
        except FAILURES as error:
            raise self.error(f"{self.path}: damaged: {line_of(error)}") from None
        finally:  # Ctrl-C comes here, too
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _still_there(self) -> None:
        """Nobody finds what is written to a file that was removed, or replaced."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise self.error(f"{self.path}: not written: {error.strerror}") from None
        if (now.st_dev, now.st_ino) != self._file:
            raise self.error(f"{self.path}: not written: another file is in its place")

    def close(self) -> None:
        """Let others have the file."""
        self._db.close()
