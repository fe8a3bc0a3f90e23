"""What multiplies states and is never read is named, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from toys import make_machine

from tdpmmu.machine.op import Add, Choose, Read, Write
from tdpmmu.machine.state import Layout
from tdpmmu.worlds.explore.profile import Profile, profile
from tdpmmu.worlds.explore.search import PLAIN, explore


def searched(read_count: bool, use_local: bool) -> Profile:
    """Two threads count, and one keeps what it chose: both with and without a use."""
    layout = Layout()
    count = layout.cell("count", 0)
    x = layout.cell("x", 0)

    async def counts() -> None:
        if await Choose("count?", (False, True)):
            await Add(count, 1)
        await Write(x, 1)
        if read_count and await Read(count):
            await Write(x, 2)

    async def chooses() -> None:
        n = await Choose("which?", (1, 2))
        await Write(x, 3)
        await Write(x, 4 if not use_local else 4 + n)
        await Write(x, 4 + n * 0)

    async def looks() -> None:
        if await Read(x) == 4:
            await Write(x, 5)

    explorer = explore(make_machine(layout, [counts, chooses, looks]), loop=PLAIN)
    assert explorer.result.exhausted
    return profile(explorer)


def names(idle: Any) -> list[str]:
    return [one.what for one in idle]


@pytest.mark.parametrize("read_count", [False, True])
@pytest.mark.parametrize("use_local", [False, True])
def test_what_is_named(read_count: bool, use_local: bool) -> None:
    found = searched(read_count, use_local)
    assert names(found.cells) == ([] if read_count else ["count"])
    assert set(names(found.locals)) == (
        set() if use_local else {"T1: n in searched.<locals>.chooses"}
    )
    idle = (*found.cells, *found.locals)
    assert all(found.left <= one.left < found.states for one in idle)
    assert (found.left < found.states) == bool(idle)


def test_without_anything_idle_no_state_could_be_saved() -> None:
    layout = Layout()
    x = layout.cell("x", 0)

    async def body() -> None:
        n = await Choose("which?", (1, 2))
        await Write(x, 3)
        await Write(x, n)
        if await Read(x) == 1:
            await Write(x, 5)

    found = profile(explore(make_machine(layout, [body, body]), loop=PLAIN))
    assert (found.cells, found.locals, found.left) == ((), (), found.states)
