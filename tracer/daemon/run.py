"""
A daemon's life: start, turn, take in a new configuration, end.

Signals are bytes on a socket that ends the wait of a turn: SIGTERM and SIGINT end, SIGHUP
reads the configuration again.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.prometheus import Exporter, serve
from tracer import __version__
from tracer.core.expected import parse_expected
from tracer.daemon.control import ControlServer
from tracer.daemon.messages import Messages
from tracer.daemon.notify import Notifier
from tracer.daemon.privileges import NEEDED, keep_capabilities
from tracer.daemon.readings import DaemonReadings, TotalsFile
from tracer.daemon.refresher import Refresher
from tracer.daemon.settings import Settings
from tracer.daemon.settings_file import read_settings
from tracer.daemon.watch import Watch
from tracer.errors import UsageError
from tracer.sources.nf_log import repair

if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

    from tracer.daemon.event_log import EventLog

__all__ = ["Daemon"]

#: What a running daemon keeps as it is: it would have to bind or to load anew.
_FIXED = ("metrics", "log", "control")


class _Signals:
    """Signals that came, in order, and a socket that wakes who waits for them."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self.waker, self._written = socket.socketpair()
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take the signals."""
        self.waker.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        self._written.setblocking(False)  # noqa: FBT003
        signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        signal.set_wakeup_fd(-1)
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]
        self.waker.close()
        self._written.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number not in self._came:
            self._came.append(number)

    def take(self) -> list[int]:
        """Return what came since the last call."""
        try:
            while self.waker.recv(64):
                pass
        except BlockingIOError:
            pass
        came, self._came = self._came, []
        return came


class Daemon:
    """One run of the daemon, by the configuration in *path*, or by the defaults."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._settings = self._read()
        self._messages = Messages(self._settings.messages)
        self._notifier = Notifier(os.environ)
        self._event_log: EventLog | None = None
        self._control: ControlServer | None = None

    def _read(self) -> Settings:
        return Settings() if self._path is None else read_settings(self._path)

    def run(self) -> int:
        """
        Watch until told to end; return the exit status.

        Errors: KernelUnsupportedError, KernelRefusedError, UsageError and OutputError from
        the start; what was opened is closed then.
        """
        log = self._messages.log
        for line in repair():
            log.warning("repaired_after_an_earlier_run", what=line)
        with ExitStack() as stack:
            signals = stack.enter_context(_Signals())
            control = self._control = self._bind_control()
            if control is not None:
                stack.callback(control.stop)
            watch = Watch(self._settings, self._messages)
            stack.callback(self._close, watch)
            watch.open()
            watch.wake_on(signals.waker)
            # Before there are other threads, which would keep what this one gives back.
            keep_capabilities(NEEDED)
            event_log = self._event_log = self._open_log(watch)
            self._readings = DaemonReadings(watch, self._messages, control, event_log)
            self._serve(stack)
            refresher = Refresher(self._exporter.refresh)
            stack.callback(refresher.stop)
            refresher.start()
            # The rules' texts, before the first scrape wants them.
            refresher.want()
            watch.on_new_rules = refresher.want
            if control is not None:
                control.start()
            self._notifier.ready()
            log.info("ready", pid=os.getpid())
            self._turn(watch, signals, control)
            self._notifier.stopping()
        return 0

    def _bind_control(self) -> ControlServer | None:
        if not self._settings.control.enabled:
            return None
        control = ControlServer(self._settings.control, self._messages.log)
        control.bind()
        return control

    def _open_log(self, watch: Watch) -> EventLog | None:
        event_log = None
        if self._settings.log.directory:
            # Its library is large, and not everybody's need.
            from tracer.daemon.event_log import EventLog  # noqa: PLC0415

            event_log = EventLog(self._settings.log, parse_expected(self._settings.expected))
        watch.keep_events(event_log)
        return event_log

    def _serve(self, stack: ExitStack) -> None:
        """Begin to serve the metrics."""
        settings = self._settings.metrics
        totals = TotalsFile(Path(settings.totals), self._messages) if settings.totals else None
        if totals is not None:
            totals.prepare()
        self._exporter = Exporter(
            self._readings,
            expected=parse_expected(self._settings.expected),
            every_rule=settings.every_rule,
            version=__version__,
            kernel=os.uname().release,
            keep=None if totals is None else totals.keep,
        )
        kept = totals.load() if totals is not None else None
        if kept is not None:
            try:
                self._exporter.restore(kept)
            except ValueError as exc:
                self._messages.log.warning("totals_unread", why=str(exc), then="they begin anew")
        served = serve(
            self._exporter,
            settings.address,
            settings.port,
            certificate=settings.certificate,
            key=settings.key,
            client_ca=settings.client_ca,
        )
        stack.callback(served.stop)
        self._messages.log.info("metrics_served", address=served.address, port=served.port)

    def _turn(self, watch: Watch, signals: _Signals, control: ControlServer | None) -> None:
        while True:
            watch.give_way(is_followed=control is not None and control.followers > 0)
            watch.turn()
            self._notifier.alive(time.monotonic())
            for number in signals.take():
                if number != signal.SIGHUP:
                    self._messages.log.info("ending", signal=signal.Signals(number).name)
                    return
                self._reload(watch)

    def _reload(self, watch: Watch) -> None:
        self._notifier.reloading()
        try:
            settings = self._read()
        except UsageError as exc:
            self._readings.refused_reloads += 1
            self._messages.log.error(  # noqa: TRY400 - no traceback for a typing error
                "configuration_refused", why=str(exc), kept="the former one"
            )
            self._notifier.status(f"configuration refused, the former one is kept: {exc}")
        else:
            self._apply(watch, settings)
            self._notifier.status("")
        self._notifier.ready()

    def _apply(self, watch: Watch, settings: Settings) -> None:
        before, self._settings = self._settings, settings
        if settings.messages != before.messages:
            self._messages = Messages(settings.messages)
        log = self._messages.log
        kept = [part for part in _FIXED if getattr(settings, part) != getattr(before, part)]
        if settings.watch.rung != before.watch.rung:
            kept.append("watch.rung")
        if kept:
            log.warning("restart_needed", settings=kept)
        watch.apply(settings, self._messages)
        self._readings.messages = self._messages
        if self._control is not None:
            self._control.log = log
        self._exporter.expected = expected = parse_expected(settings.expected)
        if self._event_log is not None:
            self._event_log.meant.use(expected)
        log.info("configuration_read", file=str(self._path))

    def _close(self, watch: Watch) -> None:
        for line in watch.close():
            self._messages.log.error("not_put_back", what=line)
        # What was still being traced is written, too.
        left = None if self._event_log is None else self._event_log.close()
        if left is not None:
            self._messages.log.warning("log_not_finished", left=left)
