"""Kernel modules as files."""

from __future__ import annotations

import lzma
import re
import subprocess

from tdpmmu.lab.errors import LabError, need


def decompress(name: str, content: bytes) -> bytes:
    """The module itself, from ``NAME.ko``, ``NAME.ko.xz`` or ``NAME.ko.zst``."""
    if name.endswith(".xz"):
        return lzma.decompress(content)
    if name.endswith(".zst"):
        zstd = need("zstd", "zstd")
        return subprocess.run([zstd, "-dc"], input=content, capture_output=True, check=True).stdout
    if name.endswith(".ko"):
        return content
    raise LabError(f"{name}: expected a module as .ko, .ko.xz or .ko.zst")


def depends(content: bytes) -> list[str]:
    """The modules that a module says it depends on (``.modinfo``), with ``_`` for ``-``."""
    found = re.search(rb"\0depends=([\w,-]*)\0", content)
    if found is None:
        return []
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name]
