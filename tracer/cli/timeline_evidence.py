"""What the log holds about a filter and a time, as evidence for a timeline."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import duckdb

from tracer.core.log_rows import render_halves
from tracer.core.packet_text import PROTOCOL_NAMES
from tracer.core.timeline_events import DropGroup, Evidence, FlowDrops, Place, Survivors
from tracer.core.timeline_rules import NO_TABLE, parse_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.log.reader import LogReader
    from exporters.log.select import Selection
    from tracer.core.journey import Journey
    from tracer.core.log_rows import Change
    from tracer.core.ruleset import Table

__all__ = ["BUCKETS", "read_evidence", "read_table"]

#: Buckets of time that a window is divided into.
BUCKETS: Final = 48
#: Flows that are read; of more, those with most packets.
_FLOWS_MAX: Final = 5000
#: Journeys that are looked at for flows which survived.
_JOURNEYS_MAX: Final = 2000
#: Changes of rules that drops are told apart by; before the last ones, by their place alone.
_EPOCHS_MAX: Final = 512
_SURVIVED: Final = frozenset({"sent", "delivered", "unknown"})

_Flow: TypeAlias = tuple[str, str, int, str, str]

_PLACE: Final = "netns, kind, hook, engine, table_family, table_name, chain, rule, handle, reason"
_GROUPS: Final = """
SELECT {place}, {epoch} AS epoch, (time_ns - {since}) // {width} AS bucket, sum(weight),
  sum(CASE WHEN proto = 6 AND tcp_flags & 18 = 2 THEN weight ELSE 0 END),
  sum(weight * expected), min(time_ns), max(time_ns)
FROM drops GROUP BY ALL
"""
#: Of these the last columns: bucket, packets, SYNs, expected, first and last time.
_COUNTS: Final = 6
_FLOWS: Final = """
SELECT {place}, family, src_high, src_low, dst_high, dst_low, dport, proto,
  sum(weight) AS packets, min(time_ns) AS first_ns, max(time_ns)
FROM drops WHERE hash(src_low, dst_low, dport) % {one_in} = 0
GROUP BY ALL ORDER BY packets DESC, first_ns LIMIT {most}
"""
#: One flow in so many is read where all of them need more memory than there is.
_ONE_IN: Final = (1, 32, 1024)


def read_evidence(reader: LogReader, selection: Selection) -> Evidence | None:
    """Return what there is in the log about *selection*; None where the log is empty."""
    span = reader.span()
    if span is None:
        return None
    since_ns = span[0] if selection.since_ns is None else selection.since_ns
    until_ns = max(since_ns, span[1] if selection.until_ns is None else selection.until_ns)
    width_ns = max(1, (until_ns - since_ns) // BUCKETS + 1)
    changes = _read_changes(reader, selection, until_ns)
    flows, is_cut = _read_flows(reader, selection)
    return Evidence(
        since_ns=since_ns,
        until_ns=until_ns,
        width_ns=width_ns,
        seen_until_ns=min(until_ns, span[1]) if selection.until_ns is not None else span[1],
        groups=_read_groups(reader, selection, changes, since_ns, width_ns),
        flows=flows,
        changes=changes,
        read=read_table(reader),
        is_cut=is_cut,
        survivors=_read_survivors(reader, selection),
        losses=reader.losses(selection),
    )


def read_table(reader: LogReader) -> Callable[[str], Table]:
    """Return what reads a version of a table; one that is not there has no chains."""

    def read(name: str) -> Table:
        text = reader.text(name) if name else None
        try:
            return parse_table(text or "")
        except ValueError:
            return NO_TABLE

    return read


def _read_changes(reader: LogReader, selection: Selection, until_ns: int) -> list[Change]:
    # All that came before, too: what was in force when the window begins.
    wanted = type(selection)(until_ns=until_ns, netns=selection.netns)
    return sorted(reader.changes(wanted), key=lambda one: one.time_ns)


def _read_groups(
    reader: LogReader, selection: Selection, changes: Sequence[Change], since_ns: int, width_ns: int
) -> list[DropGroup]:
    edges = sorted({one.time_ns for one in changes if one.what == "ruleset"})[-_EPOCHS_MAX:]
    sql = _GROUPS.format(place=_PLACE, epoch=_epoch([0, *edges]), since=since_ns, width=width_ns)
    collected: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in reader.query(sql, selection):
        collected.setdefault(row[:-_COUNTS], []).append(row[-_COUNTS:])
    groups = []
    for (*place, _), rows in collected.items():
        series = Counter[int]()
        for bucket, packets, *_ in rows:
            series[int(bucket)] += int(packets)
        groups.append(
            DropGroup(
                Place(*place),
                sum(series.values()),
                int(sum(row[2] for row in rows)),
                min(row[4] for row in rows),
                max(row[5] for row in rows),
                series,
                int(sum(row[3] for row in rows)),
            )
        )
    return groups


def _epoch(edges: Sequence[int]) -> str:
    """Return an expression for the last of the ascending *edges* that a row is not before."""
    if len(edges) == 1:
        return f"{edges[0]}::BIGINT"
    half = len(edges) // 2
    first, last = _epoch(edges[:half]), _epoch(edges[half:])
    return f"CASE WHEN time_ns < {edges[half]} THEN {first} ELSE {last} END"


def _read_flows(reader: LogReader, selection: Selection) -> tuple[list[FlowDrops], bool]:
    """Return flows, those with most packets first, and whether there are others."""
    for one_in in _ONE_IN:
        sql = _FLOWS.format(place=_PLACE, most=_FLOWS_MAX + 1, one_in=one_in)
        try:
            rows = reader.query(sql, selection)
        except duckdb.OutOfMemoryException:
            continue
        flows = _flows(rows[:_FLOWS_MAX])
        return flows, one_in > 1 or len(rows) > _FLOWS_MAX
    return [], True


def _flows(rows: Sequence[tuple[Any, ...]]) -> list[FlowDrops]:
    flows = []
    for *place, family, src_high, src_low, dst_high, dst_low, dport, proto, n, first, last in rows:
        src, dst = (render_halves(family, *o) for o in ((src_high, src_low), (dst_high, dst_low)))
        word = PROTOCOL_NAMES.get(proto, str(proto)) if family else "not IP"
        flows.append(FlowDrops(Place(*place), src, dst, dport, word, int(n), first, last))
    return flows


def _read_survivors(reader: LogReader, selection: Selection) -> list[Survivors]:
    counted: Counter[_Flow] = Counter()
    last: dict[_Flow, int] = {}
    for stored in islice(reader.journeys(selection), _JOURNEYS_MAX):
        if stored.journey.ending.kind.value in _SURVIVED:
            key = _flow_of(stored.journey)
            counted[key] += 1
            last[key] = stored.journey.start_ns
    return [
        Survivors(src, dst, dport, proto, word, count, last[src, dst, dport, proto, word])
        for (src, dst, dport, proto, word), count in counted.most_common()
    ]


def _flow_of(journey: Journey) -> _Flow:
    packet, ending = journey.packet, journey.ending.kind.value
    word = "passed all rules" if ending == "unknown" else ending
    return packet.src or "", packet.dst or "", packet.dport or 0, packet.proto, word
