"""Find out which CPU format and which family of kernels a trace comes from."""

from __future__ import annotations

from tdpmmu.arch.decode import well_formed
from tdpmmu.arch.spte import SpteFormat, spte_format
from tdpmmu.trace.fields import SpteChange

_FAMILIES = ("6.12", "6.1", "5.12")
FAMILY_NAMES = {"6.12": "6.10 or later", "6.1": "5.13 to 6.9", "5.12": "5.12"}


class Detector:
    """Strikes out every format under which a traced SPTE makes no sense.

    The non-present value (0 or 1 << 63) and the first link of a table usually leave one.  Formats
    are TDP's: NPT, then EPT.  ``format_name`` and ``kernel`` narrow the choice; with both of them
    there is nothing to detect.
    """

    def __init__(self, format_name: str | None = None, kernel: str | None = None) -> None:
        """ValueError for unknown names, and for ``shadow``, which is not the TDP MMU's."""
        if format_name == "shadow":
            raise ValueError("the TDP MMU has no shadow paging: known are ept, npt")
        names = [format_name] if format_name else ["npt", "ept"]
        kernels = [kernel] if kernel else list(_FAMILIES)
        self.candidates = [spte_format(name, one) for one in kernels for name in names]
        self.kernel_given = kernel is not None
        self._given = format_name is not None and kernel is not None

    @property
    def done(self) -> bool:
        """One candidate is left."""
        return self._given or len(self.candidates) == 1

    def feed(self, change: SpteChange) -> bool:
        """Look at one change; False if no candidate survives it."""
        if not self._given:
            self.candidates = [fmt for fmt in self.candidates if _possible(fmt, change)]
        return bool(self.candidates)

    @property
    def format(self) -> SpteFormat:
        """The first candidate left."""
        return self.candidates[0]


def _possible(fmt: SpteFormat, change: SpteChange) -> bool:
    return well_formed(change.old, fmt, change.level) and well_formed(change.new, fmt, change.level)
