"""Rows for logs in tests, and a clock that is turned by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tests.journeys import START_NS
from tracer.core.log_rows import Words

if TYPE_CHECKING:
    from tracer.core.log_rows import Columns

MS = 1_000_000
S = 1_000_000_000


class HandClock:
    """Tells the time that it was set to; both clocks go on with `pass_s`."""

    def __init__(self, wall_ns: int = START_NS) -> None:
        self.wall = wall_ns
        self.monotonic = 0

    def wall_ns(self) -> int:
        """Return the time of day."""
        return self.wall

    def monotonic_ns(self) -> int:
        """Return the time that only grows."""
        return self.monotonic

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += int(seconds * S)
        self.monotonic += int(seconds * S)


def drops(count: int, *, first: int = 0, at_ns: int | None = None, netns: str = "vr2") -> Columns:
    """
    Make SYNs to 172.17.21.105:22 that died, a millisecond apart.

    The sequence number counts on from *first*, so that every row is known again.
    """
    start = time.time_ns() if at_ns is None else at_ns
    number = np.arange(first, first + count)
    return {
        "time_ns": start + np.arange(count) * MS,
        "netns": netns,
        "family": 4,
        "proto": 6,
        "src_low": 0xFFFF_B73E_0F00 + (number % 251),
        "dst_low": 0xFFFF_AC11_1569,
        "sport": (number % 28_657 + 32_768).astype(np.uint16),
        "dport": 22,
        "tcp_seq": number.astype(np.uint32),
        "tcp_flags": 2,
        "length": 52,
        "ttl": 62,
        "weight": 1,
        "chain": Words(["FIREWALL_172.17.21.105", "INPUT"], number % 2),
        "rule": 5 - number % 2 * 4,
        "reason": "NETFILTER_DROP",
        "kind": "rule",
    }
