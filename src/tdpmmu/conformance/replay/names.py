"""Page table pages by name: which frame of the kernel's is which page of the model."""

from __future__ import annotations

from tdpmmu.arch.spte import BASE_ADDR_MASK, PAGE_SHIFT, SpteFormat
from tdpmmu.arch.table import TABLE_PFN


class Names:
    """Bound when a table is first linked in both; from then on the two must go together."""

    def __init__(self, fmt: SpteFormat) -> None:
        self._format = fmt
        self._frame: dict[int, int] = {}
        self._page: dict[int, int] = {}

    def translate(self, spte: int, level: int) -> int | None:
        """The kernel's value in the model's frames; None if its table has no name yet."""
        if not self._is_table(spte, level):
            return spte
        page = self._page.get(self._format.pfn(spte))
        return None if page is None else _with_pfn(spte, page)

    def same(self, kernel: int, model: int, level: int, *, bind: bool) -> int | None:
        """The bits in which two values differ once frames have names; None: different tables.

        ``bind``: a table that has no name may get one here.
        """
        if not (self._is_table(kernel, level) and self._is_table(model, level)):
            return kernel ^ model
        frame, page = self._format.pfn(kernel), self._format.pfn(model)
        if bind and frame not in self._page and page not in self._frame:
            self._frame[page], self._page[frame] = frame, page
        if self._frame.get(page) != frame:
            return None
        return (kernel ^ model) & ~BASE_ADDR_MASK

    def unlinked(self, kernel: int, level: int) -> None:
        """The table is gone: its frame may come back as another one."""
        if self._is_table(kernel, level):
            page = self._page.pop(self._format.pfn(kernel), None)
            if page is not None:
                del self._frame[page]

    def show(self, spte: int, level: int) -> str:
        """A kernel's value for people: a table by the name of the model's page."""
        page = self._page.get(self._format.pfn(spte)) if self._is_table(spte, level) else None
        return f"{spte:#x}" + (f" (SP{page - TABLE_PFN})" if page is not None else "")

    def _is_table(self, spte: int, level: int) -> bool:
        fmt = self._format
        return fmt.is_shadow_present(spte) and not fmt.is_last(spte, level)


def _with_pfn(spte: int, pfn: int) -> int:
    return spte & ~BASE_ADDR_MASK | pfn << PAGE_SHIFT
