"""Who may add to a table, and how: one writer, that resumes what is there and loses nothing. Imports no torch.

No measurement is ever deleted. What has to give way to a new one (an example, a prediction, what --overwrite starts
anew from) is renamed, and only when the new run has its first result.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.measurement import PointFailure, PointSample
from llm_profile.points import SweepPoint, canonical_order
from llm_profile.records import ROW_SCHEMA, PointRecord
from llm_profile.store.conditions import differences
from llm_profile.store.files import csv_damage, load_table, read_meta, write_table
from llm_profile.store.journal import Journal, JournalContents, read_journal
from llm_profile.store.paths import TablePaths
from llm_profile.store.storage import locked, storage_errors, sync_folder, to_json, write_whole
from llm_profile.store.table import LatencyTable

if TYPE_CHECKING:  # backends stand above tables
    from llm_profile.block_kinds import BlockKind

KEPT_TABLE = "{stem}.{label}{ending}"
"""New name of a table that gives way and stays a table: `<model>.example.csv`."""

KEPT_FILES = "{stem}{ending}.{label}"
"""New name of files that --overwrite starts anew from, which may be no table: `<model>.csv.bak`."""


@dataclass(frozen=True)
class TableHeader:
    """What all runs that share a table have in common: the first line of its journal, and part of its metadata.

    clock: what its nanoseconds are. kinds: of the model's blocks. config: the model's configuration. source: where the
    model came from at first, which alone may differ.
    """

    hardware: str
    model: str
    clock: str
    conditions: Mapping[str, Any]
    kinds: "Sequence[BlockKind]"
    source: Mapping[str, Any]
    config: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """As files have it."""
        kinds = [asdict(kind) for kind in self.kinds]
        header = {"row_schema": ROW_SCHEMA, "hardware": self.hardware, "model": self.model, "origin": "measured"}
        header |= {"clock": self.clock, "conditions": dict(self.conditions), "kinds": kinds}
        return _as_read(header | {"source": dict(self.source), "config": dict(self.config)})


@dataclass(frozen=True)
class TableRun:
    """What one run adds to a table.

    points: those asked for. grid: how, one of sweep.GRID_NAMES. record: what is kept of the run and never compared.
    append: points that no run before asked for may be added. overwrite: start the table anew. Raises UsageError for
    both at once.
    """

    points: Collection[SweepPoint]
    record: Mapping[str, Any]
    grid: str = "full"
    append: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.append and self.overwrite:
            raise UsageError("--append adds to a table and --overwrite starts it anew: use one of them")


class TableWriter:
    """Measures go in, a table comes out: entering locks and loads, `add` grows the journal, `finish` writes the table.

    to_csv: makes the content of the CSV. table: what is known, from entering on.

    Entering raises UsageError when another process writes the table, when what is there is not ours or is damaged, when
    it was measured under other conditions or has other points; every method does when the file system refuses.
    Leaving without `finish` keeps the journal: the same request then goes on where this one stopped.
    """

    table: LatencyTable

    def __init__(
        self, paths: TablePaths, header: TableHeader, run: TableRun, to_csv: Callable[[LatencyTable], bytes]
    ) -> None:
        self._paths = paths
        self._header = header.record()
        self._asked = run
        self._run = _as_read(dict(run.record))
        self._to_csv = to_csv
        self._contents = JournalContents()
        self._journal: Journal | None = None
        self._gives_way: list[tuple[Path, Path]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(locked(self._paths.lock, self._paths.csv))
            with storage_errors("read", self._paths.csv):
                self.table = self._load()
                self._mend_csv()
            self._run["index"] = 1 + max((run["index"] for run in self.table.meta["runs"]), default=-1)
            self._lock = stack.pop_all()
        return self

    def _load(self) -> LatencyTable:
        """What is there and may be added to, or an empty table."""
        paths = self._paths
        fresh = LatencyTable(self._header["hardware"], self._header["model"], self._header | {"runs": []})
        if self._asked.overwrite:
            self._gives_way = _renames(
                (paths.host, paths.journal, paths.csv, paths.rows, paths.meta), KEPT_FILES, "bak"
            )
            return fresh
        meta = read_meta(paths)
        if meta is not None and meta["origin"] != "measured":
            self._gives_way = _renames((paths.csv, paths.rows, paths.meta), KEPT_TABLE, meta["origin"])
            meta = None
        self._contents = read_journal(paths.journal)
        table = load_table(paths, meta, self._contents)
        if table is None:
            return fresh
        if differing := differences(table.meta, self._header):
            raise UsageError(
                f"{paths.csv}: measured under other conditions: {'; '.join(differing)}; use the same, or another "
                "--output-dir or --model-name, or start anew with --overwrite"
            )
        others = sorted((table.measured_points() | table.missing.keys()) - {*self._asked.points}, key=canonical_order)
        if others and not self._asked.append and not table.covers(self._asked.points, self._asked.grid):
            raise UsageError(
                f"{paths.csv}: has {len(others)} points outside the asked ranges (the first: {others[0]}); "
                "add to it with --append, or start anew with --overwrite"
            )
        return table

    def _mend_csv(self) -> None:
        """Write the CSV of a complete table anew where it is not what the rows file says; the old one is kept."""
        paths = self._paths
        if not self.table.records or paths.journal.exists():
            return
        csv = self._to_csv(self.table)
        damage = csv_damage(paths, csv)
        if damage is None:
            return
        with storage_errors("write", paths.csv):
            for old, new in _renames((paths.csv,), KEPT_FILES, "damaged"):
                os.rename(old, new)
        write_whole(paths.csv, csv)
        self.table.notices.append(f"{paths.csv} {damage}; it is written anew from there, the old one kept as .damaged")

    def done(self) -> set[SweepPoint]:
        """The points that are measured. Missing ones are not among them: a new run tries them again."""
        return self.table.measured_points()

    def add(self, result: PointSample | PointFailure) -> None:
        """Keep what came of a point; it outlives a kill from here on. The same failure again changes nothing."""
        point = result.point
        if not isinstance(point, SweepPoint):
            raise TypeError(f"a result is of a SweepPoint, not of {point!r}")
        known = PointRecord.of(result, self._run["index"]) if isinstance(result, PointSample) else result.reason
        # In memory first: an interrupt between the two must not let finish() remove a journal that knows more.
        if self.table.learn(point, known):
            self._open_journal().write_result(point, known)

    def fill(self, point: SweepPoint, record: PointRecord) -> None:
        """Take in what follows from measured points; it goes into no journal, since it can be had again."""
        self.table.learn(point, record)

    @property
    def run_index(self) -> int:
        """Which run of the table this one is."""
        index: int = self._run["index"]
        return index

    def _open_journal(self) -> Journal:
        """The journal, opened by the first result of a run."""
        if self._journal is None:
            self._give_way()
            journal = Journal(self._paths.journal, self._contents)
            if self._contents.header is None:
                journal.write_header(self._header)
            journal.write_run(self._run)
            self._journal = journal
            if self._run not in self.table.meta["runs"]:
                self.table.meta["runs"].append(self._run)
        return self._journal

    def _give_way(self) -> None:
        with storage_errors("write", self._paths.csv):
            for old, new in self._gives_way:
                os.rename(old, new)
        self._gives_way = []

    def sync(self) -> None:
        """Make all that was added last through a power cut. `add` does it too when the last time was 5 s ago."""
        if self._journal is not None:
            self._journal.sync()

    def finish(self) -> None:
        """Write the table's files, then remove the journal. Does nothing when there is nothing new to write."""
        if not self.table.records and not self.table.missing:
            return
        paths = self._paths
        if not paths.journal.exists():
            return
        self._give_way()
        if self._journal is None:
            self._journal = Journal(paths.journal, self._contents)
        write_table(self.table, paths, self._to_csv(self.table), self._journal.write_files)
        # Only now is all that the journal knows elsewhere. After a kill before this, it is read over the new files.
        self._close_journal()
        with storage_errors("write", paths.journal):
            paths.journal.unlink(missing_ok=True)
            sync_folder(paths.journal.parent)
        self._contents = JournalContents()

    def _close_journal(self) -> None:
        if self._journal is not None:
            journal, self._journal = self._journal, None
            journal.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            try:
                self._close_journal()
            except UsageError:
                if error is None:
                    raise


def _as_read(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it will be once it is written and read again."""
    read: dict[str, Any] = parse_json(to_json(record))
    return read


def _renames(paths: Sequence[Path], template: str, label: str) -> list[tuple[Path, Path]]:
    """Old and new names of those `paths` that are there, under one label, which gets a number when it is taken.

    The metadata comes last in `paths`: killed in between, the next start still knows what the rest is.
    """
    stem = paths[-1].name.removesuffix(".meta.json")
    for number in count(1):
        numbered = label if number == 1 else f"{label}{number}"
        new_names = [template.format(stem=stem, ending=p.name.removeprefix(stem), label=numbered) for p in paths]
        moves = [(path, path.with_name(name)) for path, name in zip(paths, new_names, strict=True)]
        if not any(new.exists() for _, new in moves):
            break
    return [(old, new) for old, new in moves if old.exists()]
