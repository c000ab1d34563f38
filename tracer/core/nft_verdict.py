"""
What a rule in nft's language does when it matches, read from its text.

nft refuses statements after one that ends the rule, so the verdict is the last statement
before the comment; what has to be told apart are the same words in strings, in sets, in
names and as values (`ct status dnat`, `icmp type redirect`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracer.core.iptables_targets import TARGET_VERDICTS
from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["find_nft_verdict"]

_PLAIN: Final[Mapping[str, Verdict]] = {
    "accept": Verdict.ACCEPT,
    "drop": Verdict.DROP,
    "return": Verdict.RETURN,
    "continue": Verdict.CONTINUE,
}
_JUMPS: Final[Mapping[str, Verdict]] = {"jump": Verdict.JUMP, "goto": Verdict.GOTO}
#: tproxy is not among them: nft_tproxy_eval() in net/netfilter/nft_tproxy.c assigns the
#: socket and goes on to the next statement, where the xtables target accepts.
_STATEMENTS: Final[Mapping[str, Verdict]] = {
    "reject": Verdict.REJECT,
    "queue": Verdict.QUEUE,
    "dnat": Verdict.ACCEPT,
    "snat": Verdict.ACCEPT,
    "masquerade": Verdict.ACCEPT,
    "redirect": Verdict.ACCEPT,
    "synproxy": Verdict.STOLEN,
    "fwd": Verdict.STOLEN,
}
#: What can follow such a word where it is a statement; None is the rule's end.
_FOLLOWERS: Final[Mapping[str, frozenset[str | None]]] = {
    "reject": frozenset({None, "with"}),
    "queue": frozenset({None, "num", "to", "flags", "bypass", "fanout"}),
    "dnat": frozenset({"to", "ip", "ip6", "addr", "prefix", "interval"}),
    "snat": frozenset({"to", "ip", "ip6", "addr", "prefix", "interval"}),
    "masquerade": frozenset({None, "to", "random", "fully-random", "persistent"}),
    "redirect": frozenset({None, "to", "random", "fully-random", "persistent"}),
    "synproxy": frozenset({None, "mss", "wscale", "name", "timestamp", "sack-perm"}),
    "fwd": frozenset({"to", "ip", "ip6"}),
}
#: After these a word is a value to compare with.
_COMPARES: Final = frozenset({"type", "code", "status", "!=", "==", "<", ">", "<=", ">=", "&", "|"})
_STRING = re.compile(r'"[^"]*"')
_COMMENT = re.compile(r'(?:^| )comment "".*', re.DOTALL)
_BRACES = re.compile(r"\{[^{}]*\}")
#: How nft prints an xtables target that it cannot translate; from 1.0.8 on in quotes.
_XT_TARGET = re.compile(r' xt target "?(\w+)"?(?: |$)')


def find_nft_verdict(text: str) -> tuple[Verdict | None, str | None]:
    """
    Return what the rule decides, and the chain it jumps to, if any.

    The verdict is None where only the event can tell (`vmap`), CONTINUE where the rule
    has no statement that ends it.
    """
    # A string ends in its quote, so a verdict as the last word is never inside one.
    before, _, last = text.rpartition(" ")
    if last in _PLAIN and "vmap" not in text and before.rpartition(" ")[2] not in _JUMPS:
        return _PLAIN[last], None
    words = _strip_values(text) if '"' in text or "{" in text else text.split()
    jump = _JUMPS.get(words[-2]) if len(words) > 1 else None
    # A chain may be called vmap.
    if "vmap" in (words if jump is None else words[:-2]):
        return None, None
    if jump is not None:
        return jump, words[-1]
    if words and words[-1] in _PLAIN:
        return _PLAIN[words[-1]], None
    for index, word in enumerate(words):
        if word in _STATEMENTS and _is_statement(words, index):
            return _STATEMENTS[word], None
    target = _XT_TARGET.search(text)
    return TARGET_VERDICTS.get(target[1], Verdict.CONTINUE) if target else Verdict.CONTINUE, None


def _strip_values(text: str) -> list[str]:
    """Return the words without comment, insides of strings and elements of sets."""
    bare = _STRING.sub('""', text)
    shorter = _BRACES.sub("", bare)
    while shorter != bare:
        bare, shorter = shorter, _BRACES.sub("", shorter)
    # The comment comes last; a set or a chain of that name has no string after it.
    return _COMMENT.sub("", bare).split()


def _is_statement(words: Sequence[str], index: int) -> bool:
    before = words[index - 1] if index else None
    after = words[index + 1].split(",")[0] if index + 1 < len(words) else None
    return before not in _COMPARES and after in _FOLLOWERS[words[index]]
