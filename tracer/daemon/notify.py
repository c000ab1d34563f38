"""
What systemd is told: ready, reloading, stopping, and that we are alive.

A datagram to the socket that `$NOTIFY_SOCKET` names; where none is named, nobody is told.
Source: sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Notifier"]


class Notifier:
    """
    The way to the one who started us.

    The variables are taken out of *environ*, so that no child talks in our name.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        # "@" begins the name of a socket in the abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = pid in {"", str(os.getpid())}
        self.watchdog_s = int(usec) / 1e6 if usec.isdecimal() and is_ours else None
        self._barked_s = 0.0

    def ready(self) -> None:
        """Say that we are watching."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` says that it was."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """Say that we are on the way out."""
        self._send("STOPPING=1")

    def status(self, sentence: str) -> None:
        """Give the line that `systemctl status` shows; none where it is empty."""
        # A line more would be another word to systemd.
        self._send(f"STATUS={' '.join(sentence.split())}")

    def alive(self, now_s: float) -> None:
        """Feed the watchdog, if there is one and a third of its patience is over."""
        if self.watchdog_s is not None and now_s - self._barked_s >= self.watchdog_s / 3:
            self._barked_s = now_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # Whoever started us may be gone, or slow: that is no reason to stop.
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as out:
            out.sendto(text.encode(), self._address)
