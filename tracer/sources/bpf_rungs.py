"""What a rung of the ladder is, and the two that attach nothing for living packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tracer.core.drops import Rung
from tracer.errors import KernelUnsupportedError
from tracer.sources.bpf_kprobes import KprobeRung, TrampolineRung
from tracer.sources.bpf_links import LinkRung

if TYPE_CHECKING:
    from tracer.sources.bpf_config import Calibration

__all__ = ["COSTS", "LadderRung", "LocatorRung", "ReasonRung"]

#: What each rung costs, in words.
COSTS = {
    Rung.RULE: "nothing for a packet that lives; at a drop, more with each rule that drops",
    Rung.HOOK: "nothing for a packet that lives; one small program more at a drop",
    Rung.FEXIT: TrampolineRung.cost,
    Rung.KPROBE: KprobeRung.cost,
    Rung.LINKS: LinkRung.cost,
    Rung.REASON: "nothing for a packet that lives; one program at a drop",
}


class LadderRung(Protocol):
    """
    One way of finding a drop's place.

    `open()` attaches what runs for living packets and raises KernelUnsupportedError where
    it cannot; `look()` keeps it up with the rules. *tracepoints* are the programs that run
    at the drop before the one that counts, *families* those whose hooks it knows, None for
    all.
    """

    name: Rung
    cost: str
    tracepoints: tuple[str, ...]
    knows_handle: bool
    families: frozenset[int] | None

    @property
    def legacy(self) -> frozenset[int]:
        """The functions that run legacy tables, as far as the rung itself knows them."""

    def open(self) -> None:
        """Attach. Errors: KernelUnsupportedError."""

    def look(self) -> None:
        """Keep up with the rules."""

    def close(self) -> None:
        """Detach; harmless when repeated."""


class LocatorRung:
    """The saved registers: nothing runs for a packet that lives."""

    name = Rung.HOOK
    cost = COSTS[Rung.HOOK]
    tracepoints: tuple[str, ...] = ("on_kfree_skb_locate",)
    knows_handle = True
    families: frozenset[int] | None = None

    def __init__(self, found: Calibration) -> None:
        """Take what calibration *found*."""
        self._found = found
        self.legacy: frozenset[int] = frozenset()

    def open(self) -> None:
        """Nothing is attached. Errors: KernelUnsupportedError where nothing was found."""
        if not self._found.layouts:
            raise KernelUnsupportedError("; ".join(dict.fromkeys(self._found.why.values())))

    def look(self) -> None:
        """Nothing changes with the rules."""

    def close(self) -> None:
        """Nothing to detach."""


class ReasonRung:
    """No place at all."""

    name = Rung.REASON
    cost = COSTS[Rung.REASON]
    tracepoints: tuple[str, ...] = ()
    knows_handle = False
    families: frozenset[int] | None = None
    legacy: frozenset[int] = frozenset()

    def open(self) -> None:
        """Nothing is attached."""

    def look(self) -> None:
        """Nothing changes with the rules."""

    def close(self) -> None:
        """Nothing to detach."""
