"""The commands that README and docs show do what they are shown to do.

In a block marked ``console`` a line that starts with ``$ tdpmmu`` is a command; the lines below it
are its output, ``...`` standing for lines left out.  Checked are the exit code, which the output
shown implies, and the first line shown.  Numbers of states need not agree: they change with every
reduction.  A token that is shown stands for the last one that was printed.

A block after a comment ``<!-- file: NAME -->`` is a file that the commands find.
"""

from __future__ import annotations

import atexit
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
TOKEN = re.compile(r"tdpmmu1-[A-Za-z0-9_-]+")
FILES = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)
LINKS = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")
FIRST = re.compile(r"(?P<code>violated: |holds |equal: |different: |tdpmmu: |vacuous: |nothing f)")
CODES = {"violated: ": 1, "different: ": 1, "tdpmmu: ": 2, "nothing f": 3, "vacuous: ": 4}


@dataclass(frozen=True)
class Shown:
    """A command with the output shown below it."""

    where: str
    command: str
    output: tuple[str, ...]

    @property
    def first(self) -> str:
        """The first line of output that is not an ellipsis."""
        return next((line for line in self.output if line.strip() not in ("", "...")), "")

    @property
    def exit_code(self) -> int:
        """What the output shown says."""
        match = FIRST.search(self.first)
        return CODES.get(match["code"], 0) if match else 0


def shown_in(name: str) -> list[Shown]:
    """Every command of a document."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
        command: str | None = None
        output: list[str] = []
        for line in [*block.splitlines(), "$ end"]:
            if not line.startswith("$ "):
                output.append(line)
                continue
            if command is not None:
                found.append(Shown(name, command, tuple(output)))
            command, output = line[2:], []
    return found


COMMANDS = [
    shown
    for name in DOCUMENTS
    for shown in shown_in(name)
    if shown.command.split() != ["tdpmmu", "check"]
]
DISTINCT = sorted({shown.command for shown in COMMANDS if "tdpmmu1-" not in shown.command})


@cache
def workplace() -> Path:
    """A folder for what commands write, with all that they read."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    for name in ("examples", "tests", "docs"):
        (place / name).symlink_to(ROOT / name)
    for document in DOCUMENTS:
        for name, text in FILES.findall((ROOT / document).read_text()):
            assert not (place / name).exists(), f"{document}: {name} is there already"
            (place / name).write_text(text)
    return place


@cache
def run(command: str) -> tuple[int, str]:
    """Exit code and output; each command is run once."""
    words = shlex.split(command)
    assert words[0] == "tdpmmu", command
    done = subprocess.run(
        [sys.executable, "-m", "tdpmmu.cli.main", *words[1:]],
        cwd=workplace(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def without_numbers(line: str) -> str:
    """What of a line of output has to stay as it is."""
    return re.sub(r"SP\d+|[\d,]+ (and [\d,]+ )?states|\d+\.\d s", "#", " ".join(line.split()))


def test_the_commands_shown_do_what_they_are_shown_to_do() -> None:
    token = ""
    wrong = []
    with ThreadPoolExecutor(2) as pool:
        [*pool.map(run, DISTINCT)]
    for shown in COMMANDS:
        if "tdpmmu1-" in shown.command:
            assert token, f"{shown.where}: {shown.command} comes before any token"
            options = shown.command.partition("tdpmmu1-...")[2]
            code, output = run(f"tdpmmu explain {token}{options}")
            shown_codes = (0,)
        else:
            code, output = run(shown.command)
            found = TOKEN.search(output)
            token = found[0] if found else token
            shown_codes = (shown.exit_code,)
        if code not in shown_codes:
            wrong.append(f"{shown.where}: {shown.command}: exit code {code}\n{output[:400]}")
            continue
        text = without_numbers(output)
        if without_numbers(shown.first) not in text:
            wrong.append(f"{shown.where}: {shown.command}: no {shown.first!r} in\n{output[:400]}")
    assert not wrong, "\n".join(wrong)


def test_the_tutorial_shows_just_what_its_reader_sees() -> None:
    shown = [one for one in shown_in("docs/tutorial.md") if "tdpmmu1-" not in one.command]
    for one in shown:
        lines = [without_numbers(line) for line in run(one.command)[1].splitlines()]
        for line in one.output:
            if line.strip() not in ("", "..."):
                assert without_numbers(line) in lines, f"{one.command}: {line}"
    prose = (ROOT / "docs/tutorial.md").read_text().rpartition("That is it.")[2]
    steps = re.findall(r"\bstep (\d+)", prose.partition("## ")[0])
    caught = next(one for one in shown if "caught.html" in one.command)
    numbers = re.findall(r"^ *(\d+)  ", run(caught.command)[1], re.MULTILINE)
    assert len(steps) == 4
    assert set(steps) <= set(numbers), "the steps that the tutorial names are others now"


def test_there_are_commands_in_the_readme() -> None:
    kinds = {shown.command.split()[1] for shown in shown_in("README.md")}
    assert kinds >= {"check", "explain", "compare", "decode", "trace"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    here = (ROOT / name).parent
    links = [target for target, _ in LINKS.findall((ROOT / name).read_text())]
    broken = [one for one in links if ":" not in one and not (here / one).exists()]
    assert not broken, broken
