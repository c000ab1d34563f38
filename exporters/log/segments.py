"""
The files of a log: which there are, what their names say, and when they may go.

An open segment is an Arrow IPC stream named `TABLE-ORDINAL.arrows` by its first row's
ordinal. Sealed, it is a Parquet file, and its name says all that is needed to pass it over
unopened, and to find that it is not what was sealed:
`TABLE-FIRST-LAST-BEGIN-END-CRC.parquet`, ordinals first and last, times from and to in
nanoseconds, all in hexadecimal, and the CRC-32 of its bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracer.core.log_schema import TABLES
from tracer.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "IGNORED",
    "Listing",
    "Open",
    "Sealed",
    "list_segments",
    "open_name",
    "segment_bytes",
]

_OPEN: Final = re.compile(r"([a-z]+)-([0-9a-f]{16})\.arrows")
_SEALED: Final = re.compile(
    r"([a-z]+)-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})\.parquet"
)
#: Ours, and no segments.
IGNORED: Final = frozenset({"rulesets", "writer.lock", "sealer.lock"})
#: While a segment is sealed, one look may miss both names of it: two that agree do not.
_LOOKS: Final = 64


@dataclass(frozen=True, slots=True, order=True)
class Open:
    """A segment that is being written, or was when its writer was killed."""

    table: str
    first: int
    path: Path


@dataclass(frozen=True, slots=True, order=True)
class Sealed:
    """A segment that does not change any more."""

    table: str
    first: int
    last: int
    begin_ns: int
    end_ns: int
    crc: int
    path: Path

    @property
    def name(self) -> str:
        """The file's name, made from the other members."""
        return (
            f"{self.table}-{self.first:016x}-{self.last:016x}-{self.begin_ns:016x}"
            f"-{self.end_ns:016x}-{self.crc:08x}.parquet"
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """What a log's folder holds: each segment once, in order, and the names that are no part."""

    open: tuple[Open, ...]
    sealed: tuple[Sealed, ...]
    foreign: tuple[str, ...]


def open_name(table: str, first: int) -> str:
    """Return the name of the open segment whose first row has the ordinal *first*."""
    return f"{table}-{first:016x}.arrows"


def segment_bytes(path: Path) -> int:
    """Return the file's size, 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def list_segments(directory: Path) -> Listing:
    """
    Return the segments in *directory*, also while they are being sealed and retired.

    A segment that is there both open and sealed is told as sealed only.
    Errors: OutputError where the folder cannot be read.
    """
    before = _names(directory)
    for _ in range(_LOOKS):
        names = _names(directory)
        if names == before:
            break
        before = names
    return _read(directory, sorted(before))


def _names(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in directory.iterdir()}
    except OSError as exc:
        message = f"the log {directory} cannot be read ({exc.strerror})"
        raise OutputError(message, "name a log's folder with --log") from exc


def _read(directory: Path, names: list[str]) -> Listing:
    sealed: dict[tuple[str, int], Sealed] = {}
    opened: dict[tuple[str, int], Open] = {}
    foreign = []
    for name in names:
        if name in IGNORED or name.startswith("."):
            continue
        if (found := _SEALED.fullmatch(name)) and found[1] in TABLES:
            numbers = [int(part, 16) for part in found.groups()[1:]]
            one = Sealed(
                found[1],
                numbers[0],
                numbers[1],
                numbers[2],
                numbers[3],
                numbers[4],
                directory / name,
            )
            # Two sealers at once, one of them orphaned, can seal one segment twice.
            sealed.setdefault((one.table, one.first), one)
        elif (found := _OPEN.fullmatch(name)) and found[1] in TABLES:
            key = found[1], int(found[2], 16)
            opened[key] = Open(*key, directory / name)
        else:
            foreign.append(name)
    live = [one for key, one in opened.items() if key not in sealed]
    return Listing(tuple(sorted(live)), tuple(sorted(sealed.values())), tuple(foreign))
