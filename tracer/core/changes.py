"""
What changed a packet on its way, and which step did it.

A trace never says "translated" or "marked": two headers differ, two marks differ. The
difference belongs to the step that made it. A translation shows first in the headers of
the next base chain and is the NAT rule's; where no NAT rule was passed (later packets of
a connection skip the nat chains) it stands in the step where it shows; where no step is
shown at all it is the journey's. A mark is reported
after the rule by nft, before its target by legacy tables.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracer.core.events import LEGACY, NO_PACKET
from tracer.core.journey import Verdict
from tracer.core.packet_text import render_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.core.journey import Change
    from tracer.core.resolve import ResolvedStep

__all__ = ["NO_STEP", "changed_events", "find_changes"]

# The targets and statements that set an IPv4 TTL or an IPv6 hop limit.
_HOPS = re.compile(r" -j (?:TTL|HL) |(?:^| )(?:ip ttl|ip6 hoplimit) set ")
#: The place of what changed in a journey that shows no step.
NO_STEP = -1

_ENDPOINTS = ("dst", "dport", "src", "sport")


def changed_events(
    events: npt.NDArray[np.void], packets: npt.NDArray[np.void], owner: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """
    Tell for each event whether something in the packet changed there.

    Shape: *events* `(n,)` with each journey's together, *owner* `(n,)` their journeys.
    The plain decrement of the TTL by routing counts as no change.
    """
    changed = np.zeros(len(events), np.bool_)
    same = owner[1:] == owner[:-1]
    changed[1:] = same & (events["mark"][1:] != events["mark"][:-1])
    headed = np.flatnonzero(events["packet"] != NO_PACKET)
    if len(headed) > 1:
        rows = packets[events["packet"][headed]]
        before, after = rows[:-1], rows[1:]
        differs = (before["sport"] != after["sport"]) | (before["dport"] != after["dport"])
        differs |= (before["src"] != after["src"]).any(1) | (before["dst"] != after["dst"]).any(1)
        lower = before["ttl"].astype(np.int16) - after["ttl"]
        differs |= (lower != 0) & (lower != 1)
        differs &= owner[headed[1:]] == owner[headed[:-1]]
        changed[headed[1:]] |= differs
    return changed


def find_changes(
    events: npt.NDArray[np.void],
    packets: npt.NDArray[np.void],
    steps: Sequence[ResolvedStep],
    shown: Sequence[int],
) -> dict[int, dict[str, Change]]:
    """
    Return the changes of one journey, by the index into *shown* of the step they belong to.

    Shape: *events* are the journey's, *steps* what each means; *shown* are the indexes of
    those that are shown, ascending; where there are none, all is at `NO_STEP`.
    """
    return _Finder(events, packets, steps, shown).find()


class _Finder:
    def __init__(
        self,
        events: npt.NDArray[np.void],
        packets: npt.NDArray[np.void],
        steps: Sequence[ResolvedStep],
        shown: Sequence[int],
    ) -> None:
        self._events = events
        self._packets = packets
        self._steps = steps
        self._shown = shown
        self._found: dict[int, dict[str, Change]] = {}

    def find(self) -> dict[int, dict[str, Change]]:
        header: int | None = None
        for index, event in enumerate(self._events):
            if index and event["mark"] != self._events[index - 1]["mark"]:
                self._note_mark(index)
            if event["packet"] == NO_PACKET:
                continue
            if header is not None:
                self._note_header(header, index)
            header = index
        return self._found

    def _note_mark(self, index: int) -> None:
        before, after = (int(self._events[i]["mark"]) for i in (index - 1, index))
        step = self._steps[index]
        after_rule = not self._events[index]["flags"] & LEGACY and step.kind == "rule"
        maker = index
        if not (after_rule and index in self._shown):
            # Seen before a legacy target, or where no rule acts: a legacy rule passed before.
            maker = self._latest(0, index, lambda one: one.engine == "legacy")
        self._add(maker, "mark", before, after)

    def _note_header(self, former: int, index: int) -> None:
        before = self._packets[self._events[former]["packet"]]
        after = self._packets[self._events[index]["packet"]]
        family = int(after["family"])
        translator = self._latest(former, index, lambda one: one.is_nat)
        for name in _ENDPOINTS:
            one, two = _value(before, name, family), _value(after, name, family)
            if one != two:
                self._add(translator, name, one, two)
        lower = int(before["ttl"]) - int(after["ttl"])
        if lower not in (0, 1):
            self._add(self._find_hops(former, index), "ttl", int(before["ttl"]), int(after["ttl"]))

    def _find_hops(self, former: int, index: int) -> int:
        """Return the step that set the TTL: nft's headers are those behind its rule."""
        for position in reversed(self._shown):
            late = self._steps[position].engine == "nft"
            if former + late <= position < index + late and _sets_hops(self._steps[position]):
                return position
        return self._latest(former, index, lambda one: one.verdict is Verdict.CONTINUE)

    def _latest(self, start: int, end: int, wanted: Callable[[ResolvedStep], bool]) -> int:
        """Return the last shown step from *start* on that is *wanted*, *end* if there is none."""
        for position in reversed(self._shown):
            if start <= position < end and wanted(self._steps[position]):
                return position
        return end

    def _add(self, at: int, name: str, before: str | int, after: str | int) -> None:
        place = self._place(at)
        known = self._found.setdefault(place, {})
        first = known[name][0] if name in known else before
        known[name] = (first, after)

    def _place(self, at: int) -> int:
        """Return the index into *shown* of the step at or behind *at*, else the last one."""
        for index, position in enumerate(self._shown):
            if position >= at:
                return index
        return len(self._shown) - 1 if self._shown else NO_STEP


def _sets_hops(step: ResolvedStep) -> bool:
    return step.rule is not None and _HOPS.search(step.rule.text) is not None


def _value(packet: np.void, name: str, family: int) -> str | int:
    return render_address(family, packet[name]) if name in ("src", "dst") else int(packet[name])
