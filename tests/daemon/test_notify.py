"""What systemd is told, and that nobody else is."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from tracer.daemon.notify import Notifier

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give a name for $NOTIFY_SOCKET, of either kind."""
    return str(tmp_path / "notify") if request.param == "path" else f"@nftrace-{os.getpid()}"


def test_each_state_is_a_datagram(address: str) -> None:
    """Ready, status and stopping arrive in their order, by a path or an abstract name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address.replace("@", "\0"))
        told.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.ready()
        notifier.status("5 namespaces\nREADY=1")
        notifier.stopping()

        assert b"READY=1" == told.recv(99)
        assert b"STATUS=5 namespaces READY=1" == told.recv(99)
        assert b"STOPPING=1" == told.recv(99)


def test_the_watchdog_is_fed_three_times_in_its_patience(address: str) -> None:
    """Between two signs of life there is a third of what systemd waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address.replace("@", "\0"))
        told.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"}
        notifier = Notifier(environ)
        fed = 0
        for tenth in range(601):
            notifier.alive(1000 + tenth / 10)
            try:
                fed += told.recv(99) == b"WATCHDOG=1"
            except BlockingIOError:
                continue

    assert {} == environ
    assert 7 == fed


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "3000", "WATCHDOG_PID": "1"}],
)
def test_without_a_watchdog_nothing_is_fed(environ: dict[str, str]) -> None:
    """No time, one that is no number, and one meant for another process are none."""
    assert Notifier(environ).watchdog_s is None


def test_nobody_at_the_other_end_is_no_error(tmp_path: Path) -> None:
    """Whoever started us may be gone."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    Notifier({}).ready()
    assert not (tmp_path / "gone").exists()
