"""
The columns of the event log: what the writer writes and every view reads.

A table is a kind of event. Its columns are fixed in width and plain in type, so that any
engine takes them as they are. All tables begin with the same four: `time_ns`, nanoseconds
since the epoch in UTC; `ordinal`, which only grows, whatever the clock does, and orders all
tables' rows among each other; `host`; and `netns`.

An address is two numbers, the upper and lower eight bytes of its IPv6 form; IPv4 is mapped
into `::ffff:0:0/96`, so that a prefix is a range of numbers. Words are empty, and rules and
handles 0, where there is none.

A log is read by the versions of nftrace that come after it: a column that an older version
did not have is told as the column's *default*; none is renamed or changes its type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["CHANGES", "DROPS", "JOURNEYS", "LOSSES", "TABLES", "VERSION", "Column", "Kind", "Table"]

#: Raised when a column is added.
VERSION = 2


class Kind(StrEnum):
    """
    What a column holds.

    WORD is text out of a small set, kept once for each segment; TEXT any text; BYTES any
    bytes; the others are numbers by their numpy names.
    """

    I64 = "int64"
    U64 = "uint64"
    U32 = "uint32"
    U16 = "uint16"
    U8 = "uint8"
    WORD = "word"
    TEXT = "text"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Column:
    """One column, and what stands in it where a log is older than it."""

    name: str
    kind: Kind
    default: int | str | bytes = field(default=0)


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of event: *name* is also how its files begin."""

    name: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """
        Return the column of that name.

        Errors: KeyError if there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


def _columns(text: str) -> tuple[Column, ...]:
    """Read `kind: name name …` lines."""
    found = []
    for line in text.strip().splitlines():
        kind, names = line.split(":")
        default: int | str | bytes = 0
        if kind.strip() in {Kind.WORD, Kind.TEXT}:
            default = ""
        elif kind.strip() == Kind.BYTES:
            default = b""
        found += [Column(name, Kind(kind.strip()), default) for name in names.split()]
    return tuple(found)


_HEAD = """
int64: time_ns ordinal
word: host netns
"""
#: `icmp` is packed as in `tracer.core.events.PACKET`; `length` is the packet's in bytes.
_PACKET = """
uint64: src_high src_low dst_high dst_low
uint16: sport dport
uint8: family proto ttl tcp_flags
uint16: ip_id
uint32: tcp_seq tcp_ack
uint64: icmp
uint32: length
uint64: fingerprint
"""
_PLACE = """
word: hook engine table_family table_name chain
uint32: rule
uint64: handle
word: reason
"""

#: One row a drop that was recorded. `weight` is how many drops it stands for; `kind` is
#: rule, policy, table, hook or other; `certain` 0 where the rule is one of several; `ct` is
#: enum ip_conntrack_info plus one; `location` is the freeing address outside netfilter;
#: `device` is where the packet was when it died, `in_device` where it came in. `expected` is
#: 1 where the configuration names the drop as intended (since version 2).
DROPS = Table(
    "drops",
    _columns(
        _HEAD
        + _PACKET.lstrip("\n")
        + "uint32: weight mark\nuint8: ct certain\nword: in_device device kind"
        + _PLACE
        + "uint64: location\nuint8: expected"
    ),
)

#: One row a journey. `ending` and the place are those of its end; `json` is the line of
#: `nftrace.journey/1`; `network` and `transport` are the packet's headers as traced.
JOURNEYS = Table(
    "journeys",
    _columns(
        _HEAD
        + _PACKET.lstrip("\n")
        + "uint32: mark\nword: in_device device ending"
        + _PLACE
        + "uint8: complete\nuint32: lost\ntext: id json\nbytes: network transport"
    ),
)

#: One row a change. `what` is ruleset, route, address, link, neighbour, sysctl, conntrack,
#: clock, …; `action` is new, changed, gone or stands (nothing changed: what is in force is
#: said again); `subject` names what changed. `before` and `after` are texts, of a ruleset the
#: names of its versions. `pid`, `process` and `command` say who did it, where that is known.
CHANGES = Table(
    "changes",
    _columns(
        _HEAD
        + "word: what action engine\ntext: subject before after detail\n"
        + "uint32: pid\ntext: process command"
    ),
)

#: One row a loss. `source` is who lost, `what` how: lost, thinned, left_out, torn, …;
#: `count` is of what `unit` says, between `since_ns` and `until_ns`.
LOSSES = Table(
    "losses",
    _columns(
        _HEAD + "word: source what unit\nuint64: count\nint64: since_ns until_ns\ntext: detail"
    ),
)

TABLES = {table.name: table for table in (DROPS, JOURNEYS, CHANGES, LOSSES)}
