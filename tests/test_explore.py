"""The terminal UI: keys move threads, show the state, take back, and save what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, RichLog, Static
from typer.testing import CliRunner

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.main import app
from tdpmmu.notebook import world
from tdpmmu.scenarios.by_hand import World
from tdpmmu.tui.app import Explore

LATE = """
from tdpmmu.machine.op import Add
from tdpmmu.mmu.notifier import Notifier


class NoFlush(Notifier):
    async def unmap_ranges(self, ranges):
        await super().unmap_ranges(ranges)
        return False
"""


@pytest.fixture
def explore(tmp_path: Path) -> Explore:
    (tmp_path / "patch.py").write_text(LATE)
    asked = {"kernel": "6.12", "scenario": "script", "patch": str(tmp_path / "patch.py")}
    return Explore(world(**asked), tmp_path / "run.token")


def drive(explore: Explore, use: Callable[[Pilot[Any]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with explore.run_test(size=(120, 40)) as pilot:
            await use(pilot)

    asyncio.run(run())


def log(explore: Explore) -> str:
    return "\n".join(line.text for line in explore.query_one("#log", RichLog).lines)


def state(explore: Explore) -> str:
    return str(explore.query_one("#panels", Static).render())


def movers(explore: Explore) -> list[str]:
    found = explore.query_one("#movers", OptionList)
    return [str(found.get_option_at_index(i).prompt) for i in range(found.option_count)]


async def choose(pilot: Pilot[Any], name: str) -> None:
    """Put the cursor on the first way that a thread can move."""
    wanted = next(i for i, text in enumerate(movers(pilot.app)) if text.startswith(name))  # type: ignore[arg-type]
    while pilot.app.query_one("#movers", OptionList).highlighted != wanted:
        await pilot.press("down")


def test_enter_goes_to_what_is_worth_a_word_and_o_by_one(explore: Explore) -> None:
    async def use(pilot: Pilot[Any]) -> None:
        assert [text.partition(":")[0] for text in movers(explore)[:2]] == ["vcpu0", "host"]
        await pilot.press("o")
        assert len(explore.world.records) == 1
        await pilot.press("enter")
        assert "vcpu0: VM entry" in log(explore)
        assert "runs guest code" in state(explore)
        await pilot.press("u")
        assert len(explore.world.records) == 1
        assert log(explore) == ""
        await pilot.press("u")
        await pilot.press("u")
        assert explore.world.records == []

    drive(explore, use)


def test_a_harm_is_found_by_hand_and_kept(explore: Explore) -> None:
    async def use(pilot: Pilot[Any]) -> None:
        await pilot.press("w")
        assert not explore.save.exists()
        while "TLB may hold" not in log(explore):
            await pilot.press("enter")
        await choose(pilot, "host")
        while not any(one.prop == "stale-translation" for one in explore.world.broken):
            await pilot.press("enter")
        assert "*** HARM stale-translation" in log(explore)
        assert "▲ gfn 0x0 2M -> pfn 0x100000 rw-" in state(explore)
        await pilot.press("w")
        await pilot.pause()
        assert "stale-translation" in pilot.app.export_screenshot().replace("&#160;", " ")

    drive(explore, use)
    done = CliRunner().invoke(app, ["explain", f"@{explore.save}"])
    assert done.exit_code == 0, done.output
    assert "DISCIPLINE flush-owed" in done.output


def test_a_token_starts_where_its_run_ends(explore: Explore) -> None:
    world = explore.world
    while "TLB may hold" not in "".join(world.said(world.records[-1]) if world.records else ""):
        world.run("vcpu0")
    while not any(one.prop == "stale-translation" for one in world.broken):
        world.run("host")
    token = world.token("stale-translation")
    again = Explore(World.at_the_end_of(token), explore.save)

    async def use(pilot: Pilot[Any]) -> None:
        assert "*** HARM stale-translation" in log(again)
        ended = state(again)
        count = len(again.world.records)
        await pilot.press("u", "u", "u")
        assert "*** HARM stale-translation" not in log(again)
        assert len(again.world.records) < count - 3
        await pilot.press("r", "r", "r")
        assert (state(again), len(again.world.records)) == (ended, count)
        while again.world.records:
            await pilot.press("u")
        assert log(again) == ""
        await pilot.press("r", "o", "r")
        assert len(again.world.records) == again._done[0] + 1, "another move: nothing to redo"

    drive(again, use)


def test_a_token_that_does_not_fit_is_one_line(explore: Explore, tmp_path: Path) -> None:
    world = explore.world
    world.run("host")
    while not world.broken:
        world.run(next(one.name for one in world.threads if one.alternatives))
    (tmp_path / "run.token").write_text(world.token().encode())
    command = ["explore", f"@{tmp_path / 'run.token'}"]
    assert str(CliRunner().invoke(app, command).exception) == "explore needs a terminal"
    done = CliRunner().invoke(app, [*command, "-k", "6.18"])
    assert "a token has its own kernel" in str(done.exception)
    (tmp_path / "patch.py").write_text(LATE + "\n# changed\n")
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError)
    assert "patch.py changed since this token was made" in str(done.exception)


def test_who_waits_can_be_seen_but_not_chosen(explore: Explore) -> None:
    async def use(pilot: Pilot[Any]) -> None:
        await choose(pilot, "host")
        while "write_lock(mmu_lock)" not in log(explore):
            await pilot.press("enter")
        await choose(pilot, "vcpu0")
        while not any(text.startswith("vcpu0: waits: read_lock") for text in movers(explore)):
            await pilot.press("o")
        found = explore.query_one("#movers", OptionList)
        at = next(i for i, text in enumerate(movers(explore)) if text.startswith("vcpu0: waits"))
        assert found.get_option_at_index(at).disabled

    drive(explore, use)


def test_it_needs_a_terminal_and_a_sensible_question() -> None:
    done = CliRunner().invoke(app, ["explore", "script"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "explore needs a terminal"
    done = CliRunner().invoke(app, ["explore", "script", "-k", "5.99"])
    assert "unknown kernel '5.99'" in str(done.exception)
