"""`nftrace follow` for the length of a block, and a journey's parts that tests ask for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.kernel import follow_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kernel.follow_helper import Following, Told

__all__ = ["Live", "changes", "endpoints", "follow"]


class Live:
    """A follow in the background; what it told stands after its block."""

    def __init__(self, run: Following) -> None:
        self.run = run
        self.told: Told | None = None

    @property
    def journeys(self) -> list[dict[str, Any]]:
        """The journeys in order."""
        assert self.told is not None
        return self.told.journeys

    @property
    def summary(self) -> dict[str, Any]:
        """The last line."""
        assert self.told is not None
        return self.told.summary

    @property
    def status(self) -> tuple[int, str]:
        """The exit status and what was written to standard error."""
        assert self.told is not None
        return self.told.status, self.told.errors


@contextlib.contextmanager
def follow(ns: str, *words: str, armed_in: Sequence[str] = ()) -> Iterator[Live]:
    """
    Follow in *ns* for the block, from armed to interrupted; what is queued then is told.

    A run that ended by itself (`--count`) is not interrupted.
    """
    with follow_helper.follow(ns, *words, armed_in=armed_in) as run:
        live = Live(run)
        yield live
        live.told = run.finish(0)


def endpoints(packet: dict[str, Any]) -> str:
    """Return SRC > DST:PORT of a packet."""
    return f"{packet['src']} > {packet['dst']}:{packet.get('dport')}"


def changes(journey: dict[str, Any]) -> dict[str, list[Any]]:
    """Return all that a journey's steps changed, by field: the first value and the last."""
    found: dict[str, list[Any]] = {}
    for step in journey["steps"]:
        for name, (before, after) in step["changes"].items():
            found[name] = [found.get(name, [before])[0], after]
    return found
