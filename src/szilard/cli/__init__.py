"""The command line: `szilard list`, `show`, `run`, `report`, `board`, `measure`,
`generate`, `doctor`.

Thin, and quick to start: a command imports what it needs when it is called.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from szilard import __version__
from szilard.cli import browse, doctor, experiments, generate, measure
from szilard.cli.console import UserError, errors

app = typer.Typer(
    name="szilard",
    help="Measure entropy and information, and put them to work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(browse.list_methods)
app.command("show")(browse.show)
app.command("run")(experiments.run)
app.command("report")(experiments.report)
app.command("board")(experiments.board)
app.command("measure")(measure.measure)
app.command("generate")(generate.generate)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"szilard {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Measure entropy and information, and put them to work."""


def main() -> None:
    """Entry point of the `szilard` command."""
    try:
        app()
    except UserError as error:
        errors().print(f"[bold red]error:[/] {error.markup}", highlight=False, soft_wrap=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        errors().print("[yellow]stopped[/]")
        sys.exit(130)
