"""Equal keys must mean equal futures: random threads under random results, and broken keys.

A false merge loses bugs without a word, so it is looked for in two ways.  Whenever two histories
end in one key: the same next result must lead both to one key and one operation, and driven on
with the same results for many steps they must do the same.  Then each ingredient is taken out of
the key in turn, and the same search must notice.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, ClassVar

import pytest

from tdpmmu.machine.op import Op
from tdpmmu.worlds.explore import liveness
from tdpmmu.worlds.explore.position import encoding, frames, functions, objects, values, visit
from tdpmmu.worlds.explore.position.frames import position_key
from tdpmmu.worlds.explore.position.table import Positions

# -- what the programs are made of -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask(Op):
    where: int
    seen: str = ""


class Color(enum.IntEnum):
    NONE = 0
    RED = 1


class Box:
    position_fields: ClassVar[tuple[str, ...]] = ("value", "extra")
    __slots__ = ("extra", "value")

    def __init__(self, value: Any) -> None:
        self.value = value

    def bump(self, value: Any) -> None:
        self.value, self.extra = value, self.value


def show(*values: Any) -> str:
    """Everything about values that a thread can tell: types, contents, and which are one object."""
    met: dict[int, int] = {}

    def walk(value: Any) -> str:
        kind = type(value)
        if kind in (list, dict, Box):
            if id(value) in met:
                return f"@{met[id(value)]}"
            met[id(value)] = len(met)
        if kind in (tuple, list):
            return f"{kind.__name__}({','.join(map(walk, value))})"
        if kind is dict:
            return f"dict({','.join(f'{walk(k)}:{walk(v)}' for k, v in value.items())})"
        if kind is Box:
            return f"Box({walk(value.value)},{walk(getattr(value, 'extra', 'unset'))})"
        return f"{kind.__name__} {value!r}"

    return walk(list(values))


def clip(value: Any) -> Any:
    """Keep values small, so that histories meet again."""
    return value if len(show(value)) < 60 else None


class Base:
    """The object that the threads' methods belong to: a constant."""

    def __init__(self, number: int) -> None:
        self.number = number

    def position_key(self) -> int:
        return self.number

    async def up(self, x: Any, items: list[Any]) -> Any:
        got = await Ask(900, show(self.number, x))
        return (got, x, len(items))


async def grow(thing: Any) -> None:
    """Change an object which the caller may know by other names, too."""
    await Ask(901)
    if type(thing) is Box:
        thing.bump(7)
    elif len(thing) < 4:
        thing.append(7)


RESULTS = (0, 1, True, False, 1.0, 0.0, -0.0, None, "", "a", (1,), (True,), (), Color.RED)
PRELUDE = {
    "Ask": Ask,
    "Box": Box,
    "Base": Base,
    "grow": grow,
    "show": show,
    "clip": clip,
    "Color": Color,
}

SCALARS, LISTS, BOXES = ("s0", "s1", "s2", "s3"), ("l0", "l1"), ("b0", "b1")
LOOPS = (
    "{s} in (1, True, {t})",
    "{s} in range(3)",
    "{s} in [0, {t}]",
    "{s} in {l}",
    "{s}, {u} in enumerate((7, {t}))",
    "{s}, {u} in zip((1, 2), {l})",
    "{s} in reversed((1, {t}))",
    "{s} in 'ab'",
    "_ in (5, 5, 5)",
)
SIMPLE = (
    "{s} = await Ask({n})",
    "{s} = await Ask({n})",
    "await Ask({n}, show({s}, {t}))",
    "await Ask({n}, show({l}, {k}))",
    "await Ask({n}, show({b}, {c}, {l}))",
    "await Ask({n}, show(d0, {s}))",
    "{s} = {t}",
    "{s} = {c1}",
    "{s} = {t} = {c1}",
    "{s} = {c1}; {l} = [{s}]",
    "{b} = Box({c1}); {c} = Box({c1}) if await Ask({n}) else {b}",
    "{s} = clip(({t}, {u}))",
    "{s}, {t} = {t}, {u}",
    # operands that wait on the stack
    "{s} = ({t}, {l}, await Ask({n}))[0]",
    "{s} = clip(({t}, 1)) if not await Ask({n}) else ({u}, await Ask({n}))",
    "{k} = [[{l}, {k}][bool({s})], await Ask({n})][0]",
    "{s} = f'{{{t}!r}}{{await Ask({n})!r}}'[:5]",
    "{s} = ({l}, await {h})[1]",
    "{b}.value = ({t}, await {h})[0]",
    # calls
    "{s} = await {h}; {s} = clip({s})",
    "await {h}",
    "{s} = await mmu.up({t}, {l}); {s} = clip({s})",
    "{s} = await mmu.down({t}, {l}); {s} = clip({s})",
    # objects
    "{l} = [{s}]",
    "{l} = {k}",
    "{l} = list({k})",
    "{l}.append({s}) if len({l}) < 3 else {l}.clear()",
    "{b} = {c}",
    "{b} = Box({s})",
    "{b} = Box({l})",
    "{b}.bump({s})",
    "{b}.value = {c}.value",
    "{l} = {b}.value if type({b}.value) is list else {l}",
    "d0[{s}] = {t}",
    "d0 = dict(list(d0.items())[:2])",
    "d0 = {{1: {t}, 2: {u}}} if await Ask({n}) else {{2: {u}, 1: {t}}}",
    # captures, and what becomes of them
    "{s} = tuple(x for x in (1, 2, {t}) if x != {u})",
    "{s} = clip([x for x in (1, {t})] + [{u}])",
    "f0 = lambda: {t}",
    "f0 = lambda x={t}: x",
    "await Ask({n}, show(f0()))",
)


MEETINGS = (
    "await Ask({n}); await Ask({n}, show({s}, {l}, {b}, d0))",
    "await Ask({n}); await Ask({n}, show({s}, f0()))",
    "{s} = ({s}, await Ask({n}))[0]; await Ask({n}, show({s}))",
    "{t} = ({l}, {b}, await Ask({n}))[:2]; await Ask({n}, show({l}, {b}, {t})); {t} = 0",
    "for {t} in ({s}, {l}, {s}): await Ask({n}, show({t}))",
    "for {t} in {l}: await Ask({n}); await Ask({n}, show({t}, {k}))",
    "await Ask({n}); {b}.bump({t}); {l}.append({s}); await Ask({n}, show({c}, {k}, {s}))",
    "{u} = await {h}; await Ask({n}, show({l}, {k}))",
    "await grow({l}); {l} = []; await Ask({n}, show({k}))",
    "await grow({b}); {b} = Box(0); await Ask({n}, show({c}))",
    "",
)
"""Where histories meet after doing things that look alike, and what makes the difference show."""

ALIKE = (
    ("{s} = 1", "{s} = True"),
    ("{s} = 1", "{s} = 1.0"),
    ("{s} = 0.0", "{s} = -0.0"),
    ("{s} = 1", "{s} = Color.RED"),
    ("{s} = (0, 1)", "{s} = (False, 1)"),
    ("{s} = None", "{s} = 1; del {s}"),
    ("{l} = {k}", "{l} = list({k})"),
    ("{l} = [0]", "{l} = [False]"),
    ("{l} = []", "{l} = [{t}]"),
    ("{b} = {c}", "{b} = Box({c}.value)"),
    ("{b} = Box({l})", "{b} = Box({l}[:])"),
    ("{b} = Box(0)", "{b} = Box(0); {b}.extra = 0"),
    ("{b}.extra = {t}", "{b}.extra = None"),
    ("d0 = {{1: {t}, 2: {u}}}", "d0 = {{2: {u}, 1: {t}}}"),
    ("d0 = {{1: 1}}", "d0 = {{1: True}}"),
    ("f0 = lambda x={t}: x", "f0 = lambda x=0: x"),
    ("{s} = 1; f0 = lambda: {s}", "{s} = 2; f0 = lambda: {s}"),
    ("{s} = 1", "{s} = 2"),
)
"""What a key must tell apart, although it looks alike: the one or the other is done."""


class Program:
    """Random source text, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # Few results, so that histories meet often.
        self.results = self.random.sample(RESULTS, 4)
        self.callees: list[str] = []
        parts = []
        for name in ("h0", "h1", "h2"):
            parts += [f"async def {name}(mmu, s0, l0):", *self.body(4, "s1 = s2 = s3 = None")]
            self.callees.append(name)
        parts += ["class Mmu(Base):", "    async def down(self, s0, l0):", "        mmu = Base(9)"]
        parts += [f"        s1 = await Ask({self.ask()})"]
        parts += [f"        s1 = {self.random.choice(['s0', 's1', '(s0, s1)'])}"]
        parts += ["        return await super().up(s1, l0)"]
        parts += ["async def main(mmu):", *self.body(9, "s0 = s1 = s2 = s3 = 0; l0 = []")]
        self.source = "\n".join(parts)
        namespace: dict[str, Any] = dict(PRELUDE)
        exec(compile(self.source, f"<program {seed}>", "exec"), namespace)
        self.main, self.mmu = namespace["main"], namespace["Mmu"](1)

    def start(self) -> CoroutineType[Any, Any, Any]:
        return self.main(self.mmu)  # type: ignore[no-any-return]

    def ask(self) -> int:
        """A number for an operation; many operations of a program are the same."""
        return self.random.randrange(3)

    def body(self, length: int, first: str) -> list[str]:
        lines = [first, "l1 = [0]; b0 = b1 = Box(0); d0 = {}; f0 = lambda: 0"]
        if self.random.random() < 0.7:  # come here again and again, so that histories meet
            lines += [f"while await Ask({self.ask()}):", *self.block(length, 2, True)]
        else:
            lines += [line[4:] for line in self.block(length, 2, False)]
        if self.random.random() < 0.5:
            lines += [f"await Ask({self.ask()}, show(l0, l1, b0, b1, d0, s0))"]
        lines += [f"return {self.random.choice([*SCALARS, '(s0, s1)', 'l0'])}"]
        return ["    " + line for line in lines]

    def block(self, length: int, depth: int, in_loop: bool) -> list[str]:
        lines = []
        for _ in range(self.random.randint(2, length)):
            lines += self.statement(depth, in_loop)
        return ["    " + line for line in lines]

    def names(self) -> dict[str, str]:
        rnd = self.random
        call = "mmu.up(s0, l0)"
        if self.callees:
            passed = rnd.choice(["l0", "l1", "(l0 if s0 else list(l0))", "(l1 if s1 else l1[:])"])
            call = f"{rnd.choice(self.callees)}(mmu, {rnd.choice(SCALARS)}, {passed})"
        return {
            **dict(zip("stu", rnd.sample(SCALARS, 3), strict=True)),
            **dict(zip("lk", rnd.sample(LISTS, 2), strict=True)),
            **dict(zip("bc", rnd.sample(BOXES, 2), strict=True)),
            "h": call,
        }

    def fill(self, template: str, names: dict[str, str] | None = None) -> str:
        constant = self.random.choice(["0", "1", "True", "None", "''", "1.0", "Color.RED"])
        return template.format(**(names or self.names()), n=self.ask(), c1=constant)

    def statement(self, depth: int, in_loop: bool) -> list[str]:
        rnd = self.random
        choice = rnd.random()
        if choice < 0.25:
            names = self.names()
            one, other = rnd.choice(ALIKE)
            meet = [self.fill(rnd.choice(MEETINGS), names)] if rnd.random() < 0.7 else []
            return [
                f"if {self.fill('await Ask({n})', names)}:",
                f"    {self.fill(one, names)}",
                "else:",
                f"    {self.fill(other, names)}",
                *meet,
            ]
        if depth == 0 or choice < 0.6:
            return [self.fill(rnd.choice(SIMPLE))]
        inner = self.block(3, depth - 1, in_loop)
        if choice < 0.72:
            test = rnd.choice(["{s}", "{s} == {t}", "await Ask({n})", "{l} is {k}", "{b} is {c}"])
            return [
                f"if {self.fill(test)}:",
                *inner,
                "else:",
                *self.block(2, depth - 1, in_loop),
            ]
        if choice < 0.76 and in_loop:
            return [self.fill("if await Ask({n}):"), f"    {rnd.choice(['break', 'continue'])}"]
        if choice < 0.80:
            return [self.fill("if await Ask({n}):"), self.fill("    del {s}")]
        if choice < 0.84:
            return ["try:", self.fill("    {s} = {t} + 1"), "except TypeError:", "    s0 = None"]
        if choice < 0.88:
            return [self.fill("while await Ask({n}):"), *self.block(3, depth - 1, True)]
        return [f"for {self.fill(rnd.choice(LOOPS))}:", *self.block(3, depth - 1, True)]


# -- the search --------------------------------------------------------------------------------

Step = tuple[Any, Any]
"""What a thread does: its key and its operation, or how it ended twice."""


def step(coro: CoroutineType[Any, Any, Any], result: Any) -> Step | None:
    """Send a result; None if the thread ended (as two equal exceptions, or returns, do)."""
    try:
        op = coro.send(result)
    except StopIteration:
        return None
    except Exception as error:
        return ("raised", type(error)), str(error)
    return position_key(coro, op), op


def ended(at: Step | None) -> bool:
    return at is None or at[0][0] == "raised"


class FalseMerge(Exception):
    """Two histories with one key and different futures."""


class Search:
    """Histories of one program, and the keys that they lead to."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program = program
        self.random = random.Random(seed)
        self.ops: dict[Any, Any] = {}
        self.after: dict[tuple[Any, str], Step | None] = {}
        self.histories: dict[Any, list[tuple[Any, ...]]] = {}

    def run(self, runs: int, length: int) -> None:
        for _ in range(runs):
            coro = self.program.start()
            at = step(coro, None)
            history: tuple[Any, ...] = ()
            while at is not None and not ended(at) and len(history) < length:
                self.note(at, history)
                result = self.random.choice(self.program.results)
                before, at = at, step(coro, result)
                # repr() tells all results apart, 0.0 from -0.0 too.
                if self.after.setdefault((before[0], repr(result)), at) != at:
                    raise FalseMerge(self.program.source)
                history += (result,)
            coro.close()

    def note(self, at: Step, history: tuple[Any, ...]) -> None:
        key, op = at
        if self.ops.setdefault(key, op) != op:
            raise FalseMerge(self.program.source)
        known = self.histories.setdefault(key, [])
        if len(known) < 3 and history not in known:
            known.append(history)

    def merged(self) -> Iterator[list[tuple[Any, ...]]]:
        return (known for known in self.histories.values() if len(known) > 1)

    def futures(self, length: int) -> int:
        """Drive merged histories on together; return how many were compared."""
        count = 0
        for first, *others in self.merged():
            for other in others:
                self.together(first, other, length)
                count += 1
        return count

    def together(self, one: tuple[Any, ...], two: tuple[Any, ...], length: int) -> None:
        first, second = self.at(one), self.at(two)
        for _ in range(length):
            result = self.random.choice(self.program.results)
            a, b = step(first, result), step(second, result)
            if a != b:
                raise FalseMerge(self.program.source)
            if ended(a):
                break
        first.close()
        second.close()

    def at(self, history: tuple[Any, ...]) -> CoroutineType[Any, Any, Any]:
        coro = self.program.start()
        coro.send(None)
        for result in history:
            coro.send(result)
        return coro


PROGRAMS = 12
"""Programs per chunk; the suite runs CHUNKS of them."""
CHUNKS = 8


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_equal_keys_have_equal_futures(chunk: int) -> None:
    compared = 0
    for seed in range(chunk * PROGRAMS, (chunk + 1) * PROGRAMS):
        search = Search(Program(seed), seed)
        search.run(runs=30, length=25)
        compared += search.futures(length=15)
    assert compared > 500  # the test says something


@pytest.mark.parametrize("limit", [0, 3, 4096])
def test_the_table_does_what_the_threads_do(limit: int) -> None:
    for seed in range(12):
        program = Program(seed)
        table = Positions(program.start, live_limit=limit)
        rnd = random.Random(seed)
        for _ in range(15):
            coro = program.start()
            op, pos = coro.send(None), table.initial
            for _ in range(15):
                assert table.op(pos) == op
                result = rnd.choice(program.results)
                pos = table.next(pos, result)
                failure: Exception | None = None
                try:
                    op = coro.send(result)
                except Exception as error:
                    failure = None if isinstance(error, StopIteration) else error
                    op = None
                assert str(table.raised(pos)) == str(failure)
                if op is None:
                    assert table.op(pos) is None
                    break
            coro.close()


# -- the search must notice a broken key ---------------------------------------------------------


def without_stack(patch: pytest.MonkeyPatch) -> None:
    whole = frames.frame_key

    def cut(coro: Any, awaited: Any, visit: Any) -> Any:
        parts = whole(coro, awaited, visit)
        depth = parts[0].site(parts[1]).depth  # type: ignore[attr-defined]
        return parts[: len(parts) - depth]

    patch.setattr(frames, "frame_key", cut)


def without_iterator_state(patch: pytest.MonkeyPatch) -> None:
    for kind in values.ITERATORS:
        patch.setitem(encoding.ENCODERS, kind, lambda value, visit: type(value))


def without_iterated(patch: pytest.MonkeyPatch) -> None:
    for kind in values.ITERATORS:
        patch.setitem(
            encoding.ENCODERS, kind, lambda value, visit: (type(value), *value.__reduce__()[2:])
        )


def without_sharing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(visit.Visit, "again", lambda self, value: None)


def sharing_within_one_frame_only(patch: pytest.MonkeyPatch) -> None:
    whole = frames.frame_key
    patch.setattr(
        frames, "frame_key", lambda coro, awaited, visit: whole(coro, awaited, encoding.visit())
    )


def part_of_frames(keep: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    def broken(patch: pytest.MonkeyPatch) -> None:
        whole = frames.frame_key
        patch.setattr(frames, "frame_key", lambda *args: keep(whole(*args)))

    return broken


def part_of_key(keep: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(globals(), "position_key", lambda coro, op: keep(position_key_(coro, op)))

    return broken


position_key_ = position_key


def encoded(kind: type, encode: Callable[[Any, Any], Any]) -> Any:
    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(encoding.ENCODERS, kind, encode)

    return broken


def without_unbound(patch: pytest.MonkeyPatch) -> None:
    for module in (frames, objects, functions):
        patch.setattr(module, "UNBOUND", None)


def without_cells(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "_captured", lambda *args: None)


def without_captures_of_functions(patch: pytest.MonkeyPatch) -> None:
    for module in (frames, functions):
        patch.setattr(module, "encode_cell", lambda *args: None)


def flow(name: str, change: Callable[[Any], Any]) -> Any:
    """Break a method of the liveness analysis (whose results must then be worked out anew)."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(liveness, "_FACTS", {})
        patch.setattr(liveness.CodeFacts, name, change(getattr(liveness.CodeFacts, name)))

    return broken


def nothing_used(whole: Any) -> Any:
    return lambda self, ins: (0, whole(self, ins)[1])


def every_third_use_forgotten(whole: Any) -> Any:
    def broken(self: Any, ins: Any) -> Any:
        uses, kills = whole(self, ins)
        return (0 if ins.offset % 3 == 0 else uses), kills

    return broken


def no_loops(whole: Any) -> Any:
    def broken(self: Any, index: int) -> Any:
        target = whole(self, index)
        return None if target is not None and target < index else target

    return broken


def no_branches(whole: Any) -> Any:
    def broken(self: Any, index: int) -> Any:
        out = whole(self, index)
        return out[-1:] if "IF" in self._ins[index].opname else out

    return broken


def deletions_unused(whole: Any) -> Any:
    return lambda self, ins: (0, 0) if ins.opname == "DELETE_FAST" else whole(self, ins)


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the value stack": without_stack,
    "the state of iterators": without_iterator_state,
    "what iterators iterate over": without_iterated,
    "sharing": without_sharing,
    "sharing between frames": sharing_within_one_frame_only,
    "all locals": part_of_frames(lambda parts: parts[:3]),
    "the first live local": part_of_frames(lambda parts: parts[:3] + parts[4:]),
    "the instruction": part_of_frames(lambda parts: parts[:1] + parts[2:]),
    "the pending operation": part_of_key(lambda key: key[:-1]),
    "the callers": part_of_key(lambda key: key[-2:]),
    "the callees": part_of_key(lambda key: (key[0], key[-1])),
    "bool is not int": encoded(bool, lambda value, visit: int(value)),
    "float is not int": encoded(float, lambda value, visit: int(value)),
    "0.0 is not -0.0": encoded(float, lambda value, visit: (float, value)),
    "an enum is not int": encoded(Color, lambda value, visit: int(value)),
    "the items of lists": encoded(list, lambda value, visit: visit.again(value) or list),
    "the items of dicts": encoded(dict, lambda value, visit: (dict, *map(repr, value))),
    "the order of dicts": encoded(
        dict, lambda value, visit: (dict, *sorted(map(repr, value.items())))
    ),
    "the fields of helpers": encoded(Box, lambda value, visit: visit.again(value) or Box),
    "the last field of helpers": encoded(
        Box,
        lambda value, visit: visit.again(value) or (Box, visit.encode(value.value)),
    ),
    "unbound is not None": without_unbound,
    "captured locals": without_cells,
    "what functions captured": without_captures_of_functions,
    "liveness: every use": flow("_uses_and_kills", nothing_used),
    "liveness: some uses": flow("_uses_and_kills", every_third_use_forgotten),
    "liveness: del": flow("_uses_and_kills", deletions_unused),
    "liveness: backward jumps": flow("_jump", no_loops),
    "liveness: one side of branches": flow("_successors", no_branches),
}


@pytest.mark.parametrize("ingredient", BROKEN)
def test_a_key_without_it_is_noticed(ingredient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[ingredient](monkeypatch)
    for seed in range(400):
        try:
            Search(Program(seed), seed).run(runs=30, length=25)
        except FalseMerge:
            return
    pytest.fail(f"nobody misses {ingredient}")
