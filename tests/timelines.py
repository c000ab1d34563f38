"""Evidence for timelines in tests: small rulesets, drops and changes, in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracer.core.journey import Verdict
from tracer.core.log_rows import Change
from tracer.core.ruleset import Chain, Rule, Table
from tracer.core.timeline_events import DropGroup, Evidence, FlowDrops, Place
from tracer.core.timeline_rules import parse_table, render_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

S = 1_000_000_000
CHAIN = "C"
_TARGETS = {"DROP": Verdict.DROP, "RETURN": Verdict.RETURN, "ACCEPT": Verdict.ACCEPT}


def _rule(number: int, text: str) -> Rule:
    target = text.rsplit(" ", 1)[1]
    verdict = _TARGETS.get(target, Verdict.JUMP)
    jumped = target if verdict is Verdict.JUMP else None
    return Rule(number, text, "iptables", verdict, jumped)


def table(chains: Mapping[str, tuple[list[str], str | None, str | None]]) -> str:
    """Return a version of a legacy table: texts, hook and policy by chain."""
    made = {
        name: Chain(
            name,
            tuple(_rule(number, text) for number, text in enumerate(texts, start=1)),
            hook,
            policy=None if policy is None else Verdict(policy),
        )
        for name, (texts, hook, policy) in chains.items()
    }
    return render_table(Table("legacy", "ip", "mangle", "iptables", made))


JUMP = "-A PREROUTING -d 172.17.21.105/32 -j C"
BEFORE = table({"PREROUTING": ([], "prerouting", "accept")})
INSTALLED = table(
    {
        "PREROUTING": ([JUMP], "prerouting", "accept"),
        CHAIN: (
            [
                "-A C -m state --state RELATED,ESTABLISHED -j ACCEPT",
                "-A C -p tcp -m tcp --dport 300:65535 -j RETURN",
                "-A C -p udp -m udp --dport 300:65535 -j RETURN",
                "-A C -p icmp -m icmp --icmp-type 8/0 -j RETURN",
                "-A C -j DROP",
            ],
            None,
            None,
        ),
    }
)
FIXED = table(
    {
        "PREROUTING": ([JUMP], "prerouting", "accept"),
        CHAIN: (
            [
                "-A C -m state --state RELATED,ESTABLISHED -j ACCEPT",
                "-A C -p tcp -m tcp --dport 22 -j RETURN",
                "-A C -j DROP",
            ],
            None,
            None,
        ),
    }
)


class Story:
    """Makers of changes."""

    @staticmethod
    def change(at: float, what: str, subject: str, before: str, after: str) -> Change:
        """Make a change of the network."""
        return Change(int(at * S), "vr2", what, "changed", subject, before, after)


def ruleset(at: float, before: str, after: str, action: str = "changed", pid: int = 0) -> Change:
    """Make a change of the table: its texts stand for the names that they are kept under."""
    process = "iptables-restore" if pid else ""
    return Change(
        int(at * S),
        "vr2",
        "ruleset",
        action,
        "ip mangle",
        before,
        after,
        "",
        "legacy",
        pid,
        process,
    )


def route(at: float, subject: str, netns: str = "vr2") -> Change:
    """Make a route that came."""
    return Change(int(at * S), netns, "route", "new", subject, "", "via 10.1.1.69 dev eth0")


def drops(  # noqa: PLR0913 - a place has as many
    first: float,
    last: float,
    packets: int,
    *,
    rule: int = 5,
    kind: str = "rule",
    hook: str = "prerouting",
    chain: str = CHAIN,
    reason: str = "NETFILTER_DROP",
) -> DropGroup:
    """Make drops of one place between two times."""
    named: dict[str, Any] = {"engine": "legacy", "family": "ip", "table": "mangle"}
    if kind == "other":
        named, hook, chain = {}, "", ""
    place = Place(
        "vr2", kind, hook, chain=chain if kind != "table" else "", rule=rule, reason=reason, **named
    )
    return DropGroup(
        place, packets, packets, int(first * S), int(last * S), {int(first) // 10: packets}
    )


def story(changes: Sequence[Change], groups: Sequence[DropGroup], *, seen: float = 100) -> Evidence:
    """Return evidence of the first *seen* seconds, in buckets of ten."""
    flows = [
        FlowDrops(
            one.place,
            "183.62.15.118",
            "172.17.21.105",
            22,
            "tcp",
            one.packets,
            one.first_ns,
            one.last_ns,
        )
        for one in groups
    ]
    until = int(max([seen, *(one.last_ns / S for one in groups)]) * S)
    return Evidence(0, until, 10 * S, int(seen * S), groups, flows, changes, parse_table)
