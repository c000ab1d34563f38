"""What a namespace is asked of while it is followed: its devices' names, who reads its queues."""

from __future__ import annotations

import time
from pathlib import Path
from socket import if_indextoname
from typing import TYPE_CHECKING

from tracer.sources.netns import entered

if TYPE_CHECKING:
    from tracer.sources.netns import Netns

__all__ = ["NamespaceNames"]

#: A list of listeners is this old at most.
_LISTENERS_NS = 100_000_000


class NamespaceNames:
    """The answers of one namespace, remembered."""

    def __init__(self, namespace: Netns) -> None:
        self._namespace = namespace
        self._devices: dict[int, str] = {}
        self._listeners: tuple[int, frozenset[int]] = (0, frozenset())

    def device(self, index: int) -> str | None:
        """Return the name of the device with this index, `#N` once it is gone, None for 0."""
        if index == 0:
            return None
        name = self._devices.get(index)
        if name is None:
            with entered(self._namespace):
                try:
                    name = if_indextoname(index)
                except OSError:
                    name = f"#{index}"
            self._devices[index] = name
        return name

    def has_listener(self, queue: int) -> bool:
        """Tell whether a program reads the nfnetlink queue with this number."""
        taken_ns, numbers = self._listeners
        now_ns = time.monotonic_ns()
        if now_ns - taken_ns > _LISTENERS_NS:
            numbers = self._read_listeners()
            self._listeners = (now_ns, numbers)
        return queue in numbers

    def _read_listeners(self) -> frozenset[int]:
        with entered(self._namespace):
            try:
                text = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
            except OSError:
                return frozenset()
        return frozenset(int(line.split()[0]) for line in text.splitlines() if line.split())
