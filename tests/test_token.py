"""Tokens: find, print, parse, replay; and what is refused, with which words."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tdpmmu.events.records import Event, HostPageReused
from tdpmmu.machine.ghost import HARM, Ghost
from tdpmmu.machine.op import Step
from tdpmmu.scenarios import token as tokens
from tdpmmu.scenarios.base import Built
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.sources import differences, fingerprint, sources_of
from tdpmmu.scenarios.token import (
    StaleToken,
    Token,
    TokenError,
    build,
    check_fresh,
    decode,
    load_class,
    make,
    read_schedule,
    reproduce,
    schedule_text,
)
from tdpmmu.versions.registry import apply, kernel_class, patch_class
from tdpmmu.worlds.explore.exploration import Counterexample
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.replay import ReplayError, Run, run_of, schedule_of


class PageReachable(Ghost):
    """When the host reuses a page no vCPU may use a leaf that maps it."""

    name: ClassVar[str] = "page-reachable"
    kind: ClassVar[str] = HARM
    meaning: ClassVar[str] = "a vCPU reaches a page that the host has reused"
    hears: ClassVar[tuple[type[Event], ...]] = (HostPageReused,)

    def __init__(self, hardware: Any) -> None:
        super().__init__()
        self.hardware = hardware

    def observe(self, step: Step, event: Event) -> None:
        assert isinstance(event, HostPageReused)
        fmt = self.hardware.format
        for vcpu in self.hardware.vcpus:
            for entry in sorted(self.hardware.usable(step, vcpu)):
                pfn = fmt.pfn(entry[3])
                if fmt.is_last(entry[3], entry[2]) and event.pfn <= pfn < event.pfn + event.pages:
                    step.violate(self, f"vCPU{vcpu.number} may still reach pfn {pfn:#x}")
                    return


def attach_reachable(built: Built, mmu_class: type[Any]) -> None:
    built.machine.ghosts.append(PageReachable(built.kvm.hardware))


def find(
    kernel: str,
    patches: tuple[str, ...] = (),
    attach: tokens.Attach = tokens.attach_all,
    **parameters: Any,
) -> tuple[NxRecovery, list[Counterexample]]:
    """Explore until everything is seen; the scenario and what was found."""
    scenario = NxRecovery(**parameters)
    classes = [load_class(one) if ".py:" in one else patch_class(one) for one in patches]
    mmu_class = apply(kernel_class(kernel), *classes)
    built = scenario.build(mmu_class)
    attach(built, mmu_class)
    explorer = explore(built.machine)
    check_progress(explorer)
    return scenario, explorer.result.violations


def plain(value: Any) -> Any:
    """A state without the objects of the machine it comes from."""
    if isinstance(value, tuple):
        return tuple(plain(one) for one in value)
    if isinstance(value, frozenset):
        return frozenset(plain(one) for one in value)
    return value if isinstance(value, (int, str)) else repr(value)


CASES = [
    ("5.12-rc4", (), {}),
    ("5.12-rc4", (), {"legacy": 0, "format": "ept"}),
    ("5.12-rc4", ("no-forward-progress",), {"legacy": 0, "roots": 1}),
    ("5.12", ("read-lock-freeze",), {"legacy": 0, "roots": 1}),
]


@pytest.mark.parametrize(("kernel", "patches", "parameters"), CASES)
def test_what_was_found_is_found_again(
    kernel: str, patches: tuple[str, ...], parameters: dict[str, Any]
) -> None:
    scenario, violations = find(kernel, patches, **parameters)
    assert violations
    for found in violations:
        made = make(scenario, kernel, patches, found)
        assert (made.prop, made.kind, made.sentence) == (found.prop, found.kind, found.sentence)
        text = made.encode()
        assert re.fullmatch(r"tdpmmu1-[A-Za-z0-9_-]+", text)
        read = decode(text)
        assert read == made
        first, second = reproduce(made), reproduce(read)
        assert second.sentence == found.sentence
        assert [one.events for one in second.records] == [one.events for one in first.records]
        assert [plain(one.after) for one in second.records] == [
            plain(one.after) for one in first.records
        ]


def test_the_last_operation_of_a_token_is_the_one_that_does_it() -> None:
    scenario, violations = find("5.12-rc4", attach=attach_reachable)
    (found,) = (one for one in violations if one.prop == PageReachable.name)
    made = make(scenario, "5.12-rc4", (), found, attach_reachable)
    done = reproduce(decode(made.encode()), attach_reachable)
    broken = [one.number for one in done.records if one.violations]
    assert broken == [made.operations]
    assert isinstance(done.records[-1].events[-1], HostPageReused)
    assert done.records[-1].violations[-1][1] == found.sentence


def test_a_lack_of_progress_names_where_it_comes_back() -> None:
    scenario, violations = find("5.12-rc4", ("no-forward-progress",), legacy=0, roots=1)
    (found,) = (one for one in violations if one.prop == "no-progress")
    made = make(scenario, "5.12-rc4", ("no-forward-progress",), found)
    done = reproduce(decode(made.encode()))
    assert done.loop is not None
    assert done.records[done.loop - 1].before == done.records[-1].after


# --- what tokens look like ------------------------------------------------------------------------


def example(schedule: tuple[Run, ...] = (run_of(0, (0, 1)), run_of(2, (0,)))) -> Token:
    scenario = NxRecovery()
    return Token(
        scenario.name,
        tuple((name, getattr(scenario, name)) for name in ("levels", "flush", "unmap")),
        "5.12-rc4",
        ("flush-on-nx-zap",),
        (),
        "stale-translation",
        HARM,
        "the host reuses the page of gfn 0x0 while vCPU0 may still use the 2M translation of gfn "
        "0x0 (root SP15, SPTE 0x8000000100000ce7)",
        schedule,
        fingerprint(sources_of([kernel_class("5.12-rc4"), NxRecovery])),
    )


def test_a_token_of_sixty_turns_is_short() -> None:
    pick = random.Random(3)
    runs = []
    for i in range(60):
        operations = pick.randrange(1, 40)
        alternatives = [int(pick.random() < 0.01) for _ in range(operations)]
        runs.append(run_of((i % 3 + pick.randrange(2)) % 3, alternatives))
    scenario = NxRecovery()
    everything = tuple((name, getattr(scenario, name)) for name in NxRecovery.__slots__)
    token = replace(example(tuple(runs)), parameters=everything)
    assert len(token.encode()) < 400
    assert decode(token.encode()) == token


def test_the_format_does_not_change_unnoticed() -> None:
    # If this fails old tokens cannot be read any more: give the format a new number.
    written = (
        "tdpmmu1-ePlDh3IhwxkDJoiQAlqYDk6kSOGICBOl3EpwfCYCIxSo2MDQyBgUYtDCBsnnWMqc4ABQ6ko0NgQ6KgnoM"
        "lsQ1xEMlGIBx-Et0A"
    )
    read = decode(written)
    assert read.encode() == written
    assert read.scenario == "nx-recovery"
    assert read.parameters == (("levels", 4), ("flush", "ranged"), ("unmap", True))
    assert (read.patches, read.files) == (("my",), (("a.py", "0123"),))
    assert read.sentence == "the VM is gone but not SP3"
    assert read.schedule == (Run(0, 31, ((24, 1),)), Run(1, 7, ((2, 3),)))


def test_white_space_in_a_token_does_not_matter() -> None:
    text = example().encode()
    assert decode(f"  {text[:30]}\n  {text[30:]}\n") == example()


@pytest.mark.parametrize("text", ["", "hello", "tdpmmu", "tdpmmu-abc", "xtdpmmu1-abc"])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(TokenError, match=r"^not a token: it should start with tdpmmu1-$"):
        decode(text)


def test_another_version_is_refused() -> None:
    with pytest.raises(TokenError, match=r"^a token of format 2; this tdpmmu reads format 1$"):
        decode("tdpmmu2-" + example().encode().partition("-")[2])


def test_a_token_that_was_cut_short_or_damaged_is_refused() -> None:
    text = example().encode()
    for end in range(len("tdpmmu1-"), len(text)):
        with pytest.raises(TokenError, match="damaged or cut short") as caught:
            decode(text[:end])
        assert "\n" not in str(caught.value)
    pick = random.Random(1)
    for _ in range(200):
        at = pick.randrange(len("tdpmmu1-"), len(text) - 1)
        other = pick.choice("abcXYZ019_-!")
        changed = text[:at] + other + text[at + 1 :]
        try:
            read = decode(changed)
        except TokenError:
            continue
        assert read == example()  # some bits of the packing mean nothing
    with pytest.raises(TokenError):
        decode(text + "AAAA")


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", '["a"]', '["a",{},"b",[],{},"p","harm","s","!!",""]']
)
def test_sound_packing_of_nonsense_is_refused(content: str) -> None:
    import base64
    import zlib

    packer = zlib.compressobj(9, zdict=tokens._WORDS)
    packed = packer.compress(content.encode()) + packer.flush()
    with pytest.raises(TokenError, match="damaged"):
        decode("tdpmmu1-" + base64.urlsafe_b64encode(packed).decode().rstrip("="))


def test_schedules_as_text() -> None:
    schedule = (Run(0, 31, ((24, 1),)), Run(1, 7, ((2, 3), (4, 1))), Run(27, 1))
    assert schedule_text(schedule) == "a31@24b7@2=3@4B1"
    assert read_schedule("a31@24b7@2=3@4B1") == schedule
    for nonsense in ("31", "a", "a3@", "a3 b4", "a3@1=", "a-3"):
        with pytest.raises(ValueError, match="no run at"):
            read_schedule(nonsense)
    with pytest.raises(ValueError, match="52 threads"):
        schedule_text([Run(52, 1)])


# --- what a token depends on ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stale_page() -> Token:
    scenario, violations = find("5.12-rc4", legacy=0)
    found = next(one for one in violations if one.prop == "stale-translation")
    return make(scenario, "5.12-rc4", (), found)


def edited(monkeypatch: pytest.MonkeyPatch, *edits: tuple[str, str | None]) -> None:
    """Let files of the package read as if they were edited, or gone."""

    def sources(classes: Any) -> dict[str, str]:
        texts = sources_of(classes)
        for name, text in edits:
            if text is None:
                del texts[name]
            else:
                texts[name] = text
        return texts

    monkeypatch.setattr(tokens, "sources_of", sources)


def test_a_fresh_token_is_fresh(stale_page: Token) -> None:
    assert check_fresh(stale_page, build(stale_page)) is None


@pytest.mark.parametrize(
    "name",
    [
        "mmu/tdp_iter.py",
        "arch/hardware.py",
        "kernel/locks.py",
        "machine/op.py",
        "events/records.py",
        "scenarios/nx_recovery.py",
        "versions/linux_5_12_rc4.py",
        "properties/stale_translation.py",
    ],
)
def test_after_an_edit_replay_refuses_and_says_what_changed(
    stale_page: Token, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert name in build(stale_page).sources(stale_page.prop)
    edited(monkeypatch, (name, "edited"))
    with pytest.raises(StaleToken) as caught:
        reproduce(stale_page)
    assert str(caught.value) == f"{name} changed since this token was made; it may no longer replay"
    assert reproduce(stale_page, force=True).sentence == stale_page.sentence


def test_several_changes_are_told_together(
    stale_page: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(monkeypatch, ("mmu/new.py", "1"), ("mmu/roots.py", "2"), ("mmu/flush.py", "3"))
    change = check_fresh(stale_page, build(stale_page))
    assert change == ("mmu/flush.py, mmu/new.py and mmu/roots.py changed since this token was made")


def test_a_file_that_is_gone_makes_a_token_stale(
    stale_page: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(monkeypatch, ("mmu/roots.py", None))
    change = check_fresh(stale_page, build(stale_page))
    assert change == "the model's code changed since this token was made"


def test_only_what_a_run_depends_on_counts() -> None:
    plain = sources_of([kernel_class("5.12-rc4"), NxRecovery])
    patched = sources_of([patch_class("no-forward-progress"), kernel_class("5.12-rc4"), NxRecovery])
    assert "versions/patches.py" not in plain
    assert "class NoForwardProgress" in patched["versions/patches.py"]
    assert "class FlushOnNxZap" not in patched["versions/patches.py"]
    assert differences(fingerprint(plain), plain) is None
    assert differences(fingerprint(plain), patched) == ("versions/patches.py",)
    assert not any(name.startswith(("cli/", "render/", "worlds/explore")) for name in patched)
    assert "arch/decode.py" not in patched


@dataclass
class Elsewhere(Ghost):
    """A class that is not of this package."""


def test_classes_from_elsewhere_count_for_what_they_import() -> None:
    sources = sources_of([Elsewhere])
    assert "machine/ghost.py" in sources
    assert not any("test_token" in name for name in sources)


# --- users' files ---------------------------------------------------------------------------------

PATCH = '''
from tdpmmu.mmu.nx_recovery import NxRecovery


class DropFlush(NxRecovery):
    """Forgets every flush that recovery owes."""

    def recovery_flush(self, pending: bool, zapped: bool) -> bool:
        return False
'''


def test_a_users_patch_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my_patch.py"
    path.write_text(PATCH)
    reference = f"{path}:DropFlush"
    scenario, violations = find("5.12", (reference,), legacy=0)
    found = next(one for one in violations if one.prop == "stale-translation")
    text = make(scenario, "5.12", (reference,), found).encode()
    assert reproduce(decode(text)).sentence == found.sentence

    path.write_text(PATCH + "\n# a remark\n")
    with pytest.raises(StaleToken, match=re.escape(f"{path} changed since this token was made")):
        reproduce(decode(text))
    assert reproduce(decode(text), force=True).sentence == found.sentence

    path.write_text(PATCH.replace("return False", "return True"))
    done = reproduce(decode(text), force=True)
    assert done.sentence is None

    path.write_text(PATCH.replace("DropFlush", "Another"))
    with pytest.raises(TokenError, match="no class DropFlush"):
        reproduce(decode(text))

    path.write_text("import nothing_of_that_name")
    with pytest.raises(TokenError, match="nothing_of_that_name"):
        reproduce(decode(text))

    path.unlink()
    with pytest.raises(TokenError, match="No such file"):
        reproduce(decode(text))


# --- what no longer fits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "4.19"}, "unknown kernel '4.19'"),
        ({"patches": ("nothing",)}, "unknown patch 'nothing'"),
        ({"scenario": "nothing"}, "unknown scenario 'nothing'"),
        ({"parameters": (("knobs", 3),)}, "has no parameter 'knobs' any more"),
        ({"parameters": (("levels", 9),)}, "--levels 9"),
    ],
)
def test_what_is_not_known_here_is_one_line(
    stale_page: Token, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        reproduce(replace(stale_page, **change))
    assert "\n" not in str(caught.value)


def test_a_schedule_that_does_not_fit_is_told_or_run_as_far_as_it_goes(stale_page: Token) -> None:
    longer = replace(stale_page, prop="leak", schedule=(*stale_page.schedule, Run(0, 5000)))
    subject = build(longer)
    longer = replace(longer, sources=fingerprint(subject.sources("leak")))
    with pytest.raises(ReplayError, match="has come to its end"):
        reproduce(longer)
    done = reproduce(longer, force=True)
    assert done.sentence is None
    assert done.problem is not None
    assert len(done.records) >= stale_page.operations


def test_a_counterexample_that_does_not_replay_gets_no_token() -> None:
    scenario, violations = find("5.12-rc4", legacy=0)
    found = next(one for one in violations if one.prop == "stale-translation")
    with pytest.raises(TokenError, match="does not replay: stale-translation holds at its end"):
        make(scenario, "5.12-rc4", (), replace(found, turns=found.turns[:-1]))
    assert schedule_of(found.turns)
