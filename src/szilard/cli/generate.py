"""`szilard generate`: a text with a decoding method, and what the method did at each token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from szilard.cli.console import UserError, errors, out

if TYPE_CHECKING:
    from szilard.cli.writers import Request, Written
    from szilard.decoding.trace import TokenTrace


def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with, or - for stdin.")],
    method: Annotated[
        str, typer.Option("--method", help="A decoding method of `szilard list`, or plain.")
    ] = "plain",
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="gemma3-270m (offline), a Hugging Face id, or a folder."
        ),
    ] = "gemma3-270m",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Longest text, tokens.")
    ] = 60,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="Divides the logits; > 0.")
    ] = 1.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likeliest token instead of drawing one.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same text.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show entropy and what the method did, by token.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Write the explanation as a page.")
    ] = None,
) -> None:
    """Write a text with a decoding method."""
    import sys

    if not temperature > 0:
        raise UserError(f"--temperature: got {temperature:g}, must be positive")
    if html is not None and not html.parent.is_dir():
        raise UserError(f"--html {html}: there is no folder {html.parent}")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise UserError("the prompt is empty")
    _check_method(method)
    request, writer = _request(
        text,
        method,
        model,
        max_new_tokens,
        None if greedy else temperature,
        seed,
        assignments or [],
    )
    # Unless it is to be explained, the text appears as it is written.
    streams = not explain and out().is_terminal
    try:
        written = writer(_streaming(request) if streams else request)
    except ValueError as error:
        raise UserError(str(error)) from None
    pieces = pieces_of(request, written.trace)
    if explain:
        _print_explained(text, pieces, written)
    elif not streams:
        sys.stdout.write(text + "".join(pieces) + "\n")
    if html is not None:
        try:
            html.write_text(_page(text, pieces, written, method, model), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {html}: can't be written ({error.strerror})") from None
        errors().print(f"page: {html}", highlight=False, soft_wrap=True)


def _check_method(method: str) -> None:
    from difflib import get_close_matches

    from szilard.cli.writers import WRITERS

    if method not in WRITERS:
        near = get_close_matches(method, WRITERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(WRITERS)}"
        raise UserError(f"--method {method}: is no method that writes; {hint}")


def _request(
    prompt: str,
    method: str,
    name: str,
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
    assignments: list[str],
) -> tuple[Request, Any]:
    from szilard.cli.writers import WRITERS, Request, parse_setting

    settings = dict(map(parse_setting, assignments))
    try:
        with errors().status(f"loading {name}"):
            from transformers.utils.logging import disable_progress_bar

            from szilard.zoo.language import load_language_model

            disable_progress_bar()
            model, tokenizer = load_language_model(name)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None
    request = Request(prompt, model, tokenizer, max_new_tokens, temperature, seed, settings)
    return request, WRITERS[method]


def _streaming(request: Request) -> Request:
    from dataclasses import replace

    from transformers import TextStreamer

    return replace(request, streamer=TextStreamer(request.tokenizer, skip_special_tokens=True))


def pieces_of(request: Request, trace: TokenTrace) -> list[str]:
    """The piece of the text that each token adds."""
    decode = request.tokenizer.decode
    pieces, before = [], ""
    for end in range(1, len(trace.token_ids) + 1):
        whole = decode(trace.token_ids[:end], skip_special_tokens=True)
        # The bytes of a character that is not complete yet show with the token that completes it.
        if whole.endswith("�") and end < len(trace.token_ids):
            pieces.append("")
            continue
        pieces.append(whole[len(before) :])
        before = whole
    return pieces


def _print_explained(prompt: str, pieces: list[str], written: Written) -> None:
    from rich.markup import escape
    from rich.text import Text

    from szilard.cli.measure import heat, print_legend

    console, entropy = out(), written.trace.entropy.tolist()
    ramp, top = heat(console, entropy)
    shown = Text(prompt, style="dim")
    marks = marks_of(written.trace)
    for i, piece in enumerate(pieces):
        style = ramp(entropy[i] / top)
        shown.append(
            piece, style=f"{style} underline" if any(m[i] for m in marks.values()) else style
        )
    console.print(shown, highlight=False)
    print_legend(console, "entropy", top, "nats")
    for name, column in marks.items():
        console.print(
            f"underlined: {name} ({sum(column)} of {len(column)} tokens)", highlight=False
        )
    for name, value in written.facts.items():
        console.print(f"[dim]{name}[/] {escape(value)}", highlight=False, emoji=False)


def marks_of(trace: TokenTrace) -> dict[str, list[bool]]:
    """Which tokens to mark: where an event happened, or a text is not the commonest one."""
    marks = {}
    for name, column in trace.events.items():
        if all(isinstance(value, bool) for value in column):
            marks[name] = list(column)
        elif all(isinstance(value, str) for value in column) and len(set(column)) > 1:
            for value in sorted(set(column), key=list(column).count)[:-1]:
                marks[f"{name} {value}"] = [entry == value for entry in column]
    return marks


def _page(prompt: str, pieces: list[str], written: Written, method: str, model: str) -> str:
    from szilard.lab.templating import render

    trace = written.trace
    return render(
        "generation.html.j2",
        prompt=prompt,
        method=method,
        model_name=model,
        facts=dict(written.facts),
        mean_entropy=float(trace.entropy.mean()) if len(trace.entropy) else 0.0,
        tokens=[
            [piece, entropy] for piece, entropy in zip(pieces, trace.entropy.tolist(), strict=True)
        ],
        events={name: list(column) for name, column in trace.events.items()},
    )
