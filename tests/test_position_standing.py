"""Keys kept from step to step say what keys from scratch say."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_threads import Ask, Program

from tdpmmu.scenarios.zoo.run import BUG, question
from tdpmmu.worlds.explore.exploration import Budget
from tdpmmu.worlds.explore.position.frames import position_key
from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
from tdpmmu.worlds.explore.position.standing import Standing
from tdpmmu.worlds.explore.position.visit import Visit
from tdpmmu.worlds.explore.search import PLAIN, explore


class Difference(Exception):
    """A key that was kept is not the one from scratch."""


class Compared:
    """Numbers parts of keys, and compares whole keys."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.kept = 0

    def number(self, part: Any) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def look(self, thread: Standing, op: Any) -> None:
        before = thread._frames.copy()
        numbers = thread.key(op, self.number)
        self.kept += sum(frame in before for frame in thread._frames)
        if tuple([self.parts[n] for n in numbers]) != position_key(thread.coro, op):
            raise Difference


def run_many(seeds: range) -> int:
    return sum(run(seed, runs=4, length=25) for seed in seeds)


def run(seed: int, runs: int, length: int) -> int:
    """A random program under random results; how many frames were kept."""
    program, pick = Program(seed), random.Random(seed)
    compared = Compared()
    for _ in range(runs):
        thread = Standing(program.start())
        result = None
        for _ in range(length):
            try:
                op = thread.coro.send(result)
            except Exception:
                break
            compared.look(thread, op)
            result = pick.choice(program.results)
        thread.coro.close()
    return compared.kept


def test_keys_of_random_threads() -> None:
    assert run_many(range(100)) > 400


def test_what_is_shared_with_what_is_shared() -> None:
    """A frame shares an object with one that shares another with what has moved."""

    async def outer() -> Any:
        passed: list[int] = []
        items = [passed]
        await middle(items)
        return items

    async def middle(items: list[list[int]]) -> Any:
        alias = items[0]
        await append(alias)
        await append(items)
        return alias

    async def append(items: list[Any]) -> None:
        await Ask(0)
        items.append(0)
        await Ask(0)

    thread, compared = Standing(outer()), Compared()
    for _ in range(4):
        compared.look(thread, thread.coro.send(None))
    thread.coro.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 40))
def test_keys_of_any_thread(seed: int) -> None:
    run(seed, runs=2, length=25)


def no_sharing(patch: pytest.MonkeyPatch) -> None:
    """Objects that are met again do not count."""
    whole = Visit.again

    def again(self: Visit, value: Any) -> Any:
        lowest = self.lowest
        found = whole(self, value)
        self.lowest = lowest
        return found

    patch.setattr(Visit, "again", again)


def nothing_moved(patch: pytest.MonkeyPatch) -> None:
    """The frames around the innermost are taken to be as they were."""
    patch.setattr(Standing, "_unchanged", lambda self: max(len(self._frames) - 1, 0))


def nothing_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Objects of frames that have gone are still known."""
    patch.setattr(Visit, "forget", lambda self, first: None)


@pytest.mark.parametrize("broken", [no_sharing, nothing_moved, nothing_forgotten])
def test_a_frame_kept_too_long_is_noticed(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises((Difference, UnsupportedPosition)):
        run_many(range(400))


@pytest.mark.parametrize("entry", ["z1", "z9", "z40", "z46-range"])
def test_keys_of_the_model(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Standing.key
    kept = 0

    def key(self: Standing, op: Any, number: Any) -> tuple[int, ...]:
        nonlocal kept
        before = self._frames.copy()
        numbers = whole(self, op, number)
        kept += sum(frame in before for frame in self._frames)
        parts = number.__self__._parts
        assert tuple([parts[n] for n in numbers]) == position_key(self.coro, op)
        return numbers

    monkeypatch.setattr(Standing, "key", key)
    explore(question(entry, BUG).build().machine, loop=PLAIN, budget=Budget(states=300))
    assert kept > 100
