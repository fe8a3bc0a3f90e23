"""Kernels with one thing taken away, by name, so that a token can build them again.

A *site* is a place in the MMU's code: a function, and for flushes the how-manieth call in it.  The
patch ``KIND@FUNCTION`` changes what is done there and nowhere else:

``no-flush@F#N``        the N-th TLB flush in F is left out
``no-rcu@F``            F does not enter or leave ``rcu``
``no-srcu@F``           nor ``srcu``
``no-pages-lock@F``     nor ``tdp_mmu_pages_lock``
``read-for-write@F``    F takes ``mmu_lock`` for read instead of write; lockdep is told to be quiet
``yield@F``             a zap that F calls may yield although F says no

Who calls is told by the caller's frame, so one function is changed wherever it is inherited.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cache
from typing import Any

from tdpmmu.arch.table import TablePage
from tdpmmu.kernel.locks import RwLock, SpinLock
from tdpmmu.kernel.rcu import Rcu
from tdpmmu.mmu.flush import Flush
from tdpmmu.mmu.kvm import Kvm

FLUSHES = ("flush_remote_tlbs", "flush_remote_tlbs_with_address")
ZAPS = {"zap_gfn_range": 3, "zap_leafs": 3, "tdp_mmu_zap_gfn_range": 2, "zap_root": 1}
"""Functions that take ``can_yield``, and its place among their arguments."""

KINDS = {
    "no-flush": "TLB flush",
    "no-rcu": "RCU section",
    "no-srcu": "SRCU section",
    "no-pages-lock": "tdp_mmu_pages_lock section",
    "read-for-write": "mmu_lock for write",
    "yield": "zap that may not yield",
}

_LOCKS = {
    ("rcu", "read_lock"): "no-rcu",
    ("srcu", "read_lock"): "no-srcu",
    ("tdp_mmu_pages_lock", "lock"): "no-pages-lock",
    ("mmu_lock", "write_lock"): "read-for-write",
}


@dataclass(frozen=True, slots=True)
class Site:
    """``patch`` is the name of the kernel without it."""

    kind: str
    function: str
    number: int = 0

    @property
    def patch(self) -> str:
        """The name under which :func:`removal` knows it."""
        return f"{self.kind}@{self.function}" + (f"#{self.number}" if self.number else "")


def sites(kernel: type[Any], kinds: tuple[str, ...] = tuple(KINDS)) -> list[Site]:
    """Every site in the code that a kernel is made of, in the order of its classes."""
    found: list[Site] = []
    for cls in reversed(kernel.__mro__):
        if not issubclass(cls, Flush) or cls is Flush:
            continue
        for value in vars(cls).values():
            if inspect.iscoroutinefunction(value):
                for site in _sites_of(value):
                    if site.kind in kinds and site not in found:
                        found.append(site)
    return found


@cache
def _calls(function: Any) -> tuple[tuple[int, tuple[str, ...], ast.Call], ...]:
    """The calls in a function: line in its file, dotted name, syntax."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name: list[str] = []
            part: ast.expr = node.func
            while isinstance(part, ast.Attribute):
                name.append(part.attr)
                part = part.value
            calls.append((first + node.lineno - 1, tuple(reversed(name)), node))
    return tuple(sorted(calls, key=lambda call: call[0]))


def _sites_of(function: Any) -> list[Site]:
    where = function.__qualname__
    found: list[Site] = []
    flushes = 0
    for _, name, node in _calls(function):
        # A release's own way to flush is no site: its callers are.
        if name[-1] in FLUSHES and function.__name__ not in FLUSHES:
            flushes += 1
            found.append(Site("no-flush", where, flushes))
        kind = _LOCKS.get((name[-2], name[-1])) if len(name) > 1 else None
        if kind is not None:
            found.append(Site(kind, where))
        place = ZAPS.get(name[-1])
        if place is not None and len(node.args) > place:
            argument = node.args[place]
            if isinstance(argument, ast.Constant) and argument.value is False:
                found.append(Site("yield", where))
    return [site for site in dict.fromkeys(found) if _encloses(function, site)]


def _encloses(function: Any, site: Site) -> bool:
    """A section that begins and ends in the function; a vCPU's SRCU section spans several."""
    unlock = {"no-rcu": "rcu", "no-srcu": "srcu", "no-pages-lock": "tdp_mmu_pages_lock"}
    lock = unlock.get(site.kind)
    if lock is None:
        return True
    names = [name[-1] for _, name, _ in _calls(function) if len(name) > 1 and name[-2] == lock]
    return names[0] in ("read_lock", "lock") and names[-1] in ("read_unlock", "unlock")


def removal(name: str) -> type[Any] | None:
    """The patch that ``KIND@FUNCTION`` names; ``None`` if the name is not of that form."""
    kind, at, place = name.partition("@")
    if not at or kind not in KINDS:
        return None
    function, _, number = place.partition("#")
    return _removal(Site(kind, function, int(number) if number.isdigit() else 0))


@cache
def _removal(site: Site) -> type[Any]:
    base: type[Any] = _BASES[site.kind]
    return type(f"Without_{site.kind}", (base,), {"site": site, "__doc__": site.patch})


def _caller(depth: int = 2) -> Any:
    return sys._getframe(depth)


async def _nothing(*_: object) -> None:
    """What is done instead."""


def _is_here(site: Site) -> bool:
    """Whether the function that called our caller is the site's, and the call the right one."""
    frame = _caller(3)
    if frame.f_code.co_qualname != site.function:
        return False
    if not site.number:
        return True
    owner = frame.f_locals.get("self")
    function = next(
        (
            value
            for cls in type(owner).__mro__
            for value in vars(cls).values()
            if getattr(value, "__code__", None) is frame.f_code
        ),
        None,
    )
    if function is None:
        return False
    lines = [line for line, name, _ in _calls(function) if name[-1] in FLUSHES]
    return frame.f_lineno in lines and lines.index(frame.f_lineno) + 1 == site.number


class _NoFlush(Flush):
    site: Site

    def flush_remote_tlbs(self) -> Coroutine[Any, Any, None]:
        return _nothing() if _is_here(self.site) else super().flush_remote_tlbs()

    def flush_remote_tlbs_with_address(
        self, start_gfn: int, pages: int
    ) -> Coroutine[Any, Any, None]:
        if _is_here(self.site):
            return _nothing()
        return super().flush_remote_tlbs_with_address(start_gfn, pages)


class _NoLock(Flush):
    """One lock behaves differently when the site's function calls it."""

    site: Site

    def __init__(self, kvm: Kvm) -> None:
        super().__init__(kvm)
        kind = self.site.kind
        if kind in ("no-rcu", "no-srcu"):
            name = kind.removeprefix("no-")
            setattr(kvm, name, _like(getattr(kvm, name), _QuietRcu, self.site))
        elif kind == "no-pages-lock":
            kvm.tdp_mmu_pages_lock = _like(kvm.tdp_mmu_pages_lock, _QuietSpinLock, self.site)
        else:
            kvm.mmu_lock = _like(kvm.mmu_lock, _ReadForWrite, self.site)


def _like(lock: Any, cls: type[Any], site: Site) -> Any:
    """The same lock, of a class that looks who calls."""
    other: Any = object.__new__(cls)
    for slot in (slot for base in type(lock).__mro__ for slot in getattr(base, "__slots__", ())):
        setattr(other, slot, getattr(lock, slot))
    other.site = site
    return other


class _QuietRcu(Rcu):
    site: Site

    def read_lock(self) -> Coroutine[Any, Any, None]:
        return _nothing() if _is_here(self.site) else super().read_lock()

    def read_unlock(self) -> Coroutine[Any, Any, None]:
        return _nothing() if _is_here(self.site) else super().read_unlock()


class _QuietSpinLock(SpinLock):
    site: Site

    def lock(self) -> Coroutine[Any, Any, None]:
        return _nothing() if _is_here(self.site) else super().lock()

    def unlock(self) -> Coroutine[Any, Any, None]:
        return _nothing() if _is_here(self.site) else super().unlock()


class _ReadForWrite(RwLock):
    site: Site

    def write_lock(self) -> Coroutine[Any, Any, None]:
        return super().read_lock() if _is_here(self.site) else super().write_lock()

    def write_unlock(self) -> Coroutine[Any, Any, None]:
        return super().read_unlock() if _is_here(self.site) else super().write_unlock()

    def cond_resched_write(self) -> Coroutine[Any, Any, None]:
        return super().cond_resched_read() if _is_here(self.site) else super().cond_resched_write()

    def assert_held_write(self) -> Coroutine[Any, Any, None]:
        return super().assert_held_read()


class _MayYield(Flush):
    site: Site

    def zap_gfn_range(
        self, root: TablePage, start: int, end: int, can_yield: bool, flush: bool = False
    ) -> Any:
        below: Any = super()
        return below.zap_gfn_range(root, start, end, can_yield or _is_here(self.site), flush)

    def zap_leafs(self, root: TablePage, start: int, end: int, can_yield: bool, flush: bool) -> Any:
        below: Any = super()
        return below.zap_leafs(root, start, end, can_yield or _is_here(self.site), flush)

    def tdp_mmu_zap_gfn_range(self, start: int, end: int, can_yield: bool = True) -> Any:
        below: Any = super()
        return below.tdp_mmu_zap_gfn_range(start, end, can_yield or _is_here(self.site))

    def zap_root(self, root: TablePage, can_yield: bool) -> Any:
        below: Any = super()
        return below.zap_root(root, can_yield or _is_here(self.site))


_BASES: dict[str, type[Any]] = {
    "no-flush": _NoFlush,
    "no-rcu": _NoLock,
    "no-srcu": _NoLock,
    "no-pages-lock": _NoLock,
    "read-for-write": _NoLock,
    "yield": _MayYield,
}
