"""
Every metric that nftrace exports: the one list that dashboards and alerts are held against.

Names are those of the samples, counters with `_total`; a summary has NAME_sum and
NAME_count.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["BY_NAME", "METRICS", "Metric"]


class Metric(NamedTuple):
    """One metric: *kind* is counter, gauge or summary; *labels* in the order they are told."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that stand in an answer to a scrape."""
        if self.kind == "summary":
            return f"{self.name}_sum", f"{self.name}_count"
        return (self.name,)


_TABLE: Final = ("netns", "engine", "family", "table")
_RULE: Final = (*_TABLE, "chain", "rule_id")
_KIND: Final = ("netns", "engine", "family", "hook", "table", "reason", "expected")
_OF_SOURCE: Final = ("source", "netns")
_COUNTED: Final = (*_RULE, "verdict", "source", "expected")
_INFO: Final = (*_RULE, "rule", "text", "comment", "verdict", "expected")

METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "nftrace_rule_packets_total",
        "counter",
        _COUNTED,
        "Packets that met a rule: by the kernel's counter of it, or, where it has none, "
        "the drops attributed to it.",
    ),
    Metric(
        "nftrace_rule_bytes_total",
        "counter",
        _COUNTED,
        "Bytes of the packets that met a rule.",
    ),
    Metric("nftrace_rule_info", "gauge", _INFO, "What people read of a rule; always 1."),
    Metric(
        "nftrace_drops_total",
        "counter",
        _KIND,
        "Packets that the kernel dropped, by netfilter (engine is set) or otherwise.",
    ),
    Metric("nftrace_drop_bytes_total", "counter", _KIND, "Bytes of the dropped packets."),
    Metric(
        "nftrace_policy_drops_total",
        "counter",
        (*_TABLE, "chain", "source", "expected"),
        "Packets that a base chain's policy dropped.",
    ),
    Metric("nftrace_rules", "gauge", _TABLE, "Rules in a table."),
    Metric(
        "nftrace_tables_skipped",
        "gauge",
        (),
        "Tables whose rules are not told, because there are too many.",
    ),
    Metric(
        "nftrace_rules_folded",
        "gauge",
        _TABLE,
        "Rules counted together in the series with rule_id other, because there are too many.",
    ),
    Metric(
        "nftrace_rules_forgotten_total",
        "counter",
        (),
        "Rules that are gone and whose last values are not remembered any more.",
    ),
    Metric(
        "nftrace_rule_counter_resets_total",
        "counter",
        _TABLE,
        "Readings at which counters of a table had begun anew; exported values went on.",
    ),
    Metric("nftrace_ruleset_changes_total", "counter", ("netns",), "Changes of the rules seen."),
    Metric(
        "nftrace_drops_unresolved_total",
        "counter",
        ("netns",),
        "Drops by a rule without a counter that was gone before its name was read.",
    ),
    Metric(
        "nftrace_drop_kinds_folded_total",
        "counter",
        (),
        "Drops counted in the series with reason other, because there are too many kinds.",
    ),
    Metric(
        "nftrace_ruleset_read_seconds",
        "gauge",
        ("netns",),
        "Seconds that the last reading of a namespace's counters took.",
    ),
    Metric("nftrace_events_total", "counter", _OF_SOURCE, "Events that a source told."),
    Metric("nftrace_events_lost_total", "counter", _OF_SOURCE, "Events that a source lost."),
    Metric("nftrace_source_up", "gauge", _OF_SOURCE, "1 while a source tells what it should."),
    Metric("nftrace_namespaces", "gauge", (), "Network namespaces that are watched."),
    Metric(
        "nftrace_scrape_seconds",
        "summary",
        (),
        "Seconds from a request for metrics to its answer; this one not included.",
    ),
    Metric("nftrace_scrapes_refused_total", "counter", (), "Connections closed unanswered."),
    Metric("nftrace_loop_busy_seconds", "summary", (), "Turns of the daemon's loop, busy seconds."),
    Metric("nftrace_build_info", "gauge", ("version", "kernel"), "What runs here; always 1."),
    Metric("nftrace_trace_armed_flows", "gauge", (), "Flows armed to have their rule named."),
    Metric("nftrace_trace_armed_total", "counter", (), "Flows that were armed."),
    Metric("nftrace_trace_refused_total", "counter", (), "Flows not armed for want of budget."),
    Metric("nftrace_trace_named_total", "counter", (), "Drops whose rule was named by tracing."),
    Metric("nftrace_control_clients", "gauge", (), "Clients at the control socket."),
    Metric("nftrace_control_clients_cut_total", "counter", (), "Clients that were cut off."),
    Metric("nftrace_trace_expired_total", "counter", (), "Armed flows that sent nothing more."),
    Metric(
        "nftrace_trace_untraced_drops_total",
        "counter",
        (),
        "Drops by a rule that is not known, and that no trace named.",
    ),
    Metric("nftrace_log_bytes", "gauge", (), "Size of the event log on disk."),
    Metric("nftrace_log_lag_seconds", "gauge", (), "How long the event log has been stuck."),
    Metric("nftrace_messages_suppressed_total", "counter", (), "Log messages not repeated."),
    Metric("nftrace_messages_lost_total", "counter", (), "Log messages that were not written."),
    Metric(
        "nftrace_configurations_refused_total",
        "counter",
        (),
        "Configurations that a reload refused; the former one stayed.",
    ),
    Metric("process_cpu_seconds_total", "counter", (), "Processor time, user and system."),
    Metric("process_resident_memory_bytes", "gauge", (), "Memory in use."),
    Metric("process_virtual_memory_bytes", "gauge", (), "Address space."),
    Metric("process_open_fds", "gauge", (), "Open file descriptors."),
    Metric("process_max_fds", "gauge", (), "File descriptors that may be open."),
    Metric("process_start_time_seconds", "gauge", (), "Start, in seconds since the epoch."),
)

#: The same by name.
BY_NAME: Final = {metric.name: metric for metric in METRICS}
