"""
Names for rules that outlive the rules above them.

A rule's number changes when one is inserted above it, and nft's handle when the ruleset
is loaded anew. What stays is what the rule says and where: so an id is made of chain, text
and the place among equals (the second of two equal rules of a chain is another rule).
Deleting the first of two equal rules gives the second one's past to it; nothing that
the kernel shows could tell them apart.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracer.core.iptables import split_arguments
from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from tracer.core.ruleset import Rule, Table

__all__ = ["CountedRule", "find_comment", "identify", "make_rule_id", "policy_id"]

#: Ten million rules of one table give two the same id once in ten times.
_ID_BYTES: Final = 6
_NFT_COMMENT = re.compile(r' comment "(.*)"$', re.DOTALL)
_DROPPING: Final = frozenset({Verdict.DROP, Verdict.REJECT})


@dataclass(frozen=True, slots=True)
class CountedRule:
    """
    What does not change of a rule, or of a base chain's policy, while it is counted.

    A policy has *number*, *handle* and *text* None, and one of the two ids that
    `policy_id` gives. *verdict* is None where only the packet can tell, as with a verdict
    map.
    """

    chain: str
    number: int | None
    handle: int | None
    text: str | None
    comment: str
    verdict: Verdict | None
    rule_id: str

    @property
    def is_policy(self) -> bool:
        """Whether this is a chain's policy and no rule."""
        return self.number is None

    @property
    def is_dropping(self) -> bool:
        """Whether whoever meets this is always dropped or rejected."""
        return self.verdict in _DROPPING


def make_rule_id(chain: str, text: str, nth: int) -> str:
    """Return the id, 12 hexadecimal digits, of the *nth* rule of this text, from 0."""
    words = f"{len(chain)} {chain} {nth} {text}".encode(errors="surrogateescape")
    return hashlib.blake2b(words, digest_size=_ID_BYTES).hexdigest()


def policy_id(verdict: Verdict) -> str:
    """Return the id of a policy: one that accepts and one that drops count apart."""
    return f"policy {verdict}"


def identify(table: Table) -> list[CountedRule]:
    """
    Return the rules of *table* chain by chain, each base chain's policy behind its rules.

    A policy that the table does not tell is not listed.
    """
    found: list[CountedRule] = []
    for chain in table.chains.values():
        seen: dict[str, int] = {}
        for rule in chain.rules:
            nth = seen[rule.text] = seen.get(rule.text, -1) + 1
            found.append(_count(chain.name, rule, nth))
        if chain.hook is not None and chain.policy is not None:
            its_id = policy_id(chain.policy)
            found.append(CountedRule(chain.name, None, None, None, "", chain.policy, its_id))
    return found


def _count(chain: str, rule: Rule, nth: int) -> CountedRule:
    return CountedRule(
        chain,
        rule.number,
        rule.handle,
        rule.text,
        find_comment(rule),
        rule.verdict,
        make_rule_id(chain, rule.text, nth),
    )


def find_comment(rule: Rule) -> str:
    """Return the comment that a rule's author gave it, empty where none."""
    if rule.form == "nft":
        found = _NFT_COMMENT.search(rule.text)
        return found[1] if found else ""
    if " --comment " not in rule.text:
        return ""
    words = split_arguments(rule.text)
    at = words.index("--comment") + 1 if "--comment" in words else len(words)
    return words[at] if at < len(words) else ""
