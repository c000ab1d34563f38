"""The segment that is being written: whole batches or nothing, also on a full disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exporters.log.encode import StreamEncoder
from exporters.log.options import open_new
from exporters.log.segments import open_name

if TYPE_CHECKING:
    from pathlib import Path

    from tracer.core.log_rows import Columns
    from tracer.core.log_schema import Table

__all__ = ["OpenSegment"]


class OpenSegment:
    """
    One table's open file.

    `encode` makes bytes of rows, `write` puts the bytes that wait into the file. Where the
    disk refuses, the file is cut back to its last whole batch and the bytes wait on.
    """

    def __init__(self, directory: Path, table: Table, first: int, began_s: float) -> None:
        self.path = directory / open_name(table.name, first)
        #: By the monotonic clock.
        self.began_s = began_s
        #: Bytes that are whole batches.
        self.size = 0
        self._encoder = StreamEncoder(table)
        self._descriptor = -1
        self._waiting = b""

    def has_room(self, columns: Columns) -> bool:
        """Tell whether the words of *columns* fit in here."""
        return self._encoder.has_room(columns)

    def encode(self, columns: Columns, rows: int) -> None:
        """
        Add rows to what waits.

        Errors: ValueError, TypeError or an Arrow error for columns that are not the table's.
        """
        self._waiting += self._encoder.encode(columns, rows)

    def write(self, group: str) -> None:
        """
        Write what waits.

        Errors: OSError; the file then ends with its last whole batch, and the next call
        tries again.
        """
        if not self._waiting:
            return
        if self._descriptor < 0:
            self._descriptor = open_new(self.path, group)
        try:
            at = 0
            view = memoryview(self._waiting)
            while at < len(view):
                at += os.write(self._descriptor, view[at:])
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """Force what was written onto the disk."""
        if self._descriptor >= 0:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
