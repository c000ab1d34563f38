"""
The log's writer: takes events at any rate, and never makes who saw them wait.

`append_*` puts rows into a bounded queue and returns. A thread of the writer's turns them
into batches of the open segments; a process of its own seals and retires. `flush` waits
until what was appended is written and returns the ordinal up to which everything is: that
is what SIGKILL cannot take away. A disk that is full or slow is met by thinning (see
`exporters.log.queue`); when it has room again, writing goes on where it stopped, and what
was left out is a row in `losses`.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from exporters.log.clock import STEP_NS, StepWatch, SystemClock
from exporters.log.disk import LogDisk
from exporters.log.journeys import journey_columns
from exporters.log.lock import lock_folder, note_end, take_end
from exporters.log.options import LogOptions
from exporters.log.queue import Item, Queue, are_alike, in_order
from exporters.log.rulesets import content_name
from tracer.core.log_rows import Change, Loss, join
from tracer.core.timeline_events import UNSEEN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    import numpy as np
    import numpy.typing as npt

    from exporters.log.clock import Clock
    from tracer.core.journey import Journey
    from tracer.core.log_rows import Columns

__all__ = ["LogStatus", "LogWriter"]

#: Namespace, engine, and the table's family and name.
_Place: TypeAlias = tuple[str, str, str]

#: How long the thread waits for rows before it looks after segments and answers.
_TURN_S = 0.2
#: Rows of one batch: larger ones take longer between two looks at the queue.
_BATCH_ROWS = 1 << 17
_RETIRE_S = 60.0
#: Tables remembered to be said again, 0.6 KB each: sixteen in each of 1024 namespaces.
_IN_FORCE = 16_384
#: … and so many in a turn, so that there is room beside them for what happens.
_RESTATED = 1024
#: Well within what a service manager lets us have.
_CLOSE_S = 12.0


@dataclass(frozen=True, slots=True)
class LogStatus:
    """
    What the writer did and what it could not, since it was opened.

    *acknowledged* is the last ordinal that is written. *rows* by table. *queued* rows wait;
    the oldest for *lag_s*. *thinned* drops have others standing for them, *left_out* rows
    have none. *invalid* rows were not what their table is. *size_bytes* is the folder's.
    *trouble* is what the disk said last, None when it takes what it is given.
    """

    acknowledged: int
    rows: dict[str, int]
    queued: int
    lag_s: float
    thinned: int
    left_out: int
    invalid: int
    unsealed: int
    size_bytes: int
    sealer_restarts: int
    trouble: str | None


class LogWriter:
    """Writes one log; one writer in a folder at a time."""

    def __init__(
        self,
        directory: Path,
        host: str,
        options: LogOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Open the log in *directory*, which is made where it is not there.

        What a killed writer left open is sealed.
        Errors: OutputError where the folder cannot be written or another writes in it.
        """
        self._directory = directory
        self._options = options or LogOptions()
        self._clock = clock or SystemClock()
        self._host = host
        self._lock_file = lock_folder(directory, self._options.group)
        self._queue = Queue(self._options.queue_rows)
        self._disk = LogDisk(directory, self._options)
        self._steps = StepWatch(self._clock)
        self._append_lock = threading.RLock()
        self._in_force: dict[_Place, Change] = {}
        self._to_restate: list[_Place] = []
        self._texts: dict[str, str] = {}
        self._texts_lock = threading.Lock()
        self._thinned = self._left_out = self._invalid = self._invalid_told = 0
        self._stuck_since_ns: int | None = None
        self._retired_ns = self._restated_ns = self._clock.monotonic_ns()
        self._note_earlier()
        for loss in self._disk.recovered(self._clock.wall_ns()):
            self.append_losses([loss])
        self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, table: str, columns: Columns, rows: int) -> None:
        """
        Append *rows* of a table; returns at once.

        *host* and *ordinal* are the writer's to fill in, what else is not given has its
        default. Rows that are not what the table is are counted as invalid.
        """
        with self._append_lock:
            self._note_step()
            columns = self._steps.moved(columns)
            self._queue.put(Item(table, columns, rows), self._clock.wall_ns())

    def append_drops(self, columns: Columns, rows: int) -> None:
        """Append recorded drops, as `tracer.core.log_rows.drop_columns` gives them."""
        self.append("drops", columns, rows)

    def append_journeys(self, journeys: Sequence[Journey], packets: npt.NDArray[np.void]) -> None:
        """Append journeys with their packets' headers, `PACKET (n,)`."""
        if journeys:
            self.append("journeys", journey_columns(journeys, packets), len(journeys))

    def append_changes(self, changes: Sequence[Change]) -> None:
        """Append what changed; of rulesets, the last is remembered as in force."""
        if not changes:
            return
        # Not to be said again before it was said.
        with self._append_lock:
            for change in changes:
                if change.what == "ruleset":
                    self._remember(change)
            self.append("changes", _as_columns(changes), len(changes))

    def _remember(self, change: Change) -> None:
        place = change.netns, change.engine, change.subject
        self._in_force.pop(place, None)
        if change.action != "gone":
            self._in_force[place] = change
        if len(self._in_force) > _IN_FORCE:
            del self._in_force[next(iter(self._in_force))]

    def append_losses(self, losses: Sequence[Loss]) -> None:
        """Append what was not seen or not kept."""
        if losses:
            self.append("losses", _as_columns(losses), len(losses))

    def store_text(self, text: str) -> str:
        """Have a ruleset's text stored, and return the name for `before` and `after`."""
        name = content_name(text)
        with self._texts_lock:
            self._texts[name] = text
        self._queue.wake()
        return name

    def flush(self, timeout_s: float = 5.0) -> int:
        """
        Wait until what was appended is written; return the last ordinal that is.

        Does not raise: with a full disk the time passes and the ordinal stands still.
        """
        self._queue.wait_done(timeout_s)
        return self._disk.acknowledged

    def status(self) -> LogStatus:
        """Return what was written and what was not."""
        since = self._stuck_since_ns
        lag_s = 0.0 if since is None else (self._clock.monotonic_ns() - since) / 1e9
        return LogStatus(
            acknowledged=self._disk.acknowledged,
            rows=dict(self._disk.rows),
            queued=self._queue.rows,
            lag_s=lag_s,
            thinned=self._thinned,
            left_out=self._left_out,
            invalid=self._invalid,
            unsealed=self._disk.unsealed,
            size_bytes=self._disk.size_bytes(),
            sealer_restarts=self._disk.sealer.restarts,
            trouble=self._disk.trouble,
        )

    def close(self, timeout_s: float = _CLOSE_S) -> str | None:
        """
        Write what waits and have it sealed, for so long at most; harmless when repeated.

        Returns what is left, in words, None for nothing. What is not sealed is read as it is,
        and sealed by the next writer.
        """
        until_s = time.monotonic() + timeout_s
        self._queue.close()
        self._thread.join(timeout_s)
        if self._lock_file < 0:
            return None
        if self._thread.is_alive():
            # The disk has not answered: the folder is ours as long as we write there.
            return f"{self._queue.rows} rows that the disk has not taken"
        self._disk.close(self._clock.wall_ns(), max(0.0, until_s - time.monotonic()))
        note_end(self._lock_file, self._clock.wall_ns())
        os.close(self._lock_file)
        self._lock_file = -1
        left = []
        if self._disk.refused:
            left.append(f"{self._disk.refused} rows that the disk did not take")
        if self._disk.unsealed:
            left.append(f"{self._disk.unsealed} segments, to be sealed by the next start")
        return ", ".join(left) or None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        try:
            self._run()
        except BaseException:
            # Nobody sees a thread end: whoever asks how the log does, is told.
            self._disk.trouble = "the log's thread has ended by a defect"
            raise

    def _run(self) -> None:
        while True:
            items = self._queue.take(_TURN_S)
            now_ns = self._clock.monotonic_ns()
            if items:
                self._stuck_since_ns = now_ns
            self._write_texts()
            with self._append_lock:
                self._note_step()
            for table, group in in_order(items):
                self._write(table, group)
            self._stuck_since_ns = None
            self._tell_left_out()
            self._look_after(now_ns)
            if self._queue.is_closed and not self._queue.rows:
                return

    def _write(self, table: str, items: list[Item]) -> None:
        """Write one table's items, several of them in a batch where they are small."""
        while items:
            batch, rows = [items.pop(0)], 0
            rows = batch[0].rows
            while items and rows + items[0].rows <= _BATCH_ROWS and are_alike(batch[0], items[0]):
                rows += items[0].rows
                batch.append(items.pop(0))
            if not self._encode(table, batch):
                # One of them is at fault: each for itself.
                for item in batch:
                    self._invalid += 0 if self._encode(table, [item]) else item.rows
            self._drain(table)
            self._queue.done(len(batch), rows, are_drops=table == "drops")

    def _encode(self, table: str, items: list[Item]) -> bool:
        """Encode rows; return False where they are not what the table is."""
        counts = [item.rows for item in items]
        try:
            columns = join([item.columns for item in items], counts)
            self._disk.encode(table, {**columns, "host": self._host}, sum(counts), self._clock)
        # What is not the table's was made by a caller of ours: it must not stop the log for
        # all the others.
        except (ValueError, TypeError, KeyError, OverflowError, IndexError):
            return False
        return True

    def _drain(self, table: str) -> None:
        """Write until the disk took it; give up only when the log is closed meanwhile."""
        wait = threading.Event()
        while not self._disk.write(table):
            if self._queue.is_closed:
                self._disk.gave_up = True
                return
            self._disk.collect()
            if not self._disk.sealer.waiting:
                self._disk.ask_retire(self._clock.wall_ns())
            wait.wait(_TURN_S)

    def _write_texts(self) -> None:
        with self._texts_lock:
            texts, self._texts = self._texts, {}
        for name, text in texts.items():
            if not self._disk.store_text(text):
                # Said again with the next restatement, and until then tried with each turn.
                with self._texts_lock:
                    self._texts.setdefault(name, text)

    def _note_step(self) -> None:
        """Put a step of the clock between the rows before it and those behind it."""
        step_ns = self._steps.look()
        if step_ns:
            self._put_step(step_ns, f'{{"step_ns":{step_ns}}}')

    def _note_earlier(self) -> None:
        """Put a step where the log's last writer had a later time than it is now."""
        ended_ns = take_end(self._lock_file)
        last_ns = self._disk.left_ns or ended_ns
        step_ns = self._clock.wall_ns() - last_ns
        if last_ns and step_ns <= -STEP_NS:
            self._put_step(step_ns, UNSEEN)

    def _put_step(self, step_ns: int, detail: str) -> None:
        now_ns = self._clock.wall_ns()
        before, after = str(now_ns - step_ns), str(now_ns)
        change = Change(now_ns, "", "clock", "changed", "", before, after, detail)
        self._queue.put(Item("changes", _as_columns([change]), 1, is_step=True), now_ns)

    def _tell_left_out(self) -> None:
        now_ns = self._clock.wall_ns()
        losses = []
        for one in self._queue.take_left_out():
            self._thinned += one.count if one.is_weighed else 0
            self._left_out += 0 if one.is_weighed else one.count
            what = "thinned" if one.is_weighed else "left_out"
            losses.append(
                Loss(now_ns, "log", what, one.count, one.table, one.since_ns, one.until_ns)
            )
        losses += self._disk.collect_losses(now_ns)
        if self._invalid > self._invalid_told:
            losses.append(Loss(now_ns, "log", "invalid", self._invalid - self._invalid_told))
            self._invalid_told = self._invalid
        if losses:
            columns = {**_as_columns(losses), "host": self._host}
            self._disk.encode("losses", columns, len(losses), self._clock)
            self._drain("losses")

    def _look_after(self, now_ns: int) -> None:
        self._disk.collect()
        self._queue.pressure = self._disk.pressure
        self._disk.roll_aged(now_ns / 1e9)
        is_wanted = self._disk.wants_retiring and self._disk.has_settled
        if is_wanted or now_ns - self._retired_ns >= _RETIRE_S * 1e9:
            self._retired_ns = now_ns
            self._disk.ask_retire(self._clock.wall_ns())
        if now_ns - self._restated_ns >= self._options.restate_s * 1e9:
            self._restated_ns = now_ns
            with self._append_lock:
                self._to_restate = list(self._in_force)
        if self._to_restate:
            self._restate()

    def _restate(self) -> None:
        with self._append_lock:
            now_ns = self._clock.wall_ns()
            places = [self._to_restate.pop() for _ in self._to_restate[:_RESTATED]]
            stands = [
                replace(change, time_ns=now_ns, action="stands", before=change.after)
                for change in (self._in_force[one] for one in places if one in self._in_force)
            ]
            if stands:
                self.append("changes", _as_columns(stands), len(stands))
        for change in stands:
            self._disk.touch_text(change.after)


def _as_columns(rows: Sequence[Change] | Sequence[Loss]) -> dict[str, Any]:
    told = [asdict(row) for row in rows]
    return {name: [row[name] for row in told] for name in told[0]}
