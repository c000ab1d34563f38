"""
The proof that a rung names drops rightly: known drops, each of which must be told right.

Every shot must be counted once, at the one place that it was aimed at. A site with one
wrong answer is given up: its drops are then counted without a place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import PLACE, PLACE_KEY, Site
from bpf.maps import MapFile
from tracer.sources import bpf_range
from tracer.sources.bpf_kinds import KindTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bpf.loader import Loaded
    from tracer.sources.bpf_deadline import Deadline

__all__ = ["SITES", "Proof", "prove"]

#: What nft makes of a device's ingress for chains of a table inet, and what it is.
_INGRESS, _NETDEV_INGRESS = {(1, 5), (2, 5), (10, 5)}, (5, 0)
#: By a shot's kind, where its packet is freed.
SITES = {"legacy": Site.HOOK, "rule": Site.NFT_RULE, "policy": Site.NFT_POLICY}


@dataclass(frozen=True, slots=True)
class Proof:
    """
    What was told right.

    *aimed* are the sites that shots were aimed at, *right* those of them where every
    answer was. *legacy* are the functions of the legacy tables' entries.
    """

    aimed: frozenset[Site]
    right: frozenset[Site]
    legacy: frozenset[int]


def prove(
    loaded: Loaded,
    shots: Sequence[bpf_range.Shot],
    mark: int,
    deadline: Deadline,
    *,
    knows_handle: bool,
) -> Proof:
    """
    Fire *shots* from the calling thread's namespace and compare what is counted.

    The programs are attached and count. With *knows_handle* nft's rule must be right,
    too. What was counted in the namespace is forgotten afterwards.
    Errors: KernelUnsupportedError where it takes too long.
    """
    for shot in shots:
        deadline.left_s()
        bpf_range.fire(shot, mark)
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    told: dict[Site, list[tuple[object, ...]]] = {}
    legacy = set()
    for key, place in _take(loaded, inode):
        site = Site(int(key["site"]))
        if site is Site.HOOK:
            legacy.add(int(place["function"]))
        named = _told(site, key, place, knows_handle=knows_handle)
        told.setdefault(site, []).append(named)
    aimed: dict[Site, list[tuple[object, ...]]] = {}
    for shot in shots:
        aimed.setdefault(SITES[shot.kind], []).append(_aimed(shot, knows_handle=knows_handle))
    right = (
        site
        for site, places in aimed.items()
        if sorted(places, key=repr) == sorted(told.get(site, []), key=repr)
    )
    return Proof(frozenset(aimed), frozenset(right), frozenset(legacy))


def _take(loaded: Loaded, inode: int) -> Iterable[tuple[np.void, np.void]]:
    """Remove what the namespace's drops were counted as; return each drop's key and place."""
    table: KindTable[None] = KindTable(loaded.maps)
    places = MapFile(loaded.maps["places"], PLACE_KEY.itemsize, PLACE.itemsize)
    kinds = table.read()
    kinds = kinds.only(kinds.keys["netns"] == inode)
    taken, used = [], set()
    for key, times in zip(kinds.keys, kinds.counts["packets"].tolist(), strict=True):
        name = np.array([(key["place"], key["tag"])], PLACE_KEY).tobytes()
        block = places.lookup(name)
        if block is not None:
            used.add(name)
            taken += [(key, np.frombuffer(block, PLACE)[0])] * times
    table.retire(kinds, [None] * len(kinds.numbers))
    # Nobody else is there to be dropped.
    table.collect()
    # The addresses will be others' before long.
    for name in used:
        places.delete(name)
    return taken


def _told(site: Site, key: np.void, place: np.void, *, knows_handle: bool) -> tuple[object, ...]:
    table, chain = place["table"].decode(), place["chain"].decode()
    hook, family, rule = int(key["hook"]), int(key["family"]), int(key["rule"])
    if (family, hook) in _INGRESS:
        family, hook = _NETDEV_INGRESS
    # Beside chains at devices, which the range has, marks are never sure of nft's.
    sure = bool(key["certain"]) if knows_handle else True
    rule = rule if knows_handle else 0
    return family, hook, table, "" if site is Site.HOOK else chain, rule, sure


def _aimed(shot: bpf_range.Shot, *, knows_handle: bool) -> tuple[object, ...]:
    chain = "" if shot.kind == "legacy" else shot.chain
    rule = (shot.handle or 0) if knows_handle else 0
    return shot.family, shot.hook, shot.table, chain, rule, True
