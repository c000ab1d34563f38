"""What the watch sees, into the event log: recorded drops, traced journeys, losses."""

from __future__ import annotations

import os
import time
from pathlib import Path
from socket import if_nameindex
from typing import TYPE_CHECKING

import numpy as np

from exporters.log import LogOptions, LogWriter
from tracer.core.expected_drops import ExpectedDrops
from tracer.core.log_rows import Loss, drop_columns
from tracer.errors import NftraceError
from tracer.sources.netns import entered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from exporters.log import LogStatus
    from tracer.core.drops import DropCount
    from tracer.core.expected import Expected
    from tracer.core.journey import Journey
    from tracer.daemon.settings import LogSettings
    from tracer.sources.drops import DropLosses
    from tracer.sources.netns import Netns

__all__ = ["EventLog"]

_DAY_S = 86_400
#: Devices come and go; a name is this old at most.
_DEVICES_S = 10.0
#: What was lost is told this often, if there was anything.
_LOSSES_S = 60.0
_LOST = ("missed", "uncounted", "unrecorded")


class EventLog:
    """
    The daemon's pen: it never waits for the disk, whose troubles are in `status`.

    Errors: OutputError where the folder cannot be written or another writes in it.
    """

    def __init__(self, settings: LogSettings, expected: Expected) -> None:
        options = LogOptions(
            keep_s=settings.keep_days * _DAY_S,
            size_bytes=int(settings.size_gb * (1 << 30)),
            group=settings.group,
        )
        self.writer = LogWriter(Path(settings.directory), os.uname().nodename, options)
        #: Told of each change of rules, so that drops are known that are meant.
        self.meant = ExpectedDrops(expected)
        self._devices: dict[int, tuple[float, dict[int, str]]] = {}
        self._lost = dict.fromkeys(_LOST, 0)
        self._lost_ns = time.time_ns()
        self._due_s = 0.0

    def append_drops(
        self,
        kinds: Sequence[DropCount],
        indexes: npt.NDArray[np.intp],
        records: npt.NDArray[np.void],
        namespaces: Mapping[int, Netns],
        now_s: float,
    ) -> None:
        """Append records of drops; `kinds[indexes[i]]` is the kind of the i-th."""
        # A device's number means another device in the next namespace.
        for inode in np.unique(records["key"]["netns"]).tolist():
            rows = np.flatnonzero(records["key"]["netns"] == inode)
            namespace = namespaces.get(inode)
            name = namespace.name if namespace else f"net:[{inode}]"
            devices = self._devices_of(inode, namespace, now_s)
            which = indexes[rows]
            columns = drop_columns(records[rows], kinds, which, [name] * len(kinds), devices)
            meant = np.array(self.meant.are_meant(name, kinds), np.uint8)[which]
            self.writer.append_drops({**columns, "expected": meant}, len(rows))

    def append_journeys(self, journeys: Sequence[Journey], packets: npt.NDArray[np.void]) -> None:
        """Append traced journeys; *packets* `PACKET (n,)` are their packets' headers."""
        self.writer.append_journeys(journeys, packets)

    def note_losses(self, read: Callable[[], DropLosses], now_s: float) -> None:
        """Append what the programs lost since the last time, *read* once a minute."""
        if now_s < self._due_s:
            return
        self._due_s, now_ns = now_s + _LOSSES_S, time.time_ns()
        losses = read()
        lost = {name: getattr(losses, name) for name in _LOST}
        self.writer.append_losses(
            [
                Loss(
                    now_ns, "drops", name, count - self._lost[name], "drops", self._lost_ns, now_ns
                )
                for name, count in lost.items()
                if count > self._lost[name]
            ]
        )
        self._lost, self._lost_ns = lost, now_ns

    def _devices_of(self, inode: int, namespace: Netns | None, now_s: float) -> dict[int, str]:
        read_s, devices = self._devices.get(inode, (-_DEVICES_S, {}))
        if now_s - read_s < _DEVICES_S or namespace is None:
            return devices
        try:
            with entered(namespace):
                devices = dict(if_nameindex())
        except (NftraceError, OSError):
            # It went away: what is known of it stands for what comes late.
            pass
        self._devices[inode] = now_s, devices
        return devices

    def forget(self, namespaces: Sequence[Netns]) -> None:
        """Drop what is known of namespaces that are gone."""
        for one in namespaces:
            self._devices.pop(one.inode, None)
            self.meant.forget(one.name)

    def status(self) -> LogStatus:
        """Return what was written and what was not."""
        return self.writer.status()

    def close(self) -> str | None:
        """Write what waits; return what is left, in words. Harmless when repeated."""
        return self.writer.close()
