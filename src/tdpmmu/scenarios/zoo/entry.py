"""What a zoo entry is: a bug that was upstream, how to put it back, and what must be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tdpmmu.versions import registry


@dataclass(frozen=True, slots=True)
class Entry:
    """One bug, found on one side and not on the other.

    ``title`` is the subject of the fix, ``commit`` its id (empty where only the subject is known),
    ``fixed`` the first release with it.
    With ``patch`` the bug side is ``kernel`` + ``patch`` and the fixed side ``kernel``.  With
    ``fix`` (the modelled kernel has the bug) the bug side is ``kernel`` and the fixed side
    ``kernel`` + ``fix``.  ``prop`` is the property that the bug side breaks.  ``fix_of`` is the
    entry whose fix made this bug.  ``kernels`` are the further kernels that must be clean, by
    default all that are modelled and have the fix.
    """

    id: str
    title: str
    commit: str
    fixed: str
    kernel: str
    scenario: Any
    prop: str
    mechanism: str
    patch: type[Any] | None = None
    fix: type[Any] | None = None
    fix_of: str | None = None
    kernels: tuple[str, ...] | None = None

    def check(self) -> None:
        """Refuse what makes no sense, with the reason."""
        if self.patch is None and self.fix is None:
            raise ValueError(f"{self.id}: needs a patch that puts the bug back, or the fix")
        for kernel in (self.kernel, *(self.kernels or ())):
            if kernel not in registry.KERNELS:
                raise ValueError(f"{self.id}: no kernel {kernel}")
        if self.mechanism.count(".") < 2:
            raise ValueError(f"{self.id}: the mechanism takes two sentences")

    def bug_side(self) -> type[Any]:
        """The kernel with the bug."""
        kernel = registry.kernel_class(self.kernel)
        return registry.apply(kernel, self.patch) if self.patch else kernel

    def fixed_side(self) -> type[Any]:
        """The kernel without it."""
        kernel = registry.kernel_class(self.kernel)
        return registry.apply(kernel, self.fix) if self.fix else kernel

    def clean_kernels(self) -> tuple[str, ...]:
        """The further kernels on which the scenario must hold."""
        if self.kernels is not None:
            return self.kernels
        if self.fix is not None:
            return ()
        return tuple(
            name
            for name in registry.KERNELS
            if name != self.kernel and release(name) >= release(self.fixed)
        )


def release(name: str) -> tuple[int, int, int]:
    """A release as something that can be compared; a release candidate comes before it.

    A bare year stands for a release after all that are modelled.
    """
    if "." not in name:
        return int(name), 0, 99
    body, _, candidate = name.rstrip("~").partition("-rc")
    major, minor = body.split(".")[:2]
    return int(major), int(minor), int(candidate) if candidate else 99


@dataclass(frozen=True, slots=True)
class NotExpressed:
    """A bug that the model cannot say, and why not."""

    id: str
    title: str
    commit: str
    fixed: str
    reason: str
