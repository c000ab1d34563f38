"""
What kernel tests build networks from: namespaces, cables, rules, senders.

Every name is below the private namespaces that conftest.py enters. Cables have fixed
MACs and permanent neighbours, and IPv6 says nothing of its own accord (no link-local
address, no DAD, no router solicitation): the packets on a wire are those that a test
sent, so that it can count them exactly.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import ipaddress
import itertools
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.kernel import probes
from tracer.demo.linux import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    die_with_parent,
    make_mounts_private,
    mount,
    unshare,
)
from tracer.sources.netns import entered, find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
_CACHE = ROOT / ".cache"

# What loads a whole ruleset from standard input, by the name that tests give the backend.
_RESTORE = {
    "legacy": ("iptables-legacy-restore",),
    "legacy6": ("ip6tables-legacy-restore",),
    "nft": ("iptables-nft-restore",),
    "nft6": ("ip6tables-nft-restore",),
    "nftables": ("nft", "-f", "-"),
}
#: Some days: no test sees what comes after.
_NEVER_MS = 1_000_000_000
# include/uapi/linux/sockios.h and if.h
_SIOCGIFFLAGS = 0x8913
_IFF_RUNNING = 0x40

BACKENDS = ("legacy", "nft", "nftables")

T = TypeVar("T")

_mac_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Outside:
    """What the tests left: its /run, as a descriptor, and its network's inode."""

    run_fd: int
    net: str


def enter_private_namespaces() -> Outside:
    """
    Move this process into a new network and mount namespace; /run becomes an empty tmpfs.

    With /run private, so are `ip netns` names, the xtables lock and state files.
    """
    outside = Outside(
        os.open("/run", os.O_PATH | os.O_CLOEXEC), str(Path("/proc/self/ns/net").readlink())
    )
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    make_mounts_private()
    mount("tmpfs", "/run", "mode=755")
    Path("/run/netns").mkdir()
    run("ip", "link", "set", "lo", "up")
    return outside


# --- commands ---------------------------------------------------------------------------


def run(
    *cmd: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """
    Run *cmd* and return what it printed, as text.

    Errors: AssertionError with the command's standard error where *check* and it failed.
    """
    done = subprocess.run(
        cmd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{' '.join(cmd)}: {done.returncode}\n{done.stderr}"
    return done


def ip_netns_exec(
    ns: str, *cmd: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """
    Run *cmd* in the network namespace *ns*; otherwise as run().

    Unlike `ip netns exec` it mounts no /sys of its own, which costs it nothing.
    """
    with in_netns(ns):
        return run(*cmd, stdin=stdin, check=check, timeout_s=timeout_s)


@contextlib.contextmanager
def spawn(ns: str, *cmd: str, **kwargs: object) -> Iterator[subprocess.Popen[str]]:
    """
    Start *cmd* in *ns* in the background; it is killed at the end of the block.

    It also dies with pytest. *kwargs* are Popen's; its outputs are pipes unless said.
    """
    options: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        **kwargs,
    }
    with in_netns(ns):
        process = subprocess.Popen(  # type: ignore[call-overload]
            cmd,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, no lock is taken
            **options,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def wait_until(
    predicate: Callable[[], T], timeout_s: float = 5.0, what: str = "the condition"
) -> T:
    """
    Return the first true value of *predicate*, asked every 5 ms.

    Errors: AssertionError naming *what* after *timeout_s* seconds of false ones.
    """
    end = time.monotonic() + timeout_s
    while not (value := predicate()):
        assert time.monotonic() < end, f"{what} did not come within {timeout_s} s"
        time.sleep(0.005)
    return value


# --- namespaces and cables --------------------------------------------------------------


def add_netns(name: str, *, forward: bool = False) -> None:
    """Make the namespace *name*, its lo up, quiet about IPv6, forwarding where *forward*."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    quiet = {
        "net/ipv6/conf/default/addr_gen_mode": 1,
        "net/ipv6/conf/default/accept_dad": 0,
        "net/ipv6/conf/default/accept_ra": 0,
        "net/ipv6/conf/default/router_solicitations": 0,
        # A device with no IPv6 address would still report the groups that it joined, and
        # one that has an address reports them again up to a second after.
        "net/ipv6/conf/default/disable_ipv6": 1,
        "net/ipv6/conf/default/mldv1_unsolicited_report_interval": _NEVER_MS,
        "net/ipv6/conf/default/mldv2_unsolicited_report_interval": _NEVER_MS,
        "net/ipv4/conf/all/rp_filter": 0,
        "net/ipv4/conf/default/rp_filter": 0,
    }
    if forward:
        # Conf "all" last: writing it sets accept_ra and the like of every device.
        quiet["net/ipv4/ip_forward"] = 1
        quiet["net/ipv6/conf/all/forwarding"] = 1
    sysctl(name, quiet)


def delete_netns(name: str) -> None:
    """Remove the name; the namespace itself goes when its last process and socket do."""
    run("ip", "netns", "delete", name)


def sysctl(ns: str, values: dict[str, int | str]) -> None:
    """Write *values*, keyed by path below /proc/sys, in the namespace *ns*."""
    with in_netns(ns):
        for path, value in values.items():
            Path("/proc/sys", path).write_text(f"{value}\n", encoding="ascii")


@contextlib.contextmanager
def in_netns(ns: str) -> Iterator[None]:
    """
    Put this thread into the namespace *ns* for the block.

    Sockets that are opened and processes that are started in it stay there.
    """
    with entered(find_namespace(ns)):
        yield


Addresses = str | tuple[str, ...] | None


def veth(  # noqa: PLR0913, PLR0917 - two ends of three facts each
    ns_a: str, dev_a: str, addr_a: Addresses, ns_b: str, dev_b: str, addr_b: Addresses
) -> None:
    """
    Lay a cable from *dev_a* in *ns_a* to *dev_b* in *ns_b*, both ends up.

    Addresses are ADDR/PREFIX, one, several or none. Each end knows the other's
    addresses as permanent neighbours: no ARP or neighbour discovery between them.
    """
    mac_a, mac_b = _new_mac(), _new_mac()
    run(
        *("ip", "link", "add", dev_a, "netns", ns_a, "address", mac_a, "type", "veth"),
        *("peer", "name", dev_b, "netns", ns_b, "address", mac_b),
    )
    for ns, dev, own, mac, peer in (
        (ns_a, dev_a, addr_a, mac_b, addr_b),
        (ns_b, dev_b, addr_b, mac_a, addr_a),
    ):
        if any(":" in address for address in (*_each(own), *_each(peer))):
            sysctl(ns, {f"net/ipv6/conf/{dev}/disable_ipv6": 0})
        batch = [f"link set {dev} up"]
        for address in _each(own):
            nodad = " nodad" if ":" in address else ""
            batch.append(f"address add {address} dev {dev}{nodad}")
        for address in _each(peer):
            host = ipaddress.ip_interface(address).ip
            batch.append(f"neighbour replace {host} lladdr {mac} dev {dev} nud permanent")
        ip_batch(ns, batch)
    # The end that came up alone gets its queue when a kernel thread has seen the other's.
    for ns, dev in ((ns_a, dev_a), (ns_b, dev_b)):
        wait_until(functools.partial(_is_running, ns, dev), 20, f"{dev} of {ns}")


def _is_running(ns: str, dev: str) -> bool:
    with in_netns(ns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sh14x", dev.encode(), 0)
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, request)
    return bool(struct.unpack_from("16sh", answer)[1] & _IFF_RUNNING)


def ip_batch(ns: str, lines: list[str]) -> None:
    """Run many ip commands, without the word ip, in *ns* at the cost of one."""
    run("ip", "-n", ns, "-batch", "-", stdin="\n".join(lines) + "\n")


def route(ns: str, *words: str) -> None:
    """Add a route in *ns*, as in `ip route add` *words*."""
    family = ["-6"] if any(":" in word for word in words) else []
    run("ip", "-n", ns, *family, "route", "add", *words)


def _each(addresses: Addresses) -> tuple[str, ...]:
    if addresses is None:
        return ()
    return (addresses,) if isinstance(addresses, str) else addresses


def _new_mac() -> str:
    # Locally administered (02): no vendor's.
    number = next(_mac_numbers)
    return "02:00:00:{:02x}:{:02x}:{:02x}".format(*number.to_bytes(3, "big"))


# --- rules ------------------------------------------------------------------------------


def load_rules(ns: str, backend: str, text: str, *, keep: bool = False) -> None:
    """
    Load *text* into *ns*: a restore file, or a file for nft -f.

    *backend*: legacy, legacy6, nft, nft6 or nftables. For the restore formats *keep*
    leaves what is there already (--noflush); nft -f always does.
    """
    command = list(_RESTORE[backend])
    if keep and backend != "nftables":
        command.append("--noflush")
    ip_netns_exec(ns, *command, stdin=text)


def rule_counters(ns: str, backend: str, table: str, chain: str) -> list[int]:
    """
    Read the packet counters of a chain's rules, in order; None where a rule has none.

    Truth is what the user's own tool says: iptables-save -c or nft list. For nftables
    *table* is "FAMILY NAME", or NAME for family ip.
    """
    if backend == "nftables":
        spec = table if " " in table else f"ip {table}"
        text = ip_netns_exec(ns, "nft", "list", "chain", *spec.split(), chain).stdout
        return [int(n) for n in re.findall(r"counter packets (\d+)", text)]
    tool = _RESTORE[backend][0].removesuffix("-restore")
    text = ip_netns_exec(ns, f"{tool}-save", "-c", "-t", table).stdout
    return [
        int(n) for n in re.findall(rf"^\[(\d+):\d+\] -A {re.escape(chain)} ", text, re.MULTILINE)
    ]


# --- packets ----------------------------------------------------------------------------


def send_udp(  # noqa: PLR0913 - a packet has many fields
    ns: str,
    dst: str,
    dport: int,
    count: int = 1,
    *,
    src: str | None = None,
    sport: int = 0,
    payload: bytes = b"",
) -> int:
    """
    Send *count* UDP packets from *ns* and return the source port that they left from.

    Local errors (a firewall's EPERM, a refused port told late) are not raised: a drop in
    OUTPUT is what many tests want.
    """
    with _socket(ns, dst, socket.SOCK_DGRAM, src, sport) as sock:
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock.sendto(payload, (dst, dport))
        return sock.getsockname()[1]


def send_tcp_syn(  # noqa: PLR0913 - a packet has many fields
    ns: str,
    dst: str,
    dport: int,
    count: int = 1,
    *,
    src: str | None = None,
    sport: int = 0,
) -> list[int]:
    """
    Send *count* SYNs from *ns*, each of a connection of its own; return the source ports.

    Each socket is closed at once, which sends nothing: no SYN is sent again. With *sport*
    the ports are that one and those after it.
    """
    ports = []
    for index in range(count):
        own = sport + index if sport else 0
        with _socket(ns, dst, socket.SOCK_STREAM, src, own) as sock:
            sock.setblocking(False)  # noqa: FBT003 - socket's signature
            sock.connect_ex((dst, dport))
            ports.append(sock.getsockname()[1])
    return ports


def send_echo(ns: str, dst: str, count: int = 1, *, ident: int = 4242) -> None:
    """Send *count* ICMP or ICMPv6 echo requests with sequence numbers from 1."""
    six = ":" in dst
    kind, family = (128, socket.AF_INET6) if six else (8, socket.AF_INET)
    proto = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with in_netns(ns), socket.socket(family, socket.SOCK_RAW, proto) as sock:
        for seq in range(1, count + 1):
            body = struct.pack("!BBHHH", kind, 0, 0, ident, seq) + b"nftrace "
            if not six:  # the kernel fills in ICMPv6's checksum
                body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
            with contextlib.suppress(OSError):
                sock.sendto(body, (dst, 0))


@contextlib.contextmanager
def tcp_listener(ns: str, port: int, address: str = "0.0.0.0") -> Iterator[socket.socket]:  # noqa: S104
    """Listen on a TCP port in *ns*; the kernel completes handshakes without accept()."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with in_netns(ns):
        sock = socket.create_server((address, port), family=family, backlog=128)
    with sock:
        yield sock


@contextlib.contextmanager
def udp_listener(ns: str, port: int, address: str = "0.0.0.0") -> Iterator[socket.socket]:  # noqa: S104
    """Hold a UDP port open in *ns*, so that packets to it are delivered."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with in_netns(ns):
        sock = socket.socket(family, socket.SOCK_DGRAM)
    with sock:
        sock.bind((address, port))
        yield sock


def connect(ns: str, dst: str, dport: int, *, timeout_s: float = 5.0) -> socket.socket:
    """Open a TCP connection from *ns*; the caller closes it."""
    with in_netns(ns):
        return socket.create_connection((dst, dport), timeout=timeout_s)


@contextlib.contextmanager
def _socket(ns: str, dst: str, kind: int, src: str | None, sport: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in dst else socket.AF_INET
    with in_netns(ns):
        sock = socket.socket(family, kind)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if src is not None or sport:
            sock.bind((src or ("::" if family == socket.AF_INET6 else "0.0.0.0"), sport))  # noqa: S104
        yield sock


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


@dataclass(frozen=True, slots=True)
class Flooded:
    """What a flood did: packets sent, and nanoseconds from the first to the last."""

    sent: int
    elapsed_ns: int


def flood(  # noqa: PLR0913 - the program's options
    ns: str,
    dst: str,
    port: int,
    count: int,
    *,
    rate: int = 0,
    cpu: int | None = None,
    sport: int = 0,
    ports: int = 1,
    size: int = 18,
    src: str | None = None,
) -> Flooded:
    """
    Send exactly *count* UDP packets from *ns* with sendmmsg, and wait until all are sent.

    Units: *rate* is packets a second, 0 for as fast as it goes; *size* payload bytes,
    of which the first eight are the packet's number. *ports* source ports go round, from
    *sport* on where it is given.
    """
    options = {
        "dst": dst,
        "port": port,
        "count": count,
        "rate": rate,
        "cpu": -1 if cpu is None else cpu,
        "sport": sport,
        "ports": ports,
        "size": size,
        "src": src,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    sent, elapsed_ns = ip_netns_exec(ns, str(build_flood()), *words).stdout.split()
    return Flooded(int(sent), int(elapsed_ns))


def build_flood() -> Path:
    """Compile flood.c unless that was done before; return the program's path."""
    source = Path(__file__).with_name("flood.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = _CACHE / f"flood-{digest}"
    if not program.exists():
        _CACHE.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=_CACHE, delete=False) as half:
            pass
        run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", half.name, str(source))
        # Renamed whole: two sessions at once see either nothing or all of it.
        Path(half.name).rename(program)
    return program


# --- capabilities -----------------------------------------------------------------------


def require(capability: str) -> None:
    """
    Skip the calling test unless this kernel has *capability* (a key of probes.PROBES).

    The skip says what is missing and how that was found.
    """
    missing = probes.find_missing(capability)
    if missing is not None:
        pytest.skip(f"needs {capability}: {missing}")


def has_capability(capability: str) -> bool:
    """Tell whether this kernel has *capability* (a key of probes.PROBES)."""
    return probes.find_missing(capability) is None


def nftrace(ns: str, *args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run this checkout's nftrace in *ns* as a user would; not checked, see returncode."""
    options: dict[str, object] = {"check": False, **kwargs}
    return ip_netns_exec(ns, sys.executable, "-m", "tracer.cli.main", *args, **options)  # type: ignore[arg-type]
