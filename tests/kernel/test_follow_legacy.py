"""Legacy tables: each step is the rule that acted, though the kernel's words for it lie."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.follow_helper import Way

SENDER, BOX = "sender", "box"
ADDRESS, FROM = "10.1.0.2", "10.1.0.1"
COUNT = 7
#: What becomes of packets behind their last rule is not asked here.
UDP = ("--proto", "udp", "--src", FROM, "--ends", "off")
TCP = ("--proto", "tcp", "--src", FROM, "--ends", "off")


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a host with a sender beside it, and no rules yet."""
    nets.require("legacy_tables")
    nets.veth(
        *(netns(SENDER), "eth0", (f"{FROM}/24", "fd01::1/64")),
        *(netns(BOX), "eth0", (f"{ADDRESS}/24", "fd01::2/64")),
    )
    return BOX


# By port: a chain, and what a packet in it must be told to have done, in filter INPUT on.
CHAINS = """\
*filter
:INPUT DROP [0:0]
:ACC_LAST - [0:0]
:ACC_MID - [0:0]
:DROP_LAST - [0:0]
:DROP_MID - [0:0]
:RET_LAST - [0:0]
:RET_MID - [0:0]
:END - [0:0]
:EMPTY - [0:0]
:GONE - [0:0]
:GOAL - [0:0]
:CALLER - [0:0]
:J1 - [0:0]
:J2 - [0:0]
:J3 - [0:0]
:TWICE - [0:0]
-A INPUT -p udp -m udp --dport 101 -j ACC_LAST
-A INPUT -p udp -m udp --dport 102 -j ACC_MID
-A INPUT -p udp -m udp --dport 103 -j DROP_LAST
-A INPUT -p udp -m udp --dport 104 -j DROP_MID
-A INPUT -p udp -m udp --dport 105 -j RET_LAST
-A INPUT -p udp -m udp --dport 106 -j RET_MID
-A INPUT -p udp -m udp --dport 107 -j END
-A INPUT -p udp -m udp --dport 108 -j EMPTY
-A INPUT -p udp -m udp --dport 109 -g GOAL
-A INPUT -p udp -m udp --dport 110 -j CALLER
-A INPUT -p udp -m udp --dport 111 -j J1
-A INPUT -p udp -m udp --dport 112 -j TWICE
-A INPUT -p udp -m udp --dport 113 -j REJECT --reject-with icmp-port-unreachable
-A ACC_LAST -p tcp -j DROP
-A ACC_LAST -j ACCEPT
-A ACC_MID -j ACCEPT
-A ACC_MID -j DROP
-A DROP_LAST -p tcp -j ACCEPT
-A DROP_LAST -j DROP
-A DROP_MID -j DROP
-A DROP_MID -j ACCEPT
-A RET_LAST -p tcp -j DROP
-A RET_LAST -j RETURN
-A RET_MID -j RETURN
-A RET_MID -j DROP
-A END -p tcp -j DROP
-A GOAL -p udp
-A CALLER -g GOAL
-A CALLER -j ACCEPT
-A J1 -p tcp -j ACCEPT
-A J1 -j J2
-A J2 -j J3
-A J3 -p udp -m udp --dport 111
-A J3 -p udp -m udp --dport 111 -j DROP
-A TWICE -p udp
-A TWICE -p udp
-A TWICE -p udp -j RETURN
-A TWICE -p udp -j RETURN
COMMIT
"""
POLICY = ("filter", "INPUT", None, "drop")
WAYS: dict[int, Way] = {
    101: (("filter", "INPUT", 1, "jump"), ("filter", "ACC_LAST", 2, "accept")),
    102: (("filter", "INPUT", 2, "jump"), ("filter", "ACC_MID", 1, "accept")),
    103: (("filter", "INPUT", 3, "jump"), ("filter", "DROP_LAST", 2, "drop")),
    104: (("filter", "INPUT", 4, "jump"), ("filter", "DROP_MID", 1, "drop")),
    105: (("filter", "INPUT", 5, "jump"), ("filter", "RET_LAST", 2, "return"), POLICY),
    106: (("filter", "INPUT", 6, "jump"), ("filter", "RET_MID", 1, "return"), POLICY),
    107: (("filter", "INPUT", 7, "jump"), POLICY),
    108: (("filter", "INPUT", 8, "jump"), POLICY),
    109: (("filter", "INPUT", 9, "goto"), ("filter", "GOAL", 1, "continue"), POLICY),
    110: (
        ("filter", "INPUT", 10, "jump"),
        ("filter", "CALLER", 1, "goto"),
        ("filter", "GOAL", 1, "continue"),
        POLICY,
    ),
    111: (
        ("filter", "INPUT", 11, "jump"),
        ("filter", "J1", 2, "jump"),
        ("filter", "J2", 1, "jump"),
        ("filter", "J3", 1, "continue"),
        ("filter", "J3", 2, "drop"),
    ),
    112: (
        ("filter", "INPUT", 12, "jump"),
        ("filter", "TWICE", 1, "continue"),
        ("filter", "TWICE", 2, "continue"),
        ("filter", "TWICE", 3, "return"),
        POLICY,
    ),
    113: (("filter", "INPUT", 13, "reject"),),
    114: (POLICY,),
}


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_each_way_through_chains_is_told_by_the_rules_that_acted(box: str, backend: str) -> None:
    """Explicit unconditional rules are rules, ends of chains no steps, policies policies."""
    nets.load_rules(box, backend, CHAINS)

    with follow(box, *UDP) as run:
        for port in WAYS:
            nets.send_udp(SENDER, ADDRESS, port, COUNT)
        told = run.finish(COUNT * len(WAYS))

    assert Counter(dict.fromkeys(WAYS.values(), COUNT)) == told.ways()
    for port, way in WAYS.items():
        journeys = told.to_port(port)
        assert COUNT == len(journeys)
        kind = {"drop": "dropped", "reject": "rejected", "accept": "unknown"}[way[-1][3]]
        assert {kind} == {journey["ending"]["kind"] for journey in journeys}
    assert COUNT * sum(len([s for s in w if s != POLICY]) for w in WAYS.values()) == check_texts(
        told, box
    )
    assert 0 == told.summary["lost"]


BASES = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j DROP
-A PREROUTING -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
-A PREROUTING -j ACCEPT
-A PREROUTING -j DROP
-A INPUT -j RETURN
-A INPUT -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 201 -j DROP
-A INPUT -p udp -m udp --dport 203 -j ACCEPT
-A INPUT -j RETURN
COMMIT
*security
:INPUT ACCEPT [0:0]
-A INPUT -p tcp -j ACCEPT
-A INPUT -j DROP
COMMIT
"""
BEFORE: Way = (
    ("raw", "PREROUTING", 2, "accept"),
    ("mangle", "PREROUTING", 1, "accept"),
    ("mangle", "INPUT", 1, "return"),
    ("mangle", "INPUT", None, "accept"),
)


def test_explicit_rules_of_base_chains_are_not_policies(box: str) -> None:
    """In a base chain, too, `policy:N` is rule N unless no rule has this number."""
    nets.load_rules(box, "legacy", BASES)

    with follow(box, *UDP) as run:
        for port in (201, 202, 203):
            nets.send_udp(SENDER, ADDRESS, port, COUNT)
        told = run.finish(3 * COUNT)

    through = (
        *BEFORE,
        ("filter", "INPUT", 3, "return"),
        ("filter", "INPUT", None, "accept"),
        ("security", "INPUT", 2, "drop"),
    )
    accepted = (*BEFORE, ("filter", "INPUT", 2, "accept"), ("security", "INPUT", 2, "drop"))
    dropped = (*BEFORE, ("filter", "INPUT", 1, "drop"))
    assert {through: COUNT, accepted: COUNT, dropped: COUNT} == told.ways()
    check_texts(told, box)


STRANGE = r"""*filter
:INPUT ACCEPT [0:0]
:a:b.c-d - [0:0]
:rule:1 - [0:0]
:policy:2: - [0:0]
:f2b-sshd,x=y%z - [0:0]
:drøp - [0:0]
-A INPUT -p udp -m udp --dport 101 -m comment --comment "say \"no\" -j ACCEPT" -j a:b.c-d
-A INPUT -p udp -m udp --dport 102 -m comment --comment "back\\slash 'n' quote" -j rule:1
-A INPUT -p udp -m udp --dport 103 -m comment --comment "größer ✗ 日本" -g policy:2:
-A INPUT -p udp -m udp --dport 104 -m comment --comment "-j DROP" -j f2b-sshd,x=y%z
-A INPUT -p udp -m udp --dport 105 -m comment --comment "COMMIT" -j drøp
-A a:b.c-d -m comment --comment "ends in a backslash \\" -j DROP
-A rule:1 -p udp -m comment --comment "TRACE: filter:INPUT:rule:9 " -j DROP
-A policy:2: -j DROP
-A f2b-sshd,x=y%z -m comment --comment ":" -j REJECT --reject-with icmp-admin-prohibited
-A drøp -j DROP
COMMIT
"""
STRANGE_WAYS: Counter[Way] = Counter(
    {
        (("filter", "INPUT", 1, "jump"), ("filter", "a:b.c-d", 1, "drop")): COUNT,
        (("filter", "INPUT", 2, "jump"), ("filter", "rule:1", 1, "drop")): COUNT,
        (("filter", "INPUT", 3, "goto"), ("filter", "policy:2:", 1, "drop")): COUNT,
        (("filter", "INPUT", 4, "jump"), ("filter", "f2b-sshd,x=y%z", 1, "reject")): COUNT,
        (("filter", "INPUT", 5, "jump"), ("filter", "drøp", 1, "drop")): COUNT,
    }
)


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_strange_names_and_comments_are_told_as_they_are(box: str, backend: str) -> None:
    """Colons in names, and quotes, backslashes and any language in comments, mislead nobody."""
    nets.load_rules(box, backend, STRANGE)

    with follow(box, *UDP) as run:
        for port in range(101, 106):
            nets.send_udp(SENDER, ADDRESS, port, COUNT)
        told = run.finish(5 * COUNT)

    assert STRANGE_WAYS == told.ways()
    assert 10 * COUNT == check_texts(told, box)


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_the_right_one_of_five_thousand_rules_is_named(box: str, backend: str) -> None:
    """In a chain of 5,000 rules each packet's is named by its number and its text."""
    lines = [f"-A MANY -p udp -m udp --dport {1000 + n} -j DROP" for n in range(1, 5001)]
    head = ["*filter", ":INPUT ACCEPT [0:0]", ":MANY - [0:0]", "-A INPUT -j MANY"]
    nets.load_rules(box, backend, "\n".join([*head, *lines, "COMMIT", ""]))
    numbers = (1, 2, 1777, 4999, 5000)

    with follow(box, *UDP) as run:
        for number in numbers:
            nets.send_udp(SENDER, ADDRESS, 1000 + number, COUNT)
        nets.send_udp(SENDER, ADDRESS, 999, COUNT)
        told = run.finish(6 * COUNT, wait_s=10)

    jump = ("filter", "INPUT", 1, "jump")
    expected: Counter[Way] = Counter(
        {(jump, ("filter", "MANY", n, "drop")): COUNT for n in numbers}
    )
    expected[jump, ("filter", "INPUT", None, "accept")] = COUNT
    assert expected == told.ways()
    assert 11 * COUNT == check_texts(told, box)


MARKS = """\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:MARKED - [0:0]
-A PREROUTING -p udp -m udp --dport 101 -j MARK --set-xmark 0x5/0xffffffff
-A PREROUTING -p udp -m udp --dport 101 -j CONNMARK --save-mark
-A PREROUTING -p udp -m udp --dport 101 -j MARK --set-xmark 0x0/0xffffffff
-A PREROUTING -p udp -m udp --dport 101 -j CONNMARK --restore-mark
-A PREROUTING -p udp -m udp --dport 102 -j MARKED
-A MARKED -j MARK --set-xmark 0x10/0xffffffff
-A MARKED -j MARK --set-xmark 0x20/0x20
-A INPUT -p udp -m udp --dport 102 -j TTL --ttl-set 9
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -p udp -m mark --mark 0x5 -j DROP
-A INPUT -p udp -m mark --mark 0x30 -m ttl --ttl-eq 9 -j DROP
COMMIT
"""


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_marks_and_ttl_stand_at_the_rule_that_set_them(box: str, backend: str) -> None:
    """Either engine's marks are told as [before, after] on the step that changed them."""
    nets.load_rules(box, backend, MARKS)

    with follow(box, *UDP) as run:
        nets.send_udp(SENDER, ADDRESS, 101, COUNT)
        nets.send_udp(SENDER, ADDRESS, 102, COUNT)
        told = run.finish(2 * COUNT)

    changes = Counter(
        (step["chain"], step["rule"], name, *pair)
        for journey in told.journeys
        for step in journey["steps"]
        for name, pair in step["changes"].items()
    )
    assert {
        ("PREROUTING", 1, "mark", 0, 5): COUNT,
        ("PREROUTING", 3, "mark", 5, 0): COUNT,
        ("PREROUTING", 4, "mark", 0, 5): COUNT,
        ("MARKED", 1, "mark", 0, 16): COUNT,
        ("MARKED", 2, "mark", 16, 48): COUNT,
        ("INPUT", 1, "ttl", 64, 9): COUNT,
    } == changes
    assert {"dropped"} == {journey["ending"]["kind"] for journey in told.journeys}
    check_texts(told, box)


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rejects_are_no_drops_and_a_queue_without_listener_is(box: str, backend: str) -> None:
    """REJECT is told from DROP, by RST too; NFQUEUE with nobody there drops and says why."""
    nets.load_rules(
        box,
        backend,
        "*filter\n:INPUT ACCEPT [0:0]\n"
        "-A INPUT -p tcp -m tcp --dport 101 -j REJECT --reject-with tcp-reset\n"
        "-A INPUT -p tcp -m tcp --dport 102 -j DROP\n"
        "-A INPUT -p tcp -m tcp --dport 103 -j NFQUEUE --queue-num 5\n"
        "-A INPUT -p tcp -m tcp --dport 104 -j NFQUEUE --queue-num 6 --queue-bypass\n"
        "-A INPUT -p tcp -m tcp --dport 104 -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n",
    )

    with follow(box, *TCP) as run:
        for port in range(101, 105):
            nets.send_tcp_syn(SENDER, ADDRESS, port, COUNT)
        told = run.finish(4 * COUNT)

    last = Counter(
        (j["packet"]["dport"], j["ending"]["kind"], j["ending"]["rule"], j["ending"]["reason"])
        for j in told.journeys
    )
    assert {
        (101, "rejected", 1, None): COUNT,
        (102, "dropped", 2, None): COUNT,
        (103, "dropped", 3, "QUEUE_NO_LISTENER"): COUNT,
        # nf_queue() goes on behind the whole chain where nobody listens and bypass is set.
        (104, "unknown", None, "not observed"): COUNT,
    } == last
    assert {("filter", "INPUT", 4, "queue")} == {
        way[-1] for way in told.ways() if way[-1][2] not in (1, 2, 3)
    }
    check_texts(told, box)
