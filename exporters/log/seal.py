"""Open segments into sealed ones, and old ones away; run in a process of its own."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from exporters.log.encode import read_stream
from exporters.log.options import open_new
from exporters.log.segments import Open, Sealed, list_segments, segment_bytes
from tracer.core.log_schema import TABLES, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["SealResult", "crc_of", "remove_leftovers", "retire", "seal"]

_ROW_GROUP = 1 << 17
_PIECE = 1 << 20
#: What each table may take of the log's size before its own oldest go; drops have the rest,
#: and are the first to go when the whole is too large.
_SHARES = {"journeys": 0.5, "changes": 0.2, "losses": 0.05}
#: Numbers that grow, told as differences.
_GROWING = ("time_ns", "ordinal")
#: Numbers that hardly ever come twice: a dictionary of them would be in the way.
_RANDOM = ("fingerprint", "tcp_seq", "tcp_ack")


@dataclass(frozen=True, slots=True)
class SealResult:
    """What became of an open segment; *left_bytes* lie behind a tear, *why* says which."""

    name: str | None
    rows: int
    left_bytes: int = 0
    why: str | None = None


def seal(segment: Open, group: str) -> SealResult:
    """
    Write *segment* as a Parquet file beside it, and remove it.

    Until the new name is there the old one is; a reader that sees both takes the new.
    What cannot be read at all is put aside as `NAME.damaged`, unless it is the torn head of
    a writer that was killed.
    Errors: OSError where the disk refuses: the open segment stays, nothing else is left.
    """
    try:
        read = read_stream(segment.path)
    except FileNotFoundError:
        return SealResult(None, 0, why="another sealed it")
    if not read.batches:
        left = 0 if read.why is None else segment_bytes(segment.path)
        if read.why is None or read.is_torn:
            segment.path.unlink()
        else:
            segment.path.rename(segment.path.with_suffix(".damaged"))
        return SealResult(None, 0, left, read.why)
    table = pa.Table.from_batches(read.batches).unify_dictionaries()
    left = segment_bytes(segment.path) - _stream_bytes(segment, read.why)
    sealed = _write(segment, table, group)
    segment.path.unlink()
    _sync_directory(segment.path.parent)
    return SealResult(sealed.name, table.num_rows, left, read.why)


def _stream_bytes(segment: Open, why: str | None) -> int:
    """Return how much of the file was read: all, or up to the tear."""
    if why is None:
        return segment_bytes(segment.path)
    at = 0
    with pa.OSFile(str(segment.path)) as source:
        messages = pa.ipc.MessageReader.open_stream(source)
        try:
            for _ in messages:
                at = source.tell()
        except (pa.ArrowException, OSError):
            pass
    return at


def _write(segment: Open, table: Any, group: str) -> Sealed:  # noqa: ANN401 - a pyarrow table
    directory = segment.path.parent
    temporary = directory / f".{segment.path.name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    descriptor = open_new(temporary, group)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write_parquet(file, segment.table, table)
            file.flush()
            os.fsync(file.fileno())
        times = table["time_ns"].to_numpy()
        sealed = Sealed(
            table=segment.table,
            first=segment.first,
            last=table["ordinal"][-1].as_py(),
            begin_ns=max(int(times.min()), 0),
            end_ns=max(int(times.max()), 0),
            crc=crc_of(temporary),
            path=directory,
        )
        sealed = replace(sealed, path=directory / sealed.name)
        temporary.rename(sealed.path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return sealed


def _write_parquet(file: Any, name: str, table: Any) -> None:  # noqa: ANN401 - pyarrow
    columns = TABLES[name].columns
    plain = {c.name for c in columns if c.name in {*_GROWING, *_RANDOM} or c.kind is Kind.BYTES}
    encoding = {
        **{c.name: "DELTA_BINARY_PACKED" for c in columns if c.name in _GROWING},
        **{c.name: "BYTE_STREAM_SPLIT" for c in columns if c.name in _RANDOM},
    }
    pq.write_table(
        table,
        file,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        compression_level=3,
        use_dictionary=[c.name for c in columns if c.name not in plain],
        column_encoding={k: v for k, v in encoding.items() if k in plain},
        write_page_index=True,
    )


def crc_of(path: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def retire(directory: Path, keep_s: float, size_bytes: int, now_ns: int) -> list[str]:
    """
    Unlink sealed segments that are too old, then the oldest while the log is too large.

    Returns the names of what went. Rulesets that nothing has named for *keep_s* go as well.
    """
    oldest_ns = now_ns - int(keep_s * 1e9)
    listing = list_segments(directory)
    gone = [one for one in listing.sealed if one.end_ns < oldest_ns]
    left = sorted((one for one in listing.sealed if one.end_ns >= oldest_ns), key=_age)
    sizes = {one: segment_bytes(one.path) for one in left}
    total = sum(sizes.values()) + sum(segment_bytes(one.path) for one in listing.open)
    for table, share in _SHARES.items():
        gone += _over(sizes, [one for one in left if one.table == table], int(share * size_bytes))
    total -= sum(sizes.get(one, 0) for one in gone)
    for one in (one for one in left if one.table == "drops"):
        if total <= size_bytes:
            break
        gone.append(one)
        total -= sizes.get(one, 0)
    for one in gone:
        one.path.unlink(missing_ok=True)
    _unlink_untouched((directory / "rulesets").glob("*"), 2 * keep_s)
    _unlink_untouched(directory.glob("*.damaged"), keep_s)
    return [one.path.name for one in gone]


def _over(sizes: dict[Sealed, int], segments: Iterable[Sealed], limit: int) -> list[Sealed]:
    """Return the oldest of *segments*, so many that the others fit into *limit*."""
    over = []
    segments = list(segments)
    total = sum(sizes.get(one, 0) for one in segments)
    for one in segments:
        if total <= limit:
            break
        over.append(one)
        total -= sizes.get(one, 0)
    return over


def _unlink_untouched(paths: Iterable[Path], keep_s: float) -> None:
    """Unlink what was not touched for *keep_s*, by the disk's own clock."""
    # A ruleset in force is touched when it is said again, well before this.
    oldest_s = time.time() - keep_s
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest_s:
                path.unlink()


def remove_leftovers(directory: Path) -> None:
    """Unlink what a killed sealer had begun; only for who holds the sealers' lock."""
    for path in directory.glob(".*.arrows.*"):
        path.unlink(missing_ok=True)


def _age(one: Sealed) -> int:
    return one.first
