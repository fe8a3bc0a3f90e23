"""A scenario of the model, written as text, as a step list for a real kernel.

The model tries every order of its threads; a real run is one order.  Here the threads take turns,
a step each; an access of a vCPU goes on in the background, again and again, until the vCPU's next
one, so that the other threads' steps meet it.  Where the script leaves a choice (``wx0-1``) the
first is taken.

A gfn of the model is a page of the lab: with ``fanout`` entries in each table, gfns 0 to
``fanout`` - 1 are the first pages of block 1, the next ones those of block 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from tdpmmu.lab.errors import LabError
from tdpmmu.lab.vm import BLOCK_PAGES, NX_PARAMETERS
from tdpmmu.scenarios.script import Program, programs

_ACCESS = re.compile(r"([rwx])[rwx]*(\d+)(?:-\d+)?")
_PERIOD = int(NX_PARAMETERS["nx_huge_pages_recovery_period_ms"])


@dataclass(frozen=True, slots=True)
class Translation:
    """Steps, and what the VM needs to have for them."""

    steps: str
    vcpus: int
    blocks: int


def _nothing(arguments: str, page: Callable[[str], str]) -> str:
    return ""


_ACTIONS: dict[str, Callable[[str, Callable[[str], str]], str]] = {
    "unmap": lambda arguments, page: f"dontneed:{page(arguments or '0')}",
    "recover": lambda arguments, page: f"sleep:{_PERIOD * 3 // 2}",
    "nx-sleep": lambda arguments, page: f"sleep:{_PERIOD}",
    "first-run": _nothing,
    "set-period": lambda arguments, page: f"param:nx_huge_pages_recovery_period_ms={arguments}",
    "log-on": lambda arguments, page: "dlog+",
    "log-off": lambda arguments, page: "dlog-",
    "get-log": lambda arguments, page: "getlog",
    "slot-delete": lambda arguments, page: "slot-",
    "slot-create": lambda arguments, page: "slot+",
}


def translate(threads: str, setup: str = "", fanout: int = 2) -> Translation:
    """The step list of a script; LabError names the step that a real run cannot do."""
    if not 1 <= fanout <= BLOCK_PAGES:
        raise LabError(f"fanout {fanout}: expected 1 to {BLOCK_PAGES}")
    try:
        found = programs(threads)
    except ValueError as error:
        raise LabError(f"script: {error}") from None
    for program in found:
        if program.as_id or program.guest_mode:
            raise LabError(
                f"script: thread {program.name}: the lab has no SMM and no nested guests; "
                "expected vcpuN, or a thread of the host"
            )
    one = _Translator(fanout)
    first = [one.step(text, Program("setup", (), 0), False) for text in setup.split()]
    rounds = zip_longest(*(program.steps for program in found))
    steps = [
        one.step(text, program, True)
        for texts in rounds
        for program, text in zip(found, texts, strict=True)
        if text is not None
    ]
    vcpus = sum(program.vcpu >= 0 for program in found)
    words = [word for word in (*first, *steps, "stop") if word]
    return Translation(" ".join(words), max(1, vcpus), one.last_block)


class _Translator:
    def __init__(self, fanout: int) -> None:
        self._fanout = fanout
        self.last_block = 1

    def page(self, text: str) -> str:
        """A gfn, maybe the first of several, maybe behind an address space."""
        match = re.fullmatch(r"(?:0/)?(\d+)(?:-\d+)?", text)
        if match is None:
            raise ValueError(f"{text!r} is no gfn of address space 0")
        block, page = divmod(int(match[1]), self._fanout)
        self.last_block = max(self.last_block, block + 1)
        return f"{block + 1}.{page}"

    def step(self, text: str, program: Program, background: bool) -> str:
        """One step in the lab's words; empty if it happens by itself."""
        if match := _ACCESS.fullmatch(text):
            vcpu = f"@{program.vcpu}" if program.vcpu else ""
            return f"{match[1]}{vcpu}:{self.page(match[2])}{'&' if background else ''}"
        name, _, arguments = text.partition(":")
        if name not in _ACTIONS:
            can = ", ".join(("accesses", *_ACTIONS))
            raise LabError(f"script: step {text}: a real run cannot do that; it can do {can}")
        try:
            return _ACTIONS[name](arguments, self.page)
        except ValueError as error:
            raise LabError(f"script: step {text}: {error}") from None
