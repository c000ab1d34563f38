"""
The proof that what calibration found names drops rightly: the same drops once more.

Every shot must be counted once, at the one place that it was aimed at. A site with one
wrong answer is given up: its drops are then counted without a place.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import CONFIG, DROP_COUNT, DROP_KEY, PLACE, PLACE_KEY, Mode, Site
from bpf.syscalls import MapFile, attach_raw_tracepoint, close_all, possible_cpus
from tracer.sources import bpf_range
from tracer.sources.bpf_config import Calibration, fill_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bpf.loader import Loaded

__all__ = ["prove"]

#: Nothing else drops in the namespace, and the machine's own kinds are few at a start.
_KEYS_MAX = 16384
_SITES = {"legacy": Site.HOOK, "rule": Site.NFT_RULE, "policy": Site.NFT_POLICY}


def prove(loaded: Loaded, found: Calibration, shots: Sequence[bpf_range.Shot], mark: int) -> None:
    """
    Fire *shots* again from the calling thread's namespace and compare.

    Sites that failed lose their layouts in *found*, with the reason in `why`; the functions
    that ran legacy tables are added to it. What was counted meanwhile is forgotten.
    """
    config = np.zeros(1, CONFIG)
    fill_config(config, found)
    config["mode"] = Mode.COUNT
    settings = MapFile(loaded.maps["config"], 4, CONFIG.itemsize)
    settings.update(bytes(4), config.tobytes())
    links = [
        attach_raw_tracepoint("kfree_skb", loaded.programs[name])
        for name in ("on_kfree_skb_locate", "on_kfree_skb_count")
    ]
    with ExitStack() as stack:
        stack.callback(settings.update, bytes(4), bytes(CONFIG.itemsize))
        stack.callback(close_all, links)
        for shot in shots:
            bpf_range.fire(shot, mark)
    _judge(loaded, found, shots)


def _judge(loaded: Loaded, found: Calibration, shots: Iterable[bpf_range.Shot]) -> None:
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    counts = MapFile(loaded.maps["counts"], DROP_KEY.itemsize, DROP_COUNT.itemsize, possible_cpus())
    places = MapFile(loaded.maps["places"], PLACE_KEY.itemsize, PLACE.itemsize)
    raw_keys, raw = counts.dump(_KEYS_MAX)
    keys, packets = raw_keys.view(DROP_KEY)[:, 0], raw.view(DROP_COUNT)[..., 0]["packets"]
    told: dict[Site, list[tuple[object, ...]]] = {}
    legacy = set()
    for key, each in zip(keys, packets, strict=True):
        counts.delete(key.tobytes())
        name = np.array([(key["place"], key["tag"])], PLACE_KEY).tobytes()
        block = places.lookup(name)
        if int(key["netns"]) != inode or block is None:
            continue
        place = np.frombuffer(block, PLACE)[0]
        site = Site(int(key["site"]))
        if site is Site.HOOK:
            legacy.add(int(place["function"]))
        named = _told(site, key, place)
        told.setdefault(site, []).extend([named] * int(each.sum()))
    for site in list(found.layouts):
        aimed = [_aimed(shot) for shot in shots if _SITES[shot.kind] is site]
        if sorted(aimed, key=repr) != sorted(told.get(site, []), key=repr):
            del found.layouts[site]
            found.why[site] = "known drops were not named right"
    if Site.HOOK in found.layouts:
        found.legacy = frozenset(legacy)


def _told(site: Site, key: np.void, place: np.void) -> tuple[object, ...]:
    table, chain = place["table"].decode(), place["chain"].decode()
    hook, family, rule = int(key["hook"]), int(key["family"]), int(key["rule"])
    return family, hook, table, "" if site is Site.HOOK else chain, rule


def _aimed(shot: bpf_range.Shot) -> tuple[object, ...]:
    chain = "" if shot.kind == "legacy" else shot.chain
    return shot.family, shot.hook, shot.table, chain, shot.handle or 0
