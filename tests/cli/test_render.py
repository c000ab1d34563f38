"""What `follow` prints: nothing wider than the screen, the end named whole, counts that add up."""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import replace
from datetime import UTC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.journeys import (
    FILTER_CHAIN,
    SSH_RULE,
    START_NS,
    article,
    dropped_by,
    lone,
    step,
    syn,
)
from tracer.cli.render import JourneyPrinter
from tracer.cli.theme import make_console
from tracer.core.journey import Ending, EndingKind, Journey, Packet, Step, Verdict
from tracer.core.ruleset import Rule
from tracer.core.summary import Summary, SummaryBuilder

SECOND = 1_000_000_000
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def printed(
    *packets: tuple[Journey, ...],
    width: int = 80,
    color: str = "never",
    full: bool = False,
    passed_over: dict[int, list[Rule]] | None = None,
    summary: Summary | None = None,
) -> str:
    """Return what a printer writes for *packets*, and for *summary* if there is one."""
    out = io.StringIO()
    printer = JourneyPrinter(
        make_console(color, file=out, width=width),
        full=full,
        passed_over=None if passed_over is None else lambda _: passed_over,
        zone=UTC,
    )
    for packet in packets:
        printer.show(packet)
    if summary is not None:
        printer.finish(summary)
    return out.getvalue()


def squeezed(text: str) -> str:
    """Return *text* without spaces and line ends, so that wraps make no difference."""
    return re.sub(r"\s", "", text)


def test_article_reads_like_an_incident_report() -> None:
    """Three SYNs of the two-router case at 80 columns are told in this form."""
    builder = SummaryBuilder()
    packets = [article(after) for after in (0, 3_005_305_000, 8_940_488_000)]
    for on_vr1, on_vr2 in packets:
        builder.add(on_vr1, 0)
        builder.add(on_vr2)

    expected = """\
1  17:22:14.030955  vr1   SYN 183.62.15.118:22449 → 61.146.164.120:10174   52 B
   in eth2
   PREROUTING
     mangle PREROUTING               1  -d 61.146.164.120/32 -j VPN_61… → jump
            VPN_61.146.164.120       2  -j RETURN                       ↩ return
            PREROUTING               2  -d 61.146.164.120/32 -j FIREWA… → jump
            FIREWALL_61.146.164.120  2  -j ACCEPT                       ✓ accept
     nat    PREROUTING               1  … --dport 10174 -j DNAT …       ✓ accept
                                     dst 61.146.164.120:10174 ⇒ 172.17.21.105:22
   FORWARD  eth2 → eth0
     mangle FORWARD             policy                                  ✓ accept
     filter FORWARD                 10  -d 172.17.21.105/32 … -j ACCEPT ✓ accept
   POSTROUTING
     mangle POSTROUTING         policy                                  ✓ accept
   ✓ sent out eth0

   17:22:14.031020  vr2   the same packet, now → 172.17.21.105:22
   in eth2
   PREROUTING
     mangle PREROUTING               1  -d 172.17.21.105/32 -j FIREWAL… → jump
            FIREWALL_172.17.21.105   5  -j DROP                         ✗ drop
   ✗ DROPPED in vr2, mangle PREROUTING › FIREWALL_172.17.21.105, rule 5: -j DROP

2  17:22:17.036260  the same way, the same end (SYN again, 3.0 s later)
3  17:22:22.971443  the same way, the same end (SYN again, 5.9 s later)

3 packets: 3 dropped by vr2 mangle FIREWALL_172.17.21.105 rule 5. Nothing lost.
"""  # noqa: RUF001 - the path sign is meant
    assert expected == printed(*packets, summary=builder.build(reason="count reached"))


@pytest.mark.parametrize("color", ["always", "never"])
@pytest.mark.parametrize("width", [40, 50, 80, 100, 200])
def test_no_line_is_wider_than_the_screen(width: int, color: str) -> None:
    """Every line fits the width, with colour and without."""
    text = printed(article(), article(SECOND, sport=7), width=width, color=color)

    assert max(cell_len(ANSI.sub("", line)) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", [80, 200])
def test_color_changes_no_character(width: int) -> None:
    """Colour adds escapes and nothing else; without colour there is none."""
    plain = printed(article(), width=width)
    colored = printed(article(), width=width, color="always")

    assert "\x1b" not in plain
    assert colored.count("\x1b[1;31m") >= 2
    assert plain == ANSI.sub("", colored)


def test_200_columns_show_every_rule_whole() -> None:
    """On a wide screen nothing is left out."""
    text = printed(article(), width=200)

    assert "…" not in text
    assert SSH_RULE in text


def test_ending_names_place_and_rule() -> None:
    """The ending's line has namespace, table, chains, number and text of the rule."""
    last = printed(article()).rstrip().splitlines()[-1]

    assert all(
        word in last for word in ("DROPPED", "vr2", "mangle", "PREROUTING", FILTER_CHAIN, "rule 5")
    )
    assert last.endswith(": -j DROP")


def test_deciding_rule_is_shown_whole() -> None:
    """The rule that ended the journey is never shortened, however long it is."""
    text = " ".join(f"-m mark --mark {n:#x}" for n in range(23)) + " -j DROP"
    last = step("input filter INPUT", 3, text, Verdict.DROP)
    lines = printed((lone(syn("10.0.0.1", 22), last),)).splitlines()

    assert "…" not in "".join(lines)
    assert squeezed("\n".join(lines)).count(squeezed(text.removesuffix(" -j DROP"))[-40:]) == 2
    assert max(map(cell_len, lines)) <= 80


def test_policy_has_no_rule_number() -> None:
    """A policy's drop says so instead of a number."""
    last = step("forward filter FORWARD", None, None, Verdict.DROP)
    text = printed((lone(syn("10.0.0.1", 22), last),))

    assert "✗ DROPPED in vr2, filter FORWARD, by the policy of the chain" in text
    assert re.search(r"FORWARD +policy +✗ drop", text)


ENDINGS = [
    (Ending(EndingKind.SENT, device="eth0"), "✓ sent out eth0"),
    (Ending(EndingKind.DELIVERED), "✓ delivered in vr2"),
    (
        Ending(EndingKind.UNKNOWN, hook="postrouting", reason="not observed"),
        "? last seen leaving postrouting towards eth1 (what became of it then was not observed)",
    ),
    (
        Ending(EndingKind.DROPPED, hook="postrouting", reason="NEIGH_FAILED"),
        "✗ DROPPED in vr2 by the kernel, by no rule, after postrouting: NEIGH_FAILED",
    ),
    (
        Ending(EndingKind.REJECTED, None, "nft", "inet", "f", "c", 2, 9, "reject"),
        "✗ REJECTED in vr2, inet f c, rule 2: reject",
    ),
    (
        Ending(EndingKind.QUEUED, None, "nft", "inet", "f", "c", 2, 9, "queue to 3"),
        "» queued to user space in vr2, inet f c, rule 2: queue to 3",
    ),
]


@pytest.mark.parametrize(("ending", "line"), ENDINGS, ids=lambda value: str(value)[:20])
def test_each_kind_of_ending_has_its_words(ending: Ending, line: str) -> None:
    """Sent, delivered, unknown, dropped by the kernel, rejected and queued are told apart."""
    left = step("postrouting mangle POSTROUTING", None, None, Verdict.ACCEPT)
    journey = replace(lone(syn("10.0.0.1", 22), left, ending=ending), out_device="eth1")

    assert f"   {line}" == printed((journey,), width=200).splitlines()[-1]


def test_nft_rule_is_named_by_number_and_handle() -> None:
    """A native rule's ending has the handle that `nft delete rule` takes."""
    last = Step(
        "input", "nft", "inet", "fw", "in", "rule", 4, 17, "tcp dport 22 drop", "nft", Verdict.DROP
    )
    text = printed((lone(syn("10.0.0.1", 22), last),))

    assert "DROPPED in vr2, inet fw in, rule 4, handle 17: tcp dport 22 drop" in text


def test_rule_that_was_gone_is_said_to_be() -> None:
    """A rule without text is not passed over in silence."""
    last = Step("input", "nft", "ip", "t", "c", "rule", None, 17, None, "nft", Verdict.DROP)
    text = printed((lone(syn("10.0.0.1", 22), last),))

    assert "handle 17: (gone before it could be read)" in text


PACKETS = [
    (
        Packet(
            "ipv4", "icmp", "10.0.0.1", "10.0.0.2", icmp_type=8, icmp_code=0, icmp_id=7, icmp_seq=1
        ),
        "ICMP echo-request 10.0.0.1 → 10.0.0.2 id 7 seq 1",
    ),
    (
        Packet("ipv4", "icmp", "10.0.0.1", "10.0.0.2", icmp_type=3, icmp_code=3),
        "ICMP port-unreachable 10.0.0.1 → 10.0.0.2",
    ),
    (
        Packet("ipv6", "icmpv6", "fd00::1", "fd00::2", icmp_type=128, icmp_id=7, icmp_seq=1),
        "ICMPv6 echo-request fd00::1 → fd00::2 id 7 seq 1",
    ),
    (Packet("ipv6", "udp", "fd00::1", "fd00::2", 53, 99), "UDP [fd00::1]:53 → [fd00::2]:99"),
    (
        Packet("ipv4", "udp", "10.0.0.1", "10.0.0.2", length=1500),
        "UDP 10.0.0.1 → 10.0.0.2 (a fragment without ports)   1,500 B",
    ),
    (Packet("ipv4", "tcp", "10.0.0.1", "10.0.0.2", 1, 2, tcp_flags="SA"), "SYN-ACK 10.0.0.1:1"),
    (Packet("ipv4", "gre", "10.0.0.1", "10.0.0.2"), "GRE 10.0.0.1 → 10.0.0.2"),
    (Packet("ipv4", "253", "10.0.0.1", "10.0.0.2"), "protocol 253 10.0.0.1 → 10.0.0.2"),
    (Packet("other", "arp"), "ARP (no IP addresses)"),
]


@pytest.mark.parametrize(("packet", "words"), PACKETS, ids=[words for _, words in PACKETS])
def test_headline_suits_the_protocol(packet: Packet, words: str) -> None:
    """Ports, ICMP messages, brackets for IPv6, fragments: each headline says what there is."""
    assert words in printed((lone(packet),), width=120).splitlines()[0]


def test_mark_is_hexadecimal_and_lone_port_keeps_its_name() -> None:
    """Changes read `mark 0x0 ⇒ 0x2` and, where the address stays, `dport 80 ⇒ 8080`."""
    changes = {"mark": (0, 2), "dport": (80, 8080)}
    last = step("prerouting nat PREROUTING", 1, "-j REDIRECT", Verdict.ACCEPT, changes)
    text = printed((lone(syn("10.0.0.1", 80), last, ending=Ending(EndingKind.DELIVERED)),))

    assert "mark 0x0 ⇒ 0x2\n" in text
    assert " dport 80 ⇒ 8080\n" in text


def test_hole_and_late_begin_are_said() -> None:
    """A journey that may lack steps says so, with the number of lost events."""
    hole = replace(article()[1], complete=False, lost=17, whole=False)
    text = printed((hole,), width=120)

    assert "17 events were lost while this packet was on its way: steps may be missing" in text
    assert "tracing began behind this packet's first hook" in text
    assert "lost" not in printed((article()[1],))


def test_reply_is_recognised_by_the_translated_addresses() -> None:
    """The answer to a packet, seen before NAT is undone, is called a reply to it."""
    answer = Packet("ipv4", "tcp", "172.17.21.105", "183.62.15.118", 22, 22449, tcp_flags="SA")
    text = printed(article(), (lone(answer),), (lone(replace(answer, dport=1)),))

    assert text.count("reply to 1: SYN-ACK 172.17.21.105:22") == 1


def test_passed_over_rules_stand_before_the_step() -> None:
    """With the rules passed over given, each is listed with its number above the match."""
    rules = [
        Rule(n, f"-A {FILTER_CHAIN} -p tcp --dport {n} -j RETURN", "iptables", Verdict.RETURN)
        for n in range(1, 5)
    ]
    lines = printed((article()[1],), passed_over={1: rules}).splitlines()
    numbers = [line.split()[1] for line in lines if FILTER_CHAIN in line and "DROPPED" not in line]

    assert ["1", "2", "3", "4", "5"] == [n for n in numbers if n.isdigit()]


def test_the_table_stands_in_its_first_row() -> None:
    """Rules passed over in a table's first chain do not look like the table's above."""
    rules = [Rule(1, "-A PREROUTING -p tcp -j ACCEPT", "iptables", Verdict.ACCEPT)]
    lines = printed((article()[1],), passed_over={0: rules}).splitlines()
    rows = [line.split() for line in lines if "PREROUTING " in line and "DROPPED" not in line]

    assert [["mangle", "PREROUTING", "1"], ["PREROUTING", "1", "-d"]] == [row[:3] for row in rows]


def test_long_chain_passed_over_is_bounded() -> None:
    """Of thousands of passed over rules the last are listed and the rest counted."""
    rules = [Rule(n, "-A X -j LOG", "iptables", Verdict.CONTINUE) for n in range(1, 5004)]
    text = printed((article()[1],), passed_over={1: rules})

    assert "(4,963 more above)" in text
    assert text.count("-j LOG") == 40


def test_other_flows_of_a_way_are_named() -> None:
    """A packet of another connection that went the same way shows its addresses."""
    text = printed(article(), article(SECOND, sport=22450))

    assert "(SYN 183.62.15.118:22450 → 61.146.164.120:10174)" in squeezed_lines(text)


def squeezed_lines(text: str) -> str:
    """Return *text* with its wraps undone."""
    return re.sub(r"\n +", " ", text)


def told(text: str) -> int:
    """Add up the packets that *text* accounts for: the last count of each way."""
    ways: dict[str, int] = {}
    last = ""
    for line in text.splitlines():
        if whole := re.match(r"(\d+)  \S+  vr1", line):
            last = whole[1]
            ways[last] = 1
        elif counted := re.match(r"…  ([\d,]+) packets so far the same way as (\d+)", line):
            last = counted[2]
            ways[last] = int(counted[1].replace(",", ""))
        elif folded := re.match(r"\d+  \S+  the same way(?: as (\d+))?,", line):
            last = folded[1] or last
            ways[last] += 1
    return sum(ways.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_folded_counts_add_up(kinds: list[int]) -> None:
    """Whatever the order of the ways, the packets told are the packets shown."""
    packets = []
    for index, kind in enumerate(kinds):
        on_vr1, on_vr2 = article(index * 1000, sport=index)
        packets.append((on_vr1, replace(on_vr2, in_device=f"eth{kind}")))

    assert len(packets) == told(printed(*packets, width=200, summary=Summary()))


def test_thousands_fold_into_a_few_lines() -> None:
    """10,007 packets of one way take a line for each power of ten and one for the rest."""
    packets = [article(n * 1000, sport=n % 5) for n in range(10_007)]
    text = printed(*packets, summary=Summary())
    counts = re.findall(r"…  ([\d,]+) packets so far the same way as 1", text)

    assert ["10", "100", "1,000", "10,000", "10,007"] == counts
    assert len(text.splitlines()) < 50


def test_quiet_way_is_told_again_after_ten_seconds() -> None:
    """A slow flow does not go silent between the powers of ten."""
    packets = [article(n * 4 * SECOND) for n in range(13)]
    text = printed(*packets)

    assert "…  9 packets so far the same way as 1" in text
    assert "…  10 packets so far the same way as 1" in text


def test_full_folds_nothing() -> None:
    """With full every packet is told whole."""
    text = printed(article(), article(SECOND), full=True)

    assert text.count("DROPPED in vr2") == 2


def test_memory_of_ways_is_bounded() -> None:
    """Beyond the limit the oldest ways are forgotten, what they owe is told, and it is said."""
    out = io.StringIO()
    console = make_console("never", file=out, width=80)
    printer = JourneyPrinter(console, zone=UTC, ways_limit=3)
    for _ in range(9):
        printer.show(article()[1:])
    for number in range(5):
        printer.show((replace(article()[1], in_device=f"new{number}"),))
    printer.finish(Summary(packets=14))

    assert "…  9 packets so far the same way as 1" in out.getvalue()
    assert "…  3 ways were forgotten" in out.getvalue()


def test_day_is_told_when_it_changes() -> None:
    """Past midnight a line says which day it is."""
    text = printed(article(), article(24 * 3600 * SECOND))

    assert "\n2026-11-24\n" in text
    assert "2026-11-23" not in text


def test_output_without_unicode_stays_ascii() -> None:
    """A terminal that knows ASCII only gets ASCII only."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    journey = lone(syn("10.0.0.1", 22), step("input filter Küche", 1, "-j DROP", Verdict.DROP))
    JourneyPrinter(make_console("never", file=out, width=80)).show((journey,))
    out.flush()

    assert b"x DROPPED in vr2, filter K\\xfcche, rule 1: -j DROP" in raw.getvalue()


ANY_TEXT = st.text(st.characters(), min_size=1, max_size=200)
BAD = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT, chain=ANY_TEXT, width=st.sampled_from([40, 80, 200]))
def test_no_text_breaks_the_layout(text: str, chain: str, width: int) -> None:
    """Whatever a rule or a chain is called, no control reaches the screen and every line fits."""
    jump = replace(step("input filter INPUT", 1, text, Verdict.JUMP), target=chain)
    last = replace(step("input filter X", 2, text, Verdict.DROP), chain=chain, table=chain)
    journey = replace(lone(syn("10.0.0.1", 22), jump, last), netns=chain, in_device=chain)
    builder = SummaryBuilder()
    builder.add(journey)
    builder.add(replace(journey, ending=dropped_by(jump)))
    builder.note(text)
    shown = printed((journey,), width=width, summary=builder.build(reason=text))
    lines = shown.split("\n")

    assert not {unicodedata.category(c) for line in lines for c in line} & BAD
    assert max(map(cell_len, lines)) <= width


def test_markup_is_text() -> None:
    """Brackets and emoji codes in a comment are shown as they stand."""
    comment = '-m comment --comment "[bold]x[/bold] :smile: [red]" -j DROP'
    text = printed(
        (lone(syn("10.0.0.1", 22), step("input filter INPUT", 1, comment, Verdict.DROP)),),
        width=200,
        color="always",
    )

    assert text.count("[bold]x[/bold] :smile: [red]") == 2


def test_start_is_what_the_clock_says() -> None:
    """The headline's time is the journey's start to the microsecond."""
    journey = replace(article()[1], start_ns=START_NS // SECOND * SECOND + 999_999_999)

    assert "17:22:14.999999" in printed((journey,))
