"""A first list of expected drops: what this host drops now, as a part of a configuration."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.core.expected_learning import learn_expected
from tracer.daemon.readings import DaemonReadings
from tracer.daemon.settings_file import render_expected
from tracer.daemon.watch import Watch

if TYPE_CHECKING:
    from tracer.daemon.messages import Messages
    from tracer.daemon.settings import Settings

__all__ = ["learn"]


def learn(settings: Settings, messages: Messages, seconds: float) -> str:
    """
    Watch for *seconds*, and return entries for what was dropped, worst first.

    Rules with a counter are in it if they ever dropped since it was zeroed.
    Errors: KernelUnsupportedError, KernelRefusedError from the start.
    """
    watch = Watch(settings, messages)
    try:
        watch.open()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            watch.turn()
        readings = DaemonReadings(watch, messages)
        learned = learn_expected(readings.counters(), readings.drops(), readings.namespaces())
    finally:
        watch.close()
    if learned.left_out:
        messages.log.warning("expected_left_out", number=learned.left_out)
    return render_expected(learned.entries)
