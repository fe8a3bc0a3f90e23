"""From the plain loop to the compiled one, or from a checkpoint, and on to the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tdpmmu.worlds.explore.acts import Mistrust
from tdpmmu.worlds.explore.fast import control as c
from tdpmmu.worlds.explore.fast.kept import KEPT
from tdpmmu.worlds.explore.fast.known import SharedStates
from tdpmmu.worlds.explore.fast.loop import CompiledLoop
from tdpmmu.worlds.explore.fast.lossy_loop import LossyLoop
from tdpmmu.worlds.explore.fast.views import Flags, Numbers, Order, Packing, Parents, Table

if TYPE_CHECKING:
    from tdpmmu.worlds.explore.engine import Explorer


def go_on(
    explorer: Explorer,
    began: float,
    current: int,
    transitions: int,
    level_ends: int,
    ended: list[int],
) -> None:
    """The rest of a search, compiled."""
    if explorer.progress is not None and not KEPT:
        explorer.doing = "compiling, once"
        explorer.progress(explorer)
        explorer.doing = ""
    loop = CompiledLoop(explorer) if explorer.storage is None else LossyLoop(explorer)
    explorer.compiled = loop
    keeper = explorer.keeper
    if keeper is not None and keeper.state:
        _show(loop)
        keeper.restore(loop)
    else:
        _take_over(loop, current, transitions, level_ends, ended)
        _show(loop)
    try:
        loop.run(began)
    except Mistrust:
        raise  # nothing of this counts
    except BaseException:
        if keeper is not None and loop.whole:
            keeper.save(loop)
        raise
    if keeper is not None:
        keeper.save(loop)


def _take_over(
    loop: CompiledLoop, current: int, transitions: int, level_ends: int, ended: list[int]
) -> None:
    """Copy what the plain loop knows."""
    explorer, store, known = loop.explorer, loop.store, loop.known
    bits, mask, shift = explorer.bits, (1 << explorer.bits) - 1, explorer.shift
    shared = np.array([key >> shift for key in explorer.order], np.int64)
    columns = [
        np.array([key >> bits * t & mask for key in explorer.order], np.int64)
        for t in range(store.threads)
    ]
    parents = np.array([explorer.parents[number] for number in range(len(shared))], np.int64)
    for one in explorer.shared:
        known.intern(one)
    loop.make_room()
    store.fill(shared, np.stack(columns, axis=1), parents, current)
    for thread, table in enumerate(explorer._tables):
        flags_of = explorer._progress[thread]
        for lookup, entry in table.items():
            number, position = lookup >> bits, lookup & mask
            if isinstance(entry, int):
                known.add_entry(thread, number, position, c.BLOCKED, entry, [])
                continue
            flags = flags_of.get(lookup, 0)
            turns = [
                (
                    number + (((position << bits * thread) + delta) >> shift),
                    ((position << bits * thread) + delta) >> bits * thread & mask,
                    bool(flags >> i & 1),
                )
                for i, delta in enumerate(entry)
            ]
            kind = c.URGENT if type(entry) is list else c.FREE
            known.add_entry(thread, number, position, kind, len(turns), turns)
    loop.learner.tell()
    ctl = store.ctl
    ctl[c.TRANSITIONS], ctl[c.LEVEL_ENDS] = transitions, level_ends
    ctl[c.DEPTH] = explorer.result.depth
    loop.ended[:] = ended


def _show(loop: CompiledLoop) -> None:
    """From here on the explorer reads the arrays."""
    explorer, store, known = loop.explorer, loop.store, loop.known
    packing = Packing(store, explorer.bits)
    explorer.order = Order(packing)
    explorer.number = Numbers(packing)
    explorer.parents = Parents(store)
    explorer.shared = SharedStates(known)
    explorer.intern = known.intern
    tables = [Table(packing, known, thread) for thread in range(store.threads)]
    explorer._tables = tables
    explorer._progress = [Flags(table) for table in tables]
