"""What can go wrong with the lab and is not a verdict."""

from __future__ import annotations

import shutil


class LabError(Exception):
    """The lab cannot do what it was asked for; the message is one line."""


def need(tool: str, package: str) -> str:
    """The path of a program; LabError says which package (Debian's name) has it."""
    path = shutil.which(tool)
    if path is None:
        raise LabError(f"{tool} is not installed: apt-get install {package}")
    return path
