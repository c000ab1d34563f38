"""Who lost most packets, by kind of drop: the top source and destination."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.drop_events import packets_of
from tracer.core.packet_text import render_address, render_protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tracer.core.drops import DropCount

__all__ = ["Talkers"]

#: Pairs of addresses kept for each kind: a flood from forged sources has no end of them.
_PAIRS_MAX = 1024
#: Records decoded of each batch: more would not change who comes first.
_BATCH_MAX = 2048


class Talkers:
    """Counts pairs of source and destination in records of drops, in bounded memory."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._pairs: dict[DropCount, Counter[str]] = {}

    def add(
        self,
        kinds: Sequence[DropCount],
        indexes: npt.NDArray[np.intp],
        records: npt.NDArray[np.void],
    ) -> None:
        """Take *records*; `kinds[indexes[i]]` is the kind of the i-th."""
        step = -(-len(records) // _BATCH_MAX)
        records, indexes = records[::step], indexes[::step]
        packets = packets_of(records)
        weights = records["weight"].astype(np.int64) * step
        for kind, packet, weight in zip(indexes.tolist(), packets, weights.tolist(), strict=True):
            pairs = self._pairs.setdefault(kinds[kind], Counter())
            pair = _pair(packet)
            if pair and (pair in pairs or len(pairs) < _PAIRS_MAX):
                pairs[pair] += weight

    def top(self, kind: DropCount) -> str | None:
        """Return the pair that lost most packets of *kind*; None where none was recorded."""
        best = self._pairs.get(kind, Counter()).most_common(1)
        return best[0][0] if best else None

    def forget(self) -> None:
        """Begin anew, as at each interval."""
        self._pairs.clear()


def _pair(packet: np.void) -> str:
    family = int(packet["family"])
    if not family:
        return ""
    src, dst = (render_address(family, packet[side]) for side in ("src", "dst"))
    port = int(packet["dport"])
    behind = f":{port}" if port else ""
    to = f"[{dst}]{behind}" if family == 6 and port else f"{dst}{behind}"  # noqa: PLR2004
    return f"{render_protocol(int(packet['proto']))} {src} → {to}"
