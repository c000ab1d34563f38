"""
Series as text, in Prometheus' own format and in OpenMetrics.

prometheus-client renders a sample in 8 us, nearly all of it its labels. Labels seldom
change, so here they are rendered once and kept with the series; what is written is the
same to the byte of meaning (a test compares the two).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
)
from prometheus_client.core import Exemplar as ClientExemplar
from prometheus_client.core import (
    Metric as ClientFamily,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from exporters.prometheus_metrics import Metric

__all__ = ["Family", "Mark", "Series", "make_series", "to_client", "write_text"]

#: OpenMetrics allows so much for an exemplar's labels, names and values together.
_MARK_LABELS_MAX: Final = 128
_MARK_LABEL: Final = "journey_id"


class Series(NamedTuple):
    """A series' label *values*, in the metric's order, and all its labels as *text*."""

    values: tuple[str, ...]
    text: str


class Mark(NamedTuple):
    """An exemplar: a journey's id, and seconds since the epoch."""

    journey_id: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Family:
    """
    Samples of one metric: *values* `(n,)` of *series* `(n,)`, *marks* by place.

    *suffix* is _sum or _count of a summary, else empty.
    """

    metric: Metric
    series: Sequence[Series]
    values: Sequence[float]
    suffix: str = ""
    marks: Mapping[int, Mark] = field(default_factory=dict)


def make_series(metric: Metric, values: Sequence[str]) -> Series:
    r"""
    Return the series of *metric* with these label values.

    Bytes that were no UTF-8, which names of chains can hold, are told as ``\xNN``.
    """
    clean = tuple(value if value.isascii() else _repair(value) for value in values)
    if len(clean) != len(metric.labels):
        raise ValueError(f"{metric.name} has other labels than {len(clean)} values")
    if not clean:
        return Series((), "")
    text = _form(metric.labels) % clean
    if "\\" in text or "\n" in text or text.count('"') != 2 * len(clean):
        text = _form(metric.labels) % tuple(map(_escape, clean))
    return Series(clean, text)


@cache
def _form(labels: tuple[str, ...]) -> str:
    return "{" + ",".join(f'{name}="%s"' for name in labels) + "}"


def _repair(value: str) -> str:
    return value.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def write_text(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """Return an answer to a scrape; families of one metric stand next to each other."""
    lines: list[str] = []
    last: Metric | None = None
    for family in families:
        metric = family.metric
        if metric is not last:
            name = _family_name(metric) if openmetrics else metric.name
            lines.append(f"# HELP {name} {_escape_help(metric.help, openmetrics=openmetrics)}\n")
            lines.append(f"# TYPE {name} {metric.kind}\n")
            last = metric
        lines += _sample_lines(family, openmetrics=openmetrics)
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def _sample_lines(family: Family, *, openmetrics: bool) -> list[str]:
    name = family.metric.name + family.suffix
    pairs = zip(family.series, family.values, strict=True)
    lines = [f"{name}{series.text} {value}\n" for series, value in pairs]
    if openmetrics:
        for at, mark in family.marks.items():
            if len(mark.journey_id) + len(_MARK_LABEL) <= _MARK_LABELS_MAX:
                label = f'{{{_MARK_LABEL}="{_escape(_repair(mark.journey_id))}"}}'
                lines[at] = f"{lines[at][:-1]} # {label} 1.0 {mark.time_s:.3f}\n"
    return lines


def _escape_help(text: str, *, openmetrics: bool) -> str:
    return _escape(text) if openmetrics else text.replace("\\", r"\\").replace("\n", r"\n")


def _family_name(metric: Metric) -> str:
    return metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name


def to_client(family: Family) -> ClientFamily:
    """Return the same as prometheus-client has it."""
    metric = family.metric
    if metric.kind == "counter":
        made: ClientFamily = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    elif metric.kind == "gauge":
        made = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    else:
        made = ClientFamily(metric.name, metric.help, metric.kind)
    name = metric.name + family.suffix
    for at, (series, value) in enumerate(zip(family.series, family.values, strict=True)):
        mark = family.marks.get(at)
        exemplar = mark and ClientExemplar({_MARK_LABEL: mark.journey_id}, 1.0, mark.time_s)
        labels = dict(zip(metric.labels, series.values, strict=True))
        made.add_sample(name, labels, value, exemplar=exemplar)
    return made
