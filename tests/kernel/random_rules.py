"""
Rulesets that nobody wrote: made by a seed, with every rule countable by its own tool.

A ruleset is chains of rules of a few matches and all verdicts: jumps and gotos always lead
to a later chain, so that none loops. Rendered for iptables-restore or nft, and read back
as packets by (table, chain, rule number).
"""

from __future__ import annotations

import random
import re
from collections import Counter

from tests.kernel import nets

__all__ = ["DPORTS", "Key", "counted", "make_iptables", "make_nftables"]

#: The packets that matches tell apart are those to these ports.
DPORTS = (7001, 7002, 7003, 7004, 7005)

#: (table, chain, number of the rule, from 1)
Key = tuple[str, str, int]

_IPTABLES_HOOKS = {
    "raw": ("PREROUTING",),
    "mangle": ("PREROUTING", "FORWARD", "POSTROUTING"),
    "filter": ("FORWARD",),
}
_SAVED = re.compile(r"^\[(\d+):\d+\] -A (\S+)", re.MULTILINE)
_VERDICTS = ("accept", "drop", "return", "jump", "goto", "mark", "none")
#: Packets shall get far, most of the time.
_WEIGHTS = (3, 1, 4, 7, 4, 3, 5)


def _choose(dice: random.Random, later: list[str]) -> tuple[str, str]:
    """Return a verdict, and the chain it leads to or an empty string."""
    (verdict,) = dice.choices(_VERDICTS, _WEIGHTS)
    if verdict not in {"jump", "goto"}:
        return verdict, ""
    return (verdict, dice.choice(later)) if later else ("none", "")


def make_iptables(seed: int) -> str:
    """Return a ruleset for iptables-restore."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    lines = []
    for table, bases in _IPTABLES_HOOKS.items():
        users = [f"{table}:u.{number}-{seed}" for number in range(dice.randint(1, 4))]
        lines += [f"*{table}"]
        lines += [f":{base} {dice.choice(('ACCEPT',) * 7 + ('DROP',))} [0:0]" for base in bases]
        lines += [f":{user} - [0:0]" for user in users]
        for chain, later in _chains(bases, users):
            lines += [
                f"-A {chain}{_iptables_match(dice)}{_iptables_target(dice, table, later)}"
                for _ in range(dice.randint(0, 5))
            ]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _chains(bases: tuple[str, ...], users: list[str]) -> list[tuple[str, list[str]]]:
    """Return each chain, with the chains that it may lead to."""
    own = [(user, users[place + 1 :]) for place, user in enumerate(users)]
    return [*((base, users) for base in bases), *own]


def _iptables_match(dice: random.Random) -> str:
    first, last = sorted(dice.choices(DPORTS, k=2))
    return dice.choice(
        (
            *("", "", " -p udp", f" -p udp -m udp --dport {first}:{last}"),
            *(" -m mark --mark 0x1", " -m mark ! --mark 0x1", " -m ttl --ttl-gt 1"),
            f" -p udp -m udp ! --dport {first}",
            f" -p udp -m multiport --dports {first},{last}",
        )
    )


def _iptables_target(dice: random.Random, table: str, later: list[str]) -> str:
    verdict, target = _choose(dice, later)
    mark = f" -j MARK --set-xmark 0x{dice.randint(0, 1)}/0xffffffff" if table == "mangle" else ""
    return {
        "accept": " -j ACCEPT",
        "drop": " -j DROP",
        "return": " -j RETURN",
        "jump": f" -j {target}",
        "goto": f" -g {target}",
        "mark": mark,
        "none": "",
    }[verdict]


def make_nftables(seed: int) -> str:
    """Return a ruleset for nft -f, in two tables of families ip and inet."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    lines = ["flush ruleset"]
    for table, hooks in (
        ("ip one", ("prerouting", "forward")),
        ("inet two", ("prerouting", "forward", "postrouting")),
    ):
        bases = tuple(f"{hook}{number}" for hook in hooks for number in range(dice.randint(1, 2)))
        users = [f"u{number}" for number in range(dice.randint(1, 4))]
        lines.append(f"table {table} {{")
        lines.append(f"set ports {{ type inet_service; elements = {{ {dice.choice(DPORTS)} }}; }}")
        # A chain is declared before it is led to: the last ones first.
        for chain, later in reversed(_chains(bases, users)):
            lines.append(f"chain {chain} {{")
            if chain in bases:
                policy = dice.choice(("accept",) * 7 + ("drop",))
                priority = dice.randint(-200, 200)
                hook = f"type filter hook {chain[:-1]} priority {priority}; policy {policy};"
                lines.append(hook)
            lines += [_nft_rule(dice, later) for _ in range(dice.randint(0, 5))]
            lines.append("}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _nft_rule(dice: random.Random, later: list[str]) -> str:
    first, last = dice.sample(DPORTS, 2)
    verdict, target = _choose(dice, later)
    match = dice.choice(
        (
            *("", "", "udp dport @ports ", "udp dport != @ports ", "ip ttl > 1 "),
            *(f"udp dport {{ {first}, {last} }} ", f"udp dport != {first} "),
            *("meta mark 1 ", "meta mark != 1 ", "meta l4proto udp "),
        )
    )
    said = {
        "accept": "accept",
        "drop": "drop",
        "return": "return",
        "jump": f"jump {target}",
        "goto": f"goto {target}",
        "mark": f"meta mark set {dice.randint(0, 1)}",
        "none": "",
    }[verdict]
    if verdict == "accept" and target == "" and later and dice.random() < 0.5:
        ports = f"udp dport {{ {first}, {last} }} counter"
        return f"{ports} udp dport vmap {{ {first} : accept, {last} : jump {dice.choice(later)} }}"
    return f"{match}counter {said}"


def counted(ns: str, backend: str) -> Counter[Key]:
    """Return the packets of each rule that has some, as the user's own tool tells."""
    if backend == "nftables":
        return _counted_by_nft(ns)
    found: Counter[Key] = Counter()
    for table in _IPTABLES_HOOKS:
        text = nets.ip_netns_exec(ns, f"iptables-{backend}-save", "-c", "-t", table).stdout
        numbers: Counter[str] = Counter()
        for packets, chain in (
            m.groups() for line in text.split("\n") if (m := _SAVED.match(line))
        ):
            numbers[chain] += 1
            if int(packets):
                found[table, chain, numbers[chain]] = int(packets)
    return found


def _counted_by_nft(ns: str) -> Counter[Key]:
    # Not as JSON: nft 1.0.6 prints none for some maps.
    table, chain, number = "", "", 0
    found: Counter[Key] = Counter()
    for line in nets.ip_netns_exec(ns, "nft", "-a", "list", "ruleset").stdout.split("\n"):
        if begun := re.match(r"table \w+ (\S+) {", line):
            table = begun[1]
        elif begun := re.match(r"\tchain (\S+) {", line):
            chain, number = begun[1], 0
        elif line.startswith("\t\t") and " # handle " in line:
            number += 1
            packets = re.search(r"counter packets (\d+)", line)
            if packets and int(packets[1]):
                found[table, chain, number] = int(packets[1])
    return found
