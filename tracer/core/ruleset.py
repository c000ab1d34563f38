"""
A network namespace's rules, as values: legacy tables and nft tables side by side.

One `Ruleset` is what was in force from one change to the next. It is made by
`tracer.core.nft_text` and `tracer.core.iptables` from what the tools print, and is
what the assembler names an event's rule by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.core.journey import Verdict

__all__ = ["Chain", "Rule", "Ruleset", "Table"]


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One rule as it stands in its chain.

    *number* counts from 1. *handle* is nft's, None for legacy. *text* is what
    `iptables-save` prints without counters (*form* iptables) or `nft -s list` without
    handle (*form* nft). *verdict* is what the rule's text says it does when it matches
    (REJECT although nft reports drop; ACCEPT for a NAT target; CONTINUE for a target
    that does not end the chain; None when only the event can tell, as with a verdict
    map). *target* is the chain jumped to, if any. *unconditional*: no match at all, so
    that legacy tracing reports it as if it were the chain's end.
    """

    number: int
    text: str
    form: str
    verdict: Verdict | None
    target: str | None = None
    handle: int | None = None
    unconditional: bool = False


@dataclass(frozen=True)
class Chain:
    """
    One chain; a base chain has *hook*, *priority* and, where it has one, *policy*.

    *hook* is prerouting, input, forward, output, postrouting, ingress or egress.
    *type* is filter, nat or route. *priority* is the kernel's number.
    *devices* are those of a netdev chain.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    hook: str | None = None
    priority: int | None = None
    type: str | None = None
    policy: Verdict | None = None
    devices: tuple[str, ...] = ()

    @cached_property
    def by_handle(self) -> Mapping[int, Rule]:
        """Map nft handles to this chain's rules."""
        return {rule.handle: rule for rule in self.rules if rule.handle is not None}


@dataclass(frozen=True)
class Table:
    """
    One table of one engine and family, its chains by name.

    A legacy table's built-in chains appear once, with *hook* as the chain's name in
    lower case and the table's standard priority at that hook. *handle* is nft's number of
    the table: one that was deleted and made anew has another, and gives its rules' handles
    again.
    """

    engine: str
    family: str
    name: str
    form: str
    chains: Mapping[str, Chain] = field(default_factory=dict)
    handle: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Ruleset:
    """All tables of one namespace, keyed by (engine, family, name)."""

    tables: Mapping[tuple[str, str, str], Table] = field(default_factory=dict)

    def find_chain(self, engine: str, family: str, table: str, chain: str) -> Chain | None:
        """Return the chain, or None where this version of the ruleset has none such."""
        found = self.tables.get((engine, family, table))
        return None if found is None else found.chains.get(chain)
