"""v5.12-rc4: before the series of 25 March 2021."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.mmu.lifetime import Lifetime


class Linux_5_12_rc4(Lifetime):
    """Everything in :mod:`tdpmmu.mmu` is this kernel."""

    version: ClassVar[str] = "5.12-rc4"
    spte_kernel: ClassVar[str] = "5.12-rc4"
    changes: ClassVar[tuple[str, ...]] = ("the oldest kernel modelled: all of mmu/ follows it",)
    flush_before_rcu_unlock: ClassVar[bool] = False
    lockless_nx_flag: ClassVar[bool] = False
