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
)
