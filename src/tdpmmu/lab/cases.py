"""Random step lists."""

from __future__ import annotations

import random
import shlex
from dataclasses import dataclass

from tdpmmu.lab.errors import LabError
from tdpmmu.lab.initramfs import Job, job
from tdpmmu.lab.steps import parse
from tdpmmu.lab.vm import BACKINGS, BLOCK_PAGES, VmSetup

_WEIGHTS = {
    "w": 16,
    "r": 10,
    "x": 12,
    "background": 6,
    "stop": 3,
    "sleep": 7,
    "dlog+": 7,
    "dlog-": 6,
    "getlog": 7,
    "clearlog": 5,
    "manual": 3,
    "dontneed": 6,
    "ro": 4,
    "rw": 5,
    "slot-": 3,
    "slot+": 5,
    "mmio": 3,
    "host-w": 5,
    "host-r": 2,
    "collapse": 3,
    "huge": 1,
    "nohuge": 2,
    "param": 3,
    "age": 3,
}
_PARAMETERS = (
    "nx_huge_pages=off",
    "nx_huge_pages=force",
    "nx_huge_pages_recovery_ratio=0",
    "nx_huge_pages_recovery_ratio=2",
    "nx_huge_pages_recovery_period_ms=100",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A step list and the VM that it is for."""

    setup: VmSetup
    steps: tuple[str, ...]

    @property
    def text(self) -> str:
        """The list as the user writes it."""
        return " ".join(self.steps)

    @property
    def valid(self) -> bool:
        """Whether the list makes sense in its VM."""
        try:
            parse(self.text, self.setup)
        except LabError:
            return False
        return True

    def job(self) -> Job:
        """For :func:`tdpmmu.lab.boot.boot`."""
        return job(self.setup, self.text)

    def command(self, kernel: str) -> str:
        """The command that runs it again."""
        setup = self.setup
        words = ["tdpmmu", "lab", "run", "--kernel", kernel, "--mmu", setup.mmu]
        words += ["--vcpus", str(setup.vcpus), "--blocks", str(setup.blocks)]
        words += ["--backing", setup.backing, "--guest", setup.paging]
        words += ["--vms", str(setup.vms)] if setup.vms > 1 else []
        return shlex.join([*words, "--steps", self.text])


def random_case(seed: int, number: int, mmu: str, vms: int = 1) -> Case:
    """Case ``number`` of a seed; the same ones for every count."""
    rng = random.Random(f"{seed}/{number}/{mmu}")
    setup = VmSetup(
        mmu=mmu,
        vcpus=rng.choice((1, 2, 2)),
        blocks=rng.randint(2, 6),
        backing=rng.choice((*BACKINGS, "thp", "thp")),
        guest=rng.choice(("flat", "flat", "long") if mmu != "shadow" else ("long", "long-4k")),
        vms=vms,
    )
    draw = _Draw(rng, setup)
    first = draw.access(rng.choice("wwr"))
    length = rng.randint(3, 14)
    kinds = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=length)
    return Case(setup, (first, *(draw.step(kind) for kind in kinds)))


class _Draw:
    def __init__(self, rng: random.Random, setup: VmSetup) -> None:
        self._rng = rng
        self._setup = setup

    def step(self, kind: str) -> str:
        rng = self._rng
        if kind in ("w", "r", "x"):
            return self.access(kind)
        if kind == "background":
            return self.access(rng.choice("wrx")) + "&"
        if kind in ("sleep", "age"):
            return f"{kind}:{rng.choice((20, 100, 300))}"
        if kind == "manual":
            return f"manual:{rng.choice((0, 1, 1, 3, 3))}"
        if kind == "param":
            return f"param:{rng.choice(_PARAMETERS)}"
        if kind == "mmio":
            return "mmio" + self._vcpu()
        if kind in ("dontneed", "ro", "rw", "huge", "nohuge", "collapse", "host-w", "host-r"):
            return kind + self._range()
        return kind

    def access(self, kind: str) -> str:
        return kind + self._vcpu() + self._range()

    def _vcpu(self) -> str:
        if self._setup.vcpus == 1:
            return ""
        return self._rng.choice(("", "", "@1", "@1", "@*"))

    def _range(self) -> str:
        rng, blocks = self._rng, self._setup.blocks
        first = rng.randint(1, blocks)
        form = rng.randrange(8)
        if form < 2:
            return ""
        if form < 4:
            return f":{first}"
        if form < 6:
            return f":{first}-{rng.randint(first, blocks)}"
        page = rng.randrange(BLOCK_PAGES)
        if form == 6:
            return f":{first}.{page}"
        last = rng.randrange(page, BLOCK_PAGES)
        return f":{first}.{page}-{first}.{last}/{rng.choice((1, 7, 16, 64))}"
