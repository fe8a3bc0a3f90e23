"""What code a run depends on, and a fingerprint of it that can name what has changed.

A run depends on the classes it is made of (kernel, patches, scenario, property) and on all that
their modules import, directly or not.  Modules of kernels and patches hold many classes that have
nothing to do with each other: of those only the wanted classes count, and what stands outside
classes.
"""

from __future__ import annotations

import ast
import base64
import difflib
import hashlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

PACKAGE = "tdpmmu"
MIXED = f"{PACKAGE}.versions."
"""Modules with classes that are independent of each other."""

_ALL = 4
"""Bytes of a fingerprint for all files together."""


def sources_of(classes: Iterable[type]) -> dict[str, str]:
    """The text that matters of every file of this package that ``classes`` depend on.

    Files are named by their path in the package.  Classes from elsewhere, such as a user's patch,
    count only for what they derive from and import.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for base in {base for cls in classes for base in cls.__mro__}:
        home = base.__module__
        # A kernel with patches applied is a class that no file contains.
        found = getattr(sys.modules[home], base.__qualname__, None) is base
        if found and home.partition(".")[0] not in sys.stdlib_module_names:
            wanted[home].add(base.__qualname__)
    todo = list(wanted)
    trees: dict[str, tuple[str, ast.Module]] = {}
    while todo:
        name = todo.pop()
        if name in trees:
            continue
        text = _text(sys.modules.get(name) or import_module(name))
        trees[name] = (text, ast.parse(text))
        for module, imported in _imports(trees[name][1], name):
            wanted[module].update(imported)
            todo.append(module)
    return {
        _path(name): (_cut(text, tree, wanted[name]) if name.startswith(MIXED) else text)
        for name, (text, tree) in trees.items()
        if name.startswith(PACKAGE + ".") and text
    }


def _path(name: str) -> str:
    path = name.removeprefix(PACKAGE + ".").replace(".", "/")
    return f"{path}/__init__.py" if hasattr(sys.modules[name], "__path__") else f"{path}.py"


def _text(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""


def _imports(tree: ast.Module, name: str) -> list[tuple[str, set[str]]]:
    """``(module, names)`` for what a module takes from this package when it runs."""
    found: list[tuple[str, set[str]]] = []
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse
        elif isinstance(node, ast.Import):
            found += [(alias.name, set()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parent = name.rsplit(".", node.level)[0]
                module = f"{parent}.{module}" if module else parent
            names = {alias.name for alias in node.names}
            found.append((module, names))
            found += [(f"{module}.{one}", set()) for one in names if _is_module(module, one)]
        else:
            todo += ast.iter_child_nodes(node)
    return [one for one in found if one[0].startswith(PACKAGE + ".")]


def _is_module(package: str, name: str) -> bool:
    return package.startswith(PACKAGE) and f"{package}.{name}" in sys.modules


def _cut(text: str, tree: ast.Module, wanted: set[str]) -> str:
    """The statements of a module but for imports, its docstring and classes not wanted."""
    kept = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.ClassDef) and node.name not in wanted:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        kept.append(ast.get_source_segment(text, node) or "")
    return "\n".join(kept)


def fingerprint(sources: dict[str, str]) -> str:
    """Four bytes for all files and one for each, in the order of their names, as base64url."""
    digests = [_digest(name, sources[name]) for name in sorted(sources)]
    everything = hashlib.sha256(b"".join(digests)).digest()[:_ALL]
    return base64.urlsafe_b64encode(everything + _first_bytes(digests)).rstrip(b"=").decode()


def _digest(name: str, text: str) -> bytes:
    return hashlib.sha256(f"{name}\0{text}".encode()).digest()


def _first_bytes(digests: list[bytes]) -> bytes:
    return bytes(digest[0] for digest in digests)


def differences(then: str, sources: dict[str, str]) -> tuple[str, ...] | None:
    """Which files are not as they were at the fingerprint ``then``; None if nothing changed.

    Empty if something changed but no file that is there now.  One byte tells a change of a file in
    255 of 256 cases, and files that came or went do not hide those around them.
    """
    if fingerprint(sources) == then:
        return None
    known = base64.urlsafe_b64decode(then + "=" * (-len(then) % 4))[_ALL:]
    names = sorted(sources)
    now = _first_bytes([_digest(name, sources[name]) for name in names])
    matcher = difflib.SequenceMatcher(None, known, now, autojunk=False)
    return tuple(
        name
        for tag, _, _, start, end in matcher.get_opcodes()
        if tag != "equal"
        for name in names[start:end]
    )
