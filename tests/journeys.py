"""Journeys as values for tests: the two-router case, and small ones of other kinds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.core.journey import Ending, EndingKind, Journey, Packet, Step, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.core.journey import Change

#: 2026-11-23T17:22:14.030955Z
START_NS = 1_795_454_534_030_955_000
PUBLIC = "-d 61.146.164.120/32"
FILTER_CHAIN = "FIREWALL_172.17.21.105"
SSH_RULE = (
    "-d 172.17.21.105/32 -i eth2 -o eth0 -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT"
)
DNAT_RULE = (
    f"{PUBLIC} -i eth2 -p tcp -m tcp --dport 10174 -j DNAT --to-destination 172.17.21.105:22"
)
DNAT: Mapping[str, Change] = {
    "dst": ("61.146.164.120", "172.17.21.105"),
    "dport": (10174, 22),
}


def step(
    place: str,
    rule: int | None,
    text: str | None,
    verdict: Verdict,
    changes: Mapping[str, Change] | None = None,
) -> Step:
    """Make a legacy step; *place* is `hook table chain`, no *rule* is the policy."""
    hook, table, chain = place.split(" ", 2)
    return Step(
        hook=hook,
        engine="legacy",
        family="ip",
        table=table,
        chain=chain,
        kind="policy" if rule is None else "rule",
        rule=rule,
        handle=None,
        text=None if text is None else f"-A {chain} {text}",
        form="iptables",
        verdict=verdict,
        target=text.rpartition(" ")[2] if text and verdict is Verdict.JUMP else None,
        changes=changes or {},
    )


def syn(dst: str, dport: int, *, sport: int = 22449, ttl: int = 63) -> Packet:
    """Make the SYN of the case."""
    return Packet(
        family="ipv4",
        proto="tcp",
        src="183.62.15.118",
        dst=dst,
        sport=sport,
        dport=dport,
        length=52,
        ttl=ttl,
        ip_id=48368,
        tcp_flags="S",
        tcp_seq=1049927226,
    )


def dropped_by(last: Step, reason: str | None = "NETFILTER_DROP") -> Ending:
    """Make the ending of a journey that *last* ended."""
    return Ending(
        kind=EndingKind.DROPPED,
        hook=last.hook,
        engine=last.engine,
        family=last.family,
        table=last.table,
        chain=last.chain,
        rule=last.rule,
        handle=last.handle,
        text=last.text,
        reason=reason,
    )


def article(after_ns: int = 0, *, sport: int = 22449) -> tuple[Journey, Journey]:
    """Make the journeys of one SYN through vr1, which lets it go, and vr2, which drops it."""
    first = (
        step("prerouting mangle PREROUTING", 1, f"{PUBLIC} -j VPN_61.146.164.120", Verdict.JUMP),
        step("prerouting mangle VPN_61.146.164.120", 2, "-j RETURN", Verdict.RETURN),
        step(
            "prerouting mangle PREROUTING", 2, f"{PUBLIC} -j FIREWALL_61.146.164.120", Verdict.JUMP
        ),
        step("prerouting mangle FIREWALL_61.146.164.120", 2, "-j ACCEPT", Verdict.ACCEPT),
        step("prerouting nat PREROUTING", 1, DNAT_RULE, Verdict.ACCEPT, DNAT),
        step("forward mangle FORWARD", None, None, Verdict.ACCEPT),
        step("forward filter FORWARD", 10, SSH_RULE, Verdict.ACCEPT),
        step("postrouting mangle POSTROUTING", None, None, Verdict.ACCEPT),
    )
    second = (
        step(
            "prerouting mangle PREROUTING",
            1,
            f"-d 172.17.21.105/32 -j {FILTER_CHAIN}",
            Verdict.JUMP,
        ),
        step(f"prerouting mangle {FILTER_CHAIN}", 5, "-j DROP", Verdict.DROP),
    )
    sent = Ending(EndingKind.SENT, device="eth0")
    start = START_NS + after_ns
    on_vr1 = Journey(
        id=f"{start:x}-1",
        fingerprint=f"{start:x}",
        host="router",
        netns="vr1",
        start_ns=start,
        packet=syn("61.146.164.120", 10174, sport=sport),
        in_device="eth2",
        out_device="eth0",
        steps=first,
        ending=sent,
    )
    on_vr2 = replace(
        on_vr1,
        id=f"{start:x}-2",
        netns="vr2",
        start_ns=start + 65_000,
        packet=syn("172.17.21.105", 22, sport=sport, ttl=62),
        out_device=None,
        steps=second,
        ending=dropped_by(second[-1]),
    )
    return on_vr1, on_vr2


def lone(packet: Packet, *steps: Step, ending: Ending | None = None) -> Journey:
    """Make a journey of *packet* in the namespace vr2 alone."""
    return replace(
        article()[1],
        packet=packet,
        steps=steps,
        ending=ending or (dropped_by(steps[-1]) if steps else Ending(EndingKind.UNKNOWN)),
    )
