"""Small machines: plain cells and a few coroutines, to try explorers on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from tdpmmu.events.records import (
    BadUnlock,
    Event,
    LockNotHeld,
    NxPageRecovered,
    UnguardedAccess,
)
from tdpmmu.kernel.locks import (
    RwLock,
    SpinLock,
    Unchanged,
    UnderEitherMode,
    UnderSpin,
    UnderSpinOrWrite,
    UnderWriteLock,
    Visitors,
)
from tdpmmu.kernel.rcu import Rcu
from tdpmmu.machine.ghost import DISCIPLINE, HARM, Ghost
from tdpmmu.machine.op import (
    LEFT,
    Add,
    Choose,
    CmpXchg,
    Emit,
    Op,
    Read,
    Step,
    WaitUntil,
    Write,
    Xchg,
)
from tdpmmu.machine.state import Cell, Guard, Layout
from tdpmmu.machine.thread import Machine, Thread

Start = Callable[[], Coroutine[Any, Any, Any]]

PROGRESS = NxPageRecovered(0, True)
"""An event that counts as getting on."""


def make_machine(
    layout: Layout,
    threads: Sequence[Start],
    *,
    ghosts: Sequence[Ghost] = (),
    alone: Sequence[Start] = (),
) -> Machine:
    """Threads ``T0``, ``T1``, ... and, after them, those that run alone at the end."""
    named = [Thread(f"T{i}", start) for i, start in enumerate(threads)]
    named += [Thread(f"end{i}", start, alone=True) for i, start in enumerate(alone)]
    return Machine(layout, named, list(ghosts), layout.initial())


# --- a property to be broken ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said(Event):
    """A thread said something."""

    what: int


@dataclass(frozen=True, slots=True)
class Say(Op):
    """Say something: others can tell when (unlike :class:`Emit`)."""

    what: int

    def apply(self, step: Step, alternative: int) -> None:
        step.emit(Said(self.what))


class NeverThen(Ghost):
    """Nobody says anything while ``cell`` holds ``value``; harm or a breach of discipline."""

    name = "never-then"
    kind = HARM
    meaning = "nobody speaks while the cell holds the value"
    hears: ClassVar[tuple[type[Event], ...]] = (Said,)

    def __init__(self, watched: Cell, value: int) -> None:
        super().__init__()
        self.watched = watched
        self.value = value

    def observe(self, step: Step, event: Event) -> None:
        if step[self.watched] == self.value:
            step.violate(self, f"{self.watched.name} is {self.value}")


class NeverAfter(Ghost):
    """``second`` is not said right after ``first``.  It remembers, in a cell of its own."""

    name = "never-after"
    kind = DISCIPLINE
    meaning = "two words do not follow each other"
    hears: ClassVar[tuple[type[Event], ...]] = (Said,)

    def __init__(self, layout: Layout, first: int, second: int) -> None:
        super().__init__()
        self.cell = layout.cell("last word", -1)
        self.first = first
        self.second = second

    def observe(self, step: Step, event: Event) -> None:
        assert isinstance(event, Said)
        assert self.cell is not None
        if step[self.cell] == self.first and event.what == self.second:
            step.violate(self, f"{self.second} after {self.first}")
        step[self.cell] = event.what


# --- programs whose numbers are published -------------------------------------------------------


def incr(threads: int, times: int) -> Machine:
    """Each thread, ``times`` times: read x, write what it read plus one."""
    layout = Layout()
    x = layout.cell("x", 0)

    async def body() -> None:
        for _ in range(times):
            value = await Read(x)
            await Write(x, value + 1)

    return make_machine(layout, [body] * threads)


def mutex_incr(threads: int, times: int) -> Machine:
    """The same with a lock around each increment."""
    layout = Layout()
    lock = SpinLock(layout, "lock", chunk=layout.chunk("lock"))
    x = layout.cell("x", 0, guard=UnderSpin(lock))

    async def body() -> None:
        for _ in range(times):
            await lock.lock()
            value = await Read(x)
            await Write(x, value + 1)
            await lock.unlock()

    return make_machine(layout, [body] * threads)


def lastzero(writers: int) -> Machine:
    """Thread i > 0: ``a[i] = a[i - 1] + 1``.  Thread 0 looks for the last cell that is zero."""
    layout = Layout()
    cells = tuple(layout.cell(f"a[{i}]", 0) for i in range(writers + 1))

    async def reader() -> None:
        i = writers
        while await Read(cells[i]) != 0:
            i -= 1

    def writer(i: int) -> Start:
        async def body() -> None:
            value = await Read(cells[i - 1])
            await Write(cells[i], value + 1)

        return body

    return make_machine(layout, [reader, *(writer(i) for i in range(1, writers + 1))])


# --- going round for ever -----------------------------------------------------------------------


def bounce(*, progress: bool = False, partner: str = "bounces") -> Machine:
    """Two threads hand a flag to and fro for ever.

    With ``progress`` one of them gets on each time.  The partner can instead be one that ``ends``.
    """
    layout = Layout()
    flag = layout.cell("flag", 0)

    async def ping() -> None:
        while True:
            await WaitUntil(flag, 0)
            await Write(flag, 1)

    async def pong() -> None:
        while True:
            await WaitUntil(flag, 1)
            if progress:
                await Emit(PROGRESS)
            await Write(flag, 0)

    async def ends() -> None:
        await WaitUntil(flag, 1)

    return make_machine(layout, [ping, ends if partner == "ends" else pong])


def spin(*, owner: str) -> Machine:
    """One thread reads a flag until it is set; the ``owner`` ``sets`` it, ``ends`` or ``waits``."""
    layout = Layout()
    flag = layout.cell("flag", 0)
    other = layout.cell("other", 0)

    async def spinner() -> None:
        while await Read(flag) == 0:
            pass

    async def sets() -> None:
        await Write(other, 1)
        await Write(flag, 1)

    async def ends() -> None:
        await Write(other, 1)

    async def waits() -> None:
        await WaitUntil(other, 1)
        await Write(flag, 1)

    return make_machine(layout, [spinner, {"sets": sets, "ends": ends, "waits": waits}[owner]])


# --- random programs ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leave(Op):
    """The thread is no visitor any more."""

    alive: Cell

    def apply(self, step: Step, alternative: int) -> None:
        step[self.alive] = step[self.alive] & ~(1 << step.thread)

    def mover(self, step: Step) -> str:
        return LEFT


@dataclass(frozen=True, slots=True)
class Reclaim:
    """An RCU callback that sets a cell."""

    number: int
    cell: Cell = field(compare=False)

    def grace_period_starts(self, step: Step) -> None:
        """Nothing yet."""

    def grace_period_over(self, step: Step) -> None:
        """Reclaimed."""
        step[self.cell] = 1


class Lockdep(Ghost):
    """Locks are held where they should be."""

    name = "lockdep"
    kind = DISCIPLINE
    meaning = "guarded cells are touched under their locks, and locks released by their owners"
    hears: ClassVar[tuple[type[Event], ...]] = (UnguardedAccess, LockNotHeld, BadUnlock)

    def observe(self, step: Step, event: Event) -> None:
        step.violate(self, repr(event))


def guarded(held: tuple[str, ...], write: bool) -> list[str]:
    """The guarded cells that may be touched with those locks held."""
    cells = ["g_spin"] if "spin0" in held else []
    if "wlock" in held:
        cells += ["g_write", "g_published", "g_both", "g_either", "g_either"]
    elif "rlock" in held:
        cells += ["g_either", "g_either"] if write else ["g_write", "g_published", "g_either"]
        cells += ["g_both"] if "spin1" in held else []
    return cells


GUARDED_BY = {
    "g_spin": ("spin0",),
    "g_write": ("wlock", "rlock"),
    "g_published": ("wlock", "rlock"),
    "g_both": ("wlock", "rlock", "spin1"),
    "g_either": ("wlock", "rlock"),
}

LOCKS = {
    "spin0": ("await spin0.lock()", "await spin0.unlock()"),
    "spin1": ("await spin1.lock()", "await spin1.unlock()"),
    "rlock": ("await rw.read_lock()", "await rw.read_unlock()"),
    "wlock": ("await rw.write_lock()", "await rw.write_unlock()"),
    "rcu": ("await rcu.read_lock()", "await rcu.read_unlock()"),
}


class Writer:
    """Writes the source of random threads.  ``kinds`` says what they are made of."""

    def __init__(self, random: Random, kinds: Sequence[str], sloppy: float) -> None:
        self.random = random
        self.kinds = kinds
        self.sloppy = sloppy
        self.written = 0
        self.favourite = ""

    def focus(self, cell: str) -> None:
        """Threads that take different locks have little to say to each other: agree on one cell."""
        self.favourite = cell
        self.kinds = [k for k in self.kinds if k not in LOCKS or k in GUARDED_BY[cell]]

    def cell(self, held: tuple[str, ...], write: bool) -> str:
        """One that is free for all, or guarded by what is held; at times another."""
        pick = self.random
        mine = guarded(held, write)
        if mine and pick.random() < 0.8:
            return self.favourite if self.favourite in mine else pick.choice(mine)
        if pick.random() < self.sloppy:
            return pick.choice(["g_spin", "g_write", "g_published", "g_both", "g_either"])
        if not write and "wlock" in self.kinds and pick.random() < 0.25:
            return "g_published"
        free = ["x", "x", "y", *(["freed"] if "call" in self.kinds else [])]
        return "x" if self.favourite else pick.choice(free)

    def block(self, operations: int, held: tuple[str, ...] = ()) -> list[str]:
        """Statements of about that many operations."""
        lines: list[str] = []
        while operations > 0:
            more, used = self.statement(operations, held)
            lines += more
            operations -= used
        return lines or ["pass"]

    def statement(self, left: int, held: tuple[str, ...]) -> tuple[list[str], int]:
        """One statement and the number of its operations."""
        pick = self.random
        kinds = [k for k in self.kinds if "rcu" not in held or k not in ASLEEP]
        if held and pick.random() < 0.6:
            kinds = [k for k in kinds if k in ACCESSES]
        kind = pick.choice(kinds)
        r, k, k2 = pick.choice(REGISTERS), pick.randrange(3), pick.randrange(3)
        c = self.cell(held, kind != "read")
        self.written += 1
        value = pick.choice([str(k), str(self.written), f"({r} + 1) % 3"])
        simple = {
            "read": f"{r} = await Read({c})",
            "write": f"await Write({c}, {value})",
            "cas": f"{r} = await CmpXchg({c}, {k}, {k2})",
            "add": f"{r} = await Add({c}, 1)",
            "xchg": f"{r} = await Xchg({c}, {value})",
            "choose": f"{r} = await Choose('?', (0, {1 + k2}))",
            "wait": f"await WaitUntil({pick.choice('xy')}, {k})",
            "say": f"await Say({k})",
            "needbreak": f"{r} = await rw.needbreak()",
            "held": pick.choice(["await rw.assert_held_write()", "await rw.assert_held_read()"]),
            "call": f"await rcu.call(Reclaim({k}, freed))",
            "synchronize": "await rcu.synchronize()",
            "barrier": "await rcu.barrier()",
        }
        if kind in simple:
            return [simple[kind]], 1
        if kind == "raise":
            return [f"if {r} == {1 + k2}:", f"    raise RuntimeError('{r} is {1 + k2}')"], 0
        if kind == "if":
            size = pick.randint(1, max(1, left))
            lines = [f"if {r} {pick.choice(['==', '!='])} {k}:", *indent(self.block(size, held))]
            if pick.random() < 0.5:
                lines += ["else:", *indent(self.block(pick.randint(1, size), held))]
            return lines, size
        if kind == "twice":
            size = max(1, left // 2)
            return ["for _ in range(2):", *indent(self.block(size, held))], 2 * size
        take, give = LOCKS[kind]
        size = pick.randint(1, max(1, left - 2))
        inside = self.block(size, (*held, kind))
        mishap = pick.random()
        if mishap < self.sloppy / 4:
            return [take, *inside], size + 1
        if mishap < self.sloppy / 2:
            give = pick.choice(list(LOCKS.values()))[1]
        return [take, *inside, give], size + 2


def indent(lines: list[str]) -> list[str]:
    """One level deeper."""
    return ["    " + line for line in lines]


REGISTERS = "abcd"

ACCESSES = ("read", "write", "cas", "add", "xchg")

ASLEEP = ("synchronize", "barrier", "wait")
"""What must not be done in a read-side section of RCU."""

PLAIN = ("read", "read", "write", "write", "cas", "add", "xchg", "if", "say", "twice")
CHOICES = (*PLAIN, "choose", "choose", "wait", "raise")
LOCKING = ("spin0", "spin1", "wlock", "rlock") * 2 + (
    "read",
    "read",
    "write",
    "write",
    "cas",
    "add",
)
LOCKING += ("say", "if", "choose", "held", "needbreak")
WITH_RCU = ("rcu", "rcu", "call", "synchronize", "barrier", "read", "write", "say", "if")
EVERYTHING = (*CHOICES, *LOCKING, *WITH_RCU)


@dataclass(frozen=True, slots=True)
class Program:
    """A random machine, made anew by each :meth:`build`; its text is the source of its threads."""

    seed: int
    sources: tuple[str, ...]
    ghost: tuple[Any, ...]
    queued: bool
    mask: int
    alone: int

    def __str__(self) -> str:
        setup = f"# seed {self.seed}, {self.ghost}, queued={self.queued}, mask={self.mask:#x}"
        return "\n".join([setup, *self.sources])

    def build(self) -> Machine:
        """The machine, with guards that have not lost their trust yet."""
        layout = Layout()
        locks = layout.chunk("locks")
        spins = tuple(SpinLock(layout, f"spin{i}", chunk=locks) for i in range(2))
        rw = RwLock(layout, "rw", chunk=layout.chunk("rw"), queued=self.queued)
        count = len(self.sources)
        rcu = Rcu(layout, "rcu", count, chunk=layout.chunk("rcu"))
        alive = layout.cell("alive", (1 << count) - 1)
        visitors = Visitors("either", alive)
        visitors.mask = self.mask
        guards: dict[str, Guard] = {
            "g_spin": UnderSpin(spins[0]),
            "g_write": UnderWriteLock(rw),
            "g_published": UnderWriteLock(rw, lockless_reads=True),
            "g_both": UnderSpinOrWrite(rw, spins[1]),
            "g_either": UnderEitherMode(rw, visitors),
        }
        shared = layout.chunk("shared")
        names: dict[str, Any] = {
            name: layout.cell(name, 0, guard=guard) for name, guard in guards.items()
        }
        names |= {name: layout.cell(name, 0, chunk=shared) for name in ("x", "y")}
        names |= {f"out{i}": layout.cell(f"out{i}", None) for i in range(count)}
        names |= {"spin0": spins[0], "spin1": spins[1], "rw": rw, "rcu": rcu, "alive": alive}
        names["freed"] = layout.cell("freed", 0)
        fast = UnderEitherMode(rw, Visitors("fast", alive), rcu.reading)
        listed = UnderSpinOrWrite(rw, spins[1], lockless_reads=True, alive=alive)
        names["g_fast"] = layout.cell("g_fast", 0, guard=fast)
        names["g_listed"] = layout.cell("g_listed", 0, guard=listed)
        names["g_fixed"] = layout.cell("g_fixed", 0, guard=Unchanged("fixed"))
        names["PROGRESS"] = PROGRESS
        for op in (Read, Write, CmpXchg, Add, Xchg, Choose, WaitUntil, Emit, Say, Leave, Reclaim):
            names[op.__name__] = op
        for source in self.sources:
            exec(compile(source, f"<seed {self.seed}>", "exec"), names)
        ghosts: list[Ghost] = [Lockdep()]
        what, kind, first, second = self.ghost
        if what == "then":
            ghosts.append(NeverThen(names[first], second))
        else:
            ghosts.append(NeverAfter(layout, first, second))
        ghosts[-1].kind = kind  # type: ignore[misc]
        bodies = [names[f"thread{i}"] for i in range(count)]
        end = count - self.alone
        return make_machine(layout, bodies[:end], ghosts=ghosts, alone=bodies[end:])


def written(
    *bodies: str,
    queued: bool = False,
    ghost: tuple[Any, ...] = ("then", HARM, "x", -1),
    mask: int = -1,
    alone: int = 0,
) -> Program:
    """A program by hand: each thread's statements, separated by semicolons."""
    sources = []
    for thread, body in enumerate(bodies):
        lines = ["a = b = 0", *body.split("; "), f"await Write(out{thread}, (a, b))"]
        sources.append("\n    ".join([f"async def thread{thread}():", *lines]))
    return Program(-1, tuple(sources), ghost, queued, mask, alone)


def random_program(
    seed: int, kinds: Sequence[str], *, threads: int = 0, operations: int = 0
) -> Program:
    """A program that the seed determines."""
    random = Random(seed)
    count = threads or random.choice([2, 2, 3])
    writer = Writer(random, kinds, random.choice([0.0, 0.0, 0.2]))
    if "rlock" in kinds and random.random() < 0.7:
        writer.focus(random.choice(list(GUARDED_BY)))
    most = operations or (5 if count == 2 else 3) + 2 * ("rlock" in kinds or "rcu" in kinds)
    alone = int(random.random() < 0.15)
    sources = []
    for thread in range(count + alone):
        last = thread == count
        if last:
            writer.kinds = [k for k in kinds if k in PLAIN]
        lines = writer.block(random.randint(2, most))
        if any("g_either" in line for line in lines):
            lines.append("await Leave(alive)")
        if count == 2 or random.random() < 0.3:
            lines.append(f"await Write(out{thread}, (a, b, c, d))")
        head = [f"async def thread{thread}():", "    a = b = c = d = 0"]
        sources.append("\n".join([*head, *indent(lines)]))
    kind = random.choice([HARM, DISCIPLINE])
    watched = ["x", "y", *(["freed"] * 4 if "call" in kinds else [])]
    cell = random.choice(watched)
    ghost: tuple[Any, ...] = ("then", kind, cell, 1 if cell == "freed" else random.randrange(3))
    if random.random() < 0.5:
        ghost = ("after", kind, random.randrange(3), random.randrange(3))
    mask = random.choice([-1, -1, (1 << count) - 1, random.randrange(1 << count)])
    return Program(seed, tuple(sources), ghost, random.random() < 0.5, mask, alone)


# --- random programs that go round ----------------------------------------------------------------


def random_rounds(seed: int) -> Machine:
    """Two or three threads, most of which go round for ever, on two small cells and a lock."""
    random = Random(seed)
    layout = Layout()
    names: dict[str, Any] = {name: layout.cell(name, 0) for name in ("x", "y")}
    names["spin"] = SpinLock(layout, "spin", chunk=layout.chunk("spin"))
    names["PROGRESS"] = PROGRESS
    for op in (Read, Write, CmpXchg, Choose, WaitUntil, Emit):
        names[op.__name__] = op
    count = random.choice([2, 2, 3])
    for thread in range(count):
        lines = []
        for _ in range(random.randint(1, 3)):
            cell, value = random.choice("xy"), random.randrange(2)
            line = random.choice(
                [
                    f"a = await Read({cell})",
                    f"await Write({cell}, {value})",
                    f"await Write({cell}, 1 - a)",
                    f"await CmpXchg({cell}, {value}, {1 - value})",
                    f"await WaitUntil({cell}, {value})",
                    f"while await Read({cell}) == {value}: pass",
                    "a = await Choose('?', (0, 1))",
                    "await spin.lock()",
                    "await spin.unlock()",
                    f"if a == {value}: break",
                    f"if a == {value}: await Emit(PROGRESS)",
                    "await Emit(PROGRESS)",
                ]
            )
            lines.append(line)
        if random.random() < 0.75:
            lines = ["while True:", *indent([*lines, f"await Read({random.choice('xy')})"])]
        else:
            lines = ["while True:", *indent([*lines, "break"])]
        source = "\n".join([f"async def thread{thread}():", "    a = 0", *indent(lines)])
        exec(compile(source, f"<rounds {seed}>", "exec"), names)
    return make_machine(layout, [names[f"thread{i}"] for i in range(count)])
