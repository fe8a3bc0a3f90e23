"""What tests with real kernels need; on a Debian machine root gets it installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

from tdpmmu.lab.errors import LabError
from tdpmmu.lab.kernels import Kernel, find_kernel

PACKAGES = ("qemu-system-x86", "busybox-static", "gcc", "libc6-dev")
TOOLS = ("qemu-system-x86_64", "busybox", "gcc")


def kernel_or_skip(version: str) -> Kernel:
    """A kernel to boot, with all that it takes; skips the test, and says why, without."""
    if why := _missing():
        pytest.skip(why)
    try:
        return find_kernel(version)
    except LabError as error:
        pytest.skip(str(error))


@cache
def _missing() -> str:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "the lab gets its kernels with apt-get, which is not here"
    if all(shutil.which(tool) for tool in TOOLS):
        return ""
    if os.geteuid() != 0:
        return f"not installed, and only root can: {' '.join(PACKAGES)}"
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        if subprocess.run(["apt-get", "-q", *command], check=False).returncode:
            return f"apt-get {command[0]} failed"
    return ""
