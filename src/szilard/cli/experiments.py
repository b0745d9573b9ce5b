"""`szilard run`, `report` and `board`: experiments and what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from szilard.cli.browse import find
from szilard.cli.console import CLAIM_FAILED, FAILED, UserError, errors, out, warn

if TYPE_CHECKING:
    from szilard.catalog import Method
    from szilard.lab.results import Results

Runs = Annotated[
    Path | None,
    typer.Option(
        "--runs", metavar="DIR", help="Folder of all runs (default: $SZILARD_RUNS, else ./runs)."
    ),
]
Slug = Annotated[str, typer.Argument(help="The method, as in `szilard list`.")]


def run(
    slug: Slug,
    preset: Annotated[
        str, typer.Option("--preset", "-p", help="smoke (seconds), quick (minutes) or paper.")
    ] = "quick",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="Number of seeds; more extend a stored run.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=0, help="Processes; 0 runs in this one.")
    ] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Forget stored units, or go on from them.")
    ] = False,
    runs: Runs = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 where a claim fails.")
    ] = False,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Run programs a model wrote, in the sandbox, to grade them.",
        ),
    ] = False,
) -> None:
    """Test a paper's claims: run the method against its baselines and report."""
    method = _ready(slug)
    from szilard.cli.progress import Display
    from szilard.lab.experiment import Verdict
    from szilard.lab.runner import run_experiment
    from szilard.lab.settings import SettingError, configure
    from szilard.lab.store import StoreError, runs_root
    from szilard.lab.units import load_experiment

    try:
        experiment = load_experiment(method.experiment)
        settings = list(assignments or ())
        if allow_code_execution:
            if "allow_code_execution" not in experiment.Config.model_fields:
                raise UserError(f"--allow-code-execution: {slug} runs no generated code")
            settings.append("allow_code_execution=true")
        config = configure(experiment, preset, settings, seeds)
        with Display() as display:
            outcome = run_experiment(
                method,
                config,
                preset=preset,
                root=runs_root(runs),
                observer=display,
                workers=workers,
                fresh=fresh,
            )
    except (SettingError, StoreError, ImportError) as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"the run stopped, what is finished is kept: {error}", FAILED) from None
    except KeyboardInterrupt:
        errors().print("[yellow]stopped;[/] the same command goes on from the last finished unit")
        raise typer.Exit(130) from None
    _print_results(method, outcome.results, outcome.run.report)
    if not outcome.ok:
        raise typer.Exit(FAILED)
    if strict and outcome.results.count(Verdict.FAILS):
        raise typer.Exit(CLAIM_FAILED)


def report(
    slug: Slug,
    run: Annotated[
        str | None, typer.Option("--run", help="Which run (its folder's name); the newest if none.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    runs: Runs = None,
) -> None:
    """Rebuild the report of a run from the store."""
    method = _ready(slug)
    from szilard.lab.runner import rebuild_report
    from szilard.lab.store import StoreError, runs_root
    from szilard.lab.store import runs as stored

    root = runs_root(runs)
    found = stored(root, method.slug)
    chosen = [r for r in found if run is None or r.name == run]
    if not chosen:
        names = ", ".join(r.name for r in found)
        raise UserError(
            f"{root / method.slug} holds no run {run!r}; there is {names}"
            if found
            else f"{root} holds no run of {slug}; make one with: szilard run {slug}"
        )
    try:
        results = rebuild_report(method, chosen[-1], warn)
    except (StoreError, ImportError, ValueError) as error:
        raise UserError(f"{chosen[-1].path}: {error}") from None
    _print_results(method, results, chosen[-1].report)
    if show:
        typer.launch(str(chosen[-1].report))


def board(
    folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where to write the site.")
    ] = Path("board"),
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    runs: Runs = None,
) -> None:
    """Build a static site over all finished runs."""
    from szilard.lab.board import build_board
    from szilard.lab.store import runs_root

    try:
        index = build_board(runs_root(runs), folder)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}") from None
    out().print(f"board: {index}", highlight=False, soft_wrap=True)
    if show:
        typer.launch(str(index))


def _ready(slug: str) -> Method:
    method = find(slug)
    if method.status == "planned":
        raise UserError(
            f"{slug} is planned: it has no code or experiment yet; "
            f"`szilard list` shows which methods are ready"
        )
    return method


def _print_results(method: Method, results: Results, report: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from szilard.lab.experiment import Verdict
    from szilard.lab.templating import interval

    styles = {
        Verdict.HOLDS: "green",
        Verdict.FAILS: "red",
        Verdict.NOT_MEASURABLE: "yellow",
    }
    signs = {Verdict.HOLDS: "✓", Verdict.FAILS: "✗", Verdict.NOT_MEASURABLE: "?"}
    if results.claims:
        table = Table(title=f"{method.name}: claims", title_justify="left", show_lines=True)
        table.add_column("claim", ratio=3)
        table.add_column("measured", ratio=2)
        table.add_column("verdict", no_wrap=True)
        for claim in results.claims:
            measured = escape(interval(claim.measured))
            if claim.measured is not None:
                measured += (
                    f"\n[dim]{escape(claim.quantity)}; holds if {escape(claim.criterion)}[/]"
                )
            elif claim.note:
                measured = f"[dim]{escape(claim.note)}[/]"
            label = "not measurable" if claim.verdict is Verdict.NOT_MEASURABLE else claim.verdict
            table.add_row(
                f"{escape(claim.statement)}\n[dim]paper: {escape(claim.paper)}[/]",
                measured,
                f"[{styles[claim.verdict]}]{signs[claim.verdict]} {label}[/]",
            )
        out().print(table, highlight=False)
    alike: dict[str, list[str]] = {}
    for failure in results.failures:
        alike.setdefault(failure.error, []).append(str(failure.unit))
    for error, units in alike.items():
        line = f"{'; '.join(units)}: {error}"
        errors().print(f"[red]{len(units)} failed:[/] {escape(line)}", soft_wrap=True)
    for problem in results.errors:
        errors().print(f"[red]no {problem.what}:[/] {escape(problem.error)}")
    out().print(f"report: {report}", highlight=False, soft_wrap=True)
