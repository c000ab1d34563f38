"""What a rule of a nat chain does, as values that both languages are read into."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.core.nat_headers import Headers
    from tracer.core.nat_ranges import Limit

__all__ = ["HOOKS", "TOPS", "Branch", "Side", "Translation"]


class Side(Enum):
    """Which half of the header a translation changes."""

    DST = "dst"
    SRC = "src"


#: The hooks whose nat chains change each side (nf_nat_core.c, HOOK2MANIP).
HOOKS = {
    Side.DST: frozenset(("prerouting", "output")),
    Side.SRC: frozenset(("postrouting", "input")),
}

#: The highest address of each IP version.
TOPS = {4: 2**32 - 1, 6: 2**128 - 1}


@dataclass(frozen=True, slots=True)
class Translation:
    """
    What NAT writes into one side of the header.

    *addresses* and *ports* are the results, None where they are kept. With *own* the
    address is one of the device's that the packet came in by (REDIRECT) or goes out by
    (MASQUERADE). *block* is the number of addresses in the target network where only
    the network part is changed. *shuffled*: the source port is picked at random.
    """

    side: Side
    addresses: Limit = None
    ports: Limit = None
    own: bool = False
    block: int | None = None
    shuffled: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """
    One thing that a rule can do with the packets that it matches.

    *headers* holds at least those packets. Either *jump* names the chain that they go
    to, or *translations* are the changes made to them, more than one where only the
    hook tells which it is; neither where the rule cannot be read.
    """

    headers: Headers
    jump: str | None = None
    translations: tuple[Translation, ...] = ()
