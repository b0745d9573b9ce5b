"""Where results live: `runs/<slug>/<config hash>/`, one Parquet file a finished unit.

A unit file is written under a temporary name, flushed to disk and renamed, so a file that bears a
unit's name is whole unless something else damaged it; page checksums and the labels inside each file
tell a damaged or foreign file from a unit.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from szilard.lab.experiment import ExperimentConfig

if TYPE_CHECKING:
    import pandas as pd

ENVIRONMENT = "SZILARD_RUNS"
_LABEL = b"szilard.unit"
_LONGEST_NAME = 100

Warn = Callable[[str], None]


class StoreError(RuntimeError):
    """The run folder can't be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One (arm, seed) of an experiment."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """File name without its ending; any arm name is safe in it."""
        arm = quote(self.arm, safe=" ()+=,")
        if len(arm) > _LONGEST_NAME:
            arm = arm[:_LONGEST_NAME] + "~" + hashlib.sha256(self.arm.encode()).hexdigest()[:8]
        return f"{arm}--{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Label:
    """What a unit file says about itself, in the metadata of its Parquet schema."""

    slug: str
    run: str
    arm: str
    seed: int
    code: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that raised or whose process died."""

    unit: Unit
    error: str
    traceback: str


def runs_root(given: Path | None = None) -> Path:
    """The folder of all runs: the one given, else $SZILARD_RUNS, else `./runs`."""
    return given or Path(os.environ.get(ENVIRONMENT) or "runs")


def canonical_json(config: ExperimentConfig) -> str:
    """A configuration as JSON with sorted keys, without loss (infinities included)."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def config_hash(config: ExperimentConfig) -> str:
    """Names a run. The number of seeds is left out, so that more seeds extend a run.

    Examples:
        >>> from szilard.lab.experiment import ExperimentConfig
        >>> config_hash(ExperimentConfig(seeds=2)) == config_hash(ExperimentConfig(seeds=5))
        True
    """
    content = config.model_dump(mode="json", exclude={"seeds"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Run:
    """The folder of one experiment under one configuration."""

    def __init__(self, root: Path, slug: str, name: str) -> None:
        self.slug, self.name = slug, name
        self.path = root / slug / name

    @classmethod
    def of(cls, root: Path, slug: str, config: ExperimentConfig) -> Run:
        return cls(root, slug, config_hash(config))

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def prepare(self) -> None:
        """Creates the folder and proves that it can be written.

        Raises:
            StoreError: it can't.
        """
        probe = self.path / f".probe.{os.getpid()}.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"the run folder {self.path} can't be written ({error.strerror}); "
                f"choose another with --runs DIR or {ENVIRONMENT}"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder, or says who does.

        Raises:
            StoreError: another process holds it.
        """
        lock, holder = filelock.FileLock(self.path / ".lock"), self.path / ".holder.json"
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            try:
                who = json.loads(holder.read_text())
                by = f"process {who['pid']} on {who['host']} since {who['since']}"
            except (OSError, ValueError, KeyError):
                by = "another process"
            raise StoreError(
                f"{self.path} is being written by {by}; wait for it to end, or choose another "
                f"folder with --runs DIR"
            ) from None
        try:
            me = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            _write_whole(holder, json.dumps(me).encode())
            # Only a process that was killed leaves these: nobody else writes while we hold the lock.
            for left_over in self.path.glob(".*.tmp"):
                left_over.unlink(missing_ok=True)
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def unit_path(self, unit: Unit) -> Path:
        return self.path / f"{unit.name}.parquet"

    def write_unit(self, unit: Unit, table: pa.Table, *, code: str, seconds: float) -> None:
        """Writes a finished unit, whole or not at all."""
        label = Label(self.slug, self.name, unit.arm, unit.seed, code, seconds)
        metadata = {_LABEL: json.dumps(asdict(label)).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(
            table.replace_schema_metadata(metadata),
            sink,
            compression="zstd",
            write_page_checksum=True,
        )
        _write_whole(self.unit_path(unit), sink.getvalue())
        self._failure_path(unit).unlink(missing_ok=True)

    def read_unit(self, unit: Unit, *, code: str | None, warn: Warn) -> pa.Table | None:
        """Rows of a finished unit, or None where it must be computed.

        A file that is damaged, foreign, mislabelled or was made by other code is named in a warning.

        Args:
            unit: the unit.
            code: digest of the present code, None to accept results of any.
            warn: receives one sentence a refused file.
        """
        path = self.unit_path(unit)
        if not path.exists():
            return None
        found = _read(path)
        if isinstance(found, str):
            warn(f"{path}: {found}; the unit counts as not run")
            return None
        table, label = found
        if (label.slug, label.run, label.arm, label.seed) != (
            self.slug,
            self.name,
            unit.arm,
            unit.seed,
        ):
            warn(
                f"{path}: holds {label.slug}/{label.run}, {label.arm}, seed {label.seed}, which is "
                f"not what its name says; the unit counts as not run"
            )
            return None
        if code is not None and label.code != code:
            warn(f"{path}: computed by another version of the method's code; the unit is run again")
            return None
        return table

    def foreign_files(self) -> list[Path]:
        """Parquet files in the folder that are no unit of any run."""
        return [path for path in sorted(self.path.glob("*.parquet")) if label_of(path) is None]

    def read_table(self, units: Sequence[Unit], *, warn: Warn) -> pd.DataFrame:
        """Rows of those of the units that are finished, in the units' order."""
        tables = [self.read_unit(unit, code=None, warn=warn) for unit in units]
        finished = [table for table in tables if table is not None]
        if not finished:
            raise StoreError(f"no unit is finished in {self.path}")
        return pa.concat_tables(finished, promote_options="permissive").to_pandas()

    def forget_units(self) -> None:
        """Removes every unit and failure, to start afresh. Foreign files stay."""
        for path in self.path.glob("*.parquet"):
            if label_of(path) is not None:
                path.unlink()
        for path in self.path.glob("*.failed.json"):
            path.unlink()

    def write_failure(self, failure: Failure) -> None:
        _write_whole(
            self._failure_path(failure.unit), json.dumps(asdict(failure), indent=1).encode()
        )

    def read_failures(self, units: Sequence[Unit]) -> list[Failure]:
        failures = []
        for unit in units:
            content = _read_json(self._failure_path(unit))
            if content is not None and not self.unit_path(unit).exists():
                failures.append(
                    Failure(unit, content.get("error", ""), content.get("traceback", ""))
                )
        return failures

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes `manifest.json` or `results.json`, whole or not at all."""
        _write_whole(self.path / name, json.dumps(content, indent=1).encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Its content, or None where it is missing or damaged."""
        return _read_json(self.path / name)

    def write_report(self, html: str) -> None:
        _write_whole(self.report, html.encode())

    def _failure_path(self, unit: Unit) -> Path:
        return self.path / f"{unit.name}.failed.json"


def runs(root: Path, slug: str | None = None) -> list[Run]:
    """All runs under `root` that have a readable manifest, the oldest first."""
    found = []
    for manifest in root.glob(f"{slug or '*'}/*/manifest.json"):
        run = Run(root, manifest.parent.parent.name, manifest.parent.name)
        content = run.read_json("manifest.json")
        if content is not None:
            found.append((str(content.get("started", "")), run.slug, run.name, run))
    return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:3])]


def query(sql: str, root: Path) -> pd.DataFrame:
    """Answers SQL over the view `units`: every row of every run, with `slug` and `run` columns.

    Args:
        sql: a DuckDB query, such as `select slug, avg(value) from units group by slug`.
        root: the folder of all runs.

    Raises:
        StoreError: there is no finished unit yet.
    """
    import duckdb

    files = [str(path) for path in sorted(root.glob("*/*/*.parquet")) if label_of(path) is not None]
    if not files:
        raise StoreError(f"no finished unit under {root}")
    with duckdb.connect() as connection:
        everything = connection.read_parquet(files, union_by_name=True, filename=True)
        everything.create_view("files")
        connection.execute(
            "create view units as select string_split(filename, '/')[-3] as slug, "
            "string_split(filename, '/')[-2] as run, * exclude (filename) from files"
        )
        return connection.sql(sql).df()


def label_of(path: Path) -> Label | None:
    """The label of a unit file; None where the file is damaged or not a unit."""
    try:
        return _label(pq.read_schema(path))
    except (OSError, ValueError, TypeError):
        return None


def now() -> str:
    """The present time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _label(schema: pa.Schema) -> Label | None:
    content = (schema.metadata or {}).get(_LABEL)
    return None if content is None else Label(**json.loads(content))


def _read(path: Path) -> tuple[pa.Table, Label] | str:
    """Rows and label of a unit file, or what is wrong with it."""
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        label = _label(table.schema)
    except (OSError, ValueError, TypeError) as error:
        return f"damaged or not a Parquet file ({str(error).splitlines()[0]})"
    if label is None:
        return "a Parquet file, but not one of szilard's"
    return table.replace_schema_metadata(None), label


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Writes a file so that whoever finds it under its name finds all of it, even after a crash."""
    temporary = path.with_name(f".{path.name[:_LONGEST_NAME]}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
