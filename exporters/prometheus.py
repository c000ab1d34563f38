"""
What Prometheus scrapes: readings become series whose values never fall.

`Exporter` is a collector of prometheus-client. Each scrape asks `Readings` once, adds
what is new to the totals and tells them. `refresh()` does all but the telling: whoever
learns that rules have changed calls it, so that no counter that began anew has passed
its former value by the time that it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from exporters.prometheus_http import Served, serve
from exporters.prometheus_metrics import METRICS, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric as Family

    from tracer.core.drops import DropCount
    from tracer.core.expected import Expected
    from tracer.core.health import Exemplar, Health
    from tracer.core.rule_reading import NetnsCounters

__all__ = ["METRICS", "Exporter", "Metric", "Readings", "Served", "render", "serve"]


class Readings(Protocol):
    """Where an exporter has its numbers from; called by one thread at a time."""

    def namespaces(self) -> Mapping[int, str]:
        """Return the watched namespaces' names by inode; series of others end."""
        ...

    def counters(self) -> Sequence[NetnsCounters]:
        """Read the rules' counters; a namespace that could not be read is left out."""
        ...

    def drops(self) -> Sequence[DropCount]:
        """Return every kind of drop in watched namespaces, counted since the start."""
        ...

    def exemplars(self) -> Iterable[Exemplar]:
        """Return a recent journey for each place that has one."""
        ...

    def health(self) -> Health:
        """Return how the watch does."""
        ...


class Exporter:
    """
    Series out of `Readings`; safe to be called by several threads at once.

    *expected* may be exchanged while running (`expected = …`): the series concerned end
    and go on under the other label. *every_rule*: counters of rules that do not drop,
    too. *keep* is called with `state()` before each answer is given, so that no value that
    was told is forgotten when the process ends; `restore()` takes it back.
    """

    def __init__(  # noqa: PLR0913 - settings, each with its default
        self,
        readings: Readings,
        *,
        expected: Expected | None = None,
        every_rule: bool = False,
        rules_max: int = 20_000,
        version: str = "",
        kernel: str = "",
        keep: Callable[[bytes], None] | None = None,
    ) -> None: ...

    def refresh(self) -> None:
        """Read and add up, as a scrape does, and tell nobody."""

    def collect(self) -> Iterator[Family]:
        """Yield everything as prometheus-client's families, in the order of `METRICS`."""

    def state(self) -> bytes:
        """Return all totals, to go on from after a restart; JSON, about 60 bytes a rule."""

    def restore(self, state: bytes) -> None:
        """
        Go on from what `state()` returned; before the first reading only.

        Errors: ValueError for what is no state of this version; nothing is taken then.
        """


def render(exporter: Exporter, accept: str = "") -> tuple[bytes, str]:
    """
    Return an answer to a scrape and its content type.

    *accept* is the request's header: OpenMetrics, with exemplars, where it is wanted.
    """
    raise NotImplementedError
