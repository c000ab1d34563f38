"""How long known drops may be made."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest

from tracer.sources.bpf_deadline import Deadline, LateError

_ENDLESS = 1e6


def test_waiting_costs_no_processor_time() -> None:
    """What only waits is not over, however little of a processor it may have."""
    deadline = Deadline(0.05, _ENDLESS)
    time.sleep(0.06)

    assert deadline.left_s() > 0


def test_the_threads_own_work_is_counted() -> None:
    """Whoever works for longer is told the limits, and what to do."""
    deadline = Deadline(0.02, 4e6)
    end_s = time.thread_time() + 0.02
    while time.thread_time() < end_s:
        pass

    with pytest.raises(LateError, match=r"than 0\.02 s of a processor or 80000 s .*--calibrate"):
        deadline.left_s()


def test_other_threads_work_is_their_own() -> None:
    """A thread beside that works takes nothing away."""
    deadline = Deadline(0.02, _ENDLESS)

    def work() -> None:
        end_s = time.thread_time() + 0.03
        while time.thread_time() < end_s:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert deadline.left_s() > 0


def test_tools_are_counted() -> None:
    """A tool's time counts once it has ended."""
    deadline = Deadline(0.02, _ENDLESS)
    subprocess.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"], check=True)

    with pytest.raises(LateError):
        deadline.left_s()


def test_the_clock_has_a_limit_too() -> None:
    """No time by the clock is over at once."""
    with pytest.raises(LateError):
        Deadline(9.0, 0.0).left_s()


def test_giving_up_ends_it() -> None:
    """From the moment it is given up nothing is left."""
    given_up = threading.Event()
    deadline = Deadline(9.0, 1.0, given_up)
    before_s = deadline.left_s()
    given_up.set()

    assert before_s > 0
    with pytest.raises(LateError):
        deadline.left_s()
