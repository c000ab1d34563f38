"""When a rung is tried again that had no time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tests.kernel.nets import wait_until
from tracer.errors import KernelRefusedError
from tracer.sources.bpf_retry import FIRST_S, LONGEST_S, Retry

if TYPE_CHECKING:
    from bpf.loader import Loaded


def _refuse() -> NoReturn:
    msg = "no memory"
    raise KernelRefusedError(msg)


def _fail_once(retry: Retry) -> None:
    retry.hurry()
    assert retry.poll() is None
    assert retry.is_under_way
    wait_until(lambda: retry.poll() is None and not retry.is_under_way)


def test_nothing_is_tried_before_its_time() -> None:
    """The first attempt waits half a minute."""
    loads: list[None] = []

    def load() -> Loaded:
        loads.append(None)
        _refuse()

    retry = Retry(load, 1.0)

    assert (None, False, []) == (retry.poll(), retry.is_under_way, loads)


def test_each_failure_doubles_the_pause() -> None:
    """The pauses grow from half a minute to an hour, and no further."""
    retry = Retry(_refuse, 1.0)
    pauses = [retry.pause_s]
    for _ in range(9):
        _fail_once(retry)
        pauses.append(retry.pause_s)
    retry.close()

    assert [min(FIRST_S * 2**times, LONGEST_S) for times in range(10)] == pauses
    assert LONGEST_S == pauses[-1]


def test_closing_waits_for_an_attempt() -> None:
    """After close() no thread of ours is left, and no namespace is held."""
    retry = Retry(_refuse, 1.0)
    retry.hurry()
    retry.poll()
    retry.close()

    assert (False, {}) == (retry.is_under_way, retry.ranges)
