"""``tdpmmu``: the command line."""

from __future__ import annotations

import sys

import typer

from tdpmmu.cli.audit import audit, flushes
from tdpmmu.cli.check import check
from tdpmmu.cli.compare import compare
from tdpmmu.cli.decode import CONTEXT_SETTINGS, decode
from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.explain import explain
from tdpmmu.cli.kernels import kernels
from tdpmmu.cli.lab import lab_app
from tdpmmu.cli.trace import trace_app
from tdpmmu.cli.zoo import zoo

app = typer.Typer(
    help="An executable model of KVM's x86 MMU, and tools that make it answer questions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(check)
app.command()(explain)
app.command()(compare)
app.command(context_settings=CONTEXT_SETTINGS)(decode)
app.command()(kernels)
app.command()(zoo)
app.command()(flushes)
app.command()(audit)
app.add_typer(trace_app, name="trace")
app.add_typer(lab_app, name="lab")


def main() -> None:
    """Run a command; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except UsageError as error:
        print(f"tdpmmu: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("tdpmmu: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
