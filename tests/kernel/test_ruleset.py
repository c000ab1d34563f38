"""Laws of reading rulesets from the running kernel, by the user's own tools."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.journey import Verdict
from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources import ruleset_tools
from tracer.sources.ruleset import (
    LegacyFingerprint,
    legacy_tables,
    read_generation,
    read_ruleset,
)
from tracer.sources.ruleset_tools import Tool, find_iptables_save, find_nft

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.ruleset import Rule, Ruleset
    from tracer.sources.ruleset import RulesetRead

RULESETS = Path(__file__).parents[1] / "core" / "rulesets"
IPTABLES = sorted(path.stem for path in RULESETS.glob("*.rules"))
NATIVE = sorted(path.stem for path in RULESETS.glob("*.nft"))
BIG = 5003


@pytest.fixture
def ns(netns: Callable[..., str]) -> str:
    """Give a namespace of its own."""
    return netns("rules")


def read_in(ns: str) -> RulesetRead:
    """Read the ruleset of *ns*."""
    with nets.in_netns(ns):
        return read_ruleset()


def all_rules(ruleset: Ruleset) -> list[Rule]:
    """Give the rules of all tables and chains, in their order."""
    return [
        rule
        for table in ruleset.tables.values()
        for chain in table.chains.values()
        for rule in chain.rules
    ]


def saved_lines(ns: str, tool: str) -> list[str]:
    """Give the rules that iptables-save or a relative prints, chain by chain."""
    text = nets.ip_netns_exec(ns, tool).stdout
    return [line for line in text.split("\n") if line.startswith("-A ")]


def listed(ns: str) -> dict[int, str]:
    """Give the rules of nft's own listing by handle, of a ruleset with one table."""
    text = nets.ip_netns_exec(ns, "nft", "-s", "-a", "list", "ruleset").stdout
    found = re.findall(r"^\t\t(.*) # handle (\d+)$", text, re.MULTILINE)
    return {int(handle): line.strip() for line, handle in found}


def state(ns: str) -> str:
    """Give everything that reading could change: rules, counters, generation, tables."""
    tools = (
        ("nft", "-a", "list", "ruleset"),
        ("sh", "-c", "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"),
    )
    parts = [nets.ip_netns_exec(ns, *tool).stdout for tool in tools]
    with nets.in_netns(ns):
        parts.append(str(read_generation()))
        names = legacy_tables()
    for family, tool in (("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")):
        for name in names[family]:
            text = nets.ip_netns_exec(ns, tool, "-c", "-t", name).stdout
            parts.append(re.sub(r"^#.*$", "", text, flags=re.MULTILINE))
    return "\n".join(parts)


@pytest.mark.parametrize("name", IPTABLES)
def test_each_legacy_rule_has_the_words_of_iptables_legacy_save(ns: str, name: str) -> None:
    """Every rule of every table is told as iptables-legacy-save prints it, and no other."""
    nets.load_rules(ns, "legacy", (RULESETS / f"{name}.rules").read_text(encoding="utf-8"))

    read = read_in(ns)

    assert saved_lines(ns, "iptables-legacy-save") == saved_order(read, "legacy")
    assert {("legacy", "ip", "iptables")} == {
        (table.engine, table.family, table.form) for table in read.ruleset.tables.values()
    }
    assert (True, {}) == (read.exact, read.nat_json)


def saved_order(read: RulesetRead, engine: str) -> list[str]:
    """Give the texts of all rules of *engine*, in the tables' order."""
    return [
        rule.text
        for (of, _, _), table in read.ruleset.tables.items()
        if of == engine
        for chain in table.chains.values()
        for rule in chain.rules
    ]


@pytest.mark.parametrize("name", IPTABLES)
def test_each_rule_of_iptables_nft_has_its_words_and_its_handle(ns: str, name: str) -> None:
    """Every rule is told as iptables-nft-save prints it, by the handle that nft gives it."""
    nets.load_rules(ns, "nft", (RULESETS / f"{name}.rules").read_text(encoding="utf-8"))

    read = read_in(ns)

    assert sorted(saved_lines(ns, "iptables-nft-save")) == sorted(saved_order(read, "nft"))
    assert {"iptables"} == {table.form for table in read.ruleset.tables.values()}
    assert {} == read.nat_json
    for (_, family, table), value in read.ruleset.tables.items():
        text = nets.ip_netns_exec(ns, "nft", "-s", "-a", "list", "table", family, table).stdout
        handles = re.findall(r"^\t\t.* # handle (\d+)$", text, re.MULTILINE)
        rules = [rule for chain in value.chains.values() for rule in chain.rules]
        assert [int(handle) for handle in handles] == [rule.handle for rule in rules]
        assert all(
            chain.by_handle[r.handle or 0] is r
            for chain in value.chains.values()
            for r in chain.rules
        )


@pytest.mark.parametrize("name", NATIVE)
def test_each_native_rule_has_nfts_words_and_its_handle(ns: str, name: str) -> None:
    """Every rule of each table is told as nft lists it; tables with nat also as JSON."""
    nets.load_rules(ns, "nftables", (RULESETS / f"{name}.nft").read_text(encoding="utf-8"))

    read = read_in(ns)

    seen = 0
    for (_, family, table), value in read.ruleset.tables.items():
        assert value.form == "nft"
        text = nets.ip_netns_exec(ns, "nft", "-s", "-a", "list", "table", family, table).stdout
        expected = re.findall(r"^\t\t(.*) # handle (\d+)$", text, re.MULTILINE)
        rules = [rule for chain in value.chains.values() for rule in chain.rules]
        assert expected == [(rule.text, str(rule.handle)) for rule in rules]
        seen += len(rules)
    assert seen == len(all_rules(read.ruleset)) > 0
    with_nat = {
        (family, name)
        for (_, family, name), table in read.ruleset.tables.items()
        if any(chain.type == "nat" for chain in table.chains.values())
    }
    assert with_nat == set(read.nat_json)
    assert all(text.startswith('{"nftables": [') for text in read.nat_json.values())
    assert with_nat


def test_both_engines_and_families_are_told_together(ns: str) -> None:
    """Legacy and nft tables of the same names, IPv4's and IPv6's, stand side by side."""
    nets.load_rules(ns, "legacy", "*filter\n-A INPUT -s 10.0.0.1 -j DROP\nCOMMIT\n")
    nets.load_rules(ns, "legacy6", "*filter\n-A INPUT -s fd00::1 -j DROP\nCOMMIT\n")
    nets.load_rules(ns, "nft", "*filter\n-A INPUT -s 10.0.0.2 -j REJECT\nCOMMIT\n")
    nets.load_rules(ns, "nft6", "*filter\n-A INPUT -s fd00::2 -j REJECT\nCOMMIT\n")
    nets.load_rules(ns, "nftables", "table inet filter { chain c { drop; }; }\n")

    rules = {
        key: [
            (rule.text, rule.verdict, rule.handle is None)
            for chain in table.chains.values()
            for rule in chain.rules
        ]
        for key, table in read_in(ns).ruleset.tables.items()
    }

    reject = Verdict.REJECT
    assert {
        ("legacy", "ip", "filter"): [("-A INPUT -s 10.0.0.1/32 -j DROP", Verdict.DROP, True)],
        ("legacy", "ip6", "filter"): [("-A INPUT -s fd00::1/128 -j DROP", Verdict.DROP, True)],
        ("nft", "ip", "filter"): [
            ("-A INPUT -s 10.0.0.2/32 -j REJECT --reject-with icmp-port-unreachable", reject, False)
        ],
        ("nft", "ip6", "filter"): [
            (
                "-A INPUT -s fd00::2/128 -j REJECT --reject-with icmp6-port-unreachable",
                reject,
                False,
            )
        ],
        ("nft", "inet", "filter"): [("drop", Verdict.DROP, False)],
    } == rules


def test_a_native_table_with_the_name_of_iptables_keeps_nfts_words(ns: str) -> None:
    """A filter table that iptables-nft-save cannot tell is nft's; its nat table is not."""
    nets.load_rules(
        ns,
        "nftables",
        "table ip filter {\n chain INPUT {\n  type filter hook input priority 0\n"
        "  ct state vmap { established : accept, invalid : drop }\n"
        "  tcp dport { 1, 2, 3 } counter drop\n }\n}\n",
    )
    nets.load_rules(ns, "nft", "*nat\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n")

    tables = read_in(ns).ruleset.tables

    assert {"filter": "nft", "nat": "iptables"} == {
        name: tables[_, f, name].form for _, f, name in tables
    }
    filter_rules = tables["nft", "ip", "filter"].chains["INPUT"].rules
    assert [None, Verdict.DROP] == [rule.verdict for rule in filter_rules]
    nat_rules = tables["nft", "ip", "nat"].chains["POSTROUTING"].rules
    assert ["-A POSTROUTING -j MASQUERADE"] == [rule.text for rule in nat_rules]


def test_five_thousand_rules_in_a_chain_each_have_their_own_handle(ns: str) -> None:
    """Of 5,003 rules, some equal, each has its number, its handle and its own words."""
    rules = [f"ip saddr 10.{i // 250 % 250}.{i % 250}.1 counter drop" for i in range(BIG - 3)]
    rules[2000:2000] = ["tcp dport 22 drop"] * 3
    lines = "\n".join(rules)
    nets.load_rules(
        ns,
        "nftables",
        f"table ip t {{\n chain c {{\n type filter hook input priority 0\n{lines}\n}}\n}}\n",
    )

    chain = read_in(ns).ruleset.tables["nft", "ip", "t"].chains["c"]

    assert list(range(1, BIG + 1)) == [rule.number for rule in chain.rules]
    assert rules == [rule.text for rule in chain.rules]
    assert listed(ns) == {handle: rule.text for handle, rule in chain.by_handle.items()}
    assert BIG == len(chain.by_handle)


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_five_thousand_iptables_rules_are_told_by_number(ns: str, backend: str) -> None:
    """Of 5,003 rules of iptables, equal ones included, each has its own number and words."""
    rules = [f"-A INPUT -s 10.{i // 250 % 250}.{i % 250}.1/32 -j DROP" for i in range(BIG - 2)]
    rules[7:7] = ["-A INPUT -p tcp -j DROP"] * 2
    nets.load_rules(ns, backend, "\n".join(["*filter", *rules, "COMMIT", ""]))

    (table,) = read_in(ns).ruleset.tables.values()

    assert rules == [rule.text for rule in table.chains["INPUT"].rules]
    assert list(range(1, BIG + 1)) == [rule.number for rule in table.chains["INPUT"].rules]


def test_a_table_with_a_name_that_nft_cannot_parse_is_read(ns: str) -> None:
    """A nat table called a:b, as programs can make one, is told and has its JSON."""
    chain = {"family": "ip", "table": "a:b", "name": "c:d", "type": "nat", "hook": "output"}
    rule = {"family": "ip", "table": "a:b", "chain": "c:d", "expr": [{"accept": None}]}
    made = [
        {"table": {"family": "ip", "name": "a:b"}},
        {"chain": {**chain, "prio": -100, "policy": "accept"}},
        {"rule": rule},
    ]
    command = json.dumps({"nftables": [{"add": one} for one in made]})
    nets.ip_netns_exec(ns, "nft", "-j", "-f", "-", stdin=command)

    read = read_in(ns)

    assert ["accept"] == [rule.text for rule in all_rules(read.ruleset)]
    assert [("ip", "a:b")] == list(read.nat_json)
    objects = json.loads(read.nat_json["ip", "a:b"])["nftables"]
    assert {"metainfo", "table", "chain", "rule"} == {kind for one in objects for kind in one}


def test_a_comment_with_newlines_is_one_rule(ns: str) -> None:
    """A comment that looks like lines of a save belongs to its rule, in both engines."""
    comment = 'a\nCOMMIT\n*nat\n:X - [0:0]\n-A X "é\\" -j DROP # handle 3'
    for tool in ("iptables-legacy", "iptables-nft"):
        nets.ip_netns_exec(
            ns, tool, "-A", "INPUT", "-m", "comment", "--comment", comment, "-j", "ACCEPT"
        )
        nets.ip_netns_exec(ns, tool, "-A", "INPUT", "-s", "10.0.0.9", "-j", "DROP")

    tables = read_in(ns).ruleset.tables

    escaped = comment.replace("\\", "\\\\").replace('"', '\\"')
    expected = [
        (f'-A INPUT -m comment --comment "{escaped}" -j ACCEPT', Verdict.ACCEPT),
        ("-A INPUT -s 10.0.0.9/32 -j DROP", Verdict.DROP),
    ]
    assert [("legacy", "ip", "filter"), ("nft", "ip", "filter")] == sorted(tables)
    for table in tables.values():
        assert expected == [(rule.text, rule.verdict) for rule in table.chains["INPUT"].rules]


@pytest.mark.parametrize("backend", ["legacy", "nft", "nftables"])
def test_reading_changes_nothing(ns: str, backend: str) -> None:
    """Rules, counters, generation and the list of legacy tables are as they were."""
    suffix = "nft" if backend == "nftables" else "rules"
    name = "fw4" if backend == "nftables" else "docker"
    nets.load_rules(ns, backend, (RULESETS / f"{name}.{suffix}").read_text(encoding="utf-8"))
    nets.ip_netns_exec(ns, "ip", "link", "set", "lo", "up")
    nets.send_udp(ns, "127.0.0.1", 4242, 17)
    before = state(ns)

    read = read_in(ns)

    assert before == state(ns)
    assert read.exact
    assert len(all_rules(read.ruleset)) > 10


def test_reading_an_empty_namespace_brings_no_table_into_being(ns: str) -> None:
    """Nothing is there, nothing is told, and nothing is there after it."""
    read = read_in(ns)

    assert ({}, True) == (read.ruleset.tables, read.exact)
    with nets.in_netns(ns):
        assert {"ip": (), "ip6": ()} == legacy_tables()
    assert nets.ip_netns_exec(ns, "nft", "list", "ruleset").stdout == ""


@pytest.mark.parametrize(
    ("backend", "change"),
    [
        ("legacy", ("iptables-legacy", "-A", "INPUT", "-j", "DROP")),
        ("legacy", ("iptables-legacy", "-R", "INPUT", "1", "-s", "10.0.0.2", "-j", "DROP")),
        ("legacy", ("iptables-legacy", "-P", "INPUT", "DROP")),
        ("legacy", ("iptables-legacy", "-t", "raw", "-L")),
        ("legacy", ("ip6tables-legacy", "-L")),
        ("legacy", ("nft", "add", "table", "ip", "t")),
        ("nft", ("iptables-nft", "-D", "INPUT", "1")),
        ("nft", ("ip6tables-nft", "-A", "INPUT")),
    ],
)
def test_a_change_makes_what_was_read_stale(ns: str, backend: str, change: list[str]) -> None:
    """Any rule, policy or table that came or went is noticed; passing packets are not."""
    nets.load_rules(
        ns, backend, "*filter\n-A INPUT -s 10.0.0.1 -j DROP\n-A OUTPUT -m limit\nCOMMIT\n"
    )
    nets.ip_netns_exec(ns, "ip", "link", "set", "lo", "up")
    read = read_in(ns)
    nets.send_udp(ns, "127.0.0.1", 4242, 17)
    with nets.in_netns(ns):
        quiet = read.is_stale()
    nets.ip_netns_exec(ns, *change)

    with nets.in_netns(ns):
        assert (False, True) == (quiet, read.is_stale())


def test_a_fingerprint_sees_the_smallest_change_and_its_undoing(ns: str) -> None:
    """One bit of one rule's address makes another fingerprint, and back the same again."""
    rule = "*filter\n-A INPUT -s 10.0.0.{} -j DROP\nCOMMIT\n"
    six = "*filter\n-A INPUT -s fd00::{} -j DROP\nCOMMIT\n"
    prints = []
    previous = None
    for last in (1, 2, 1):
        nets.load_rules(ns, "legacy", rule.format(1))
        nets.load_rules(ns, "legacy6", six.format(last))
        with nets.in_netns(ns):
            previous = LegacyFingerprint.take(previous)
        prints.append(previous)

    first, second, third = prints
    assert {("ip", "filter"), ("ip6", "filter")} == set(first.tables)
    assert second.changed_since(first)
    assert third.changed_since(second)
    assert not third.changed_since(first)


def test_states_of_matches_are_no_change(ns: str) -> None:
    """What limit, hashlimit, statistic, quota and recent count is not part of the rules."""
    matches = (
        "limit --limit 5/s",
        "hashlimit --hashlimit-name h --hashlimit-above 3/s --hashlimit-mode srcip",
        "statistic --mode nth --every 3 --packet 0",
        "quota --quota 100000",
        "recent --name r --set",
    )
    rules = "\n".join(f"-A OUTPUT -m {match}" for match in matches)
    nets.load_rules(ns, "legacy", f"*mangle\n{rules}\nCOMMIT\n")
    nets.ip_netns_exec(ns, "ip", "link", "set", "lo", "up")
    with nets.in_netns(ns):
        before = LegacyFingerprint.take()
    with nets.udp_listener(ns, 4242):
        nets.send_udp(ns, "127.0.0.1", 4242, 17)

    with nets.in_netns(ns):
        after = LegacyFingerprint.take()

    assert nets.rule_counters(ns, "legacy", "mangle", "OUTPUT")[-1] == 17
    assert not after.changed_since(before)


def test_a_ruleset_that_never_rests_is_told_as_inexact_or_whole(ns: str) -> None:
    """Read while another changes it, it is marked, or is exactly what stood at its generation."""
    nets.load_rules(ns, "nftables", "table ip t {\n chain c {\n }\n}\n")
    ended = threading.Event()

    def change() -> None:
        with nets.in_netns(ns):
            while not ended.is_set():
                nets.run("nft", "add rule ip t c accept; add rule ip t c drop")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        reads = [read_in(ns) for _ in range(5)]
    finally:
        ended.set()
        changing.join(30)

    last = read_in(ns)
    assert last.exact
    for read in [*reads, last]:
        rules = read.ruleset.tables["nft", "ip", "t"].chains["c"].rules
        if read.exact:
            # Each transaction adds two rules, and the first made the chain.
            assert last.generation is not None
            assert read.generation is not None
            missing = 2 * (last.generation - read.generation)
            assert len(rules) == len(all_rules(last.ruleset)) - missing
        assert len(rules) % 2 == 0


def test_a_missing_tool_is_named_with_its_remedy(ns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nft, or with legacy tables and no iptables, the error says what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(ruleset_tools, "_FOLDERS", "/nowhere")
    with nets.in_netns(ns), pytest.raises(KernelUnsupportedError, match="apt install nftables"):
        read_ruleset()
    monkeypatch.undo()
    nets.load_rules(ns, "legacy", "*filter\nCOMMIT\n")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(ruleset_tools, "_FOLDERS", "/nowhere")
    with nets.in_netns(ns), pytest.raises(KernelUnsupportedError, match="apt install iptables"):
        read_ruleset()


def test_iptables_save_serves_where_it_is_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain iptables-save is taken for the engine that its version names, and no other."""
    legacy, native = tmp_path / "legacy", tmp_path / "nft"
    for folder, real in ((legacy, "xtables-legacy-multi"), (native, "xtables-nft-multi")):
        folder.mkdir()
        (folder / "iptables-save").symlink_to(f"/usr/sbin/{real}")
    monkeypatch.setattr(ruleset_tools, "_FOLDERS", "/nowhere")

    found = []
    for folder in (legacy, native):
        monkeypatch.setenv("PATH", str(folder))
        found.append([find_iptables_save("ip", engine) for engine in ("legacy", "nft")])

    expected = [[str(legacy / "iptables-save"), None], [None, str(native / "iptables-save")]]
    assert expected == found
    assert find_iptables_save("ip6", "legacy") is None


def test_a_refused_tool_speaks_for_itself() -> None:
    """An error of a tool is told in its own words, and no descriptor stays open."""
    before = sorted(Path("/proc/self/fd").iterdir())

    with pytest.raises(KernelRefusedError, match="No such file or directory"):
        Tool([find_nft(), "list", "table", "ip", "nowhere"]).read()

    assert before == sorted(Path("/proc/self/fd").iterdir())


def test_twenty_thousand_rules_are_read_whole(ns: str) -> None:
    """20,011 rules in 5,000 chains are all there, in either engine."""
    lines = ["*nat", *(f":SVC-{i} - [0:0]" for i in range(5000)), "-A PREROUTING -j ACCEPT"] + [
        f'-A SVC-{i // 4} -d 10.{i // 250 % 250}.{i % 250}.1/32 -p tcp -m comment --comment "s {i}"'
        " -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80"
        for i in range(20_000)
    ]
    text = "\n".join([*lines, *["-A OUTPUT -j ACCEPT"] * 10, "COMMIT", ""])
    for backend, engine in (("legacy", "legacy"), ("nft", "nft")):
        nets.load_rules(ns, backend, text)
        assert len(saved_order(read_in(ns), engine)) == 20_011
        flush = (
            ("nft", "flush", "ruleset")
            if engine == "nft"
            else ("iptables-legacy", "-t", "nat", "-F")
        )
        nets.ip_netns_exec(ns, *flush)
