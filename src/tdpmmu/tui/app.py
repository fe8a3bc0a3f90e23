"""The terminal UI: pick who moves next, see the state, go back, keep what was found."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Header, OptionList, RichLog, Static
from textual.widgets.option_list import Option

from tdpmmu.render.lines import STYLES
from tdpmmu.render.report.rows import BUSY, IDLE, NONE, OLD, ROOT, STALE, Row
from tdpmmu.scenarios.by_hand import Mover, World
from tdpmmu.worlds.replay import Record

_LOOKS = {ROOT: "bold", STALE: "bold red", BUSY: "bold", IDLE: "dim", NONE: "dim", OLD: "dim"}


class Explore(App[None]):
    """Drives one world.  ``save`` is the file that a token is written to."""

    TITLE = "tdpmmu explore"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #left { width: 1fr; } #state { width: 1fr; border: round $primary; padding: 0 1; }
    #movers { height: auto; max-height: 45%; border: round $accent; }
    #log { border: round $primary; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "run", "go on", priority=True),
        Binding("o", "once", "one operation"),
        Binding("u,backspace", "undo", "undo"),
        Binding("r", "redo", "redo"),
        Binding("w", "save", "write token"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, world: World, save: Path) -> None:
        super().__init__()
        self.world = world
        self.save = save
        self._done = world.strides()
        self._undone: list[list[tuple[int, int]]] = []
        self._choices: list[tuple[int, int]] = []
        self.sub_title = world.question.title()

    def compose(self) -> ComposeResult:
        """Who can move and what happened on the left, the state on the right."""
        yield Header()
        with Horizontal():
            with Vertical(id="left"):
                movers = OptionList(id="movers")
                movers.border_title = "who moves next?"
                yield movers
                log = RichLog(id="log", wrap=True, min_width=20)
                log.border_title = "what happened"
                yield log
            with VerticalScroll(id="state"):
                yield Static(id="panels")
        yield Footer()

    def on_mount(self) -> None:
        """Show the first state."""
        self._show()
        self.query_one("#movers").focus()

    # --- keys -----------------------------------------------------------------------------------

    def action_run(self) -> None:
        """The chosen thread goes on to the next operation that is worth a word."""
        self._move(once=False)

    def action_once(self) -> None:
        """One operation of the chosen thread."""
        self._move(once=True)

    def action_undo(self) -> None:
        """Take back what the last key did."""
        if self._done:
            self._undone.append(self.world.back(self._done.pop()))
            self._show()

    def action_redo(self) -> None:
        """Do again what was taken back last."""
        if self._undone:
            moves = self._undone.pop()
            known = len(self.world.broken)
            for thread, alternative in moves:
                self.world.move(thread, alternative)
            self._done.append(len(moves))
            self._tell(known)
            self._show(moves[-1][0])

    def action_save(self) -> None:
        """Write a token of the first property that was broken."""
        try:
            token = self.world.token()
            self.save.write_text(token.encode() + "\n", encoding="ascii")
        except (ValueError, OSError) as error:
            self.notify(str(error), severity="warning")
            return
        self.notify(f"{token.prop}: tdpmmu explain @{self.save}", title=f"written to {self.save}")

    def _move(self, *, once: bool) -> None:
        at = self.query_one("#movers", OptionList).highlighted
        if at is None or not self._choices:
            self.notify("nobody can move", severity="warning")
            return
        thread, alternative = self._choices[at]
        known = len(self.world.broken)
        before = len(self.world.records)
        self.world.move(thread, alternative)
        mover = self.world.threads[thread]
        if not once and not self.world.said(self.world.records[-1]) and mover.alternatives == 1:
            self.world.run(thread)
        self._done.append(len(self.world.records) - before)
        self._undone.clear()
        self._tell(known)
        self._show(thread)

    def _tell(self, known: int) -> None:
        """Notify of what has been broken since ``known`` properties were."""
        for one in self.world.broken[known:]:
            self.notify(one.sentence, title=f"{one.kind.upper()} {one.prop}", severity="error")

    # --- what is shown --------------------------------------------------------------------------

    def _show(self, last: int | None = None) -> None:
        self._show_movers(last)
        log = self.query_one("#log", RichLog)
        log.clear()
        broken = {len(one.turns): one for one in self.world.broken}
        for record in self.world.records:
            for line in self._said(record):
                log.write(line)
            if record.number in broken:
                one = broken[record.number]
                log.write(Text(f"*** {one.kind.upper()} {one.prop}: {one.sentence}", "bold red"))
        text = Text()
        for title, rows in self.world.panels().items():
            text.append(f"{title}\n", "bold underline")
            for row in rows:
                text.append_text(_row(row))
            text.append("\n")
        self.query_one("#panels", Static).update(text)

    def _show_movers(self, last: int | None) -> None:
        movers = self.query_one("#movers", OptionList)
        movers.clear_options()
        self._choices = []
        start = 0
        waiting = []
        for mover in self.world.threads:
            if last == mover.thread:
                start = len(self._choices)
            for alternative in range(mover.alternatives):
                movers.add_option(Option(_mover(mover, alternative)))
                self._choices.append((mover.thread, alternative))
            if not mover.alternatives:
                waiting.append(mover)
        for mover in waiting:
            movers.add_option(Option(_mover(mover, 0), disabled=True))
        if self._choices:
            movers.highlighted = min(start, len(self._choices) - 1)

    def _said(self, record: Record) -> list[Text]:
        number = (f"{record.number:>4} ", STYLES["number"])
        who = (f"{record.name}: ", "bold")
        return [Text.assemble(number, who, one) for one in self.world.said(record)]


def _mover(mover: Mover, alternative: int) -> Text:
    where = f" in {mover.chain[-1]}" if mover.chain else ""
    if mover.op is None:
        return Text(f"{mover.name}: at its end")
    how = f" ({alternative + 1} of {mover.alternatives})" if mover.alternatives > 1 else ""
    waits = "" if mover.alternatives else "waits: "
    return Text.assemble((mover.name, "bold"), f": {waits}{mover.op}{how}{where}")


def _row(row: Row) -> Text:
    mark = "▲ " if row.kind == STALE else ""
    note = f"  ({row.note})" if row.note else ""
    line = f"{'  ' * row.depth}{row.label + ' ' if row.label else ''}{mark}{row.text}{note}\n"
    return Text(line, _LOOKS.get(row.kind, ""))
