"""The series of the watch itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exporters.prometheus_metrics import BY_NAME, METRICS
from exporters.prometheus_text import Family, make_series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.core.health import Health

__all__ = ["health_families"]

_EVENTS: Final = BY_NAME["nftrace_events_total"]
_LOST: Final = BY_NAME["nftrace_events_lost_total"]
_UP: Final = BY_NAME["nftrace_source_up"]
_LOOP: Final = BY_NAME["nftrace_loop_busy_seconds"]


def health_families(health: Health) -> Iterator[Family]:
    """
    Yield what *health* says, and of its further values those that it has.

    Errors: ValueError where it has one that `METRICS` does not know, or with labels.
    """
    names = [(one.source, one.netns) for one in health.sources]
    for metric, values in (
        (_EVENTS, [one.events for one in health.sources]),
        (_LOST, [one.lost for one in health.sources]),
        (_UP, [int(one.up) for one in health.sources]),
    ):
        yield Family(metric, [make_series(metric, name) for name in names], values)
    yield Family(_LOOP, [make_series(_LOOP, ())], [health.loop_s], "_sum")
    yield Family(_LOOP, [make_series(_LOOP, ())], [health.loops], "_count")
    unknown = health.values.keys() - {metric.name for metric in METRICS if not metric.labels}
    if unknown:
        raise ValueError(f"no metrics without labels: {', '.join(sorted(unknown))}")
    for metric in METRICS:
        if metric.name in health.values:
            yield Family(metric, [make_series(metric, ())], [health.values[metric.name]])
