"""Counterexamples as text: names, words, what is left out, marks, columns; and ``explain``."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from typer.testing import CliRunner

from tdpmmu.arch.geometry import Geometry
from tdpmmu.arch.hardware import Hardware
from tdpmmu.arch.spte import spte_format
from tdpmmu.cli.errors import UsageError
from tdpmmu.cli.explain import read_token, to_json
from tdpmmu.cli.main import app
from tdpmmu.events import records as events
from tdpmmu.events.records import Event, HostPageReused, SpteChanged, TlbFilled
from tdpmmu.kernel.rcu import ReadLock, ReadUnlock
from tdpmmu.render import spte
from tdpmmu.render.columns import columns
from tdpmmu.render.interleaving import Scene, interleaving, summary
from tdpmmu.render.lines import plain, show
from tdpmmu.render.names import KernelNames, kernel_name
from tdpmmu.render.stale import moments
from tdpmmu.render.story import Entry, story
from tdpmmu.render.words import Words
from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.showing import scene_of, text_of, to_lines
from tdpmmu.scenarios.token import Reproduction, attach_all, decode, make, reproduce
from tdpmmu.versions.registry import apply, kernel_class, patch_class
from tdpmmu.worlds.explore.exploration import Budget, Counterexample
from tdpmmu.worlds.explore.progress import check_progress
from tdpmmu.worlds.explore.search import explore
from tdpmmu.worlds.replay import Place, Record, replay, schedule_of


def found(prop: str, kernel: str, *patches: str, **parameters: Any) -> Reproduction:
    """The shortest way to break ``prop``, replayed."""
    scenario = NxRecovery(**parameters)
    mmu_class = apply(kernel_class(kernel), *(patch_class(one) for one in patches))
    built = scenario.build(mmu_class)
    attach_all(built, mmu_class)
    explorer = explore(built.machine)
    check_progress(explorer)
    violation = next(one for one in explorer.result.violations if one.prop == prop)
    return reproduce(decode(make(scenario, kernel, patches, violation).encode()))


@pytest.fixture(scope="module")
def stale() -> Reproduction:
    """rc4 drops a flush; the host reuses the page of a huge translation that vCPU0 still holds."""
    return found("stale-translation", "5.12-rc4", legacy=0)


@pytest.fixture(scope="module")
def owed() -> Reproduction:
    return found("flush-owed", "5.12-rc4", legacy=0)


@pytest.fixture(scope="module")
def endless() -> Reproduction:
    return found("no-progress", "5.12-rc4", "no-forward-progress", legacy=0, roots=1)


def text(done: Reproduction, **options: Any) -> str:
    return plain(to_lines(done, **options))


# --- the kernel's names ---------------------------------------------------------------------------


def test_names_are_read_from_docstrings() -> None:
    mmu = kernel_class("5.12")
    names = {
        name: kernel_name(method, [vars(one)[name] for one in mmu.__mro__ if name in vars(one)])
        for name, method in inspect.getmembers(mmu, inspect.isfunction)
        if not name.startswith("_")
    }
    assert {
        "recover_nx_lpages": "kvm_recover_nx_lpages",
        "zap_gfn_range": "zap_gfn_range",
        "zap_sp": "kvm_tdp_mmu_zap_sp",
        "flush_remote_tlbs": "kvm_flush_remote_tlbs",
        "handle_removed_page": "handle_removed_tdp_mmu_page",
        "direct_page_fault": "direct_page_fault",
        "tdp_mmu_map": "kvm_tdp_mmu_map",
        "tdp_mmu_zap_gfn_range": "kvm_tdp_mmu_zap_gfn_range",
        "enter_guest": "vcpu_enter_guest",
        "run_vcpu": None,  # its docstring begins with a parameter
        "flush_removed_page": None,
    }.items() <= names.items()


def test_an_override_without_a_name_has_that_of_what_it_overrides() -> None:
    class Patch(kernel_class("5.12")):  # type: ignore[misc]
        async def zap_gfn_range(self) -> bool:
            """Something else altogether."""
            return True

    assert kernel_name(Patch.zap_gfn_range) is None
    overridden = [vars(cls).get("zap_gfn_range") for cls in Patch.__mro__]
    methods = [one for one in overridden if isinstance(one, FunctionType)]
    assert kernel_name(Patch.zap_gfn_range, methods) == "zap_gfn_range"


def test_only_what_the_kernel_has_is_in_a_chain(stale: Reproduction) -> None:
    names = KernelNames(stale.subject.mmu_class)
    zap = next(one for one in stale.records if any(type(e) is SpteChanged for e in one.events))
    assert names.chain(zap.place) == (
        "kvm_recover_nx_lpages",
        "kvm_tdp_mmu_zap_sp",
        "kvm_tdp_mmu_zap_gfn_range",
        "zap_gfn_range",
        "tdp_mmu_set_spte",
    )
    assert names.chain([Place("nothing.<locals>.f", "nowhere.py", 1)]) == ()


# --- SPTEs in words -------------------------------------------------------------------------------


@pytest.fixture(params=["5.12", "6.12"])
def hardware(request: pytest.FixtureRequest) -> Hardware:
    return Hardware(Geometry(3, 2), spte_format("npt", request.param))


def test_values_of_entries(hardware: Hardware) -> None:
    fmt = hardware.format
    old = fmt.kernel == "5.12"
    leaf = fmt.leaf(0x123, 1, write=True, execute=False)
    assert spte.value(hardware, leaf, 1) == "pfn 0x123 rw-"
    assert spte.value(hardware, fmt.nonpresent, 1) == "none"
    assert spte.value(hardware, fmt.removed, 1) == ("REMOVED_SPTE" if old else "FROZEN_SPTE")
    assert spte.value(hardware, fmt.nonleaf(0x1007), 2) == "table at pfn 0x1007"
    assert spte.value(hardware, fmt.mmio(5, 0, 0), 1) == "MMIO"


def test_a_change_says_what_differs(hardware: Hardware) -> None:
    fmt = hardware.format
    huge = fmt.leaf(0x10, 2, write=True, execute=False)
    event = SpteChanged("SP3", 1, 0, 0, 2, 2, huge, fmt.nonpresent)
    assert spte.change(hardware, event) == "gfn 0x2 2M: pfn 0x10 rw- -> none (SP3[1])"
    clean = fmt.leaf(0x10, 2, write=True, execute=False, dirty=False)
    event = dataclasses.replace(event, new=clean)
    assert spte.change(hardware, event) == "gfn 0x2 2M: pfn 0x10 rw-, no longer dirty (SP3[1])"


def test_neighbours_are_told_together(hardware: Hardware) -> None:
    fmt = hardware.format
    small = [(7, gfn, 1, fmt.leaf(0x20 + gfn, 1, write=True, execute=True)) for gfn in (0, 1, 2)]
    other = (7, 3, 1, fmt.leaf(0x23, 1, write=False, execute=True))
    table = (7, 0, 2, fmt.nonleaf(0x1000))
    assert spte.mappings(hardware, {*small, other, table}) == [
        "gfn 0x0-0x2 4K -> pfn 0x20-0x22 rwx",
        "gfn 0x3 4K -> pfn 0x23 r-x",
    ]


# --- what became stale, and when ------------------------------------------------------------------


def test_the_mark_stands_where_the_entry_lost_its_backing(stale: Reproduction) -> None:
    hardware = stale.subject.built.kvm.hardware
    told = moments(stale.records, hardware, stale.sentence or "")
    (entry,) = told.entries
    assert entry.vcpu == 0
    zap = stale.records[entry.stale_since - 1]
    (change,) = (one for one in zap.events if isinstance(one, SpteChanged))
    assert (change.old, change.gfn, change.level) == (entry.entry[3], *entry.entry[1:3])
    assert not hardware.format.is_shadow_present(change.new)
    filled = stale.records[entry.held_since - 1]
    assert TlbFilled(0) in filled.events
    assert entry.held_since < entry.stale_since < stale.records[-1].number
    assert isinstance(stale.records[-1].events[-1], HostPageReused)


def test_marks_and_harm_are_in_the_text_in_order(stale: Reproduction) -> None:
    lines = text(stale).splitlines()
    marks = [line for line in lines if "<--" in line or line.startswith("***")]
    assert len(marks) == 3
    assert "vCPU0 may hold the entry from here" in marks[0]
    assert "stale from here: vCPU0 may still hold it" in marks[1]
    assert marks[2].startswith(f"*** HARM in step {len(stale.records)}: the host reuses")
    before = lines[lines.index(marks[1]) - 1]
    assert re.search(r"gfn 0x0 2M: pfn 0x100000 rw- -> none \(SP\d+\[0\]\)", before)


def test_the_causal_sentence_is_on_top(stale: Reproduction, owed: Reproduction) -> None:
    assert summary(stale.token) == f"HARM stale-translation: {stale.sentence}"
    top = " ".join(text(stale).split("\n\n")[0].split())
    assert top.startswith(summary(stale.token))
    assert re.search(
        r"vCPU0 may hold gfn 0x0 2M -> pfn 0x100000 rw- since step \d+; nx recovery zaps it in "
        r"step \d+; no flush reaches vCPU0 after that\.$",
        top,
    )
    assert text(owed).startswith("DISCIPLINE flush-owed: ")
    assert "*** DISCIPLINE in step" in text(owed)


# --- what is worth a line -------------------------------------------------------------------------


def entries_of(
    done: Reproduction, *, every: bool = False, notes: dict[int, list[str]] | None = None
) -> list[Entry]:
    scene = scene_of(done)
    words = Words(
        scene.hardware,
        scene.layout,
        prop=done.token.prop,
        sentence=done.sentence or "",
        every=every,
    )
    names = KernelNames(scene.mmu_class)
    return story(done.records, words, names, scene.hardware, notes or {})


def test_every_change_of_an_spte_and_of_mmu_lock_is_shown(stale: Reproduction) -> None:
    shown = {entry.number for entry in entries_of(stale)}
    for record in stale.records:
        for event in record.events:
            if isinstance(event, SpteChanged) or getattr(event, "lock", "") == "mmu_lock":
                assert record.number in shown, record


def test_boring_operations_are_left_out(stale: Reproduction) -> None:
    entries = entries_of(stale)
    shown = {entry.number for entry in entries if entry.number}
    assert len(shown) < len(stale.records) / 2
    told = " ".join(entry.text for entry in entries)
    for word in ("lockdep", "srcu", "list_del", "root_count", "read ", "nx_lpage_splits"):
        assert word not in told


def test_all_means_all(stale: Reproduction) -> None:
    shown = {entry.number for entry in entries_of(stale, every=True) if entry.number}
    missing = {r.number for r in stale.records if r.events or r.result} - shown
    # An SRCU section in which nothing happens is left out even so.
    assert all(type(stale.records[n - 1].op) in (ReadLock, ReadUnlock) for n in missing)
    assert len(shown) > 0.9 * len(stale.records)


def test_sections_in_which_nothing_happens_are_left_out(stale: Reproduction) -> None:
    lines = [entry.text for entry in entries_of(stale)]
    for one, two in pairwise(lines):
        assert (one, two) != ("rcu_read_lock()", "rcu_read_unlock()")
    assert "rcu_read_unlock()" in lines


def test_the_release_of_mmu_lock_says_whether_a_flush_is_missing(stale: Reproduction) -> None:
    releases = [one.text for one in entries_of(stale) if one.text.startswith("write_unlock")]
    assert re.fullmatch(
        r"write_unlock\(mmu_lock\): no flush since the zap in step \d+", releases[0]
    )
    assert releases[1] == "write_unlock(mmu_lock): nothing zapped, nothing flushed"


def test_where_there_is_a_note_something_is_said(stale: Reproduction) -> None:
    hidden = {r.number for r in stale.records} - {one.number for one in entries_of(stale)}
    notes = {number: ["look here"] for number in hidden}
    entries = entries_of(stale, notes=notes)
    assert {one.number for one in entries if one.notes == ("look here",)} == hidden


def test_functions_are_named_once_and_again_after_a_switch(stale: Reproduction) -> None:
    headings = [entry.text for entry in entries_of(stale) if entry.about == "call"]
    assert headings[0] == "kvm_recover_nx_lpages"
    assert headings.count("kvm_recover_nx_lpages") == 1
    assert any(one.endswith("-> zap_gfn_range") for one in headings)
    assert "... zap_gfn_range" in headings


def test_a_run_without_progress_says_where_it_goes_round(endless: Reproduction) -> None:
    shown = text(endless)
    assert "<-- from here it goes round for ever" in shown
    assert f"everything is as it was before step {endless.loop}" in " ".join(shown.split())


def samples() -> list[Event]:
    """One of each event of the vocabulary."""
    values = {
        "int": 1,
        "str": "read",
        "bool": True,
        "tuple[str, ...]": ("SP1",),
        "tuple[int, ...]": (1, 2),
        "tuple[tuple[int, ...], ...]": ((1, 2),),
    }
    kinds = [one for one in vars(events).values() if isinstance(one, type)]
    return [
        kind(**{field.name: values[str(field.type)] for field in dataclasses.fields(kind)})
        for kind in kinds
        if issubclass(kind, Event) and kind is not Event and kind.__module__ == events.__name__
    ]


@pytest.mark.parametrize("event", samples(), ids=lambda event: type(event).__name__)
def test_every_event_has_words_of_its_own(event: Event, stale: Reproduction) -> None:
    scene = scene_of(stale)
    words = Words(scene.hardware, scene.layout)
    record: Record = dataclasses.replace(stale.records[0], events=(event,))
    for phrase in words.phrases(record):
        assert type(event).__name__ not in phrase.text
        assert "=" not in phrase.text


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 132])
@pytest.mark.parametrize("every", [False, True])
def test_no_line_is_wider_than_asked_for(stale: Reproduction, width: int, every: bool) -> None:
    lines = text(stale, width=width, every=every).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_plain_ascii(stale: Reproduction) -> None:
    assert not text(stale).isascii()
    assert text(stale, ascii=True).isascii()
    assert len(text(stale, ascii=True).splitlines()) == len(text(stale).splitlines())


def test_only_threads_that_take_part_have_a_column(stale: Reproduction) -> None:
    names = [thread.name for thread in stale.subject.built.machine.threads]
    lines = plain(columns(entries_of(stale), names, 80)).splitlines()
    assert lines[0].split("  ")[-1].strip() in names
    assert "teardown" in names
    assert "teardown" not in "\n".join(lines)
    assert lines[0].index("nx recovery") < lines[0].index("vCPU0") < lines[0].index("host")


def test_columns_of_two_threads() -> None:
    entries = [
        Entry(0, 0, "f", "call"),
        Entry(0, 1, "one thing", "plain", 1),
        Entry(1, 0, "another that is long enough to be wrapped here", "plain", 12, ("mark",)),
        Entry(0, 1, "a third", "plain", 13),
    ]
    assert plain(columns(entries, ["left", "right"], 64)).splitlines() == [
        "      left    right",
        "      │       │",
        "      │ f     │",
        "   1  │   one thing",
        "      │       │",
        "  12  │       │ another that is long enough to be wrapped",
        "      │       │   here",
        "      │       │ <-- mark",
        "      │       │",
        "  13  │   a third",
    ]


def test_names_without_room_stand_like_stairs() -> None:
    entries = [Entry(i, 0, "x", "plain", i + 1) for i in range(3)]
    names = ["a rather long name", "b", "c"]
    assert plain(columns(entries, names, 70)).splitlines()[:4] == [
        "      a rather long name",
        "      │      b",
        "      │      │      c",
        "      │      │      │",
    ]


def test_the_same_run_gives_the_same_text(stale: Reproduction) -> None:
    again = reproduce(decode(stale.token.encode()))
    assert text(again) == text(stale)
    scene = scene_of(stale)
    assert interleaving(stale.records, stale.token, scene) == text(stale)


# --- explain --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_for_terminals_only(stale: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = to_lines(stale)
    terminal, pipe, modest = Terminal(), io.StringIO(), Terminal()
    show(lines, terminal, width=80)
    show(lines, pipe, width=80)
    monkeypatch.setenv("NO_COLOR", "1")
    show(lines, modest, width=80)
    assert "\x1b[" in terminal.getvalue()
    assert pipe.getvalue().rstrip() == plain(lines)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", modest.getvalue())
    colourless = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert [line.rstrip() for line in colourless.splitlines()] == plain(lines).splitlines()


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["explain", *arguments], input=stdin)


def test_explain_prints_the_interleaving_and_how_to_replay(stale: Reproduction) -> None:
    token = stale.token.encode()
    result = run(token, "--ascii")
    assert result.exit_code == 0
    assert result.stdout.startswith("HARM stale-translation: ")
    assert "Linux 5.12-rc4; scenario nx-recovery: levels 3, fanout 2" in result.stdout
    assert result.stdout.rstrip().endswith(f"Replay it: tdpmmu explain {token}")
    assert text_of(token, ascii=True) in result.stdout


def test_explain_reads_files_and_mails(stale: Reproduction, tmp_path: Path) -> None:
    token = stale.token.encode()
    mail = f"Hello,\n\n> tdpmmu explain {token}\n\nthis is broken.\n"
    path = tmp_path / "mail"
    path.write_text(mail)
    wrapped = tmp_path / "wrapped"
    wrapped.write_text(f"{token[:60]}\n  {token[60:]}\n")
    assert read_token(f"@{path}") == token
    assert decode(read_token(f"@{wrapped}")) == stale.token
    assert run("-", "--ascii", stdin=mail).stdout == run(token, "--ascii").stdout


def test_explain_as_json(stale: Reproduction) -> None:
    result = run(stale.token.encode(), "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told == json.loads(json.dumps(to_json(stale)))
    assert told["property"] == "stale-translation"
    assert told["reproduced"] is True
    assert [step["number"] for step in told["steps"]] == list(range(1, len(stale.records) + 1))
    last = told["steps"][-1]
    assert last["thread"] == "host"
    assert last["events"][-1]["event"] == "HostPageReused"
    changes = [e for s in told["steps"] for e in s["events"] if e["event"] == "SpteChanged"]
    assert all(re.fullmatch("0x[0-9a-f]+", change["new"]) for change in changes)
    assert any("stale from here" in note for step in told["steps"] for note in step["notes"])
    zap = next(step for step in told["steps"] if step["events"] and "old" in step["events"][0])
    assert zap["functions"][0] == "kvm_recover_nx_lpages"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "not a token: it should start with tdpmmu1-"),
        (["tdpmmu1-abcd"], "damaged or cut short"),
        (["@/nowhere/at/all"], "/nowhere/at/all: No such file or directory"),
        (["tdpmmu1-abcd", "--width", "10"], "--width 10: at least 60"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_mail_without_a_token_is_bad_usage() -> None:
    result = run("-", stdin="Hello!")
    assert isinstance(result.exception, UsageError)


def test_a_stale_token_is_refused_unless_forced(stale: Reproduction) -> None:
    old = dataclasses.replace(stale.token, sources="AAAAAAAA").encode()
    result = run(old)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).endswith("it may no longer replay (--force tries)")
    assert run(old, "--force").exit_code == 0


def test_what_does_not_come_any_more_is_said(stale: Reproduction) -> None:
    other = dataclasses.replace(stale.token, kernel="5.12", sources="AAAAAAAA").encode()
    result = run(other, "--force", "--ascii")
    assert result.exit_code == 1
    assert result.stdout.startswith("NOT REPRODUCED stale-translation")
    assert re.search(r"\*\*\* The (schedule fits no longer|violation does not come)", result.stdout)


@pytest.mark.parametrize("kernel", ["5.12", "6.18"])
@pytest.mark.parametrize("resched", ["any", "contended"])
def test_any_run_can_be_shown(kernel: str, resched: str) -> None:
    mmu_class = kernel_class(kernel)
    built = NxRecovery(legacy=0, vcpus=2, resched=resched).build(mmu_class)
    explorer = explore(built.machine, budget=Budget(states=3000))
    threads = [thread.name for thread in built.machine.threads]
    scene = Scene(built.kvm.hardware, built.machine.layout, threads, mmu_class)
    pick = random.Random(5)
    for number in pick.sample(range(len(explorer.order) // 2, len(explorer.order)), 8):
        records = list(replay(built.machine, schedule_of(explorer.path(number))))
        width = pick.randrange(60, 120)
        violation = Counterexample("guard", "harm", "nothing is wrong", [], 0)
        for every in (False, True):
            shown = interleaving(records, violation, scene, width=width, every=every)
            assert max(map(len, shown.splitlines())) <= width
            assert f" {records[-1].number}  " in shown
