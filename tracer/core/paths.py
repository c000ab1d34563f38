"""
Journeys told as paths: the steps with their rules' names, the changes, the ending.

Millions of packets go a few hundred ways. A journey's way is keyed by its step numbers and
what changed on it, and told once; every later packet of that way is one look-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracer.core.changes import NO_STEP, changed_events, find_changes
from tracer.core.events import NO_PACKET
from tracer.core.journey import Ending, EndingKind, Step, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracer.core.assemble import Journeys
    from tracer.core.journey import Change
    from tracer.core.resolve import ResolvedStep
    from tracer.core.step_book import StepBook

__all__ = ["MAX_PATHS", "Path", "PathBook"]

#: Paths remembered. A path with its JSON takes some 5 KB; when connections are masqueraded
#: each has its own, so the memory is emptied and begins anew instead of growing.
MAX_PATHS = 16_384

#: What a journey's end is called when eBPF did not see what became of it.
NOT_OBSERVED = "not observed"

_LOOPBACK = 1  # LOOPBACK_IFINDEX, include/net/net_namespace.h
_GOES_ON = (EndingKind.SENT, EndingKind.UNKNOWN)
_ENDINGS = {Verdict.DROP: EndingKind.DROPPED, Verdict.REJECT: EndingKind.REJECTED}


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """
    One way through a namespace.

    *iif* and *oif* are interface indexes, 0 for none. *clock* says whose times its
    journeys have, as `Journey.clock`, and *changes* is `Journey.changes`.
    Two packets of one way have the same `Path` object, within one version of the ruleset
    and until the book is emptied.
    """

    steps: tuple[Step, ...]
    ending: Ending
    iif: int
    oif: int
    clock: str = "received"
    changes: Mapping[str, Change] = field(default_factory=dict)

    @property
    def comes_again(self) -> bool:
        """Whether the packet goes on in this namespace: what leaves by lo comes in again."""
        return self.oif == _LOOPBACK and self.ending.kind in _GOES_ON


class PathBook:
    """
    The paths of one namespace under one version of the ruleset.

    *has_listener* tells whether somebody listens to a queue now.
    """

    def __init__(self, book: StepBook, has_listener: Callable[[int], bool]) -> None:
        self._book = book
        self._has_listener = has_listener
        self._paths: dict[tuple[object, ...], Path] = {}

    def read(self, journeys: Journeys) -> list[Path]:
        """Return each journey's path, in order."""
        count = len(journeys)
        if not count:
            return []
        events, bounds = journeys.events, journeys.bounds
        owner = np.repeat(np.arange(count), np.diff(bounds))
        shown = self._book.is_shown[events["step"]]
        visible = events["step"][shown].tobytes()
        edges = np.append(0, np.cumsum(shown))[bounds] * 4
        changed = changed_events(events, journeys.packets, owner)
        is_changed = np.zeros(count, np.bool_)
        is_changed[owner[changed]] = True
        below = self._book.is_below[events["step"]]
        iif, oif = _devices(events, owner, below, bounds)
        last = events["step"][bounds[1:] - 1]
        volatile = is_changed | self._book.is_queue[last]
        columns = (edges[:-1].tolist(), edges[1:].tolist(), iif, oif, last.tolist())
        rows = zip(*columns, volatile.tolist(), strict=True)
        paths = []
        known = self._paths
        for index, (start, end, into, out, final, special) in enumerate(rows):
            # The last step also where it is not shown: it says how far the packet came.
            key = (visible[start:end], final, into, out)
            path = None if special else known.get(key)
            if path is None:
                path = self._tell(journeys, index, key)
                if not special:
                    known[key] = path
            paths.append(path)
        return paths

    def _tell(self, journeys: Journeys, index: int, key: tuple[bytes, int, int, int]) -> Path:
        rows = slice(journeys.bounds[index], journeys.bounds[index + 1])
        events = journeys.events[rows]
        steps = [self._book.resolve(int(step)) for step in events["step"]]
        shown = np.flatnonzero(self._book.is_shown[events["step"]]).tolist()
        changes = find_changes(events, journeys.packets, steps, shown)
        told = _tell_steps(steps, shown, changes)
        ending = self._end(steps, shown, told)
        full = (*key, _frozen(changes), ending.kind)
        path = self._paths.get(full)
        if path is None:
            path = Path(told, ending, *key[2:], changes=changes.get(NO_STEP, {}))
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[full] = path
        return path

    def _end(self, steps: list[ResolvedStep], shown: list[int], told: tuple[Step, ...]) -> Ending:
        if not shown:
            return Ending(EndingKind.UNKNOWN, hook=_last_hook(steps), reason=NOT_OBSERVED)
        step, resolved = told[-1], steps[shown[-1]]
        kind = _ENDINGS.get(step.verdict)
        reason = None
        if step.verdict is Verdict.QUEUE and shown[-1] == len(steps) - 1:
            kind = EndingKind.QUEUED
            if not resolved.queue_bypass and not self._has_listener(resolved.queue or 0):
                kind, reason = EndingKind.DROPPED, "QUEUE_NO_LISTENER"
        if kind is None:
            reason = "stolen" if step.verdict is Verdict.STOLEN else NOT_OBSERVED
            return Ending(EndingKind.UNKNOWN, hook=_last_hook(steps) or step.hook, reason=reason)
        return Ending(
            kind,
            hook=step.hook,
            engine=step.engine,
            family=step.family,
            table=step.table,
            chain=step.chain,
            rule=step.rule,
            handle=step.handle,
            text=step.text,
            reason=reason,
        )


def _tell_steps(
    steps: list[ResolvedStep], shown: list[int], changes: Mapping[int, Mapping[str, Change]]
) -> tuple[Step, ...]:
    told = []
    hook: str | None = None
    places = {position: index for index, position in enumerate(shown)}
    for position, step in enumerate(steps):
        hook = step.hook if step.hook is not None else hook
        if position in places:
            told.append(_step(step, hook, changes.get(places[position], {})))
    return tuple(told)


def _step(step: ResolvedStep, hook: str | None, changes: Mapping[str, Change]) -> Step:
    return Step(
        hook=hook,
        engine=step.engine,
        family=step.family,
        table=step.table,
        chain=step.chain,
        kind=step.kind,
        rule=step.number,
        handle=step.handle,
        text=None if step.rule is None else step.rule.text,
        form=step.form,
        verdict=step.verdict,
        target=step.target,
        changes=changes,
    )


def _last_hook(steps: list[ResolvedStep]) -> str | None:
    return next((step.hook for step in reversed(steps) if step.hook is not None), None)


def _frozen(changes: Mapping[int, Mapping[str, Change]]) -> tuple[object, ...]:
    return tuple((at, tuple(found.items())) for at, found in sorted(changes.items()))


def _devices(
    events: npt.NDArray[np.void],
    owner: npt.NDArray[np.int64],
    below: npt.NDArray[np.bool_],
    bounds: npt.NDArray[np.int64],
) -> tuple[list[int], list[int]]:
    """
    Return each journey's input device and output device, 0 for none.

    In is the device that ip's rules see, as a filter names it: the bridge, not its port. Out
    is the last one that the packet was given to. *below*: events of bridge and netdev.
    """
    iif, oif = np.zeros((2, len(bounds) - 1), np.uint32)
    carried = events["packet"] != NO_PACKET
    into = np.flatnonzero(carried & (events["iif"] != 0))[::-1]
    out = np.flatnonzero(carried & (events["oif"] != 0))
    # Of several the last assignment stays.
    for rows in (into[below[into]], into[~below[into]]):
        iif[owner[rows]] = events["iif"][rows]
    for rows in (out[~below[out]], out[below[out]]):
        oif[owner[rows]] = events["oif"][rows]
    return iif.tolist(), oif.tolist()
