"""
The event log on disk: a writer for the daemon, and a reader for every view.

`LogWriter` appends batches of columns; `LogReader` answers with rows, DuckDB's answers to
SQL, journeys as values, changes and losses. `docs/log.md` describes files, tables, limits.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Imported when they are asked for: who writes has no use for DuckDB, nor has the sealer.
_WHERE = {
    "LogOptions": "options",
    "LogReader": "reader",
    "LogStatus": "writer",
    "LogWriter": "writer",
    "Problem": "snapshot",
    "Selection": "select",
    "StoredJourney": "journeys",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
