"""
Watching what becomes of followed packets, where this kernel allows it.

Loading takes as long as reading a ruleset, and is done beside it. A host that cannot do it
is followed all the same: `notes` say what is not seen then.
"""

from __future__ import annotations

import time
from concurrent.futures import wait
from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import MATCHES_MAX
from tracer.core.drop_events import SKB_EVENT
from tracer.core.end_filters import make_filters
from tracer.errors import NftraceError
from tracer.sources.bpf_events import SkbEvents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor, Future

    import numpy.typing as npt

    from tracer.core.filters import Filter
    from tracer.core.nat_headers import Headers
    from tracer.sources.netns import Netns

__all__ = ["EndWatch"]

#: Headers to watch, of all namespaces and plans: two plans' worth of mapped addresses.
_BOXES_KEPT = 32_768

_NOTHING = np.zeros(0, SKB_EVENT)
_CUT = "ends are not seen of packets that some of the NAT rules rename: there are too many"
_NARROWED = (
    "ends behind NAT were not looked for any more:"
    " too many other packets have the same addresses there"
)


class EndWatch:
    """
    The ends of followed packets in some namespaces.

    `start()`, then `arm()` as often as there is more to watch, then `read()`. *notes*
    say what cannot be seen. Loading goes on beside all this, until `poll()` says so.
    """

    def __init__(self, namespaces: Sequence[Netns]) -> None:
        self.notes: list[str] = []
        self._events = SkbEvents(namespaces)
        self._loading: Future[None] | None = None
        self._is_open = False
        self._boxes: list[Headers] = []
        self._shared: list[Headers] = []
        self._filters: tuple[Filter, ...] = ()
        self._lost = 0

    def start(self, pool: Executor) -> None:
        """Begin to load, in a thread of *pool*."""
        self._loading = pool.submit(self._events.open)

    def arm(self, boxes: Iterable[Headers], shared: Iterable[Headers] = ()) -> None:
        """
        Watch the packets of *boxes* as well, from now on or from when loading is over.

        Those of *shared* are watched while they are not too many. Does not raise where ends
        cannot be watched.
        """
        self._boxes = [*dict.fromkeys((*self._boxes, *boxes))][:_BOXES_KEPT]
        self._shared = [*dict.fromkeys((*self._shared, *shared))][:_BOXES_KEPT]
        if self._is_open:
            self._watch()

    def wait(self, until_s: float | None = None) -> None:
        """Wait until loading is over, or the monotonic clock says *until_s*."""
        if self._loading is not None:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            wait((self._loading,), left_s)
            self.poll()

    def poll(self) -> bool:
        """Begin to watch if loading is over by now; return whether it is."""
        if self._loading is not None and self._loading.done():
            self._finish_loading()
        return self._loading is None

    def _watch(self) -> None:
        made = make_filters([*self._boxes, *self._shared], MATCHES_MAX)
        self._filters = made.filters
        if made.is_cut and _CUT not in self.notes:
            self.notes.append(_CUT)
        self._events.arm(self._filters)

    def narrow(self) -> bool:
        """Give up *shared* for good; False where that saves nothing."""
        shared, self._shared = self._shared, []
        former, self._filters = self._filters, make_filters(self._boxes, MATCHES_MAX).filters
        if not shared or former == self._filters or not self._is_open:
            return False
        self.notes.append(_NARROWED)
        self._events.arm(self._filters)
        return True

    @property
    def reasons(self) -> Mapping[int, str]:
        """The kernel's drop reasons by number."""
        return self._events.reasons

    @property
    def is_open(self) -> bool:
        """Whether ends are watched."""
        return self._is_open

    def read(self) -> npt.NDArray[np.void]:
        """Return the events that are ready, `SKB_EVENT (n,)`."""
        return self._events.read() if self._is_open else _NOTHING

    def pause(self) -> None:
        """Let the kernel tell nothing for now."""
        if self._is_open:
            self._events.arm(())

    def resume(self) -> None:
        """Let it tell again; what was told before the pause is passed over."""
        if self._is_open:
            self._events.read()
            self._events.arm(self._filters)

    def lost(self) -> int:
        """Return how many events were lost for want of room, also after close()."""
        if self._is_open:
            self._lost = self._events.loss().lost
        return self._lost

    def close(self) -> None:
        """Detach everything; harmless when repeated."""
        self._finish_loading()
        self.lost()
        self._is_open = False
        self._events.close()

    def _finish_loading(self) -> None:
        loading, self._loading = self._loading, None
        if loading is None:
            return
        try:
            loading.result()
        except NftraceError as exc:
            # Nothing of it is open then; the remedy is `nftrace check`'s to give.
            self.notes.append(f"what becomes of packets after their last rule is not seen: {exc}")
            return
        self._is_open = True
        if self._boxes:
            self._watch()
        if self._events.unseen:
            self.notes.append(f"local delivery is not seen: {self._events.unseen}")
