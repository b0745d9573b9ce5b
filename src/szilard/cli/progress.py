"""Progress of a run in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from szilard.cli.console import errors, warn

if TYPE_CHECKING:
    from szilard.lab.store import Unit
    from szilard.lab.workers import Event

# A unit's bar counts in this many steps, the whole run's in units.
_RESOLUTION = 1000


class Display:
    """A bar over the units and one for each that is being computed; plain lines where the output is
    no terminal.
    """

    def __init__(self) -> None:
        self._overall = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", style="dim"),
            TimeRemainingColumn(),
            console=errors(),
            transient=True,
        )
        self._run: TaskID | None = None
        self._total = self._done = 0
        self._units: dict[Unit, TaskID] = {}

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._overall.stop()

    def begin(self, units: Sequence[Unit], reused: int) -> None:
        if reused:
            errors().print(f"{reused} units are already in the store", style="dim")
        self._total = len(units)
        if units:
            if errors().is_terminal:
                self._overall.start()
            self._run = self._overall.add_task("units", total=len(units), message="")

    def event(self, event: Event) -> None:
        from szilard.lab.workers import Failed, Finished, Progressed, Started

        unit = event.unit
        if isinstance(event, Started):
            self._units[unit] = self._overall.add_task(
                f"  {escape(str(unit))}", total=_RESOLUTION, message=""
            )
        elif isinstance(event, Progressed):
            self._overall.update(
                self._units[unit],
                completed=min(max(event.fraction, 0.0), 1.0) * _RESOLUTION,
                message=escape(event.message),
            )
        elif isinstance(event, Finished | Failed):
            self._overall.remove_task(self._units.pop(unit))
            self._done += 1
            if self._run is not None:
                self._overall.advance(self._run)
            if isinstance(event, Finished) and not errors().is_terminal:
                errors().print(
                    f"{self._done}/{self._total} {escape(str(unit))}: {event.seconds:.1f} s",
                    highlight=False,
                    soft_wrap=True,
                )
            if isinstance(event, Failed):
                errors().print(
                    f"[red]failed:[/] {escape(str(unit))}: {escape(event.failure.error)}",
                    highlight=False,
                    soft_wrap=True,
                )

    def warn(self, message: str) -> None:
        warn(message)
