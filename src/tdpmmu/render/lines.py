"""Lines made of pieces with a style each: plain text for mails and files, colours for terminals."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from typing import TextIO

Line = list[tuple[str, str]]
"""Pieces of text, each with the name of its style."""

STYLES = {
    "": "",
    "call": "cyan",
    "plain": "",
    "spte": "",
    "lock": "magenta",
    "flush": "green",
    "guest": "blue",
    "memory": "",
    "alarm": "bold red",
    "note": "bold yellow",
    "number": "dim",
    "lane": "dim",
    "title": "bold",
}

_TO_ASCII = str.maketrans({"│": "|", "─": "-", "→": "->", "◄": "<-"})


def plain(lines: Iterable[Line]) -> str:
    """The text alone, without white space at the ends of lines."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def ascii_only(lines: Iterable[Line]) -> list[Line]:
    """The same lines without a character that mail programs could spoil."""
    return [[(text.translate(_TO_ASCII), style) for text, style in line] for line in lines]


def paragraph(
    text: str, width: int, style: str = "", indent: str = "", hang: str = ""
) -> list[Line]:
    """``text`` wrapped to ``width``; ``hang`` begins the lines after the first."""
    wrapped = textwrap.wrap(
        text,
        max(width, 16),
        initial_indent=indent,
        subsequent_indent=hang or indent,
        break_on_hyphens=False,
    )
    return [[(line, style)] for line in wrapped]


def show(lines: Iterable[Line], file: TextIO, *, width: int) -> None:
    """Print lines, in colours if ``file`` is a terminal and NO_COLOR is not set."""
    if not file.isatty() or os.environ.get("NO_COLOR"):
        print(plain(lines), file=file)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, width=max(width, 20), highlight=False)
    for line in lines:
        console.print(
            Text.assemble(*((text, STYLES[style]) for text, style in line)), soft_wrap=True
        )
