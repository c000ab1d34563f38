"""Counters are read after changes, not for each, and never after the end."""

from __future__ import annotations

import threading

from tracer.daemon.refresher import Refresher


def test_wishes_that_come_together_are_one() -> None:
    """A hundred wishes while one is fulfilled are fulfilled by one more."""
    begun, go_on, calls = threading.Semaphore(0), threading.Semaphore(0), []

    def refresh() -> None:
        calls.append(1)
        begun.release()
        go_on.acquire()

    refresher = Refresher(refresh)
    refresher.start()
    refresher.want()
    assert begun.acquire(timeout=5)
    for _ in range(100):
        refresher.want()
    go_on.release(2)
    assert begun.acquire(timeout=5)
    refresher.stop()

    assert 2 == len(calls)


def test_nothing_is_done_unasked_or_after_the_end() -> None:
    """Without a wish nothing is called, and stopping twice does no harm."""
    calls: list[int] = []
    refresher = Refresher(lambda: calls.append(1))
    refresher.start()
    refresher.stop()
    refresher.want()
    refresher.stop()

    assert not calls
