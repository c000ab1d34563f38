"""What a plan arms, and where, for rulesets that are given as values."""

from __future__ import annotations

import ipaddress
import re
import time

import pytest

from tracer.core.arming import ArmingPlan, LocalAddresses, plan_arming
from tracer.core.filters import Filter
from tracer.core.iptables import parse_iptables_save
from tracer.core.ruleset import Chain, Ruleset, Table

NAME = "nftrace_follow_17"
NONE = Ruleset()


def _plan(
    wanted: Filter, ruleset: Ruleset = NONE, *, both: bool = False, rate: int | None = None
) -> ArmingPlan:
    return plan_arming(
        wanted,
        ruleset,
        {},
        LocalAddresses(),
        table=NAME,
        both=both,
        rate=rate,
        devices=("eth0", "eth1"),
    )


def _to(address: str, **words: object) -> Filter:
    return Filter(dst=ipaddress.ip_network(address), **words)


def _with(
    hook: str, priority: int, *, family: str = "ip", name: str = "t", kind: str = "filter"
) -> Ruleset:
    chain = Chain("c", hook=hook, priority=priority, type=kind, devices=("eth0", "gone0"))
    return Ruleset({("nft", family, name): Table("nft", family, name, "nft", {"c": chain})})


def _legacy(*rules: str) -> Ruleset:
    text = "\n".join(("*nat", ":PREROUTING ACCEPT [0:0]", *rules, "COMMIT", ""))
    return Ruleset(
        {(t.engine, t.family, t.name): t for t in parse_iptables_save(text, "legacy", "ip")}
    )


def _priorities(plan: ArmingPlan) -> dict[str, int]:
    found = re.findall(r"chain (\S+) \{\n +type filter hook .*priority (-?\d+);", plan.script)
    return {name: int(priority) for name, priority in found}


@pytest.mark.parametrize(
    ("wanted", "families"),
    [
        (_to("10.0.0.1"), ["ip"]),
        (_to("fd00::1"), ["ip6"]),
        (Filter(proto=1), ["ip"]),
        (Filter(proto=58), ["ip6"]),
        (Filter(dport=22), ["ip", "ip6"]),
        (Filter(), ["ip", "ip6"]),
    ],
)
def test_there_is_a_table_for_each_family_that_the_filter_can_mean(
    wanted: Filter, families: list[str]
) -> None:
    """An address or an ICMP names the IP version; each table has an owner."""
    plan = _plan(wanted)

    assert [(family, NAME) for family in families] == list(plan.tables)
    assert plan.script.count("flags owner;") == len(families)


def test_a_filter_that_nothing_can_meet_arms_nothing() -> None:
    """A port of a protocol without ports, in one IP version or both."""
    plan = _plan(Filter(proto=47, dport=22))

    assert (plan.script, plan.tables) == ("", ())


@pytest.mark.parametrize(
    ("lowest", "expected"), [(0, -350), (-300, -350), (-349, -350), (-350, -351), (-400, -401)]
)
def test_our_chains_stand_in_front_of_everybody_elses(lowest: int, expected: int) -> None:
    """At -350, or before whoever stands there already, for each hook by itself."""
    for hook in ("prerouting", "output"):
        for family in ("ip", "inet"):
            found = _priorities(_plan(_to("10.0.0.1"), _with(hook, lowest, family=family)))

            assert found.pop(f"first_{hook}") == expected
            assert set(found.values()) == {-350}


def test_the_lowest_priority_there_is_cannot_be_preceded() -> None:
    """The user is told, and the script stays one that the kernel takes."""
    plan = _plan(_to("10.0.0.1"), _with("prerouting", -(2**31)))

    assert _priorities(plan)["first_prerouting"] == -(2**31)
    assert len(plan.notes) == 1
    assert "lowest priority" in plan.notes[0]


def test_another_followers_tables_are_not_preceded() -> None:
    """Two followers that went in front of each other would never come to rest."""
    other = _with("prerouting", -350, name="nftrace_follow_16")

    assert _priorities(_plan(_to("10.0.0.1"), other))["first_prerouting"] == -350


def test_connections_are_asked_only_where_somebody_translates() -> None:
    """A ct expression switches tracking on for its family, so there is none without NAT."""
    filtering, nat = _with("input", 0), _with("postrouting", 100, kind="nat")

    assert "ct " not in _plan(Filter(dport=22), filtering, both=True).script
    script = _plan(Filter(dport=22), nat, both=True).script
    four, six = script.split("table ip6")
    assert "ct direction" in four
    assert "ct " not in six


def test_learning_stands_behind_the_last_translation() -> None:
    """Behind every foreign nat chain, wherever it put itself."""
    found = _priorities(_plan(_to("10.0.0.1"), _with("prerouting", 50, kind="nat")))

    assert found["old_prerouting"] == -199
    assert found["translated_prerouting"] == 51
    assert found["translated_output"] == -99
    assert found["new_postrouting"] == found["new_input"] == 300


def test_bridges_and_ingress_are_armed_only_where_others_filter_there() -> None:
    """Their tables come with foreign chains, on devices that exist, and in front of them."""
    bridge = _plan(_to("10.0.0.1"), _with("forward", 0, family="bridge"))
    ingress = _plan(_to("10.0.0.1"), _with("ingress", -600, family="netdev"))
    inet = _plan(_to("10.0.0.1"), _with("ingress", 5, family="inet"))

    assert ("bridge", NAME) in bridge.tables
    assert ("netdev", NAME) in ingress.tables
    assert 'hook ingress device "eth0" priority -601' in ingress.script
    assert 'hook ingress device "eth0" priority -350' in inet.script
    assert "gone0" not in ingress.script + inet.script


def test_a_rate_is_one_limit_with_a_burst_and_a_counter_in_each_table() -> None:
    """The burst is written out, as nft's own is five packets."""
    plan = _plan(Filter(dport=22), rate=97)

    assert plan.script.count("limit pace { rate 97/second burst 97 packets }") == 2
    assert plan.over_limit_counters == (("ip", NAME, "over_limit"), ("ip6", NAME, "over_limit"))
    assert _plan(Filter(dport=22)).over_limit_counters == ()


def test_no_verdict_of_ours_is_anything_but_accept() -> None:
    """Whatever is asked for, a packet's fate stays what it was."""
    rules = "-A PREROUTING -d 9.9.9.9/32 -p tcp -j DNAT --to-destination 10.0.0.1"
    script = _plan(_to("10.0.0.1", dport=22), _legacy(rules), both=True, rate=5).script

    assert not re.search(r"\b(drop|reject|queue|stolen|notrack|mark)\b", script)
    assert set(re.findall(r"policy (\w+)", script)) == {"accept"}


def test_many_unmapped_rules_make_few_notes() -> None:
    """Eight rules are named and the rest counted."""
    plan = _plan(
        _to("10.0.0.1"), _legacy(*["-A PREROUTING -j DNAT --to-destination 10.0.0.1"] * 19)
    )

    assert len(plan.notes) == 9
    assert plan.notes[-1].startswith("NAT in 11 more rules without address and port")


def test_more_ranges_than_have_place_are_told() -> None:
    """What needs a rule of its own is bounded, and so is the packets' way through them."""
    rules = [
        f"-A PREROUTING -d 9.{n >> 8}.{n & 255}.0/24 -p tcp -m tcp --dport 1:60000"
        " -j DNAT --to-destination 10.0.0.1"
        for n in range(311)
    ]

    plan = _plan(_to("10.0.0.1"), _legacy(*rules))

    assert any("ranges" in note for note in plan.notes)


def _kube_proxy(services: int) -> list[str]:
    lines = [":KUBE-SERVICES - [0:0]"]
    rules = ['-A PREROUTING -m comment --comment "service portals" -j KUBE-SERVICES']
    for n in range(services):
        service, place = f"KUBE-SVC-{n:016X}", f"{n >> 8}.{n & 255}"
        comment = f'-m comment --comment "ns/service-{n}:http"'
        lines.append(f":{service} - [0:0]")
        rules.append(
            f"-A KUBE-SERVICES -d 10.96.{place}/32 -p tcp {comment} -m tcp --dport 80 -j {service}"
        )
        for end in (1, 2):
            chain, pod = f"KUBE-SEP-{n:014X}{end:02X}", f"10.{128 + end}.{place}"
            lines.append(f":{chain} - [0:0]")
            rules += [
                f"-A {service} {comment} -m statistic --mode random --probability 0.5 -j {chain}",
                f"-A {chain} -s {pod}/32 {comment} -j MARK --set-xmark 0x4000/0x4000",
                f"-A {chain} -p tcp {comment} -m tcp -j DNAT --to-destination {pod}:8080",
            ]
    return [*lines, *rules]


def test_twenty_thousand_rules_are_planned_within_a_second() -> None:
    """The most that a filter can concern of a kube-proxy ruleset, and a single endpoint."""
    lines = _kube_proxy(2857)
    ruleset = _legacy(*lines)
    assert sum(line.startswith("-A") for line in lines) == 20_000

    started = time.process_time()
    one = _plan(_to("10.129.3.7", dport=8080), ruleset, both=True)
    between = time.process_time()
    every = _plan(Filter(dport=8080), ruleset)
    ended = time.process_time()

    assert between - started < 1
    assert ended - between < 1
    assert "10.96.3.7 . 6 . 80" in one.script
    assert every.script.count(" . 6 . 80") == 2857
