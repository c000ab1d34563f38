"""
Columns as an Arrow IPC stream, batch by batch as bytes, and back.

The bytes are handed out, not written: whoever writes them knows what reached the file, and
can cut off what did not wholly, as on a full disk, and write it again. Each batch carries
the CRC-32 of its columns, so that a flipped bit is a tear and not another packet.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tracer.core.log_rows import Words
from tracer.core.log_schema import VERSION, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracer.core.log_rows import Columns
    from tracer.core.log_schema import Column, Table

__all__ = ["WORDS_MAX", "StreamEncoder", "StreamRead", "arrow_schema", "read_stream"]

#: Words of one column in one segment: its ids are 16 bits. More begin a new segment.
WORDS_MAX = 1 << 16
_WORD = pa.dictionary(pa.uint16(), pa.utf8())
_TYPES = {Kind.WORD: _WORD, Kind.TEXT: pa.utf8(), Kind.BYTES: pa.binary()}
_CRC = b"crc"
#: Every message of a stream begins with it.
_MARK = b"\xff\xff\xff\xff"
#: What Arrow says of a message that goes on behind the end of the file.
_TORN = re.compile(r"it is empty|only \d+ bytes available|[Ee]xpected to (be able to )?read")


def arrow_schema(table: Table) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return the table's schema, with what it is in the metadata."""
    fields = [
        pa.field(column.name, _TYPES.get(column.kind) or getattr(pa, column.kind.value)(), False)  # noqa: FBT003
        for column in table.columns
    ]
    return pa.schema(fields, {"nftrace.table": table.name, "nftrace.version": str(VERSION)})


class _Collected:
    """A file that keeps what is written to it until it is taken."""

    def __init__(self) -> None:
        self.closed = False
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        self._parts.append(bytes(part))
        return len(part)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


class _Dictionary:
    """The words of one column, in the order they came."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words = pa.array([], pa.utf8())

    def missing(self, words: Sequence[str]) -> int:
        return len(set(words) - self._ids.keys())

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, words: Sequence[str], of: Any) -> Any:  # noqa: ANN401 - arrays
        ids = np.array([self._ids.setdefault(word, len(self._ids)) for word in words], np.uint16)
        if len(self._words) != len(self._ids):
            self._words = pa.array(list(self._ids), pa.utf8())
        return pa.DictionaryArray.from_arrays(pa.array(ids[of]), self._words)


class StreamEncoder:
    """Turns columns of one table into the bytes of one stream."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._schema = arrow_schema(table)
        self._out = _Collected()
        options = pa.ipc.IpcWriteOptions(
            emit_dictionary_deltas=True,
            # Journeys are text that repeats itself; drops are too many to compress here.
            compression=None if table.name == "drops" else "zstd",
            use_threads=False,
        )
        self._writer = pa.ipc.new_stream(
            pa.PythonFile(self._out, "w"), self._schema, options=options
        )
        self._words = {
            column.name: _Dictionary() for column in table.columns if column.kind is Kind.WORD
        }

    def has_room(self, columns: Columns) -> bool:
        """Tell whether all words of *columns* have a place in this stream."""
        return all(
            len(known) + known.missing(_words_of(columns.get(name, ""))) <= WORDS_MAX
            for name, known in self._words.items()
        )

    def encode(self, columns: Columns, rows: int) -> bytes:
        """
        Return the bytes of a batch of *rows*; the stream's head is before the first.

        A column that is not given has its default in every row.
        Errors: ValueError for a column of another length.
        """
        arrays = [self._array(c, columns.get(c.name, c.default), rows) for c in self._table.columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._writer.write_batch(batch, custom_metadata={_CRC: b"%08x" % _checksum(batch)})
        return self._out.take()

    def _array(self, column: Column, values: Any, rows: int) -> Any:  # noqa: ANN401 - arrays
        if column.kind is Kind.WORD:
            if not isinstance(values, Words):
                words, of = _as_words(values, rows)
            else:
                words, of = values.words, values.of
            return self._words[column.name].encode(words, of)
        if column.kind in {Kind.TEXT, Kind.BYTES}:
            items = [values] * rows if isinstance(values, str | bytes) else list(values)
            return pa.array(items, _TYPES[column.kind])
        array = np.ascontiguousarray(np.broadcast_to(np.asarray(values, column.kind.value), rows))
        return pa.array(array)


def _words_of(values: Any) -> Sequence[str]:  # noqa: ANN401 - a column's values
    if isinstance(values, Words):
        return values.words
    return [values] if isinstance(values, str) else list(values)


def _as_words(values: Any, rows: int) -> tuple[Sequence[str], Any]:  # noqa: ANN401 - the same
    if isinstance(values, str):
        return [values], np.zeros(rows, np.uint16)
    words = list(dict.fromkeys(values))
    ids = {word: number for number, word in enumerate(words)}
    return words, np.fromiter((ids[value] for value in values), np.int64, rows)


def _checksum(batch: Any) -> int:  # noqa: ANN401 - pyarrow has no types
    """Return the CRC-32 over the columns' values, of words over their numbers."""
    crc = 0
    for column in batch.columns:
        array = column.indices if pa.types.is_dictionary(column.type) else column
        start, end = array.offset, array.offset + len(array)
        values = array.buffers()[-1]
        if pa.types.is_primitive(array.type):
            width = array.type.bit_width // 8
            values = memoryview(values)[start * width : end * width] if values else b""
        else:
            offsets = np.frombuffer(array.buffers()[1], np.int32)[start : end + 1]
            crc = zlib.crc32(np.diff(offsets).tobytes(), crc)
            values = memoryview(values)[offsets[0] : offsets[-1]] if values else b""
        crc = zlib.crc32(values, crc)
    return crc


@dataclass(frozen=True, slots=True)
class StreamRead:
    """What a stream had up to its end or its tear, and what was wrong there, if anything."""

    batches: tuple[Any, ...]
    schema: Any
    why: str | None

    @property
    def is_torn(self) -> bool:
        """Whether bytes are missing at the end, as where a writer is at work or was killed."""
        return self.why is not None and bool(_TORN.search(self.why))


def read_stream(path: Path) -> StreamRead:
    """
    Read an open segment: all whole batches before the first that is not.

    Errors: FileNotFoundError where it is gone; what is in it raises nothing.
    """
    batches: list[Any] = []
    schema = None
    if not path.stat().st_size:
        return StreamRead((), None, "it is empty")
    try:
        # Not mapped: the writer may cut a torn tail off while we read, and a mapping of what
        # is gone ends the process.
        with pa.OSFile(str(path)) as source:
            if not _MARK.startswith(source.read(len(_MARK))):
                return StreamRead((), None, "it is no stream")
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            schema = reader.schema
            while True:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                if (metadata or {}).get(_CRC) != b"%08x" % _checksum(batch):
                    return StreamRead(tuple(batches), schema, "a batch is not what was written")
                batch.validate(full=True)
                batches.append(batch)
    except FileNotFoundError:
        raise
    except StopIteration:
        return StreamRead(tuple(batches), schema, None)
    # Whatever the bytes are: pyarrow raises many kinds for what is no stream.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as exc:
        return StreamRead(tuple(batches), schema, " ".join(str(exc).split())[:200])
