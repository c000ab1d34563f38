"""The log's rows as JSON lines, CSV, Parquet and captures, in the order they were written."""

from __future__ import annotations

import csv
import heapq
import json
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from exporters.json_lines import render_packet, render_start, render_text
from exporters.log.encode import arrow_schema
from exporters.log.journeys import read_journey
from exporters.log.select import matches_journey
from exporters.rebuild import rebuild_headers
from tracer.core.journey import Packet
from tracer.core.log_rows import render_halves
from tracer.core.log_schema import TABLES
from tracer.core.packet_text import render_family, render_protocol, render_tcp_flags
from tracer.core.protocols import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, TCP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exporters.anonymize import Anonymizer
    from exporters.log.reader import LogReader
    from exporters.log.select import Selection
    from exporters.pcapng import PcapngWriter
    from tracer.core.journey import Journey

__all__ = ["LogExport"]

_HALVES: Final = ("src", "dst")
_TEXTS: Final = frozenset(
    {"chain", "subject", "before", "after", "detail", "command", "table_name"}
)
_DROP_FIELDS: Final = (
    *("hook", "engine", "table_family", "table_name", "chain", "rule", "handle", "reason"),
    *("kind", "certain", "weight", "mark", "expected"),
)


class LogExport:
    """Writes what *selection* chooses of a log, with other addresses where asked for."""

    def __init__(
        self, reader: LogReader, selection: Selection, anonymizer: Anonymizer | None = None
    ) -> None:
        self._reader = reader
        self._selection = selection
        self._anonymizer = anonymizer
        #: Rows written so far, and those that a capture has no place for.
        self.rows = 0
        self.passed_over = 0

    def json(self, out: IO[str], tables: Sequence[str]) -> None:
        """Write one object a row, `nftrace.journey/1` and `nftrace.drop/1` among them."""
        render = {"drops": _drop_line, "journeys": _journey_line}
        for table, row in self._merged(tables):
            out.write(render.get(table, _plain_line)(row, table) + "\n")
            self.rows += 1

    def csv(self, out: IO[str], table: str) -> None:
        """Write the table's columns with a head; addresses and times as text."""
        writer = csv.writer(out, lineterminator="\n")
        names = [n for n in TABLES[table].names if n not in {"network", "transport"}]
        shown = [_shown(name) for name in names if not name.endswith("_low")]
        writer.writerow(shown)
        for row in self._rows(table):
            row |= {f"{n}_high": _address(row, n) for n in _HALVES if f"{n}_high" in row}
            row["time_ns"] = render_start(row["time_ns"])
            writer.writerow([row[name] for name in names if not name.endswith("_low")])
            self.rows += 1

    def parquet(self, out: BinaryIO, table: str) -> None:
        """Write the table's columns as the log has them."""
        with pq.ParquetWriter(out, arrow_schema(TABLES[table]), compression="zstd") as writer:
            for batch in self._batches(table):
                named = pa.Table.from_batches([batch]).cast(arrow_schema(TABLES[table]))
                writer.write_table(named)
                self.rows += batch.num_rows

    def pcap(
        self, writer: PcapngWriter, tables: Sequence[str], comment: Callable[[Journey], str]
    ) -> None:
        """Write journeys with the line that *comment* gives, and drops with their place."""
        for table, row in self._merged([t for t in ("drops", "journeys") if t in tables]):
            if table == "drops":
                headers = b"".join(rebuild_headers(row))
                text = _drop_comment(row)
            else:
                journey = read_journey(row["json"], row["time_ns"])
                headers, text = row["network"] + row["transport"], comment(journey)
            self.rows += writer.write_packet(row["time_ns"], row["length"], headers, text)
        self.passed_over = writer.passed_over

    def _merged(self, tables: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows of several tables in the order of their ordinals."""

        def of(table: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for row in self._rows(table):
                yield table, row

        return heapq.merge(*(of(table) for table in tables), key=lambda one: one[1]["ordinal"])

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        for batch in self._batches(table):
            yield from batch.to_pylist()

    def _batches(self, table: str) -> Iterator[Any]:
        for batch in self._reader.batches(table, self._selection):
            chosen = self._chosen(batch) if table == "journeys" else batch
            if chosen.num_rows:
                yield chosen if self._anonymizer is None else _hidden(chosen, self._anonymizer)

    def _chosen(self, batch: Any) -> Any:  # noqa: ANN401 - a pyarrow batch
        """Return the journeys that match indeed."""
        lines = zip(batch["json"].to_pylist(), batch["time_ns"].to_pylist(), strict=True)
        journeys = [read_journey(line, time_ns) for line, time_ns in lines]
        wanted = self._selection.filter
        return batch.filter(pa.array([matches_journey(wanted, one) for one in journeys]))


def _hidden(batch: Any, anonymizer: Anonymizer) -> Any:  # noqa: ANN401 - a pyarrow batch
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if "src_high" in columns:
        family = columns["family"].to_numpy(zero_copy_only=False)
        for name in _HALVES:
            names = f"{name}_high", f"{name}_low"
            halves = [columns[one].to_numpy(zero_copy_only=False) for one in names]
            mapped = anonymizer.halves(family, halves[0], halves[1])
            columns |= {one: pa.array(values) for one, values in zip(names, mapped, strict=True)}
    for name in _TEXTS & columns.keys():
        words = {word: anonymizer.text(word) for word in set(columns[name].to_pylist())}
        columns[name] = pa.array([words[word] for word in columns[name].to_pylist()], pa.utf8())
    if "json" in columns:
        lines = [json.loads(line) for line in columns["json"].to_pylist()]
        told = [_dumped(anonymizer.line(line)) for line in lines]
        columns["json"] = pa.array(told, pa.utf8())
        raw = zip(columns["network"].to_pylist(), columns["transport"].to_pylist(), strict=True)
        hidden = [anonymizer.headers(*one) for one in raw]
        for at, name in enumerate(("network", "transport")):
            columns[name] = pa.array([one[at] for one in hidden], pa.binary())
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _dumped(told: object) -> str:
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def _shown(name: str) -> str:
    return {"time_ns": "time", "src_high": "src", "dst_high": "dst"}.get(name, name)


def _address(row: dict[str, Any], name: str) -> str:
    return render_halves(row["family"], row[f"{name}_high"], row[f"{name}_low"])


def _journey_line(row: dict[str, Any], table: str) -> str:
    del table
    line: str = row["json"]
    return line


def _drop_line(row: dict[str, Any], table: str) -> str:
    del table
    head = {name: row[name] or None for name in _DROP_FIELDS}
    head |= {"certain": bool(row["certain"]), "expected": bool(row["expected"])}
    place = ",".join(f'"{name}":{json.dumps(value)}' for name, value in head.items())
    return (
        f'{{"schema":"nftrace.drop/1","time":"{render_start(row["time_ns"])}",'
        f'"host":{render_text(row["host"])},"netns":{render_text(row["netns"])},'
        f'"in":{render_text(row["in_device"] or None)},'
        f'"device":{render_text(row["device"] or None)},'
        f'"fingerprint":"{row["fingerprint"]:016x}",{place},"packet":{render_packet(_packet(row))}}}'
    )


def _plain_line(row: dict[str, Any], table: str) -> str:
    schema = f"nftrace.{ {'changes': 'change', 'losses': 'loss'}[table] }/1"
    told = {"schema": schema, "time": render_start(row.pop("time_ns")), **row}
    return _dumped(told)


def _packet(row: dict[str, Any]) -> Packet:
    family, proto = row["family"], row["proto"]
    if not family:
        return Packet(family="other", proto="0", length=row["length"])
    fields: dict[str, Any] = {}
    if proto in PROTOCOLS_WITH_PORTS:
        fields |= {"sport": row["sport"], "dport": row["dport"]}
    if proto == TCP:
        fields |= {"tcp_flags": render_tcp_flags(row["tcp_flags"]), "tcp_seq": row["tcp_seq"]}
    if (family, proto) in {(4, ICMP), (6, ICMPV6)}:
        icmp = row["icmp"]
        fields |= {"icmp_type": icmp >> 40, "icmp_code": icmp >> 32 & 0xFF}
    return Packet(
        family=render_family(family),
        proto=render_protocol(proto),
        src=_address(row, "src"),
        dst=_address(row, "dst"),
        length=row["length"],
        ttl=row["ttl"],
        ip_id=row["ip_id"] if family == 4 else None,  # noqa: PLR2004 - an IP version
        **fields,
    )


def _drop_comment(row: dict[str, Any]) -> str:
    """Return where the packet died, and what of it is the log's and not the wire's."""
    place = " ".join(
        str(part) for part in (row["hook"], row["engine"], row["table_name"], row["chain"]) if part
    )
    rule = f" rule {row['rule']}" if row["rule"] else ""
    rule = rule or (f" handle {row['handle']}" if row["handle"] else "")
    weight = f"; stands for {row['weight']} drops" if row["weight"] > 1 else ""
    where = f" by {place}{rule}" if place else ""
    return f"{row['netns']}: dropped{where} ({row['reason']}){weight}; headers rebuilt from the log"
