"""v5.12: the series as merged, and its follow-up."""

from __future__ import annotations

from typing import ClassVar

from tdpmmu.versions.linux_5_12_rc4 import Linux_5_12_rc4
from tdpmmu.versions.patches import (
    FlushOnNxZap,
    FlushWhenYielding,
    NoYieldInZapSp,
    PreservePendingFlush,
)


class Linux_5_12(
    PreservePendingFlush, NoYieldInZapSp, FlushOnNxZap, FlushWhenYielding, Linux_5_12_rc4
):
    """v5.12 final."""

    version: ClassVar[str] = "5.12"
    spte_kernel: ClassVar[str] = "5.12"
    changes: ClassVar[tuple[str, ...]] = (
        "048f49809c52 recovery flushes after a TDP zap",
        "a835429cda91 a yield flushes what any root is owed",
        "33a3164161fc recovery's zap of one page may not yield",
        "315f02c60d94 recovery keeps a pending flush over the next zap",
    )
