"""Laws of reading iptables-save; the saves are iptables 1.8.9's, see rulesets/record.sh."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.iptables import (
    ImplicitEnd,
    Policy,
    name_nft_tables,
    parse_iptables_save,
    resolve_legacy,
    split_arguments,
)
from tracer.core.journey import Verdict
from tracer.core.nft_text import parse_nft
from tracer.core.ruleset import Chain, Rule, Table
from tracer.errors import MalformedMessageError

RULESETS = Path(__file__).parent / "rulesets"
NAMES = sorted(path.name.removesuffix(".rules") for path in RULESETS.glob("*.rules"))

PLAIN = "abcXYZ019_-"
WORDS = st.text(alphabet=st.sampled_from(PLAIN + " \t\"'\\;{}#é\n\u2028\x85"), max_size=20)
CHAINS = st.text(alphabet=st.sampled_from("aB9_.:/\"'\\#"), min_size=1, max_size=12)


def read(name: str) -> str:
    """Give a recorded save or listing."""
    return (RULESETS / name).read_text(encoding="utf-8")


def save_of(*lines: str, chains: tuple[str, ...] = ()) -> str:
    """Give a save of a filter table with *lines* as rules."""
    user = [f":{chain} - [0:0]" for chain in chains]
    return "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *user, *lines, "COMMIT", ""])


def rules_of(*lines: str, chains: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """Parse *lines* as rules of INPUT."""
    (table,) = parse_iptables_save(save_of(*lines, chains=chains), "legacy", "ip")
    return table.chains["INPUT"].rules


def quote(argument: str) -> str:
    """Print an argument as xtables_save_string() in iptables' libxtables/xtables.c does."""
    if argument and not set(argument) - set(PLAIN):
        return argument
    return '"' + "".join("\\" + c if c in "\\\"'" else c for c in argument) + '"'


@pytest.mark.parametrize("tool", ["legacy", "nft-save"])
@pytest.mark.parametrize("name", NAMES)
def test_every_line_with_a_rule_is_told(name: str, tool: str) -> None:
    """Of a real save, each -A line is a rule's text, in its chain, in order."""
    text = read(f"{name}.{tool}.txt")
    lines = [line for line in text.split("\n") if line.startswith("-A ")]

    tables = parse_iptables_save(text, tool.removesuffix("-save"), "ip")

    told = [rule for table in tables for chain in table.chains.values() for rule in chain.rules]
    assert lines
    assert sorted(lines) == sorted(rule.text for rule in told)
    assert all(
        rule.text.split(" ")[1] == chain.name and rule.number == number
        for table in tables
        for chain in table.chains.values()
        for number, rule in enumerate(chain.rules, start=1)
    )


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_iptables_nft_take_its_words_and_nfts_handles(name: str) -> None:
    """A table that iptables-nft made has nft's handles and hooks and the saved texts."""
    native = parse_nft(read(f"{name}.nft-list.txt"))
    saved = parse_iptables_save(read(f"{name}.nft-save.txt"), "nft", "ip")

    named = name_nft_tables(native, saved)

    texts = {table.name: table for table in saved}
    assert [table.name for table in native] == [table.name for table in named]
    for before, after in zip(native, named, strict=True):
        assert after.form == "iptables"
        for chain in after.chains.values():
            old = before.chains[chain.name]
            assert [rule.handle for rule in old.rules] == [rule.handle for rule in chain.rules]
            assert replace(old, rules=()) == replace(chain, rules=())
            expected = texts[after.name].chains[chain.name].rules
            assert expected == tuple(replace(rule, handle=None) for rule in chain.rules)


def test_a_table_with_another_number_of_rules_keeps_nfts_words() -> None:
    """One rule more or less in a chain, or a chain of its own, and nft's words stand."""
    native = parse_nft(read("fail2ban.nft-list.txt"))
    text = read("fail2ban.nft-save.txt")
    fewer = parse_iptables_save(text.replace("-A f2b-sshd -j RETURN\n", ""), "nft", "ip")
    other = parse_iptables_save(text.replace("f2b-nginx-http-auth", "f2b"), "nft", "ip")
    empty = parse_iptables_save(
        text.replace("-A f2b-nginx-http-auth -j RETURN\n", "")
        .replace(":f2b-nginx-http-auth - [0:0]\n", "")
        .replace("-A INPUT -p tcp -m multiport --dports 80,443 -j f2b-nginx-http-auth\n", ""),
        "nft",
        "ip",
    )
    own_chain = replace(native[0], chains={**native[0].chains, "mine": Chain("mine")})

    for saved in (fewer, other, empty, []):
        assert native == name_nft_tables(native, saved)
    whole = parse_iptables_save(text, "nft", "ip")
    assert [own_chain] == name_nft_tables([own_chain], whole)
    assert [replace(native[0], family="ip6")] == name_nft_tables(
        [replace(native[0], family="ip6")], whole
    )


def test_legacy_base_chains_have_the_kernels_hooks_and_priorities() -> None:
    """Built-in chains have the priority of their table at that hook; user chains none."""
    text = "".join(
        f"*{table}\n"
        + "".join(f":{chain} DROP [0:0]\n" for chain in chains)
        + ":u - [0:0]\nCOMMIT\n"
        for table, chains in (
            ("raw", ("PREROUTING", "OUTPUT")),
            ("mangle", ("FORWARD", "OUTPUT")),
            ("nat", ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")),
            ("filter", ("INPUT",)),
            ("security", ("INPUT",)),
        )
    )

    tables = parse_iptables_save(text, "legacy", "ip6")

    assert {
        ("raw", "prerouting"): (-300, "filter"),
        ("raw", "output"): (-300, "filter"),
        ("mangle", "forward"): (-150, "filter"),
        ("mangle", "output"): (-150, "route"),
        ("nat", "prerouting"): (-100, "nat"),
        ("nat", "input"): (100, "nat"),
        ("nat", "output"): (-100, "nat"),
        ("nat", "postrouting"): (100, "nat"),
        ("filter", "input"): (0, "filter"),
        ("security", "input"): (50, "filter"),
    } == {
        (table.name, chain.hook): (chain.priority, chain.type)
        for table in tables
        for chain in table.chains.values()
        if chain.hook is not None
    }
    assert {Verdict.DROP} == {
        chain.policy for table in tables for chain in table.chains.values() if chain.hook
    }
    assert [Chain("u")] * 5 == [table.chains["u"] for table in tables]
    assert {("legacy", "ip6", "iptables")} == {(t.engine, t.family, t.form) for t in tables}


@pytest.mark.parametrize(
    ("rest", "verdict", "target", "unconditional"),
    [
        ("", Verdict.CONTINUE, None, True),
        (" -j ACCEPT", Verdict.ACCEPT, None, True),
        (" -j DROP", Verdict.DROP, None, True),
        (" -j RETURN", Verdict.RETURN, None, True),
        (" -j QUEUE", Verdict.QUEUE, None, True),
        (" -j REJECT --reject-with tcp-reset", Verdict.REJECT, None, True),
        (" -j NFQUEUE --queue-num 3", Verdict.QUEUE, None, True),
        (" -j u:1", Verdict.JUMP, "u:1", True),
        (" -g u:1", Verdict.GOTO, "u:1", False),
        (' -j "x"', Verdict.JUMP, '"x"', True),
        (' -p tcp -j "x', Verdict.JUMP, '"x', False),
        (" -s 1.2.3.4/32 -j DROP", Verdict.DROP, None, False),
        (" ! -s 1.2.3.4/32 -j DROP", Verdict.DROP, None, False),
        (" -f -j DROP", Verdict.DROP, None, False),
        (" -m comment --comment x -j DROP", Verdict.DROP, None, False),
        (" -m comment --comment -j -j ACCEPT", Verdict.ACCEPT, None, False),
        (' -m comment --comment " -j DROP" -j ACCEPT', Verdict.ACCEPT, None, False),
        (' -m comment --comment "a \\" -j DROP \\"" -j u:1', Verdict.JUMP, "u:1", False),
        (' -m comment --comment "\\\\" -j DROP', Verdict.DROP, None, False),
        (' -m comment --comment " -j DROP"', Verdict.CONTINUE, None, False),
        (" -m socket --transparent -j u:1", Verdict.JUMP, "u:1", False),
        (" -j LOG --log-prefix -j", Verdict.CONTINUE, None, True),
        (' -j LOG --log-prefix "-j DROP "', Verdict.CONTINUE, None, True),
        (" -j MARK --set-xmark 0x2/0xffffffff", Verdict.CONTINUE, None, True),
        (" -j DNAT --to-destination 10.0.0.1:22", Verdict.ACCEPT, None, True),
        (" -j SNAT --to-source 10.0.0.1", Verdict.ACCEPT, None, True),
        (" -j MASQUERADE", Verdict.ACCEPT, None, True),
        (" -j REDIRECT --to-ports 80", Verdict.ACCEPT, None, True),
        (" -j NETMAP --to 10.0.0.0/24", Verdict.ACCEPT, None, True),
        (" -j TPROXY --on-port 80", Verdict.ACCEPT, None, True),
        (" -j SYNPROXY --mss 1460", Verdict.STOLEN, None, True),
        (" -j TARPIT", Verdict.STOLEN, None, True),
    ],
)
def test_a_rule_does_what_its_target_does(
    rest: str, verdict: Verdict, target: str | None, *, unconditional: bool
) -> None:
    """The target is the option and no word in a string; no match at all is unconditional."""
    line = f"-A INPUT{rest}"

    (rule,) = rules_of(line, chains=("u:1", '"x"', '"x'))

    assert Rule(1, line, "iptables", verdict, target, unconditional=unconditional) == rule


def test_a_chain_named_like_a_target_is_a_chain() -> None:
    """A chain's name counts before the list of targets."""
    (rule,) = rules_of("-A INPUT -j TARPIT", chains=("TARPIT",))

    assert (Verdict.JUMP, "TARPIT") == (rule.verdict, rule.target)


def test_counters_are_no_part_of_a_rule() -> None:
    """A save with counters is the same as one without."""
    text = read("odd.legacy.txt")
    counted = text.replace("\n-A ", "\n[17:1020] -A ").replace("[0:0]", "[23:1380]")

    assert parse_iptables_save(text, "legacy", "ip") == parse_iptables_save(counted, "legacy", "ip")
    assert counted != text


def test_a_comment_over_several_lines_is_one_rule() -> None:
    """Newlines in a string stay in the text, whatever the lines look like."""
    line = '-A INPUT -m comment --comment "a\nCOMMIT\n*nat\n-A INPUT -j DROP" -j ACCEPT'

    rules = rules_of(line, "-A INPUT -j DROP")

    assert [line, "-A INPUT -j DROP"] == [rule.text for rule in rules]
    assert [Verdict.ACCEPT, Verdict.DROP] == [rule.verdict for rule in rules]


def test_a_quote_that_nothing_closes_stands_for_itself() -> None:
    """An extension that prints raw quotes costs its own rule's words and no other rule."""
    lines = ('-A INPUT -m recent --name "x -j DROP', "-A INPUT -j ACCEPT")

    assert list(lines) == [rule.text for rule in rules_of(*lines)]


@pytest.mark.parametrize("name", ["docker", "kube-proxy", "odd"])
def test_a_save_cut_anywhere_is_refused_or_ends_between_tables(name: str) -> None:
    """Of a save cut at any character, only whole tables are told, or it is refused."""
    text = read(f"{name}.legacy.txt")
    whole = parse_iptables_save(text, "legacy", "ip")
    told = set()

    for end in range(len(text)):
        with contextlib.suppress(MalformedMessageError):
            tables = parse_iptables_save(text[:end], "legacy", "ip")
            told.add(len(tables))
            assert whole[: len(tables)] == tables

    assert set(range(len(whole) + 1)) == told


@pytest.mark.parametrize(
    "text",
    [
        "-A INPUT -j DROP\n",
        "COMMIT\n",
        "*filter\n*nat\nCOMMIT\n",
        "*filter\n-A INPUT -j DROP\nCOMMIT\n",
        "*filter\n:INPUT ACCEPT [0:0]\n-I INPUT -j DROP\nCOMMIT\n",
        "*filter\n:INPUT ACCEPT [0:0]\n-A\nCOMMIT\n",
    ],
)
def test_what_is_no_save_is_refused(text: str) -> None:
    """A line that the tools would not print there is an error and never a ruleset."""
    with pytest.raises(MalformedMessageError):
        parse_iptables_save(text, "legacy", "ip")


@given(st.text(alphabet=st.sampled_from('*:-AjgINPUT fter"\\\n[]01COMMIT#x'), max_size=200))
def test_no_text_brings_it_down(lines: str) -> None:
    """Any text is a list of tables or malformed."""
    for text in (lines, save_of(lines), save_of(f"-A INPUT {lines}")):
        with contextlib.suppress(MalformedMessageError):
            tables = parse_iptables_save(text, "legacy", "ip")
            assert all(isinstance(table, Table) for table in tables)


@given(st.lists(st.tuples(WORDS, CHAINS, st.booleans()), max_size=8))
def test_a_printed_rule_is_read_as_it_was_meant(rules: list[tuple[str, str, bool]]) -> None:
    """Whatever comment and chain are printed, text, arguments and target come back."""
    lines = [
        f"-A INPUT -m comment --comment {quote(comment)} -{'g' if goto else 'j'} {chain}"
        for comment, chain, goto in rules
        if comment
    ]
    meant = [
        (["-A", "INPUT", "-m", "comment", "--comment", comment, "-g" if goto else "-j", chain])
        for comment, chain, goto in rules
        if comment
    ]

    told = rules_of(*lines, chains=tuple({chain for _, chain, _ in rules}))

    assert lines == [rule.text for rule in told]
    assert meant == [split_arguments(line) for line in lines]
    assert [words[-1] for words in meant] == [rule.target for rule in told]


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("", []),
        ("-A INPUT", ["-A", "INPUT"]),
        ('-A "x" -j a"b', ["-A", '"x"', "-j", 'a"b']),
        ('-A I --comment ""', ["-A", "I", "--comment", ""]),
        (
            '-A I --log-prefix "a b\\"c" ! -s 1',
            ["-A", "I", "--log-prefix", 'a b"c', "!", "-s", "1"],
        ),
        ('-A I --comment "open -j x', ["-A", "I", "--comment", '"open', "-j", "x"]),
    ],
)
def test_arguments_are_unquoted(line: str, arguments: list[str]) -> None:
    """A string is one argument without its quotes; other quotes stand for themselves."""
    assert arguments == split_arguments(line)


TABLE = parse_iptables_save(
    save_of(
        "-A INPUT -s 1.2.3.4/32 -j DROP",
        "-A INPUT -j u",
        "-A INPUT -j ACCEPT",
        "-A u -j RETURN",
        "-A u -p tcp -j ACCEPT",
        chains=("u", "empty"),
    ),
    "legacy",
    "ip",
)[0]


@pytest.mark.parametrize(
    ("chain", "kind", "number", "meant"),
    [
        ("INPUT", "rule", 1, "-A INPUT -s 1.2.3.4/32 -j DROP"),
        ("INPUT", "rule", 2, "-A INPUT -j u"),
        ("INPUT", "policy", 3, "-A INPUT -j ACCEPT"),
        ("INPUT", "policy", 4, Policy("INPUT", Verdict.ACCEPT)),
        ("u", "return", 1, "-A u -j RETURN"),
        ("u", "rule", 2, "-A u -p tcp -j ACCEPT"),
        ("u", "return", 3, ImplicitEnd("u")),
        ("empty", "return", 1, ImplicitEnd("empty")),
        # What follows cannot be of this version of the table.
        ("INPUT", "policy", 1, None),
        ("INPUT", "policy", 5, None),
        ("INPUT", "return", 4, None),
        ("INPUT", "rule", 4, None),
        ("INPUT", "rule", 0, None),
        ("u", "return", 2, None),
        ("u", "policy", 3, None),
        ("u", "return", 4, None),
        ("gone", "rule", 1, None),
    ],
)
def test_the_lying_words_are_resolved(
    chain: str, kind: str, number: int, meant: str | Policy | ImplicitEnd | None
) -> None:
    """A number up to the last is the explicit rule, the next the real end, others none."""
    found = resolve_legacy(TABLE, chain, kind, number)

    assert meant == (found.text if isinstance(found, Rule) else found)


def test_twenty_thousand_rules_take_well_under_a_second() -> None:
    """20,000 rules with comments are read in less than a second."""
    lines = [f'-A INPUT -m comment --comment "rule {i}" -j u' for i in range(20_000)]
    started = time.process_time()

    rules = rules_of(*lines, chains=("u",))

    assert time.process_time() - started < 1
    assert (20_000, lines[-1]) == (len(rules), rules[-1].text)
