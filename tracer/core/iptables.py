"""
Tables, chains and rules from what iptables-save and its relatives print.

Legacy tables are named by what iptables-legacy-save prints, and nft tables that iptables-nft
made by what iptables-nft-save does: people know their rules in these words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tracer.core.iptables_lines import logical_lines, split_arguments
from tracer.core.iptables_targets import TARGET_VERDICTS
from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Rule, Table
from tracer.errors import MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ImplicitEnd",
    "Policy",
    "name_nft_tables",
    "parse_iptables_save",
    "resolve_legacy",
    "split_arguments",
]

#: A `-j` that an option or nothing follows is the value of the option before it.
_TARGET = re.compile(r" -([jg]) ([^-!\s]\S*)")

#: Source: enum nf_ip_hook_priorities in include/uapi/linux/netfilter_ipv4.h (IPv6's are the
#: same numbers); nat takes the source's priority where it changes sources.
_LEGACY_PRIORITIES: Final[Mapping[str, int]] = {
    "raw": -300,
    "mangle": -150,
    "nat": -100,
    "filter": 0,
    "security": 50,
}
_NAT_SOURCE_PRIORITY: Final = 100
_HOOKS: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def parse_iptables_save(text: str, engine: str, family: str) -> list[Table]:
    """
    Return the tables of a save, in its order, in form iptables.

    Shape: *text* is what iptables-save, ip6tables-save or their nft variants print, with
    or without counters; *engine* is legacy or nft, *family* ip or ip6. A rule's text is its
    line without counters. Base chains have a policy; those of the engine legacy also have
    hook, priority and type.
    Errors: MalformedMessageError if a table has no COMMIT, so that the output of a tool
    that was killed is not taken for a ruleset, or if a line is none that such tools print.
    """
    tables: list[Table] = []
    open_table: _OpenTable | None = None
    for number, (line, bare) in enumerate(logical_lines(text)):
        start = line[:1]
        if start in ("", "#"):
            continue
        if start == "*" and open_table is None:
            open_table = _OpenTable(engine, line[1:])
        elif open_table is None:
            raise _malformed(number, "a line outside of any table")
        elif line == "COMMIT":
            tables.append(open_table.close(family))
            open_table = None
        elif not open_table.take(line, bare):
            raise _malformed(number, "neither a chain nor a rule of one")
    if open_table is not None:
        raise _malformed(text.count("\n"), "a table without COMMIT")
    return tables


def _malformed(line: int, reason: str) -> MalformedMessageError:
    return MalformedMessageError("iptables-save", line, f"{reason} (counted in lines)")


class _OpenTable:
    """A table of which only some lines have been read."""

    def __init__(self, engine: str, name: str) -> None:
        self._engine = engine
        self._name = name
        self._policies: dict[str, Verdict | None] = {}
        self._rules: dict[str, list[Rule]] = {}

    def take(self, line: str, bare: str) -> bool:
        """Read one line; False if it is none of a table's."""
        if line.startswith(":"):
            words = line[1:].split(" ")
            self._rules[words[0]] = []
            self._policies[words[0]] = _find_policy(words[1:2])
            return True
        words = line.split(" ", 2)
        rules = self._rules.get(words[1]) if words[0] == "-A" and len(words) > 1 else None
        if rules is None:
            return False
        verdict, target = self._find_verdict(bare)
        # unconditional() in net/ipv4/netfilter/ip_tables.c compares struct ipt_ip, flags
        # and all, with zeros: a goto is a flag, and any match moves the target away.
        unconditional = len(words) == 2 or words[2].startswith("-j ")  # noqa: PLR2004
        rules.append(
            Rule(len(rules) + 1, line, "iptables", verdict, target, unconditional=unconditional)
        )
        return True

    def _find_verdict(self, bare: str) -> tuple[Verdict, str | None]:
        found = _TARGET.search(bare)
        if found is None:
            return Verdict.CONTINUE, None
        option, target = found.groups()
        if target in self._rules:
            return (Verdict.GOTO if option == "g" else Verdict.JUMP), target
        return TARGET_VERDICTS.get(target, Verdict.CONTINUE), None

    def close(self, family: str) -> Table:
        chains = {name: self._make_chain(name, tuple(rules)) for name, rules in self._rules.items()}
        return Table(self._engine, family, self._name, "iptables", chains)

    def _make_chain(self, name: str, rules: tuple[Rule, ...]) -> Chain:
        policy = self._policies[name]
        if policy is None or self._engine != "legacy" or name not in _HOOKS:
            return Chain(name, rules, policy=policy)
        nat_source = self._name == "nat" and name in ("INPUT", "POSTROUTING")
        return Chain(
            name,
            rules,
            hook=name.lower(),
            priority=_NAT_SOURCE_PRIORITY if nat_source else _LEGACY_PRIORITIES.get(self._name),
            type=_find_type(self._name, name),
            policy=policy,
        )


def _find_policy(words: Sequence[str]) -> Verdict | None:
    return TARGET_VERDICTS.get(words[0]) if words else None


def _find_type(table: str, chain: str) -> str:
    if table == "nat":
        return "nat"
    return "route" if (table, chain) == ("mangle", "OUTPUT") else "filter"


def name_nft_tables(nft: Sequence[Table], saved: Sequence[Table]) -> list[Table]:
    """
    Give nft tables the words of iptables where iptables-nft-save tells them whole.

    Shape: *nft* are the tables of parse_nft(), *saved* those of parse_iptables_save() of
    the same moment, both families' together. A table that is saved with the same number
    of rules in each chain takes texts, verdicts and targets from there, and keeps nft's
    handles, hooks, priorities and policies; every other stays as it is. Order is *nft*'s.
    """
    by_name = {(table.family, table.name): table for table in saved}
    return [_name_table(table, by_name.get((table.family, table.name))) for table in nft]


def _name_table(table: Table, saved: Table | None) -> Table:
    if saved is None or _count_rules(table) != _count_rules(saved):
        return table
    # iptables-nft-save also prints the built-in chains that do not exist yet; any other
    # chain that nft knows and it does not is not its table.
    if not table.chains.keys() <= saved.chains.keys():
        return table
    chains = {
        name: replace(chain, rules=_name_rules(chain, saved.chains[name]))
        for name, chain in table.chains.items()
    }
    return replace(table, form="iptables", chains=chains)


def _count_rules(table: Table) -> dict[str, int]:
    return {name: len(chain.rules) for name, chain in table.chains.items() if chain.rules}


def _name_rules(chain: Chain, saved: Chain) -> tuple[Rule, ...]:
    return tuple(
        replace(rule, handle=native.handle)
        for native, rule in zip(chain.rules, saved.rules, strict=True)
    )


@dataclass(frozen=True, slots=True)
class ImplicitEnd:
    """The end of a user chain that no rule returned from."""

    chain: str


@dataclass(frozen=True, slots=True)
class Policy:
    """A base chain's policy, reached because no rule had ended the packet's way."""

    chain: str
    verdict: Verdict


def resolve_legacy(
    table: Table, chain_name: str, kind: str, number: int
) -> Rule | ImplicitEnd | Policy | None:
    """
    Return what a legacy trace event `table:chain:kind:number` is about.

    The kernel says `return` or `policy` also for an explicit rule without any match that
    accepts, drops or returns; only the number after the last rule is the chain's real end.
    None: the event does not fit this table, so it is of another version of the ruleset.
    Source: get_chainname_rulenum() in net/ipv4/netfilter/ip_tables.c.
    """
    chain = table.chains.get(chain_name)
    if chain is None or number < 1:
        return None
    count = len(chain.rules)
    if number <= count:
        rule = chain.rules[number - 1]
        return rule if kind == "rule" or rule.unconditional else None
    if number > count + 1:
        return None
    if kind == "policy" and chain.policy is not None:
        return Policy(chain_name, chain.policy)
    return ImplicitEnd(chain_name) if kind == "return" and chain.policy is None else None
