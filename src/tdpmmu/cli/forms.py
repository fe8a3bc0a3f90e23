"""Other forms of a run: for a mail, for a bug tracker, as a picture, as delays for a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdpmmu.scenarios.token import Reproduction

MAIL_WIDTH = 72
_TOKEN_INDENT = "  "


def mail(done: Reproduction) -> str:
    """The interleaving in 72 columns of ASCII, with a token that survives being sent."""
    from tdpmmu.render.lines import plain
    from tdpmmu.scenarios.showing import to_lines

    token = done.token.encode()
    room = MAIL_WIDTH - len(_TOKEN_INDENT)
    text = "\n".join(
        [
            plain(to_lines(done, width=MAIL_WIDTH, ascii=True)),
            "",
            "Replay: save this mail as FILE, then 'tdpmmu explain @FILE'",
            "",
            *(_TOKEN_INDENT + token[at : at + room] for at in range(0, len(token), room)),
            "",
        ]
    )
    return text.encode("ascii", "backslashreplace").decode()


def markdown(done: Reproduction) -> str:
    """The same for where Markdown is read."""
    from tdpmmu.properties.catalogue import meaning
    from tdpmmu.render.interleaving import causes
    from tdpmmu.render.lines import plain
    from tdpmmu.render.stale import moments
    from tdpmmu.scenarios.showing import facts, scene_of, to_lines, told

    said = told(done)
    scene = scene_of(done)
    found = moments(done.records, scene.hardware, said.sentence)
    what = meaning(said.prop)
    return "\n".join(
        [
            f"## {said.kind.upper()}: {said.prop}",
            "",
            f"{escaped(said.sentence)}." + (f" ({what})" if what else ""),
            "",
            *(f"- {escaped(one)}" for one in [*causes(found, done.records, scene), *facts(done)]),
            "",
            "```text",
            plain(to_lines(done)[_heading(done) :]),
            "```",
            "",
            f"Replay it: `tdpmmu explain {done.token.encode()}`",
            "",
        ]
    )


def _heading(done: Reproduction) -> int:
    """How many lines of the interleaving the list above it has said already."""
    from tdpmmu.scenarios.showing import to_lines

    texts = ["".join(text for text, _ in line) for line in to_lines(done)]
    return texts.index("At the start:") if "At the start:" in texts else 0


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def reproducer(done: Reproduction, width: int) -> str:
    """Where to put delays into a kernel."""
    from tdpmmu.render.reproducer import reproducer as text_of_plan
    from tdpmmu.scenarios.showing import scene_of, told
    from tdpmmu.worlds.replay import Replay, cut

    run = Replay(done.subject.built.machine, cut(done.token.schedule, len(done.records)))
    try:
        for _ in run:
            pass
        standing = [(place, op) for place, op in run.standing()]
    finally:
        run.close()
    return text_of_plan(done.records, told(done), scene_of(done), standing, width=width) + "\n"
