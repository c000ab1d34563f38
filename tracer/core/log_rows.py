"""
Events as the log's columns: recorded drops, journeys, changes, losses.

Columns are a mapping from a column's name to its values: a number for all rows, an array
or a list of one for each row, or `Words`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tracer.core.drop_events import packets_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.core.drops import DropCount

__all__ = [
    "Change",
    "Columns",
    "Loss",
    "Words",
    "address_halves",
    "drop_columns",
    "join",
    "packet_columns",
    "pick",
    "render_halves",
]

_IPV4_MAPPED = 0xFFFF_0000_0000
_LOW = (1 << 64) - 1
_PACKET_NAMES = ("sport", "dport", "family", "proto", "ttl", "tcp_flags", "ip_id")


@dataclass(frozen=True, slots=True)
class Words:
    """Text out of a small set: *of* `(n,)` says which of *words* each row has."""

    words: Sequence[str]
    of: npt.NDArray[np.integer]


Columns: TypeAlias = "Mapping[str, Words | npt.NDArray[np.generic] | Sequence[object] | int | str]"


@dataclass(frozen=True, slots=True)
class Change:
    """Something that changed on the machine; the members are `CHANGES`' columns."""

    time_ns: int
    netns: str
    what: str
    action: str
    subject: str = ""
    before: str = ""
    after: str = ""
    detail: str = ""
    engine: str = ""
    pid: int = 0
    process: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """Events that are not in the log, or not one by one; the members are `LOSSES`' columns."""

    time_ns: int
    source: str
    what: str
    count: int
    unit: str = "events"
    since_ns: int = 0
    until_ns: int = 0
    netns: str = ""
    detail: str = ""


def pick(columns: Columns, rows: npt.NDArray[np.intp]) -> Columns:
    """Return the columns with only *rows*, in the order given."""
    return {name: _pick(values, rows) for name, values in columns.items()}


def _pick(
    values: Words | npt.NDArray[np.generic] | Sequence[object] | int | str,
    rows: npt.NDArray[np.intp],
) -> Words | npt.NDArray[np.generic] | Sequence[object] | int | str:
    if isinstance(values, Words):
        return Words(values.words, values.of[rows])
    if isinstance(values, int | str):
        return values
    if isinstance(values, np.ndarray):
        return values[rows]
    return [values[row] for row in rows.tolist()]


def join(parts: Sequence[Columns], rows: Sequence[int]) -> Columns:
    """Return the columns of *parts*, which have the same names, one after another."""
    return {
        name: _join([part[name] for part in parts], rows) for name in (parts[0] if parts else ())
    }


def _join(values: Sequence[Any], rows: Sequence[int]) -> Any:  # noqa: ANN401 - a column's values
    first = values[0]
    if all(isinstance(one, Words) for one in values):
        starts = np.cumsum([0, *(len(one.words) for one in values[:-1])])
        of = [one.of + start for one, start in zip(values, starts, strict=True)]
        return Words([word for one in values for word in one.words], np.concatenate(of))
    if all(isinstance(one, np.ndarray) for one in values):
        return np.concatenate(values)
    if isinstance(first, int | str) and all(type(o) is type(first) and o == first for o in values):
        return first
    return [item for one, count in zip(values, rows, strict=True) for item in _items(one, count)]


def _items(values: Any, count: int) -> Sequence[object]:  # noqa: ANN401 - a column's values
    if isinstance(values, Words):
        return [values.words[number] for number in values.of.tolist()]
    if isinstance(values, np.ndarray):
        items: list[object] = values.tolist()
        return items
    return [values] * count if isinstance(values, int | str) else values


def drop_columns(
    records: npt.NDArray[np.void],
    kinds: Sequence[DropCount],
    kind_of: npt.NDArray[np.integer],
    netns: Sequence[str],
    devices: Mapping[int, str],
) -> Columns:
    """
    Return recorded drops as `DROPS`' columns.

    Shape: *records* `(n,)` of the ring's records, their *time_ns* since the epoch; *kinds*
    and *kind_of* as `DropSource.kinds_of` gives them; *netns* the name of each kind's
    namespace; *devices* names by interface index (what is not there is `ifN`).
    """
    packets = packets_of(records)
    columns: dict[str, Words | npt.NDArray[np.generic]] = dict(packet_columns(packets))
    columns["time_ns"] = records["time_ns"].astype(np.int64)
    # The length of the packet's header is what was sent; skb->len where it is not IP.
    lengths = packets["length"]
    columns["length"] = np.where(packets["family"] == 0, records["length"], lengths)
    for name in ("weight", "mark", "ct"):
        columns[name] = records[name]
    columns["certain"] = records["key"]["certain"]
    for name, member in (("in_device", "iif"), ("device", "ifindex")):
        columns[name] = _device_words(records[member], devices)
    columns["netns"] = Words(netns, kind_of)
    for name, member in _KIND_WORDS.items():
        columns[name] = Words([getattr(kind, member) or "" for kind in kinds], kind_of)
    for name, dtype in (("rule", np.uint32), ("handle", np.uint64), ("location", np.uint64)):
        values = np.array([getattr(kind, name) or 0 for kind in kinds], dtype)
        columns[name] = values[kind_of]
    return columns


_KIND_WORDS = {
    "kind": "kind",
    "hook": "hook",
    "engine": "engine",
    "table_family": "family",
    "table_name": "table",
    "chain": "chain",
    "reason": "reason",
}


def packet_columns(packets: npt.NDArray[np.void]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the columns that `DROPS` and `JOURNEYS` share, of `PACKET (k,)` rows."""
    columns: dict[str, npt.NDArray[np.generic]] = {n: packets[n] for n in _PACKET_NAMES}
    for name in ("src", "dst"):
        high, low = _halves(packets["family"], packets[name])
        columns[f"{name}_high"], columns[f"{name}_low"] = high, low
    columns["tcp_seq"], columns["tcp_ack"] = packets["seq"], packets["ack"]
    columns["icmp"], columns["fingerprint"] = packets["icmp"], packets["fingerprint"]
    columns["length"] = packets["length"]
    return columns


def address_halves(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, int]:
    """Return an address as the log has it: its upper and lower eight bytes as IPv6."""
    number = int(address) | (_IPV4_MAPPED if address.version == 4 else 0)  # noqa: PLR2004
    return number >> 64, number & _LOW


def render_halves(family: int, high: int, low: int) -> str:
    """Return an address of the log as text; empty where *family* is neither 4 nor 6."""
    if family == 4:  # noqa: PLR2004 - an IP version
        return str(ipaddress.IPv4Address(low & 0xFFFF_FFFF))
    return str(ipaddress.IPv6Address(high << 64 | low)) if family else ""


def _halves(
    family: npt.NDArray[np.uint8], words: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    numbers = np.ascontiguousarray(words).view(">u8").astype(np.uint64)
    high, low = numbers[:, 0].copy(), numbers[:, 1].copy()
    ipv4 = family == 4  # noqa: PLR2004 - an IP version
    low[ipv4] = (high[ipv4] >> np.uint64(32)) | np.uint64(_IPV4_MAPPED)
    high[ipv4] = 0
    return high, low


def _device_words(indexes: npt.NDArray[np.uint32], devices: Mapping[int, str]) -> Words:
    there, of = np.unique(indexes, return_inverse=True)
    names = [devices.get(index, f"if{index}" if index else "") for index in there.tolist()]
    return Words(names, of)
