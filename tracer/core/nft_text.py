"""
Chains and rules from what `nft -s -a list ruleset` prints.

nft indents by structure, not by content: a table's lines have one tab, a chain's two, and
whatever wraps (elements of sets and maps) three or more. So lines are sorted by their tabs
and their last words, and what stands between is text that nobody has to understand: nft
prints strings unescaped, so quotes and braces in comments prove nothing. Each rule ends in
`# handle N`; a line of a chain that does not is the beginning of one that wraps, or no rule.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracer.core.journey import Verdict
from tracer.core.nft_verdict import find_nft_verdict
from tracer.core.ruleset import Chain, Rule, Table
from tracer.errors import MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_nft"]

_HANDLE: Final = " # handle "
_TABLE = re.compile(r"table (\S+) (.+?) \{(?: #.*)?")
_CHAIN = re.compile(r"\tchain (.+?) \{(?: # handle \d+)?")
_BASE = re.compile(
    r"\t\ttype (\w+) hook (\w+)(?: devices? (.*?))? priority ([^;]+);(?: policy (\w+);)?"
)
_PRIORITY = re.compile(r"(-?[a-z0-9]+)(?: ([+-]) ([0-9]+))?")
_DEVICE = re.compile(r'"([^"]*)"')

#: Source: std_prios and bridge_std_prios in nftables' src/rule.c; the numbers are those of
#: enum nf_ip_hook_priorities and enum nf_br_hook_priorities in the kernel's headers.
_PRIORITIES: Final[Mapping[str, int]] = {
    "raw": -300,
    "mangle": -150,
    "dstnat": -100,
    "filter": 0,
    "security": 50,
    "srcnat": 100,
}
_BRIDGE_PRIORITIES: Final[Mapping[str, int]] = {
    "dstnat": -300,
    "filter": -200,
    "out": 100,
    "srcnat": 300,
}


def parse_nft(text: str) -> list[Table]:
    """
    Return the tables of a listing, in its order, with engine and form nft.

    Shape: *text* is the whole output of `nft -s -a list ruleset`, with or without -t.
    Chains without rules are there with none; sets, maps and other objects are passed over.
    A rule that was printed on several lines is one line, continuations joined by a space.
    Errors: MalformedMessageError if the text ends within a table, so that the output of an
    nft that was killed is not taken for a ruleset, or if a line belongs to no table.
    """
    return _Listing(text).read_tables()


class _Listing:
    """A cursor over the listing's lines."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._next = 0

    def read_tables(self) -> list[Table]:
        tables = []
        while self._next < len(self._lines):
            line = self._take()
            # Newer nft warn of tables that are managed by iptables-nft in such remarks.
            if not line or line.startswith("#"):
                continue
            if (found := _TABLE.fullmatch(line)) is None:
                raise self._malformed("a line outside of any table")
            handle = line.rpartition(_HANDLE)[2]
            number = int(handle) if handle.isascii() and handle.isdecimal() else None
            tables.append(self._read_table(found[1], found[2], number))
        return tables

    def _take(self) -> str:
        if self._next >= len(self._lines):
            raise self._malformed("the listing ends within a table")
        line = self._lines[self._next]
        self._next += 1
        return line

    def _malformed(self, reason: str) -> MalformedMessageError:
        before = self._lines[: max(self._next - 1, 0)]
        return MalformedMessageError("nft list ruleset", sum(len(x) + 1 for x in before), reason)

    def _read_table(self, family: str, name: str, handle: int | None) -> Table:
        chains: dict[str, Chain] = {}
        while (line := self._take()) != "}":
            if (found := _CHAIN.fullmatch(line)) is not None:
                chains[found[1]] = self._read_chain(family, found[1])
            elif line.startswith("\t") and _opens_block(line):
                self._skip_block()
        return Table("nft", family, name, "nft", chains, handle)

    def _skip_block(self) -> None:
        while self._take() != "\t}":
            pass

    def _read_chain(self, family: str, name: str) -> Chain:
        base: re.Match[str] | None = None
        rules: list[Rule] = []
        begun = ""
        while (line := self._take()) != "\t}":
            # A newline within a comment leaves its quote open and its rest at any depth.
            if begun and (line.startswith("\t\t\t") or begun.count('"') % 2):
                line = f"{begun} {line.strip()}"
            at = line.rfind(_HANDLE)
            handle = line[at + len(_HANDLE) :] if at >= 0 else ""
            if handle.isascii() and handle.isdecimal():
                rules.append(_make_rule(len(rules) + 1, line[:at].strip(), int(handle)))
                begun = ""
            elif not rules and base is None and (base := _BASE.fullmatch(line)) is not None:
                begun = ""
            else:
                begun = line
        return _make_chain(family, name, base, tuple(rules))


def _opens_block(line: str) -> bool:
    """Tell whether a line of a table begins an object's body, as against an attribute."""
    head, _, handle = line.rpartition(_HANDLE)
    return head.endswith(" {") if head and handle.isdecimal() else line.endswith(" {")


def _make_rule(number: int, text: str, handle: int) -> Rule:
    verdict, target = find_nft_verdict(text)
    return Rule(number, text, "nft", verdict, target, handle)


def _make_chain(
    family: str, name: str, base: re.Match[str] | None, rules: tuple[Rule, ...]
) -> Chain:
    if base is None:
        return Chain(name, rules)
    kind, hook, devices, priority, policy = base.groups()
    return Chain(
        name,
        rules,
        hook=hook,
        priority=_find_priority(family, priority),
        type=kind,
        policy=Verdict(policy) if policy in ("accept", "drop") else None,
        devices=tuple(_DEVICE.findall(devices)) if devices else (),
    )


def _find_priority(family: str, text: str) -> int | None:
    """Return the kernel's number for `mangle`, `dstnat - 5` or `-350`; None for what is neither."""
    if (found := _PRIORITY.fullmatch(text)) is None:
        return None
    word, sign, offset = found.groups()
    names = _BRIDGE_PRIORITIES if family == "bridge" else _PRIORITIES
    digits = word.removeprefix("-")
    value = int(word) if digits.isdecimal() and digits.isascii() else names.get(word)
    if value is None or offset is None:
        return value
    return value - int(offset) if sign == "-" else value + int(offset)
