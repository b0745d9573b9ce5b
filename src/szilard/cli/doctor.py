"""`szilard doctor`: what is usable here, and the command that installs what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from szilard.cli.console import out

_DEVELOPMENT = ("dev", "docs", "all")


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra and what it lacks here."""

    name: str
    missing: tuple[str, ...]


def doctor() -> None:
    """Say which extras and devices are usable, and how to install what is missing."""
    import shlex

    from rich.markup import escape
    from rich.table import Table

    console = out()
    with console.status("looking"):
        from szilard.lab.machine import hardware, versions

        machine, packages = hardware(), versions()
        devices = _devices()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    for name in ("szilard", "python", "torch"):
        facts.add_row(name, packages.get(name, "not installed"))
    for name in ("system", "processor", "cores", "memory"):
        if name in machine:
            facts.add_row(name, machine[name])
    for device, note in devices:
        facts.add_row(device, escape(note))
    for name, note in _folders():
        facts.add_row(name, escape(note))
    console.print(facts, highlight=False)

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("\nextra", "\nstatus", "\nmethods that need it"):
        table.add_column(column)
    lacking = []
    for extra in extras():
        optional = extra.name in _DEVELOPMENT
        if extra.missing and not optional:
            lacking.append(extra.name)
        status = "[green]✓ usable[/]"
        if extra.missing:
            status = f"[yellow]✗ lacks {escape(', '.join(extra.missing))}[/]"
        table.add_row(extra.name, status, _methods(extra.name), style="dim" if optional else "")
    console.print(table, highlight=False)
    if lacking:
        wanted = shlex.quote(f"szilard[{','.join(lacking)}]")
        console.print(
            f"\nto install what is missing:\n  {escape(f'{sys.executable} -m pip install {wanted}')}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print("\n[green]nothing is missing[/]")


def extras() -> list[Extra]:
    """Every extra of the installed distribution, with the requirements that are not met."""
    from importlib.metadata import metadata

    names = metadata("szilard").get_all("Provides-Extra") or []
    return [Extra(name, tuple(dict.fromkeys(_missing(name)))) for name in names]


@cache
def _missing(extra: str) -> tuple[str, ...]:
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    lacking: list[str] = []
    for line in requires("szilard") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if (
            marker is None
            or marker.evaluate({"extra": ""})
            or not marker.evaluate({"extra": extra})
        ):
            continue
        if requirement.name == "szilard":
            for inner in sorted(requirement.extras - {extra}):
                lacking += _missing(inner)
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            lacking.append(f"{requirement.name}{requirement.specifier}")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            lacking.append(f"{requirement.name}{requirement.specifier} (here: {installed})")
    return tuple(lacking)


def _methods(extra: str) -> str:
    from szilard.catalog import METHODS

    return ", ".join(m.slug for m in METHODS if extra in m.extras and m.status == "ready")


def _devices() -> list[tuple[str, str]]:
    import torch

    found = [("cpu", f"usable, torch uses {torch.get_num_threads()} threads")]
    for i in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(i)
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        found.append((f"cuda:{i}", f"usable, {name}, {memory:.0f} GiB"))
    if not torch.cuda.is_available():
        why = "torch was built without it" if torch.version.cuda is None else "no device found"
        found.append(("cuda", f"not usable: {why}"))
    if torch.backends.mps.is_available():
        found.append(("mps", "usable"))
    return found


def _folders() -> list[tuple[str, str]]:
    from szilard.lab.store import runs, runs_root
    from szilard.zoo.cache import cache_folder

    root = runs_root()
    return [
        ("runs", f"{root}: {len(runs(root))} runs, {_state(root)}"),
        ("cache", f"{cache_folder()}: {_state(cache_folder())}"),
    ]


def _state(folder: Path) -> str:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**30
    writable = "writable" if os.access(existing, os.W_OK) else "NOT writable"
    return f"{writable}, {free:.0f} GiB free"
