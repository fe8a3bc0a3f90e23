"""Random threads: programs that do all that a position has to tell apart."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, ClassVar

from tdpmmu.machine.op import Op


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
