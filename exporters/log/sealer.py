"""
The process that seals and retires, so that whoever writes never waits for it.

Reads one JSON object a line: `{"seal": NAME}` or `{"retire": {keep_s, size_bytes, now_ns}}`,
and answers each with a line. Ends when its input does, and so with the writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Sealer", "main", "sealing_paused"]

_NICE = 10
#: Requests that the process is told at a time: these and their answers fit into its pipes.
_TOLD_MAX = 32
_REASON_MAX = 500
#: Between two looks for answers while closing, and for the end of a process with no more to do.
_LOOK_S = 0.2
_END_S = 1.0
_COMMAND = "from exporters.log.sealer import main; main()"


class Sealer:
    """
    The writer's side: asks, and collects the answers when they come; never waits but to close.

    A process that ended, or could not be started, is started again. What it was at when it
    ended has failed, so that a segment that it cannot bear is not its end each time; the rest
    stays asked.
    """

    def __init__(self, directory: Path, group: str) -> None:
        self._directory = directory
        self._group = group
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: list[bytes] = []
        #: How many of what is asked the process was told.
        self._sent = 0
        self._buffer = b""
        #: How often the process ended by itself.
        self.restarts = 0

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._asked)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Hand over a request; answers come in the order of the requests."""
        self._asked.append(json.dumps(request).encode() + b"\n")
        self._send()

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the answers that are there; does not wait."""
        process = self._process
        if process is not None and process.stdout is not None:
            # Asked before the last look at the pipe: what was answered is not to fail.
            has_ended = process.poll() is not None
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(process.stdout.fileno(), 65_536):
                    self._buffer += piece
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._forget_first()
                yield json.loads(line)
            if has_ended:
                self._end()
                self.restarts += 1
                if self._asked:
                    failed = json.loads(self._asked[0])
                    self._forget_first()
                    yield {**failed, "failed": "the sealer ended by itself"}
        self._send()

    def close(self, timeout_s: float) -> list[dict[str, Any]]:
        """Let it do what it was asked, at most so long; return its answers."""
        until_s = time.monotonic() + timeout_s
        told: list[dict[str, Any]] = []
        while self._asked and (left_s := until_s - time.monotonic()) > 0:
            # A process that cannot be started has no pipe to wait for.
            pipe = None if self._process is None else self._process.stdout
            select.select([] if pipe is None else [pipe], [], [], min(left_s, _LOOK_S))
            told += self.answers()
        self._end()
        return told

    def _forget_first(self) -> None:
        del self._asked[0]
        self._sent = max(0, self._sent - 1)

    def _end(self) -> None:
        """Let the process end by itself: with its input at the end it has no more to do."""
        process, self._process, self._sent, self._buffer = self._process, None, 0, b""
        if process is not None and process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            if process.poll() is None:
                # It is at its last segment; the child is reaped when it is done with that.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)

    def _send(self) -> None:
        """Tell the process what it is to do next, few at a time: a full pipe would wait."""
        if self._asked and self._process is None:
            self._start()
        if self._process is None or self._process.stdin is None:
            return
        for line in self._asked[self._sent : _TOLD_MAX]:
            # A process that just died is found by the next look for answers.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line)
            self._sent += 1

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _COMMAND, str(self._directory), self._group]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
            )
        except OSError:
            # No memory or no process to be had: with the next look there may be.
            return
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
        self._process = process


@contextlib.contextmanager
def sealing_paused(directory: Path) -> Iterator[None]:
    """
    Let nobody else seal or retire in the folder meanwhile.

    There may be two who would: the sealer of a writer that was killed does what it was
    asked, while the next writer's begins.
    Errors: OSError.
    """
    lock = os.open(directory / "sealer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def main() -> None:
    """Answer requests until there are no more."""
    import signal  # noqa: PLC0415 - the writer's side needs none of these

    from exporters.log.seal import remove_leftovers, retire  # noqa: PLC0415

    # Ctrl-C goes to the whole terminal, a service manager's SIGTERM to the whole service; the
    # writer closes our input when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICE)
    directory, group = Path(sys.argv[1]), sys.argv[2]
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            with sealing_paused(directory):
                remove_leftovers(directory)
                if "seal" in request:
                    answer = _seal(directory, request["seal"], group)
                else:
                    answer = {"retired": retire(directory, **request["retire"])}
        # Whatever a file holds: the others are to be sealed all the same.
        except Exception as exc:  # noqa: BLE001
            answer = {**request, "failed": str(exc)[:_REASON_MAX]}
        try:
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # The writer is gone; what it asked for is done all the same.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _seal(directory: Path, name: str, group: str) -> dict[str, Any]:
    from exporters.log.seal import seal  # noqa: PLC0415
    from exporters.log.segments import Open  # noqa: PLC0415

    table, first = name.removesuffix(".arrows").split("-")
    result = seal(Open(table, int(first, 16), directory / name), group)
    return {"seal": name, **asdict(result)}


if __name__ == "__main__":
    main()
