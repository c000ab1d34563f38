"""Readings of a made-up host, for tests of what is exported."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tracer.core.drops import DropCount
from tracer.core.health import Exemplar, Health, SourceHealth
from tracer.core.journey import Verdict
from tracer.core.rule_ids import CountedRule, policy_id
from tracer.core.rule_reading import NetnsCounters, TableCounters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client.samples import Sample

    from exporters.prometheus import Exporter

DROP = CountedRule(
    "in", 1, 4, 'ip saddr { 10.0.0.0/8 } log prefix "\\n" drop', "no", Verdict.DROP, "d4"
)
UNCOUNTED = CountedRule("in", 2, 5, "udp dport 9 drop", "", Verdict.DROP, "d5")
ACCEPT = CountedRule("in", 3, 6, "accept", "", Verdict.ACCEPT, "a6")
POLICY = CountedRule("in", None, None, None, "", Verdict.DROP, policy_id(Verdict.DROP))
RULES = (DROP, UNCOUNTED, ACCEPT, POLICY)
NFT_DROP = DropCount(
    7, "NETFILTER_DROP", 3, 300, "rule", "input", "nft", "inet", "t", "in", None, 5
)
NO_SOCKET = DropCount(7, "NO_SOCKET", 2, 200)
JOURNEY = Exemplar(
    "vr1", "j-1", 1700000000.25, "NETFILTER_DROP", "input", "nft", "inet", "t", "in", 1, 4
)


def table_of(
    rules: Sequence[CountedRule] = RULES,
    packets: Sequence[int] = (13, 0, 7, 0),
    counted: Sequence[bool] = (True, False, True, False),
    name: str = "t",
) -> TableCounters:
    """Give an nft table's counters; each packet has 100 bytes."""
    columns = np.array(packets, np.uint64)
    has = np.array(counted, np.bool_)
    return TableCounters("nft", "inet", name, tuple(rules), columns, columns * 100, has, 1)


@dataclass
class Watched:
    """What a daemon would tell an exporter."""

    tables: tuple[TableCounters, ...] = field(default_factory=lambda: (table_of(),))
    rows: list[DropCount] = field(default_factory=lambda: [NFT_DROP, NO_SOCKET])
    names: dict[int, str] = field(default_factory=lambda: {7: "vr1"})
    marks: list[Exemplar] = field(default_factory=lambda: [JOURNEY])
    told: Health = field(
        default_factory=lambda: Health(
            (SourceHealth("ebpf_drops", "", up=True, events=5, lost=1),),
            loops=11,
            loop_s=0.5,
            can_attribute=frozenset({("nft", "inet")}),
            values={"nftrace_trace_armed_flows": 2},
        )
    )
    version: int = 1

    def namespaces(self) -> dict[int, str]:
        """Give the names."""
        return self.names

    def counters(self) -> list[NetnsCounters]:
        """Give one reading a namespace."""
        return [
            NetnsCounters(name, inode, self.version, self.tables, exact=True, elapsed_ns=1_000_000)
            for inode, name in self.names.items()
        ]

    def drops(self) -> list[DropCount]:
        """Give the kinds of drop."""
        return self.rows

    def exemplars(self) -> list[Exemplar]:
        """Give the journeys."""
        return self.marks

    def health(self) -> Health:
        """Give the watch's own state."""
        return self.told

    def load(self, *tables: TableCounters) -> None:
        """Replace the rules."""
        self.tables = tables
        self.version += 1

    def drop(self, packets: int) -> None:
        """Count more drops by the rule that has no counter."""
        first, *rest = self.rows
        more = replace(first, packets=first.packets + packets, octets=first.octets + packets * 100)
        self.rows = [more, *rest]


def samples(exporter: Exporter, *, openmetrics: bool = False) -> list[Sample]:
    """Give what Prometheus would take from an answer."""
    text = exporter.write(openmetrics=openmetrics).decode()
    families = parse_openmetrics(text) if openmetrics else parse_text(text)
    return [sample for family in families for sample in family.samples]


def values(exporter: Exporter, name: str) -> dict[tuple[str, ...], float]:
    """Give a metric's values by its label values, in the order of the text."""
    return {
        tuple(sample.labels.values()): sample.value
        for sample in samples(exporter)
        if sample.name == name
    }
