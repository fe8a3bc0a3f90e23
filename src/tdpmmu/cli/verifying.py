"""What ``tdpmmu trace verify`` does, once its command line is understood."""

from __future__ import annotations

import sys

from tdpmmu.cli.errors import UsageError
from tdpmmu.trace.detect import Detector
from tdpmmu.trace.opening import open_trace
from tdpmmu.trace.records import TraceError
from tdpmmu.trace.verify.report import to_json, to_text
from tdpmmu.trace.verify.verifier import verify


def verify_file(
    file: str, kernel: str | None = None, format_name: str | None = None, as_json: bool = False
) -> int:
    """Verify a trace and say what came of it; the exit code."""
    try:
        detector = Detector(format_name, kernel)
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        with open_trace(file) as reader:
            result = verify(reader, detector)
    except TraceError as error:
        raise UsageError(str(error)) from None
    if as_json:
        import json

        json.dump(to_json(result), sys.stdout, indent=2)
        print()
    else:
        print(to_text(result))
    return 1 if result.violations else 0
