"""Who lost most packets, by kind of drop: the top source and destination."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tracer.core.drop_events import packets_of
from tracer.core.packet_text import render_address, render_protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tracer.core.drops import DropCount

__all__ = ["Talker", "Talkers"]

#: Pairs of addresses kept for each kind: a flood from forged sources has no end of them.
_PAIRS_MAX = 1024
#: Kinds with pairs: more lines than that nobody reads.
_KINDS_MAX = 1024
#: Records decoded of each batch: more would not change who comes first.
_BATCH_MAX = 2048


class Talker(NamedTuple):
    """
    Who lost most packets of a kind: *source* and *destination* with its port, if any.

    *address* is that of the destination alone. *share* of the kind's packets was theirs.
    *expired*: most of the kind's packets had no TTL left.
    """

    proto: str
    source: str
    destination: str
    address: str
    share: float
    expired: bool


@dataclass
class _Kind:
    pairs: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    packets: int = 0
    expired: int = 0


class Talkers:
    """Counts pairs of source and destination in records of drops, in bounded memory."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._kinds: dict[DropCount, _Kind] = {}

    def add(
        self,
        kinds: Sequence[DropCount],
        indexes: npt.NDArray[np.intp],
        records: npt.NDArray[np.void],
    ) -> None:
        """Take *records*; `kinds[indexes[i]]` is the kind of the i-th."""
        step = -(-len(records) // _BATCH_MAX) or 1
        records, indexes = records[::step], indexes[::step]
        packets = packets_of(records)
        weights = records["weight"].astype(np.int64) * step
        for at, packet, weight in zip(indexes.tolist(), packets, weights.tolist(), strict=True):
            if kinds[at] not in self._kinds and len(self._kinds) >= _KINDS_MAX:
                continue
            kind = self._kinds.setdefault(kinds[at], _Kind())
            kind.packets += weight
            if not int(packet["family"]):
                continue
            kind.expired += weight * (int(packet["ttl"]) <= 1)
            pair = _pair(packet)
            if pair in kind.pairs or len(kind.pairs) < _PAIRS_MAX:
                kind.pairs[pair] += weight

    def top(self, kind: DropCount) -> Talker | None:
        """Return the pair that lost most packets of *kind*; None where none was recorded."""
        known = self._kinds.get(kind)
        if known is None or not known.pairs:
            return None
        pair, packets = known.pairs.most_common(1)[0]
        return Talker(*pair, packets / known.packets, known.expired * 2 > known.packets)

    def forget(self) -> None:
        """Begin anew, as at each interval."""
        self._kinds.clear()


def _pair(packet: np.void) -> tuple[str, str, str, str]:
    family, port = int(packet["family"]), int(packet["dport"])
    src, dst = (render_address(family, packet[side]) for side in ("src", "dst"))
    to = dst
    if port:
        to = f"[{dst}]:{port}" if family == 6 else f"{dst}:{port}"  # noqa: PLR2004
    return render_protocol(int(packet["proto"])), src, to, dst
