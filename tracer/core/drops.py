"""
What the kernel counted about packets that died, as rows with names.

A row is one kind of drop: namespace, kernel reason, and for netfilter the hook, the
table, the base chain and the rule, as far as they are known. What is not known is None,
and a rule that is one of several possible ones has *certain* False.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

__all__ = ["DropCount", "Place", "Rung", "hook_name", "merge_counts", "name_counts", "name_place"]

_SITE_OTHER, _SITE_HOOK = 0, 1
_INET_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
#: By NFPROTO: netdev has two hooks of its own, arp three; all others share the five.
_HOOKS = {5: ("ingress", "egress"), 3: ("input", "output", "forward")}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}


class Rung(StrEnum):
    """
    How a drop's place is found, from the least that is known upward.

    All but `reason` know hook, table and base chain; all but `reason` and `links` know
    nft's rule, all but `reason` and `hook` the legacy rule.
    """

    REASON = "reason"
    LINKS = "links"
    KPROBE = "kprobe"
    FEXIT = "fexit"
    HOOK = "hook"
    RULE = "rule"


@dataclass(frozen=True, slots=True)
class Place:
    """
    A hook entry that dropped: *engine* is legacy, nft, or hook for any other.

    *chain* is the base chain. *function* is the address of the entry's function.
    """

    engine: str
    family: str | None
    table: str | None
    chain: str | None
    function: int


@dataclass(frozen=True, slots=True)
class DropCount:
    """
    How many packets died one way, since the watch began.

    *netns* is an inode. *rule* counts from 1 in *chain*, *handle* is nft's; a policy has
    neither and *kind* policy. *location* is the freeing address where the drop was not
    netfilter's, and the hook's function where it is no table's. *sampled*: its rule was
    looked for in a sample only, so that *packets* are an estimate where there is a rule.
    Units: *packets*, and *octets* of skb length.
    """

    netns: int
    reason: str
    packets: int
    octets: int
    kind: str = "other"
    hook: str | None = None
    engine: str | None = None
    family: str | None = None
    table: str | None = None
    chain: str | None = None
    rule: int | None = None
    handle: int | None = None
    certain: bool = True
    location: int | None = None
    sampled: bool = False

    @property
    def kind_only(self) -> DropCount:
        """The same kind with no packets in it: what two counts of it have in common."""
        return replace(self, packets=0, octets=0, sampled=False)


def hook_name(number: int, family: int) -> str | None:
    """Return the word for a hook's number in a family (NFPROTO); None if there is none."""
    names = _HOOKS.get(family, _INET_HOOKS)
    return names[number] if number < len(names) else None


def name_place(site: int, family: int, row: np.void, legacy: frozenset[int]) -> Place:
    """
    Return what stands at a place.

    *site* is the freeing site, *family* the hook's NFPROTO, *row* has members function,
    table, chain and family as the kernel's program wrote them; *legacy* are the functions
    that run legacy tables.
    """
    function = int(row["function"])
    if site == _SITE_HOOK:
        if function not in legacy:
            return Place("hook", _FAMILIES.get(family), None, None, function)
        table = row["table"].decode(errors="replace")
        return Place("legacy", _FAMILIES.get(family), table, None, function)
    table, chain = (row[name].decode(errors="replace") for name in ("table", "chain"))
    return Place("nft", _FAMILIES.get(int(row["family"])), table, chain, function)


def name_counts(
    keys: npt.NDArray[np.void],
    counts: npt.NDArray[np.void],
    reasons: Mapping[int, str],
    places: Mapping[tuple[int, int], Place],
    rules: Mapping[tuple[int, int], Sequence[tuple[str, int | None]]],
) -> list[DropCount]:
    """
    Give names to what was counted, in the same order.

    Shape: *keys* `(n,)` of the program's keys, *counts* `(n,)` of packets and bytes.
    *reasons* by number; *places* by (place, tag); *rules* by a legacy table's address
    and the generation of its reading: chain and number of each dropping rule, in the order
    of the program's indexes.
    """
    return [
        _name_count(key, count, reasons, places, rules)
        for key, count in zip(keys, counts, strict=True)
    ]


def merge_counts(rows: Iterable[DropCount]) -> list[DropCount]:
    """Add up rows of the same kind; the result has most packets first."""
    totals: dict[DropCount, tuple[int, int, bool]] = {}
    for row in rows:
        kind = row.kind_only
        packets, octets, sampled = totals.get(kind, (0, 0, False))
        totals[kind] = packets + row.packets, octets + row.octets, sampled or row.sampled
    merged = [
        replace(kind, packets=packets, octets=octets, sampled=sampled)
        for kind, (packets, octets, sampled) in totals.items()
    ]
    return sorted(merged, key=lambda row: row.packets, reverse=True)


def _name_count(
    key: np.void,
    count: np.void,
    reasons: Mapping[int, str],
    places: Mapping[tuple[int, int], Place],
    rules: Mapping[tuple[int, int], Sequence[tuple[str, int | None]]],
) -> DropCount:
    site, number = int(key["site"]), int(key["rule"])
    place = places.get((int(key["place"]), int(key["tag"])))
    chain, rule, handle = place.chain if place else None, None, None
    kind = ("other", "hook", "rule", "policy")[site]
    if place and place.engine == "nft":
        handle = number or None
    elif place and place.engine == "legacy":
        kind = "table"
        known = rules.get((int(key["place"]), number >> 32), ())
        if 0 < number & 0xFFFFFFFF <= len(known):
            chain, rule = known[(number & 0xFFFFFFFF) - 1]
            kind = "policy" if rule is None else "rule"
    family = int(key["family"])
    return DropCount(
        netns=int(key["netns"]),
        reason=reasons.get(int(key["reason"]), str(int(key["reason"]))),
        packets=int(count["packets"]),
        octets=int(count["bytes"]),
        kind=kind,
        hook=hook_name(int(key["hook"]), family) if place else None,
        engine=place.engine if place else None,
        family=place.family if place else None,
        table=place.table if place else None,
        chain=chain,
        rule=rule,
        handle=handle,
        certain=bool(key["certain"]),
        location=_location(key, place),
        sampled=bool(key["looks"]),
    )


def _location(key: np.void, place: Place | None) -> int | None:
    if int(key["site"]) == _SITE_OTHER:
        return int(key["place"])
    return place.function if place and place.engine == "hook" else None
