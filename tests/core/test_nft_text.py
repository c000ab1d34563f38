"""Laws of reading nft's listing; the listings are nft 1.0.6's, see rulesets/record.sh."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.journey import Verdict
from tracer.core.nft_text import parse_nft
from tracer.core.nft_verdict import find_nft_verdict
from tracer.core.ruleset import Chain, Rule, Table
from tracer.errors import MalformedMessageError

RULESETS = Path(__file__).parent / "rulesets"
LISTINGS = sorted(path.name for path in RULESETS.glob("*.nft-list.txt"))


def read(name: str) -> str:
    """Give a recorded listing."""
    return (RULESETS / name).read_text(encoding="utf-8")


def chain_of(text: str, *, family: str = "inet") -> Chain:
    """Parse *text*, the lines of a chain c, and return that chain."""
    (table,) = parse_nft(
        f"table {family} t {{ # handle 1\n\tchain c {{ # handle 1\n{text}\n\t}}\n}}\n"
    )
    return table.chains["c"]


def handles(chain: Chain) -> list[tuple[int | None, str]]:
    """Give each rule's handle and text."""
    return [(rule.handle, rule.text) for rule in chain.rules]


@pytest.mark.parametrize("name", LISTINGS)
def test_every_line_with_a_rule_is_told_with_its_handle(name: str) -> None:
    """Of a real listing, each two-tab line with a handle is a rule, in order."""
    lines = [line for line in read(name).split("\n") if line.startswith("\t\t")]
    expected = [
        (int(handle), text.strip())
        for text, found, handle in (line.rpartition(" # handle ") for line in lines)
        if found
    ]

    tables = parse_nft(read(name))

    assert expected == [
        pair for table in tables for chain in table.chains.values() for pair in handles(chain)
    ]
    assert expected


def test_the_killing_rule_of_the_article_is_found_by_its_handle() -> None:
    """The article's drop is rule 5 of its chain in mangle, reached by a jump."""
    tables = {table.name: table for table in parse_nft(read("article-vr2.nft-list.txt"))}

    jump = tables["mangle"].chains["PREROUTING"].rules[0]
    killer = tables["mangle"].chains["FIREWALL_172.17.21.105"].rules[4]

    assert (Verdict.JUMP, "FIREWALL_172.17.21.105") == (jump.verdict, jump.target)
    assert (5, Verdict.DROP, "counter drop") == (killer.number, killer.verdict, killer.text)
    assert killer is tables["mangle"].chains["FIREWALL_172.17.21.105"].by_handle[killer.handle or 0]


def test_base_chains_have_the_kernels_priority_numbers() -> None:
    """Priorities by name, with offsets and as numbers, are the kernel's for each family."""
    chains = {
        (table.family, chain.name): (chain.hook, chain.priority, chain.type, chain.policy)
        for table in parse_nft(read("fw4.nft-list.txt"))
        for chain in table.chains.values()
        if chain.hook is not None
    }

    assert {
        ("inet", "input"): ("input", 0, "filter", Verdict.DROP),
        ("inet", "forward"): ("forward", 0, "filter", Verdict.DROP),
        ("inet", "dstnat"): ("prerouting", -100, "nat", Verdict.ACCEPT),
        ("inet", "srcnat"): ("postrouting", 100, "nat", Verdict.ACCEPT),
        ("inet", "mangle_forward"): ("forward", -150, "filter", Verdict.ACCEPT),
        ("bridge", "pre"): ("prerouting", -301, "filter", Verdict.ACCEPT),
        ("bridge", "out"): ("output", 100, "filter", Verdict.ACCEPT),
        ("netdev", "in"): ("ingress", -500, "filter", Verdict.ACCEPT),
        ("ip", "my-input.1"): ("input", 45, "filter", Verdict.ACCEPT),
    } == chains


@pytest.mark.parametrize(
    ("family", "priority", "number"),
    [
        ("ip", "raw", -300),
        ("ip6", "mangle + 10", -140),
        ("inet", "security - 5", 45),
        ("inet", "-350", -350),
        ("inet", "2147483647", 2147483647),
        ("bridge", "filter", -200),
        ("bridge", "dstnat + 1", -299),
        ("bridge", "srcnat", 300),
        ("arp", "filter - 1", -1),
        ("netdev", "filter", 0),
        ("ip", "something", None),
        ("ip", "filter * 3", None),
    ],
)
def test_a_priority_is_the_kernels_number(family: str, priority: str, number: int | None) -> None:
    """What nft prints for a priority is told as the number; what is none, as None."""
    line = f"\t\ttype filter hook prerouting priority {priority}; policy accept;"

    assert number == chain_of(line, family=family).priority


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ('device "lo"', ("lo",)),
        ('devices = { "lo", "eth0.100" }', ("lo", "eth0.100")),
        ('devices = { "a b" }', ("a b",)),
    ],
)
def test_a_netdev_chain_knows_its_devices(words: str, devices: tuple[str, ...]) -> None:
    """One device or several are told without quotes."""
    chain = chain_of(f"\t\ttype filter hook ingress {words} priority filter; policy drop;")

    assert devices == chain.devices
    assert ("ingress", Verdict.DROP) == (chain.hook, chain.policy)


def test_a_base_chain_without_a_policy_word_has_none() -> None:
    """A chain whose listing names no policy is told without one."""
    chain = chain_of("\t\ttype filter hook input priority filter;")

    assert ("input", None) == (chain.hook, chain.policy)


def test_a_rule_over_several_lines_is_one() -> None:
    """Continuations are joined by one space, and the next rule begins anew."""
    chain = chain_of(
        "\t\tip saddr { 10.0.0.1, 10.0.0.2,\n"
        "\t\t\t     10.0.0.3,\n"
        "\t\t\t     10.0.0.4 } drop # handle 8\n"
        "\t\ttcp dport vmap { 1 : accept,\n"
        "\t\t\t\t2 : drop } # handle 9\n"
        "\t\taccept # handle 10"
    )

    assert [
        (8, "ip saddr { 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4 } drop"),
        (9, "tcp dport vmap { 1 : accept, 2 : drop }"),
        (10, "accept"),
    ] == handles(chain)


def test_comments_prove_nothing() -> None:
    """Handles, braces, quotes and newlines in comments are text; the last handle counts."""
    chain = chain_of(
        '\t\tcomment "of the chain # handle 1 {"\n'
        "\t\ttype filter hook input priority filter; policy accept;\n"
        '\t\taccept comment "a # handle 5" # handle 2\n'
        '\t\tdrop comment "} ; { "x" # handle" # handle 3\n'
        '\t\tdrop comment "first\n'
        '\t\taccept # handle 44" # handle 4'
    )

    assert [
        (2, 'accept comment "a # handle 5"'),
        (3, 'drop comment "} ; { "x" # handle"'),
        (4, 'drop comment "first accept # handle 44"'),
    ] == handles(chain)
    assert [Verdict.ACCEPT, Verdict.DROP, Verdict.DROP] == [rule.verdict for rule in chain.rules]
    assert chain.hook == "input"


def test_a_line_of_a_chain_that_is_no_rule_is_none() -> None:
    """A chain's comment and what a newer nft may say of it take no rule's number."""
    chain = chain_of('\t\tcomment "x y"\n\t\tflags offload\n\t\taccept # handle 7')

    assert [Rule(1, "accept", "nft", Verdict.ACCEPT, None, 7)] == list(chain.rules)


def test_objects_of_a_table_are_passed_over() -> None:
    """Sets, maps, flowtables and the like have no chains in them, whatever they hold."""
    text = (
        "# Warning: table ip t is managed by iptables-nft, do not touch!\n"
        "table ip t { # handle 1 progname some daemon\n"
        "\tflags dormant,owner\n"
        '\tcomment "table {"\n'
        "\tset s { # handle 2\n"
        "\t\ttype ipv4_addr\n"
        '\t\telements = { 1.1.1.1 comment "chain c {",\n'
        '\t\t\t     2.2.2.2 comment "# handle 9" }\n'
        "\t}\n\n"
        "\tflowtable f {\n\t\thook ingress priority filter\n\t\tdevices = { eth0 }\n\t}\n\n"
        "\tct timeout a { # handle 3\n\t\tpolicy = { close : 4s }\n\t}\n\n"
        "\tchain a.b-c:d/e_1 { # handle 4\n\t\tdrop # handle 5\n\t}\n"
        "}\n"
        "table ip empty { # handle 2\n}\n"
    )

    assert [
        Table(
            "nft",
            "ip",
            "t",
            "nft",
            {"a.b-c:d/e_1": Chain("a.b-c:d/e_1", (Rule(1, "drop", "nft", Verdict.DROP, None, 5),))},
        ),
        Table("nft", "ip", "empty", "nft", {}),
    ] == parse_nft(text)


@pytest.mark.parametrize(
    ("text", "verdict", "target"),
    [
        ("accept", Verdict.ACCEPT, None),
        ("ip saddr @drop counter", Verdict.CONTINUE, None),
        ("tcp dport { 22, 23 } counter drop", Verdict.DROP, None),
        ("tcp dport 22 return", Verdict.RETURN, None),
        ("tcp dport 22 continue", Verdict.CONTINUE, None),
        ("jump drop", Verdict.JUMP, "drop"),
        ("tcp dport 22 goto accept", Verdict.GOTO, "accept"),
        ("goto vmap", Verdict.GOTO, "vmap"),
        ('jump a/b_1 comment "x drop"', Verdict.JUMP, "a/b_1"),
        ("reject", Verdict.REJECT, None),
        ('iifname "eth0" reject with icmpx admin-prohibited', Verdict.REJECT, None),
        ('reject with tcp reset comment "then accept"', Verdict.REJECT, None),
        ('log prefix "drop accept " group 1', Verdict.CONTINUE, None),
        ('log prefix "drop" ', Verdict.CONTINUE, None),
        ('log prefix "then " drop', Verdict.DROP, None),
        ('log prefix "DROP "x" y "', Verdict.CONTINUE, None),
        ('accept comment "he said "drop""', Verdict.ACCEPT, None),
        ('counter comment "vmap reject"', Verdict.CONTINUE, None),
        ('iifname { "drop", "a}b" } counter', Verdict.CONTINUE, None),
        ("ct state vmap { invalid : drop }", None, None),
        ("tcp dport vmap @drop", None, None),
        ("ct state vmap { invalid : drop } accept", None, None),
        ("ct state vmap { invalid : drop } jump c", None, None),
        ("ct status dnat accept", Verdict.ACCEPT, None),
        ("ct status dnat", Verdict.CONTINUE, None),
        ("ct status dnat counter", Verdict.CONTINUE, None),
        ("icmp type redirect", Verdict.CONTINUE, None),
        ("icmp type redirect counter", Verdict.CONTINUE, None),
        ("icmp type != redirect", Verdict.CONTINUE, None),
        ("icmp type { redirect, echo-reply } drop", Verdict.DROP, None),
        ("redirect", Verdict.ACCEPT, None),
        ("tcp dport 9 redirect to :80", Verdict.ACCEPT, None),
        ("dnat to 10.0.0.1:80", Verdict.ACCEPT, None),
        ("dnat ip to tcp dport map { 22 : 10.1.1.1, 23 : 10.1.1.2 }", Verdict.ACCEPT, None),
        ("dnat ip prefix to ip daddr map @m", Verdict.ACCEPT, None),
        ("dnat to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }", Verdict.ACCEPT, None),
        ("snat ip to 1.2.3.4 random", Verdict.ACCEPT, None),
        ("masquerade", Verdict.ACCEPT, None),
        ("masquerade fully-random,persistent", Verdict.ACCEPT, None),
        ("masquerade to :1024-65535", Verdict.ACCEPT, None),
        ("queue", Verdict.QUEUE, None),
        ("queue to 3", Verdict.QUEUE, None),
        ("queue num 3 bypass", Verdict.QUEUE, None),
        ("queue flags bypass,fanout to 1-3", Verdict.QUEUE, None),
        ("tcp dport 80 synproxy mss 1460 wscale 7", Verdict.STOLEN, None),
        ('synproxy name "accept"', Verdict.STOLEN, None),
        ('fwd to "lo"', Verdict.STOLEN, None),
        ('dup to "lo"', Verdict.CONTINUE, None),
        ("tcp dport 80 tproxy to :50080", Verdict.CONTINUE, None),
        ("tcp dport 80 tproxy to :50080 meta mark set 1 accept", Verdict.ACCEPT, None),
        ("update @s { ip saddr timeout 10s } accept", Verdict.ACCEPT, None),
        ("add @s { ip saddr limit rate 1/second } drop", Verdict.DROP, None),
        ("meta mark set 0x00000001 notrack", Verdict.CONTINUE, None),
        ("meta l4proto tcp counter xt target TPROXY", Verdict.ACCEPT, None),
        ('counter xt target "REJECT"', Verdict.REJECT, None),
        ('counter xt target "CT"', Verdict.CONTINUE, None),
        ("", Verdict.CONTINUE, None),
    ],
)
def test_the_verdict_is_the_statement_that_ends_the_rule(
    text: str, verdict: Verdict | None, target: str | None
) -> None:
    """Words in strings, sets, names and comparisons are no statements."""
    assert (verdict, target) == find_nft_verdict(text)


@pytest.mark.parametrize(
    "text", ["chain c {\n", "}\n", "table t {\n}\n", "table ip t { # handle 1\n}x\n"]
)
def test_what_is_no_listing_is_refused(text: str) -> None:
    """A line that nft would not print there is an error and never a ruleset."""
    with pytest.raises(MalformedMessageError):
        parse_nft(text)


def test_a_listing_cut_anywhere_is_refused_or_ends_between_tables() -> None:
    """Of a listing cut at any character, only whole tables are told, or it is refused."""
    text = read("fw4.nft-list.txt")
    whole = parse_nft(text)
    told = set()

    for end in range(len(text)):
        with contextlib.suppress(MalformedMessageError):
            tables = parse_nft(text[:end])
            told.add(len(tables))
            assert whole[: len(tables)] == tables

    assert set(range(len(whole) + 1)) == told


@given(st.text(alphabet=st.sampled_from('\t\n {}#"abc handle chain table 1;'), max_size=200))
def test_no_text_brings_it_down(lines: str) -> None:
    """Any text is a list of tables or malformed."""
    for text in (lines, f"table ip t {{\n\tchain c {{\n{lines}\n\t}}\n}}\n"):
        with contextlib.suppress(MalformedMessageError):
            assert all(isinstance(table, Table) for table in parse_nft(text))


@given(st.text(max_size=80))
def test_no_rule_text_brings_the_verdict_down(text: str) -> None:
    """Any text has a verdict or none, and a target only with a jump."""
    verdict, target = find_nft_verdict(text)

    assert (target is not None) == (verdict in (Verdict.JUMP, Verdict.GOTO))


def test_twenty_thousand_rules_take_well_under_a_second() -> None:
    """20,000 rules with sets and comments are read in less than a second."""
    rules = "".join(
        "\t\tip saddr { 10.0.0.1, 10.0.0.2 } "
        f'tcp dport {i} counter jump c comment "r {i}" # handle {i}\n'
        for i in range(20_000)
    )
    started = time.process_time()

    chain = chain_of(rules.rstrip("\n"))

    assert time.process_time() - started < 1
    assert (20_000, 19_999) == (len(chain.rules), chain.rules[-1].handle)
