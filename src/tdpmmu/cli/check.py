"""``tdpmmu check``: put a question to the explorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question, Verdict
    from tdpmmu.worlds.explore.engine import Explorer
    from tdpmmu.worlds.explore.exploration import Budget
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint
    from tdpmmu.worlds.explore.reductions import Reduce, Reductions
    from tdpmmu.worlds.explore.storage import Storage

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
    from tdpmmu.cli.memory import check_memory
    from tdpmmu.worlds.explore.exploration import Budget
    from tdpmmu.worlds.explore.memory import LEAST_COMPILED, LEAST_LOSSY

    for option, number in (("--states", states), ("--time", seconds), ("--memory", memory)):
        if not number >= 0:  # nor is NaN
            raise UsageError(f"{option} {number}: expected a number that is not negative")
    if not every >= 0:
        raise UsageError(f"--every {every}: expected seconds that are not negative")
    budget = Budget(states, seconds, memory)
    left_out = _left_out(reductions, reduce)
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
    if all_kernels:
        from tdpmmu.cli.all_kernels import print_all

        def question_for(name: str) -> Question:
            return make_question(
                scenario,
                name,
                tuple(patch or ()),
                {key: value for key, value in given.items() if value is not None},
                properties,
                tuple(settings or ()),
            )

        raise typer.Exit(print_all(question_for, budget, as_json=as_json))
    question = make_question(
        scenario,
        kernel,
        tuple(patch or ()),
        {name: value for name, value in given.items() if value is not None},
        properties,
        tuple(settings or ()),
    )
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
    unreduced = _unreduced(question, verdict) if stats and left_out else None
    if as_json:
        import json

        print(json.dumps(to_json(verdict, unreduced), indent=2))
    else:
        print_verdict(verdict, stats, unreduced, explain, width)
    if html is not None:
        from tdpmmu.cli.report import write_verdict

        write_verdict(html, verdict)
    raise typer.Exit(exit_code(verdict))


def make_question(
    scenario: str,
    kernel: str,
    patches: tuple[str, ...],
    parameters: dict[str, Any],
    properties: str,
    settings: tuple[str, ...] = (),
) -> Question:
    """What the command line asks; UsageError if it makes no sense."""
    import dataclasses

    from tdpmmu.cli import user_files as files
    from tdpmmu.properties.catalogue import wanted
    from tdpmmu.scenarios.catalogue import parameter as parse_parameter
    from tdpmmu.scenarios.catalogue import patch_class
    from tdpmmu.scenarios.catalogue import scenario_class as find_scenario
    from tdpmmu.scenarios.question import Question
    from tdpmmu.versions.registry import UnknownName, apply, kernel_class

    scenario_class: type[Any] | None = None
    name: str | None = None
    if files.is_file(scenario):
        path, cls_name = files.split(scenario)
        found = files.scenarios_in(path)
        if found or not files.patches_in(path):
            scenario_class = files.the_one("scenario", path, cls_name, found)
            name = f"{path}:{scenario_class.__name__}"
        else:
            patches = (*patches, scenario)
    try:
        if scenario_class is None:
            scenario_class = find_scenario("nx-recovery" if files.is_file(scenario) else scenario)
        parameters = dict(parameters)
        for text in settings:
            field, value = parse_parameter(scenario_class, text)
            parameters[field] = value
        wanted(properties)
        classes = []
        names = []
        for one in patches:
            if files.is_file(one):
                path, cls_name = files.split(one)
                cls = files.the_one("patch", path, cls_name, files.patches_in(path))
                classes.append(cls)
                names.append(f"{path}:{cls.__name__}")
            else:
                classes.append(patch_class(one))
                names.append(one)
        mmu_class = apply(kernel_class(kernel), *classes)
        known = {field.name for field in dataclasses.fields(scenario_class)}
        for parameter in parameters:
            if parameter not in known:
                option = "--" + parameter.replace("_", "-")
                raise UsageError(f"the scenario {name or scenario} has no {option}")
        made = scenario_class(**parameters)
        made.build(mmu_class)
    except UnknownName as error:
        raise UsageError(str(error)) from None
    except (ValueError, TypeError) as error:
        raise UsageError(str(error).splitlines()[0]) from None
    return Question(made, mmu_class, kernel, tuple(names), properties, name)


def open_checkpoint(
    question: Question,
    new: Path | None,
    old: Path | None,
    every: float,
    options: tuple[bool, list[str]],
) -> Checkpoint:
    """The file that a search is kept in; it must be of this question, asked of the same sources."""
    import dataclasses
    import json

    from tdpmmu.scenarios.sources import fingerprint, sources_of
    from tdpmmu.worlds.explore.search import can_compile

    if not can_compile():
        raise UsageError("checkpoints need numba: pip install 'tdpmmu[fast]'")
    from tdpmmu.worlds.explore.fast.checkpoint import Checkpoint, CheckpointError

    built = question.build()
    classes = [question.mmu_class, type(question.scenario)]
    classes += [type(ghost) for ghost in built.machine.ghosts]
    identity = json.dumps(
        [
            question.scenario_name or question.scenario.name,
            dataclasses.asdict(question.scenario),
            question.kernel,
            question.patches,
            question.properties,
            options,
            fingerprint(sources_of(classes)),
        ]
    )
    path = old or new
    assert path is not None
    try:
        return Checkpoint(path, identity, resume=old is not None, every=every)
    except CheckpointError as error:
        raise UsageError(str(error)) from None


def run(
    question: Question,
    budget: Budget,
    *,
    first: bool,
    reduce: Reduce,
    loop: str = "auto",
    keeper: Checkpoint | None = None,
    workers: int = 1,
    storage: Storage | None = None,
) -> Verdict:
    """Explore with progress on a terminal; errors in the user's code are one line."""
    import sys

    from tdpmmu.arch.table import PoolExhausted
    from tdpmmu.scenarios.question import ask
    from tdpmmu.worlds.explore.position.refusal import UnsupportedPosition
    from tdpmmu.worlds.explore.search import COMPILED, LOOPS, can_compile

    if loop not in LOOPS:
        raise UsageError(f"--loop: expected {', '.join(LOOPS)}, not {loop!r}")
    if loop == COMPILED and not can_compile():
        raise UsageError("--loop compiled needs numba: pip install 'tdpmmu[fast]'")
    workers = _workers(workers, loop)
    failures: tuple[type[Exception], ...] = (UnsupportedPosition, PoolExhausted)
    if keeper is not None:
        from tdpmmu.worlds.explore.fast.checkpoint import CheckpointError

        failures += (CheckpointError,)
    show = None
    if sys.stderr.isatty():

        def show(explorer: Explorer) -> None:
            result = explorer.result
            sys.stderr.write(
                f"\r{len(explorer.order):>12,} states, depth {result.depth}, "
                f"{len(result.violations)} violated {explorer.doing}\x1b[K"
            )
            sys.stderr.flush()

    try:
        return ask(
            question,
            budget=budget,
            first=first,
            reduce=reduce,
            progress=show,
            loop=loop,
            keeper=keeper,
            workers=workers,
            storage=storage,
        )
    except failures as error:
        raise UsageError(str(error)) from None
    finally:
        if show is not None:
            sys.stderr.write("\r\x1b[K")


def _workers(asked: int, loop: str) -> int:
    """How many threads are to search."""
    from tdpmmu.distribute.processes import cores
    from tdpmmu.worlds.explore.search import MOST_WORKERS, PLAIN, can_compile

    if asked < 0:
        raise UsageError(f"--workers: expected a number of threads, or 0 for all, not {asked}")
    workers = min(asked or cores(), MOST_WORKERS)
    if workers > 1:
        if loop == PLAIN:
            raise UsageError("--workers: the plain loop is one thread")
        if not can_compile():
            raise UsageError("--workers needs numba: pip install 'tdpmmu[fast]'")
    return workers


def _left_out(names: str | None, reduce: bool) -> Reductions:
    """The reductions of ``--reductions`` and ``--no-reduce``."""
    from tdpmmu.worlds.explore.reductions import named, reductions

    if names is None:
        return reductions(reduce)
    if not reduce:
        raise UsageError("--reductions says which; --no-reduce means none: leave one of them out")
    try:
        return named(names)
    except ValueError as error:
        raise UsageError(f"--reductions: {error}") from None


def exit_code(verdict: Verdict) -> int:
    """The exit code of one verdict."""
    from tdpmmu.scenarios.question import EXIT_CODES, VIOLATED
    from tdpmmu.worlds.explore.exploration import INTERRUPTED

    if verdict.exploration.stopped == INTERRUPTED:
        return 130
    if verdict.status == VIOLATED:
        return 1
    return EXIT_CODES[verdict.status]


def _unreduced(question: Question, verdict: Verdict) -> str:
    """The number of states without reduction, where that is feasible."""
    from tdpmmu.scenarios.question import ask
    from tdpmmu.worlds.explore.exploration import Budget

    limit = 300_000
    if verdict.exploration.states > 20_000:
        return "not counted (too many)"
    result = ask(question, budget=Budget(states=limit), reduce=False).exploration
    return f"{result.states:,}" if result.exhausted else f"more than {limit:,}"


def print_verdict(
    verdict: Verdict, stats: bool, unreduced: str | None, explain: bool, width: int
) -> None:
    """The verdict, what it rests on, and the interleavings."""
    result = verdict.exploration
    print(f"{verdict.question.title()}: {verdict.sentence()}")
    for line in verdict.rests_on():
        print(f"  {line}")
    if stats:
        print(f"  shared states {result.shared:,}; positions {result.positions}")
        print(f"  segments run {result.segments_run:,}; replays {result.replays:,}")
        if result.memory:
            each = result.memory["states"] / result.states
            sizes = ", ".join(f"{k} {v / 2**20:.1f} MiB" for k, v in result.memory.items())
            print(f"  compiled loop: {each:.1f} bytes a state; {sizes}")
        if unreduced is not None:
            print(f"  states without reduction: {unreduced}")
    for found in verdict.violations:
        token = verdict.tokens[found.prop]
        if explain:
            from tdpmmu.scenarios.showing import text_of

            print()
            print(text_of(token, width=width))
        else:
            print(f"\n{found.kind}: {found.prop}: {found.sentence}")
        print(f"\nreplay with: tdpmmu explain {token}")


def to_json(verdict: Verdict, unreduced: str | None = None) -> dict[str, Any]:
    """The verdict for machines."""
    import dataclasses

    from tdpmmu.scenarios.question import MEMORY_MODEL

    question, result = verdict.question, verdict.exploration
    return {
        "scenario": question.scenario_name or question.scenario.name,
        "parameters": dataclasses.asdict(question.scenario),
        "kernel": question.kernel,
        "patches": list(question.patches),
        "properties": question.properties,
        "verdict": verdict.status,
        "sentence": verdict.sentence(),
        "memory_model": MEMORY_MODEL,
        "exhausted": result.exhausted,
        "stopped": result.stopped,
        "within": result.within,
        "bound": getattr(result, "bound", None),
        "storage": None if result.left is None else result.left.as_dict(),
        "liveness": result.liveness,
        "states": result.states,
        "states_without_reduction": unreduced,
        "turns": result.transitions,
        "depth": result.depth,
        "seconds": round(result.seconds, 3),
        "never_happened": list(result.unseen),
        "violations": [
            {
                "property": found.prop,
                "kind": found.kind,
                "sentence": found.sentence,
                "operations": found.operations,
                "token": verdict.tokens.get(found.prop),
            }
            for found in verdict.violations
        ],
    }
