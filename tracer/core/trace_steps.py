"""
What an event says apart from its packet, interned: one number for each distinct step.

A router with six thousand rules says the same few thousand things millions of times.
An event therefore carries the index of a `TraceStep`, and whoever wants the rule's text
looks it up once for each step and not once for each event.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["FAMILIES", "HOOKS", "MAX_STEPS", "StepTable", "TraceStep"]

#: How many distinct steps are kept: forty times the largest ruleset measured (6,000 rules,
#: 300 chains), and at about 300 bytes a step 80 MB. A namespace whose owner replaces the
#: ruleset in a loop meets this bound and not the machine's memory.
MAX_STEPS = 262_144

#: Netfilter's protocol families that have tables, by number.
#: Source: NFPROTO_* in include/uapi/linux/netfilter.h.
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

#: The hooks of ip and ip6, by number. Source: enum nf_inet_hooks, the same header.
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


@dataclass(frozen=True, slots=True)
class TraceStep:
    """
    One kind of event, without the packet that it is about.

    *engine* is nft or legacy; *family* the table's (ip, ip6, inet, bridge, arp, netdev),
    for legacy the packet's. *hook* is known for legacy only. *kind* is rule, policy or
    return, as the kernel said it: for legacy that word lies about unconditional rules.
    *number* is the legacy rule's, counted from 1; None for nft and where the prefix was
    cut. *handle* is nft's; None for a policy and for the implicit end of a chain.
    *verdict* is nft's signed code: NF_DROP 0, NF_ACCEPT 1, NF_STOLEN 2, NF_QUEUE 3 (in
    the low byte, the queue's number above it), NFT_CONTINUE -1, NFT_BREAK -2,
    NFT_JUMP -3, NFT_GOTO -4, NFT_RETURN -5; for a policy the policy's. None for legacy.
    *target* is the chain that nft jumped to.
    """

    engine: str
    family: str
    hook: str | None
    table: str
    chain: str
    kind: str
    number: int | None
    handle: int | None
    verdict: int | None
    target: str | None


@dataclass(slots=True)
class StepTable:
    """
    Steps by number, in the order in which they were first seen; nothing is removed.

    *overflowed* counts the events that were dropped because they told of a new step
    when the table already held *limit*.
    """

    limit: int = MAX_STEPS
    steps: list[TraceStep] = field(default_factory=list)
    overflowed: int = 0
    _index: dict[TraceStep, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many steps there are."""
        return len(self.steps)

    def find_or_add(self, step: TraceStep) -> int | None:
        """Return the step's number, the next one for a new step; None for it if we are full."""
        known = self._index.get(step)
        if known is None and len(self.steps) < self.limit:
            known = self._index[step] = len(self.steps)
            self.steps.append(step)
        return known
