"""Beside other tracers: theirs go on, ours shows what it was asked for, neither is the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.kernel.follow_helper import Way

SENDER, BOX = "sender", "box"
ADDRESS = "10.1.0.2"
# Traced by the user alone, by us alone, by both.
THEIRS, OURS, BOTH = 7004, 7005, 7006
COUNTS = {THEIRS: 3, OURS: 5, BOTH: 7}

NATIVE = f"""\
table ip own {{
 chain t {{
  type filter hook prerouting priority -300;
  udp dport {{ {THEIRS}, {BOTH} }} meta nftrace set 1
 }}
 chain in {{ type filter hook input priority 0; udp dport {THEIRS}-{BOTH} drop; }}
}}
"""
IPTABLES = f"""\
*raw
-A PREROUTING -p udp -m udp --dport {THEIRS} -j TRACE
-A PREROUTING -p udp -m udp --dport {BOTH} -j TRACE
COMMIT
*filter
-A INPUT -p udp -m udp --dport {THEIRS}:{BOTH} -j DROP
COMMIT
"""
WAYS: dict[str, dict[int, Way]] = {
    "nftables": {
        OURS: (("own", "t", None, "accept"), ("own", "in", 1, "drop")),
        BOTH: (
            ("own", "t", 1, "continue"),
            ("own", "t", None, "accept"),
            ("own", "in", 1, "drop"),
        ),
    },
    "nft": {
        OURS: (("raw", "PREROUTING", None, "accept"), ("filter", "INPUT", 1, "drop")),
        BOTH: (
            ("raw", "PREROUTING", 2, "continue"),
            ("raw", "PREROUTING", None, "accept"),
            ("filter", "INPUT", 1, "drop"),
        ),
    },
}
WAYS["legacy"] = WAYS["nft"]
TOOLS = {
    "nft monitor trace": ("nft", "monitor", "trace"),
    "xtables-monitor": ("xtables-monitor", "--trace"),
}


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a host with a sender beside it."""
    nets.veth(netns(SENDER), "eth0", "10.1.0.1/24", netns(BOX), "eth0", f"{ADDRESS}/24")
    return BOX


def _send() -> None:
    for port, count in COUNTS.items():
        nets.send_udp(SENDER, ADDRESS, port, count)


def _listen(ns: str, tool: str, already: int) -> None:
    nets.wait_until(lambda: _traces_heard(ns) > already, what=f"{tool} to listen")


def _end(monitor: subprocess.Popen[str]) -> str:
    monitor.terminate()
    seen, _ = monitor.communicate(timeout=10)
    return seen


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_a_users_own_tracing_goes_on_and_is_not_ours(box: str, backend: str, tool: str) -> None:
    """What only the user traces we do not show; what both do we show whole, and their tool too."""
    nets.load_rules(box, backend, NATIVE if backend == "nftables" else IPTABLES)

    with (
        follow(box, "--dport", str(OURS), "--src", "10.1.0.1") as one,
        nets.spawn(box, "stdbuf", "-oL", *TOOLS[tool]) as monitor,
    ):
        _listen(box, tool, 1)
        _send()
        told = one.finish(COUNTS[OURS])
        seen = _end(monitor)
    with follow(box, "--dport", str(BOTH)) as other:
        _send()
        again = other.finish(COUNTS[BOTH])

    assert {WAYS[backend][OURS]: COUNTS[OURS]} == told.ways()
    assert {WAYS[backend][BOTH]: COUNTS[BOTH]} == again.ways()
    assert 0 == told.summary["lost"] == again.summary["lost"]
    # Their own rule's events, which legacy tables do not send to their tool.
    words = {"nftables": "own:t:rule:", "nft": "-j TRACE"}
    if tool == "nft monitor trace":
        words = dict.fromkeys(words, "meta nftrace set 1 (verdict continue)")
    if backend != "legacy":
        assert COUNTS[THEIRS] + COUNTS[BOTH] == seen.count(words[backend])


@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_xtables_monitor_is_in_nobodys_way(box: str, backend: str) -> None:
    """It holds no NFLOG group: who comes first of it and us does not matter."""
    nets.load_rules(box, backend, NATIVE if backend == "nftables" else IPTABLES)

    with nets.spawn(box, "stdbuf", "-oL", "xtables-monitor", "--trace") as monitor:
        _listen(box, "xtables-monitor", 0)
        with follow(box, "--dport", str(OURS)) as run:
            _send()
            told = run.finish(COUNTS[OURS])
        _end(monitor)

    assert {WAYS[backend][OURS]: COUNTS[OURS]} == told.ways()


def _traces_heard(ns: str) -> int:
    """Count the sockets that listen to group NFNLGRP_NFTRACE."""
    text = nets.ip_netns_exec(ns, "cat", "/proc/net/netlink").stdout
    rows = [line.split() for line in text.splitlines()[1:]]
    return sum(row[1] == "12" and int(row[3], 16) & 0x100 != 0 for row in rows)
