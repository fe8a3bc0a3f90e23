"""Bugs of the list that the model cannot say, each with the reason."""

from __future__ import annotations

from tdpmmu.scenarios.zoo.entry import NotExpressed

NOT_EXPRESSED: tuple[NotExpressed, ...] = (
    NotExpressed(
        "z3",
        "KVM: x86/mmu: Don't allow TDP MMU to yield when recovering NX pages",
        "33a3164161fc",
        "5.12",
        "Never a live bug. 'tdpmmu check' explores it with and without the patch, and with "
        "recovery under the read lock; docs/the-thread.md has the verdicts.",
    ),
    NotExpressed(
        "z4",
        "KVM: x86/mmu: preserve pending TLB flush across calls to kvm_tdp_mmu_zap_sp",
        "315f02c60d94",
        "5.12",
        "Needs a zap of a listed page that finds nothing to zap. Exploration finds none in 5.12 or "
        "5.13: a listed page is always below a root that the walk meets (docs/findings.md).",
    ),
    NotExpressed(
        "z20",
        "KVM: x86/mmu: Check yielded_gfn for forward progress iff resched is needed",
        "e287e4316713",
        "6.13",
        "Latent only: the flag that would have been returned is always cleared before the next "
        "check, so no state differs.",
    ),
    NotExpressed(
        "z28",
        "KVM: x86/mmu: Fix RCU usage in handle_removed_tdp_mmu_page",
        "70fb3e41a97a",
        "5.13",
        "Only the annotation of accesses changes; the order of operations is the same.",
    ),
    NotExpressed(
        "z52",
        "KVM: x86: only zap the slot's pages on removal (4e103134b862), reverted",
        "d012a06ab1d2",
        "5.3",
        "What broke guests with assigned devices was never explained on the list, so there is no "
        "mechanism to put back.",
    ),
    NotExpressed(
        "z14",
        "KVM: x86/mmu: Zap only the target TDP MMU shadow page in NX recovery",
        "c10743a1824b",
        "5.18",
        "Needless work in other roots; nothing goes wrong that a property could see.",
    ),
    NotExpressed(
        "z17",
        "KVM: x86/mmu: Yield in TDU MMU iter even if no SPTES changed",
        "1af4a96025b3",
        "5.12",
        "Only the time that others wait changes, and the model counts no time.",
    ),
    NotExpressed(
        "z21",
        "KVM: x86/mmu: Update number of zapped pages even if page list is stable",
        "b28cb0cd2c5e",
        "5.18",
        "Only the time that others wait changes, and the model counts no time.",
    ),
    NotExpressed(
        "z30",
        "KVM: x86/mmu: Skip invalid TDP MMU roots when write-protecting SPTEs",
        "d746182337c2",
        "6.9",
        "Needless work on roots that are going away; nothing goes wrong.",
    ),
    NotExpressed(
        "z37",
        "KVM: x86/mmu: Remove spurious TLB flushes in TDP MMU zap collapsible path",
        "4b85c921cd39",
        "5.16",
        "A flush too many breaks no property; 'tdpmmu flushes' is what finds such.",
    ),
    NotExpressed(
        "z39",
        "kvm: Be careful not to clear KVM_VCPU_FLUSH_TLB bit",
        "",
        "5.6",
        "The guest's own flushes of its own translations (steal time) are not modelled.",
    ),
    NotExpressed(
        "z44",
        "KVM: nVMX: Disable PML in hardware when running L2",
        "",
        "5.12",
        "A nop at best. At worst gfns that nobody wrote are logged beside those that were written, "
        "and a log that says too much breaks no property.",
    ),
    NotExpressed(
        "z53",
        "KVM: x86/mmu: Retry fault before acquiring mmu_lock if mapping is changing",
        "d02c357e5bfa",
        "6.8",
        "Only the time that others wait changes, and the model counts no time.",
    ),
    NotExpressed(
        "z54",
        "KVM: x86/mmu: Process atomically-zapped SPTEs after TLB flush",
        "aca48556c592",
        "6.10",
        "Only the time that others wait changes, and the model counts no time.",
    ),
    NotExpressed(
        "z69",
        "KVM: fix KVM_CLEAR_DIRTY_LOG for memory slots of unaligned size",
        "76d58e0f07ec",
        "5.1",
        "Made by the fix of z68: the end of such a slot cannot be cleared. It stays on record as "
        "dirty, and a log that says too much breaks no property.",
    ),
    NotExpressed(
        "z70",
        "KVM: Use acquire/release semantics when accessing dirty ring GFN state",
        "8929bc965964",
        "6.1",
        "Order of stores on weakly ordered CPUs. x86 has it anyway, and the model is sequentially "
        "consistent.",
    ),
)
