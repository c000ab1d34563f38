"""
Between choosing and showing: journeys wait a moment for what became of their packets.

Rows wait in batches, each namespace's in their order, until all of a batch have their
answer or may not wait any longer. What is not observed by then is told as that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from tracer.core.drop_events import SkbEventKind
from tracer.core.ends import ANSWER, ASKED, EndBook
from tracer.core.journey import Ending, EndingKind
from tracer.core.paths import MAX_PATHS, NOT_OBSERVED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    from tracer.core.paths import Path
    from tracer.pipeline import Chosen

__all__ = ["MAX_RATE", "WAIT_NS", "EndSource", "Settler"]

#: A journey that was read this long ago waits no longer for its end.
WAIT_NS = 80_000_000

#: Asking takes 0.4 us for each event that is held, and may have a fifth of the time.
_LOOK_NS_EACH = 2_000

#: Journeys a second, and four times as many events, up to which ends are looked for: beyond, one
#: core is needed for the traces themselves (200,000 events a second are read and joined in
#: 0.3 s). Watching begins again when half of it was not reached for a second.
MAX_RATE = 50_000
_EVENTS_EACH = 4
_WINDOW_NS = 250_000_000
_PAUSE_NS = 1_000_000_000

#: Journeys that may wait; of more the oldest batches are told at once.
MAX_HELD = 20_000

Trace = TypeVar("Trace")


class EndSource(Protocol):
    """Where the events come from."""

    @property
    def reasons(self) -> Mapping[int, str]:
        """The kernel's drop reasons by number."""

    def read(self) -> npt.NDArray[np.void]:
        """Return the events that are ready, `SKB_EVENT (n,)`."""

    def narrow(self) -> bool:
        """Give up for good what mostly tells of other packets; False where nothing does."""

    def pause(self) -> None:
        """Let the kernel tell nothing for now."""

    def resume(self) -> None:
        """Let it tell again."""


class _Place(NamedTuple):
    """Where a batch comes from: the namespace's inode, and the names of its devices."""

    inode: int
    device: Callable[[int], str | None]


@dataclass(slots=True)
class _Held(Generic[Trace]):
    trace: Trace
    place: _Place
    chosen: Chosen
    asked: npt.NDArray[np.void]
    answers: npt.NDArray[np.void]


class Settler(Generic[Trace]):
    """
    Journeys on their way to the sinks, waiting for their ends.

    *unseen* counts those whose ends are not known in the end.
    """

    def __init__(self, source: EndSource) -> None:
        self.unseen = 0
        self._source = source
        self._book = EndBook(source.reasons)
        self._held: deque[_Held[Trace]] = deque()
        self._derived: dict[tuple[object, ...], Path] = {}
        self._rate = _Rate()
        self._looked_ns = 0

    @property
    def waiting(self) -> int:
        """How many journeys wait."""
        return sum(len(one.chosen) for one in self._held)

    def add(
        self,
        trace: Trace,
        inode: int,
        device: Callable[[int], str | None],
        chosen: Chosen,
    ) -> None:
        """Take rows of one namespace in; *trace* is handed back with them."""
        asked = np.zeros(len(chosen), ASKED)
        asked["fingerprint"] = chosen.packets["fingerprint"]
        asked["started_ns"] = chosen.started_ns
        asked["netns"] = inode
        asked["oif"] = [path.oif for path in chosen.paths]
        asked["is_local"] = [path.iif == 0 for path in chosen.paths]
        answers = np.zeros(len(chosen), ANSWER)
        self._held.append(_Held(trace, _Place(inode, device), chosen, asked, answers))
        self._rate.journeys += len(chosen)

    def take(self, now_ns: int) -> Iterator[tuple[Trace, Chosen]]:
        """
        Return the batches that wait no longer at *now_ns*, with what became of each row.

        What the sockets held at *now_ns* has been added.
        """
        self._look(now_ns)
        excess = self.waiting - MAX_HELD
        while self._held:
            one = self._held[0]
            if not (one.answers["is_settled"].all() or excess > 0 or self._rate.is_paused):
                return
            self._held.popleft()
            excess -= len(one.chosen)
            yield one.trace, self._settle(one)

    def _look(self, now_ns: int) -> None:
        """Read what the kernel told and ask for every row that has no answer yet."""
        if self._rate.is_paused:
            if self._rate.may_resume(now_ns):
                self._source.resume()
            return
        events = self._source.read()
        self._rate.events += len(events)
        if self._rate.is_exceeded(now_ns) and not self._may_narrow():
            self._pause()
            return
        if not self._book.add(events, now_ns):
            self._pause()
            return
        if now_ns - self._looked_ns >= _LOOK_NS_EACH * len(self._book):
            self._looked_ns = now_ns
            self._ask(now_ns)

    def _pause(self) -> None:
        self._rate.is_paused = True
        self._source.pause()
        self._book.clear()

    def _ask(self, now_ns: int) -> None:
        open_rows = [~one.answers["is_settled"] for one in self._held]
        if not any(rows.any() for rows in open_rows):
            return
        asked = np.concatenate(
            [one.asked[rows] for one, rows in zip(self._held, open_rows, strict=True)]
        )
        # What began in the future began before the clock was set back.
        asked["is_due"] = abs(now_ns - asked["started_ns"]) > WAIT_NS
        answers = self._book.find(asked, now_ns)
        start = 0
        for one, rows in zip(self._held, open_rows, strict=True):
            stop = start + int(rows.sum())
            one.answers[rows] = answers[start:stop]
            start = stop

    def _may_narrow(self) -> bool:
        """Give up other packets' events before those that are meant."""
        if self._rate.is_flooded or not self._source.narrow():
            return False
        self._rate.is_paused = False
        return True

    def _settle(self, one: _Held[Trace]) -> Chosen:
        """Return the rows with their ends, and the kernel's times where it told them."""
        answers, chosen = one.answers, one.chosen
        open_ends = np.flatnonzero(answers["kind"] == 0).tolist()
        self.unseen += sum(chosen.paths[row].ending.reason == NOT_OBSERVED for row in open_ends)
        timed = answers["start_ns"] > 0
        lasted = np.where(timed & (answers["end_ns"] > 0), answers["end_ns"], 0)
        lasted = np.where(lasted > 0, (lasted - answers["start_ns"]) // 1000, -1)
        rows = zip(
            chosen.paths,
            answers["kind"].tolist(),
            answers["reason"].tolist(),
            answers["ifindex"].tolist(),
            timed.tolist(),
            strict=True,
        )
        paths, known = [], self._derived
        for row in rows:
            path = known.get((one.place.inode, *row))
            paths.append(self._add(one.place, *row) if path is None else path)
        return replace(
            chosen,
            paths=paths,
            started_ns=np.where(timed, answers["start_ns"], chosen.started_ns),
            lasted_us=lasted,
        )

    def _add(  # noqa: PLR0913, PLR0917 - what a derived path is known by
        self,
        place: _Place,
        path: Path,
        kind: int,
        reason: int,
        ifindex: int,
        timed: bool,  # noqa: FBT001
    ) -> Path:
        if len(self._derived) >= MAX_PATHS:
            self._derived.clear()
        word = self._source.reasons.get(reason, f"reason {reason}")
        ending = _end(path.ending, kind, word, place.device(ifindex))
        derived = replace(path, ending=ending, clock="kernel" if timed else path.clock)
        self._derived[place.inode, path, kind, reason, ifindex, timed] = derived
        return derived


class _Rate:
    """Whether ends are looked for, by how much there was in the last quarter of a second."""

    def __init__(self) -> None:
        self.journeys = 0
        self.events = 0
        self.is_paused = False
        self.is_flooded = False
        self._since_ns = 0

    def is_exceeded(self, now_ns: int) -> bool:
        """Tell whether it is too much now; from then on it is paused."""
        passed_ns = now_ns - self._since_ns
        allowed = MAX_RATE * max(passed_ns, _WINDOW_NS) / 1_000_000_000
        self.is_flooded = self.journeys > allowed
        self.is_paused = self.is_flooded or self.events > _EVENTS_EACH * allowed
        if self.is_paused or passed_ns >= _WINDOW_NS:
            self._begin(now_ns)
        return self.is_paused

    def may_resume(self, now_ns: int) -> bool:
        """Tell whether a second has passed with less than half of what is allowed."""
        passed_ns = now_ns - self._since_ns
        if passed_ns < _PAUSE_NS:
            return False
        self.is_paused = self.journeys > MAX_RATE / 2 * passed_ns / 1_000_000_000
        self._begin(now_ns)
        return not self.is_paused

    def _begin(self, now_ns: int) -> None:
        self.journeys = self.events = 0
        self._since_ns = now_ns


def _end(ending: Ending, kind: int, reason: str, device: str | None) -> Ending:
    """Return the ending that the trace saw, with what the kernel added."""
    if ending.kind is EndingKind.UNKNOWN and ending.reason == NOT_OBSERVED:
        if kind == SkbEventKind.SENT:
            hook = "egress" if ending.hook == "egress" else "postrouting"
            return Ending(EndingKind.SENT, hook=hook, device=device)
        if kind == SkbEventKind.DELIVERED:
            return Ending(EndingKind.DELIVERED, hook="input")
        if kind == SkbEventKind.DROPPED:
            return Ending(EndingKind.DROPPED, hook=ending.hook, reason=reason)
    judged = ending.kind in {EndingKind.DROPPED, EndingKind.REJECTED}
    if judged and kind == SkbEventKind.DROPPED and ending.reason is None:
        return replace(ending, reason=reason)
    return ending
