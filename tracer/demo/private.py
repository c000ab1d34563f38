"""
A machine within the machine: namespaces that nothing leaves and nothing outlives.

    caller ── holder ── init

The caller forks a holder; the holder unshares network, mounts and process ids and forks
init, which is process 1 of the new process ids and runs the caller's action. Each has the
kernel kill it when its parent ends, and with process 1 the kernel kills everything else
in there: whatever happens to the caller, SIGKILL included, the processes are gone, with
them the mount namespace, with it the names of the network namespaces, and so the devices,
the rules and what was connected. There is no cleaning up that could be missed.

The new network namespace has no link to the caller's, so no packet can leave it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tracer.demo.linux import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    die_with_parent,
    make_mounts_private,
    mount,
    unshare,
)
from tracer.errors import NftraceError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["run_in_private"]

# Exit status by convention of shells: interrupted, and killed by signal N.
_INTERRUPTED = 130
_SIGNALLED = 128

# What ends a program that is run by hand. Each arrives in init as SIGINT, which Python
# raises as KeyboardInterrupt; the others would be ignored by a process 1.
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_in_private(action: Callable[[int], int]) -> int:
    """
    Run *action* in private network, mount and process id namespaces; return its status.

    *action* is called with init's process id as the caller's namespace counts, which
    `nsenter --target` takes. Inside, /run is an empty tmpfs with /run/netns, and /proc
    shows what runs inside. A KeyboardInterrupt that it lets through is status 130, an
    NftraceError is printed in one line and has its own status.
    Errors: none of the action's; KernelRefusedError is printed where we may not unshare.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    caller = os.getpid()
    holder = os.fork()
    if holder == 0:
        _end_with(lambda: _hold(caller, action))
    return _wait_for(holder)


def _hold(caller: int, action: Callable[[int], int]) -> int:
    die_with_parent()
    if os.getppid() != caller:
        return _SIGNALLED + signal.SIGKILL  # it ended before we could ask to be told
    # A group of our own: Ctrl-C reaches the caller alone, who passes it on once.
    os.setpgid(0, 0)
    unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID)
    make_mounts_private()
    # Nobody writes: it reads as ended once the holder has, which getppid() cannot tell
    # across process id namespaces.
    alive, keep = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(keep)
        _end_with(lambda: _be_init(alive, action))
    os.close(alive)
    return _wait_for(init)


def _be_init(holder_alive: int, action: Callable[[int], int]) -> int:
    die_with_parent()
    if select.select([holder_alive], [], [], 0)[0]:
        return _SIGNALLED + signal.SIGKILL
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Still the outer /proc, which knows us by our outer number.
    outer_pid = int(Path("/proc/self").readlink().name)
    mount("proc", "/proc")
    mount("tmpfs", "/run", "mode=755")
    Path("/run/netns").mkdir()
    return action(outer_pid)


def _wait_for(child: int) -> int:
    def pass_on(_signum: int, _frame: FrameType | None) -> None:
        os.kill(child, signal.SIGINT)

    previous = {sig: signal.signal(sig, pass_on) for sig in _ENDING_SIGNALS}
    try:
        _, wait_status = os.waitpid(child, 0)
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
    status = os.waitstatus_to_exitcode(wait_status)
    return status if status >= 0 else _SIGNALLED - status


def _end_with(action: Callable[[], int]) -> NoReturn:
    """End this forked process with the action's status; never return to the caller's code."""
    status = 1
    try:
        status = _status_of(action)
    except BaseException:  # noqa: BLE001 - a bug of ours, told before the process is gone
        traceback.print_exc()
    finally:
        os._exit(status)


def _say(error: NftraceError) -> int:
    sys.stderr.write(f"nftrace: {error}\n")
    sys.stderr.flush()
    return error.exit_status


def _status_of(action: Callable[[], int]) -> int:
    try:
        status = action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
    except NftraceError as exc:
        return _say(exc)
    except OSError as exc:
        if exc.filename is not None:
            raise
        return _say(OutputError(f"the output cannot be written: {exc.strerror}"))
    return status
