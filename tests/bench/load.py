"""
The load that followers are measured under, and the namespaces that it runs in.

A sender, pinned to CPU 0, floods a router over a cable; the packets die in a chain below
a chain of the router's PREROUTING, so that each makes exactly `MESSAGES` trace messages,
by our arming or by the mark that other tools need. The kernel's part runs where the
sender does; whoever follows is pinned to CPU 1.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel import nets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

SENDER, ROUTER = "snd", "rtr"
DST, PORT = "10.0.0.2", 9
SENDER_CPU, FOLLOWER_CPU = 0, 1

#: Trace messages a packet: the mark, a jump, a rule that counts, a jump, a drop.
MESSAGES = 5

_RULES = {
    "nft": f"""
table ip bench {{
	chain deny {{
		drop
	}}
	chain judge {{
		udp dport {PORT} counter
		udp dport {PORT} jump deny
	}}
	chain pre {{
		type filter hook prerouting priority -100; policy accept;
		ip daddr {DST} jump judge
	}}
}}
""",
    "legacy": f"""
*mangle
:deny - [0:0]
:judge - [0:0]
-A PREROUTING -d {DST} -j judge
-A judge -p udp --dport {PORT}
-A judge -p udp --dport {PORT} -j deny
-A deny -p udp -j DROP
COMMIT
""",
}
ENGINES = ("nft", "legacy")
_LOADERS = {"nft": "nftables", "legacy": "legacy"}

_OF_LOAD = 4
_A_CHAIN = 100


def _many_nft(count: int) -> str:
    lines = ["table ip many {"]
    for first in range(0, count, _A_CHAIN):
        lines.append(f"chain service-{first} {{")
        for number in range(first, min(first + _A_CHAIN, count)):
            address = f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            lines.append(f"ip daddr {address} tcp dport 8080 counter accept")
        lines.append("}")
    return "\n".join([*lines, "}"]) + "\n"


def _many_legacy(count: int) -> str:
    chains, lines = [], []
    for first in range(0, count, _A_CHAIN):
        chains.append(f":service-{first} - [0:0]")
        for number in range(first, min(first + _A_CHAIN, count)):
            address = f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            lines.append(f"-A service-{first} -d {address} -p tcp --dport 8080 -j ACCEPT")
    return "\n".join(["*filter", *chains, *lines, "COMMIT"]) + "\n"


_MANY = {"nft": _many_nft, "legacy": _many_legacy}


def many_rules(engine: str, count: int) -> str:
    """Give *count* accepting rules of *engine* nft or legacy, a hundred a chain."""
    return _MANY[engine](count)


# What `nft monitor trace` and `xtables-monitor` need: a mark that makes one message.
_MARK = f"""
table ip marks {{
	chain traced {{
		meta nftrace set 1 accept
	}}
	chain pre {{
		type filter hook prerouting priority -350; policy accept;
		ip daddr {DST} goto traced
	}}
}}
"""

_NFTRACE = str(Path(sys.executable).with_name("nftrace"))


def build() -> None:
    """Move this process into private namespaces."""
    nets.enter_private_namespaces()
    nets.build_flood()


def take_precedence() -> None:
    """Go before what else the machine does; no load here is longer than seconds."""
    os.nice(-20)
    # The scheduler weighs sessions first, where it groups by session.
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/autogroup").write_text("-20", encoding="ascii")


@contextlib.contextmanager
def rules(engine: str, count: int = 4) -> Iterator[None]:
    """
    Lay a sender and a router with rules that the packets die by, of *engine* nft or legacy.

    With *count* there are so many in all, a hundred a chain, that no packet comes to.
    """
    for name in (SENDER, ROUTER):
        nets.add_netns(name)
    try:
        nets.veth(SENDER, "s0", "10.0.0.1/24", ROUTER, "r0", f"{DST}/24")
        loader = _LOADERS[engine]
        nets.load_rules(ROUTER, loader, _RULES[engine])
        if count > _OF_LOAD:
            nets.load_rules(ROUTER, loader, _MANY[engine](count - _OF_LOAD), keep=True)
        yield
    finally:
        # The whole router: a legacy table once used goes on sending events when emptied.
        for name in (SENDER, ROUTER):
            nets.delete_netns(name)


@contextlib.contextmanager
def mark() -> Iterator[None]:
    """Have all packets traced by a rule, for the tools that arm nothing themselves."""
    nets.load_rules(ROUTER, "nftables", _MARK)
    try:
        yield
    finally:
        nets.ip_netns_exec(ROUTER, "nft", "delete", "table", "ip", "marks")


def send(packets: int, rate: int = 0) -> nets.Flooded:
    """Send *packets*, *rate* a second (0: as fast as it goes), and wait for the last one."""
    return nets.flood(SENDER, DST, PORT, packets, rate=rate, cpu=SENDER_CPU, sport=4000)


@contextlib.contextmanager
def sending(packets: int, rate: int) -> Iterator[subprocess.Popen[str]]:
    """Send *packets* in the background; what is not sent at the block's end never is."""
    words = {
        "dst": DST,
        "port": PORT,
        "count": packets,
        "rate": rate,
        "cpu": SENDER_CPU,
        "sport": 4000,
    }
    with nets.spawn(
        SENDER, str(nets.build_flood()), *(f"--{name}={value}" for name, value in words.items())
    ) as process:
        yield process


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that ended: its status, and the seconds of processor time it took."""

    status: int
    cpu_s: float


class Background:
    """A command in the router, with its output in a file, on *cpus*: CPU 1 unless said."""

    def __init__(
        self, words: Sequence[str], output: Path, cpus: Iterable[int] = (FOLLOWER_CPU,)
    ) -> None:
        self._words = words
        self._output = output
        self._cpus = frozenset(cpus)

    def __enter__(self) -> Self:
        """Start it."""
        with self._output.open("wb") as out, nets.in_netns(ROUTER):
            self.process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, self._cpus),  # noqa: PLW1509
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, where it was not ended."""
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()

    def end(self) -> Ended:
        """Interrupt it and wait until it is gone."""
        os.kill(self.process.pid, signal.SIGINT)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return Ended(self.process.returncode, usage.ru_utime + usage.ru_stime)

    def resident_bytes(self) -> int:
        """Return the memory it has now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def settle(self) -> None:
        """Wait until it has written nothing for a while."""
        size, quiet = -1, 0
        while quiet < 5:  # a quarter of a second
            now = self._output.stat().st_size
            quiet = quiet + 1 if now == size else 0
            size = now
            time.sleep(0.05)


def follow(
    form: str, output: Path, *words: str, cpus: Iterable[int] = (FOLLOWER_CPU,)
) -> Background:
    """Return `nftrace follow` of all the load, to be started; *words* may say otherwise."""
    line = (_NFTRACE, "follow", "-o", form, "--rate", "0", "--buffer", "256", "--dst", DST)
    return Background((*line, *words), output, cpus)


def wait_until_armed(timeout_s: float = 30) -> None:
    """Wait until the router has an arming table: rules are listed faster than a tool starts."""
    nets.wait_until(
        lambda: "nftrace" in nets.ip_netns_exec(ROUTER, "nft", "list", "tables").stdout,
        timeout_s,
        "the arming",
    )


def wait_until_listening(pid: int, timeout_s: float = 10) -> None:
    """Wait until process *pid* listens to a netfilter multicast group in the router."""
    path = Path(f"/proc/{pid}/net/netlink")

    def listens() -> bool:
        rows = (line.split() for line in path.read_text(encoding="ascii").splitlines()[1:])
        # sk, Eth (12 is netfilter), Pid, Groups as hexadecimal bits.
        return any(row[1] == "12" and int(row[3], 16) for row in rows)

    nets.wait_until(listens, timeout_s, "the listener")
