"""`szilard measure`: a text as a language model reads it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from szilard.cli.console import UserError, errors, out

if TYPE_CHECKING:
    from rich.console import Console

    from szilard.lab.reading import Reading

# From white to a strong orange; text on them is black, so they read on any terminal.
_RAMP = tuple(
    f"black on {color}"
    for color in ("#ffffff", "#fdeee0", "#fbd9bb", "#f8c08f", "#f4a361", "#ee8436", "#d9660f")
)
_SIXTEEN_COLOR_RAMP = ("default", "black on green", "black on yellow", "black on red")


class Quantity(StrEnum):
    SURPRISAL = "surprisal"
    ENTROPY = "entropy"


def measure(
    source: Annotated[
        str, typer.Argument(metavar="TEXT|FILE", help="A text, a file's name, or - for stdin.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="gemma3-270m (offline), a Hugging Face id, or a folder.",
        ),
    ] = "gemma3-270m",
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="OUT", help="Write a page with figures on hover."),
    ] = None,
    base: Annotated[
        float | None, typer.Option("--base", help="Base of the logarithms: 2 for bits; else nats.")
    ] = None,
    by: Annotated[
        Quantity, typer.Option("--by", help="What colours the text.")
    ] = Quantity.SURPRISAL,
    window: Annotated[
        int | None, typer.Option("--window", help="Tokens the model sees at once.")
    ] = None,
) -> None:
    """Show the surprisal and entropy of every token of a text.

    In a terminal the text is coloured; into a pipe goes a tab-separated table.
    """
    if base is not None and not (base > 0 and base != 1):
        raise UserError(f"--base: got {base:g}, must be positive and not 1")
    if html is not None and not html.parent.is_dir():
        raise UserError(f"--html {html}: there is no folder {html.parent}")
    text = _text(source)
    reading = _read(text, model, base, window)
    if out().is_terminal:
        _print_coloured(reading, by)
    else:
        _print_table(reading)
    if html is not None:
        from szilard.lab.reading import reading_html

        try:
            html.write_text(reading_html(reading, model), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {html}: can't be written ({error.strerror})") from None
        errors().print(f"page: {html}", highlight=False, soft_wrap=True)


def _text(source: str) -> str:
    try:
        if source == "-":
            text = sys.stdin.read()
        elif _is_file(source):
            text = Path(source).read_text(encoding="utf-8")
        else:
            text = source
    except UnicodeDecodeError:
        raise UserError(f"{source}: is not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{source}: can't be read ({error.strerror})") from None
    if not text.strip():
        raise UserError("there is no text to measure")
    return text


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):
        return False


def _read(text: str, name: str, base: float | None, window: int | None) -> Reading:
    from rich.progress import Progress

    console = errors()
    try:
        with console.status(f"loading {name}"):
            from transformers.utils.logging import disable_progress_bar

            from szilard.lab.reading import read_text
            from szilard.zoo.language import load_language_model

            disable_progress_bar()
            model, tokenizer = load_language_model(name)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("reading", total=1.0)
            return read_text(
                model,
                tokenizer,
                text,
                base=base,
                window=window,
                log=lambda fraction: progress.update(task, completed=fraction),
            )
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None


def _print_table(reading: Reading) -> None:
    import json

    lines = [f"token\tsurprisal ({reading.unit})\tentropy ({reading.unit})"]
    for token in reading.tokens:
        figures = [
            "" if value is None else f"{value:.6g}" for value in (token.surprisal, token.entropy)
        ]
        lines.append("\t".join([json.dumps(token.text, ensure_ascii=False), *figures]))
    sys.stdout.write("\n".join(lines) + "\n")


def _print_coloured(reading: Reading, by: Quantity) -> None:
    from rich.text import Text

    from szilard.lab.templating import number

    console = out()
    style, top = heat(
        console, reading.surprisals if by is Quantity.SURPRISAL else reading.entropies
    )
    shown = Text()
    for token in reading.tokens:
        value = token.surprisal if by is Quantity.SURPRISAL else token.entropy
        shown.append(token.text, style="" if value is None else style(value / top))
    console.print(shown, highlight=False)
    print_legend(console, by, top, reading.unit)
    surprisals, entropies = reading.surprisals, reading.entropies
    if surprisals:
        console.print(
            f"{len(reading.tokens)} tokens; on average surprisal "
            f"{number(sum(surprisals) / len(surprisals))}, entropy "
            f"{number(sum(entropies) / len(entropies))} {reading.unit} a token; "
            f"{number(sum(surprisals) / reading.characters)} {reading.unit} a character",
            highlight=False,
        )
    console.print(reading.context, style="dim", highlight=False)


def heat(console: Console, values: Sequence[float]) -> tuple[Callable[[float], str], float]:
    """The style of a share of the top value, and that value.

    The ramp ends at the 98th percentile, so that one rare token doesn't bleach the rest.
    """
    ordered = sorted(values)
    top = max(ordered[int(0.98 * (len(ordered) - 1))] if ordered else 0.0, 1e-9)
    ramp = _ramp(console)
    return lambda share: ramp[min(len(ramp) - 1, int(max(0.0, share) * len(ramp)))], top


def print_legend(console: Console, name: str, top: float, unit: str) -> None:
    """What the colours of `heat` stand for."""
    from rich.text import Text

    legend = Text(f"\n{name} 0 ")
    for style in _ramp(console):
        legend.append(" ▪ ", style=style)
    legend.append(f" {top:.1f} {unit} or more")
    console.print(legend, highlight=False)


def _ramp(console: Console) -> Sequence[str]:
    return _SIXTEEN_COLOR_RAMP if console.color_system == "standard" else _RAMP
