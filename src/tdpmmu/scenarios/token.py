"""Tokens: one line that finds a violation again, or says why it cannot.

A token holds the question (scenario with all its parameters, kernel, patches), the answer (property
and sentence), the schedule that leads there, and a fingerprint of the code that it was made with.
It knows nothing of the explorer: no numbers of states, no offsets into frames.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from sys import modules
from typing import Any, Protocol

from tdpmmu.properties import catalogue as properties
from tdpmmu.scenarios.base import Built
from tdpmmu.scenarios.sources import differences, fingerprint, sources_of
from tdpmmu.versions import registry
from tdpmmu.worlds.replay import (
    Record,
    Replay,
    ReplayError,
    Run,
    Schedule,
    TurnLike,
    cut,
    loop_of,
    schedule_of,
)

VERSION = 1
PREFIX = f"tdpmmu{VERSION}-"

_WORDS = b"".join(
    (
        b'deadlock","everybody waits: ; no-progress","exception","Error: leak","the VM is gone b',
        b'ut not use-after-free"," is touched after  was freed kernel-warning","WARN: refcount",',
        b'"guard","lock-context"," may sleep under mmu_lock for write and multihit"," may execut',
        b'e both through  and through freed-table"," is freed while  still points to it may stil',
        b'l walk it through the 4K table entry for gfn 0x flush-before-rcu-unlock","rcu_read_unl',
        b'ock while a vCPU may still walk flush-owed","mmu_lock is released while a vCPU may sti',
        b"ll use the 2M translation of gfn 0x0, which nothing backs any more no-forward-progress",
        b' preserve-pending-flush 5.13","6.1","6.12","6.18",["flush-on-nx-zap","flush-when-yield',
        b'ing","no-yield-in-zap-sp"],{".py:["nx-recovery",{"levels":3,"fanout":2,"vcpus":1,"root',
        b's":2,"nx_pages":1,"legacy":1,"gfns":2,"faults":1,"unmap":true,"flush":"bare-metal","fo',
        b'rmat":"npt","resched":"any"},"5.12",[],{},"discipline","5.12-rc4",[],{},"stale-transla',
        b'tion","harm","the host reuses the page of gfn 0x0 while vCPU0 may still use the 4K tra',
        b'nslation of gfn 0x0 (root SP1, SPTE 0x8000000100000ce7)","a87@24c7a13b37","',
    )
)
"""What tokens are likely to contain, the likeliest last (zlib's preset dictionary).

It is part of the format: a change makes all tokens unreadable, and takes another ``VERSION``.
"""

_LONGEST = 1 << 20
"""Bytes that a token may unpack to."""

_DIGEST = 16
"""Hexadecimal digits of a user's file's sha256 that a token keeps."""

Parameter = int | str | bool | float | None


class TokenError(ValueError):
    """A token that cannot be read, or cannot be run here.  The message is one clear line."""


class StaleToken(TokenError):
    """A token that was made with other code; the message says what changed."""


@dataclass(frozen=True, slots=True)
class Token:
    """A violation that can be found again.

    ``scenario`` and ``patches`` are names of the catalogues, or ``file.py:Class`` for a user's own;
    ``files`` are the user's files with the start of their sha256.  ``sources`` is the fingerprint
    of everything else that the run depends on.
    """

    scenario: str
    parameters: tuple[tuple[str, Parameter], ...]
    kernel: str
    patches: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    prop: str
    kind: str
    sentence: str
    schedule: Schedule
    sources: str

    @property
    def operations(self) -> int:
        """The length of the schedule."""
        return sum(run.operations for run in self.schedule)

    def encode(self) -> str:
        """The token as one line."""
        content = [
            self.scenario,
            dict(self.parameters),
            self.kernel,
            list(self.patches),
            dict(self.files),
            self.prop,
            self.kind,
            self.sentence,
            schedule_text(self.schedule),
            self.sources,
        ]
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        packer = zlib.compressobj(9, zdict=_WORDS)
        packed = packer.compress(text.encode()) + packer.flush()
        return PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode(text: str) -> Token:
    """Read a token; white space, as mail programs break lines, does not matter."""
    text = "".join(text.split())
    match = re.match(r"tdpmmu(\d+)-", text)
    if match is None:
        raise TokenError(f"not a token: it should start with {PREFIX}")
    if int(match[1]) != VERSION:
        raise TokenError(f"a token of format {match[1]}; this tdpmmu reads format {VERSION}")
    body = text[match.end() :]
    try:
        packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj(zdict=_WORDS)
        content = json.loads(unpacker.decompress(packed, _LONGEST))
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("cut short")
        scenario, parameters, kernel, patches, files, prop, kind, sentence, runs, sources = content
        return Token(
            _string(scenario),
            tuple((name, _parameter(value)) for name, value in parameters.items()),
            _string(kernel),
            tuple(_string(name) for name in patches),
            tuple((path, _string(digest)) for path, digest in files.items()),
            _string(prop),
            _string(kind),
            _string(sentence),
            read_schedule(_string(runs)),
            _string(sources),
        )
    except (ValueError, TypeError, AttributeError, zlib.error):
        raise TokenError(
            f"the token is damaged or cut short ({len(text)} characters; copy it whole)"
        ) from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _parameter(value: Any) -> Parameter:
    if value is not None and not isinstance(value, (int, str, float)):
        raise TypeError(value)
    return value


# --- schedules as text ----------------------------------------------------------------------------

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RUN = re.compile(r"([a-zA-Z])(\d+)((?:@\d+(?:=\d+)?)*)")
_CHOICE = re.compile(r"@(\d+)(?:=(\d+))?")


def schedule_text(schedule: Iterable[Run]) -> str:
    """Runs as ``a31@24b7``: thread a for 31 operations, the one at offset 24 with alternative 1.

    ``@24=2`` is alternative 2.  ValueError for more than 52 threads.
    """
    parts = []
    for run in schedule:
        if run.thread >= len(_LETTERS):
            raise ValueError(f"a token can tell {len(_LETTERS)} threads apart, not more")
        parts.append(f"{_LETTERS[run.thread]}{run.operations}")
        parts += [f"@{i}" if chosen == 1 else f"@{i}={chosen}" for i, chosen in run.choices]
    return "".join(parts)


def read_schedule(text: str) -> Schedule:
    """The reverse of :func:`schedule_text`."""
    runs = []
    at = 0
    while at < len(text):
        match = _RUN.match(text, at)
        if match is None:
            raise ValueError(f"no run at {text[at : at + 10]!r}")
        at = match.end()
        choices = tuple((int(i), int(n or 1)) for i, n in _CHOICE.findall(match[3]))
        runs.append(Run(_LETTERS.index(match[1]), int(match[2]), choices))
    return tuple(runs)


# --- what a token speaks of -----------------------------------------------------------------------

Attach = Callable[[Built, type[Any]], None]
"""Lets properties watch a machine that was built for a kernel."""


def attach_all(built: Built, mmu_class: type[Any]) -> None:
    """Every property that binds this kernel."""
    properties.attach(
        built.machine,
        built.kvm.hardware,
        built.kvm.locks,
        flush_before_rcu_unlock=mmu_class.flush_before_rcu_unlock,
    )


def load_class(reference: str) -> type[Any]:
    """The class that ``file.py:Class`` names."""
    path, _, name = reference.rpartition(":")
    found = getattr(load_module(path), name, None)
    if not isinstance(found, type):
        raise TokenError(f"{path}: no class {name}")
    return found


def load_module(path: str) -> Any:
    """A user's file as a module; one that is loaded already is loaded again if it has changed."""
    name = f"tdpmmu_user_{hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:12]}"
    content = _file_digest(path)
    module = modules.get(name)
    if module is not None and module.__dict__["__tdpmmu_digest__"] == content:
        return module
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TokenError(f"{path}: not a Python file")
    module = module_from_spec(spec)
    module.__dict__["__tdpmmu_digest__"] = content
    modules[name] = module  # dataclasses and inspect look for it there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del modules[name]
        raise TokenError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def _is_user_reference(name: str) -> bool:
    return ".py:" in name


def _patch_class(name: str) -> type[Any]:
    from tdpmmu.scenarios.catalogue import patch_class

    return load_class(name) if _is_user_reference(name) else patch_class(name)


def _scenario_class(name: str) -> type[Any]:
    if _is_user_reference(name):
        return load_class(name)
    from tdpmmu.scenarios.catalogue import scenario_class

    try:
        return scenario_class(name)
    except ValueError as error:
        raise TokenError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Subject:
    """What a token's schedule is run on: the classes, and a machine made of them."""

    mmu_class: type[Any]
    scenario: Any
    built: Built

    def sources(self, prop: str) -> dict[str, str]:
        """The text of all that a run depends on which watches ``prop``."""
        ghosts = [type(ghost) for ghost in self.built.machine.ghosts if ghost.name == prop]
        return sources_of([self.mmu_class, type(self.scenario), *ghosts])


def build(token: Token, attach: Attach = attach_all) -> Subject:
    """The machine that a token's schedule is for, watched by the properties of ``attach``."""
    try:
        patches = [_patch_class(name) for name in token.patches]
        mmu_class = registry.apply(registry.kernel_class(token.kernel), *patches)
        scenario_class = _scenario_class(token.scenario)
    except registry.UnknownName as error:
        raise TokenError(str(error)) from None
    known = {field.name for field in fields(scenario_class)}
    for name, _ in token.parameters:
        if name not in known:
            raise TokenError(f"the scenario {token.scenario} has no parameter {name!r} any more")
    scenario = scenario_class(**dict(token.parameters))
    built = scenario.build(mmu_class)
    attach(built, mmu_class)
    return Subject(mmu_class, scenario, built)


def check_fresh(token: Token, subject: Subject) -> str | None:
    """What changed since the token was made, as a sentence; None if nothing that matters did."""
    changed = [path for path, digest in token.files if _file_digest(path) != digest]
    others = differences(token.sources, subject.sources(token.prop))
    if others is None and not changed:
        return None
    changed += others or ()
    if not changed:
        return "the model's code changed since this token was made"
    some = changed if len(changed) <= 4 else [*changed[:3], f"{len(changed) - 3} more files"]
    named = " and ".join([", ".join(some[:-1]), some[-1]]) if len(some) > 1 else some[0]
    return f"{named} changed since this token was made"


def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:_DIGEST]
    except OSError as error:
        raise TokenError(f"{path}: {error.strerror}") from None


# --- making tokens, and running them --------------------------------------------------------------


class Found(Protocol):
    """What the explorer's counterexamples have in common with everybody else's."""

    @property
    def prop(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def sentence(self) -> str: ...

    @property
    def turns(self) -> Sequence[TurnLike]: ...


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A token's schedule, run again.

    ``sentence`` is what the property says now; None if it holds.  ``problem`` says where and why
    the schedule no longer fits, if it does not.  ``waiting`` are the threads of a deadlock, by
    number, with what each waits for.  ``loop`` is the number of the operation that a run without
    progress comes back to.
    """

    token: Token
    subject: Subject
    records: tuple[Record, ...]
    sentence: str | None
    problem: str | None = None
    waiting: tuple[tuple[int, str], ...] = ()
    loop: int | None = None

    def _repr_html_(self) -> str:
        """For notebooks: the page that ``--html`` writes."""
        from tdpmmu.scenarios.showing import framed, report

        return framed(report([self]))


def reproduce(token: Token, attach: Attach = attach_all, *, force: bool = False) -> Reproduction:
    """Run a token; StaleToken if the code is not what it was, unless ``force`` is given.

    With ``force`` a schedule that no longer fits is run as far as it goes.
    """
    subject = build(token, attach)
    if not force and (change := check_fresh(token, subject)) is not None:
        raise StaleToken(f"{change}; it may no longer replay")
    run = Replay(subject.built.machine, token.schedule)
    records: list[Record] = []
    try:
        for record in run:
            records.append(record)
            said = _said(record, token.prop)
            if said is not None:
                return Reproduction(token, subject, tuple(records), said)
        if token.prop == "deadlock" and (waiting := run.waiting()):
            names = [thread.name for thread in subject.built.machine.threads]
            stuck = tuple((who, op.describe()) for who, op in waiting)
            said = "; ".join(f"{names[who]} at {what}" for who, what in stuck)
            return Reproduction(
                token, subject, tuple(records), f"everybody waits: {said}", waiting=stuck
            )
        if token.prop == "no-progress" and (loop := loop_of(records, run.standing())) is not None:
            return Reproduction(token, subject, tuple(records), token.sentence, loop=loop)
    except ReplayError as error:
        if not force:
            raise
        return Reproduction(token, subject, tuple(records), None, str(error))
    finally:
        run.close()
    return Reproduction(token, subject, tuple(records), None)


def _said(record: Record, prop: str) -> str | None:
    if prop == "exception":
        return record.failure
    return next((said for ghost, said in record.violations if ghost.name == prop), None)


def make(
    scenario: Any,
    kernel: str,
    patches: Sequence[str],
    found: Found,
    attach: Attach = attach_all,
    *,
    scenario_name: str | None = None,
) -> Token:
    """The token of a counterexample, up to the operation which breaks the property.

    It is run at once, so a token that was made can be replayed; TokenError if it cannot.
    ``patches``, and ``scenario_name`` for a user's scenario, are names as in :class:`Token`.
    """
    name = scenario.name if scenario_name is None else scenario_name
    paths = sorted({one.rpartition(":")[0] for one in (name, *patches) if _is_user_reference(one)})
    token = Token(
        name,
        tuple((field.name, getattr(scenario, field.name)) for field in fields(scenario)),
        kernel,
        tuple(patches),
        tuple((path, _file_digest(path)) for path in paths),
        found.prop,
        found.kind,
        found.sentence,
        schedule_of(found.turns),
        "",
    )
    try:
        done = reproduce(token, attach, force=True)
    except ReplayError as error:
        raise TokenError(f"the counterexample does not replay: {error}") from None
    if done.sentence is None:
        why = done.problem or f"{found.prop} holds at its end"
        raise TokenError(f"the counterexample does not replay: {why}")
    return replace(
        token,
        sentence=done.sentence,
        schedule=cut(token.schedule, len(done.records)),
        sources=fingerprint(done.subject.sources(found.prop)),
    )
