"""What code a run depends on, and a fingerprint of it that can name what has changed.

A run depends on the classes it is made of (kernel, patches, scenario, property) and on all that
their modules import, directly or not.  Modules of kernels and patches hold many classes that have
nothing to do with each other: of those only the wanted classes count, and what stands outside
classes.
"""

from __future__ import annotations

import ast
import base64
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

_EACH, _ALL = 2, 4
"""Bytes of a fingerprint for each file, and for all together."""


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
    """Two bytes for each file and four for all of them, as base64url without padding."""
    each = sorted(_digest(name, text)[:_EACH] for name, text in sources.items())
    everything = hashlib.sha256()
    for name in sorted(sources):
        everything.update(_digest(name, sources[name]))
    raw = everything.digest()[:_ALL] + b"".join(each)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _digest(name: str, text: str) -> bytes:
    return hashlib.sha256(f"{name}\0{text}".encode()).digest()


def differences(then: str, sources: dict[str, str]) -> tuple[str, ...] | None:
    """Which files are not as they were at the fingerprint ``then``; None if nothing changed.

    Empty if something changed but no file that is there now.
    """
    if fingerprint(sources) == then:
        return None
    raw = base64.urlsafe_b64decode(then + "=" * (-len(then) % 4))[_ALL:]
    known = {raw[i : i + _EACH] for i in range(0, len(raw), _EACH)}
    return tuple(
        name for name in sorted(sources) if _digest(name, sources[name])[:_EACH] not in known
    )
