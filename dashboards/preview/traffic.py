"""
Packets that die in the demo's network, in many places and at changing rates.

    client ──── inet ──── vr1 ──── vr2 ──── vm

Every rate goes up and down in its own time, one kind of drop begins late, and the ruleset
changes twice: panels that show when something began have something to show.
"""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from tracer.demo.lab import PUBLIC
from tracer.sources.netns import entered, find_namespace

if TYPE_CHECKING:
    from tracer.demo.lab import Lab, PendingAttempt

__all__ = ["Flow", "find_rate", "run_traffic"]

#: How often packets are sent: each time as many as the rates say.
_TURN_S: Final = 0.25
#: An ssh attempt of three SYNs this often.
_ATTEMPT_S: Final = 3.0


class Flow(NamedTuple):
    """
    UDP from *host* to an address and port, at most *peak* packets a second.

    It swells and ebbs once in *period_s*, and begins at *begin*, a part of the whole time.
    """

    host: str
    target: tuple[str, int]
    peak: float
    period_s: float
    begin: float = 0.0


_FLOWS: Final = (
    # A rule in vr1's raw table.
    Flow("client", (PUBLIC, 9), 18, 70),
    # vr1's policy in FORWARD.
    Flow("inet", ("172.17.21.200", 53), 9, 110),
    # No route at inet: the kernel itself.
    Flow("client", ("192.0.2.1", 53), 13, 45),
    # A rule in vr2's INPUT that is loaded late, and one in vr1's OUTPUT.
    Flow("vm", ("10.1.1.1", 161), 23, 60, begin=0.45),
    Flow("vr1", ("172.17.21.105", 123), 3, 30),
)
#: Namespace, arguments of iptables-nft, and when, as a part of the whole time.
_RULES: Final = (
    ("vr1", "-t raw -I PREROUTING -p udp --dport 9 -j DROP", 0.0),
    ("vr1", "-A OUTPUT -p udp --dport 123 -j DROP", 0.0),
    ("vr2", "-I INPUT -p udp --dport 161 -j DROP", 0.45),
    ("vr2", "-I INPUT -p udp --dport 514 -j DROP", 0.75),
)


def run_traffic(lab: Lab, lasts_s: float) -> None:
    """
    Let packets die for *lasts_s* seconds.

    Errors: CalledProcessError where a rule or the route is refused.
    """
    with entered(find_namespace("inet")):
        route = f"ip route add 172.17.21.200/32 via {PUBLIC}"
        subprocess.run(route.split(), check=True)
    sockets = {flow: _open(flow.host) for flow in _FLOWS}
    owed = dict.fromkeys(_FLOWS, 0.0)
    waiting = list(_RULES)
    attempts: list[PendingAttempt] = []
    started_s, before_s = time.monotonic(), 0.0
    while (elapsed_s := time.monotonic() - started_s) < lasts_s:
        waiting = _load_due(waiting, elapsed_s / lasts_s)
        for flow, sock in sockets.items():
            owed[flow] += find_rate(flow, elapsed_s, lasts_s) * (elapsed_s - before_s)
            owed[flow] -= _send(sock, flow, int(owed[flow]))
        attempts = [one for one in attempts if not one.is_over()]
        if int(elapsed_s / _ATTEMPT_S) != int(before_s / _ATTEMPT_S):
            attempts.append(lab.start_attempt())
        before_s = elapsed_s
        time.sleep(_TURN_S)


def _open(host: str) -> socket.socket:
    with entered(find_namespace(host)):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _load_due(waiting: list[tuple[str, str, float]], part: float) -> list[tuple[str, str, float]]:
    for netns, rule, begin in waiting:
        if begin <= part:
            with entered(find_namespace(netns)):
                subprocess.run(("iptables-nft", *rule.split()), check=True)
    return [one for one in waiting if one[2] > part]


def find_rate(flow: Flow, elapsed_s: float, lasts_s: float) -> float:
    """Return how many packets a second *flow* sends at *elapsed_s* of *lasts_s*."""
    if elapsed_s < flow.begin * lasts_s:
        return 0.0
    swell = math.sin(2 * math.pi * elapsed_s / flow.period_s)
    return flow.peak * (0.55 + 0.45 * swell)


def _send(sock: socket.socket, flow: Flow, packets: int) -> int:
    for _ in range(packets):
        # What a rule in OUTPUT drops, the sender is told.
        with contextlib.suppress(OSError):
            sock.sendto(b"nftrace", flow.target)
    return packets
