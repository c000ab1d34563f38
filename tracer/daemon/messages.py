"""
What the daemon says about itself: one line an event, on standard error.

The journal adds the time and takes the level from a prefix; a terminal gets both from us.
The same complaint is said once in a while, and those in between are counted: a fault that
comes a thousand times a second must not fill a disk, and must not be hidden either.
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from typing import TextIO

    from tracer.daemon.settings import MessageSettings

__all__ = ["Messages", "RepeatLimit", "is_journal"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
#: syslog's numbers, as sd-daemon(3) has them, in front of a line.
_PREFIXES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
#: Different complaints that are told apart; the oldest is forgotten, and said again.
_KINDS_MAX = 512
#: What tells two complaints of one name apart, besides the name.
_WHERE = ("netns", "source", "peer")


class RepeatLimit:
    """
    A structlog processor that lets the same warning or error through once in *repeat_s*.

    The next one that is let through carries how many were *repeated* before it;
    *suppressed* counts all that were not said.
    """

    def __init__(self, repeat_s: float, clock: Callable[[], float]) -> None:
        self.suppressed = 0
        self._repeat_s = repeat_s
        self._clock = clock
        self._said: OrderedDict[tuple[object, ...], tuple[float, int]] = OrderedDict()

    def __call__(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Pass *event* on, or raise DropEvent."""
        del logger
        if _LEVELS.get(method, 0) < _LEVELS["warning"]:
            return event
        kind = (event.get("event"), *(event.get(name) for name in _WHERE))
        now = self._clock()
        said_s, repeated = self._said.get(kind, (-self._repeat_s, 0))
        if now - said_s < self._repeat_s:
            self._said[kind] = said_s, repeated + 1
            self.suppressed += 1
            raise structlog.DropEvent
        self._said[kind] = now, 0
        self._said.move_to_end(kind)
        if len(self._said) > _KINDS_MAX:
            self._said.popitem(last=False)
        if repeated:
            event["repeated"] = repeated
        return event


class _Writer:
    """Writes lines; one that cannot be written is counted and never raises."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.lost = 0

    def _write(self, line: str) -> None:
        whole = f"{line}\n"
        try:
            self._out.flush()
            # One call a line, and nothing of it in a buffer when it could not be written.
            raw = whole.encode(errors="backslashreplace")
            self.lost += os.write(self._out.fileno(), raw) < len(raw)
        except UnsupportedOperation:
            self._out.write(whole)
        except (OSError, ValueError):
            # A full disk or a closed pipe: watching goes on, and the metrics tell.
            self.lost += 1

    debug = info = warning = error = critical = msg = _write


class Messages:
    """
    The daemon's voice.

    `log` is a structlog logger. *suppressed* and *lost* say what was not said, and what
    could not be written.
    """

    def __init__(self, settings: MessageSettings, out: TextIO | None = None) -> None:
        out = sys.stderr if out is None else out
        self._limit = RepeatLimit(settings.repeat_s, time.monotonic)
        self._writer = _Writer(out)
        self.log: Any = structlog.wrap_logger(
            self._writer,
            processors=[
                structlog.processors.add_log_level,
                self._limit,
                structlog.processors.format_exc_info,
                *_renderers(settings.format, out),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        )

    @property
    def suppressed(self) -> int:
        """Complaints that were not said, as they had just been."""
        return self._limit.suppressed

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._writer.lost


def is_journal(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether *out* is the journal's, by `$JOURNAL_STREAM` (DEVICE:INODE)."""
    try:
        found = os.fstat(out.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _renderers(form: str, out: TextIO) -> list[Any]:
    if form != "json" and is_journal(out, os.environ):
        return [structlog.processors.KeyValueRenderer(key_order=["event"]), _prefixed]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if form == "json" or (form == "auto" and not out.isatty()):
        return [stamp, structlog.processors.JSONRenderer(ensure_ascii=False)]
    return [stamp, structlog.dev.ConsoleRenderer(colors=out.isatty())]


def _prefixed(logger: object, method: str, line: str) -> str:
    del logger
    # A newline in a value would begin an entry without a level.
    return _PREFIXES[method] + line.replace("\n", "\\n")
