"""The VM that the lab's driver makes, and the kernel's parameters it lives under."""

from __future__ import annotations

from dataclasses import dataclass

from tdpmmu.lab.errors import LabError

BLOCK_PAGES = 512
FIRST_PAGE = BLOCK_PAGES
"""The gfn where the data begins: block 0 is the system block."""

BACKINGS = ("thp", "4k", "hugetlb")
MMUS = ("tdp", "legacy", "shadow")
GUESTS = ("flat", "long", "long-4k")
"""Paging off, or long mode with an identity map of 2M or of 4K pages."""

NX_PARAMETERS = {
    "nx_huge_pages": "force",
    "nx_huge_pages_recovery_ratio": "1",
    "nx_huge_pages_recovery_period_ms": "200",
}
"""The mitigation on (the emulated CPU does not need it), and a worker that recovers everything."""


@dataclass(frozen=True, slots=True)
class VmSetup:
    """``blocks``: data blocks of 2M (block 1 and on).  ``guest``: of :data:`GUESTS`.

    ``vms``: how many copies of the VM there are, each with a driver of its own.
    """

    mmu: str = "tdp"
    vcpus: int = 1
    blocks: int = 31
    backing: str = "thp"
    guest: str = ""
    vms: int = 1

    def __post_init__(self) -> None:
        for what, value, known in (
            ("mmu", self.mmu, MMUS),
            ("backing", self.backing, BACKINGS),
            ("guest", self.guest, ("", *GUESTS)),
        ):
            if value not in known:
                raise LabError(f"{what} {value}: expected {', '.join(known)}".replace(" ,", ""))
        if not 1 <= self.vcpus <= 8:
            raise LabError(f"vcpus {self.vcpus}: expected 1 to 8")
        if not 1 <= self.blocks <= 511:
            raise LabError(f"blocks {self.blocks}: expected 1 to 511")
        if not 1 <= self.vms <= 8:
            raise LabError(f"vms {self.vms}: expected 1 to 8")

    @property
    def paging(self) -> str:
        """Shadow paging is of interest with page tables to shadow, so that is its default."""
        return self.guest or ("long" if self.mmu == "shadow" else "flat")

    def driver_options(self) -> str:
        """The driver's command line."""
        return f"{self.blocks} {self.backing} {self.vcpus} {GUESTS.index(self.paging)}"

    def module_parameters(self) -> dict[str, dict[str, str]]:
        """Parameters that are fixed when the modules are loaded."""
        return {
            "kvm": {"tdp_mmu": str(int(self.mmu == "tdp"))},
            "kvm_amd": {"npt": str(int(self.mmu != "shadow"))},
        }
