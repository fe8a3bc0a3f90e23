"""What conditions of searching together are for: programs in which they matter.

Here nobody is a thread of its own: before the leader begins, the other one has come as far as it
can.  So each run is like the next, and a condition that is changed shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toys import incr, make_machine

from tdpmmu.machine.op import Choose, WaitUntil, Write
from tdpmmu.machine.state import Layout
from tdpmmu.machine.thread import Machine
from tdpmmu.worlds.explore.search import COMPILED, explore

pytest.importorskip("numba")

from plainly import Plainly, noticed
from test_workers import compare, small, together  # noqa: F401 (batches of a few states)

from tdpmmu.worlds.explore.fast import crew, kernels, loop, store
from tdpmmu.worlds.explore.fast import helping as h
from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint
from tdpmmu.worlds.explore.fast.known import Known
from tdpmmu.worlds.explore.fast.store import Store

Patch = pytest.MonkeyPatch


def nobody_comes(microseconds: int) -> None:
    """Somebody waits."""
    raise AssertionError("waits for nobody")


def far_ahead(patch: Patch, plainly: Plainly) -> None:
    """The other one looks at all that is dealt out, and adds all that it can."""
    patch.setattr(h, "_sleep", nobody_comes)
    for name in ("deal", "_look_ahead", "_add_next", "add_rest"):
        patch.setattr(h, name, plainly(getattr(h, name)))
    patch.setattr(kernels, "advance", plainly(kernels.advance))
    lead = plainly(h.lead)
    others: list[Any] = []

    def start(self: crew.Crew) -> None:
        others[:] = self._lookings

    def led(*arguments: Any) -> int:
        search, _, batches, mailbox, size, end = arguments
        h.deal(mailbox, batches, size, end)
        for looking in others:
            while not mailbox[h.FULL] and (
                h._add_next(search.ctl, search.packed, batches, mailbox)
                or h._look_ahead(search, looking, batches, mailbox)
            ):
                pass
        code: int = lead(*arguments)
        return code

    patch.setattr(crew.Crew, "_start", start)
    patch.setattr(h, "lead", led)


def deadlocks() -> Machine:
    """Each thread sets a cell to whatever it likes, and one waits for ever if it likes 2."""
    layout = Layout()
    cells = tuple(layout.cell(f"x{i}", 0) for i in range(3))

    async def body(i: int) -> None:
        chosen = await Choose("?", (0, 1, 2))
        await Write(cells[i], chosen)
        if (i, chosen) == (0, 2):
            await WaitUntil(cells[i], 3)

    return make_machine(layout, [lambda i=i: body(i) for i in range(3)])


# --- programs -------------------------------------------------------------------------------------


def grows(patch: Patch, tmp_path: Path) -> None:
    """Arrays that begin with next to no room: all that lies ahead is thrown away as they grow."""
    patch.setattr(loop, "Store", lambda ctl: Store(ctl, states=8))
    patch.setattr(loop, "Known", lambda ctl, chunks: Known(ctl, chunks, shared=4))
    patch.setattr(store, "tight_bits", store.least_bits)
    assert together(compare(lambda: incr(3, 2), reduce=False)) > 5


def first_deadlock(patch: Patch, tmp_path: Path) -> None:
    """The first that is broken is a state that leads nowhere, in the middle of a batch."""
    assert together(compare(deadlocks, first=True)) > 1


def fails(patch: Patch, tmp_path: Path) -> None:
    """Something fails when not all is looked at; that is not lost for whoever goes on."""
    lead = h.lead

    def failing(*arguments: Any) -> int:
        search, looking, batches, mailbox, size, end = arguments
        h.deal(mailbox, batches, size, end)
        h._look_ahead(search, looking, batches, mailbox)
        stages = batches.about[h.STAGE :: h.ABOUT].tolist()
        if mailbox[h.TAKEN] < mailbox[h.DEALT] and h.SEEN not in stages:
            raise MemoryError
        code: int = lead(*arguments)
        return code

    with patch.context() as patched:
        patched.setattr(h, "lead", failing)
        keeper = Checkpoint(tmp_path / "x", "x", resume=False)
        with pytest.raises(MemoryError):
            explore(incr(3, 2), keeper=keeper, workers=2, reduce=False)
    keeper._db.close()
    whole = explore(incr(3, 2), loop=COMPILED, reduce=False)
    keeper = Checkpoint(tmp_path / "x", "x", resume=True)
    again = explore(incr(3, 2), keeper=keeper, workers=2, reduce=False)
    for figure in ("states", "transitions", "depth", "exhausted"):
        assert getattr(again.result, figure) == getattr(whole.result, figure)


PROGRAMS = grows, first_deadlock, fails


def run(program: Callable[..., None], patch: Patch, tmp_path: Path, plainly: Plainly) -> None:
    """Run it, in Python."""
    far_ahead(patch, plainly)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of hashes
        program(patch, tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_same(program: Callable[..., None], monkeypatch: Patch, tmp_path: Path) -> None:
    run(program, monkeypatch, tmp_path, Plainly())


# --- one condition taken away ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Without:
    """A compiled function with a piece of its source replaced, and the program that must notice."""

    program: Callable[..., None]
    function: Any
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.function.py_func.__name__}: {self.new or f'no {self.old}'}"


CHANGES = [
    Without(grows, h.deal, "        batches.about[of + STAGE] = WAITS\n", ""),
    Without(
        first_deadlock,
        h._cut,
        "max(about[of + FIRST] + next_one, ctl[CURRENT])",
        "about[of + FIRST] + next_one",
    ),
    Without(
        fails,
        h._cut,
        "mailbox[DEALT], mailbox[UPTO] = batch, about[of + FIRST]",
        "mailbox[DEALT] = batch",
    ),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_would_be_wrong(change: Without, monkeypatch: Patch, tmp_path: Path) -> None:
    plainly = Plainly((change.function, change.old, change.new))
    assert noticed(lambda: run(change.program, monkeypatch, tmp_path, plainly))


def test_what_lies_ahead_is_forgotten(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(crew, "forget", lambda looking: None)
    assert noticed(lambda: run(grows, monkeypatch, tmp_path, Plainly()))
