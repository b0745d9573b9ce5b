"""`make bench`: runs the benchmarks, prints their ratios, writes results and the docs page.

    python benchmarks/run.py [FAMILY ...]

Without a family named, all kernels run, which takes under a quarter of an hour; `decoding`, what methods
add to `generate`, is run by its name: `make bench FAMILIES=decoding`. With BENCH=full in the environment
the sizes that take minutes a call are timed as well. Exits 1 where a target is missed.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from harness import ENDLESS, ROUNDS, SLOW, SLOW_PEER, SLOW_ROUNDS, Result, measure, save

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
PAGE = DOCS / "benchmarks.md"
PLOTS = DOCS / "assets" / "benchmarks"
FAMILIES = (
    "tokens",
    "linear",
    "typical",
    "decoding",
    "attention",
    "ordinal",
    "spectral",
    "neighbors",
    "codes",
    "gpu",
)


def main() -> int:
    left_out = {"decoding"} if torch.cuda.is_available() else {"decoding", "gpu"}
    chosen = sys.argv[1:] or [family for family in FAMILIES if family not in left_out]
    unknown = set(chosen) - set(FAMILIES)
    if unknown:
        print(f"no such family: {', '.join(sorted(unknown))}; there is {', '.join(FAMILIES)}")
        return 2
    console = Console()
    missed = []
    for family in chosen:
        began = time.perf_counter()
        results = []
        table = Table("work", "time", "others / szilard", "of the limit", "memory", "targets")
        module = import_module(family)
        for case in module.cases():
            with console.status(f"{case.kernel}: {case.work}"):
                result = measure(case)
            results.append(result)
            table.add_row(result.work, *columns(result))
            missed += [f"{result.kernel}, {result.work}: {name}" for name in result.missed]
        if not results:  # what it needs is not here, and it has said so
            continue
        console.print(table, f"{family}: {time.perf_counter() - began:.0f} s")
        save(results, RESULTS / f"{family}.json", getattr(module, "machine", dict)())
    write_page()
    print(f"page: {PAGE.relative_to(HERE.parent)}")
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


def columns(result: Result) -> list[str]:
    ours = result.seconds["szilard"]
    others = [name for name in result.seconds if name not in ("szilard", result.limit)]
    target = "met" if result.targets else ""
    return [
        duration(ours),
        ", ".join(
            f"{name} {result.seconds[name] / ours:.1f}x{few(result, name)}" for name in others
        ),
        f"{ours / result.seconds[result.limit]:.2f}x {result.limit}" if result.limit else "",
        f"{result.memory / 2**20:.1f} MiB",
        "missed" if result.missed else target,
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1e3 * seconds:.3g} ms"


def few(result: Result, name: str) -> str:
    """Says where a contender was timed fewer times than the rest."""
    rounds = result.rounds[name]
    return "" if rounds == ROUNDS else f" (of {rounds})"


def write_page() -> None:
    """The docs page and its plots, from the stored results alone."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from its own output. Every row is one piece of work on the same arrays in one",
        f"process: all answers are compared first, then everyone is timed {ROUNDS} times after a warm-up in an order",
        f"that rotates, and medians are kept; who takes longer than {SLOW:g} s a call, a peer longer than {SLOW_PEER:g} s,",
        f"is timed {SLOW_ROUNDS} times, which reads *(of {SLOW_ROUNDS})*, a peer that takes longer than {ENDLESS:g} s by its first call.",
        "Ratios above 1x say how many times longer a peer takes; *limit* is Szilard's",
        "time over that of a bare pass over the same bytes, or of the bare matrix product; *memory* is by how much",
        "the call raised the process's resident memory at its worst, results included. A target that is missed",
        "stays in the table.",
    ]
    for family in FAMILIES:
        path = RESULTS / f"{family}.json"
        if not path.exists():
            continue
        stored = json.loads(path.read_text())
        results = [Result(**row) for row in stored["results"]]
        lines += ["", f"## {family}", "", (import_module(family).__doc__ or "").strip(), ""]
        lines += [", ".join(f"{key} {value}" for key, value in stored["machine"].items()), ""]
        lines += [
            "| work | time | others / szilard | of the limit | memory | largest difference | targets |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for result in results:
            time_, others, limit, memory, _ = columns(result)
            differences = ", ".join(
                f"{n} {e:.0e}" if e else f"{n} 0" for n, e in result.errors.items()
            )
            targets = "; ".join(
                f"{name} {measured:.3g} ({'missed' if name in result.missed else 'met'}: {asked:.3g})"
                for name, (measured, asked) in result.targets.items()
            )
            lines.append(
                f"| {result.work} | {time_} | {others} | {limit} | {memory} | {differences} | {targets} |"
            )
        for name in plots(family, results):
            lines += ["", f"![time of {family} over problem size](assets/benchmarks/{name})"]
    PAGE.write_text("\n".join(lines) + "\n")


def plots(family: str, results: list[Result]) -> list[str]:
    """Time over problem size, one SVG for each axis that the family sweeps."""
    axes = dict.fromkeys(r.sweep[0] for r in results if r.sweep is not None)
    names = []
    for number, axis in enumerate(axes):
        swept = sorted(
            (r for r in results if r.sweep is not None and r.sweep[0] == axis),
            key=lambda r: r.sweep[1] if r.sweep else 0,
        )
        figure = Figure(figsize=(7, 4), layout="constrained")
        plot = figure.add_subplot(xscale="log", yscale="log", xlabel=axis, ylabel="time (ms)")
        for contender in dict.fromkeys(name for r in swept for name in r.seconds):
            points = [
                (r.sweep[1], 1e3 * r.seconds[contender])
                for r in swept
                if r.sweep is not None and contender in r.seconds
            ]
            # What a bare pass costs is the floor, drawn apart from who competes.
            style = ":" if contender == swept[0].limit else "-"
            width = 2.5 if contender == "szilard" else 1.2
            plot.plot(*zip(*points, strict=True), style, marker="o", lw=width, label=contender)
        plot.grid(True, which="both", alpha=0.25)
        plot.legend(frameon=False)
        PLOTS.mkdir(parents=True, exist_ok=True)
        names.append(f"{family}-{number + 1}.svg")
        with rc_context({"svg.hashsalt": "szilard"}):  # the same data draw the same file
            figure.savefig(PLOTS / names[-1], metadata={"Date": None})
    return names


if __name__ == "__main__":
    sys.exit(main())
