"""The control socket: members follow without being root, and nobody harms the daemon."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel import nets
from tracer.daemon.control import ControlServer
from tracer.daemon.messages import Messages
from tracer.daemon.settings import ControlSettings, MessageSettings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

_TO_B = "10.1.0.2"
#: Debian's nobody and nogroup, and two that are somebody else.
_MEMBER, _STRANGER = 65534, 1
_numbers = itertools.count()
_RULES = """table inet t {
  chain c {
    type filter hook prerouting priority 5
    udp dport 7002 drop
  }
}
"""


@pytest.fixture
def cable(cable: None) -> None:
    """Have b drop what comes by the cable."""
    del cable
    nets.load_rules("b", "nftables", _RULES)


class _Serving:
    """A server, its log, and where it listens."""

    def __init__(self, server: ControlServer, path: Path, out: io.StringIO) -> None:
        self.server = server
        self.path = path
        self._out = out

    def said(self, event: str) -> list[dict[str, Any]]:
        told = map(json.loads, self._out.getvalue().splitlines())
        return [one for one in told if one["event"] == event]


@contextlib.contextmanager
def _serving(
    patience_s: float = 5.0, path: Path | None = None, **limits: int
) -> Iterator[_Serving]:
    path, out = path or Path(f"/run/nftrace-test/{next(_numbers)}.sock"), io.StringIO()
    messages = Messages(MessageSettings("json", repeat_s=0), out)
    limited = ControlSettings(socket=str(path), group="nogroup", **limits)
    server = ControlServer(limited, messages.log, patience_s)
    server.bind()
    server.start()
    try:
        yield _Serving(server, path, out)
    finally:
        server.stop()
    assert not path.exists()


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Blocking: it waits where others wait to be taken, too.
        connection.connect(str(path))
        connection.settimeout(20)
        yield connection


def _answers(connection: socket.socket) -> list[dict[str, Any]]:
    """Return all answers, until the other end closes."""
    raw = b""
    with contextlib.suppress(ConnectionResetError):
        while came := connection.recv(65_536):
            raw += came
    return [json.loads(line) for line in raw.splitlines()]


@contextlib.contextmanager
def _client(path: Path, uid: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start `nftrace` with *words* as user and group *uid*, in no other group."""
    ids = (f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    command = ("setpriv", *ids, sys.executable, "-m", "tracer.cli.main", *words)
    env = {**os.environ, "NFTRACE_SOCKET": str(path)}
    with nets.spawn("a", *command, cwd=nets.ROOT, env=env) as process:
        yield process


def _send_until_ended(process: subprocess.Popen[str], sport: int = 5001) -> tuple[str, str]:
    def has_ended() -> bool:
        nets.send_udp("a", _TO_B, 7002, 1, sport=sport)
        return process.poll() is not None

    nets.wait_until(has_ended, 30, "the client's end")
    return process.communicate()


@pytest.mark.usefixtures("cable")
def test_a_member_follows_without_being_root() -> None:
    """What the member is shown is what root is shown: packet, rule and ending."""
    words = ("follow", "--netns=b", "--dport=7002", "--count=3", "-o", "json")
    with _serving() as serving, _client(serving.path, _MEMBER, *words) as process:
        out, err = _send_until_ended(process)
        *journeys, summary = map(json.loads, out.splitlines())
        (asked,) = serving.said("client_asked")

    assert (0, "") == (process.returncode, err)
    assert ["udp dport 7002 drop"] * 3 == [one["ending"]["text"] for one in journeys]
    assert "nftrace.summary/1" == summary["schema"]
    assert (_MEMBER, _MEMBER) == (asked["uid"], asked["gid"])


@pytest.mark.usefixtures("cable")
def test_a_member_sees_drops_without_being_root() -> None:
    """The table of drops is told in the member's own choice of form."""
    words = ("drops", "--netns=b", "--once", "--interval=1", "-o", "json")
    with _serving() as serving, _client(serving.path, _MEMBER, *words) as process:
        out, err = _send_until_ended(process)

    assert (0, "") == (process.returncode, err)
    assert {"udp dport 7002 drop"} == {json.loads(line)["text"] for line in out.splitlines()}


@pytest.mark.usefixtures("cable")
def test_a_stranger_is_told_what_is_missing() -> None:
    """Who is not in the group gets status 3 and one line that says what to do."""
    with _serving() as serving, _client(serving.path, _STRANGER, "follow") as process:
        _, err = process.communicate(timeout=20)

    assert 3 == process.returncode
    assert "is not open to you: run it with sudo, or join group nftrace\n" in err
    assert 1 == err.count("\n")


@pytest.mark.usefixtures("cable")
def test_an_interrupted_member_gets_the_summary() -> None:
    """Ctrl-C ends the follower in order: its summary comes, and its table is gone."""
    words = ("follow", "--netns=b", "--dport=7002", "-o", "json")
    with _serving() as serving, _client(serving.path, _MEMBER, *words) as process:
        tables = nets.wait_until(
            lambda: nets.ip_netns_exec("b", "nft", "list", "tables").stdout.count("nftrace_"),
            20,
            "the follower's table",
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        left = nets.ip_netns_exec("b", "nft", "list", "tables").stdout

    assert tables >= 1
    assert (130, "") == (process.returncode, err)
    assert "interrupted" == json.loads(out.splitlines()[-1])["reason"]
    assert "nftrace_" not in left


@pytest.mark.usefixtures("cable")
def test_who_does_not_read_is_cut_off_and_told() -> None:
    """A client that takes nothing loses its follower, its backlog, and gets the reason."""
    ask = {"do": "follow", "words": {"netns": ["b"], "dport": "7002", "output": "json"}}
    with _serving(buffer_kb=16) as serving, _connected(serving.path) as connection:
        connection.sendall(json.dumps(ask).encode() + b"\n")

        def is_cut() -> bool:
            nets.send_udp("a", _TO_B, 7002, 97)
            return serving.server.cut == 1

        nets.wait_until(is_cut, 30, "the cut")
        *_, why, end = _answers(connection)
        nets.wait_until(lambda: serving.server.followers == 0, 20, "the follower's end")
        left = nets.ip_netns_exec("b", "nft", "list", "tables").stdout

    assert "you read too slowly" in why["err"]
    assert {"end": 1} == end
    assert "nftrace_" not in left


def test_who_does_not_ask_is_cut_off_and_told() -> None:
    """A client that connects and says nothing does not hold its place."""
    with _serving(patience_s=0.5) as serving, _connected(serving.path) as connection:
        connection.sendall(b'{"do": "fol')
        why, end = _answers(connection)

    assert "you did not ask in time" in why["err"]
    assert {"end": 1} == end
    assert 1 == serving.server.cut


def test_one_too_many_is_told_so() -> None:
    """Beyond the limits there is an answer at once, and those inside go on."""
    with _serving(clients=2) as serving, _connected(serving.path), _connected(serving.path):
        with _connected(serving.path) as third:
            why, end = _answers(third)

        assert "2 clients are connected already" in why["err"]
        assert {"end": 3} == end
        assert 1 == serving.server.refused


@pytest.mark.usefixtures("cable")
def test_followers_are_limited_and_end_with_the_daemon() -> None:
    """The second is refused; the first is told that the daemon ends, and leaves nothing."""
    ask = json.dumps({"do": "follow", "words": {"netns": ["b"], "dport": "1"}}).encode() + b"\n"
    with _serving(followers=1) as serving, _connected(serving.path) as first:
        first.sendall(ask)
        nets.wait_until(lambda: serving.server.followers == 1, 20, "the follower")
        with _connected(serving.path) as second:
            second.sendall(ask)
            why, _ = _answers(second)
        assert "1 others follow already" in why["err"]
        nets.wait_until(
            lambda: "nftrace_" in nets.ip_netns_exec("b", "nft", "list", "tables").stdout,
            20,
            "the follower's table",
        )
        serving.server.stop()
        *_, why, end = _answers(first)
        assert "the daemon ends" in why["err"]
        assert {"end": 1} == end
        assert "nftrace_" not in nets.ip_netns_exec("b", "nft", "list", "tables").stdout


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[_Serving]:
    """Serve all of a property's examples."""
    with _serving(followers=1) as serving:
        yield serving


_PIECES = st.lists(
    st.binary(max_size=400)
    | st.sampled_from(
        [
            *(b"\n", b'{"do": "stop"}\n', b"{}\n", b'{"do": "fol', b"\xff\xfe\n", b"[" * 9000),
            b"x\n" + b"y" * 65_536,
            b'{"do": "follow", "words": {"dport": "' + b"9" * 9000,
        ]
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(pieces=_PIECES)
def test_no_bytes_disturb_the_server(fuzzed: _Serving, pieces: list[bytes]) -> None:
    """Whatever a client sends, it is answered with an end, and the next one is served."""
    with _connected(fuzzed.path) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
            connection.sendall(b'\n{"do": "none"}\n')
        answers = _answers(connection)

    # Who is refused while still sending may be reset before the answer is read.
    assert not answers or {"end": 2} == answers[-1]
    with _connected(fuzzed.path) as connection:
        connection.sendall(b'{"do": "none"}\n')
        assert {"end": 2} == _answers(connection)[-1]


def test_much_behind_an_error_is_not_read() -> None:
    """A line in error ends a connection, however much comes with it, and no other."""
    with _serving() as serving:
        for _ in range(3):
            with _connected(serving.path) as connection:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"x\n" + b"y" * 65_536)
                _answers(connection)
        with _connected(serving.path) as connection:
            connection.sendall(b"{}\n")

            assert {"end": 2} == _answers(connection)[-1]


def test_a_connection_is_for_one_thing() -> None:
    """There is nothing to stop before something was asked for, and nothing after a stop."""
    ask = json.dumps({"do": "follow", "words": {"dport": "1"}}).encode() + b"\n"
    for lines in (b'{"do": "stop"}\n', ask + ask, ask + b'{"do": "stop"}\n' * 2):
        with _serving() as serving, _connected(serving.path) as connection:
            connection.sendall(lines)
            told = _answers(connection)

        assert "one thing at a time" in told[-2]["err"]
        assert {"end": 2} == told[-1]


def test_a_thousand_connections_are_not_taken_at_once() -> None:
    """Some are taken and the others wait or are refused; who comes after them is served."""
    with _serving(clients=5) as serving, contextlib.ExitStack() as opened:
        for _ in range(1000):
            one = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            one.setblocking(False)  # noqa: FBT003 - positional in socket's signature
            with contextlib.suppress(BlockingIOError):
                one.connect(str(serving.path))
        nets.wait_until(lambda: serving.server.clients >= 5, 20, "five clients")
        assert serving.server.clients <= 5
        assert serving.server.accepted + serving.server.refused <= 1000
        opened.close()
        nets.wait_until(lambda: serving.server.clients == 0, 20, "the end of all")
        with _connected(serving.path) as connection:
            connection.sendall(b"{}\n")
            assert {"end": 2} == _answers(connection)[-1]


def test_who_connects_without_end_is_held_up_and_served() -> None:
    """Beyond fifty a second they wait, which is said once, and each gets its answer."""
    ends = []
    with _serving() as serving:
        for _ in range(67):
            with _connected(serving.path) as connection:
                connection.sendall(b"{}\n")
                ends.append(_answers(connection)[-1])
        (said,) = serving.said("connections_held_up")

    assert [{"end": 2}] * 67 == ends
    assert 50 == said["taken_per_second"]


@pytest.mark.usefixtures("cable")
def test_root_asks_a_running_daemon_by_itself() -> None:
    """It is let through, without a member's limits; --no-daemon, or what it lacks, is alone."""
    words = ("follow", "--netns=b", "--dport=7002", "--count=3", "-o", "json")
    with _serving(packets_per_second=7) as serving:
        for more in (("--rate=5000",), ("--no-daemon",), ("--ends=off",)):
            with _client(serving.path, 0, *words, *more) as process:
                out, err = _send_until_ended(process)
            assert (0, "") == (process.returncode, err)
            assert 4 == len(out.splitlines())
        (asked,) = serving.said("client_asked")

    assert (0, 0) == (asked["uid"], asked["gid"])
    assert "--rate=5000" in asked["arguments"].split()


def test_a_socket_left_by_a_killed_daemon_is_taken_over() -> None:
    """A file nobody listens at is replaced; one where somebody does is left alone."""
    path = Path("/run/nftrace-test/left.sock")
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with _serving(path=path) as serving:
        assert (0o660, _MEMBER) == (path.stat().st_mode & 0o777, path.stat().st_gid)
        other = ControlServer(ControlSettings(socket=str(path)), None)
        with pytest.raises(Exception, match="another daemon listens at"):
            other.bind()
        other.stop()
        with _connected(serving.path) as connection:
            connection.sendall(b"{}\n")
            assert {"end": 2} == _answers(connection)[-1]
