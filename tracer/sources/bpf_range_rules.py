"""The rules of the range: droppers of every kind at known places, and their loading."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.sources.bpf_deadline import Deadline

__all__ = ["CHAINS", "LEGACY", "load_legacy", "load_nft"]

_INET, _INET6 = 2, 10  # NFPROTO
Chain = tuple[str, str, str, int, int, int]

#: (family, chain, hook, priority, port of its rule, port that its policy drops). Between
#: them stand the legacy tables' entries: raw -300, mangle -150, filter 0.
_CHAINS = (
    ("ip", "a", "input", -400, 9001, 9101),
    ("ip", "b", "input", -160, 9002, 9102),
    ("ip", "c", "input", -10, 9003, 9103),
    ("ip", "d", "input", 300, 9004, 9104),
    ("ip", "e", "output", 310, 9005, 9105),
    ("ip", "f", "prerouting", 310, 9006, 9106),
    ("inet", "a", "input", -390, 9011, 9111),
    ("inet", "b", "input", 310, 9012, 9112),
    ("ip6", "a", "input", -400, 9021, 9121),
    ("ip6", "b", "input", -10, 9022, 9122),
    ("ip6", "c", "input", 300, 9023, 9123),
)
#: What not every kernel has, each loaded by itself. All of a device's ingress chains are
#: entries of one hook.
_MORE_CHAINS = (
    (
        ("netdev", "a", "ingress", -10, 9031, 9131),
        ("netdev", "b", "ingress", 10, 9032, 9132),
    ),
    (("inet", "x", "ingress", 0, 9041, 9141),),
)
#: (restore program, family, table, chain, priority, port).
LEGACY = (
    ("iptables", _INET, "raw", "PREROUTING", -300, 9201),
    ("iptables", _INET, "mangle", "PREROUTING", -150, 9202),
    ("iptables", _INET, "mangle", "INPUT", -150, 9203),
    ("iptables", _INET, "filter", "INPUT", 0, 9204),
    ("iptables", _INET, "raw", "OUTPUT", -300, 9205),
    ("iptables", _INET, "mangle", "OUTPUT", -150, 9206),
    ("iptables", _INET, "filter", "OUTPUT", 0, 9207),
    ("ip6tables", _INET6, "raw", "PREROUTING", -300, 9211),
    ("ip6tables", _INET6, "mangle", "INPUT", -150, 9213),
    ("ip6tables", _INET6, "filter", "INPUT", 0, 9214),
)
#: Every nft chain there may be.
CHAINS: tuple[Chain, ...] = (*_CHAINS, *(row for rows in _MORE_CHAINS for row in rows))


def load_nft(deadline: Deadline) -> dict[int, int]:
    """Return the handle of each dropping rule by its port."""
    handles = _load_chains(_CHAINS, deadline)
    if not handles:
        return {}
    for chains in _MORE_CHAINS:
        handles |= _load_chains(chains, deadline)
    return handles


def _load_chains(chains: Sequence[Chain], deadline: Deadline) -> dict[int, int]:
    """Return the handles of *chains*' dropping rules by port; empty where nft refuses."""
    lines = []
    for family, chain, hook, priority, port, policy_port in chains:
        device = ' device "lo"' if hook == "ingress" else ""
        lines += [
            f"add table {family} t",
            (
                f"add chain {family} t {chain} "
                f"{{ type filter hook {hook}{device} priority {priority}; policy drop; }}"
            ),
            f"add rule {family} t {chain} udp dport {port} drop",
            f"add rule {family} t {chain} udp dport != {policy_port} accept",
            f"add rule {family} t {chain} ip6 nexthdr icmpv6 accept" if family != "ip" else "",
        ]
    try:
        done = subprocess.run(
            ["nft", "--echo", "--handle", "--file", "-"],
            input="\n".join(lines).encode(),
            capture_output=True,
            check=False,
            timeout=deadline.left_s(),
        )
    except FileNotFoundError:
        return {}
    except subprocess.TimeoutExpired as exc:
        raise deadline.over() from exc
    if done.returncode != 0:
        return {}
    echoed = re.findall(rb"udp dport (\d+) drop # handle (\d+)", done.stdout)
    return {int(port): int(handle) for port, handle in echoed}


def load_legacy(deadline: Deadline) -> set[str]:
    """Load the legacy rules; return the tools whose rules are in force."""
    try:
        return {tool for tool in ("iptables", "ip6tables") if _restore(tool, deadline)}
    except subprocess.TimeoutExpired as exc:
        raise deadline.over() from exc


def _restore(tool: str, deadline: Deadline) -> bool:
    """Load one tool's rules; False where there is no such tool or it refuses."""
    tables: dict[str, list[str]] = {}
    for name, _, table, chain, _, port in LEGACY:
        if name == tool:
            line = f"-A {chain} -p udp --dport {port} -j DROP"
            tables.setdefault(table, []).append(line)
    text = "".join(
        f"*{table}\n" + "\n".join(lines) + "\nCOMMIT\n" for table, lines in tables.items()
    )
    # The lock is the machine's, though the rules are ours alone: take one of our own.
    with tempfile.NamedTemporaryFile() as lock, contextlib.suppress(FileNotFoundError):
        done = subprocess.run(
            [f"{tool}-legacy-restore"],
            input=text.encode(),
            capture_output=True,
            check=False,
            env={**os.environ, "XTABLES_LOCKFILE": str(Path(lock.name))},
            timeout=deadline.left_s(),
        )
        return done.returncode == 0
    return False
