"""
Find where this kernel keeps its registers at a drop, by drops of our own.

A thread goes into a namespace of its own, drops one packet at each of some forty known
places and copies the stacks; `tracer.core.drop_layout` solves them. The address that
frees the packet, at each site, is found on the way: every rung needs it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, TypeVar

from bpf.layout import LAYOUTS_MAX, STACK, Site
from bpf.maps import MapFile
from bpf.ring import RingReader
from bpf.syscalls import attach_raw_tracepoint, close_all
from tracer.core.drop_layout import Drop, Layout, solve
from tracer.errors import NftraceError
from tracer.sources import bpf_range
from tracer.sources.bpf_config import Calibration
from tracer.sources.bpf_prove import SITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from bpf.loader import Loaded
    from tracer.sources.bpf_deadline import Deadline

__all__ = ["STACK_RING_BYTES", "aside", "calibrate", "call_modules"]

T = TypeVar("T")

#: Room for five hundred stacks; forty are made.
STACK_RING_BYTES = 1 << 20


def calibrate(
    loaded: Loaded, shots: Sequence[bpf_range.Shot], mark: int, deadline: Deadline
) -> Calibration:
    """
    Make known drops with the programs of *loaded* and solve their stacks.

    *shots* are those of the calling thread's namespace, *mark* is on no other packets.
    Errors: what attaching raises; KernelUnsupportedError where it takes too long.
    """
    MapFile(loaded.maps["sampled_mark"], 4, 4).update(bytes(4), mark.to_bytes(4, "little"))
    links = [
        attach_raw_tracepoint("kfree_skb", loaded.programs["on_kfree_skb_sample"]),
        # In the place of the one that counts: two programs, the same frames.
        attach_raw_tracepoint("kfree_skb", loaded.programs["on_kfree_skb_count"]),
    ]
    ring = RingReader(loaded.maps["stacks"], STACK_RING_BYTES, STACK)
    with ExitStack() as stack:
        stack.callback(close_all, links)
        stack.enter_context(closing(ring))
        drops: defaultdict[Site, list[Drop]] = defaultdict(list)
        for shot in shots:
            deadline.left_s()
            bpf_range.fire(shot, mark)
            # One packet at a time, so that each stack is that packet's.
            stacks = [one for one in ring.read() if _port(one) == shot.port]
            if len(stacks) == 1:
                drops[SITES[shot.kind]].append(_drop(shot, stacks[0]))
    return _solve(drops)


def call_modules(deadline: Deadline) -> None:
    """
    Make the kernel load nf_tables and the legacy tables, by rules in a namespace that ends.

    The machine's own namespace gets no table by it. What it has no module for stays away.
    """
    with contextlib.suppress(NftraceError):
        aside(lambda: bpf_range.build(deadline))


def aside(work: Callable[[], T]) -> T:
    """
    Return what *work* does in a thread of its own, which may change its namespace.

    Errors: the NftraceError or OSError that *work* raised.
    """
    outcome: list[T] = []
    failures: list[NftraceError | OSError] = []

    def run() -> None:
        try:
            outcome.append(work())
        except (NftraceError, OSError) as exc:
            failures.append(exc)

    thread = threading.Thread(target=run, name="calibrate")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return outcome[0]


def _port(stack: np.void) -> int:
    return int.from_bytes(int(stack["dport"]).to_bytes(2, "little"), "big")


def _drop(shot: bpf_range.Shot, stack: np.void) -> Drop:
    return Drop(
        way=shot.way,
        index=shot.index,
        count=shot.count,
        hook=shot.hook,
        family=shot.family,
        handle=shot.handle,
        location=int(stack["location"]),
        words=stack["word"],
        targets=stack["target"],
    )


def _solve(drops: dict[Site, list[Drop]]) -> Calibration:
    found = Calibration()
    for site in SITES.values():
        made = drops.get(site, [])
        places = {drop.location for drop in made}
        if len(places) != 1:
            found.why[site] = _explain(places)
            continue
        location = places.pop()
        if location in found.locations.values():
            # Before NF_DROP_REASON, nft's drops too were freed by nf_hook_slow().
            found.why[site] = "nft's drops are freed where all others are"
            continue
        found.locations[site] = location
        layouts = _distinct(solve(made, in_hook_slow=site is Site.HOOK).values())
        if layouts:
            found.layouts[site] = layouts[:LAYOUTS_MAX]
        else:
            found.why[site] = "the saved registers are not where they were looked for"
    return found


def _explain(places: set[int]) -> str:
    if not places:
        return "no such drop could be made"
    return f"such drops were freed at {len(places)} places"


def _distinct(layouts: Iterable[Layout]) -> list[Layout]:
    return list(dict.fromkeys(layouts))
