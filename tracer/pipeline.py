"""
From the sources' journeys to the sinks: choosing, naming, joining.

`choose` leaves the journeys that the filter means; a sink gets them as columns and paths,
and makes values only of what it prints. `Joiner` puts one packet's journeys through
several namespaces together.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tracer.core.events import NO_PACKET
from tracer.core.journey import EndingKind, Journey
from tracer.core.packet_text import packet_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracer.core.assemble import Journeys
    from tracer.core.filters import Filter
    from tracer.core.paths import Path

__all__ = ["Chosen", "Joiner", "Progress", "choose", "make_journey"]

#: The same packet reaches the next namespace of this host within this, or is another. It is
#: there in microseconds; to be read and told may take a slow machine longer for one than
#: for the other.
JOIN_NS = 1_000_000_000
#: Behind a packet's end nothing comes; what was before it may still be on its way to us: it
#: is told after QUIET_NS of tracer.core.assemble, and WAIT_NS of tracer.settle.
ENDED_NS = 300_000_000

_LOOPBACK = "lo"
_ENDED = frozenset((EndingKind.DROPPED, EndingKind.REJECTED, EndingKind.DELIVERED))

#: Packets that wait for their next namespace; the oldest is told when there are more.
MAX_JOINING = 50_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """
    Journeys that the filter means, row by row.

    *packets* is `PACKET (m,)`, the headers as first seen; *paths* has m entries and the
    columns m rows, as in `tracer.core.assemble.Journeys`. *lasted_us* is microseconds to
    the end, -1 where not observed; None where no end was looked for.
    """

    packets: npt.NDArray[np.void]
    paths: list[Path]
    started_ns: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]
    complete: npt.NDArray[np.bool_]
    whole: npt.NDArray[np.bool_]
    lasted_us: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def head(self, count: int) -> Chosen:
        """Return the first *count* rows."""
        rows = slice(count)
        return Chosen(
            self.packets[rows],
            self.paths[rows],
            self.started_ns[rows],
            self.lost[rows],
            self.complete[rows],
            self.whole[rows],
            None if self.lasted_us is None else self.lasted_us[rows],
        )

    def first_packets(self, count: int) -> Chosen:
        """Return the rows up to the one with which the *count*-th packet ends."""
        if count <= 0:
            return self.head(0)
        ended = np.cumsum([not path.comes_again for path in self.paths])
        return self.head(int(np.searchsorted(ended, count)) + 1)


def choose(
    journeys: Journeys,
    paths: list[Path],
    wanted: Filter,
    *,
    both: bool,
    device: Callable[[int], str | None],
) -> Chosen:
    """
    Return the journeys that *wanted* means: by any of their headers, and by their path.

    Journeys that are no more than our own mark are left out.
    """
    events, starts = journeys.events, journeys.bounds[:-1]
    met = wanted.match_packets(journeys.packets)
    if both:
        met |= wanted.reversed.match_packets(journeys.packets)
    headed = events["packet"] != NO_PACKET
    hit = np.zeros(len(events), np.bool_)
    hit[headed] = met[events["packet"][headed]]
    keep = np.logical_or.reduceat(hit, starts)
    index = np.arange(len(events))
    first = np.minimum.reduceat(np.where(headed, index, len(events)), starts)
    keep &= first < len(events)
    if wanted.chooses_steps or wanted.in_device or wanted.out_device:
        keep &= np.fromiter((_means(wanted, path, device) for path in paths), np.bool_, len(paths))
    keep &= np.fromiter(
        (bool(p.steps) or w for p, w in zip(paths, journeys.whole.tolist(), strict=True)),
        np.bool_,
        len(paths),
    )
    rows = np.flatnonzero(keep)
    return Chosen(
        journeys.packets[events["packet"][first[rows]]],
        list(compress(paths, keep.tolist())),
        journeys.started_ns[rows],
        journeys.lost[rows],
        journeys.complete[rows],
        journeys.whole[rows],
    )


def _means(wanted: Filter, path: Path, device: Callable[[int], str | None]) -> bool:
    if wanted.in_device is not None and device(path.iif) != wanted.in_device:
        return False
    if wanted.out_device is not None and device(path.oif) != wanted.out_device:
        return False
    return wanted.match_steps(path.steps)


def make_journey(  # noqa: PLR0913 - what only the caller knows of a row
    chosen: Chosen,
    row: int,
    *,
    journey_id: str,
    host: str,
    netns: str,
    device: Callable[[int], str | None],
) -> Journey:
    """Return one row as a value."""
    packet, path = chosen.packets[row], chosen.paths[row]
    lasted = -1 if chosen.lasted_us is None else int(chosen.lasted_us[row])
    return Journey(
        id=journey_id,
        fingerprint=f"{int(packet['fingerprint']):016x}",
        host=host,
        netns=netns,
        start_ns=int(chosen.started_ns[row]),
        packet=packet_value(packet),
        in_device=device(path.iif),
        out_device=device(path.oif),
        steps=path.steps,
        ending=path.ending,
        complete=bool(chosen.complete[row]),
        lost=int(chosen.lost[row]),
        whole=bool(chosen.whole[row]),
        clock=path.clock,
        duration_us=None if lasted < 0 else lasted,
        changes=path.changes,
    )


class Progress(NamedTuple):
    """
    How far a follow has come, in nanoseconds of a clock that nobody sets.

    *now_ns* is when its last reading began; what was received before *told_ns*, which is
    never later, has been told.
    """

    now_ns: int
    told_ns: int


class Joiner:
    """
    One packet's journeys, collected by fingerprint until it has been quiet for a while.

    At most `MAX_JOINING` packets wait; they leave in the order in which they were first
    seen. Within a packet, journeys are in the order of its way: routing lowers the TTL.
    """

    def __init__(self, *, hold: bool) -> None:
        """Join; with *hold* False (one namespace) only packets to lo wait for coming in again."""
        self._hold = hold
        self._open: OrderedDict[str, list[Journey]] = OrderedDict()
        self._seen_ns: dict[str, int] = {}
        self._fresh: set[str] = set()

    def add(self, journey: Journey) -> Iterator[list[Journey]]:
        """Take a journey in and return the packets that are over because of it."""
        known = self._open.get(journey.fingerprint)
        if known is None and not self._hold and journey.out_device != _LOOPBACK:
            yield [journey]
            return
        if known is not None and not _goes_on(known, journey):
            # The same namespace again is another packet that looks alike.
            yield self._let_go(journey.fingerprint)
            known = None
        self._open[journey.fingerprint] = [*(known or ()), journey]
        self._fresh.add(journey.fingerprint)
        if len(self._open) > MAX_JOINING:
            yield self._let_go(next(iter(self._open)))

    def take(self, progress: Progress | None = None) -> Iterator[list[Journey]]:
        """
        Return the packets that were quiet long enough by now; all if *progress* is None.

        What was added since the last call came now. Silence is what was told, not what
        time has passed: while something waits to be told, it may be of any packet.
        """
        if progress is not None:
            self._seen_ns.update(dict.fromkeys(self._fresh, progress.now_ns))
            self._fresh.clear()
        while self._open:
            fingerprint, journeys = next(iter(self._open.items()))
            if progress is not None:
                quiet_ns = progress.told_ns - self._seen_ns[fingerprint]
                if quiet_ns < _patience(journeys):
                    return
            yield self._let_go(fingerprint)

    def _let_go(self, fingerprint: str) -> list[Journey]:
        self._seen_ns.pop(fingerprint, None)
        self._fresh.discard(fingerprint)
        return _in_order(self._open.pop(fingerprint))


def _patience(journeys: list[Journey]) -> int:
    """Return for how many nanoseconds more journeys of the packet are waited for."""
    is_over = any(one.ending.kind in _ENDED for one in journeys)
    return ENDED_NS if is_over else JOIN_NS


def _goes_on(journeys: list[Journey], journey: Journey) -> bool:
    """Tell whether the packet of *journeys* can be the one that *journey* is about."""
    here = [one for one in journeys if one.netns == journey.netns]
    if not here:
        return True
    return len(here) == 1 and (here[0].out_device, journey.in_device) == (_LOOPBACK, _LOOPBACK)


def _in_order(journeys: list[Journey]) -> list[Journey]:
    return sorted(journeys, key=lambda one: (-(one.packet.ttl or 0), one.start_ns))
