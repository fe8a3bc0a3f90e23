"""Liveness from bytecode: what it says of hand-made coroutines, and that it tells the truth."""

from __future__ import annotations

import ctypes
import random
import sys
from dataclasses import dataclass
from types import CoroutineType, FrameType
from typing import Any

import pytest

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore.liveness import CodeFacts, facts_of, uses_and_kills


@dataclass(frozen=True, slots=True)
class Ask(Op):
    seen: tuple[Any, ...] = ()


def live_names(coro: CoroutineType[Any, Any, Any]) -> set[str]:
    """The live locals of the outermost frame of a suspended coroutine."""
    facts = facts_of(coro.cr_code)
    site = facts.site(coro.cr_frame.f_lasti)
    assert site.trouble is None
    return {facts.slots[slot][0] for slot in site.live}


def live_along(coro: CoroutineType[Any, Any, Any], *results: Any) -> list[set[str]]:
    """The live locals at the first await and after each result."""
    coro.send(None)
    found = [live_names(coro)]
    for result in results:
        coro.send(result)
        found.append(live_names(coro))
    coro.close()
    return found


# -- by hand ---------------------------------------------------------------------------------


async def straight(a, b):
    c = a + b
    await Ask()
    a = c
    await Ask()
    return a


def test_a_read_local_is_live_and_an_overwritten_one_is_not() -> None:
    assert live_along(straight(1, 2), None) == [{"c"}, {"a"}]


async def branches(a, b, c):
    x = await Ask()
    if x:
        await Ask((a,))
        return b
    a = 5
    await Ask()
    return a, c


def test_a_local_is_live_if_one_branch_reads_it() -> None:
    assert live_along(branches(1, 2, 3), 1) == [{"a", "b", "c"}, {"b"}]
    assert live_along(branches(1, 2, 3), 0) == [{"a", "b", "c"}, {"a", "c"}]


async def loop(items, limit, start):
    total = start
    for item in items:
        old = item
        if await Ask():
            total += item
        if total > limit:
            break
        del old
    return total


def test_a_loop_carries_liveness_around() -> None:
    # ``items`` has become the iterator on the stack; del needs to know whether ``old`` is bound.
    assert live_along(loop((1, 2), 9, 0), 0) == [{"item", "limit", "total", "old"}] * 2


async def while_loop(n):
    seen = 0
    while await Ask():
        n, seen = seen, n
    return seen


def test_a_swap_in_a_while_loop() -> None:
    assert live_along(while_loop(1), 1, 1) == [{"n", "seen"}] * 3


async def in_handler(a, b, c):
    await Ask()
    try:
        c = a.nothing
        b = c
    except AttributeError:
        return b
    return 0


def test_a_handler_keeps_what_the_protected_code_would_overwrite() -> None:
    assert live_along(in_handler(1, 2, 3)) == [{"a", "b"}]


async def deleted(a, b):
    await Ask()
    del a
    b = 1
    await Ask()
    return b


def test_del_needs_its_local() -> None:
    assert live_along(deleted(1, 2), None) == [{"a"}, {"b"}]


async def reader(a, b):
    b = 2
    await Ask()
    return locals()


def test_code_that_reads_its_own_frame_keeps_everything() -> None:
    assert live_along(reader(1, 2)) == [{"a", "b"}]


async def own_dir(table, b):
    await Ask()
    return table.dir


def test_an_attribute_called_dir_is_no_such_code() -> None:
    assert live_along(own_dir(1, 2)) == [{"table"}]


class Base:
    async def run(self, a):
        return 0


class Derived(Base):
    async def run(self, a):
        await Ask()
        return await super().run(0)


def test_super_reads_the_first_argument_without_saying_so() -> None:
    assert live_along(Derived().run(1)) == [{"self", "__class__"}]


async def captured(a, b, c):
    await Ask()
    total = sum(x for x in (1, 2) if x != a)
    await Ask()
    return total, b


def test_a_captured_local_is_live_while_its_cell_is_needed() -> None:
    assert live_along(captured(1, 2, 3), None) == [{"a", "b"}, {"total", "b"}]


async def comprehension(q, xs):
    await Ask()
    out = [q for q in xs]  # noqa: C416
    await Ask()
    return out, q


def test_a_comprehension_variable_of_the_same_name() -> None:
    assert live_along(comprehension(1, (2,)), None) == [{"q", "xs"}, {"out", "q"}]


async def many():
    (a, b, c, d, e, _f, _g, _h, _i, _j, _k, _m, _n, _o, _p, q, r, s) = range(18)
    a = q
    b = r
    await Ask((a, b))
    c, d = d, c
    return c, d, e, r, s, q


def test_slots_beyond_sixteen() -> None:
    assert live_along(many()) == [{"c", "d", "e", "q", "r", "s"}]


async def rebound(n, m):
    f = lambda: (n, m)  # noqa: E731
    await Ask((f(),))
    n = 1
    await Ask()
    return n


def test_a_captured_local_that_is_assigned_or_read() -> None:
    assert live_along(rebound(1, 2), None) == [{"n"}, {"n"}]


@pytest.mark.parametrize(
    ("name", "arg", "uses", "kills"),
    [
        *(("LOAD_FAST", 3, {3}, ()), ("LOAD_FAST_CHECK", 3, {3}, ())),
        *(("STORE_FAST", 3, (), {3}), ("DELETE_FAST", 3, {3}, ())),
        *(("LOAD_FAST_AND_CLEAR", 20, {20}, ()), ("LOAD_DEREF", 3, {3}, ())),
        *(("LOAD_CLOSURE", 3, {3}, ()), ("STORE_DEREF", 3, {3}, ())),
        *(("MAKE_CELL", 3, (), ()), ("COPY_FREE_VARS", 3, (), ())),
        ("LOAD_FAST_LOAD_FAST", 0x3A, {3, 10}, ()),
        ("STORE_FAST_STORE_FAST", 0x3A, (), {3, 10}),
        ("STORE_FAST_LOAD_FAST", 0x3A, {10}, {3}),
        ("STORE_FAST_LOAD_FAST", 0x33, (), {3}),  # reads what it has just stored
    ],
)
def test_what_instructions_do_to_locals(name: str, arg: int, uses: Any, kills: Any) -> None:
    """Of every version, whichever this one is."""
    bits = tuple(sum(1 << slot for slot in slots) for slots in (uses, kills))
    assert uses_and_kills(name, arg) == bits


def test_an_instruction_that_is_not_known_is_said_to_be() -> None:
    assert uses_and_kills("LOAD_FAST_BORROW", 3) is None
    assert uses_and_kills("LOAD_FAST", None) is None


def test_slot_names_are_the_interpreters() -> None:
    def outer(x, y):
        async def inner(a, b):
            c = [lambda: (a, c)]
            await Ask()
            return x, c, b, y

        return inner

    code = outer(1, 2).__code__
    names = [name for name, _ in CodeFacts(code).slots]
    assert names == [code._varname_from_oparg(slot) for slot in range(len(names))]


def test_an_unknown_instruction_on_locals_keeps_everything(monkeypatch) -> None:
    monkeypatch.setattr(
        "tdpmmu.worlds.explore.liveness._SLOT_READERS", frozenset({"LOAD_FAST_CHECK"})
    )
    facts = CodeFacts(straight.__code__)
    coro = straight(1, 2)
    coro.send(None)
    assert len(facts.site(coro.cr_frame.f_lasti).live) == len(facts.slots)
    coro.close()


# -- depth of the value stack ----------------------------------------------------------------


async def operands(a, b):
    await Ask()
    for _ in (1,):
        x = (a, b, await Ask())
        for _ in (2,):
            x = a + await Ask()
    return x


def test_depth_counts_loops_and_operands() -> None:
    coro = operands(1, 2)
    depths = []
    coro.send(None)
    for result in (0, 0, 0):
        depths.append(facts_of(coro.cr_code).site(coro.cr_frame.f_lasti).depth)
        if len(depths) < 3:
            coro.send(result)
    coro.close()
    assert depths == [0, 3, 3]


def test_a_depth_that_does_not_add_up_is_not_believed(monkeypatch) -> None:
    monkeypatch.setattr("tdpmmu.worlds.explore.liveness._effect", lambda ins, jump: 1 + jump)
    coro = operands(1, 2)
    coro.send(None)
    trouble = CodeFacts(operands.__code__).site(coro.cr_frame.f_lasti).trouble
    coro.close()
    assert trouble is not None
    assert "not understood" in trouble


# -- against the interpreter -----------------------------------------------------------------

NAMES = ("v0", "v1", "v2", "v3", "v4")


class Program:
    """Random source.  A ``sharp`` one has only paths that can be taken (every branch hangs on a
    result) and only reads that show (no copies), so that liveness must be exact."""

    def __init__(self, seed: int, sharp: bool) -> None:
        self.random = random.Random(seed)
        self.sharp = sharp
        lines = ["async def main(v0, v1, v2, v3, v4):", *self.block(3, False)]
        self.source = "\n".join([*lines, f"    return ({', '.join(self.pick())},)"])
        namespace: dict[str, Any] = {"Ask": Ask}
        exec(compile(self.source, f"<program {seed}>", "exec"), namespace)
        self.main = namespace["main"]

    def pick(self) -> list[str]:
        return self.random.sample(NAMES, self.random.randint(1, 2))

    def block(self, depth: int, in_loop: bool) -> list[str]:
        lines: list[str] = []
        for _ in range(self.random.randint(2, 4)):
            lines += self.statement(depth, in_loop)
        return ["    " + line for line in lines]

    def statement(self, depth: int, in_loop: bool) -> list[str]:
        rnd = self.random
        name = rnd.choice(NAMES)
        choice = rnd.randrange(12 if depth else 5)
        if choice == 0:
            return [f"{name} = await Ask()"]
        if choice == 1:
            return [f"await Ask(({', '.join(self.pick())},))"]
        if self.sharp and choice in (2, 3):
            return [f"{name} = {rnd.randrange(5)}"]
        if choice in (2, 3):
            return [f"{name} = {rnd.choice(NAMES)}"]
        if choice == 4:
            if in_loop and rnd.random() < 0.5:
                return ["if await Ask():", f"    {rnd.choice(['break', 'continue'])}"]
            if self.sharp:
                return [f"{name}, {rnd.choice(NAMES)} = 7, 8"]
            return [f"{name}, {rnd.choice(NAMES)} = {rnd.choice(NAMES)}, {rnd.choice(NAMES)}"]
        if choice in (5, 6):
            return ["if await Ask():", *self.block(depth - 1, in_loop)]
        if choice == 7:
            return [
                *("if await Ask():", *self.block(depth - 1, in_loop)),
                *("else:", *self.block(depth - 1, in_loop)),
            ]
        if choice == 8 and not self.sharp:
            return [
                "try:",
                f"    {name} = {rnd.choice(NAMES)}",
                f"    {rnd.choice(NAMES)} = {rnd.choice(NAMES)} + 1",
                f"    {rnd.choice(NAMES)} = {rnd.choice(NAMES)}",
                "except TypeError:",
                f"    {rnd.choice(NAMES)} = {rnd.choice(NAMES)}",
            ]
        if choice in (8, 9) or self.sharp:
            return ["while await Ask():", *self.block(depth - 1, True)]
        return [f"for {name} in (1, 2):", *self.block(depth - 1, True)]


class Poison:
    """A value that no program ever makes."""


def overwrite(frame: FrameType, name: str, value: object) -> None:
    """Set a local of a suspended frame."""
    frame.f_locals[name] = value
    if sys.version_info < (3, 13):  # there f_locals is a copy
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))


def suspended(program: Program, results: list[int]) -> CoroutineType[Any, Any, Any] | None:
    """The coroutine after these results, or None if it ends before."""
    coro = program.main(*range(100, 105))
    try:
        coro.send(None)
        for result in results:
            coro.send(result)
    except StopIteration:
        return None
    return coro


def future(coro: CoroutineType[Any, Any, Any], results: list[int]) -> list[object]:
    """What it does next: operations, then the value it returns."""
    out: list[object] = []
    try:
        for result in results:
            out.append(coro.send(result))
    except StopIteration as stop:
        out.append(stop.value)
    else:
        coro.close()
    return out


def poisoned(program: Program, past: list[int], ahead: list[int], name: str) -> bool:
    """Whether another value in ``name`` changes this future."""
    one, two = suspended(program, past), suspended(program, past)
    assert one is not None
    assert two is not None
    overwrite(two.cr_frame, name, Poison())
    return future(one, ahead) != future(two, ahead)


def bits(rnd: random.Random, length: int) -> list[int]:
    return [int(rnd.random() < 0.5) for _ in range(length)]


@pytest.mark.parametrize("seed", range(40))
def test_a_dead_local_changes_no_future(seed: int) -> None:
    program = Program(seed, sharp=False)
    rnd = random.Random(seed)
    for _ in range(20):
        past = bits(rnd, rnd.randrange(12))
        coro = suspended(program, past)
        if coro is None:
            continue
        dead = set(NAMES) - live_names(coro)
        coro.close()
        for name in dead:
            for _ in range(4):
                assert not poisoned(program, past, bits(rnd, 20), name), (name, program.source)


@pytest.mark.parametrize("seed", range(40))
def test_a_live_local_changes_some_future(seed: int) -> None:
    """Each local that is called live must show sooner or later."""
    program = Program(seed, sharp=True)
    rnd = random.Random(seed)
    unproved: dict[tuple[int, str], list[int]] = {}
    for _ in range(20):
        past = bits(rnd, rnd.randrange(12))
        coro = suspended(program, past)
        if coro is None:
            continue
        for name in live_names(coro) & set(NAMES):
            unproved.setdefault((coro.cr_frame.f_lasti, name), past)
        coro.close()
    for (_, name), past in unproved.items():
        assert any(poisoned(program, past, bits(rnd, 40), name) for _ in range(3000)), (
            name,
            past,
            program.source,
        )
