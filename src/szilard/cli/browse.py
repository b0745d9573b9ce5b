"""`szilard list` and `szilard show`: what there is."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

import typer

from szilard import catalog
from szilard.cli.console import UserError, out


def find(slug: str) -> catalog.Method:
    """The method, or an error that suggests the nearest."""
    try:
        return catalog.find(slug)
    except catalog.UnknownMethodError as error:
        raise UserError(str(error)) from None


def list_methods(
    family: Annotated[
        str | None, typer.Option("--family", "-f", help="Only the methods of this family.")
    ] = None,
) -> None:
    """List the methods, family by family."""
    from rich.markup import escape

    if family is not None and family not in catalog.FAMILIES:
        near = get_close_matches(family, catalog.FAMILIES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(catalog.FAMILIES)}"
        raise UserError(f"there is no family {family!r}; {hint}")
    console = out()
    # Lines padded by hand: a table that measures every cell would take longer than all else here.
    slugs = max(len(method.slug) for method in catalog.METHODS) + 2
    # Into a pipe nothing is cut off.
    room = max(20, console.width - slugs - 11) if console.is_terminal else 1000
    ready = planned = 0
    for name, purpose in catalog.FAMILIES.items():
        methods = [m for m in catalog.METHODS if m.family == name]
        if (family is not None and name != family) or not methods:
            continue
        console.print(f"[bold]{name}[/] [dim]{escape(purpose)}[/]", highlight=False)
        for method in methods:
            is_ready = method.status == "ready"
            ready, planned = ready + is_ready, planned + (not is_ready)
            acts = method.acts if len(method.acts) <= room else method.acts[: room - 1] + "…"
            style = "green" if is_ready else "dim"
            console.print(
                f"  {method.slug:<{slugs}}[{style}]{method.status:<9}[/][dim]{escape(acts)}[/]",
                highlight=False,
                soft_wrap=True,
            )
    out().print(
        f"\n{ready} ready, {planned} planned. [dim]`szilard show METHOD` says more, "
        f"`szilard run METHOD` tests its paper's claims.[/]",
        highlight=False,
    )


def show(slug: Annotated[str, typer.Argument(help="The method, as in `szilard list`.")]) -> None:
    """Show one method: paper, entry point, presets and their settings."""
    from rich.markup import escape
    from rich.table import Table

    method = find(slug)
    console = out()
    console.print(f"[bold]{escape(method.name)}[/]  [dim]{method.slug}[/]", highlight=False)
    console.print(f"measures {escape(method.measures)};\n{escape(method.acts)}\n", highlight=False)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("family", f"{method.family} ({catalog.FAMILIES[method.family]})")
    facts.add_row("paper", f"{escape(method.paper)}, {method.year}")
    if method.url:
        facts.add_row("", method.url)
    facts.add_row("status", method.status)
    if method.entry_point:
        module, _, attribute = method.entry_point.partition(":")
        facts.add_row("use", f"from {module} import {attribute}")
    if method.extras:
        facts.add_row("install", escape(f'pip install "szilard[{",".join(method.extras)}]"'))
    if method.status == "ready":
        facts.add_row("run", f"szilard run {method.slug} --preset quick")
    console.print(facts, highlight=False)
    if method.status == "ready":
        _show_settings(method)


def _show_settings(method: catalog.Method) -> None:
    """The experiment's settings under each preset, for `--set`."""
    from rich.markup import escape

    from szilard.lab.templating import plain
    from szilard.lab.units import load_experiment

    console = out()
    try:
        experiment = load_experiment(method.experiment)
    except ImportError as error:
        console.print(f"\n[yellow]its experiment can't be loaded here:[/] {escape(str(error))}")
        return
    console.print("\n[bold]Settings[/] [dim](--set KEY=VALUE; values of the presets)[/]")
    presets = {
        str(name): config.model_dump(mode="json") for name, config in experiment.presets.items()
    }
    for key, field in experiment.Config.model_fields.items():
        note = escape(field.description or "")
        console.print(f"  [bold]{key}[/]  [dim]{note}[/]", highlight=False)
        values = {name: plain(config[key]) for name, config in presets.items()}
        if len(set(values.values())) == 1:
            values = {"all": next(iter(values.values()))}
        for name, value in values.items():
            line = f"    {name:<7}{value}"
            console.print(
                line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis", crop=True
            )
