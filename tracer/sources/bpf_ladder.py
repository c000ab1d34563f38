"""
The ladder: which way of finding a drop's place stands, proved and proved again.

From the cheapest exact rung down: saved registers (`rule`, `hook`), trampolines
(`fexit`), kprobes (`kprobe`), netfilter links (`links`), and the kernel's reason alone.
Each rung opens, and is proved by known drops in a namespace of our own; the first that
names all of them right stands, else the first that names those of an engine right. While
it stands, drops by netfilter that it could not place are watched: where they are too
many it is proved again, and where that fails the next one down is taken.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import CONFIG, Mode, Site
from bpf.maps import MapFile
from bpf.syscalls import attach_raw_tracepoint, close_all, is_link
from tracer.core.drops import Rung
from tracer.errors import NftraceError
from tracer.sources.bpf_calibrate import aside, calibrate
from tracer.sources.bpf_config import Calibration, fill_config
from tracer.sources.bpf_deadline import WAIT_FACTOR, Deadline, LateError
from tracer.sources.bpf_kprobes import FUNCTIONS, KprobeRung, TrampolineRung
from tracer.sources.bpf_kprobes import PROGRAMS as _PROBES
from tracer.sources.bpf_kprobes import TYPES as _PROBE_TYPES
from tracer.sources.bpf_links import MARKS_MAX, LinkRung
from tracer.sources.bpf_links import PROGRAMS as _LINKS
from tracer.sources.bpf_prove import prove
from tracer.sources.bpf_range import build
from tracer.sources.bpf_rungs import LocatorRung, ReasonRung

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from bpf.loader import Loaded
    from tracer.core.drop_layout import Layout
    from tracer.sources.bpf_peek import Peek
    from tracer.sources.bpf_prove import Proof
    from tracer.sources.bpf_range import Shot
    from tracer.sources.bpf_rungs import LadderRung
    from tracer.sources.netns import Netns

__all__ = ["FUNCTIONS", "MARKS_MAX", "PROGRAMS", "TYPES", "Ladder"]

PROGRAMS = (*_PROBES, *_LINKS)
TYPES = _PROBE_TYPES
#: The largest that setsockopt(2) takes as an int.
_MARK_MAX = (1 << 31) - 1
#: A rung is proved again when of so many netfilter drops, since the last look, one in
#: twenty had no place.
_DOUBT_DROPS = 64
_DOUBT_SHARE = 20
#: Nor more often than that: what a rung does not know, as on a bridge, goes on dropping.
_DOUBT_S = 60.0
#: Under a flood a softirq can take a place of ours away between its being noted and used.
_TRIES = 3
#: A proof at run time; it holds up only the reader.
_AGAIN_S = 10.0
_LOCATORS = (Rung.RULE, Rung.HOOK)


@dataclass(frozen=True, slots=True)
class _Range:
    """A namespace with known droppers, which the thread is in."""

    shots: Sequence[Shot]
    mark: int
    deadline: Deadline


class Ladder:
    """
    Chooses a rung, and steps down from it.

    `climb()`, then `attach()`; `look()` again and again. *rung* is what stands, *why* says
    for each rung above it what was missing, *notes* what happened since the start.
    *sites* and *legacy* are what the rung knows of. *is_late*: it was for lack of time that
    none higher stands.
    """

    def __init__(
        self,
        loaded: Loaded,
        peek: Peek,
        namespaces: Sequence[Netns],
        tell: Callable[[int], None] | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """
        Take the programs of *loaded* and the *namespaces* that links may stand in.

        *tell* is told the inode of each namespace in which known drops are made. No more
        are made when *given_up* is set.
        """
        self.rung = Rung.REASON
        self.is_late = False
        self.why: dict[Rung, str] = {}
        self.notes: list[str] = []
        self.found = Calibration()
        self._loaded = loaded
        self._peek = peek
        self._namespaces = namespaces
        self._tell = tell
        self._given_up = given_up
        self._standing: LadderRung = ReasonRung()
        self._below: list[LadderRung] = []
        self._tracepoints: list[int] = []
        self._judged = (0, 0)
        self._doubted_s = -_DOUBT_S

    def climb(self, wanted: Rung | None, limit_s: float, factor: float = WAIT_FACTOR) -> None:
        """
        Let the highest rung stand that holds, or *wanted* if it does.

        It may take what `Deadline` says of *limit_s* and *factor*.
        Never raises for what a kernel lacks: `why` says it.
        """
        if wanted is Rung.REASON:
            return
        try:
            aside(lambda: self._climb(wanted, self._lay_range(limit_s, factor)))
        except (NftraceError, OSError) as exc:
            self.is_late = isinstance(exc, LateError)
            for name in _LOCATORS if wanted is None else (wanted,):
                self.why.setdefault(name, str(exc))
            self._stand(ReasonRung())
        self._cover()

    def adopt(self, found: Ladder, unlocated: int) -> bool:
        """
        Let the rung stand that another ladder has *found*, which is closed.

        *unlocated* as for look(). False where that is the lowest, or where the rung cannot
        be opened any more: `why` says it.
        """
        self.why.clear()
        self.why.update(found.why)
        rungs = [] if found.rung is Rung.REASON else found.rungs_from(self._loaded, self._peek)
        if not rungs:
            return False
        rung, *below = rungs
        try:
            rung.open()
        except (NftraceError, OSError) as exc:
            rung.close()
            self.why[rung.name] = str(exc)
            return False
        self._standing, self.rung, self._below = rung, rung.name, below
        self.found, self._judged = found.found, (0, unlocated)
        self._cover()
        start_s, was_attached = time.monotonic(), bool(self._tracepoints)
        self.detach()
        if was_attached:
            self.attach()
        self.notes.append(f"{self.rung} was proved later; {_uncounted(start_s)}")
        return True

    def rungs_from(self, loaded: Loaded, peek: Peek) -> list[LadderRung]:
        """Return the rung that stands and those below it, of other programs, not opened."""
        rungs = _all_rungs(loaded, peek, self.found)
        names = [rung.name for rung in rungs]
        return rungs[names.index(self.rung) :]

    def _lay_range(self, limit_s: float, factor: float = 1.0) -> _Range:
        deadline = Deadline(limit_s, factor, self._given_up)
        return _Range(build(deadline, self._tell), secrets.randbelow(_MARK_MAX) + 1, deadline)

    def _climb(self, wanted: Rung | None, ground: _Range) -> None:
        self.found = calibrate(self._loaded, ground.shots, ground.mark, ground.deadline)
        rungs = self._rungs(wanted)
        partly: LadderRung | None = None
        while rungs:
            rung = rungs.pop(0)
            proof = self._try(rung, ground)
            if proof is not None and proof.right == proof.aimed:
                self._below = rungs
                self._settle(rung, proof)
                return
            partly = partly or (rung if proof is not None and proof.right else None)
            rung.close()
        if partly is not None:
            proof = self._try(partly, ground)
            if proof is not None and proof.right:
                self._settle(partly, proof)

    def _rungs(self, wanted: Rung | None) -> list[LadderRung]:
        rungs = _all_rungs(self._loaded, self._peek, self.found)
        if wanted in _LOCATORS:
            return rungs[:1]
        return [rung for rung in rungs if wanted in {None, rung.name}]

    def _try(self, rung: LadderRung, ground: _Range) -> Proof | None:
        """Open *rung* and prove it; None, with the reason in `why`, where it cannot be."""
        try:
            rung.open()
            if isinstance(rung, LinkRung):
                rung.cover_here()
            proof = self._prove(rung, ground)
            for _ in range(_TRIES - 1):
                if proof.right == proof.aimed:
                    break
                proof = self._prove(rung, ground)
        except (NftraceError, OSError) as exc:
            rung.close()
            ground.deadline.left_s()
            self.why[rung.name] = str(exc)
            return None
        if proof.right != proof.aimed:
            wrong = ", ".join(site.name.lower() for site in sorted(proof.aimed - proof.right))
            self.why[rung.name] = f"known drops were not named right ({wrong})"
        return proof

    def _prove(self, rung: LadderRung, ground: _Range) -> Proof:
        config = np.zeros(1, CONFIG)
        self._fill(config, rung, frozenset(Site) - {Site.OTHER})
        config["mode"] = Mode.COUNT
        settings = MapFile(self._loaded.maps["config"], 4, CONFIG.itemsize)
        settings.update(bytes(4), config.tobytes())
        links: list[int] = []
        with ExitStack() as stack:
            stack.callback(settings.update, bytes(4), bytes(CONFIG.itemsize))
            stack.callback(close_all, links)
            self._attach(rung, links)
            return self._fire(rung, ground)

    def _fire(self, rung: LadderRung, ground: _Range) -> Proof:
        # Links stand at the hooks of IP only.
        shots = [
            one for one in ground.shots if rung.families is None or one.family in rung.families
        ]
        return prove(
            self._loaded, shots, ground.mark, ground.deadline, knows_handle=rung.knows_handle
        )

    def _settle(self, rung: LadderRung, proof: Proof) -> None:
        if isinstance(rung, LinkRung):
            rung.forget_here()
        self._stand(rung)
        self.found.sites = proof.right
        self.found.legacy = (
            (rung.legacy | proof.legacy) if Site.HOOK in proof.right else frozenset()
        )

    def _stand(self, rung: LadderRung) -> None:
        self._standing, self.rung = rung, rung.name
        self.found.sites, self.found.legacy = frozenset(), frozenset()

    def _cover(self) -> None:
        if isinstance(self._standing, LinkRung):
            for namespace in self._namespaces:
                try:
                    self._standing.cover(namespace)
                except NftraceError as exc:
                    self.notes.append(f"no links in {namespace.name}: {exc}")

    def fill_config(self, config: npt.NDArray[np.void]) -> None:
        """Write what the programs must know of the rung into *config*, `CONFIG (1,)`."""
        self._fill(config, self._standing, self.found.sites)

    def _fill(self, config: npt.NDArray[np.void], rung: LadderRung, sites: frozenset[Site]) -> None:
        layouts: dict[Site, list[Layout]] = (
            self.found.layouts if isinstance(rung, LocatorRung) else {}
        )
        fill_config(config, self.found, sites, layouts)

    @property
    def links(self) -> int:
        """How many netfilter links stand."""
        return self._standing.links if isinstance(self._standing, LinkRung) else 0

    @property
    def is_attached(self) -> bool:
        """Tell whether the programs run at the drop, by what the kernel says of each link."""
        return bool(self._tracepoints) and all(map(is_link, self._tracepoints))

    def attach(self) -> None:
        """Let the programs run; harmless when they do."""
        if not self._tracepoints:
            self._attach(self._standing, self._tracepoints)

    def _attach(self, rung: LadderRung, descriptors: list[int]) -> None:
        descriptors += (
            attach_raw_tracepoint("kfree_skb", self._loaded.programs[name])
            for name in (*rung.tracepoints, "on_kfree_skb_count")
        )

    def detach(self) -> None:
        """Stop the programs at the drop; what the rung attached elsewhere stays."""
        close_all(self._tracepoints)

    def look(self, placed: int, unlocated: int) -> bool:
        """
        Keep up with the rules, and doubt the rung where too much has no place.

        *placed* and *unlocated* are the netfilter drops since the start that had a place,
        and that had none. True where another rung stands now: its `fill_config()` is due.
        """
        self._standing.look()
        before = self._judged
        # What was settled meanwhile is missing in what is placed.
        more, lost = max(placed - before[0], 0), unlocated - before[1]
        if more + lost < _DOUBT_DROPS:
            return False
        self._judged = placed, unlocated
        now_s = time.monotonic()
        if lost * _DOUBT_SHARE < more + lost or now_s - self._doubted_s < _DOUBT_S:
            return False
        self._doubted_s = now_s
        if self._holds():
            self._note(f"many of netfilter's drops have no place, and still {self.rung} holds")
            return False
        share = 100 * lost // (more + lost)
        self._step_down(f"{share} % of the drops had no place, and known drops were named wrong")
        return True

    def _note(self, text: str) -> None:
        # Said once: what goes on for a year must not grow.
        if text not in self.notes:
            self.notes.append(text)

    def _holds(self) -> bool:
        def again() -> Proof:
            ground = self._lay_range(_AGAIN_S)
            rung = self._standing
            with ExitStack() as stack:
                if isinstance(rung, LinkRung):
                    rung.cover_here()
                    stack.callback(rung.forget_here)
                return self._fire(rung, ground)

        try:
            return any(self.found.sites <= aside(again).right for _ in range(_TRIES))
        except (NftraceError, OSError) as exc:
            self._note(f"the rung {self.rung} could not be proved again: {exc}")
            return True

    def _step_down(self, why: str) -> None:
        former, start_s = self.rung, time.monotonic()
        self.why[former] = why
        self.detach()
        self._standing.close()
        self._stand(ReasonRung())
        try:
            aside(lambda: self._descend(self._lay_range(_AGAIN_S)))
        except (NftraceError, OSError) as exc:
            self.notes.append(f"no rung below {former} could be proved: {exc}")
        self._cover()
        self.attach()
        self.notes.append(
            f"stepped down from {former} to {self.rung}: {why}; {_uncounted(start_s)}"
        )

    def _descend(self, ground: _Range) -> None:
        while self._below:
            rung = self._below.pop(0)
            proof = self._try(rung, ground)
            if proof is not None and proof.right == proof.aimed:
                self._settle(rung, proof)
                return
            rung.close()

    def close(self) -> None:
        """Detach and unlink everything; harmless when repeated."""
        self.detach()
        self._standing.close()


def _all_rungs(loaded: Loaded, peek: Peek, found: Calibration) -> list[LadderRung]:
    """Return all rungs but the lowest, from the highest down."""
    return [
        LocatorRung(found),
        TrampolineRung(loaded),
        KprobeRung(loaded),
        LinkRung(loaded, peek),
    ]


def _uncounted(start_s: float) -> str:
    gap_ms = 1000 * (time.monotonic() - start_s)
    return f"for {gap_ms:.0f} ms drops were not counted"
