"""The words that a kind of drop is told in: why, by which rule, and what to look at next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tracer.cli.render_safe import escape
from tracer.core.drop_reasons import explain, explain_expired, explain_hook

if TYPE_CHECKING:
    from tracer.cli.drop_names import RuleName
    from tracer.core.drop_talkers import Talker
    from tracer.core.drops import DropCount

__all__ = ["DropWords", "words_of"]


_UNREAD = "its rules cannot be read: no name or process leads into that namespace from here"


class DropWords(NamedTuple):
    """
    *what* happened, *look_at* next (may be empty), *rule* and its *text*, *candidates*.

    *rule* is "rule 5", "policy", or empty; *doubt* says why it may be another.
    """

    what: str
    look_at: str
    rule: str = ""
    text: str = ""
    doubt: str = ""
    candidates: tuple[str, ...] = ()


def words_of(
    count: DropCount, rule: RuleName, talker: Talker | None, function: str | None
) -> DropWords:
    """Put *count* in words; *function* is the kernel's at its location, where it is known."""
    words = (
        _of_table(count, rule) if count.table is not None else _of_reason(count, talker, function)
    )
    if talker is None:
        return words
    # What to type next, with the addresses that lost most.
    address = talker.address
    filled = words.look_at.replace("DESTINATION", address).replace("SOURCE", talker.source)
    return words._replace(look_at=filled)


def _of_reason(count: DropCount, talker: Talker | None, function: str | None) -> DropWords:
    if count.engine == "hook":
        return DropWords(*explain_hook(function))
    if count.reason == "IP_INHDR" and talker is not None and talker.expired:
        return DropWords(*explain_expired())
    words = explain(count.reason)
    if count.reason == "NOT_SPECIFIED" and function is not None:
        return DropWords(f"{words.what}; freed by {function}()", "")
    return DropWords(*words)


def _of_table(count: DropCount, rule: RuleName) -> DropWords:
    candidates = tuple(escape(line) for line in rule.candidates)
    if count.kind == "policy":
        return DropWords("the chain's policy: no rule took it", "", "policy")
    if rule.number is not None:
        doubt = "" if count.certain else "or another that dropped at that moment"
        text = escape(rule.text or "")
        return DropWords("a rule", "", f"rule {rule.number}", text, doubt)
    if count.handle is not None:
        return DropWords("a rule whose text is not to be had now", "", f"handle {count.handle}")
    look_at = _UNREAD if rule.unread else ""
    return DropWords("one of the table's rules", look_at, candidates=candidates)
