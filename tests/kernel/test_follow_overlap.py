"""Followers of legacy tables that overlap: the last one out leaves the logger as it was."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow
from tracer.sources.nf_log import LOGGER, STATE_DIR, leftovers, repair

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

PORT = 7001
LEGACY = f"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport {PORT} -j DROP\nCOMMIT\n"
WAY = (("filter", "INPUT", 1, "drop"),)
# The kernel's own value, and one that an operator chose.
NONE, CHOSEN = "NONE", "nf_log_ipv4"
WORDS = ("--dport", str(PORT))


@pytest.fixture
def pair(netns: Callable[..., str]) -> None:
    """Give two hosts with a cable and legacy tables, each with a logger of its own choice."""
    nets.require("legacy_tables")
    nets.require("nfnetlink_log")
    for name in ("a", "b"):
        netns(name)
        nets.load_rules(name, "legacy", LEGACY)
    nets.veth("a", "eth0", "10.1.0.1/24", "b", "eth0", "10.1.0.2/24")
    _set_logger("a", NONE)
    _set_logger("b", CHOSEN)


def _file() -> Path:
    return Path("/proc/sys/net/netfilter/nf_log/2")


def _set_logger(ns: str, logger: str) -> None:
    with nets.in_netns(ns):
        _file().write_text(logger, encoding="ascii")


def _logger(ns: str) -> str:
    with nets.in_netns(ns):
        return _file().read_text(encoding="ascii").strip()


def _notes() -> list[str]:
    return sorted(path.name for path in STATE_DIR.glob("*"))


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("first", ["a", "b"])
def test_each_namespace_gets_its_own_logger_back(first: str) -> None:
    """Whichever of two ends first, it restores its own and leaves the other's alone."""
    last = {"a": "b", "b": "a"}[first]
    before = {name: _logger(name) for name in ("a", "b")}
    with follow(first, *WORDS) as one, follow(last, *WORDS) as other:
        assert {LOGGER} == {_logger("a"), _logger("b")}
        assert 2 == len(_notes())
        nets.send_udp("a", "10.1.0.2", PORT, 5)
        nets.send_udp("b", "10.1.0.1", PORT, 5)
        told = one.finish(10)
        assert [f"{other.process.pid}-"] == [note.partition("-")[0] + "-" for note in _notes()]
        assert (before[first], LOGGER) == (_logger(first), _logger(last))
        nets.send_udp(first, "10.1.0.2" if first == "a" else "10.1.0.1", PORT, 7)
        rest = other.finish(17)

    assert before == {name: _logger(name) for name in ("a", "b")}
    assert [] == _notes()
    assert 5 == told.ways()[WAY]
    assert 12 == rest.ways()[WAY]


@pytest.mark.usefixtures("pair")
def test_a_refused_follower_leaves_the_holders_logger_alone() -> None:
    """In one namespace the second is refused and changes nothing: the first goes on."""
    with follow("b", *WORDS) as run:
        notes = _notes()
        refused = nets.nftrace("b", "follow", *WORDS)
        assert (LOGGER, notes) == (_logger("b"), _notes())
        nets.send_udp("a", "10.1.0.2", PORT, 7)
        told = run.finish(7)

    assert 3 == refused.returncode
    assert {WAY: 7} == told.ways()
    assert (CHOSEN, []) == (_logger("b"), _notes())


@pytest.mark.usefixtures("pair")
def test_a_killed_follower_is_repaired_beside_a_living_one() -> None:
    """The next start puts right what the dead one left, and nothing that a living one uses."""
    with follow("a", *WORDS) as killed, follow("b", *WORDS) as living:
        killed.process.kill()
        killed.process.wait(10)
        assert (LOGGER, LOGGER) == (_logger("a"), _logger("b"))
        assert ["netns a ip"] == leftovers()
        checked = nets.nftrace("b", "check", "--repair")
        assert (NONE, LOGGER) == (_logger("a"), _logger("b"))
        assert [str(living.process.pid)] == [note.partition("-")[0] for note in _notes()]
        nets.send_udp("a", "10.1.0.2", PORT, 11)
        told = living.finish(11)

    assert "netns a: nf_log for ip is NONE again" in checked.stdout + checked.stderr
    assert {WAY: 11} == told.ways()
    assert (CHOSEN, []) == (_logger("b"), _notes())


# Whoever does not need the group may switch as well: two processes in one namespace.
_SWITCHER = """
import sys
from tracer.sources.netns import entered, find_namespace
from tracer.sources.nf_log import NfLogSwitch
switch, namespace = NfLogSwitch(), find_namespace("b")
with entered(namespace):
    switch.turn_on(namespace, "ip")
print("on", flush=True)
sys.stdin.readline()
print(switch.restore(), flush=True)
"""


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("way_out", ["first", "last", "first killed", "last killed"])
def test_the_last_one_out_of_a_namespace_restores_its_logger(way_out: str) -> None:
    """Two have switched one namespace: however the one ends, the setting stays for the other."""
    options = {"stdin": -1, "cwd": nets.ROOT}
    command = (sys.executable, "-c", _SWITCHER)
    with nets.spawn("b", *command, **options) as one, nets.spawn("b", *command, **options) as two:
        for process in (one, two):
            assert "on" == _line(process)
        assert 2 == len(_notes())
        leaving, staying = (one, two) if way_out.startswith("first") else (two, one)
        if way_out.endswith("killed"):
            leaving.send_signal(signal.SIGKILL)
            leaving.wait(10)
        else:
            assert "[]" == _leave(leaving)
        assert LOGGER == _logger("b")
        assert "[]" == _leave(staying)

    assert CHOSEN == _logger("b")
    # A note of the dead remains, which changes nothing any more.
    repair()
    assert (CHOSEN, []) == (_logger("b"), _notes())


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _leave(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("leave\n")
    process.stdin.flush()
    return _line(process)
