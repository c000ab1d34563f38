"""
The network of the two routers, in namespaces.

    client ──── inet ──── vr1 ──── vr2 ──── vm

Two levels of routers, each with its rules; ssh to 61.146.164.120:10174 is meant for vm's
port 22 and dies in vr2. The rules are data, in rules/, as an operator listed them: for
iptables (legacy and nft take the same file) and in nft's own language.

All is IPv4, IPv6 is off in every namespace: no router solicitation walks through the
story. The names are made below whatever /run/netns the caller has; run it inside
tracer.demo.private.run_in_private().
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tracer.demo.linux import die_with_parent
from tracer.demo.listener import serve
from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources.netns import entered, find_namespace

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PUBLIC", "SSH_PORT", "Attempt", "Backend", "Lab"]

PUBLIC = "61.146.164.120"
SSH_PORT = 10174

HOSTS = ("client", "inet", "vr1", "vr2", "vm")
ROUTERS = ("vr1", "vr2")
_VM_PORTS = (22, 300, 8080)

# Linux sends SYNs at 0, 1 and 3 s and the fourth would follow at 7 s (see _SYSCTLS): after
# 4 s there is nothing more to see. As `ssh -o ConnectTimeout=4`.
CONNECT_TIMEOUT_S = 4.0


class Backend(StrEnum):
    """Whose rules the routers have: ip_tables, nf_tables through iptables, or nft's own."""

    LEGACY = "legacy"
    NFT = "nft"
    NFTABLES = "nftables"


_RESTORE = {
    Backend.LEGACY: ("iptables-legacy-restore",),
    Backend.NFT: ("iptables-nft-restore",),
    Backend.NFTABLES: ("nft", "-f", "-"),
}
_SAVE = {
    Backend.LEGACY: ("iptables-legacy-save",),
    Backend.NFT: ("iptables-nft-save",),
    Backend.NFTABLES: ("nft", "-s", "list", "ruleset"),
}
_COUNTERS = {
    Backend.LEGACY: ("iptables-legacy-save", "-c"),
    Backend.NFT: ("iptables-nft-save", "-c"),
    Backend.NFTABLES: ("nft", "list", "ruleset"),
}

# Ends of cables: host, device, its first address.
_CABLES = (
    (("client", "eth0", "183.62.15.118"), ("inet", "eth0", "183.62.15.1")),
    (("inet", "eth1", "61.146.164.97"), ("vr1", "eth2", PUBLIC)),
    (("vr1", "eth0", "172.17.21.2"), ("vr2", "eth2", "172.17.21.105")),
    (("vr2", "eth0", "10.1.1.1"), ("vm", "eth0", "10.1.1.69")),
)

_ADDRESSES = {
    "client": (
        "address add 183.62.15.118/24 dev eth0",
        "route add default via 183.62.15.1",
    ),
    "inet": (
        "address add 183.62.15.1/24 dev eth0",
        "address add 61.146.164.97/27 dev eth1",
        "route add 61.146.164.82/32 dev eth1",
    ),
    "vr1": (
        "address add 61.146.164.120/27 dev eth2",
        "address add 61.146.164.82/32 dev eth2",
        "address add 172.17.21.2/24 dev eth0",
        "address add 172.17.21.1/24 dev eth0",
        "route add default via 61.146.164.97",
    ),
    "vr2": (
        "address add 172.17.21.105/24 dev eth2",
        "address add 10.1.1.1/24 dev eth0",
        "route add default via 172.17.21.1",
    ),
    "vm": (
        "address add 10.1.1.69/24 dev eth0",
        "route add default via 10.1.1.1",
    ),
}

# Paths below /proc/sys. What a kernel does not have is left out: it needs no switching off.
_SYSCTLS_ALL = {
    "net/ipv6/conf/all/disable_ipv6": 1,
    "net/ipv6/conf/default/disable_ipv6": 1,
}
_SYSCTLS = {
    "client": {
        # A SYN of 52 bytes, three times. Linux 6.5 sends the first few a second apart
        # unless tcp_syn_linear_timeouts is 0 (commit ccce324dabfe, "tcp: make the first
        # N SYN RTO backoffs linear").
        "net/ipv4/tcp_syn_retries": 2,
        "net/ipv4/tcp_timestamps": 0,
        "net/ipv4/tcp_syn_linear_timeouts": 0,
    },
    "inet": {"net/ipv4/ip_forward": 1},
    "vr1": {"net/ipv4/ip_forward": 1},
    "vr2": {"net/ipv4/ip_forward": 1},
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One try to connect, over.

    *greeting* is the first line that the far side said, None where it did not come to
    that. *error* is the reason in the system's words, None where it connected.
    """

    address: str
    port: int
    elapsed_s: float
    greeting: str | None
    error: str | None


class Lab:
    """
    The built network; a context manager that takes it down.

    *listener_pid* is the process that answers in vm, None where none runs.
    Errors: KernelRefusedError where a tool is missing or refused, KernelUnsupportedError
    where the kernel does not take this backend's rules.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.listener_pid: int | None = None

    def __enter__(self) -> Self:
        """Build it: five namespaces, the rules, a listener in vm."""
        try:
            self._wire()
            for router in ROUTERS:
                self._load(router, router)
            self._listen()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it down, whatever happened."""
        self.close()

    def close(self) -> None:
        """End the listener and remove the namespaces; harmless when repeated."""
        if self.listener_pid is not None:
            os.kill(self.listener_pid, signal.SIGKILL)
            os.waitpid(self.listener_pid, 0)
            self.listener_pid = None
        names = [host for host in HOSTS if Path("/run/netns", host).exists()]
        _run("ip", "-batch", "-", stdin="".join(f"netns delete {name}\n" for name in names))

    def fix(self) -> None:
        """
        Solve the case: give the bound public address an inner address of its own.

        Connections that are tracked already would keep the old translation: forget them.
        """
        _run("ip", "-n", "vr2", "address", "replace", "172.17.21.212/24", "dev", "eth2")
        for router in reversed(ROUTERS):
            self._load(router, f"{router}-fixed")
            with entered(find_namespace(router)):
                _forget_connections()

    def attempt(self, address: str = PUBLIC, port: int = SSH_PORT) -> Attempt:
        """Try to connect from client as ssh does, and wait until the try is over."""
        pending = self.start_attempt(address, port)
        while not pending.is_over(wait_s=CONNECT_TIMEOUT_S):
            pass
        return pending.outcome()

    def start_attempt(self, address: str = PUBLIC, port: int = SSH_PORT) -> PendingAttempt:
        """Send the first SYN and return; the kernel sends the others by itself."""
        with entered(find_namespace("client")):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        return PendingAttempt(sock, address, port)

    def rules(self, router: str, *, counters: bool = False) -> str:
        """Return what the backend's own tool prints for *router*, with counters or without."""
        command = _COUNTERS if counters else _SAVE
        with entered(find_namespace(router)):
            return _run(*command[self.backend])

    def _wire(self) -> None:
        lines = [f"netns add {host}" for host in HOSTS]
        for (host_a, dev_a, addr_a), (host_b, dev_b, addr_b) in _CABLES:
            lines.append(
                f"link add {dev_a} netns {host_a} address {_mac(addr_a)} type veth"
                f" peer name {dev_b} netns {host_b} address {_mac(addr_b)}"
            )
        _run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
        for host in HOSTS:
            self._configure(host)

    def _configure(self, host: str) -> None:
        with entered(find_namespace(host)):
            for path, value in {**_SYSCTLS_ALL, **_SYSCTLS.get(host, {})}.items():
                with contextlib.suppress(FileNotFoundError):
                    Path("/proc/sys", path).write_text(f"{value}\n", encoding="ascii")
            ends = [end for cable in _CABLES for end in cable if end[0] == host]
            lines = ["link set lo up", *(f"link set {dev} up" for _, dev, _ in ends)]
            _run("ip", "-batch", "-", stdin="\n".join([*lines, *_ADDRESSES[host]]) + "\n")

    def _load(self, router: str, name: str) -> None:
        suffix = "nft" if self.backend is Backend.NFTABLES else "rules"
        text = (resources.files("tracer.demo") / "rules" / f"{name}.{suffix}").read_text("utf-8")
        with entered(find_namespace(router)):
            try:
                _run(*_RESTORE[self.backend], stdin=text)
            except KernelRefusedError as exc:
                message = f"the rules of {router} cannot be loaded ({exc.message})"
                others = " or ".join(one for one in Backend if one is not self.backend)
                raise KernelUnsupportedError(message, f"try --backend {others}") from exc

    def _listen(self) -> None:
        with entered(find_namespace("vm")):
            # Listening before the fork: a client can connect as soon as we return.
            sockets = [socket.create_server(("", port)) for port in _VM_PORTS]
        self.listener_pid = os.fork()
        if self.listener_pid == 0:
            try:
                die_with_parent()
                serve(sockets)
            finally:
                os._exit(1)
        for sock in sockets:
            sock.close()


class PendingAttempt:
    """A try to connect that is under way; the caller decides how to wait."""

    def __init__(self, sock: socket.socket, address: str, port: int) -> None:
        self._sock = sock
        self._target = (address, port)
        self._start_s = time.monotonic()
        self._outcome: Attempt | None = None
        sock.setblocking(False)  # noqa: FBT003 - socket's signature
        result = sock.connect_ex(self._target)
        if result != errno.EINPROGRESS:
            self._finish(result)

    def fileno(self) -> int:
        """Return the socket, which becomes writable when the kernel gives up or connects."""
        return self._sock.fileno()

    def is_over(self, wait_s: float = 0.0) -> bool:
        """Say whether it connected, failed or took too long, after at most *wait_s* seconds."""
        if self._outcome is None:
            left_s = self._start_s + CONNECT_TIMEOUT_S - time.monotonic()
            if select.select([], [self._sock], [], max(0.0, min(wait_s, left_s)))[1]:
                self._finish(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            elif time.monotonic() >= self._start_s + CONNECT_TIMEOUT_S:
                self._finish(errno.ETIMEDOUT)
        return self._outcome is not None

    def outcome(self) -> Attempt:
        """Return how it went; ValueError before it is over."""
        if self._outcome is None:
            message = "the attempt is not over"
            raise ValueError(message)
        return self._outcome

    def _finish(self, error: int) -> None:
        with self._sock:
            greeting = None if error else _read_line(self._sock)
        elapsed_s = time.monotonic() - self._start_s
        reason = os.strerror(error) if error else None
        self._outcome = Attempt(*self._target, elapsed_s, greeting, reason)


def _read_line(sock: socket.socket) -> str | None:
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        return sock.makefile(encoding="ascii").readline().rstrip() or None
    except OSError:
        return None


def _mac(address: str) -> str:
    # Locally administered (02), then the address: readable in tcpdump -e.
    return "02:00:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(address))


def _forget_connections() -> None:
    # IPCTNL_MSG_CT_DELETE that names no connection deletes all of this namespace.
    # Source: ctnetlink_del_conntrack() in net/netfilter/nf_conntrack_netlink.c.
    message_type = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
    request_and_ack = 5
    netfilter = 12
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter) as sock:
        header = struct.pack("=IHHII", 20, message_type, request_and_ack, 1, 0)
        sock.sendto(header + struct.pack("=BBH", socket.AF_UNSPEC, 0, 0), (0, 0))
        (error,) = struct.unpack_from("=i", sock.recv(4096), 16)
    if error:
        reason = os.strerror(-error)
        raise KernelRefusedError(f"the tracked connections cannot be forgotten ({reason})")


def _run(*cmd: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(cmd, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        message = f"{cmd[0]} is not installed"
        remedy = "install the packages iproute2, iptables and nftables"
        raise KernelRefusedError(message, remedy) from exc
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise KernelRefusedError(f"{cmd[0]}: {said[0]}")
    return done.stdout
