"""The language of step lists, and its translation to the driver's.

A list is words separated by spaces.  Each is ``NAME``, ``NAME:ARGUMENTS``, and for guest accesses
``NAME@VCPU:RANGE&``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from tdpmmu.lab.errors import LabError
from tdpmmu.lab.vm import BLOCK_PAGES, NX_PARAMETERS, VmSetup

_STEP = re.compile(
    r"(?P<name>[a-z]+(?:-[a-z]+)?[+-]?)(?:@(?P<vcpu>\d|\*))?(?::(?P<args>[^&]*))?(?P<bg>&)?"
)
_RANGE = re.compile(r"(\d+)(?:\.(\d+))?(?:-(\d+)(?:\.(\d+))?)?(?:/(\d+))?")
_MMIO_PAGE = 0xC0000
"""Where no memslot is: 3 GiB."""

_MADVISE = {"dontneed": 4, "huge": 14, "nohuge": 15, "collapse": 25}
"""``MADV_*`` of x86."""

RANGES = """\
A range is counted in blocks of 2M: 3, 1-8, 1-8/2 (every second); of each the first byte is touched.
With a dot it is counted in 4K pages: 3.5 is page 5 of block 3; 3.0-3.511; 1.0-2.511/16 (each 16th).
Without a range a step means all data blocks, from 1 on."""

OPTIONS = """\
An access runs on vCPU 0; @1 names another, @* all vCPUs at once. With & at its end it goes on in
the background, again and again, until stop, the vCPU's next access or the end of the list."""


@dataclass(frozen=True, slots=True)
class Pages:
    """``count`` pages from ``first`` on, ``stride`` pages apart; ``last`` ends the range."""

    first: int
    stride: int
    count: int
    last: int

    @property
    def words(self) -> str:
        """For the driver."""
        return f"{self.first:#x} {self.stride:#x} {self.count}"

    @property
    def whole(self) -> str:
        """First page and number of pages, for steps that take memory without gaps."""
        return f"{self.first:#x} {self.last - self.first + 1}"


@dataclass(frozen=True, slots=True)
class Step:
    """One step as written, taken apart."""

    text: str
    name: str
    vcpu: str | None
    arguments: str | None
    background: bool
    setup: VmSetup

    def pages(self) -> Pages:
        """The range that it names, or all blocks."""
        blocks = self.setup.blocks
        text = self.arguments if self.arguments is not None else f"1-{blocks}"
        match = _RANGE.fullmatch(text)
        if match is None:
            raise self.wrong("expected a range like 3, 1-8, 1-8/2, 3.5 or 3.0-3.511")
        block, page, end, end_page, stride = match.groups()
        unit = 1 if page is not None else BLOCK_PAGES
        first = self._page(block, page)
        last = first if end is None else self._page(end, end_page)
        step = int(stride or 1)
        if end is not None and (page is None) != (end_page is None):
            raise self.wrong("expected both ends in blocks, or both in pages")
        if last < first or not step:
            raise self.wrong("the range is empty")
        count = (last - first) // (unit * step) + 1
        return Pages(first, unit * step, count, last + unit - 1)

    def _page(self, block: str, page: str | None) -> int:
        if not 1 <= int(block) <= self.setup.blocks:
            raise self.wrong(f"block {block}: data blocks are 1 to {self.setup.blocks}")
        if int(page or 0) >= BLOCK_PAGES:
            raise self.wrong(f"page {page}: a block has pages 0 to {BLOCK_PAGES - 1}")
        return int(block) * BLOCK_PAGES + int(page or 0)

    def mask(self) -> str:
        """The vCPUs that an access runs on."""
        if self.vcpu == "*":
            return hex((1 << self.setup.vcpus) - 1)
        number = int(self.vcpu or 0)
        if number >= self.setup.vcpus:
            raise self.wrong(f"there are {self.setup.vcpus} vCPUs, from 0 on")
        return hex(1 << number)

    def number(self, what: str, known: tuple[int, ...] = ()) -> int:
        """The argument as a number."""
        text = self.arguments or ""
        if not re.fullmatch(r"\d{1,6}", text) or (known and int(text) not in known):
            one_of = f", one of {', '.join(map(str, known))}" if known else ""
            raise self.wrong(f"expected {self.name}:{what}{one_of}")
        return int(text)

    def wrong(self, why: str) -> LabError:
        """The error to raise."""
        return LabError(f"step {self.text}: {why}")


def _access(step: Step) -> str:
    return f"access {step.name} {step.mask()} {step.pages().words} {int(step.background)}"


def _mmio(step: Step) -> str:
    return f"access w {step.mask()} {_MMIO_PAGE:#x} 1 1 {int(step.background)}"


def _host(step: Step) -> str:
    return f"host {step.name[-1]} {step.pages().words}"


def _madvise(step: Step) -> str:
    return f"madvise {_MADVISE[step.name]} {step.pages().whole}"


def _mprotect(step: Step) -> str:
    return f"mprotect {1 if step.name == 'ro' else 3} {step.pages().whole}"


def _param(step: Step) -> str:
    name, equals, value = (step.arguments or "").partition("=")
    if not equals or not value or name not in NX_PARAMETERS:
        raise step.wrong(f"expected param:NAME=VALUE with one of {', '.join(NX_PARAMETERS)}")
    return f"param {name} {value}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of step: how it is written, what it does, and the driver's words for it."""

    usage: str
    what: str
    words: Callable[[Step], str]
    takes_argument: bool = True
    takes_vcpu: bool = False


KINDS: dict[str, Kind] = {
    "w": Kind("w[@V][:RANGE][&]", "the guest writes", _access, takes_vcpu=True),
    "r": Kind("r[@V][:RANGE][&]", "the guest reads", _access, takes_vcpu=True),
    "x": Kind(
        "x[@V][:RANGE][&]",
        "the guest calls; where it has not written before, the host puts a RET there first",
        _access,
        takes_vcpu=True,
    ),
    "mmio": Kind(
        "mmio[@V][&]",
        "the guest writes where there is no memslot (3 GiB)",
        _mmio,
        takes_argument=False,
        takes_vcpu=True,
    ),
    "stop": Kind("stop", "end what runs in the background", lambda s: "stop", False),
    "sleep": Kind("sleep:MS", "the host waits", lambda s: f"sleep {s.number('MS')}"),
    "age": Kind(
        "age:MS",
        "DAMON of the host looks for so long at what is used (6.12 has it)",
        lambda s: f"age {s.number('MS')}",
    ),
    "host-w": Kind("host-w[:RANGE]", "the host writes, through its own page tables", _host),
    "host-r": Kind("host-r[:RANGE]", "the host reads", _host),
    "dlog+": Kind("dlog+", "KVM_MEM_LOG_DIRTY_PAGES on", lambda s: "slot 1", False),
    "dlog-": Kind("dlog-", "and off", lambda s: "slot 0", False),
    "getlog": Kind("getlog", "KVM_GET_DIRTY_LOG", lambda s: "getlog", False),
    "clearlog": Kind(
        "clearlog",
        "KVM_CLEAR_DIRTY_LOG of what the last getlog returned",
        lambda s: "clearlog",
        False,
    ),
    "manual": Kind(
        "manual:N",
        "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0 off, 1 on, 3 on and all dirty at first",
        lambda s: f"manual {s.number('N', (0, 1, 3))}",
    ),
    "dontneed": Kind("dontneed[:RANGE]", "madvise(MADV_DONTNEED)", _madvise),
    "huge": Kind("huge[:RANGE]", "madvise(MADV_HUGEPAGE)", _madvise),
    "nohuge": Kind("nohuge[:RANGE]", "madvise(MADV_NOHUGEPAGE)", _madvise),
    "collapse": Kind("collapse[:RANGE]", "madvise(MADV_COLLAPSE)", _madvise),
    "ro": Kind("ro[:RANGE]", "mprotect(PROT_READ)", _mprotect),
    "rw": Kind("rw[:RANGE]", "mprotect(PROT_READ | PROT_WRITE)", _mprotect),
    "slot-": Kind("slot-", "delete the memslot of the data", lambda s: "slot -1", False),
    "slot+": Kind("slot+", "create it again, without dirty logging", lambda s: "slot 0", False),
    "param": Kind("param:NAME=VALUE", f"set {', '.join(NX_PARAMETERS)}", _param),
}


def parse(text: str, setup: VmSetup) -> list[Step]:
    """Take a list apart; LabError names the first step that makes no sense."""
    steps = [_parse(word, setup) for word in text.split()]
    if not steps:
        raise LabError('no steps: expected some, as in "w x:1-8 sleep:600 w"')
    return steps


def _parse(word: str, setup: VmSetup) -> Step:
    match = _STEP.fullmatch(word)
    name = match["name"] if match else word.partition(":")[0]
    if match is None or name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "see tdpmmu lab steps"
        raise LabError(f"step {word}: no such step; {hint}")
    step = Step(word, name, match["vcpu"], match["args"], bool(match["bg"]), setup)
    kind = KINDS[name]
    if not kind.takes_vcpu and (step.vcpu or step.background):
        raise step.wrong(f"@ and & are for accesses of the guest; expected {kind.usage}")
    if step.arguments is not None and not kind.takes_argument:
        raise step.wrong(f"expected {kind.usage}")
    kind.words(step)
    return step


def driver_program(steps: list[Step]) -> str:
    """The program that the driver reads from its standard input."""
    return "".join(f"{step.text} {KINDS[step.name].words(step)}\n" for step in steps)


def describe() -> str:
    """All steps, for ``tdpmmu lab steps``."""
    width = max(len(kind.usage) for kind in KINDS.values())
    lines = [f"{kind.usage:<{width}}  {kind.what}" for kind in KINDS.values()]
    return "\n".join([*lines, "", RANGES, "", OPTIONS])
