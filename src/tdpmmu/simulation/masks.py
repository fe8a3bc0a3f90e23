"""What is said of all entries of a table at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tdpmmu.arch.spte import SpteFormat

Row = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def present_mask(fmt: SpteFormat, row: Row) -> Mask:
    """``is_shadow_present_pte`` of each entry."""
    if fmt.mmu_present:
        present: Mask = (row & np.uint64(fmt.mmu_present)) != 0
        return present
    mmio = (row & np.uint64(fmt.mmio_mask)) == np.uint64(fmt.mmio_value)
    present = (row != 0) & (row != np.uint64(fmt.removed)) & ~mmio
    return present


def dirty_mask(fmt: SpteFormat, row: Row) -> Mask:
    """``is_dirty_spte`` of each entry."""
    if fmt.has_ad_bits:
        dirty: Mask = (row & np.uint64(fmt.dirty)) != 0
        return dirty
    hardware = (row & np.uint64(fmt.ad_type)) != np.uint64(fmt.ad_disabled)
    bit = np.where(hardware, np.uint64(fmt.dirty), np.uint64(fmt.writable))
    dirty = (row & bit) != 0
    return dirty
