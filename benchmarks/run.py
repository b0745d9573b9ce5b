"""`make bench`: runs the benchmarks, prints their ratios, writes results and the docs page.

    python benchmarks/run.py [FAMILY ...]

Exits 1 where a target is missed.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness import Result, measure, save

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
FAMILIES = ("tokens", "typical", "ordinal")


def main() -> int:
    chosen = sys.argv[1:] or FAMILIES
    unknown = set(chosen) - set(FAMILIES)
    if unknown:
        print(f"no such family: {', '.join(sorted(unknown))}; there is {', '.join(FAMILIES)}")
        return 2
    console = Console()
    missed = []
    for family in chosen:
        results = []
        table = Table("work", "time", "others / szilard", "of the limit", "memory", "targets")
        for case in import_module(family).cases():
            with console.status(f"{case.kernel}: {case.work}"):
                result = measure(case)
            results.append(result)
            table.add_row(result.work, *columns(result))
            missed += [f"{result.kernel}, {result.work}: {name}" for name in result.missed]
        console.print(table, family)
        save(results, RESULTS / f"{family}.json")
    PAGE.write_text(page())
    print(f"page: {PAGE.relative_to(HERE.parent)}")
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


def columns(result: Result) -> list[str]:
    ours = result.seconds["szilard"]
    others = [name for name in result.seconds if name not in ("szilard", result.limit)]
    return [
        f"{1e3 * ours:.1f} ms",
        ", ".join(f"{name} {result.seconds[name] / ours:.1f}x" for name in others),
        f"{ours / result.seconds[result.limit]:.1f}x {result.limit}" if result.limit else "",
        f"{result.memory['szilard'] / 2**20:.1f} MiB",
        "missed" if result.missed else "met",
    ]


def page() -> str:
    """The docs page, from the stored results alone."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from its own output. Every row is one piece of work on the same arrays in one",
        "process: all answers are compared first, then everyone is timed seven times after a warm-up in an order that",
        "rotates, and medians are kept. Ratios above 1x say how many times longer a peer takes; *limit* is Szilard's time",
        "over that of a bare pass over the same bytes; *memory* is by how much the call raised the process's resident",
        "memory at its worst, results included. A target that is missed stays in the table.",
    ]
    for family in FAMILIES:
        path = RESULTS / f"{family}.json"
        if not path.exists():
            continue
        stored = json.loads(path.read_text())
        lines += ["", f"## {family}", "", (import_module(family).__doc__ or "").strip(), ""]
        lines += [", ".join(f"{key} {value}" for key, value in stored["machine"].items()), ""]
        lines += [
            "| work | time | others / szilard | of the limit | memory | largest difference | targets |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in stored["results"]:
            row["targets"] = {name: tuple(pair) for name, pair in row["targets"].items()}
            result = Result(**row)
            time, others, limit, memory, _ = columns(result)
            differences = ", ".join(
                f"{n} {e:.0e}" if e else f"{n} 0" for n, e in result.errors.items()
            )
            targets = "; ".join(
                f"{name} {measured:.1f} ({'missed' if name in result.missed else 'met'}: {asked:g})"
                for name, (measured, asked) in result.targets.items()
            )
            lines.append(
                f"| {result.work} | {time} | {others} | {limit} | {memory} | {differences} | {targets} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
