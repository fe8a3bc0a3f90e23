"""``tdpmmu kernels``: what is modelled."""

from __future__ import annotations


def kernels() -> None:
    """List the kernels and patches, and what each changes.

    Example: tdpmmu kernels

    Exit code: 0.
    """
    from tdpmmu.versions.registry import KERNELS, PATCHES

    for name, cls in KERNELS.items():
        print(f"{name}")
        for change in cls.changes:
            print(f"    {change}")
    print("\npatches (--patch):")
    for name, cls in PATCHES.items():
        first = (cls.__doc__ or "").strip().splitlines()[0]
        print(f"  {name:24s} {first}")
