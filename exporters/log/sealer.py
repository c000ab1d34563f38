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
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Sealer", "main", "sealing_paused"]

_NICE = 10
_COMMAND = "from exporters.log.sealer import main; main()"


class Sealer:
    """
    The writer's side: asks, and collects the answers when they come.

    A process that ended is started again. What it was at when it ended has failed, so that
    a segment that it cannot bear is not its end each time; the rest stays asked.
    """

    def __init__(self, directory: Path, group: str) -> None:
        self._directory = directory
        self._group = group
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: list[bytes] = []
        self._buffer = b""
        #: How often the process ended by itself.
        self.restarts = 0

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._asked)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Hand over a request; answers come in the order of the requests."""
        line = json.dumps(request).encode() + b"\n"
        self._asked.append(line)
        if self._process is None or self._process.poll() is not None:
            self._start()
        else:
            self._send(line)

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the answers that are there; does not wait."""
        if self._process is None or self._process.stdout is None:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._process.stdout.fileno(), 65_536):
                self._buffer += piece
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._asked.pop(0)
            yield json.loads(line)
        if self._asked and self._process.poll() is not None:
            self.restarts += 1
            failed = json.loads(self._asked.pop(0))
            self._start()
            yield {**failed, "failed": "the sealer ended by itself"}

    def close(self, timeout_s: float) -> bool:
        """Let it do what it was asked, at most so long; return whether it did."""
        if self._process is None or self._process.stdin is None:
            return True
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
        return True

    def _start(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout) if self._process else ():
            if pipe is not None:
                pipe.close()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _COMMAND, str(self._directory), self._group]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )
        self._buffer = b""
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
        for line in self._asked:
            self._send(line)

    def _send(self, line: bytes) -> None:
        # A process that just died is found by the next look for answers.
        with contextlib.suppress(BrokenPipeError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(line)


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
            answer = {**request, "failed": str(exc)}
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
