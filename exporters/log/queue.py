"""
What waits to be written: bounded, and thinned before it is full.

Drops come by the million and are alike: from half of the limit on only one in eight is
taken, from three quarters on one in 64, each standing for the others by its weight. Above
the limit nothing is taken. The other tables have a room of their own, so that no flood of
drops can cost a journey or a change. What was not taken is counted, and told as a loss.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracer.core.log_rows import pick
from tracer.core.log_schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.core.log_rows import Columns

__all__ = ["Item", "LeftOut", "Queue", "are_alike", "in_order"]

#: Journeys, changes and losses that wait, some 5 KB each.
_OTHER_ROWS: Final = 8192
#: Batches of drops, however small: 0.5 KB each besides their rows.
_ITEMS: Final = 65_536
#: Share of the limit from which on one in so many drops is taken.
_LEVELS: Final = ((0.75, 64), (0.5, 8))


@dataclass(frozen=True, slots=True)
class Item:
    """Rows of one table, in the order they were put."""

    table: str
    columns: Columns
    rows: int
    #: Rows behind it are written behind it, those before it before: the clock was set.
    is_step: bool = False


@dataclass(slots=True)
class LeftOut:
    """Rows that were not taken, between two times; *is_weighed*: others stand for them."""

    table: str
    is_weighed: bool
    count: int
    since_ns: int
    until_ns: int


class Queue:
    """Hands rows from those who see events to the one who writes them; never waits to put."""

    def __init__(self, drop_rows: int) -> None:
        self._limit = drop_rows
        self._lock = threading.Condition()
        self._items: list[Item] = []
        self._rows = {True: 0, False: 0}
        self._left_out: dict[tuple[str, bool], LeftOut] = {}
        self._phase = 0
        self._put = 0
        self._done = 0
        self._closed = False
        #: Set by the writer while sealing lags behind: thin as if the queue were this full.
        self.pressure = 0.0

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(self._rows.values())

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    def put(self, item: Item, now_ns: int) -> None:
        """Take rows in, all, some or none of them."""
        are_drops = item.table == "drops"
        with self._lock:
            kept = self._thin(item, now_ns) if are_drops else item
            # Without the steps of its clock a log has no order.
            limit = self._limit if are_drops else _OTHER_ROWS * (2 if item.is_step else 1)
            is_full = self._rows[are_drops] + kept.rows > limit or len(self._items) >= _ITEMS
            if self._closed or is_full:
                # Those that were to stand for others are not there, either.
                self._leave_out(item.table, kept.rows, now_ns, is_weighed=False)
                return
            if not kept.rows:
                return
            self._items.append(kept)
            self._rows[are_drops] += kept.rows
            self._put += 1
            self._lock.notify_all()

    def take(self, timeout_s: float) -> list[Item]:
        """Return all that waits, having waited so long for it at most."""
        with self._lock:
            if not self._items and not self._closed:
                self._lock.wait(timeout_s)
            taken, self._items = self._items, []
            return taken

    def done(self, items: int, rows: int, *, are_drops: bool) -> None:
        """Say that so many of what was taken are written: only then is there room again."""
        with self._lock:
            self._done += items
            self._rows[are_drops] -= rows
            self._lock.notify_all()

    def wait_done(self, timeout_s: float) -> bool:
        """Wait until what was put before now is written; return whether it is."""
        with self._lock:
            until = self._put
            return self._lock.wait_for(lambda: self._done >= until, timeout_s)

    def wake(self) -> None:
        """End a take() that waits."""
        with self._lock:
            self._lock.notify_all()

    def close(self) -> None:
        """Take nothing more in; what waits can still be taken out."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def take_left_out(self) -> list[LeftOut]:
        """Return what was left out since the last call."""
        with self._lock:
            taken = list(self._left_out.values())
            self._left_out.clear()
            return taken

    def _thin(self, item: Item, now_ns: int) -> Item:
        fill = max(self._rows[True] / self._limit, self.pressure)
        one_in = next((n for level, n in _LEVELS if fill >= level), 1)
        if one_in == 1:
            return item
        # The phase goes on from batch to batch: small ones are thinned alike.
        kept = np.arange(-self._phase % one_in, item.rows, one_in)
        self._phase = (self._phase + item.rows) % one_in
        self._leave_out(item.table, item.rows - len(kept), now_ns, is_weighed=True)
        columns = dict(pick(item.columns, kept))
        weights: Any = columns.get("weight", 1)
        weight = np.broadcast_to(weights, len(kept)).astype(np.uint64)
        weight *= np.uint64(one_in)
        columns["weight"] = np.minimum(weight, 0xFFFF_FFFF).astype(np.uint32)
        return Item(item.table, columns, len(kept))

    def _leave_out(self, table: str, count: int, now_ns: int, *, is_weighed: bool) -> None:
        if not count:
            return
        known = self._left_out.setdefault(
            (table, is_weighed), LeftOut(table, is_weighed, 0, now_ns, now_ns)
        )
        known.count += count
        known.until_ns = now_ns


def in_order(items: list[Item]) -> Iterator[tuple[str, list[Item]]]:
    """Yield items by table; between steps of the clock what is few goes first."""
    groups: dict[str, list[Item]] = {}
    for item in [*items, None]:
        if item is None or item.is_step:
            # A flood of drops must not keep the others waiting.
            yield from ((name, groups[name]) for name in reversed(TABLES) if name in groups)
            groups = {}
        if item is not None and item.is_step:
            yield item.table, [item]
        elif item is not None:
            groups.setdefault(item.table, []).append(item)


def are_alike(one: Item, other: Item) -> bool:
    """Tell whether two items can be written as one."""
    return one.columns.keys() == other.columns.keys()
