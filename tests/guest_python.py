"""This Python, with the modules that a command needs, as files for the lab's guest."""

from __future__ import annotations

import importlib.util
import marshal
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tdpmmu.lab.binaries import libraries

DUMP = """
import atexit, sys
def dump():
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None):
            print("FILE", module.__file__, file=sys.stderr)
atexit.register(dump)
"""


def files_for(code: str) -> dict[str, bytes]:
    """Interpreter, libraries and modules (compiled) that ``code`` has loaded when it ends.

    In the guest: ``/bin/python3``, with PYTHONHOME ``/py``.
    """
    command = [sys.executable, "-c", DUMP + code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    used = {Path(line[5:]) for line in ran.stderr.splitlines() if line.startswith("FILE ")}
    assert used, ran.stderr
    interpreter = Path(os.path.realpath(sys.executable))
    found = {"bin/python3": interpreter.read_bytes()}
    home = f"py/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    found[f"{home}/lib-dynload/.there"] = b""
    roots = sorted({Path(root or ".").resolve() for root in sys.path}, key=lambda p: -len(str(p)))
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    for path in (interpreter, *used):
        if path.suffix not in (".py", ".pyc"):
            found |= libraries(path)
    for path in used:
        resolved = path.resolve()
        if resolved.is_relative_to(standard) and "site-packages" not in resolved.parts:
            name = f"{home}/{resolved.relative_to(standard)}"
        else:
            root = next(root for root in roots if resolved.is_relative_to(root))
            name = f"{home}/site-packages/{resolved.relative_to(root)}"
        if path.suffix == ".py":
            found[f"{name}c"] = _compiled(path)
        else:
            found[name] = path.read_bytes()
    return found


def _compiled(path: Path) -> bytes:
    """Byte code without its source, which takes the guest no time."""
    code = compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + bytes(8) + marshal.dumps(code)
