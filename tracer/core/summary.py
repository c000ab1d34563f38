"""What a run saw, as a value: how many packets ended where, and what was not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tracer.core.journey import Ending, EndingKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.journey import Journey

__all__ = ["ENDINGS_KEPT", "EndingCount", "Summary", "SummaryBuilder"]

#: Different endings counted one by one: a large ruleset has tens of thousands of rules,
#: and a summary that long would not be read. What ends elsewhere is counted together.
ENDINGS_KEPT: Final = 1000
#: Notes kept; the same note twice is one.
NOTES_KEPT: Final = 100

_WORST_FIRST: Final = {
    kind: rank
    for rank, kind in enumerate(
        (
            EndingKind.DROPPED,
            EndingKind.REJECTED,
            EndingKind.UNKNOWN,
            EndingKind.QUEUED,
            EndingKind.DELIVERED,
            EndingKind.SENT,
        )
    )
}


@dataclass(frozen=True, slots=True)
class EndingCount:
    """How many packets ended in *netns* in the one way that *ending* says."""

    netns: str
    ending: Ending
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """
    One run's counts.

    *packets* is the number of packets seen, *journeys* that of their passes through
    namespaces. *endings* is sorted worst first, then by count; *other_endings* counts the
    packets that ended in places beyond `ENDINGS_KEPT`. *events* and *lost* are trace
    messages read and lost; *incomplete* the journeys that may have a hole, *began_late*
    those that were not seen from their first hook. *over_limit* counts packets that the
    rate limit left untraced (None: not known), *evicted* journeys given up because too many
    were open, *malformed* messages passed over. *reason* says why the run ended: `count
    reached`, `timeout`, `interrupted`, `reader gone` or another word of the caller's.
    """

    packets: int = 0
    journeys: int = 0
    endings: Sequence[EndingCount] = ()
    other_endings: int = 0
    events: int = 0
    lost: int = 0
    incomplete: int = 0
    began_late: int = 0
    over_limit: int | None = 0
    evicted: int = 0
    malformed: int = 0
    reason: str | None = None
    notes: Sequence[str] = ()


class SummaryBuilder:
    """Counts journeys; the memory it takes is bounded by `ENDINGS_KEPT`."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._counts: dict[tuple[str, Ending], int] = {}
        self._other = 0
        self._packets = 0
        self._journeys = 0
        self._incomplete = 0
        self._began_late = 0
        self._notes: dict[str, None] = {}

    def add(self, journey: Journey, packets: int = 1) -> None:
        """
        Count *packets* packets that ended as *journey* did.

        The journeys of a packet before its last namespace are added with *packets* 0: they
        are journeys, and may be incomplete, but the packet did not end there.
        """
        times = max(packets, 1)
        self._journeys += times
        self._packets += packets
        self._incomplete += 0 if journey.complete else times
        self._began_late += 0 if journey.whole else times
        if packets:
            self.add_ending(journey.netns, journey.ending, packets)

    def add_many(self, netns: str, ending: Ending, packets: int, *, passing: bool = False) -> None:
        """
        Count *packets* journeys at once, for those who keep none as objects.

        With *passing* the packets did not end there, as before their last namespace.
        """
        self._journeys += packets
        if not passing:
            self._packets += packets
            self.add_ending(netns, ending, packets)

    def add_flaws(self, *, incomplete: int, began_late: int) -> None:
        """Count the flaws of journeys that `add_many` counted."""
        self._incomplete += incomplete
        self._began_late += began_late

    def add_ending(self, netns: str, ending: Ending, packets: int) -> None:
        """Count *packets* endings alone."""
        key = (netns, ending)
        if key in self._counts or len(self._counts) < ENDINGS_KEPT:
            self._counts[key] = self._counts.get(key, 0) + packets
        else:
            self._other += packets

    def note(self, text: str) -> None:
        """Keep a sentence for the summary, once."""
        if len(self._notes) < NOTES_KEPT:
            self._notes[text] = None

    def build(  # noqa: PLR0913 - one count each, by name, that only the caller has
        self,
        *,
        events: int = 0,
        lost: int = 0,
        over_limit: int | None = 0,
        evicted: int = 0,
        malformed: int = 0,
        reason: str | None = None,
    ) -> Summary:
        """Return the counts so far, with what only the caller knows."""
        endings = self._merged()
        endings.sort(key=lambda counted: (_WORST_FIRST[counted.ending.kind], -counted.count))
        return Summary(
            packets=self._packets,
            journeys=self._journeys,
            endings=tuple(endings),
            other_endings=self._other,
            events=events,
            lost=lost,
            incomplete=self._incomplete,
            began_late=self._began_late,
            over_limit=over_limit,
            evicted=evicted,
            malformed=malformed,
            reason=reason,
            notes=tuple(self._notes),
        )

    def _merged(self) -> list[EndingCount]:
        """
        Count by place what ended in one, under the first reason that is known of it.

        The kernel's word is missing of packets that came before eBPF was loaded.
        """
        merged: dict[tuple[str, Ending], EndingCount] = {}
        for (netns, ending), count in self._counts.items():
            place = replace(ending, reason=None) if ending.table is not None else ending
            known = merged.get((netns, place), EndingCount(netns, ending, 0))
            told = known.ending if known.ending.reason is not None else ending
            merged[netns, place] = EndingCount(netns, told, known.count + count)
        return list(merged.values())
