"""
Connections that could not be tracked: a full table, and entries that could not be put in.

Counters of one namespace, compared now and then. They only grow; a growth is told with the
number before and after, at most once in `TELL_S` for each counter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracer.core.log_rows import Change
from tracer.sources.netns import entered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracer.sources.netns import Netns

__all__ = ["TELL_S", "ConntrackChanges", "Counters", "parse_counters", "read_counters"]

#: A counter that grows all the time is told this often.
TELL_S: Final = 10.0
_LOOK_S: Final = 2.0
#: Looking, in all namespaces, may take one part in so many of a core.
_SHARE: Final = 100
#: Source: ct_cpu_seq_show() in net/netfilter/nf_conntrack_standalone.c: one row a CPU, hex.
_STAT: Final = Path("/proc/thread-self/net/stat/nf_conntrack")
_LIMITS: Final = Path("/proc/sys/net/netfilter")
_COUNTERS: Final = ("insert_failed", "drop", "early_drop")


@dataclass(frozen=True, slots=True)
class Counters:
    """One namespace's counters by name, and how many connections of how many it holds."""

    counts: Mapping[str, int]
    held: int = 0
    limit: int = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another connection."""
        return 0 < self.limit <= self.held


class ConntrackChanges:
    """One namespace's counters as they were; *read* gives those of the calling thread's."""

    def __init__(self, namespace: Netns, read: Callable[[], Counters | None] | None = None) -> None:
        #: How many namespaces are looked at: together they may take what `_SHARE` says.
        self.sharers = 1
        self._namespace = namespace
        self._read = read or read_counters
        self._due_s = 0.0
        self._known: dict[str, int] | None = None
        self._is_full = False
        self._told_s: dict[str, float] = {}

    def due_in(self, now_s: float) -> float:
        """Return in how many seconds `look` has something to do."""
        return max(0.0, self._due_s - now_s)

    def look(self, now_s: float, now_ns: int) -> list[Change]:
        """
        Return what grew, if it is time to look; *now_s* is monotonic.

        Errors: KernelRefusedError where the namespace is gone.
        """
        if now_s < self._due_s:
            return []
        began_s = time.monotonic()
        with entered(self._namespace):
            found = self._read()
        cost_s = time.monotonic() - began_s
        self._due_s = now_s + max(_LOOK_S, cost_s * _SHARE * self.sharers)
        if found is None:
            return []
        changes = []
        if self._known is None:
            # What was counted before we came is no change.
            self._known = dict(found.counts)
        for name, count in found.counts.items():
            was = self._known.get(name, 0)
            # One that was told just now is told with the next.
            if count > was and now_s - self._told_s.get(name, -TELL_S) >= TELL_S:
                self._told_s[name] = now_s
                self._known[name] = count
                changes.append(self._change(name, str(was), str(count), now_ns))
        if found.is_full is not self._is_full:
            self._is_full = found.is_full
            words = "not full", f"full ({found.held} of {found.limit})"
            before, after = words if found.is_full else ("full", words[0])
            changes.append(self._change("table", before, after, now_ns))
        return changes

    def _change(self, name: str, before: str, after: str, now_ns: int) -> Change:
        return Change(now_ns, self._namespace.name, "conntrack", "changed", name, before, after)


def read_counters() -> Counters | None:
    """Return the calling thread's namespace's counters; None where the kernel shows none."""
    try:
        counts = parse_counters(_STAT.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    names = "nf_conntrack_count", "nf_conntrack_max"
    return Counters(counts, *(_read_number(_LIMITS / name) for name in names))


def parse_counters(text: str) -> dict[str, int]:
    """
    Return the sums over all CPUs.

    Shape: *text* has a line of names, and a line of hexadecimal numbers for each CPU.
    Errors: ValueError for anything else.
    """
    head, *rows = [line.split() for line in text.splitlines()] or [[]]
    numbers = [[int(word, 16) for word in row] for row in rows]
    if any(len(row) != len(head) for row in rows):
        raise ValueError("a row with other columns than the head's")
    return {name: sum(row[head.index(name)] for row in numbers) for name in _COUNTERS}


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
