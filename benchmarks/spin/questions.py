"""What is asked of both: how ``tdpmmu check`` is called, and the macros of the Promela model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BOTH = ("flush-on-nx-zap", "flush-when-yielding")
NX_SIZES = {
    "S": {"fanout": 2, "vcpus": 1, "nx-pages": 1, "legacy": 1, "gfns": 2, "faults": 1},
    "M": {"fanout": 2, "vcpus": 2, "nx-pages": 2, "legacy": 2, "gfns": 2, "faults": 1},
    "L": {"fanout": 4, "vcpus": 2, "nx-pages": 2, "legacy": 2, "gfns": 3, "faults": 1},
}
HASH_BITS = {"S": 18, "M": 23, "L": 24}
Z2 = "vcpu0: r0; smm1: r0; mtrr: zap-range:0-3; host: unmap:0"
Z36 = "vcpu0: w0; apicv: zap-range:0-3"


@dataclass(frozen=True, slots=True)
class Question:
    """``check`` are the arguments of ``tdpmmu check``; ``prop`` what the side with the bug breaks.

    ``hash_bits``: pan's ``-w``, about the logarithm of the number of its states.
    """

    name: str
    fixed: bool
    check: tuple[str, ...]
    model: Path
    macros: tuple[str, ...]
    prop: str
    hash_bits: int = 18


def nx_recovery(size: str, fixed: bool, *macros: str, prop: str = "stale-translation") -> Question:
    """The family: without its patches 5.12-rc4 has the bug."""
    parameters = NX_SIZES[size]
    check = ["nx-recovery", "--kernel", "5.12-rc4", "--levels", "3", "--roots", "2"]
    for name, value in parameters.items():
        check += [f"--{name}", str(value)]
    for patch in BOTH if fixed else ():
        check += ["--patch", patch]
    defined = [f"-D{name.upper().split('-')[0]}={value}" for name, value in parameters.items()]
    defined += ["-DFLUSH_ON_NX_ZAP"] if fixed else []
    return Question(
        size,
        fixed,
        tuple(check),
        HERE / "nx_recovery.pml",
        (*defined, *(f"-D{macro}" for macro in macros)),
        prop,
        HASH_BITS[size],
    )


def zoo(name: str, fixed: bool, *macros: str) -> Question:
    """``z2`` or ``z36``, two entries of the zoo."""
    kernel, threads, setup, prop = {
        "z2": ("5.12", Z2, "1:w0 0:w2", "stale-translation"),
        "z36": ("6.1", Z36, "w0 w2", "leftover"),
    }[name]
    check = ["script", "--kernel", kernel, "--set", f"threads={threads}", "--set", f"setup={setup}"]
    check += [] if fixed else ["--patch", name]
    defined = [f"-D{name.upper()}", *(["-DFIXED"] if fixed else [])]
    defined += [f"-D{macro}" for macro in macros]
    return Question(name, fixed, tuple(check), HERE / "zap_range.pml", tuple(defined), prop)
