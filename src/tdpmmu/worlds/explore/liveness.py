"""What bytecode tells of an ``await``: which locals are still needed, what waits on the stack.

A coroutine suspended in an ``await`` goes on as a function of its frame, and of that only what
later instructions read.  The analyses are the classic ones over ``dis`` instructions, with edges
to exception handlers, and run once per code object.  Where an instruction is not known they assume
the worst.
"""

from __future__ import annotations

import dis
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

FRAME_READERS: Final = frozenset({"locals", "vars", "dir", "eval", "exec"})
"""Builtins that read the caller's frame: code that names one keeps all its locals."""

_NO_FALL_THROUGH: Final = frozenset(
    {
        "JUMP_FORWARD",
        "JUMP_BACKWARD",
        "JUMP_BACKWARD_NO_INTERRUPT",
        "RETURN_VALUE",
        "RETURN_CONST",
        "RAISE_VARARGS",
        "RERAISE",
        "INTERPRETER_EXIT",
    }
)
_PAIRS: Final = frozenset({"LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST"})
_SLOT_READERS: Final = frozenset(
    {
        "LOAD_FAST",
        "LOAD_FAST_CHECK",
        "LOAD_FAST_AND_CLEAR",  # reads the old value, which an inlined comprehension puts back
        "DELETE_FAST",  # whether the local is bound decides whether this raises
        "LOAD_CLOSURE",
        "LOAD_DEREF",
        "LOAD_CLASSDEREF",
        "LOAD_FROM_DICT_OR_DEREF",
        "STORE_DEREF",  # needs the cell, which others may share
        "DELETE_DEREF",
    }
)
_NEITHER: Final = frozenset({"MAKE_CELL", "COPY_FREE_VARS"})
_COMPREHENSIONS: Final = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})
_STOPITERATION_ERROR: Final = 3
"""``CALL_INTRINSIC_1``'s argument in the handler that wraps every coroutine since 3.12."""


@dataclass(frozen=True, slots=True)
class Site:
    """One ``await``: the live slots, how many operands are below the awaited object, or trouble."""

    live: tuple[int, ...]
    depth: int
    trouble: str | None


def uses_and_kills(name: str, arg: int | None) -> tuple[int, int] | None:
    """The slots (as bit sets) that an instruction reads, and overwrites; None if not known.

    Only for instructions on locals and cells.  Storing cannot raise, so that an exception handler
    finds the overwritten value is out of the question.
    """
    if arg is None:
        return None
    if name in _PAIRS:
        first, second = 1 << (arg >> 4), 1 << (arg & 15)
        if name == "LOAD_FAST_LOAD_FAST":
            return first | second, 0
        if name == "STORE_FAST_STORE_FAST":
            return 0, first | second
        return second & ~first, first
    if name in _SLOT_READERS:
        return 1 << arg, 0
    if name == "STORE_FAST":
        return 0, 1 << arg
    if name in _NEITHER:
        return 0, 0
    return None


class CodeFacts:
    """The facts of one code object.  Identity stands for the code object in keys.

    (Code objects compare by content, without file name: two modules made from one template would
    have equal ones.)
    """

    __slots__ = (
        "_depth",
        "_handlers",
        "_index",
        "_ins",
        "_live",
        "_sites",
        "code",
        "free",
        "has_cells",
        "rebinds",
        "slots",
    )

    def __init__(self, code: CodeType) -> None:
        self.code = code
        cells = tuple(name for name in code.co_cellvars if name not in code.co_varnames)
        self.slots = (
            *((name, name not in code.co_cellvars) for name in code.co_varnames),
            *((name, False) for name in cells + code.co_freevars),
        )
        """Arguments and locals, cells, free variables: name, and whether the value is in the slot
        itself rather than in a cell."""
        self.has_cells = not all(plain for _, plain in self.slots)
        self.free = len(code.co_varnames) + len(cells)
        """The first slot of a free variable."""
        self._ins = list(dis.get_instructions(code))
        self._index = {ins.offset: number for number, ins in enumerate(self._ins)}
        stored = {i.argval for i in self._ins if i.opname in ("STORE_DEREF", "DELETE_DEREF")}
        self.rebinds = next((name for name in code.co_freevars if name in stored), None)
        """A captured variable that this code assigns to (``nonlocal``), if there is one."""
        self._handlers = self._find_handlers()
        self._depth: list[int] | None = None
        self._live: list[int] | None = None  # worked out for the first site
        self._sites: dict[int, Site] = {}

    def __repr__(self) -> str:
        return f"<facts of {self.code.co_qualname}>"

    def site(self, lasti: int) -> Site:
        """The ``await`` in which a frame is suspended whose ``f_lasti`` is ``lasti``."""
        site = self._sites.get(lasti)
        if site is None:
            site = self._sites[lasti] = self._make_site(lasti)
        return site

    def live_after(self, offset: int) -> int:
        """The slots (as a bit set) some instruction after the one at ``offset`` may read."""
        live_in = self._live_in()
        index = self._index[offset]
        live = 0
        for successor in self._successors(index):
            live |= live_in[successor]
        return live

    def line(self, lasti: int) -> int:
        """The source line of an instruction."""
        index = self._index[lasti]
        positions = self._ins[index].positions
        if positions is None or positions.lineno is None:
            return self.code.co_firstlineno
        return positions.lineno

    # -- the flow graph ----------------------------------------------------------------------

    def _find_handlers(self) -> list[tuple[int, int] | None]:
        """For each instruction, the handler (index, stack depth on entry) of its exceptions."""
        handlers: list[tuple[int, int] | None] = [None] * len(self._ins)
        entries: Any = dis.Bytecode(self.code).exception_entries  # type: ignore[attr-defined]
        for entry in entries:
            target = self._index[entry.target]
            for number, ins in enumerate(self._ins):
                if entry.start <= ins.offset < entry.end and handlers[number] is None:
                    handlers[number] = (target, entry.depth + int(entry.lasti) + 1)
        return handlers

    def _jump(self, index: int) -> int | None:
        ins = self._ins[index]
        if ins.opcode in dis.hasjrel or ins.opcode in dis.hasjabs:
            return self._index[ins.argval]
        return None

    def _successors(self, index: int) -> list[int]:
        out = []
        target = self._jump(index)
        if target is not None:
            out.append(target)
        if self._ins[index].opname not in _NO_FALL_THROUGH and index + 1 < len(self._ins):
            out.append(index + 1)
        handler = self._handlers[index]
        if handler is not None:
            out.append(handler[0])
        return out

    # -- liveness ----------------------------------------------------------------------------

    def _uses_and_kills(self, ins: dis.Instruction) -> tuple[int, int]:
        if ins.opcode not in dis.haslocal and ins.opcode not in dis.hasfree:
            return 0, 0
        known = uses_and_kills(ins.opname, ins.arg)
        return ((1 << len(self.slots)) - 1, 0) if known is None else known

    def _live_in(self) -> list[int]:
        """For each instruction, the slots that it or a later one may read (backward dataflow)."""
        if self._live is not None:
            return self._live
        count = len(self._ins)
        effects = [self._uses_and_kills(ins) for ins in self._ins]
        always = 0
        if any(i.opname == "LOAD_GLOBAL" and i.argval in FRAME_READERS for i in self._ins):
            always = (1 << len(self.slots)) - 1
        elif "__class__" in self.code.co_freevars:
            # super() without arguments finds these two in the frame, without an instruction.
            always = 1 | 1 << self.slots.index(("__class__", False))
        successors = [self._successors(index) for index in range(count)]
        live = [always] * count
        changed = True
        while changed:
            changed = False
            for index in range(count - 1, -1, -1):
                uses, kills = effects[index]
                out = always
                for successor in successors[index]:
                    out |= live[successor]
                new = uses | always | (out & ~kills)
                if new != live[index]:
                    live[index] = new
                    changed = True
        self._live = live
        return live

    # -- what an await finds on the stack, and around it --------------------------------------

    def _make_site(self, lasti: int) -> Site:
        index = self._index[lasti]
        if self._ins[index].opname == "RESUME" and self._ins[index - 1].opname == "YIELD_VALUE":
            index -= 1  # since 3.13 a suspended frame points behind its YIELD_VALUE
        trouble = self._trouble(index)
        depth = -1
        if trouble is None:
            depth = self._depths()[index] - 2  # YIELD_VALUE finds the awaited object and a value
            if depth < 0:
                trouble = "stands at an instruction whose stack is not understood"
        bits = self.live_after(self._ins[index].offset)
        live = tuple(slot for slot in range(len(self.slots)) if bits >> slot & 1)
        return Site(live, depth, trouble)

    def _trouble(self, index: int) -> str | None:
        if self._ins[index].opname != "YIELD_VALUE":
            return f"is suspended at {self._ins[index].opname}, which is no await"
        if self.code.co_name in _COMPREHENSIONS:
            return "awaits inside a comprehension; write a for loop"
        for before in range(index - 1, max(index - 6, -1), -1):
            ins = self._ins[before]
            if ins.opname == "GET_ANEXT":
                return "uses 'async for'; write a for loop whose body awaits operations"
            if ins.opname == "GET_AWAITABLE":
                if ins.arg:
                    return "uses 'async with'; await the operations before and after the block"
                break
        else:
            return "is suspended at a yield, which is no await"
        return self._block(index) or self._finally(index)

    def _finally(self, index: int) -> str | None:
        """A ``finally`` body is compiled twice; the copy without an exception shows no block."""
        place = self._ins[index].positions
        if place is None or place.col_offset is None:
            return None
        for other, ins in enumerate(self._ins):
            if other != index and ins.opname == "YIELD_VALUE" and ins.positions == place:
                trouble = self._block(other)
                if trouble is not None:
                    return trouble
        return None

    def _block(self, index: int) -> str | None:
        """Which block with an exception handler stands around an instruction, if one does."""
        seen = set()
        handler = self._handlers[index]
        while handler is not None and handler[0] not in seen:
            target = handler[0]
            seen.add(target)
            ins = self._ins[target]
            if ins.opname == "CLEANUP_THROW":  # each await's own; the next one is what counts
                handler = self._handlers[target]
                continue
            if ins.opname == "CALL_INTRINSIC_1" and ins.arg == _STOPITERATION_ERROR:
                return None
            if ins.opname == "SWAP":
                return "awaits inside a comprehension; write a for loop"
            if ins.opname == "PUSH_EXC_INFO":
                if self._ins[target + 1].opname == "WITH_EXCEPT_START":
                    return "awaits inside 'with'; take and release explicitly, without a block"
                return "awaits inside 'try'; await before or after the block"
            return "awaits inside 'except' or 'finally'; await after the block"
        return None

    def _depths(self) -> list[int]:
        """How many values are on the stack before each instruction; -1 where that is not known."""
        if self._depth is not None:
            return self._depth
        depths = [-1] * len(self._ins)
        depths[0] = 0
        work = [0]
        while work:
            index = work.pop()
            ins = self._ins[index]
            edges = []
            if ins.opname not in _NO_FALL_THROUGH and index + 1 < len(self._ins):
                edges.append((index + 1, depths[index] + _effect(ins, False)))
            target = self._jump(index)
            if target is not None:
                edges.append((target, depths[index] + _effect(ins, True)))
            handler = self._handlers[index]
            if handler is not None:
                edges.append(handler)
            for successor, depth in edges:
                if depths[successor] < 0:
                    depths[successor] = depth
                    work.append(successor)
                if depth < 0 or depths[successor] != depth:  # not as this module understands it
                    self._depth = [-1] * len(self._ins)
                    return self._depth
        self._depth = depths
        return depths


def _effect(ins: dis.Instruction, jump: bool) -> int:
    if ins.opname == "RETURN_GENERATOR":
        return 1  # the value of the first send(), which the next instruction drops
    return dis.stack_effect(ins.opcode, ins.arg, jump=jump)


_FACTS: dict[int, CodeFacts] = {}


def facts_of(code: CodeType) -> CodeFacts:
    """The facts of a code object, worked out once (the table keeps it alive, so ids stay true)."""
    facts = _FACTS.get(id(code))
    if facts is None:
        facts = _FACTS[id(code)] = CodeFacts(code)
    return facts
