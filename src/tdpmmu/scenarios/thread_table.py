"""The review thread of 25 March 2021 as a table of questions.

A row says which kernel with which patches; a configuration says how many roots and whether legacy
pages are on the list too.  ``expected`` is what the changelogs lead one to expect; open questions
have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdpmmu.scenarios.nx_recovery import NxRecovery
from tdpmmu.scenarios.question import HOLDS, VIOLATED, Question
from tdpmmu.versions.registry import apply, kernel_class, patch_class

SERIES = ("flush-on-nx-zap", "flush-when-yielding")
CLOSED = ("link-under-pages-lock",)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.  ``why`` is for a verdict that may surprise."""

    kernel: str
    patches: tuple[str, ...]
    scenario: NxRecovery
    expected: str | None
    why: str = ""

    def question(self) -> Question:
        """What is explored."""
        mmu_class = apply(
            kernel_class(self.kernel), *(patch_class(patch) for patch in self.patches)
        )
        return Question(self.scenario, mmu_class, self.kernel, self.patches)

    def configuration(self) -> str:
        """The scenario's parameters that differ between rows."""
        scenario = self.scenario
        parts = [f"roots={scenario.roots}", f"legacy={scenario.legacy}"]
        if scenario.nx_pages != 1:
            parts.append(f"nx={scenario.nx_pages}")
        if scenario.victim != "tdp":
            parts.append(f"victim={scenario.victim}")
        if scenario.flush != "bare-metal":
            parts.append(scenario.flush)
        return " ".join(parts)


_SELF_FLUSH = "until 5.18 a removed table flushes by itself, on bare metal everything"
_NO_LEAF = f"no second root whose leaf could be owed a flush; {_SELF_FLUSH}"
_RANGED = "a removed table's own flush starts at its last entry, and a ranged one stops there"
_RULE = "the walk yields again at once, for ever, without getting anywhere"
_LEGACY_OWED = "it also lets a yield leave legacy pages on invalid_list unflushed"
_Z7 = "a table can be found and zapped before it is on its lists (bugzilla 217562)"


def rows() -> list[Row]:
    """The whole table, in order."""
    size_s = NxRecovery()
    table: list[Row] = []
    series = (
        ("5.12-rc4", ()),
        ("5.12-rc4", SERIES),
        ("5.12-rc4", (*SERIES, "no-forward-progress")),
        ("5.12-rc4", (*SERIES, "no-yield-in-zap-sp")),
        ("5.12", ()),
    )
    for kernel, patches in series:
        for roots in (2, 1):
            for legacy in (1, 0):
                for flush in ("bare-metal", "ranged"):
                    scenario = replace(size_s, roots=roots, legacy=legacy, flush=flush)
                    expected, why = _expect(patches, kernel, scenario)
                    table.append(Row(kernel, patches, scenario, expected, why))
    owed = replace(size_s, victim="legacy")
    table.append(Row("5.12-rc4", (*SERIES, "no-forward-progress"), owed, VIOLATED, _LEGACY_OWED))
    table.append(Row("5.12", (), owed, HOLDS))
    for zap in ("read-lock-freeze", "read-lock-cmpxchg"):
        for extra in ((), ("no-yield-in-shared-zap",)):
            table.append(Row("5.12", (zap, *extra), size_s, None, _Z7))
            for scenario in (size_s, replace(size_s, roots=1, legacy=0)):
                table.append(Row("5.12", (*CLOSED, zap, *extra), scenario, None))
    for roots in (2, 1):
        for legacy in (1, 0):
            table.append(Row("6.18", (), replace(size_s, roots=roots, legacy=legacy), None))
    table.append(Row("6.18", (), replace(size_s, flush="ranged"), None))
    return table


def _expect(patches: tuple[str, ...], kernel: str, scenario: NxRecovery) -> tuple[str | None, str]:
    if "no-forward-progress" in patches:
        return VIOLATED, _RULE
    if kernel == "5.12-rc4" and not patches:
        if scenario.roots == 2:
            return VIOLATED, ""
        if scenario.flush == "ranged":
            return None, _RANGED
        return None, _NO_LEAF
    return HOLDS, ""
