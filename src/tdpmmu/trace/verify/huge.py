"""No executable huge leaf while NX huge pages are on.

The trace does not say whether the mitigation is on, but huge leaves do: with it none that a fault
installs is executable, without it all are.  Whoever changes the parameter makes all roots invalid
(``set_nx_huge_pages``, ``kvm_mmu_zap_all_fast``), so one root has leaves of one sort, but for
faults that come in between: a leaf that differs breaks the rule if no new root follows soon.
"""

from __future__ import annotations

from tdpmmu.trace.records import Record
from tdpmmu.trace.verify.findings import Findings

NX_HUGE_PAGE = "nx-huge-page"
MEANING = "a huge leaf is executable although NX huge pages are on"

GRACE = 1.0
"""Seconds from the change of the parameter to the first use of a new root."""


class HugeLeaves:
    """``count`` huge leaves were seen; ``on`` is what the mitigation was found to be."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._first: dict[object, tuple[bool, Record]] = {}
        self._suspect: tuple[object, Record, Record] | None = None
        self.count = 0

    @property
    def on(self) -> bool | None:
        """Whether any root had NX huge pages; None without huge leaves."""
        return any(not executable for executable, _ in self._first.values()) or (
            None if not self._first else False
        )

    def installed(self, root: object, executable: bool, record: Record) -> None:
        """A fault has installed a huge leaf below ``root``, whatever tells roots apart."""
        self.count += 1
        first = self._first.get(root)
        if first is None:
            self._first[root] = (executable, record)
        elif first[0] != executable and self._suspect is None:
            self._suspect = root, first[1], record
        if self._suspect is not None and record.time > self._suspect[2].time + GRACE:
            self.finish()

    def new_root(self) -> None:
        """A root is made: maybe since the parameter was changed."""
        if self._suspect is not None:
            del self._first[self._suspect[0]]
            self._suspect = None

    def finish(self) -> None:
        """Nothing has excused the leaf that differs."""
        if self._suspect is not None:
            _, first, record = self._suspect
            self._suspect = None
            self._findings.violated(
                NX_HUGE_PAGE,
                "one root has huge leaves with and without execute permission",
                (first, record),
            )
