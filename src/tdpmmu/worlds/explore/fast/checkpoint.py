"""A search kept in one file, so that it can be killed at any moment and go on later.

The arrays of a search only grow, so each checkpoint appends what is new, with a checksum, and
replaces the figures, in one transaction.  What threads can do is not kept but worked out again,
from a journal of the questions that were put to their code; the answers must be the same.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.distribute.kept import FAILURES, KeptError, KeptFile, line_of
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.control import Words
from tdpmmu.worlds.explore.fast.packing import Fields

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.fast.loop import CompiledLoop

FORMAT = 5
PIECE = 1 << 18
"""Words in one row of the data base: few enough that their copies are nothing beside a search."""

KEPT = (c.CURRENT, c.COUNT, c.TRANSITIONS, c.DEPTH, c.LEVEL_ENDS, c.ENTRIES)
"""Fields of the control block that are kept."""


WORDS: dict[str, type[np.generic]] = {
    "order": np.uint8,
    "links": np.uint64,
    "values": np.uint32,
    "hashes": np.uint64,
    "pool": np.int64,
    "journal": np.int64,
}
"""What is kept, and as what."""


class CheckpointError(KeptError):
    """The file cannot be written, or is not what it should be: one line that says so."""


class Checkpoint(KeptFile):
    """One file.  ``identity`` says which search it is; ``every`` is in seconds."""

    error = CheckpointError
    kind = "a checkpoint"
    keeps = "a search"
    whole = "the last checkpoint in it is whole"

    def __init__(self, path: Path, identity: str, *, resume: bool, every: float = 60) -> None:
        self.every = every
        self._saved: dict[str, int] = {}
        self._last = time.monotonic()
        self.state: dict[str, list[int]] = {}
        self.mistrusted: list[str] = []
        super().__init__(path, identity, resume=resume)

    def _create(self, identity: str) -> None:
        self._db.execute("CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._db.execute(
            "CREATE TABLE words (name TEXT, start INTEGER, data BLOB NOT NULL, "
            "crc INTEGER NOT NULL, PRIMARY KEY (name, start))"
        )
        self._put("format", FORMAT)
        self._put("identity", identity)
        self._put_state({})

    def _open(self, identity: str) -> None:
        about = dict(self._db.execute("SELECT key, value FROM about").fetchall())
        try:
            known = {key: json.loads(value) for key, value in about.items()}
            if known["format"] != FORMAT:
                raise CheckpointError(
                    f"{self.path}: format {known['format']}, expected {FORMAT}"
                ) from None
            if known["identity"] != identity:
                raise CheckpointError(
                    f"{self.path}: is of another question, or the sources have changed since"
                ) from None
            if known["crc"] != zlib.crc32(about["state"].encode()):
                raise ValueError("crc")
            self.state, self.mistrusted = known["state"]
        except (KeyError, ValueError, TypeError, AttributeError):  # damage changes types, too
            raise CheckpointError(f"{self.path}: damaged: its description is not whole") from None

    def _put(self, key: str, value: object) -> None:
        self._db.execute("REPLACE INTO about VALUES (?, ?)", (key, json.dumps(value)))

    def _put_state(self, state: dict[str, list[int]]) -> None:
        value = json.dumps([state, self.mistrusted])
        self._db.execute("REPLACE INTO about VALUES ('state', ?)", (value,))
        self._put("crc", zlib.crc32(value.encode()))

    # --- writing ----------------------------------------------------------------------------------

    def restart(self, mistrusted: Sequence[str]) -> None:
        """The search begins anew, without these guards."""
        self._saved, self.mistrusted = {}, list(mistrusted)
        self._transaction({}, {}, list(WORDS))

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._last >= self.every

    def save(self, loop: CompiledLoop) -> None:
        """Append what is new since the last time."""
        ctl = loop.store.ctl
        state = {
            "control": ctl[list(KEPT)].tolist(),
            "shared": [int(ctl[c.SHARED])],
            "used": [int(ctl[c.USED])],
            "ended": loop.ended.tolist(),
            "journal": [len(loop.journal)],
            "facts": loop.learner.digest(),
            "fields": loop.store.fields.bits,
            "last_link": loop.store.links()[-1:].tolist(),
        }
        # Where states are packed in another way than before, all are written anew.
        repacked = state["fields"] != self.state.get("fields")
        self._transaction(state, self._arrays(loop), ["order"] if repacked else [])
        self._last = time.monotonic()

    def _transaction(
        self, state: dict[str, list[int]], arrays: dict[str, Words], anew: Sequence[str]
    ) -> None:
        """Write what is new of the arrays, or all of it (``anew``)."""
        saved = {name: size for name, size in self._saved.items() if name not in anew}
        with self.transaction() as db:
            for name in anew:
                db.execute("DELETE FROM words WHERE name = ?", (name,))
            for name, words in arrays.items():
                for start in range(saved.get(name, 0), len(words), PIECE):
                    data = words[start : start + PIECE].astype(WORDS[name], copy=False).tobytes()
                    db.execute(
                        "INSERT INTO words VALUES (?, ?, ?, ?)",
                        (name, start, data, zlib.crc32(data)),
                    )
            self._put_state(state)
        self.state = state
        self._saved = {name: len(words) for name, words in arrays.items()}

    @staticmethod
    def _arrays(loop: CompiledLoop) -> dict[str, Words]:
        store, known, ctl = loop.store, loop.known, loop.store.ctl
        return {
            "order": store.order,
            "links": store.links()[:-1],  # the last one may still change
            "values": known.values[: ctl[c.SHARED] * known.chunks],
            "hashes": known.hashes[: ctl[c.SHARED]],
            "pool": known.pool[: ctl[c.USED]],
            "journal": np.array(loop.journal, np.int64),
        }

    # --- reading ----------------------------------------------------------------------------------

    def _pieces(self, name: str) -> Iterator[Words]:
        """The words of one array, a row of the data base at a time."""
        dtype = np.dtype(WORDS[name])
        at = 0
        for start, data, crc in self._db.execute(
            "SELECT start, data, crc FROM words WHERE name = ? ORDER BY start", (name,)
        ):
            if type(data) is not bytes or zlib.crc32(data) != crc or start != at:
                raise CheckpointError(f"{self.path}: damaged: {name} at {start}")
            yield np.frombuffer(data, dtype)
            at += len(data) // dtype.itemsize

    def _sizes(self) -> dict[str, int]:
        """How many words of each array there are."""
        sizes = dict.fromkeys(WORDS, 0)
        for name, size in self._db.execute("SELECT name, sum(length(data)) FROM words GROUP BY 1"):
            if name in WORDS:
                sizes[name] = size // np.dtype(WORDS[name]).itemsize
        return sizes

    def restore(self, loop: CompiledLoop) -> None:
        """Fill a loop that has not begun with what was saved."""
        try:
            self._restore(loop)
        except FAILURES as error:
            raise CheckpointError(f"{self.path}: damaged: {line_of(error)}") from None

    def _restore(self, loop: CompiledLoop) -> None:
        ctl = loop.store.ctl
        ctl[list(KEPT)] = self.state["control"]
        ctl[c.SHARED], ctl[c.USED] = self.state["shared"][0], self.state["used"][0]
        loop.ended[:] = self.state["ended"]
        fields = Fields(self.state["fields"])
        expected = {
            "order": ctl[c.COUNT] * fields.width,
            "links": (ctl[c.COUNT] + ctl[c.CURRENT] - 1) // 64,
            "values": ctl[c.SHARED] * loop.known.chunks,
            "hashes": ctl[c.SHARED],
            "pool": ctl[c.USED],
            "journal": self.state["journal"][0],
        }
        sizes = self._sizes()
        for name, size in sizes.items():
            if size != expected[name]:
                raise CheckpointError(
                    f"{self.path}: damaged: {name} has {size} words, expected {expected[name]}"
                )
        loop.store.restore(
            fields.bits, self._pieces("order"), self._pieces("links"), self.state["last_link"][0]
        )
        loop.known.restore(*(self._pieces(name) for name in ("values", "hashes", "pool")))
        journal = [number for piece in self._pieces("journal") for number in piece.tolist()]
        try:
            loop.repeat(journal)
            same = loop.learner.digest() == self.state["facts"]
        except LookupError:  # a question about a position that no longer comes about
            same = False
        if not same:
            raise CheckpointError(f"{self.path}: the threads' code does not do what it did")
        self._saved = sizes
