"""``tdpmmu explain``: what a token's violation is, step by step."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.limits import check_width

if TYPE_CHECKING:
    from tdpmmu.scenarios.token import Reproduction

_TOKEN = re.compile(r"tdpmmu\d+-[A-Za-z0-9_-]*")
_MORE = re.compile(r"[ \t]*\r?\n[ \t>|]*([A-Za-z0-9_-]+)(?=[ \t]*(?:\r?\n|$))")


def read_token(text: str) -> str:
    """The token in ``text``, which may be the token, ``@FILE``, or ``-`` for stdin.

    A file may hold anything else beside it, such as the mail it came with, in which it may be
    broken over lines and quoted.
    """
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"{text[1:]}: {error.strerror}") from None
    else:
        return text
    if text.lstrip().startswith("tdpmmu"):
        return text
    found = _TOKEN.search(text)
    if found is None:
        raise UsageError("there is no token in it: none starts with tdpmmu1-")
    return _whole(text, found)


def _whole(text: str, found: re.Match[str]) -> str:
    """A token with as many of the lines after it as belong to it."""
    from tdpmmu.scenarios.token import decode

    token, end = found[0], found.end()
    first = token
    while True:
        try:
            decode(token)
        except ValueError:
            more = _MORE.match(text, end)
            if more is None:
                return first
            token, end = token + more[1], more.end()
        else:
            return token


def explain(
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN", help="tdpmmu1-...; @FILE and - read it from a file or from stdin."
        ),
    ],
    width: Annotated[int, typer.Option(help="Columns to use, 60 or more.")] = 80,
    ascii_only: Annotated[
        bool, typer.Option("--ascii", help="ASCII only; so it is where UTF-8 cannot be printed.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Every operation, not only those that matter.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replay although the code changed, as far as it goes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    ftrace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the run as tracefs text instead; - is stdout."),
    ] = None,
    perfetto: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the run for the Perfetto UI instead."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the run as a page for a browser instead."),
    ] = None,
    diagram: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the run as a sequence diagram (SVG) instead."),
    ] = None,
    mail: Annotated[bool, typer.Option("--mail", help="For a mail: 72 columns of ASCII.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="For a bug tracker.")] = False,
    reproducer: Annotated[
        bool, typer.Option("--reproducer", help="Where a real kernel needs delays to do this.")
    ] = False,
) -> None:
    """Replay a token and show what each CPU does, up to the step where it goes wrong.

    Example: tdpmmu explain @mail.txt --ascii

    Options that take a FILE write the run to it (- is stdout) and show nothing.

    Exit codes: 0 replayed, 1 with --force: the violation does not come any more, 2 bad usage.
    """
    from tdpmmu.render.lines import show
    from tdpmmu.scenarios.showing import to_lines
    from tdpmmu.scenarios.token import StaleToken, decode, reproduce

    check_width(width)
    files = {
        "--ftrace": (ftrace, write_ftrace),
        "--perfetto": (perfetto, write_perfetto),
        "--html": (html, write_html),
        "--diagram": (diagram, write_diagram),
    }
    texts = {"--json": as_json, "--mail": mail, "--markdown": markdown, "--reproducer": reproducer}
    chosen = [name for name, wanted in texts.items() if wanted]
    written = [name for name, (path, _) in files.items() if path is not None]
    if len(chosen) > 1 or (chosen and written):
        raise UsageError(f"{' and '.join([*chosen, *written])} do not go together: choose one")
    try:
        done = reproduce(decode(read_token(token)), force=force)
    except StaleToken as error:
        raise UsageError(f"{error} (--force tries)") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    for path, write in files.values():
        if path is not None:
            write(done, path)
    if chosen:
        print(_text(done, chosen[0], width), end="")
    elif not written:
        ascii_only = ascii_only or not _can_print(sys.stdout.encoding)
        show(to_lines(done, width=width, ascii=ascii_only, every=every), sys.stdout, width=width)
        print(f"\nReplay it: tdpmmu explain {done.token.encode()}")
    if done.sentence is None:
        raise typer.Exit(1)


def _text(done: Reproduction, form: str, width: int) -> str:
    """The run in one of the forms that are printed."""
    from tdpmmu.cli import forms

    if form == "--mail":
        return forms.mail(done)
    if form == "--markdown":
        return forms.markdown(done)
    if form == "--reproducer":
        return forms.reproducer(done, width)
    return json.dumps(to_json(done), indent=2) + "\n"


def _can_print(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "") == "utf8"


def write_ftrace(done: Reproduction, path: str) -> None:
    """The run as the text of tracefs."""
    from tdpmmu.cli.output import whole_file
    from tdpmmu.render.ftrace import ftrace
    from tdpmmu.scenarios.showing import end_of, facts, scene_of

    token = done.token
    verdict = f"{token.kind.upper()} {token.prop}" if done.sentence else end_of(done)
    comments = [*facts(done), f"Replay it: tdpmmu explain {token.encode()}"]
    text = ftrace(done.records, scene_of(done), comments, verdict)
    with whole_file(path) as file:
        file.write(text.encode())


def write_perfetto(done: Reproduction, path: str) -> None:
    """The run as a timeline for the Perfetto UI."""
    from tdpmmu.cli.output import whole_file
    from tdpmmu.render.perfetto import write_timeline
    from tdpmmu.scenarios.showing import scene_of, told
    from tdpmmu.timeline.builder import PerfettoMissing

    token = done.token
    title = f"{token.scenario} on {' with '.join([token.kernel, *token.patches])}"
    try:
        with whole_file(path) as file:
            write_timeline(file, done.records, scene_of(done), told(done), title)
    except PerfettoMissing as error:
        raise UsageError(f"--perfetto: {error}") from None


def write_html(done: Reproduction, path: str) -> None:
    """The run as a page for a browser."""
    from tdpmmu.cli.report import write_run

    write_run(path, done)


def write_diagram(done: Reproduction, path: str) -> None:
    """The run as a sequence diagram."""
    from tdpmmu.cli.output import whole_file
    from tdpmmu.render.diagram import diagram
    from tdpmmu.scenarios.showing import scene_of, told

    text = diagram(done.records, told(done), scene_of(done))
    with whole_file(path) as file:
        file.write(text.encode())


def to_json(done: Reproduction) -> dict[str, Any]:
    """The token's content and every operation as plain data."""
    from tdpmmu.render.steps import steps
    from tdpmmu.scenarios.showing import scene_of

    token = done.token
    return {
        "token": token.encode(),
        "scenario": token.scenario,
        "parameters": dict(token.parameters),
        "kernel": token.kernel,
        "patches": list(token.patches),
        "property": token.prop,
        "kind": token.kind,
        "sentence": token.sentence if done.sentence is None else done.sentence,
        "reproduced": done.sentence is not None,
        "problem": done.problem,
        "steps": steps(done.records, done.sentence or token.sentence, scene_of(done)),
    }
