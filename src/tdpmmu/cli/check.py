"""``tdpmmu check``: put a question to the explorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question

EPILOG = "Exit codes: 0 holds, 1 violated, 2 bad usage, 3 budget ran out, 4 vacuous, 130 Ctrl-C."


def check(
    scenario: Annotated[
        str | None,
        typer.Argument(help="nx-recovery, script, or a FILE.py; none: the table."),
    ] = None,
    kernel: Annotated[str, typer.Option("--kernel", "-k", help="See 'tdpmmu kernels'.")] = "5.12",
    patch: Annotated[
        list[str] | None,
        typer.Option("--patch", "-p", help="A patch by name, or FILE.py[:CLASS]; repeatable."),
    ] = None,
    levels: Annotated[int | None, typer.Option(help="Paging levels.")] = None,
    fanout: Annotated[int | None, typer.Option(help="Entries in a table.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="vCPUs that access memory.")] = None,
    roots: Annotated[int | None, typer.Option(help="TDP roots: 1, or 2 with SMM's.")] = None,
    nx_pages: Annotated[int | None, typer.Option(help="TDP pages on the list.")] = None,
    legacy: Annotated[int | None, typer.Option(help="Legacy pages on the list.")] = None,
    gfns: Annotated[int | None, typer.Option(help="4K gfns that vCPUs access.")] = None,
    faults: Annotated[int | None, typer.Option(help="Accesses per vCPU.")] = None,
    unmap: Annotated[
        bool | None, typer.Option("--unmap/--no-unmap", help="The host takes a page back.")
    ] = None,
    victim: Annotated[str | None, typer.Option(help="Which page: tdp or legacy.")] = None,
    flush: Annotated[str | None, typer.Option(help="bare-metal or ranged.")] = None,
    spte_format: Annotated[str | None, typer.Option("--format", help="npt or ept.")] = None,
    resched: Annotated[str | None, typer.Option(help="any or contended.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any parameter of the scenario, NAME=VALUE; repeatable."),
    ] = None,
    all_kernels: Annotated[
        bool, typer.Option("--all-kernels", help="Ask every kernel: first bad, first good.")
    ] = False,
    properties: Annotated[str, typer.Option(help="harm, discipline or all.")] = "all",
    states: Annotated[int, typer.Option(help="Budget in states; 0: none.")] = 0,
    seconds: Annotated[float, typer.Option("--time", help="Budget in seconds.")] = 0,
    memory: Annotated[int, typer.Option(help="Budget in MiB, of the whole process.")] = 0,
    first: Annotated[bool, typer.Option("--first", help="Stop at the first violation.")] = False,
    reduce: Annotated[
        bool, typer.Option("--reduce/--no-reduce", help="Leave needless orders out.")
    ] = True,
    reductions: Annotated[
        str | None,
        typer.Option(help="Which: all, none, or some of movers,urgent,begin,waits."),
    ] = None,
    loop: Annotated[
        str, typer.Option(help="auto, plain or compiled: how to search; the answer is the same.")
    ] = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Save the search to this new file now and then.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the search in this file, and save it there.")
    ] = None,
    every: Annotated[float, typer.Option("--every", help="Seconds between checkpoints.")] = 60,
    workers: Annotated[
        int,
        typer.Option(help="Threads that search together, eight at most; 0: as there are cores."),
    ] = 1,
    mode: Annotated[
        str, typer.Option(help="exhaustive; or a part: pct (random), context-bounded.")
    ] = "exhaustive",
    storage: Annotated[
        str, typer.Option(help="exact; compact or bitstate: more states fit, some are left out.")
    ] = "exact",
    depth: Annotated[
        int | None, typer.Option(help="pct: orderings that a bug needs (default 3).")
    ] = None,
    runs: Annotated[int | None, typer.Option(help="pct: random runs (default 1000).")] = None,
    seed: Annotated[int | None, typer.Option(help="pct: which random runs (default 0).")] = None,
    switches: Annotated[
        int | None, typer.Option(help="context-bounded: preemptions, at most (default 2).")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="More figures; small ones also without reduction.")
    ] = False,
    profile_states: Annotated[
        bool,
        typer.Option(
            "--profile-states", help="Which cells and locals multiply states and are never read."
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Print the interleaving.")
    ] = True,
    width: Annotated[int, typer.Option(help="Columns of the interleaving.")] = 80,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write verdict and runs as a page for a browser, too."),
    ] = None,
) -> None:
    """Explore every interleaving of a scenario and say whether it holds.

    Without arguments: the whole table of the review thread of March 2021.

    Example: tdpmmu check nx-recovery --kernel 5.12-rc4 --html run.html

    Exit codes: 0 holds, 1 violated, 2 bad usage, 3 budget ran out, 4 vacuous, 130 Ctrl-C.
    """
    from tdpmmu.cli import partly
    from tdpmmu.cli.limits import budget_of, check_memory, check_not_negative, check_width
    from tdpmmu.cli.questions import make_question
    from tdpmmu.cli.searching import open_checkpoint, reductions_of, run
    from tdpmmu.cli.verdicts import exit_code, print_verdict, states_without_reduction, to_json
    from tdpmmu.worlds.explore.memory import LEAST_COMPILED, LEAST_LOSSY

    budget = budget_of(states=states, seconds=seconds, memory=memory)
    check_width(width)
    check_not_negative("--every", every, "seconds that are not negative")
    left_out = reductions_of(reductions, reduce)
    search = partly.search_of(
        mode, {"depth": depth, "runs": runs, "seed": seed, "switches": switches}
    )
    kept = partly.storage_of(storage, memory)
    compiled = {
        "--loop compiled": loop == "compiled",
        "--checkpoint": checkpoint is not None,
        "--resume": resume is not None,
        f"--workers {workers}": workers != 1,
    }
    needs = {option: given * LEAST_COMPILED for option, given in compiled.items()}
    check_memory(memory, needs | {f"--storage {storage}": LEAST_LOSSY if kept else 0})
    alone = {
        "the table": scenario is None,
        "--all-kernels": all_kernels,
        "--checkpoint": checkpoint is not None,
        "--resume": resume is not None,
    }
    apart = {"--loop": loop != "auto", "--workers": workers != 1}
    if profile_states:
        those = {"--json": as_json, "--html": html is not None, "--first": first}
        others = {"--mode": search is not None, "--workers": workers != 1}
        others["--storage"] = kept is not None
        partly.refuse("no --profile-states", alone | those | others)
    if search is not None:
        partly.refuse(f"--mode exhaustive, not {mode}", alone | apart)
    if kept is not None:
        those = {"--mode": search is not None, "--loop": loop == "plain"}
        partly.refuse(f"--storage exact, not {storage}", alone | those)
    if html is not None and (scenario is None or all_kernels):
        raise UsageError("--html is for one scenario on one kernel")
    if scenario is None:
        from tdpmmu.cli.table import print_table

        raise typer.Exit(print_table(budget, as_json))
    given = {
        "levels": levels,
        "fanout": fanout,
        "vcpus": vcpus,
        "roots": roots,
        "nx_pages": nx_pages,
        "legacy": legacy,
        "gfns": gfns,
        "faults": faults,
        "unmap": unmap,
        "victim": victim,
        "flush": flush,
        "format": spte_format,
        "resched": resched,
    }

    def question_for(kernel: str) -> Question:
        return make_question(
            scenario,
            kernel,
            tuple(patch or ()),
            {name: value for name, value in given.items() if value is not None},
            properties,
            tuple(settings or ()),
        )

    if all_kernels:
        from tdpmmu.cli.all_kernels import print_all

        raise typer.Exit(print_all(question_for, budget, as_json=as_json))
    question = question_for(kernel)
    if profile_states:
        from tdpmmu.cli.profile import print_profile

        print_profile(question, budget, reduce=left_out, loop=loop)
        raise typer.Exit(0)
    keeper = None
    if checkpoint is not None or resume is not None:
        if checkpoint is not None and resume is not None:
            raise UsageError("--resume goes on saving to its own file; leave --checkpoint out")
        options = (first, sorted(left_out))
        keeper = open_checkpoint(question, checkpoint, resume, every, options)
    if search is not None:
        verdict = partly.run(question, search, budget, first=first, reduce=left_out)
    else:
        verdict = run(
            question,
            budget,
            first=first,
            reduce=left_out,
            loop=loop,
            keeper=keeper,
            workers=workers,
            storage=kept,
        )
    unreduced = states_without_reduction(question, verdict) if stats and left_out else None
    if as_json:
        import json

        print(json.dumps(to_json(verdict, unreduced), indent=2))
    else:
        print_verdict(verdict, stats, unreduced, explain, width)
    if html is not None:
        from tdpmmu.cli.report import write_verdict

        write_verdict(html, verdict)
    raise typer.Exit(exit_code(verdict))
