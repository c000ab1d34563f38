"""
Where followed packets begin and end, told by the kernel with its own time stamps.

Raw tracepoints see every packet of the machine while this is open; which of them are
told is decided in the kernel. Delivery is seen by a program at the end of each
namespace's input hook, which Linux 6.4 and newer allow, else by probes on what follows.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bpf.layout import EVENT_RECORD, MATCHES, STATS, Stat
from bpf.loader import ObjectSpec, ProgramSpec, load
from bpf.maps import MapFile, possible_cpus
from bpf.ring import RingReader
from bpf.syscalls import (
    ATTACH_NETFILTER,
    PROG_TYPE_NETFILTER,
    PROG_TYPE_RAW_TRACEPOINT,
    attach_netfilter,
    attach_raw_tracepoint,
    close_all,
    knows_program_type,
)
from tracer.core.drop_events import decode_skb_events
from tracer.core.drop_flows import fill_matches
from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources.bpf_delivery import PROGRAMS, Trial, attach_delivery
from tracer.sources.netns import Netns, entered

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from bpf.loader import Loaded
    from tracer.core.filters import Filter

__all__ = ["SkbEvents", "SkbLoss"]

#: 32 MB of address space, 16 of memory: 140,000 events before one is lost.
_RING_PAGES = 4096
#: Behind conntrack's confirmation, which is INT_MAX too late for a link to be allowed at.
_LAST_PRIORITY = (1 << 31) - 2
_LOCAL_IN = 1
_FAMILIES = (2, 10)  # NFPROTO_IPV4, NFPROTO_IPV6
_TRACEPOINTS = {
    "on_drop": "kfree_skb",
    "on_receive": "netif_receive_skb",
    "on_send": "net_dev_start_xmit",
}
_ON_TRACEPOINTS = tuple(ProgramSpec(name, PROG_TYPE_RAW_TRACEPOINT) for name in _TRACEPOINTS)
_SPEC = ObjectSpec(
    source="events.bpf.c",
    programs=(
        *_ON_TRACEPOINTS,
        ProgramSpec("on_deliver", PROG_TYPE_NETFILTER, ATTACH_NETFILTER, optional=True),
    ),
    maps=("matches", "namespaces", "stats", "events"),
    types=("sk_buff", "net", "net_device", "sock", "dst_entry", "nf_hook_state", "pt_regs"),
    enums=("skb_drop_reason",),
    defines={"NT_RING_PAGES": _RING_PAGES},
)

#: Where netfilter takes no links. Compiling it takes as long as all the rest.
_PROBING_SPEC = replace(
    _SPEC, source="events.bpf.c+deliver.bpf.c", programs=(*_ON_TRACEPOINTS, *PROGRAMS)
)


class SkbLoss(NamedTuple):
    """Events told, and events lost for want of room or of sense, since open()."""

    told: int
    lost: int


class SkbEvents:
    """
    The ends and time stamps of followed packets.

    `open()`, then `arm()` with filters, then `read()` again and again. *reasons* maps the
    kernel's drop reasons to their names after `open()`, and *unseen* says why local
    delivery is not told, in words; it is empty where it is.
    """

    def __init__(self, namespaces: Sequence[Netns]) -> None:
        """Take the *namespaces* whose events are wanted; nothing is opened yet."""
        self.namespaces = tuple(namespaces)
        self.reasons: dict[int, str] = {}
        self.unseen = ""
        self._descriptors: list[int] = []
        self._ring: RingReader | None = None
        self._maps: dict[str, int] = {}

    def open(self) -> None:
        """
        Compile, load and attach; nothing is told before arm().

        Errors: KernelUnsupportedError, KernelRefusedError; nothing is left open then.
        """
        try:
            self._open_programs()
        except BaseException:
            self.close()
            raise

    def _open_programs(self) -> None:
        room = {"NT_NAMESPACES_MAX": len(self.namespaces) + 1}  # and a trial's
        spec = _SPEC if knows_program_type(PROG_TYPE_NETFILTER, ATTACH_NETFILTER) else _PROBING_SPEC
        loaded = load(replace(spec, defines={**spec.defines, **room}))
        self._maps = loaded.maps
        self._descriptors += [*loaded.maps.values(), *loaded.programs.values()]
        names = loaded.enums.get("skb_drop_reason", {})
        self.reasons = {n: name.removeprefix("SKB_DROP_REASON_") for name, n in names.items()}
        size = _RING_PAGES * os.sysconf("SC_PAGE_SIZE")
        self._ring = RingReader(self._maps["events"], size, EVENT_RECORD)
        told = MapFile(self._maps["namespaces"], 4, 1)
        for namespace in self.namespaces:
            told.update(namespace.inode.to_bytes(4, sys.byteorder), b"\1")
        for program, tracepoint in _TRACEPOINTS.items():
            self._descriptors.append(attach_raw_tracepoint(tracepoint, loaded.programs[program]))
        self._watch_delivery(loaded, told)

    def _watch_delivery(self, loaded: Loaded, told: MapFile) -> None:
        """Link or attach what sees it; else everything but that is seen all the same."""
        self.unseen = loaded.refused.get("on_deliver", "")
        try:
            if "on_deliver" in loaded.programs:
                self._link(loaded.programs["on_deliver"])
            elif not self.unseen:
                self._descriptors += attach_delivery(loaded, self._trial(told))
        except KernelUnsupportedError as exc:
            self.unseen = exc.message

    def _trial(self, told: MapFile) -> Trial:
        return Trial(
            tell=lambda inode: told.update(inode.to_bytes(4, sys.byteorder), b"\1"),
            forget=lambda inode: told.delete(inode.to_bytes(4, sys.byteorder)),
            arm=self.arm,
            read=self.read,
        )

    def _link(self, program: int) -> None:
        for namespace in self.namespaces:
            # KernelRefusedError: it is gone by now, and nothing is delivered there.
            with contextlib.suppress(KernelRefusedError), entered(namespace):
                for family in _FAMILIES:
                    link = attach_netfilter(program, family, _LOCAL_IN, _LAST_PRIORITY)
                    self._descriptors.append(link)

    def arm(self, filters: Iterable[Filter]) -> None:
        """
        Tell from now on of the packets that one of *filters* names, before or after NAT.

        Errors: UsageError for more than sixteen filters.
        """
        block = np.zeros(1, MATCHES)
        block["count"] = fill_matches(filters, block[0]["match"])
        MapFile(self._maps["matches"], 4, MATCHES.itemsize).update(bytes(4), block.tobytes())

    def read(self) -> npt.NDArray[np.void]:
        """Return the namespaces' events that are ready, `SKB_EVENT (n,)`, in the order told."""
        if self._ring is None:
            msg = "SkbEvents is not open"
            raise ValueError(msg)
        return decode_skb_events(self._ring.read(), time.time_ns() - time.monotonic_ns())

    def loss(self) -> SkbLoss:
        """Return how many events were told and lost so far."""
        cpus = possible_cpus()
        raw = MapFile(self._maps["stats"], 4, STATS.itemsize, cpus).lookup(bytes(4)) or b""
        counts = np.frombuffer(raw, STATS)["count"].sum(axis=0)
        odd = self._ring.totals.odd if self._ring is not None else 0
        return SkbLoss(int(counts[Stat.RECORDED]), int(counts[Stat.RESERVE_FAILED]) + odd)

    def close(self) -> None:
        """Detach and unload everything; harmless when repeated."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        close_all(self._descriptors)
        self._maps = {}
