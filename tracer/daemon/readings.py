"""What the metrics are made from: the watch's drops, the rules' counters, and how we do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tracer.core.drops import Rung
from tracer.core.health import Exemplar, Health, SourceHealth
from tracer.errors import NftraceError, OutputError
from tracer.sources.rule_counters import CounterReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tracer.core.drops import DropCount
    from tracer.core.rule_reading import NetnsCounters
    from tracer.daemon.control import ControlServer
    from tracer.daemon.event_log import EventLog
    from tracer.daemon.messages import Messages
    from tracer.daemon.watch import Watch

__all__ = ["DaemonReadings", "TotalsFile"]

#: The totals of 20,000 rules are some 2 MB.
_TOTALS_BYTES_MAX = 64 << 20


class DaemonReadings:
    """
    The exporter's `Readings`; its threads call it, one at a time.

    *refused_reloads* is written by whoever reads the configuration.
    """

    def __init__(
        self,
        watch: Watch,
        messages: Messages,
        control: ControlServer | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        self.messages = messages
        self.refused_reloads = 0
        self._watch = watch
        self._control = control
        self._event_log = event_log
        self._reader = CounterReader()
        self._read: set[int] = set()

    def namespaces(self) -> Mapping[int, str]:
        """Return the watched namespaces' names by inode."""
        return {one.inode: one.name for one in self._watch.namespaces()}

    def counters(self) -> Sequence[NetnsCounters]:
        """Read the rules' counters of every namespace that lets itself be read."""
        known = self._watch.namespaces()
        self._reader.keep_only(one.inode for one in known)
        read = []
        self._read = set()
        for namespace in known:
            try:
                read.append(self._reader.read(namespace))
            except NftraceError as exc:
                # One that went away meanwhile is no complaint.
                if namespace.inode in self.namespaces():
                    self.messages.log.warning("counters_unread", netns=namespace.name, why=str(exc))
            else:
                self._read.add(namespace.inode)
        return read

    def drops(self) -> Sequence[DropCount]:
        """Return every kind of drop in the watched namespaces, rules named where known."""
        return self._watch.drops()

    def exemplars(self) -> Iterable[Exemplar]:
        """Return the last journey that was traced to each rule."""
        return self._watch.exemplars()

    def health(self) -> Health:
        """Return how the watch does."""
        state = self._watch.state()
        lost, is_up = state.losses, state.is_watching
        sources = [
            SourceHealth("drops", "", is_up, lost.seen, lost.missed + lost.uncounted),
            SourceHealth("drop_records", "", is_up, state.recorded, lost.unrecorded),
            *(
                SourceHealth("rule_counters", one.name, up=one.inode in self._read)
                for one in state.namespaces
            ),
        ]
        values: dict[str, float] = {}
        if self._event_log is not None:
            kept = self._event_log.status()
            lost_rows = kept.thinned + kept.left_out
            rows = sum(kept.rows.values())
            sources.append(
                SourceHealth("event_log", "", up=kept.trouble is None, events=rows, lost=lost_rows)
            )
            values["nftrace_log_bytes"] = kept.size_bytes
            values["nftrace_log_lag_seconds"] = kept.lag_s
        if state.change_losses is not None:
            unseen = state.change_losses
            sources.append(SourceHealth("changes", "", up=not unseen.unwatched, lost=unseen.lost))
        located = state.rung not in {Rung.REASON, Rung.LINKS}
        families = ("inet", "ip", "ip6") if located else ()
        naming = state.naming
        values |= {
            "nftrace_trace_armed_flows": state.waiting,
            "nftrace_trace_armed_total": naming.armed,
            "nftrace_trace_named_total": naming.named,
            "nftrace_trace_refused_total": naming.bounded,
            "nftrace_control_clients": self._control.clients if self._control else 0,
            "nftrace_control_clients_cut_total": self._control.cut if self._control else 0,
            "nftrace_messages_suppressed_total": self.messages.suppressed,
            "nftrace_messages_lost_total": self.messages.lost,
            "nftrace_trace_expired_total": naming.expired,
            "nftrace_trace_untraced_drops_total": sum(naming.untraced.values()),
            "nftrace_configurations_refused_total": self.refused_reloads,
        }
        return Health(
            tuple(sources),
            state.turns,
            state.busy_s,
            frozenset(("nft", family) for family in families),
            values,
        )


class TotalsFile:
    """
    Where the exporter's totals are kept, so that they go on after a restart.

    Written beside and renamed: a killed writer leaves the former ones.
    """

    def __init__(self, path: Path, messages: Messages) -> None:
        self._path = path
        self._messages = messages

    def load(self) -> bytes | None:
        """Return what was kept; None where nothing is, or nothing that can be read."""
        try:
            with self._path.open("rb") as file:
                raw = file.read(_TOTALS_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._messages.log.warning("totals_unread", file=str(self._path), why=exc.strerror)
            return None
        return raw if len(raw) <= _TOTALS_BYTES_MAX else None

    def keep(self, state: bytes) -> None:
        """Keep *state*; a full disk is said and does not keep metrics from being told."""
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            partial.write_bytes(state)
            partial.replace(self._path)
        except OSError as exc:
            partial.unlink(missing_ok=True)
            self._messages.log.warning("totals_unkept", file=str(self._path), why=exc.strerror)

    def prepare(self) -> None:
        """
        Make the folder.

        Errors: OutputError where it cannot be made.
        """
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as exc:
            message = f"{self._path.parent} cannot be made ({exc.strerror})"
            raise OutputError(message, 'name another file in [metrics], or totals = ""') from exc
