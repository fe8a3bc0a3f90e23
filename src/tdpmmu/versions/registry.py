"""Kernels and patches by name, and how a patch is applied."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from tdpmmu.versions import patches, read_lock, without
from tdpmmu.versions.linux_5_12 import Linux_5_12
from tdpmmu.versions.linux_5_12_rc4 import Linux_5_12_rc4
from tdpmmu.versions.linux_5_13 import Linux_5_13
from tdpmmu.versions.linux_6_1 import Linux_6_1
from tdpmmu.versions.linux_6_12 import Linux_6_12
from tdpmmu.versions.linux_6_18 import Linux_6_18

KERNELS: dict[str, type[Any]] = {
    "5.12-rc4": Linux_5_12_rc4,
    "5.12": Linux_5_12,
    "5.13": Linux_5_13,
    "6.1": Linux_6_1,
    "6.12": Linux_6_12,
    "6.18": Linux_6_18,
}

PATCHES: dict[str, type[Any]] = {
    "flush-on-nx-zap": patches.FlushOnNxZap,
    "flush-when-yielding": patches.FlushWhenYielding,
    "no-yield-in-zap-sp": patches.NoYieldInZapSp,
    "preserve-pending-flush": patches.PreservePendingFlush,
    "flush-each-slot": patches.FlushEachSlot,
    "age-by-cmpxchg": patches.AgeByCmpxchg,
    "no-forward-progress": patches.NoForwardProgress,
    "link-under-pages-lock": patches.LinkUnderPagesLock,
    "read-lock-freeze": read_lock.ReadLockFreeze,
    "read-lock-cmpxchg": read_lock.ReadLockCmpxchg,
    "no-yield-in-shared-zap": read_lock.NoYieldInSharedZap,
    "recover-under-write-lock": without.RecoverUnderWriteLock,
    "process-before-unfreezing": without.ProcessBeforeUnfreezing,
}


class UnknownName(ValueError):
    """No kernel or patch of that name; the message names the nearest ones."""


def instead_of(name: str, names: Iterable[str]) -> str:
    """What to say about a name that there is not: the nearest ones, or else all."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(names))}"


def _find(what: str, name: str, table: dict[str, type[Any]]) -> type[Any]:
    found = table.get(name)
    if found is None:
        raise UnknownName(f"unknown {what} {name!r}; {instead_of(name, table)}")
    return found


def kernel_class(name: str) -> type[Any]:
    """The kernel of that name."""
    return _find("kernel", name, KERNELS)


def patch_class(name: str) -> type[Any]:
    """The patch of that name."""
    return _find("patch", name, PATCHES)


def apply(kernel: type[Any], *applied: type[Any]) -> type[Any]:
    """A kernel class with patches on top, the last one outermost.

    A patch is a class that overrides methods; one derived from the kernel itself is taken as it is.
    """
    if not applied:
        return kernel
    bases = [cls for cls in reversed(applied) if not issubclass(kernel, cls)]
    if not any(issubclass(cls, kernel) for cls in bases):
        bases.append(kernel)
    name = "_".join([kernel.__name__, *(cls.__name__ for cls in applied)])
    return type(name, tuple(bases), {"__module__": __name__})


def named(reference: str) -> type[Any]:
    """The kernel that ``NAME`` or ``NAME+PATCH+...`` means.

    UnknownName for names that are none, and for a patch of another kernel.
    """
    name, *patch_names = reference.split("+")
    kernel = kernel_class(name)
    applied = [patch_class(one) for one in patch_names]
    for patch_name, patch in zip(patch_names, applied, strict=True):
        base: Any = next((one for one in patch.__mro__ if one in KERNELS.values()), kernel)
        if base is not kernel:
            raise UnknownName(f"patch {patch_name!r} is for kernel {base.version}, not {name}")
    return apply(kernel, *applied)
