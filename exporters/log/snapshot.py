"""The segments of a log as they were at one moment, each looked at before it is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from exporters.log.encode import read_stream
from exporters.log.seal import crc_of
from exporters.log.segments import list_segments
from tracer.core.log_schema import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exporters.log.segments import Open, Sealed
    from exporters.log.select import Selection

__all__ = ["Problem", "Snapshot"]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """
    Something in the folder that is not told, or not all of it.

    *kind*: torn (the end is missing, as where a writer is at work or was killed), damaged,
    foreign (no file of a log), or newer (written by a later version: what that added is
    passed over).
    """

    name: str
    kind: str
    what: str


class Snapshot:
    """Segments at one moment; what was checked once is not checked again."""

    def __init__(self, directory: Path, before: Snapshot | None = None) -> None:
        self._listing = list_segments(directory)
        #: By path: the columns of a segment that is whole, None for one that is not.
        self._columns: dict[Path, tuple[str, ...] | None] = {}
        self._opened: dict[str, list[Any]] = {}
        self._problems: dict[tuple[str, str], Problem] = {}
        if before is not None:
            there = {one.path for one in self._listing.sealed}
            self._columns = {p: c for p, c in before._columns.items() if p in there}  # noqa: SLF001
            names = {path.name for path in there}
            kept = before._problems.items()  # noqa: SLF001 - our own kind
            self._problems = {key: found for key, found in kept if key[0] in names}
        for name in self._listing.foreign:
            if name.endswith(".damaged"):
                self.note(name, "damaged", "a segment of which nothing could be read")
            else:
                self.note(name, "foreign", "not a file of this log")

    def note(self, name: str, kind: str, what: str) -> None:
        """Remember a problem, once."""
        self._problems.setdefault((name, kind), Problem(name, kind, what))

    def problems(self) -> list[Problem]:
        """Return what was found so far."""
        return sorted(self._problems.values())

    def span(self) -> tuple[int, int] | None:
        """Return the times of the first and the last event; None where there is none."""
        times = [(one.begin_ns, one.end_ns) for one in self._listing.sealed]
        for table in {one.table for one in self._listing.open}:
            for found in self.open(table):
                stamps = found["time_ns"].to_numpy()
                times.append((int(stamps.min()), int(stamps.max())))
        if not times:
            return None
        return min(begin for begin, _ in times), max(end for _, end in times)

    def is_stale(self) -> bool:
        """Tell whether a segment is gone that was there."""
        return not all(one.path.exists() for one in self._listing.sealed)

    def sealed(self, table: str, selection: Selection) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield the segments that may hold chosen rows, in order, each with its columns."""
        for one in self._listing.sealed:
            if one.table == table and _overlaps(one, selection):
                columns = self._check(one)
                if columns is not None:
                    yield one.path, columns

    def open(self, table: str) -> list[Any]:
        """Return what the table's open segments hold, a pyarrow table for each set of columns."""
        if table not in self._opened:
            groups: dict[tuple[str, ...], list[Any]] = {}
            for one in self._listing.open:
                found = self._read(one) if one.table == table else None
                if found is not None:
                    groups.setdefault(tuple(found.column_names), []).append(found)
            # While sealing lags behind there are many: one to query for each set of columns.
            self._opened[table] = [
                pa.concat_tables(group, promote_options="permissive").unify_dictionaries()
                for group in groups.values()
            ]
        return self._opened[table]

    def _check(self, one: Sealed) -> tuple[str, ...] | None:
        if one.path not in self._columns:
            try:
                self._columns[one.path] = self._columns_of(one)
            except FileNotFoundError:
                # Retired since: the next look does not find it.
                return None
        return self._columns[one.path]

    def _columns_of(self, one: Sealed) -> tuple[str, ...] | None:
        name = one.path.name
        rest = f"{one.last - one.first + 1:,} rows at most are not told"
        try:
            if crc_of(one.path) != one.crc:
                self.note(name, "damaged", f"not what was sealed; {rest}")
                return None
            schema = pq.read_schema(one.path)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as exc:
            self.note(name, "damaged", f"{' '.join(str(exc).split())[:200]}; {rest}")
            return None
        return tuple(schema.names) if self._is_ours(name, one.table, schema) else None

    def _read(self, one: Open) -> Any:  # noqa: ANN401 - a pyarrow table or None
        try:
            read = read_stream(one.path)
        except FileNotFoundError:
            # Sealed or removed since we looked: look again for what it became.
            return self._reread(one)
        except OSError as exc:
            self.note(one.path.name, "damaged", str(exc.strerror))
            return None
        if read.why is not None:
            kind = "torn" if read.is_torn else "damaged"
            self.note(one.path.name, kind, f"told up to where it is not whole: {read.why}")
        if not read.batches or not self._is_ours(one.path.name, one.table, read.schema):
            return None
        return pa.Table.from_batches([_widened(batch) for batch in read.batches])

    def _reread(self, one: Open) -> Any:  # noqa: ANN401 - a pyarrow table or None
        for now in list_segments(one.path.parent).sealed:
            if (now.table, now.first) == (one.table, one.first) and self._check(now) is not None:
                return pq.read_table(now.path)
        return None

    def _is_ours(self, name: str, table: str, schema: Any) -> bool:  # noqa: ANN401 - pyarrow
        metadata = schema.metadata or {}
        if metadata.get(b"nftrace.table") != table.encode():
            self.note(name, "foreign", f"it is named as {table}, and holds something else")
            return False
        said = metadata.get(b"nftrace.version", b"0")
        if said.isdigit() and int(said) > VERSION:
            what = f"version {int(said)} of the log, this nftrace knows {VERSION}"
            self.note(name, "newer", what)
        return True


def _widened(batch: Any) -> Any:  # noqa: ANN401 - a pyarrow batch
    """Return the batch with wide numbers for its words: many segments have more than one has."""
    columns = [
        pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), column.dictionary)
        if pa.types.is_dictionary(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _overlaps(one: Sealed, selection: Selection) -> bool:
    since, until = selection.since_ns, selection.until_ns
    return (since is None or one.end_ns >= since) and (until is None or one.begin_ns <= until)
