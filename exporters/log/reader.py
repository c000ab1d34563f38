"""
Reading a log: of a daemon that runs, that was killed, or of a folder that was copied.

A reader takes no lock and needs no right but to read. It looks at the folder once, and all
its answers are of that moment, until `refresh`. What is not what was written is passed over
and named in `problems`; the rest is told.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import duckdb

from exporters.log.journeys import StoredJourney, read_journey
from exporters.log.rulesets import read_text
from exporters.log.select import Selection, matches_journey, where
from exporters.log.snapshot import Problem, Snapshot
from exporters.log.steps import Steps
from tracer.core.log_rows import Change, Loss
from tracer.core.log_schema import TABLES, Kind
from tracer.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from tracer.core.log_schema import Table

__all__ = ["LogReader", "Problem"]

_SQL_TYPES = {
    Kind.I64: "BIGINT",
    Kind.U64: "UBIGINT",
    Kind.U32: "UINTEGER",
    Kind.U16: "USMALLINT",
    Kind.U8: "UTINYINT",
    Kind.WORD: "VARCHAR",
    Kind.TEXT: "VARCHAR",
    Kind.BYTES: "BLOB",
}
#: Rows of one batch that is handed out.
_BATCH_ROWS = 65_536
#: Times to look anew where segments were retired while they were being read.
_TRIES = 5
_MEMORY_MB = 300


class LogReader:
    """Tells what a log holds."""

    def __init__(
        self, directory: Path, memory_mb: int = _MEMORY_MB, *, is_steady: bool = False
    ) -> None:
        """
        Look at the log in *directory*; DuckDB takes *memory_mb* at most.

        Where *is_steady*, times are as the clock was last set (see `Steps`), else as written.
        Errors: OutputError where there is no such folder, or it may not be read.
        """
        self._directory = directory
        self._base = duckdb.connect(":memory:")
        self._base.execute(f"SET memory_limit = '{memory_mb}MB'")
        self._base.execute("SET preserve_insertion_order = false")
        # Nothing is written beside a log that is only read.
        self._base.execute("SET temp_directory = ''")
        self._snapshot = Snapshot(directory)
        self._is_steady = is_steady
        self._steps: Steps | None = None

    @property
    def problems(self) -> list[Problem]:
        """What was found so far that is not as it was written, in the order of the names."""
        return self._snapshot.problems()

    def refresh(self) -> None:
        """Look at the folder anew."""
        self._snapshot = Snapshot(self._directory, self._snapshot)
        self._steps = None

    def span(self) -> tuple[int, int] | None:
        """Return the times of the first and the last event, ns UTC; None for an empty log."""
        span = self._snapshot.span()
        if span is None or not self._find_steps():
            return span
        # The names of segments have times as written.
        rows = " UNION ALL ".join(f"SELECT time_ns FROM {name}" for name in TABLES)  # noqa: S608
        return self.query(f"SELECT min(time_ns), max(time_ns) FROM ({rows})")[0]  # noqa: S608

    def _find_steps(self) -> Steps:
        if self._steps is None:
            # They are looked for by times as written.
            self._steps = Steps()
            if not self._is_steady:
                return self._steps
            sql = "SELECT ordinal, before, after FROM changes WHERE what = 'clock' ORDER BY ordinal"
            self._steps = Steps(self.query(sql))
        return self._steps

    def query(
        self, sql: str, selection: Selection | None = None, values: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        """
        Return the rows that DuckDB answers with.

        *sql* names the tables drops, journeys, changes and losses: each has those rows only
        that *selection* chooses, journeys those that may match. *values* stand for question
        marks.
        Errors: duckdb.Error for what is no query.
        """
        rows: list[tuple[Any, ...]] = self._run(sql, selection or Selection(), values, "fetchall")
        return rows

    def arrow(
        self, sql: str, selection: Selection | None = None, values: Sequence[object] = ()
    ) -> Any:  # noqa: ANN401 - pyarrow has no types
        """Return what `query` does as a pyarrow table."""
        return self._run(sql, selection or Selection(), values, "to_arrow_table")

    def batches(self, table: str, selection: Selection | None = None) -> Iterator[Any]:
        """
        Yield a table's chosen rows as pyarrow batches, in the order they were written.

        One segment at a time is in memory. Of journeys, those that may match.
        Errors: KeyError for a table that there is none of.
        """
        selection = selection or Selection()
        condition = _filled(*where(table, selection))
        for path, columns in self._snapshot.sealed(table, selection):
            source = f"read_parquet({_quoted(path)})"
            yield from self._segment(TABLES[table], columns, source, condition)
        for found in self._snapshot.open(table):
            with self._base.cursor() as cursor:
                cursor.register("open_segment", found)
                yield from self._segment(
                    TABLES[table], found.column_names, "open_segment", condition, cursor
                )

    def _segment(
        self,
        table: Table,
        columns: Sequence[str],
        source: str,
        condition: str,
        cursor: Any = None,  # noqa: ANN401 - duckdb has no types
    ) -> Iterator[Any]:
        select = f"SELECT {_projection(table, columns)} FROM {source}"  # noqa: S608 - ours
        sql = f"SELECT * FROM ({select}) WHERE {condition} ORDER BY ordinal"  # noqa: S608 - ours
        try:
            found = (cursor or self._base).sql(sql).to_arrow_table()
        except duckdb.IOException as exc:
            if not self._snapshot.is_stale():
                raise
            self._snapshot.note(source, "retired", f"gone before it was read: {exc}")
            return
        yield from found.to_batches(_BATCH_ROWS)

    def journeys(self, selection: Selection | None = None) -> Iterator[StoredJourney]:
        """Yield the journeys that match, in the order they were written."""
        selection = selection or Selection()
        sql = "SELECT time_ns, json, network, transport FROM journeys ORDER BY ordinal"
        for row in self.query(sql, selection):
            stored = self._stored(row)
            if stored is not None and matches_journey(selection.filter, stored.journey):
                yield stored

    def journey(self, journey_id: str) -> StoredJourney | None:
        """Return the journey of that id, None where the log has none."""
        sql = "SELECT time_ns, json, network, transport FROM journeys WHERE id = ? LIMIT 1"
        found = self.query(sql, values=[journey_id])
        return self._stored(found[0]) if found else None

    def journey_ids(self, beginning: str, most: int) -> list[str]:
        """Return the ids of journeys that begin so, *most* at most, in order."""
        sql = "SELECT DISTINCT id FROM journeys WHERE starts_with(id, ?) ORDER BY id LIMIT ?"
        return [found for (found,) in self.query(sql, values=[beginning, most])]

    def changes(self, selection: Selection | None = None) -> list[Change]:
        """Return what changed, in the order it was written."""
        return [Change(*row) for row in self._values(Change, "changes", selection)]

    def losses(self, selection: Selection | None = None) -> list[Loss]:
        """Return what is not in the log, in the order it was written."""
        return [Loss(*row) for row in self._values(Loss, "losses", selection)]

    def text(self, name: str) -> str | None:
        """Return a ruleset's text by the name that changes have it under."""
        try:
            return read_text(self._directory, name)
        except ValueError as exc:
            self._snapshot.note(f"rulesets/{name}.gz", "damaged", str(exc))
            return None

    def close(self) -> None:
        """Let go of everything; harmless when repeated."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _values(
        self, kind: type[Change | Loss], table: str, selection: Selection | None
    ) -> list[tuple[Any, ...]]:
        names = ", ".join(kind.__dataclass_fields__)
        sql = f"SELECT {names} FROM {table} ORDER BY ordinal"  # noqa: S608 - our own names
        return self.query(sql, selection)

    def _stored(self, row: tuple[Any, ...]) -> StoredJourney | None:
        time_ns, line, network, transport = row
        try:
            return StoredJourney(read_journey(line, time_ns), network, transport)
        except ValueError as exc:
            self._snapshot.note("journeys", "damaged", str(exc))
            return None

    def _run(
        self,
        sql: str,
        selection: Selection,
        values: Sequence[object],
        fetch: str,
    ) -> Any:  # noqa: ANN401 - as duckdb has it
        self._find_steps()
        for _ in range(_TRIES):
            try:
                with self._base.cursor() as cursor:
                    self._make_views(cursor, sql, selection)
                    return getattr(cursor.sql(sql, params=list(values)), fetch)()
            except duckdb.IOException:
                if not self._snapshot.is_stale():
                    raise
                self.refresh()
        message = f"the log {self._directory} changes faster than it can be read"
        raise OutputError(message, "ask for a shorter time")

    def _make_views(self, cursor: Any, sql: str, selection: Selection) -> None:  # noqa: ANN401
        for name, table in TABLES.items():
            if not re.search(rf"\b{name}\b", sql):
                continue
            condition, given = where(name, selection)
            body = self._body(cursor, table, selection)
            # A view takes no parameters: ours are numbers, and words that are quoted.
            text = _filled(condition, given)
            cursor.execute(
                f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM ({body}) WHERE {text}"  # noqa: S608
            )

    def _body(self, cursor: Any, table: Table, selection: Selection) -> str:  # noqa: ANN401
        parts = []
        groups: dict[tuple[str, ...], list[Path]] = {}
        steps = self._find_steps()
        time = steps.sql()
        for path, columns in self._snapshot.sealed(table.name, steps.as_written(selection)):
            groups.setdefault(columns, []).append(path)
        for columns, paths in groups.items():
            files = ", ".join(map(_quoted, paths))
            source = f"read_parquet([{files}])"
            parts.append(f"SELECT {_projection(table, columns, time)} FROM {source}")  # noqa: S608
        for number, found in enumerate(self._snapshot.open(table.name)):
            name = f"open_{table.name}_{number}"
            cursor.register(name, found)
            select = _projection(table, found.column_names, time)
            parts.append(f"SELECT {select} FROM {name}")  # noqa: S608 - ours
        if not parts:
            parts.append(f"SELECT {_projection(table, ())} WHERE false")
        return " UNION ALL ".join(parts)


def _projection(table: Table, there: Sequence[str], time: str = "time_ns") -> str:
    """Return the select list of all of today's columns out of those that are *there*."""
    parts = []
    for column in table.columns:
        sql_type = _SQL_TYPES[column.kind]
        if column.name == "time_ns" and column.name in there:
            parts.append(f"({time})::{sql_type} AS time_ns")
        elif column.name in there:
            parts.append(f"{column.name}::{sql_type} AS {column.name}")
        else:
            default = column.default if isinstance(column.default, int) else "''"
            parts.append(f"{default}::{sql_type} AS {column.name}")
    return ", ".join(parts)


def _quoted(text: object) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def _filled(condition: str, values: Sequence[object]) -> str:
    pieces = condition.split("?")
    filled = [str(value) if isinstance(value, int) else _quoted(value) for value in values]
    return "".join(piece + value for piece, value in zip(pieces, [*filled, ""], strict=True))
