"""What a trace needs to have in it: events, function lines, and probes with pointers.

Readers know probe events by their names and arguments, so these are the same on every kernel that
has the functions; how a probe is written depends on what the kernel's tracefs takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EVENTS = (
    "kvmmmu",
    "kvm/kvm_page_fault",
    "kvm/kvm_unmap_hva_range",
    "kvm/kvm_set_spte_hva",
    "kvm/kvm_age_hva",
    "kvm/kvm_test_age_hva",
    "sched/sched_switch",
)
"""Events, and systems of events, below tracefs's ``events``."""

FILTERS = {"sched/sched_switch": 'prev_comm ~ "kvm-nx-*"'}
"""Of events of which not all are wanted: that the recovery worker sleeps, so holds no lock."""

FUNCTIONS = (
    "(un)?account_(nx_huge_page|huge_nx_page)",
    "(un)?track_possible_nx_huge_page",
    "kvm_(nx_huge_page|nx_lpage)_recovery_worker",
    "kvm_recover_nx_(huge_pages|lpages)",
    "(kvm_|__)?tdp_mmu_[a-z_]*",
    "kvm_tdp_page_fault",
    "direct_page_fault",
    "make_spte",
    "kvm_(arch_)?flush_remote_tlbs[a-z_]*",
    "kvm_mmu_(zap|slot|invalidate|notifier)_[a-z_]*",
    "kvm_mmu_(load|unload|recover_huge_pages)",
    "kvm_mmu_(commit_zap_page|prepare_zap_page|free_(obsolete_|guest_mode_)?roots)",
    "__kvm_mmu_prepare_zap_page",
    "kvm_(zap|unmap)_gfn_range",
    "kvm_zap_obsolete_pages",
    "kvm_arch_(commit_memory_region|flush_shadow_[a-z_]*)",
    "kvm_arch_mmu_enable_log_dirty_pt_masked",
)
"""Extended regular expressions for functions of the module kvm to trace, by their whole names."""

GROUP = "tdpmmu"
"""The group that all probe events are in, so that they can be found and removed."""

_REGISTERS = ("di", "si", "dx", "cx", "r8", "r9")


@dataclass(frozen=True, slots=True)
class Argument:
    """Number ``index`` (from 0) of a function's integer arguments, printed as ``name``.

    ``member``: print this member of the structure that the argument points to instead.
    """

    name: str
    index: int
    parameter: str
    member: str = ""
    type: str = "x64"


@dataclass(frozen=True, slots=True)
class Probe:
    """An event at a function's entry, or with ``ret`` at its return."""

    event: str
    function: str
    arguments: tuple[Argument, ...] = ()
    ret: bool = False


def _entry(event: str, function: str, *arguments: Argument) -> Probe:
    return Probe(event, function, arguments)


def _ret(event: str, function: str) -> Probe:
    return Probe(event, function, ret=True)


PROBES = (
    _entry("fault", "kvm_tdp_page_fault", Argument("kvm", 0, "vcpu", "kvm")),
    _entry("load", "kvm_mmu_load", Argument("kvm", 0, "vcpu", "kvm")),
    _entry("worker", "kvm_nx_huge_page_recovery_worker", Argument("kvm", 0, "data")),
    _entry("worker", "kvm_nx_lpage_recovery_worker", Argument("kvm", 0, "kvm")),
    _entry("invalidate", "kvm_tdp_mmu_invalidate_all_roots", Argument("kvm", 0, "kvm")),
    _entry("obsolete", "kvm_zap_obsolete_pages", Argument("kvm", 0, "kvm")),
    _entry("release", "kvm_arch_flush_shadow_all", Argument("kvm", 0, "kvm")),
    _entry(
        "zap_sp",
        "kvm_tdp_mmu_zap_sp",
        Argument("kvm", 0, "kvm"),
        Argument("sp", 1, "sp"),
        Argument("role", 1, "sp", "role", "x32"),
        Argument("gfn", 1, "sp", "gfn"),
    ),
    _ret("zap_sp_ret", "kvm_tdp_mmu_zap_sp"),
    _entry("flush", "kvm_flush_remote_tlbs", Argument("kvm", 0, "kvm")),
    _entry(
        "flush_range",
        "kvm_flush_remote_tlbs_with_address",
        Argument("kvm", 0, "kvm"),
        Argument("gfn", 1, "start_gfn"),
        Argument("pages", 2, "pages"),
    ),
    _entry(
        "flush_range",
        "kvm_flush_remote_tlbs_range",
        Argument("kvm", 0, "kvm"),
        Argument("gfn", 1, "gfn"),
        Argument("pages", 2, "nr_pages"),
    ),
    _entry(
        "zap_leafs",
        "tdp_mmu_zap_leafs",
        Argument("root", 1, "root"),
        Argument("start", 2, "start"),
        Argument("end", 3, "end"),
        Argument("yield", 4, "can_yield", type="u8"),
        Argument("flush", 5, "flush", type="u8"),
    ),
    _ret("zap_leafs_ret", "tdp_mmu_zap_leafs"),
    _entry(
        "unmap",
        "kvm_tdp_mmu_unmap_gfn_range",
        Argument("kvm", 0, "kvm"),
        Argument("start", 1, "range", "start"),
        Argument("end", 1, "range", "end"),
    ),
    _ret("unmap_ret", "kvm_tdp_mmu_unmap_gfn_range"),
    _entry("free_sp", "tdp_mmu_free_sp_rcu_callback", Argument("head", 0, "head")),
    _entry(
        "slot",
        "kvm_arch_commit_memory_region",
        Argument("kvm", 0, "kvm"),
        Argument("old_base", 1, "old", "base_gfn"),
        Argument("old_pages", 1, "old", "npages"),
        Argument("base", 2, "new", "base_gfn"),
        Argument("pages", 2, "new", "npages"),
        Argument("hva", 2, "new", "userspace_addr"),
        Argument("flags", 2, "new", "flags", "x32"),
        Argument("as_id", 2, "new", "as_id", "u16"),
        Argument("change", 3, "change", type="u32"),
    ),
    _entry(
        "log_masked",
        "kvm_arch_mmu_enable_log_dirty_pt_masked",
        Argument("kvm", 0, "kvm"),
        Argument("base", 1, "slot", "base_gfn"),
        Argument("offset", 2, "gfn_offset"),
        Argument("mask", 3, "mask"),
    ),
)
"""All probes; a kernel is given those whose functions it has."""


_STRUCTURES = {
    "vcpu": "kvm_vcpu",
    "sp": "kvm_mmu_page",
    "old": "kvm_memory_slot",
    "new": "kvm_memory_slot",
    "slot": "kvm_memory_slot",
    "range": "kvm_gfn_range",
}
"""What parameters point to, by their names."""

MEMBERS = tuple(
    dict.fromkeys(
        (_STRUCTURES[one.parameter], one.member)
        for probe in PROBES
        for one in probe.arguments
        if one.member
    )
)
"""Structures and members that probes look at; the names of members are distinct."""


def kprobe(probe: Probe, offsets: Mapping[str, int]) -> str:
    """The probe for ``dynamic_events``, arguments by register (x86-64).

    ``offsets`` are those of the :data:`MEMBERS`, in bytes; arguments that need an unknown one are
    left out.
    """
    if probe.ret:
        return f"r:{GROUP}/{probe.event} {probe.function} ret=$retval:u8"
    words = [f"p:{GROUP}/{probe.event} {probe.function}"]
    for one in probe.arguments:
        register = f"%{_REGISTERS[one.index]}"
        if not one.member:
            words.append(f"{one.name}={register}:{one.type}")
        elif one.member in offsets:
            words.append(f"{one.name}=+{offsets[one.member]}({register}):{one.type}")
    return " ".join(words)


def fprobe(probe: Probe) -> str:
    """The probe for ``dynamic_events`` where fprobe events know arguments by name (BTF; 6.6)."""
    if probe.ret:
        return f"f:{GROUP}/{probe.event} {probe.function}%return ret=$retval:u8"
    words = [f"f:{GROUP}/{probe.event} {probe.function}"]
    for one in probe.arguments:
        member = f"->{_FPROBE_MEMBERS.get(one.member, one.member)}" if one.member else ""
        words.append(f"{one.name}={one.parameter}{member}:{one.type}")
    return " ".join(words)


_FPROBE_MEMBERS = {"role": "role.word"}
