"""Rule counters from the running kernel: equal to the tools' own, at no one's expense."""

from __future__ import annotations

import fcntl
import re
import resource
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.rule_counts import RuleCounts
from tracer.errors import KernelRefusedError
from tracer.sources.netns import find_namespace
from tracer.sources.rule_counters import CounterReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.rule_reading import NetnsCounters

RULESETS = Path(__file__).parents[1] / "core" / "rulesets"
IPTABLES = sorted(path.stem for path in RULESETS.glob("*.rules"))
NATIVE = sorted(path.stem for path in RULESETS.glob("*.nft"))
TO_B = "10.1.0.2"
SAVES = {"legacy": "iptables-legacy-save", "nft": "iptables-nft-save"}
TOOLS = {"legacy": "iptables-legacy", "nft": "iptables-nft"}
RULES = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
-A FIREWALL -p udp --dport 7001 -j DROP
-A FIREWALL -p udp --dport 7002 -m comment --comment "no sevens" -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
-A INPUT -p udp --dport 7003 -j ACCEPT
COMMIT
"""
NATIVE_RULES = """table inet t {
  chain c {
    type filter hook input priority 0; policy drop
    udp dport 7001 counter drop
    udp dport 7002 drop
    udp dport 7003 accept
  }
}
"""


@pytest.fixture
def cable(netns: Callable[..., str]) -> str:
    """Lay a cable from a to b, whose counters are read."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{TO_B}/24")
    return "b"


def read(reader: CounterReader, ns: str = "b") -> NetnsCounters:
    """Read the counters of *ns*."""
    return reader.read(find_namespace(ns))


def by_text(reading: NetnsCounters) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Give packets and bytes by table, chain and text (or `policy`) of what is counted."""
    return {
        (table.table, rule.chain, rule.text or "policy"): (packets, octets)
        for table in reading.tables
        for rule, packets, octets, has in zip(
            table.rules, table.packets.tolist(), table.octets.tolist(), table.counted, strict=True
        )
        if has
    }


def saved(ns: str, tool: str) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Give the same as iptables-save -c or a relative says."""
    text = nets.ip_netns_exec(ns, tool, "-c").stdout
    found, table = {}, ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif rule := re.fullmatch(r"\[(\d+):(\d+)\] (-A (\S+).*)", line):
            found[table, rule[4], rule[3]] = int(rule[1]), int(rule[2])
        elif policy := re.fullmatch(r":(\S+) [A-Z]+ \[(\d+):(\d+)\]", line):
            found[table, policy[1], "policy"] = int(policy[2]), int(policy[3])
    return found


def children() -> tuple[int, int]:
    """Give what grows with each process that was run and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_minflt, used.ru_nvcsw


@pytest.mark.parametrize("engine", ["legacy", "nft"])
def test_numbers_are_those_of_iptables_save(cable: str, engine: str) -> None:
    """After primes of packets each rule and policy has what iptables-save -c prints."""
    nets.load_rules(cable, engine, RULES)
    for port, count in ((7001, 13), (7002, 7), (7003, 5), (7004, 3)):
        nets.send_udp("a", TO_B, port, count)

    found = by_text(read(CounterReader()))

    expected = saved(cable, SAVES[engine])
    assert found == {key: value for key, value in expected.items() if key in found}
    assert {key for key in expected if key[2] != "policy"} <= found.keys()
    assert [13, 7, 5, 3] == [
        found[key][0]
        for key in (
            ("mangle", "FIREWALL", "-A FIREWALL -p udp -m udp --dport 7001 -j DROP"),
            (
                "mangle",
                "FIREWALL",
                '-A FIREWALL -p udp -m udp --dport 7002 -m comment --comment "no sevens" -j DROP',
            ),
            ("filter", "INPUT", "-A INPUT -p udp -m udp --dport 7003 -j ACCEPT"),
            ("filter", "INPUT", "policy"),
        )
    ]


@pytest.mark.parametrize("name", IPTABLES)
def test_each_rule_of_a_legacy_ruleset_has_its_counter(
    netns: Callable[..., str], name: str
) -> None:
    """Rulesets of real programs, loaded with a counter of its own for each rule."""
    ns = netns("rules")
    numbers = iter(range(1, 1_000_000))
    text = (RULESETS / f"{name}.rules").read_text(encoding="utf-8")
    counted = re.sub(
        r"^(\[\d+:\d+\] )?-A ", lambda _: f"[{next(numbers)}:7] -A ", text, flags=re.MULTILINE
    )
    nets.ip_netns_exec(ns, "iptables-legacy-restore", "-c", stdin=counted)

    reading = read(CounterReader(), ns)

    found = [
        f"[{packets}:{octets}] {rule.text}"
        for table in reading.tables
        for rule, packets, octets in zip(
            table.rules, table.packets.tolist(), table.octets.tolist(), strict=True
        )
        if not rule.is_policy
    ]
    printed = nets.ip_netns_exec(ns, "iptables-legacy-save", "-c").stdout
    assert sorted(re.findall(r"^\[.*(?:\n(?![\[:*#C]).*)*", printed, re.MULTILINE)) == sorted(found)
    assert reading.exact


@pytest.mark.parametrize("name", NATIVE)
def test_each_rule_of_a_native_ruleset_has_its_counter_or_none(
    netns: Callable[..., str], name: str
) -> None:
    """A rule has a counter where nft's listing shows one, with the listing's numbers."""
    ns = netns("rules")
    nets.load_rules(ns, "nftables", (RULESETS / f"{name}.nft").read_text(encoding="utf-8"))

    reading = read(CounterReader(), ns)

    listed = nets.ip_netns_exec(ns, "nft", "-a", "list", "ruleset").stdout
    shown = {
        int(handle): text
        for text, handle in re.findall(r"^\t\t(.*) # handle (\d+)$", listed, re.MULTILINE)
    }
    assert reading.exact
    if len(reading.tables) == 1:
        (table,) = reading.tables
        has = {
            rule.handle: bool(counted)
            for rule, counted in zip(table.rules, table.counted, strict=True)
            if rule.handle is not None
        }
        assert has == {
            handle: re.search(r"\bcounter packets \d", text) is not None
            for handle, text in shown.items()
        }
    assert sum(rule.handle is not None for t in reading.tables for rule in t.rules) == len(
        re.findall(r"^\t\t.* # handle \d+$", listed, re.MULTILINE)
    )


def test_native_rules_are_read_by_handle(cable: str) -> None:
    """A counter is its rule's; a rule and a policy without one are not told as 0."""
    nets.load_rules(cable, "nftables", NATIVE_RULES)
    nets.send_udp("a", TO_B, 7001, 13)
    nets.send_udp("a", TO_B, 7002, 7)

    found = by_text(read(CounterReader()))

    assert {("t", "c", "udp dport 7001 counter drop"): (13, 13 * 28)} == found


def test_ip6tables_has_tables_of_its_own(netns: Callable[..., str]) -> None:
    """Equal rules of both families are counted apart."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", ("10.1.0.1/24", "fd00::1/64"), "b", "b0", (f"{TO_B}/24", "fd00::2/64"))
    for backend in ("legacy", "legacy6"):
        nets.load_rules("b", backend, "*filter\n-A INPUT -p udp -j DROP\nCOMMIT\n")
    nets.send_udp("a", TO_B, 7001, 13)
    nets.send_udp("a", "fd00::2", 7001, 7)

    reading = read(CounterReader())

    assert {"ip": 13, "ip6": 7} == {table.family: int(table.packets[0]) for table in reading.tables}


@pytest.mark.parametrize("engine", ["legacy", "nft"])
def test_totals_go_on_over_all_that_operators_do(cable: str, engine: str) -> None:
    """A rule above, a zeroing, a flush and a reload, each between two readings."""
    nets.load_rules(cable, engine, RULES)
    reader, counts = CounterReader(), RuleCounts()
    tool = (TOOLS[engine], "-t", "mangle")
    seen: list[int] = []

    def step(packets: int, *words: str) -> None:
        nets.send_udp("a", TO_B, 7001, packets)
        counts.update(read(reader))
        seen.append(total_of(counts, "7001"))
        if words:
            nets.ip_netns_exec(cable, *tool, *words)
            counts.update(read(reader))

    step(13, "-I", "FIREWALL", "-p", "tcp", "-j", "DROP")
    step(7, "-Z", "FIREWALL")
    step(5, "-F", "FIREWALL")
    assert total_of(counts, "7001") == 0
    nets.load_rules(cable, engine, RULES)
    step(11)
    nets.load_rules(cable, engine, RULES)
    step(3)

    # The reload with no reading between is seen by handles, and by a counter that fell.
    assert [13, 20, 25, 36, 39] == seen
    assert counts.changes["b"] >= 3
    assert sum(counts.resets.values()) >= 1


def total_of(counts: RuleCounts, word: str) -> int:
    """Give the total of the one rule whose text has *word*; 0 where there is none."""
    found = [
        int(table.totals[0, at])
        for table in counts.tables.values()
        for at, rule in enumerate(table.rules)
        if word in (rule.text or "")
    ]
    assert len(found) <= 1
    return sum(found)


def test_a_rules_id_is_the_same_below_an_inserted_one(cable: str) -> None:
    """Numbers change, ids do not."""
    nets.load_rules(cable, "legacy", RULES)
    reader = CounterReader()
    before = ids(read(reader))
    nets.ip_netns_exec(cable, "iptables-legacy", "-t", "mangle", "-I", "FIREWALL", "-j", "RETURN")
    after = ids(read(reader))

    assert before.items() <= after.items()
    assert 1 == len(after) - len(before)


def ids(reading: NetnsCounters) -> dict[tuple[str, str], str]:
    """Give the ids of all rules by chain and text."""
    return {
        (rule.chain, rule.text): rule.rule_id
        for table in reading.tables
        for rule in table.rules
        if rule.text is not None
    }


def test_ten_thousand_rules_are_read_without_a_process(cable: str) -> None:
    """Once the texts are known no tool is run, however many rules there are."""
    rules = "".join(f"-A INPUT -p udp --dport {port} -j DROP\n" for port in range(1, 5_001))
    text = f"*filter\n{rules}COMMIT\n"
    nets.load_rules(cable, "legacy", text)
    nets.load_rules(cable, "nft", text)
    reader = CounterReader()
    first = read(reader)
    nets.send_udp("a", TO_B, 4999, 13)
    before = children()

    second = read(reader)

    assert before == children()
    assert [5_000, 5_000] == [
        sum(not rule.is_policy for rule in table.rules)
        for table in second.tables
        if table.table == "filter"
    ]
    assert 13 == sum(int(table.packets[4998]) for table in second.tables)
    assert all(
        now.rules is then.rules for now, then in zip(second.tables, first.tables, strict=True)
    )
    assert (1, True) == (second.version, second.exact)


def test_elements_and_tables_of_our_own_are_no_change_of_the_rules(cable: str) -> None:
    """What nft's generation counts beside rules makes no other version and runs no tool."""
    nets.load_rules(
        cable, "nftables", NATIVE_RULES + "table inet s {\n set x {\n type mark\n }\n}\n"
    )
    reader = CounterReader()
    read(reader)
    nets.ip_netns_exec(cable, "nft", "add", "element", "inet", "s", "x", "{ 7 }")
    own = "table inet nftrace_x { chain c { type filter hook input priority 1; counter; }; }"
    nets.load_rules(cable, "nftables", own)
    nets.send_udp("a", TO_B, 7001, 13)
    before = children()

    found = read(reader)

    assert before == children()
    assert 1 == found.version
    assert {"t", "s"} == {table.table for table in found.tables}
    assert {("t", "c", "udp dport 7001 counter drop"): (13, 13 * 28)} == by_text(found)


def test_the_lock_of_xtables_is_not_waited_for(cable: str) -> None:
    """Counters and texts are read while another holds the lock."""
    nets.load_rules(cable, "legacy", RULES)
    with Path("/run/xtables.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        reading = read(CounterReader())

    assert ("mangle", "FIREWALL", "-A FIREWALL -p udp -m udp --dport 7001 -j DROP") in by_text(
        reading
    )


def test_nobody_waits_for_us(cable: str) -> None:
    """iptables-restore without patience finds the lock free while counters are read."""
    nets.load_rules(cable, "legacy", RULES)
    reader, stop, readings = CounterReader(), threading.Event(), []

    def scrape() -> None:
        while not stop.is_set():
            readings.append(read(reader).version)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for _ in range(31):
            nets.load_rules(cable, "legacy", RULES)
        nets.wait_until(lambda: len(readings) > 31, 10, "a reading")
    finally:
        stop.set()
        thread.join()

    assert sorted(readings) == readings
    assert {1} == set(readings)


@pytest.mark.parametrize("engine", ["legacy", "nft"])
def test_reloads_under_scrape_invent_nothing(cable: str, engine: str) -> None:
    """However readings and reloads fall together, totals neither fall nor exceed what came."""
    nets.load_rules(cable, engine, RULES)
    reader, counts, stop = CounterReader(), RuleCounts(), threading.Event()
    seen: list[int] = []

    def scrape() -> None:
        while not stop.is_set():
            counts.update(read(reader))
            seen.append(total_of(counts, "7001"))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for _ in range(13):
            nets.send_udp("a", TO_B, 7001, 7)
            nets.load_rules(cable, engine, RULES)
    finally:
        stop.set()
        thread.join()
    nets.send_udp("a", TO_B, 7001, 3)
    counts.update(read(reader))

    assert sorted(seen) == seen
    assert 3 <= total_of(counts, "7001") <= 13 * 7 + 3
    assert total_of(counts, "7001") >= seen[-1]


def test_a_namespace_that_is_left_is_read_anew(cable: str) -> None:
    """What is forgotten is learned again, as version 1 of what is there."""
    nets.load_rules(cable, "legacy", RULES)
    reader = CounterReader()
    read(reader)
    nets.load_rules(cable, "legacy", "*filter\nCOMMIT\n")
    changed = read(reader).version
    reader.keep_only(())

    assert (2, 1) == (changed, read(reader).version)


def test_a_namespace_without_rules_has_no_tables(netns: Callable[..., str]) -> None:
    """Reading brings no table into being."""
    ns = netns("rules")
    reader = CounterReader()

    assert ((), ()) == (read(reader, ns).tables, read(reader, ns).tables)
    assert "" == nets.ip_netns_exec(ns, "cat", "/proc/net/ip_tables_names").stdout


def test_without_the_capability_one_clear_line_says_so(cable: str) -> None:
    """Who may not read rules is told what is refused and what to do, and gets no numbers."""
    nets.load_rules(cable, "nftables", NATIVE_RULES)
    program = (
        "from tracer.errors import KernelRefusedError\n"
        "from tracer.sources.nft_dumps import read_dumps\n"
        "try:\n    print(read_dumps())\n"
        "except KernelRefusedError as exc:\n    print(exc)\n"
    )

    said = nets.ip_netns_exec(
        cable,
        *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
        *("env", f"PYTHONPATH={nets.ROOT}", sys.executable, "-c", program),
    ).stdout

    assert said == (
        "the kernel does not show nft's rules (Operation not permitted): "
        "run as root (CAP_NET_ADMIN in the network namespace)\n"
    )


def test_a_namespace_that_is_gone_is_named(netns: Callable[..., str]) -> None:
    """It is refused by name, and others are read on."""
    namespace = find_namespace(netns("rules"))
    reader = CounterReader()
    gone = replace(namespace, path="/run/netns/none")

    with pytest.raises(KernelRefusedError, match="network namespace rules is gone"):
        reader.read(gone)
    assert () == reader.read(namespace).tables
