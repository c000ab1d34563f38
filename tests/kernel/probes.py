"""
Can this kernel do it? Probes for tests, each by doing the thing and not by version.

A probe returns None for yes, or what it tried and what came back. "Could not tell"
raises: a test must not be skipped for a reason that nobody knows.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# include/uapi/linux/bpf.h
_BPF_PROG_LOAD = 5
_PROG_TYPE_NETFILTER = 32
_ATTACH_NETFILTER = 45
# bpf(2) by machine; probes do not go through bcc, which compiles for a quarter second.
_SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]


@functools.cache
def find_missing(capability: str) -> str | None:
    """
    Return None if the kernel has *capability*, else how it was probed and what came.

    Errors: KeyError for a capability that has no probe.
    """
    return PROBES[capability]()


def _btf() -> str | None:
    path = Path("/sys/kernel/btf/vmlinux")
    return None if path.exists() else f"{path} does not exist (CONFIG_DEBUG_INFO_BTF)"


def _kprobes() -> str | None:
    path = Path("/sys/bus/event_source/devices/kprobe")
    return None if path.exists() else f"{path} does not exist (CONFIG_KPROBE_EVENTS)"


def _bpf_netfilter() -> str | None:
    # The shortest program there is: set r0 to NF_ACCEPT, return.
    code = ctypes.create_string_buffer(bytes([0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95]) + bytes(7), 16)
    name = ctypes.create_string_buffer(b"GPL")
    attr = bytearray(128)
    struct.pack_into(
        "=IIQQ", attr, 0, _PROG_TYPE_NETFILTER, 2, ctypes.addressof(code), ctypes.addressof(name)
    )
    struct.pack_into("=I", attr, 68, _ATTACH_NETFILTER)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_SYS_BPF, _BPF_PROG_LOAD, (ctypes.c_char * 128).from_buffer(attr), len(attr))
    if fd < 0:
        return f"loading a program of type NETFILTER: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return None


def _legacy_tables() -> str | None:
    return _command("iptables-legacy", "-t", "filter", "-S")


def _nf_tables() -> str | None:
    return _command("nft", "list", "tables")


def _nfnetlink_log() -> str | None:
    known = Path("/proc/net/netfilter/nf_log").read_text(encoding="ascii")
    if "nfnetlink_log" in known:
        return None
    return "/proc/net/netfilter/nf_log does not list nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG)"


def _nft_bridge() -> str | None:
    return _nft_chain("bridge", "type filter hook prerouting priority -300;")


def _nft_ingress() -> str | None:
    return _nft_chain("netdev", 'type filter hook ingress device "lo" priority 0;')


def _nft_egress() -> str | None:
    return _nft_chain("netdev", 'type filter hook egress device "lo" priority 0;')


def _nft_queue() -> str | None:
    return _nft_chain("ip", "queue num 1")


def _nft_chain(family: str, body: str) -> str | None:
    rules = f"table {family} probe {{\nchain c {{\n{body}\n}}\n}}\n"
    return _command("nft", "-f", "-", stdin=rules, undo=("nft", "delete", "table", family, "probe"))


def _bridge() -> str | None:
    add = ("ip", "link", "add", "probe", "type", "bridge")
    return _command(*add, undo=("ip", "link", "delete", "probe"))


def _br_netfilter() -> str | None:
    path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    return None if path.exists() else f"{path} does not exist (CONFIG_BRIDGE_NETFILTER)"


def _ipset() -> str | None:
    add = ("ipset", "create", "probe", "hash:ip")
    return _command(*add, undo=("ipset", "destroy", "probe"))


def _owned_tables() -> str | None:
    # An owned table dies with the nft that made it: nothing to undo.
    return _command("nft", "-f", "-", stdin="table ip probe {\nflags owner;\n}\n")


def _ipv6() -> str | None:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as exc:
        if exc.errno != errno.EAFNOSUPPORT:
            raise
        return "socket(AF_INET6): address family not supported"
    return None


def _command(
    *cmd: str, stdin: str | None = None, undo: tuple[str, ...] | None = None
) -> str | None:
    done = subprocess.run(cmd, input=stdin or "", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Our own mistake in the question is no answer.
        assert "syntax error" not in done.stderr, done.stderr
        # nft shows the place below its first line, others end with what is to be done.
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return f"{' '.join(cmd)} {' '.join((stdin or '').split())}: {said[0]}"
    if undo is not None:
        subprocess.run(undo, check=True, capture_output=True)
    return None


PROBES: dict[str, Callable[[], str | None]] = {
    "bpf_netfilter": _bpf_netfilter,
    "br_netfilter": _br_netfilter,
    "bridge": _bridge,
    "btf": _btf,
    "ipset": _ipset,
    "ipv6": _ipv6,
    "kprobes": _kprobes,
    "legacy_tables": _legacy_tables,
    "nf_tables": _nf_tables,
    "nfnetlink_log": _nfnetlink_log,
    "nft_bridge": _nft_bridge,
    "nft_egress": _nft_egress,
    "nft_ingress": _nft_ingress,
    "nft_queue": _nft_queue,
    "owned_tables": _owned_tables,
}
