"""v5.12-rc4: before the series of 25 March 2021."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.mmu.nx_worker import HOUR
from tdpmmu.versions.tlbs_dirty import TlbsDirty


class Linux_5_12_rc4(TlbsDirty):
    """The TDP MMU of :mod:`tdpmmu.mmu` is this kernel's."""

    version: ClassVar[str] = "5.12-rc4"
    spte_kernel: ClassVar[str] = "5.12-rc4"
    changes: ClassVar[tuple[str, ...]] = (
        "the oldest kernel modelled: the TDP MMU in mmu/ follows it, shadow paging follows 6.12",
    )
    flush_before_rcu_unlock: ClassVar[bool] = False
    lockless_nx_flag: ClassVar[bool] = False

    def effective_period(self, period: int, ratio: int = 60) -> int:
        """``get_nx_lpage_recovery_timeout``: a minute.  There is no period to set before 5.16."""
        return period or HOUR // 60
