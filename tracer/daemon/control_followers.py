"""
The processes that answer: started with checked arguments, ended in order, all of them.

None outlives the daemon, and none is waited for while it runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Followers"]

#: A follower that was told to end puts back what it changed; longer than this it hangs.
_END_S = 15.0
#: Who asks takes no processor from the watch where there is not enough for both.
_NICE = 5
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class Followers:
    """All that run or are on their way out; `len` counts them."""

    def __init__(self) -> None:
        #: By process, when patience with it ends; None while it may run.
        self._until_s: dict[subprocess.Popen[bytes], float | None] = {}

    def __len__(self) -> int:
        return len(self._until_s)

    def start(self, arguments: Sequence[str], columns: int) -> subprocess.Popen[bytes]:
        """
        Start `nftrace` with *arguments*; its outputs are pipes that do not block.

        Errors: OSError where no process can be had.
        """
        keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        follower = subprocess.Popen(
            [sys.executable, "-m", "tracer.cli.main", *arguments, "--no-daemon"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath, **keep, "COLUMNS": str(columns), "PYTHONUTF8": "1"},
            cwd="/",
            start_new_session=True,
            preexec_fn=_begin,  # noqa: PLW1509 - two C calls, no lock is taken
        )
        for pipe in (follower.stdout, follower.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        self._until_s[follower] = None
        return follower

    def end(self, follower: subprocess.Popen[bytes]) -> None:
        """Tell it to end; harmless when repeated."""
        if self._until_s.get(follower, 0) is None:
            follower.terminate()
            self._until_s[follower] = time.monotonic() + _END_S

    def look_around(self, now_s: float) -> list[int]:
        """Forget those that have ended, kill those that hang, and return whom it killed."""
        killed = []
        for follower, until_s in list(self._until_s.items()):
            if follower.poll() is not None:
                del self._until_s[follower]
            elif until_s is not None and now_s >= until_s:
                follower.kill()
                killed.append(follower.pid)
        return killed

    def end_all(self) -> None:
        """End all, and wait for it: what they changed is put back then."""
        for follower in self._until_s:
            self.end(follower)
        for follower, until_s in self._until_s.items():
            try:
                follower.wait(max(0.1, (until_s or 0.0) - time.monotonic()))
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait()
        self._until_s.clear()


def _begin() -> None:
    # A daemon that is killed leaves no follower: it is told to end, and puts back all.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    _libc.nice(_NICE)
