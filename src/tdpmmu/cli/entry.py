"""Where ``tdpmmu`` starts: errors become one line, and what needs no parser gets none.

Reading options takes longer than explaining an SPTE or verifying a short trace, so plain values and
plain files are dealt with at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from tdpmmu.cli.errors import UsageError

_COMPLETION = "_TDPMMU_COMPLETE"
"""Set by shells that want to complete a command line, which they pass in another variable."""


def main() -> None:
    """Run a command; bad input is one line on stderr and exit code 2."""
    try:
        _run(sys.argv[1:])
    except UsageError as error:
        print(f"tdpmmu: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("tdpmmu: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _run(arguments: list[str]) -> None:
    command, values = arguments[:1], arguments[1:]
    if command == ["decode"] and values and not any(one.startswith("-") for one in values):
        from tdpmmu.cli.decoding import explain_sptes

        explain_sptes(values)
        return
    if not arguments and _COMPLETION not in os.environ:
        from tdpmmu.cli.overview import show

        show()
        return
    if (
        arguments[:2] == ["trace", "verify"]
        and len(arguments) == 3
        and not arguments[2].startswith("-")
    ):
        from tdpmmu.cli.verifying import verify_file

        sys.exit(verify_file(arguments[2]))
    from tdpmmu.cli.main import app, options_of

    wanted = command[0] if command else ""
    try:
        with nullcontext() if _COMPLETION in os.environ else options_of(wanted):
            code = app(prog_name="tdpmmu", standalone_mode=False)
    except Exception as error:
        # What is wrong with a command line knows how to say so; its class is private to typer.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if "\n" in message():
            # A group without a command: its help.
            print(message())
            sys.exit(2)
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "tdpmmu"
        raise UsageError(f"{message()} ('{path} -h' has the options)") from None
    sys.exit(code or 0)
