"""
`nftrace demo`: the case of the two routers, told from symptom to cause.

The story is a frame around a follower, which does on the demo's routers what
`nftrace follow` does on anybody's. It runs inside the private namespaces.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from tracer.demo.conclusion import conclude_broken, conclude_fixed
from tracer.demo.drawing import draw_network
from tracer.demo.lab import CONNECT_TIMEOUT_S, PUBLIC, ROUTERS, SSH_PORT, Backend, Lab
from tracer.demo.page import Page
from tracer.demo.private import run_in_private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from tracer.core.journey import Journey
    from tracer.demo.lab import Attempt

__all__ = ["FOLLOWED_ADDRESS", "FOLLOWED_PORT", "DemoOptions", "Follower", "run_demo"]

#: What is followed: the inner address and port, which vr1's packets do not have yet.
FOLLOWED_ADDRESS: Final = "172.17.21.105"
FOLLOWED_PORT: Final = 22

# After the attempt: time for the last packet to cross the routers and be read.
_SETTLE_S: Final = 0.2
_UNSEEN: Final = 1
_TOOLS: Final = {
    Backend.LEGACY: ("iptables-legacy", "iptables-legacy -t mangle -L -n -v -x"),
    Backend.NFT: ("iptables-nft", "iptables-nft -t mangle -L -n -v -x"),
    Backend.NFTABLES: ("nftables", "nft list table ip mangle"),
}


class Follower(Protocol):
    """What the demo asks of whoever follows the packets and prints their journeys."""

    def start(self, namespaces: Sequence[str]) -> None:
        """Arm in *namespaces*; once it returns, every packet that is sent is seen."""

    def watch(self, until: Callable[[], bool]) -> None:
        """Print journeys as they come until *until* is true; ask it ten times a second."""

    def finish(self) -> Sequence[Journey]:
        """Print what is left and the summary, disarm, and return all journeys."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks of the demo."""

    backend: Backend = Backend.NFT
    fixed: bool = False
    keep: bool = False


def run_demo(options: DemoOptions, console: Console, make_follower: Callable[[], Follower]) -> int:
    """
    Tell the case in namespaces of its own, and return the exit status.

    *make_follower* is called inside them, where /run/netns has vr1 and vr2, in a forked
    process: what it opens is of that process and gone with it.
    Status: 0 the case ended as it is known to, 1 it did not or nothing was seen, 130
    interrupted, or that of the NftraceError that ended it.
    """
    return run_in_private(lambda pid: _tell(options, console, make_follower(), pid))


def _tell(options: DemoOptions, console: Console, follower: Follower, pid: int) -> int:
    page = Page(console)
    with Lab(options.backend) as lab:
        if options.fixed:
            lab.fix()
        _introduce(page, options)
        attempt, journeys = _try_and_follow(lab, follower)
        if options.fixed:
            as_known = conclude_fixed(page, attempt, journeys)
        else:
            as_known = conclude_broken(page, lab, attempt, journeys)
        if options.keep:
            _keep(page, options, pid)
    return 0 if as_known else _UNSEEN


def _introduce(page: Page, options: DemoOptions) -> None:
    page.heading("the case")
    page.paragraph(
        f"ssh to {PUBLIC}, port {SSH_PORT}, times out, whoever tries. The machine behind it"
        " works, and its neighbours reach it by ssh. What has changed: the customer bound a"
        " second public address, 61.146.164.82, and let only tcp 300-65535 through to it."
    )
    if options.fixed:
        page.paragraph("Here it is solved: the second address has an inner one of its own.")
    tool, _ = _TOOLS[options.backend]
    page.heading("the network", f"{tool} rules; namespaces with no way out")
    page.verbatim(draw_network(fixed=options.fixed), indent=0)
    page.heading("what nftrace sees")
    page.shell("client$", f"ssh -o ConnectTimeout={CONNECT_TIMEOUT_S:.0f} -p {SSH_PORT} {PUBLIC}")
    page.shell("router#", f"nftrace follow {' '.join(_follow_words())}")
    page.blank()


def _follow_words() -> list[str]:
    words = [word for router in ROUTERS for word in ("--netns", router)]
    return [*words, "--dst", FOLLOWED_ADDRESS, "--dport", str(FOLLOWED_PORT)]


def _try_and_follow(lab: Lab, follower: Follower) -> tuple[Attempt, Sequence[Journey]]:
    follower.start(ROUTERS)
    journeys: Sequence[Journey] = ()
    try:
        pending = lab.start_attempt()
        over_s: list[float] = []

        def is_told() -> bool:
            if not over_s and pending.is_over():
                over_s.append(time.monotonic())
            return bool(over_s) and time.monotonic() - over_s[0] >= _SETTLE_S

        follower.watch(is_told)
    finally:
        # An interrupted demo still closes with the summary, and disarms.
        journeys = follower.finish()
    while not pending.is_over(wait_s=CONNECT_TIMEOUT_S):
        pass  # a follower that ended early, as by a count, does not end the attempt
    return pending.outcome(), journeys


def _keep(page: Page, options: DemoOptions, pid: int) -> None:
    enter = f"nsenter --target {pid} --net --mount --pid"
    _, list_rules = _TOOLS[options.backend]
    connect = f"timeout 4 bash -c '< /dev/tcp/{PUBLIC}/{SSH_PORT}'"
    page.heading("the network stays up", "until Ctrl-C; from another terminal, as root:")
    page.shell("#", f"{enter} {_nftrace()} follow {' '.join(_follow_words())}")
    page.shell("#", f"{enter} ip netns exec client {connect}")
    page.shell("#", f"{enter} ip netns exec vr2 {list_rules}")
    page.shell("#", f"{enter} ip netns exec vr1 tcpdump -nn -i eth2")
    page.blank()
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def _nftrace() -> str:
    program = Path(sys.prefix, "bin", "nftrace")
    return str(program) if program.exists() else "nftrace"
