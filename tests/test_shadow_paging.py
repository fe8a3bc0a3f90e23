"""Shadow paging: what guests do to their page tables, and kernels that forget to follow."""

from __future__ import annotations

import pytest

from tdpmmu.arch.guest import parse_gpte
from tdpmmu.arch.hardware import VcpuCells
from tdpmmu.arch.table import TablePage
from tdpmmu.events.records import PfnMarkedDirty, SpteChanged
from tdpmmu.machine.state import Cell
from tdpmmu.mmu.guest_writes import GuestWrites
from tdpmmu.mmu.rmap import Rmap
from tdpmmu.mmu.shadow import ShadowMmu
from tdpmmu.mmu.shadow_pages import Role, ShadowPages
from tdpmmu.mmu.write_track import WriteTrack
from tdpmmu.scenarios.guest_tables import parse_root, parse_tables
from tdpmmu.scenarios.question import HOLDS, VIOLATED, Question, Verdict, ask
from tdpmmu.scenarios.script import Script
from tdpmmu.versions.registry import apply, kernel_class
from tdpmmu.worlds.explore.exploration import Budget

BUDGET = Budget(states=100_000)
SMALL = {"tables": "2: 3 -; 3: 0 3", "setup": "r0 r1"}
"""Two levels: address 0 is gfn 0, address 1 the table that says so."""

THREE = {
    "levels": 3,
    "pages": 16,
    "huge_level": 1,
    "tables": "7: 6 3; 6: 5 -; 5: 0 2; 3: 4 -; 4: 5 7",
    "setup": "r0 w4",
}
"""Three levels: address 4 is the last table of address 0, address 5 the root."""


def verdict_on(
    script: Script, *patches: type, kernel: str = "6.12", reduce: bool = True
) -> Verdict:
    cls = apply(kernel_class(kernel), *patches)
    named = tuple(f"{__file__}:{patch.__name__}" for patch in patches)
    return ask(Question(script, cls, kernel, named), budget=BUDGET, reduce=reduce)


def broken(verdict: Verdict) -> set[str]:
    return {found.prop for found in verdict.violations}


SCRIPTS = {
    "a write to the table, and INVLPG": Script(
        threads="shadow0: set:1[0]=0r invlpg:0 r0; shadow1: w0", **SMALL
    ),
    "a write to the table, and CR3": Script(threads="shadow0: set:1[0]=- cr3 r0", **SMALL),
    "the host takes the page": Script(threads="shadow0: w0; host: unmap:0", **SMALL),
    "the host takes the table": Script(threads="shadow0: set:1[0]=1 r0; host: unmap:2", **SMALL),
    "the slot goes away": Script(threads="shadow0: w0; ioctl: zap-all-fast", **SMALL),
    "upper tables are emulated": Script(threads="shadow0: set:5[0]=- cr3 set:5[0]=6 r1", **THREE),
    "L1 writes L2's table": Script(
        threads="vcpu0: set:3[0]=1; shadow0: r0", setup="shadow0:r0", tables="2: 3 -; 3: 0 3"
    ),
    "a large guest page in small ones": Script(
        threads="shadow0: r1; host: unmap:0", setup="r0", huge_level=1, tables="2: 0L -"
    ),
    "a large guest page": Script(threads="shadow0: w1; host: unmap:0", tables="2: 0L 3; 3: 3 -"),
    "the host asks what is used": Script(threads="shadow0: w0; host: age:0-1 unmap:0", **SMALL),
    "the quota": Script(threads="shadow0: r0 r2", tables="2: 3 1; 3: 0 -; 1: 0 -", mmu_pages=2),
}


@pytest.mark.parametrize("kernel", ["5.12", "6.1", "6.12", "6.18"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_kernels_hold(name: str, kernel: str) -> None:
    verdict = verdict_on(SCRIPTS[name], kernel=kernel)
    assert verdict.status == HOLDS, broken(verdict)


@pytest.mark.parametrize("name", SCRIPTS)
def test_reduction_changes_nothing(name: str) -> None:
    full = verdict_on(SCRIPTS[name], reduce=False)
    assert full.exploration.exhausted
    assert full.status == HOLDS, broken(full)


class ForgetsToProtect(ShadowPages):
    """A new shadow page's table stays writable."""

    async def slot_gfn_write_protect(self, as_id: int, gfn: int) -> bool:
        return False


class ForgetsTheRoots(GuestWrites):
    """CR3 is loaded and nothing is synced."""

    async def sync_roots(self, vcpu: VcpuCells) -> None:
        return


class ForgetsInvlpg(GuestWrites):
    """INVLPG flushes the CPU only."""

    async def invalidate_addr(self, vcpu: VcpuCells, sp: TablePage, address: int) -> None:
        return


class ForgetsEmulatedWrites(GuestWrites):
    """KVM writes the guest's table and leaves its shadow as it was."""

    async def track_write(self, gfn: int, index: int) -> None:
        return


class NeverUnsync(WriteTrack):
    """Tables are made writable and the shadow is not told."""

    async def unsync_page(self, sp: TablePage) -> None:
        return


class MixesAccess(ShadowPages):
    """One page for a table, whatever the ways to it allow."""

    async def child_role(self, sptep: Cell, direct: bool, access: int) -> Role:
        return await super().child_role(sptep, direct, 7)


class FreesWithoutFlush(ShadowMmu):
    """Zapped pages go at once."""

    async def commit_zap_page(self, invalid_list) -> None:  # type: ignore[no-untyped-def]
        while invalid_list.pages:
            await self.free_shadow_page(invalid_list.pages.pop(0))


class LosesRmaps(Rmap):
    """A leaf is mapped and its rmap entry forgotten."""

    async def rmap_add(self, sptep: Cell, gfn: int, access: int) -> None:
        await self.set_page_translation(sptep, gfn, access)


MUTATIONS = [
    (ForgetsTheRoots, "a write to the table, and CR3", "guest-translation"),
    (ForgetsInvlpg, "a write to the table, and INVLPG", "guest-translation"),
    (ForgetsEmulatedWrites, "upper tables are emulated", "guest-translation"),
    (NeverUnsync, "a write to the table, and CR3", "tracked-write"),
    (LosesRmaps, "the host takes the page", "stale-translation"),
    (FreesWithoutFlush, "the quota", "freed-table"),
]


@pytest.mark.parametrize(("cls", "name", "prop"), MUTATIONS)
def test_a_mutation_is_found(cls: type, name: str, prop: str) -> None:
    verdict = verdict_on(SCRIPTS[name], cls)
    assert verdict.status == VIOLATED
    assert prop in broken(verdict)


def test_a_table_that_stays_writable_is_found() -> None:
    script = Script(threads="shadow0: w1 r2 w1", tables="2: 3 1; 3: 0 1; 1: 0 -", setup="w1")
    assert verdict_on(script).status == HOLDS
    assert "tracked-write" in broken(verdict_on(script, ForgetsToProtect))


def test_permissions_of_another_way_are_found() -> None:
    script = Script(threads="shadow0: r2 w0 r2", tables="2: 3 3r; 3: 0 -")
    assert verdict_on(script).status == HOLDS
    assert "guest-translation" in broken(verdict_on(script, MixesAccess))


# --- text ---


def test_guest_ptes_as_text() -> None:
    assert parse_gpte("-") == 0
    assert parse_gpte("5") == 0x5067
    assert parse_gpte("5r") == 0x5065
    assert parse_gpte("5rn") == 1 << 63 | 0x5065
    assert parse_gpte("2L") == 0x20E7


@pytest.mark.parametrize("text", ["x", "5q", "r", "-5", "5 6"])
def test_what_is_no_guest_pte(text: str) -> None:
    with pytest.raises(ValueError, match="guest PTE"):
        parse_gpte(text)


def test_tables_as_text() -> None:
    assert parse_tables("2: 0 1r; 3: -", 2) == {2: (0x67, 0x1065), 3: (0, 0)}


@pytest.mark.parametrize(
    ("text", "what"),
    [("2 0 1", "GFN: ENTRY"), ("x: 0", "GFN: ENTRY"), ("2: 0 1 2", "only 2 fit"), ("2: y", "PTE")],
)
def test_what_are_no_tables(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_tables(text, 2)


@pytest.mark.parametrize("text", ["9", "x", "2/x", "", "2/0", "2/1000000000", "\u00b2"])
def test_what_is_no_root(text: str) -> None:
    with pytest.raises(ValueError, match="cr3"):
        parse_root(text, {2: (0, 0)}, 2)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (Script(threads="shadow0: r0"), "guest page tables"),
        (Script(threads="shadow0: set:1", tables="2: 0"), "WHERE"),
        (Script(threads="shadow0: set:1[7]=0", tables="2: 0"), "index 7"),
        (Script(threads="host: invlpg:0"), "only a vCPU"),
        (Script(threads="shadow0: r0", setup="shadow1:r0", tables="2: 0"), "no vCPU thread"),
        (Script(options="pml manual-protct"), "'manual-protct'; did you mean manual-protect"),
        (Script(options="fast"), "'fast'; known: apic-access-page, dirty-ring"),
    ],
)
def test_bad_scripts(script: Script, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        script.build(kernel_class("6.12"))


@pytest.mark.parametrize("kernel", ["5.13", "6.1", "6.12", "6.18"])
def test_the_legacy_mmu_takes_over_where_the_tdp_mmu_is_off(kernel: str) -> None:
    script = Script(threads="vcpu0: w0; vcpu1: x0; host: unmap:0", options="no-tdp-mmu")
    assert verdict_on(script, kernel=kernel).status == HOLDS
    forgetful = verdict_on(script, LosesRmaps, kernel=kernel)
    assert "stale-translation" in {found.prop for found in forgetful.violations}


@pytest.mark.parametrize("kernel", ["5.12", "6.1", "6.12"])
@pytest.mark.parametrize(("spte_format", "options"), [("npt", ""), ("ept", "no-ad-bits")])
def test_leaves_of_shadow_pages_age(kernel: str, spte_format: str, options: str) -> None:
    script = Script(
        threads="shadow0: w0",
        tables=SMALL["tables"],
        setup="w0 age:0-1",
        format=spte_format,
        options=options,
    )
    built = script.build(kernel_class(kernel))
    fmt = built.kvm.format
    last = [event for event in built.machine.prologue if isinstance(event, SpteChanged)][-1]
    assert fmt.is_accessed(last.old)
    assert not fmt.is_accessed(last.new)
    told = [event.pfn for event in built.machine.prologue if isinstance(event, PfnMarkedDirty)]
    tracked = options == "no-ad-bits"
    assert fmt.is_access_track(last.new) == tracked
    # Where W goes, the host is told that the page is dirty.
    assert told == ([fmt.pfn(last.old)] if tracked else [])
