"""Random scripts: small scenarios composed of all operations, for Hypothesis to draw and shrink.

Needs Hypothesis (the extra ``campaign``).
"""

from __future__ import annotations

from hypothesis import strategies as st

from tdpmmu.mmu.ageing import NO_AD_BITS
from tdpmmu.mmu.ring import DIRTY_RING
from tdpmmu.scenarios.question import Question
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.registry import apply, kernel_class, patch_class

ACCESSES = tuple(f"{kind}{gfn}" for kind in ("r", "w", "x", "wx") for gfn in ("0", "1", "2", "0-1"))
HOST = ("unmap:0", "unmap:2", "recover", "zap-range:0-3", "zap-range:0-1", "age:0-3")
USER = (
    "slot-delete:0",
    "slot-delete:2",
    "get-log:0",
    "log-on:0",
    "log-off:0",
    "clear-log:0-1",
    "log-on:0 clear-log:0",
    "get-log:0 clear-log:0-1",
    "track:0",
    "private:1",
    "shared:0-1",
    "zap-all-fast",
)
RINGS = ("harvest reset-rings", "harvest", "reset-rings")
"""Only with rings."""

NO_TRACK = tuple(action for action in USER if not action.startswith("track"))
"""Write tracking looks at one address space only in all kernels so far (zoo entry z62)."""

SLOTS = ("", "0-1 2-3 1/0-1 1/2-3", "0-1:log 2-3 1/0-1 1/2-3", "0-3 1/0-3")
"""Slots of both address spaces, with the same host pages."""

OPTIONS = (
    "",
    "pml",
    "no-slot-zap-all",
    "manual-protect",
    "initially-set",
    "pml initially-set",
    "no-eager-page-split",
    "no-ad-bits",
    "dirty-ring",
    "dirty-ring pml",
    "apic-access-page",
)
"""Not ``initially-set`` with ``no-eager-page-split`` or ``dirty-ring``: docs/findings.md says what
that does.
"""

PATCHES = ("flush-each-slot", "age-by-cmpxchg")
"""What closes the findings that random scripts come upon again and again (docs/findings.md)."""


def question(script: Script, kernel: str) -> Question:
    """Whether a script holds on a kernel with those patches."""
    patched = apply(kernel_class(kernel), *(patch_class(name) for name in PATCHES))
    return Question(script, patched, kernel, PATCHES)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """One or two vCPUs with one or two accesses each, one or two other threads with an action."""
    vcpus = draw(st.sampled_from(["vcpu0", "smm0", "vcpu0 vcpu1", "vcpu0 smm1"])).split()
    threads = []
    for name in vcpus:
        count = 2 if len(vcpus) == 1 else 1
        steps = draw(st.lists(st.sampled_from(ACCESSES), min_size=1, max_size=count))
        threads.append(f"{name}: {' '.join(steps)}")
    user = USER if all(name.startswith("vcpu") for name in vcpus) else NO_TRACK
    options = draw(st.sampled_from(OPTIONS))
    if DIRTY_RING in options:
        user = (*user, *RINGS, *RINGS)
    others = draw(st.lists(st.sampled_from(HOST + user), min_size=1, max_size=2, unique=True))
    threads += [f"t{number}: {action}" for number, action in enumerate(others)]
    setup = draw(st.lists(st.sampled_from(("w0", "x0", "r2", "x2", "w1")), max_size=2))
    return Script(
        threads="; ".join(threads),
        setup=" ".join(setup),
        slots=draw(st.sampled_from(SLOTS)),
        flush=draw(st.sampled_from(("bare-metal", "ranged"))),
        options=options,
        format="ept" if options == NO_AD_BITS else "npt",
        pages=10,
    )
