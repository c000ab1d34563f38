"""`nftrace check` says what stands, and leaves nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.kernel import nets
from tracer.sources.drops import DropSource

if TYPE_CHECKING:
    from collections.abc import Callable


def _check(*words: str) -> str:
    return nets.nftrace("a", "check", *words).stdout


def test_the_rung_and_its_cost_are_told(netns: Callable[..., str]) -> None:
    """The rung is the one that `nftrace drops` would stand on, in text and in JSON."""
    netns("a")
    source = DropSource()
    source.open()
    source.close()
    standing = source.standing
    (answer,) = [
        one for one in json.loads(_check("-o", "json"))["answers"] if one["name"] == "drops"
    ]
    (line,) = [line for line in _check().splitlines() if line.startswith("drops ")]

    said = f"by {standing.rung}, which costs {standing.cost}"
    assert ("yes", said) == (answer["value"], answer["detail"][: len(said)])
    assert said in line
