"""What the writer's thread does to the folder: open segments, their sealing, their limits."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.log.encode import read_stream
from exporters.log.open_segment import OpenSegment
from exporters.log.rulesets import store_text
from exporters.log.sealer import Sealer, sealing_paused
from exporters.log.segments import list_segments, segment_bytes
from tracer.core.log_rows import Loss
from tracer.core.log_schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from exporters.log.clock import Clock
    from exporters.log.options import LogOptions

__all__ = ["LogDisk"]

#: Share of the log's size that unsealed segments, which are ten times as large as sealed
#: ones, may take before drops are thinned as if the queue were half full.
_UNSEALED_SHARE = 0.125
#: A request that failed, as sealing on a full disk does, is asked again with the next roll
#: or after so many looks.
_RETRY_LOOKS = 25


class LogDisk:
    """Numbers rows and puts them into files; for one thread."""

    def __init__(self, directory: Path, options: LogOptions) -> None:
        self._directory = directory
        self._options = options
        self.sealer = Sealer(directory, options.group)
        self.acknowledged = -1
        self.rows = dict.fromkeys(TABLES, 0)
        #: What the disk said, None while it takes what it is given.
        self.trouble: str | None = None
        self.wants_retiring = True
        #: Set when rows are passed over for good: nothing is acknowledged any more.
        self.gave_up = False
        #: The time of the last row that a killed writer left, 0 where there is none.
        self.left_ns = 0
        self._next = 0
        self._open: dict[str, OpenSegment] = {}
        self._failed: list[str] = []
        self._looks = 0
        self._losses: list[Loss] = []
        self._synced_s = 0.0
        self._unsealed: dict[str, int] = {}

    @property
    def unsealed(self) -> int:
        """Segments that wait to be sealed."""
        return len(self._unsealed)

    @property
    def refused(self) -> int:
        """Rows that were given up with the log's end, as the disk did not take them."""
        return self._next - 1 - self.acknowledged if self.gave_up else 0

    @property
    def pressure(self) -> float:
        """How far sealing lags behind: from 0.5 on drops are to be thinned."""
        allowed = self._options.size_bytes * _UNSEALED_SHARE
        return 0.5 * sum(self._unsealed.values()) / allowed

    def recovered(self, now_ns: int) -> list[Loss]:
        """
        Go on after the last ordinal there is, and have what was left open sealed.

        Returns what was found torn.
        """
        # An orphaned sealer may be at work: between two of its segments it waits for us.
        with sealing_paused(self._directory):
            listing = list_segments(self._directory)
            lasts = [one.last for one in listing.sealed]
            # A table's later segment begins behind all rows of its earlier ones.
            for one in {one.table: one for one in listing.open}.values():
                for batch in read_stream(one.path).batches[-1:]:
                    ordinal, time_ns = (batch[name][-1].as_py() for name in ("ordinal", "time_ns"))
                    if ordinal > max(lasts, default=-1):
                        self.left_ns = time_ns
                    lasts.append(ordinal)
                lasts.append(one.first)
        losses = []
        for one in listing.open:
            # Asked for with the next round of what failed: a start need not wait for a process.
            self._unsealed[one.path.name] = segment_bytes(one.path)
            self._failed.append(one.path.name)
        self._next = max(lasts, default=-1) + 1
        self.acknowledged = self._next - 1
        if listing.open:
            names = ", ".join(one.path.name for one in listing.open)
            losses.append(
                Loss(
                    now_ns,
                    "log",
                    "not_closed",
                    len(listing.open),
                    "segments",
                    detail=f"the last writer did not end by itself: {names}",
                )
            )
        return losses

    def encode(self, table: str, columns: dict[str, Any], rows: int, clock: Clock) -> None:
        """
        Turn rows into bytes of the table's open segment; `write` puts them there.

        Errors: those of OpenSegment.encode.
        """
        now_s = clock.monotonic_ns() / 1e9
        segment = self._open.get(table)
        if segment is not None and (
            segment.size >= self._options.segment_bytes or not segment.has_room(columns)
        ):
            self._roll(table)
            segment = None
        if segment is None:
            segment = OpenSegment(self._directory, TABLES[table], self._next, now_s)
            self._open[table] = segment
        ordinals = np.arange(self._next, self._next + rows)
        segment.encode({**columns, "ordinal": ordinals}, rows)
        self._next += rows
        self.rows[table] += rows

    def write(self, table: str) -> bool:
        """Put what was encoded into the file; return whether the disk took it."""
        segment = self._open.get(table)
        if segment is None:
            return True
        try:
            segment.write(self._options.group)
            if self._options.sync_s == 0:
                segment.sync()
        except OSError as exc:
            self.trouble = f"{segment.path.name}: {exc.strerror}"
            self.wants_retiring = True
            return False
        self.trouble = None
        if not self.gave_up:
            self.acknowledged = self._next - 1
        return True

    def store_text(self, text: str) -> bool:
        """Store a ruleset's text; return whether the disk took it."""
        try:
            store_text(self._directory, text, self._options.group)
        except OSError as exc:
            self.trouble = f"rulesets: {exc.strerror}"
            return False
        return True

    def touch_text(self, name: str) -> None:
        """Keep a text from being retired."""
        with contextlib.suppress(OSError):
            os.utime(self._directory / "rulesets" / f"{name}.gz")

    def roll_aged(self, now_s: float) -> None:
        """Have the segments sealed that are old enough; sync the others when it is time."""
        for table, segment in list(self._open.items()):
            if segment.size and now_s - segment.began_s >= self._options.segment_s:
                self._roll(table)
        every_s = self._options.sync_s
        if every_s and now_s - self._synced_s >= every_s:
            self._synced_s = now_s
            for segment in self._open.values():
                with contextlib.suppress(OSError):
                    segment.sync()

    def ask_retire(self, now_ns: int) -> None:
        """Have retired what is too old or too much."""
        self.wants_retiring = False
        options = self._options
        limits = {"keep_s": options.keep_s, "size_bytes": options.size_bytes, "now_ns": now_ns}
        self.sealer.ask({"retire": limits})

    def collect(self) -> None:
        """Take the sealer's answers, and ask again for what failed."""
        for answer in self.sealer.answers():
            self._take(answer)
        self._looks += 1
        if self._looks % _RETRY_LOOKS == 0:
            self._ask_again()

    def _take(self, answer: Mapping[str, Any]) -> None:
        name = answer.get("seal")
        if name is None:
            return
        if "failed" in answer:
            self.trouble = answer["failed"]
            self._failed.append(name)
            return
        self._unsealed.pop(name, None)
        if answer["left_bytes"]:
            detail = f"{name}: {answer['why']}"
            self._losses.append(
                Loss(0, "log", "torn", answer["left_bytes"], "bytes", detail=detail)
            )

    def _ask_again(self) -> None:
        failed, self._failed = self._failed, []
        for name in failed:
            self._ask_seal(name, self._unsealed.get(name, 0))

    def collect_losses(self, now_ns: int) -> list[Loss]:
        """Return what sealing found torn."""
        losses, self._losses = self._losses, []
        return [
            Loss(now_ns, one.source, one.what, one.count, one.unit, detail=one.detail)
            for one in losses
        ]

    def size_bytes(self) -> int:
        """Return how much the folder's segments and texts take."""
        total = 0
        for path in self._directory.rglob("*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    @property
    def has_settled(self) -> bool:
        """Whether the start is over, and there is time for what can wait."""
        return self._looks >= _RETRY_LOOKS

    def close(self, now_ns: int, timeout_s: float) -> None:
        """Seal everything and retire what is due, for so long at most."""
        self._ask_again()
        for table in list(self._open):
            self._roll(table)
        self.ask_retire(now_ns)
        for answer in self.sealer.close(timeout_s):
            self._take(answer)

    def _roll(self, table: str) -> None:
        segment = self._open.pop(table)
        segment.close()
        if segment.size:
            self._ask_seal(segment.path.name, segment.size)
        self.wants_retiring = True

    def _ask_seal(self, name: str, size: int) -> None:
        self._unsealed[name] = size
        self.sealer.ask({"seal": name})
