"""The series of drops by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exporters.prometheus_metrics import BY_NAME
from exporters.prometheus_text import Family, make_series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporters.prometheus_marks import Marks
    from exporters.prometheus_metrics import Metric
    from exporters.prometheus_text import Series
    from tracer.core.drop_totals import DropLabels, DropTotals

__all__ = ["drop_families"]

_PACKETS: Final = BY_NAME["nftrace_drops_total"]
_BYTES: Final = BY_NAME["nftrace_drop_bytes_total"]
_UNRESOLVED: Final = BY_NAME["nftrace_drops_unresolved_total"]
_FOLDED: Final = BY_NAME["nftrace_drop_kinds_folded_total"]


def drop_families(drops: DropTotals, marks: Marks) -> Iterator[Family]:
    """Yield drops in packets and bytes, and what could not be told apart."""
    found = {at: marks.of_kind(labels) for at, labels in enumerate(drops.totals)}
    values = list(drops.totals.values())
    yield Family(
        _PACKETS,
        [_series(_PACKETS, labels) for labels in drops.totals],
        [packets for packets, _ in values],
        marks={at: mark for at, mark in found.items() if mark is not None},
    )
    yield Family(
        _BYTES,
        [_series(_BYTES, labels) for labels in drops.totals],
        [octets for _, octets in values],
    )
    names = list(drops.unresolved)
    yield Family(
        _UNRESOLVED,
        [make_series(_UNRESOLVED, (name,)) for name in names],
        [drops.unresolved[name] for name in names],
    )
    yield Family(_FOLDED, [make_series(_FOLDED, ())], [drops.folded])


def _series(metric: Metric, labels: DropLabels) -> Series:
    return make_series(metric, (*labels[:6], "true" if labels.expected else "false"))
