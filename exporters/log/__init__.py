"""
The event log on disk: a writer for the daemon, and a reader for every view.

`LogWriter` appends batches of columns; `LogReader` answers with rows, DuckDB's answers to
SQL, journeys as values, changes and losses. `docs/log.md` describes files, tables, limits.
"""

from exporters.log.journeys import StoredJourney
from exporters.log.options import LogOptions
from exporters.log.reader import LogReader
from exporters.log.select import Selection
from exporters.log.snapshot import Problem
from exporters.log.writer import LogStatus, LogWriter

__all__ = [
    "LogOptions",
    "LogReader",
    "LogStatus",
    "LogWriter",
    "Problem",
    "Selection",
    "StoredJourney",
]
