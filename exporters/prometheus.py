"""
What Prometheus scrapes: readings become series whose values never fall.

`Exporter` is a collector of prometheus-client. Each scrape asks `Readings` once, adds
what is new to the totals and tells them. `refresh()` does all but the telling: whoever
learns that rules have changed calls it, so that no counter that began anew has passed
its former value by the time that it is read.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from prometheus_client import ProcessCollector

from exporters.prometheus_drops import drop_families
from exporters.prometheus_health import health_families
from exporters.prometheus_http import Served, render, serve
from exporters.prometheus_marks import Marks
from exporters.prometheus_metrics import BY_NAME, METRICS, Metric
from exporters.prometheus_rules import RuleSeries
from exporters.prometheus_state import load_state, save_state
from exporters.prometheus_text import Family, make_series, to_client, write_text
from tracer.core.drop_totals import DropTotals
from tracer.core.expected import Expected
from tracer.core.health import Health
from tracer.core.rule_counts import RuleCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric as ClientFamily

    from tracer.core.drops import DropCount
    from tracer.core.health import Exemplar
    from tracer.core.rule_reading import NetnsCounters

__all__ = ["METRICS", "Exporter", "Metric", "Readings", "Served", "render", "serve"]

#: Tables beyond this many are not told: whoever may write rules in his own namespace can
#: make as many as he likes, and each has three series.
_TABLES_MAX: Final = 2_000
_BUILD: Final = BY_NAME["nftrace_build_info"]
_SCRAPES: Final = BY_NAME["nftrace_scrape_seconds"]


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
    ) -> None:
        self.expected = expected or Expected()
        self._readings = readings
        self._keep = keep
        self._lock = threading.Lock()
        self._rules = RuleCounts()
        self._drops = DropTotals()
        self._series = RuleSeries(
            every_rule=every_rule, rules_max=rules_max, tables_max=_TABLES_MAX
        )
        self._build = make_series(_BUILD, (version, kernel))
        self._read_s: dict[str, float] = {}
        self._health = Health()
        self._scrapes, self._scrape_s = 0, 0.0
        #: Connections that were closed unanswered, as there were too many.
        self.refused = 0
        # With no registry it is collected when we are.
        self._process = ProcessCollector(registry=None)

    def refresh(self) -> None:
        """Read and add up, as a scrape does, and tell nobody."""
        with self._lock:
            self._update()

    def collect(self) -> Iterator[ClientFamily]:
        """Yield everything as prometheus-client's families."""
        yield from map(to_client, self._scrape())

    def write(self, *, openmetrics: bool) -> bytes:
        """Return everything as text."""
        return write_text(self._scrape(), openmetrics=openmetrics)

    def state(self) -> bytes:
        """Return all totals, to go on from after a restart; JSON, about 60 bytes a rule."""
        with self._lock:
            return save_state(self._rules, self._drops, self._series)

    def restore(self, state: bytes) -> None:
        """
        Go on from what `state()` returned; before the first reading only.

        Errors: ValueError for what is no state of this version; nothing is taken then.
        """
        with self._lock:
            load_state(state, self._rules, self._drops, self._series)

    def _scrape(self) -> list[Family]:
        with self._lock:
            started_s = time.perf_counter()
            self._update()
            if self._keep is not None:
                self._keep(save_state(self._rules, self._drops, self._series))
            families = list(self._families())
            self._scrapes += 1
            self._scrape_s += time.perf_counter() - started_s
            return families

    def _update(self) -> None:
        names = self._readings.namespaces()
        for reading in self._readings.counters():
            self._rules.update(reading)
            self._read_s[reading.netns] = reading.elapsed_ns / 1e9
        rows = self._readings.drops()
        kept = frozenset(names.values())
        self._rules.keep_only(kept)
        self._drops.keep_only(kept)
        self._read_s = {name: value for name, value in self._read_s.items() if name in kept}
        self._drops.update(rows, names, self._rules, self.expected)
        self._health = self._readings.health()
        self._series.update(self._rules, self.expected, self._health.can_attribute)

    def _families(self) -> Iterator[Family]:
        marks = Marks(self._readings.exemplars())
        yield from self._series.families(self._rules, marks.of_table)
        yield from drop_families(self._drops, marks)
        yield from self._own_families()
        yield from health_families(self._health)
        for family in self._process.collect():
            for sample in family.samples:
                if sample.name in BY_NAME:
                    yield _single(sample.name, sample.value)

    def _own_families(self) -> Iterator[Family]:
        rules = self._rules
        yield _single("nftrace_tables_skipped", self._series.tables_skipped)
        yield _single("nftrace_rules_forgotten_total", rules.forgotten)
        yield _by_labels("nftrace_rule_counter_resets_total", rules.resets)
        yield _by_labels("nftrace_ruleset_changes_total", _by_name(rules.changes))
        yield _by_labels("nftrace_ruleset_read_seconds", _by_name(self._read_s))
        yield _single("nftrace_namespaces", len(rules.versions))
        nothing = [make_series(_SCRAPES, ())]
        yield Family(_SCRAPES, nothing, [self._scrape_s], "_sum")
        yield Family(_SCRAPES, nothing, [self._scrapes], "_count")
        yield _single("nftrace_scrapes_refused_total", self.refused)
        yield Family(_BUILD, [self._build], [1])


def _single(name: str, value: float) -> Family:
    return Family(BY_NAME[name], [make_series(BY_NAME[name], ())], [value])


def _by_name(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def _by_labels(name: str, values: Mapping[Any, float]) -> Family:
    metric = BY_NAME[name]
    return Family(metric, [make_series(metric, key) for key in values], list(values.values()))
