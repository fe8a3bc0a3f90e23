"""Random scripts with shadow paging: L1's tables, L2's accesses, L1's writes, the host.

Needs Hypothesis, which only development has.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tdpmmu.scenarios.script import Script

ACCESSES = ("r0", "w0", "x0", "r1", "w1", "r2", "w2", "wx0")
"""By address; gfns 2 and 3 are tables, which are in reach if a table maps them."""

GUEST = ("set:2[0]=1", "set:2[0]=-", "set:2[1]=0r", "set:2[0]=0n", "invlpg:0", "invlpg:1", "cr3")
"""What the guest does to its own tables, through address 2."""

L1 = ("r0", "w0", "w2", "w3", "x0", "r2")
"""Accesses of a vCPU on the TDP MMU, whose addresses are the gfns."""

HOST = (
    "unmap:0",
    "unmap:2",
    "zap-range:0-3",
    "zap-all-fast",
    "slot-delete:0",
    "age:0-3",
    "recover",
    "host-set:2[0]=1",
    "host-set:2[1]=-",
    "host-set:3[0]=-",
    "get-log:0",
    "log-on:0",
    "log-off:0",
    "clear-log:0-1",
    "log-on:0 log-off:0",
    "log-on:0 clear-log:0-1",
)

TABLES = (
    "3: 2 -; 2: 0 1",
    "3: 2 2; 2: 0 1",
    "3: 2 2r; 2: 0 1r",
    "3: 2 0L; 2: 0 2",
    "3: 2 2n; 2: 2 1n",
    "3: 2 2; 2: 2 3",
)
"""Two levels over four gfns: the root is 3, the last level 2."""


@st.composite
def shadow_scripts(draw: st.DrawFn) -> Script:
    """A vCPU or two whose tables KVM shadows, perhaps one that is not, and a thread of the host."""
    steps = st.sampled_from(ACCESSES + GUEST)
    first = draw(st.lists(steps, min_size=1, max_size=3))
    threads = [f"shadow0: {' '.join(first)}"]
    second = draw(st.sampled_from(("", "shadow1", "vcpu1")))
    if second:
        choices = steps if second == "shadow1" else st.sampled_from(L1)
        threads.append(f"{second}: {draw(choices)}")
    if not second or draw(st.booleans()):
        threads.append(f"host: {draw(st.sampled_from(HOST))}")
    setup = draw(st.lists(st.sampled_from(("shadow0:r0", "shadow0:w0", "shadow0:w1")), max_size=2))
    return Script(
        threads="; ".join(threads),
        setup=" ".join(setup),
        slots=draw(st.sampled_from(("", "0-1 2-3", "0-1:log 2-3"))),
        options=draw(st.sampled_from(("", "", "pml", "initially-set", "no-eager-page-split"))),
        tables=draw(st.sampled_from(TABLES)),
        flush=draw(st.sampled_from(("bare-metal", "ranged"))),
        mmu_pages=draw(st.sampled_from((0, 0, 3))),
        pages=12,
    )
