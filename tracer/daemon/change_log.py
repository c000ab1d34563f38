"""
What changes on the machine, into the event log; rulesets' texts are kept by content.

Without a log the rules are watched all the same: whoever names drops has to know.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tracer.core.log_rows import Loss
from tracer.sources.changes import ChangeLosses, ChangeWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exporters.log import LogWriter
    from tracer.core.log_rows import Change
    from tracer.sources.netns import Netns

__all__ = ["ChangeLog"]

#: What was lost is told this often, if there was anything.
_LOSSES_S: Final = 60.0
_LOST: Final = ("overruns", "malformed", "left_out", "forgotten")


class ChangeLog:
    """
    Watches, and writes with the log's own *writer*; *on_change* says that a turn is due.

    *note* is told of each change, of rules with their text.
    """

    def __init__(
        self,
        writer: LogWriter | None,
        on_change: Callable[[], None],
        note: Callable[[Change], None] = lambda _: None,
    ) -> None:
        self._writer = writer
        self._note = note
        self._watch = ChangeWatch(on_change)
        # Who did it is for the log alone.
        self._watch.start(with_names=writer is not None)
        self._namespaces: list[Netns] = []
        self._is_read, self._has_names = False, writer is None
        self._lost = ChangeLosses()
        self._lost_ns = time.time_ns()
        self._due_s = 0.0

    @property
    def losses(self) -> ChangeLosses:
        """What of the changes was not seen."""
        return self._watch.losses

    def turn(self, namespaces: Iterable[Netns], now_s: float, log: Any) -> bool:  # noqa: ANN401
        """
        Write what changed, and watch *namespaces* from now on; *log* is structlog's.

        Tells whether rules are among what changed.
        """
        wanted = list(namespaces)
        if wanted != self._namespaces:
            self._namespaces = wanted
            self._watch.watch(wanted)
        if not self._is_read and self._watch.wait_read(wanted, 0.0):
            self._is_read = True
            log.info("rules_read", namespaces=len(wanted))
        if not self._has_names and self._watch.wait_names(0.0):
            self._has_names = True
            log.info("processes_known")
        has_new_rules = self._write()
        for name, why in self._watch.take_said():
            log.warning("changes_unwatched", netns=name, why=why)
        if now_s >= self._due_s:
            self._due_s = now_s + _LOSSES_S
            self._note_losses()
        return has_new_rules

    def _write(self) -> bool:
        changes = self._watch.take()
        for change in changes:
            self._note(change)
        if self._writer is not None:
            self._writer.append_changes([_kept(change, self._writer) for change in changes])
        return any(change.what == "ruleset" for change in changes)

    def _note_losses(self) -> None:
        if self._writer is None:
            return
        losses, now_ns = self._watch.losses, time.time_ns()
        more = {name: getattr(losses, name) - getattr(self._lost, name) for name in _LOST}
        self._writer.append_losses(
            [
                Loss(now_ns, "changes", name, count, "changes", self._lost_ns, now_ns)
                for name, count in more.items()
                if count > 0
            ]
        )
        self._lost, self._lost_ns = losses, now_ns

    def close(self) -> None:
        """Stop, and write what waits; harmless when repeated."""
        self._watch.close()
        self._write()
        self._note_losses()


def _kept(change: Change, writer: LogWriter) -> Change:
    if change.what != "ruleset":
        return change
    names = [writer.store_text(text) if text else "" for text in (change.before, change.after)]
    return replace(change, before=names[0], after=names[1])
