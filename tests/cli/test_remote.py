"""What one who asks a daemon is told, whatever it is that answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tracer import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).resolve().parents[2]
_FOLLOW = ("follow", "--daemon", "--netns=b", "--dport=22")


@contextlib.contextmanager
def _answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Take one connection and its request, give *answer*, and close; yields what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        taken, _ = listener.accept()
        with taken:
            asked.append(taken.recv(65_536))
            taken.sendall(answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(20)


def _nftrace(path: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tracer.cli.main", *words],
        env={**os.environ, "NFTRACE_SOCKET": str(path)},
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _told(path: Path, *words: str) -> tuple[int, str, str]:
    with _nftrace(path, *words) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_what_is_asked_is_what_was_said(tmp_path: Path) -> None:
    """The request has the command's words, and the answer is shown as it comes."""
    answer = b'{"out": "one\\u2192\\n"}\n{"err": "two\\n"}\n{"end": 1}\n'
    with _answering(tmp_path / "s", answer) as asked:
        told = _told(tmp_path / "s", *_FOLLOW, "-o", "json")
    request = json.loads(asked[0])

    assert (1, "one→\n", "two\n") == told
    assert ("follow", False) == (request["do"], request["color"])
    assert {"netns": ["b"], "dport": "22", "output": "json"} == request["words"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the daemon went away: see its journal, and try again"),
        (b'{"out": "x', "the daemon went away: see its journal, and try again"),
        (b"HTTP/1.0 400\n", "what answers is no nftrace daemon: see $NFTRACE_SOCKET"),
        (b"[" * 5000 + b"\n", "what answers is no nftrace daemon: see $NFTRACE_SOCKET"),
        (b'{"out": "\xff"}\n', "what answers is no nftrace daemon: see $NFTRACE_SOCKET"),
    ],
)
def test_what_answers_wrongly_is_named(tmp_path: Path, answer: bytes, said: str) -> None:
    """One line and status 3, for a daemon that dies and for what is none."""
    with _answering(tmp_path / "s", answer):
        told = _told(tmp_path / "s", *_FOLLOW)

    assert (3, "", f"nftrace: {said}\n") == told


def test_a_daemon_of_another_version_is_named(tmp_path: Path) -> None:
    """What it refuses may be what it does not know: both versions are said."""
    answer = b'{"err": "nftrace: no such word\\n", "version": "0.0.7"}\n{"end": 2}\n'
    with _answering(tmp_path / "s", answer):
        status, _, err = _told(tmp_path / "s", *_FOLLOW)

    assert 2 == status
    assert "nftrace: no such word" == err.splitlines()[0]
    assert f"the daemon is nftrace 0.0.7, this is {__version__}" in err.splitlines()[1]


def test_a_socket_that_nobody_listens_at_is_said(tmp_path: Path) -> None:
    """A daemon that was killed leaves its socket: there is one line that says what to do."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / "s"))
    dead = _told(tmp_path / "s", *_FOLLOW)
    absent = _told(tmp_path / "none", *_FOLLOW)

    for (status, out, err), why in ((dead, "Connection refused"), (absent, "No such file")):
        assert (3, "") == (status, out)
        assert f"({why}" in err
        assert err.endswith("run it with sudo, or start `nftrace daemon`\n")


def test_a_daemon_with_a_queue_is_said(tmp_path: Path) -> None:
    """Where others wait to be taken we wait for a while, and say that it was that."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        one = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        one.connect(str(tmp_path / "s"))
        status, _, err = _told(tmp_path / "s", *_FOLLOW)

    assert 3 == status
    assert "has too many who ask" in err


@pytest.mark.parametrize(
    "words",
    [
        ("follow", "--daemon", "--ends=off"),
        ("follow", "--daemon", "--buffer=7"),
        ("follow", "--daemon", "--pcap=x"),
        ("drops", "--daemon", "--rung=reason"),
        ("drops", "--daemon", "--calibrate=1"),
    ],
)
def test_what_a_daemon_does_not_know_is_not_left_out(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """An option that could not be handed on is refused by name, and nobody is asked."""
    status, _, err = _told(tmp_path / "none", *words)
    option = words[-1].split("=")[0]

    assert 2 == status
    assert f"nftrace: {option} cannot be had from the daemon: run as root for that\n" == err


def test_a_daemon_that_hangs_can_be_left(tmp_path: Path) -> None:
    """The second Ctrl-C waits for no answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with _nftrace(tmp_path / "s", *_FOLLOW) as process:
            taken, _ = listener.accept()
            with taken, taken.makefile("rb") as lines:
                lines.readline()
                process.send_signal(signal.SIGINT)
                stop = lines.readline()
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=20)

    assert b'{"do": "stop"}\n' == stop
    assert 130 == process.returncode
