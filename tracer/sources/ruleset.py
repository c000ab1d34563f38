"""
Reading the ruleset of the calling thread's network namespace, legacy tables and nft's.

Whoever calls has entered the namespace with setns(): the processes started here are in it,
and /proc/thread-self/net is its own (/proc/net would be the main thread's). Nothing here
changes anything: the tools only list, legacy tables are read only where they exist, and
the lock of xtables is not taken (iptables-save does not).

What was read is of one moment if nft's generation and the legacy tables' fingerprint are
the same before and after; if not, it is read again.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tracer.core.iptables import name_nft_tables, parse_iptables_save
from tracer.core.nft_text import parse_nft
from tracer.core.ruleset import Ruleset, Table
from tracer.errors import KernelRefusedError, KernelUnsupportedError, MalformedMessageError
from tracer.sources.ip_sets import find_set_names, read_ip_sets
from tracer.sources.legacy_tables import LegacyFingerprint, legacy_tables
from tracer.sources.ruleset_tools import Tool, find_iptables_save, find_nft

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.core.ip_sets import IpSet

__all__ = ["LegacyFingerprint", "RulesetRead", "legacy_tables", "read_generation", "read_ruleset"]

_NETLINK_NETFILTER: Final = 12
#: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, and its answer NFT_MSG_NEWGEN.
_GETGEN, _NEWGEN = 10 << 8 | 16, 10 << 8 | 15
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_NFTA_GEN_ID: Final = 1
#: The kernel answers at once, or never.
_ANSWER_S: Final = 5.0
_REMEDY: Final = "run as root (CAP_NET_ADMIN in the network namespace)"
#: A ruleset that changes faster than it can be read is taken as it is after this many.
_TRIES: Final = 4
#: The tables that iptables-nft makes; all its base chains are called by a hook in capitals.
_IPTABLES_TABLES: Final = frozenset({"raw", "mangle", "nat", "filter", "security"})
_BUILT_IN: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


@dataclass(frozen=True, slots=True)
class RulesetRead:
    """
    A ruleset, and what is needed to tell whether it is still in force.

    *generation* is nft's, None where the kernel has no nf_tables. *exact* is False when
    the rules changed while they were read, at each try, so that parts may be of different
    moments. *nat_json* maps (family, name) of the nft tables in form nft that hold nat
    chains to what `nft -j list table` prints; those in form iptables have their NAT in
    their rules' texts, and *ip_sets* are the sets that these match on. Both are empty where
    nobody asked for them. *elapsed_ns* is the time that reading took, all tries together.
    """

    ruleset: Ruleset
    generation: int | None
    legacy: LegacyFingerprint
    exact: bool
    nat_json: Mapping[tuple[str, str], str]
    ip_sets: Mapping[str, IpSet]
    elapsed_ns: int

    def is_stale(self) -> bool:
        """Tell whether the calling thread's namespace has other rules by now."""
        if read_generation() != self.generation:
            return True
        return LegacyFingerprint.take(self.legacy).changed_since(self.legacy)


@dataclass(frozen=True, slots=True)
class _Content:
    """What one try read."""

    ruleset: Ruleset
    nat_json: Mapping[tuple[str, str], str]
    ip_sets: Mapping[str, IpSet]


def read_ruleset(*, with_nat: bool = True) -> RulesetRead:
    """
    Read all rules of the calling thread's network namespace.

    *with_nat*: what arming must know of NAT, too.
    Errors: KernelUnsupportedError where a tool is missing that this ruleset needs,
    KernelRefusedError where the kernel or a tool refuses.
    """
    started_ns = time.perf_counter_ns()
    generation, legacy = read_generation(), LegacyFingerprint.take()
    for left in reversed(range(_TRIES)):
        content = _try_read(generation, legacy, last=left == 0, with_nat=with_nat)
        before, previous = generation, legacy
        generation, legacy = read_generation(), LegacyFingerprint.take(previous)
        exact = generation == before and not legacy.changed_since(previous)
        if content is not None and (exact or left == 0):
            elapsed_ns = time.perf_counter_ns() - started_ns
            return RulesetRead(
                content.ruleset,
                before,
                previous,
                exact,
                content.nat_json,
                content.ip_sets,
                elapsed_ns,
            )
    raise AssertionError  # the last try returned or raised


def _try_read(
    generation: int | None, legacy: LegacyFingerprint, *, last: bool, with_nat: bool
) -> _Content | None:
    try:
        return _read_once(generation, legacy, with_nat=with_nat)
    except MalformedMessageError as exc:
        message = f"a tool printed rules that nftrace does not understand ({exc})"
        raise KernelUnsupportedError(message, "report it with that tool's version") from exc
    except KernelRefusedError:
        # A table can vanish between being listed and being asked for.
        if last:
            raise
        return None


def _read_once(generation: int | None, legacy: LegacyFingerprint, *, with_nat: bool) -> _Content:
    with ExitStack() as runs:
        # Without -t it reads the tables that exist, and no other comes into being.
        saves = {
            family: _start(runs, [_get_legacy_save(family)])
            for family in sorted({family for family, _ in legacy.tables})
        }
        tables, nat_json = ([], {}) if generation is None else _read_nft(runs, with_nat=with_nat)
        for family, save in saves.items():
            tables += parse_iptables_save(save.read(), "legacy", family)
    return _Content(
        Ruleset({(table.engine, table.family, table.name): table for table in tables}),
        nat_json,
        read_ip_sets(find_set_names(tables)) if with_nat else {},
    )


def _start(runs: ExitStack, command: Sequence[str]) -> Tool:
    tool = Tool(command)
    runs.callback(tool.cancel)
    return tool


def _get_legacy_save(family: str) -> str:
    found = find_iptables_save(family, "legacy")
    if found is None:
        tool = "ip6tables" if family == "ip6" else "iptables"
        message = f"this namespace has legacy tables, and {tool}-legacy-save is missing"
        raise KernelUnsupportedError(message, "install it: apt install iptables")
    return found


def _read_nft(
    runs: ExitStack, *, with_nat: bool
) -> tuple[list[Table], Mapping[tuple[str, str], str]]:
    nft = find_nft()
    # Terse: named sets can hold 100,000 elements that no rule's text shows.
    listing = _start(runs, [nft, "-s", "-t", "-a", "list", "ruleset"])
    # Beside that, in a tenth of its time: what else there is to start already.
    chains = _read_chains(_start(runs, [nft, "-j", "list", "chains"]).read())
    saves = _start_nft_saves(runs, chains)
    nat_runs = {
        key: _start(runs, [nft, "-j", _list_table(*key)])
        for key, table in chains.items()
        if with_nat and table.has_nat and not table.may_be_iptables(*key)
    }
    tables = parse_nft(listing.read())
    made = {(table.family, table.name) for table in tables if _is_made_by_iptables(table)}
    saved = [
        table
        for family, save in saves.items()
        if any(family == one for one, _ in made)
        for table in _read_nft_save(family, save)
        if (family, table.name) in made
    ]
    named = name_nft_tables(tables, saved)
    wanted = [(table.family, table.name) for table in named if with_nat and _needs_json(table)]
    for key in wanted:
        if key not in nat_runs:
            nat_runs[key] = _start(runs, [nft, "-j", _list_table(*key)])
    return named, {key: nat_runs[key].read() for key in wanted}


@dataclass(slots=True)
class _Chains:
    """The base chains of one nft table, before its rules are read."""

    hooked: set[str] = field(default_factory=set)
    has_nat: bool = False

    def may_be_iptables(self, family: str, name: str) -> bool:
        """Tell whether iptables-nft can have made the table."""
        return (
            family in ("ip", "ip6")
            and name in _IPTABLES_TABLES
            and _BUILT_IN.issuperset(self.hooked)
        )


def _read_chains(text: str) -> dict[tuple[str, str], _Chains]:
    found: dict[tuple[str, str], _Chains] = {}
    try:
        entries = json.loads(text)["nftables"]
        for chain in (entry["chain"] for entry in entries if "chain" in entry):
            table = found.setdefault((chain["family"], chain["table"]), _Chains())
            if "hook" in chain:
                table.hooked.add(chain["name"])
                table.has_nat |= chain.get("type") == "nat"
    except (ValueError, KeyError, TypeError) as exc:
        raise MalformedMessageError("nft -j list chains", 0, "no list of chains") from exc
    return found


def _list_table(family: str, name: str) -> str:
    """Return the command to list a table, in JSON: nft's grammar does not take every name."""
    return json.dumps({"nftables": [{"list": {"table": {"family": family, "name": name}}}]})


def _start_nft_saves(runs: ExitStack, chains: Mapping[tuple[str, str], _Chains]) -> dict[str, Tool]:
    """Start iptables-nft-save beside nft's own listing where there may be tables of its."""
    families = {key[0] for key, table in chains.items() if table.may_be_iptables(*key)}
    found = {family: find_iptables_save(family, "nft") for family in sorted(families)}
    return {family: _start(runs, [path]) for family, path in found.items() if path is not None}


def _is_made_by_iptables(table: Table) -> bool:
    base = {chain.name for chain in table.chains.values() if chain.hook is not None}
    return _Chains(base).may_be_iptables(table.family, table.name)


def _read_nft_save(family: str, save: Tool) -> list[Table]:
    """Return what iptables-nft-save says; nothing where it has no words for the tables."""
    try:
        return parse_iptables_save(save.read(), "nft", family)
    except (KernelRefusedError, MalformedMessageError):
        # Native rules in a table of that name: nft's own words stand.
        return []


def _needs_json(table: Table) -> bool:
    return table.form == "nft" and any(chain.type == "nat" for chain in table.chains.values())


def read_generation() -> int | None:
    """
    Return the generation of the calling thread's nft ruleset; None without nf_tables.

    It grows with each transaction, also with one that only adds an element to a set.
    Errors: KernelRefusedError if the kernel does not let us ask.
    Source: nf_tables_getgen() in net/netfilter/nf_tables_api.c.
    """
    request = struct.pack("=IHHIIBBH", 20, _GETGEN, _NLM_F_REQUEST, 0, 0, 0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asking:
            asking.settimeout(_ANSWER_S)
            asking.send(request)
            answer = asking.recv(4096)
    except OSError as exc:
        if exc.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            return None
        message = f"the kernel does not tell nft's generation ({exc.strerror or exc})"
        raise KernelRefusedError(message, _REMEDY) from exc
    return _decode_generation(answer)


def _decode_generation(answer: bytes) -> int | None:
    (kind,) = struct.unpack_from("=H", answer, 4)
    if kind == _NLMSG_ERROR:
        (number,) = struct.unpack_from("=i", answer, 16)
        if -number in (errno.EINVAL, errno.EOPNOTSUPP):
            return None  # nfnetlink without nf_tables
        message = f"the kernel does not tell nft's generation ({os.strerror(-number)})"
        raise KernelRefusedError(message, _REMEDY)
    # NFTA_GEN_ID is the first attribute: its value follows two headers of 20 and 4 bytes.
    size, attribute = struct.unpack_from("=HH", answer, 20)
    if (kind, size, attribute) != (_NEWGEN, 8, _NFTA_GEN_ID):
        raise MalformedMessageError("nft generation", 20, "no generation")
    return int(struct.unpack_from(">I", answer, 24)[0])
