"""
One table's rules as a text that is kept by content, and what differs between two of them.

A version is told in lines of JSON: the table, then each chain followed by its rules. It holds
what iptables-save and nft print of a rule, its number and handle, and no counters: what was
loaded again without a difference is the same text as long as nft gives the same handles.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, Final

from tracer.core.journey import Verdict
from tracer.core.ruleset import Chain, Rule, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["NO_TABLE", "DiffLine", "TableDiff", "diff_tables", "parse_table", "render_table"]

#: Longer chains are compared as bags of rules where they differ: alignment is quadratic.
_ALIGNED_MAX: Final = 2000

NO_TABLE: Final = Table("", "", "", "")


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One rule that came (*sign* +) or went (-); *number* is its place there, from 1."""

    sign: str
    chain: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class TableDiff:
    """What differs: *policies* maps a chain to its policy before and after."""

    chains_added: tuple[str, ...] = ()
    chains_removed: tuple[str, ...] = ()
    lines: tuple[DiffLine, ...] = ()
    policies: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything differs that a packet can meet."""
        return bool(self.chains_added or self.chains_removed or self.lines or self.policies)

    @property
    def chains(self) -> frozenset[str]:
        """The chains in which something differs."""
        named = {line.chain for line in self.lines} | set(self.policies)
        return frozenset(named | {*self.chains_added, *self.chains_removed})


def render_table(table: Table) -> str:
    """Return the table as the text that `parse_table` reads."""
    lines: list[dict[str, Any]] = [
        {"engine": table.engine, "family": table.family, "table": table.name, "form": table.form}
    ]
    for chain in table.chains.values():
        lines.append(
            {
                "chain": chain.name,
                "hook": chain.hook,
                "priority": chain.priority,
                "type": chain.type,
                "policy": None if chain.policy is None else chain.policy.value,
            }
        )
        lines += [_rule_line(rule) for rule in chain.rules]
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def _rule_line(rule: Rule) -> dict[str, Any]:
    return {
        "rule": rule.number,
        "handle": rule.handle,
        "text": rule.text,
        "verdict": None if rule.verdict is None else rule.verdict.value,
        "target": rule.target,
    }


def parse_table(text: str) -> Table:
    """
    Return the table that *text* tells; no text is a table without chains.

    Errors: ValueError for what `render_table` did not write.
    """
    if not text:
        return NO_TABLE
    try:
        head, *rest = [json.loads(line) for line in text.splitlines()]
        chains: list[tuple[dict[str, Any], list[Rule]]] = []
        for line in rest:
            if "chain" in line:
                chains.append((line, []))
            else:
                chains[-1][1].append(_read_rule(line, head["form"]))
        made = {one["chain"]: _read_chain(one, rules) for one, rules in chains}
        return Table(head["engine"], head["family"], head["table"], head["form"], made)
    except (KeyError, TypeError, IndexError, RecursionError) as exc:
        raise ValueError(f"not a version of a table: {exc}") from exc


def _read_chain(line: Mapping[str, Any], rules: Sequence[Rule]) -> Chain:
    policy = None if line["policy"] is None else Verdict(line["policy"])
    return Chain(
        str(line["chain"]), tuple(rules), line["hook"], line["priority"], line["type"], policy
    )


def _read_rule(line: Mapping[str, Any], form: str) -> Rule:
    verdict = None if line["verdict"] is None else Verdict(line["verdict"])
    number, handle = int(line["rule"]), line["handle"]
    return Rule(number, str(line["text"]), form, verdict, line["target"], handle)


def diff_tables(before: Table, after: Table) -> TableDiff:
    """Return what differs in chains, rules and policies; handles are no difference."""
    added = [name for name in after.chains if name not in before.chains]
    removed = [name for name in before.chains if name not in after.chains]
    lines: list[DiffLine] = []
    policies: dict[str, tuple[str, str]] = {}
    for name in [*removed, *after.chains]:
        one, other = before.chains.get(name), after.chains.get(name)
        lines += _diff_chain(name, one.rules if one else (), other.rules if other else ())
        if one and other and one.policy is not other.policy:
            policies[name] = _policy(one), _policy(other)
        elif other and one is None and other.policy in {Verdict.DROP, Verdict.REJECT}:
            policies[name] = "", _policy(other)
    return TableDiff(tuple(added), tuple(removed), tuple(lines), policies)


def _policy(chain: Chain) -> str:
    return "" if chain.policy is None else chain.policy.value


def _diff_chain(name: str, before: Sequence[Rule], after: Sequence[Rule]) -> list[DiffLine]:
    start = 0
    while start < min(len(before), len(after)) and before[start].text == after[start].text:
        start += 1
    end = 0
    most = min(len(before), len(after)) - start
    while end < most and before[-1 - end].text == after[-1 - end].text:
        end += 1
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    if len(old) + len(new) > _ALIGNED_MAX:
        return [*_surplus("-", name, old, new), *_surplus("+", name, new, old)]
    texts = [rule.text for rule in old], [rule.text for rule in new]
    lines = []
    for what, i, j, k, m in SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        if what != "equal":
            lines += [DiffLine("-", name, rule.number, rule.text) for rule in old[i:j]]
            lines += [DiffLine("+", name, rule.number, rule.text) for rule in new[k:m]]
    return lines


def _surplus(sign: str, name: str, rules: Sequence[Rule], others: Sequence[Rule]) -> list[DiffLine]:
    left = Counter(rule.text for rule in others)
    lines = []
    for rule in rules:
        if left[rule.text] > 0:
            left[rule.text] -= 1
        else:
            lines.append(DiffLine(sign, name, rule.number, rule.text))
    return lines
