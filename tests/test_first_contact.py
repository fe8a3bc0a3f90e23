"""What a newcomer meets: the overview, help with examples, a quick start, quiet pipes."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from tdpmmu.cli.main import app
from tdpmmu.cli.overview import OVERVIEW

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "tdpmmu"]
TRACE = str(ROOT / "tests" / "data" / "traces" / "6.1-second-root" / "trace.txt.xz")
HEAVY = ("pydantic", "rich", "jinja2", "numba", "tdpmmu.mmu", "tdpmmu.worlds", "tdpmmu.scenarios")


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with how it is called."""
    command = command or typer.main.get_command(app)
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
        return
    for name, one in below.items():
        yield from commands(one, (*path, name))


COMMANDS = dict(commands())


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def parse(line: str) -> None:
    """Read a command line as the command would; nothing is run."""
    words = shlex.split(line)
    assert words[0] == "tdpmmu"
    name = max((one for one in COMMANDS if f"{line} ".startswith(f"tdpmmu {one} ")), key=len)
    COMMANDS[name].make_context(name, words[1 + len(name.split()) :])


def help_of(command: str) -> str:
    return COMMANDS[command].help or ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_is_right_and_its_exit_codes(command: str) -> None:
    text = help_of(command)
    (example,) = re.findall(r"Example: (tdpmmu .*)", text)
    assert example.startswith(f"tdpmmu {command}")
    assert len(f"  Example: {example}") <= 80, "it would be broken over lines"
    parse(example)
    assert re.search(r"Exit codes?: 0", text)
    shown = run(*command.split(), "--help")
    assert shown.returncode == 0
    assert f"  Example: {example}\n" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["check", "compare", "decode", "kernels", "zoo", "lab steps"])
def test_examples_that_need_no_file_run(command: str, tmp_path: Path) -> None:
    (example,) = re.findall(r"Example: (tdpmmu .*)", help_of(command))
    done = subprocess.run(
        [*PROGRAM, *shlex.split(example)[1:]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout
    assert not done.stderr


LISTED_BY_OTHERS = (
    "lab steps",
    "lab fuzz",
    "simulate presets",
    "simulate calibrate",
    "simulate dirty-log",
    "simulate migration",
)
"""Those that the help of their group names."""


def test_alone_it_says_all_that_it_can_do_in_one_screen() -> None:
    shown = run()
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for command in COMMANDS:
        if command not in LISTED_BY_OTHERS:
            assert f"tdpmmu {command}" in shown.stdout
    for line in OVERVIEW.splitlines():
        if line.startswith("  tdpmmu "):
            parse(line[:42].strip().replace("TOKEN", "tdpmmu1-x"))


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], HEAVY),
        ([], (*HEAVY, "typer")),
        (["decode", "800000000ce00ee7"], (*HEAVY, "typer")),
        (["trace", "verify", TRACE], (*HEAVY, "typer", "tdpmmu.events", "tdpmmu.machine")),
    ],
    ids=" ".join,
)
def test_starting_loads_little(words: list[str], unwanted: tuple[str, ...]) -> None:
    program = "import runpy, sys, atexit\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\nsys.argv = ['tdpmmu', *sys.argv[1:]]\nrunpy.run_module('tdpmmu')"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    loaded = set(done.stderr.split())
    assert "tdpmmu.cli.entry" in loaded
    assert not loaded & set(unwanted)


def test_plain_files_and_options_are_verified_alike() -> None:
    quick, slow = run("trace", "verify", TRACE), run("trace", "verify", "--format", "npt", TRACE)
    assert quick.stdout == slow.stdout != ""
    assert "holds" in quick.stdout
    wrong = run("trace", "verify", "no-such-file")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


def test_help_on_all_of_it_is_the_same_without_the_commands_options() -> None:
    done = run("--help")
    assert done.returncode == 0
    whole = CliRunner().invoke(app, ["--help"], prog_name="tdpmmu").stdout
    assert done.stdout.split() == whole.split()
    assert "Explore every interleaving" in done.stdout


def test_plain_values_and_options_are_explained_alike() -> None:
    values = ["800000000ce00ee7", "0x0"]
    quick, slow = run("decode", *values), run("decode", "--format", "npt", *values)
    assert quick.stdout == slow.stdout != ""
    wrong = run("decode", "xyz")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


def terminal(*words: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    names = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    done = subprocess.Popen(
        [*PROGRAM, *words], stdout=slave, stderr=slave, stdin=subprocess.DEVNULL,
        env={**names, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(slave)
    text = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(master)
    done.wait()
    return text.decode(errors="replace")


@pytest.fixture(scope="module")
def token() -> str:
    done = run("check", "nx-recovery", "-k", "5.12-rc4", "--legacy", "0", "--no-explain")
    return re.findall(r"tdpmmu1-\S+", done.stdout)[0]


def test_colours_are_for_terminals_that_want_them(token: str) -> None:
    assert "\x1b[" in terminal("explain", token)
    assert "\x1b[" not in terminal("explain", token, NO_COLOR="1")
    assert "\x1b" not in run("explain", token).stdout
    assert "\x1b" not in terminal("explain", token, "--mail")


def test_a_pipe_that_closes_early_is_no_error(token: str) -> None:
    program = f"{shlex.join([*PROGRAM, 'explain', token, '--json'])} | head -c 10"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == '{\n  "token'[:10]
    assert done.stderr == ""


def test_shells_can_complete() -> None:
    done = run(_TDPMMU_COMPLETE="complete_bash", COMP_WORDS="tdpmmu che", COMP_CWORD="1")
    assert done.stdout.split() == ["check"]


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"tdpmmu {version('tdpmmu')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "--foo"), "--foo"),
        (("zop",), "zoo"),
        (("check", "--states", "x"), "--states"),
        (("explain",), "TOKEN"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("tdpmmu: ")
    assert said in done.stderr


def test_a_group_without_a_command_shows_its_help() -> None:
    done = run("trace")
    assert done.returncode == 2
    assert "verify" in done.stdout
    assert done.stderr == ""
