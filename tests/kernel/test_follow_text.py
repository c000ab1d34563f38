"""What people read, word by word: folded, whole, with the rules passed over, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow_text

if TYPE_CHECKING:
    from collections.abc import Callable

BOX, SENDER = "box", "sender"
UDP = ("--src", "10.1.0.1", "--proto", "udp")
BACKENDS = pytest.mark.parametrize("backend", nets.BACKENDS)

IPTABLES = """\
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 1 -j DROP
-A PREROUTING -p udp -m udp --dport 53 -j MARK --set-xmark 0x7/0xffffffff
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 5353 -j REDIRECT --to-ports 53
COMMIT
*filter
:INPUT DROP [0:0]
:OTHER - [0:0]
:NAMES - [0:0]
-A INPUT -p tcp -j ACCEPT
-A INPUT -s 10.9.0.0/16 -j OTHER
-A INPUT -p udp -j NAMES
-A NAMES -s 10.8.0.1/32 -j ACCEPT
-A NAMES -s 10.8.0.2/32 -m comment --comment "a friend" -j ACCEPT
-A NAMES -p udp -m udp --dport 53 -j DROP
-A NAMES -j RETURN
-A NAMES -j DROP
COMMIT
"""
NATIVE = """\
table ip mangle {
 chain PREROUTING { type filter hook prerouting priority -150;
  tcp dport 1 drop
  udp dport 53 meta mark set 7
 }
}
table ip nat {
 chain PREROUTING { type nat hook prerouting priority -100; udp dport 5353 redirect to :53; }
}
table ip filter {
 chain OTHER { }
 chain NAMES {
  ip saddr 10.8.0.1 accept
  ip saddr 10.8.0.2 accept comment "a friend"
  udp dport 53 drop
  return
  drop
 }
 chain INPUT { type filter hook input priority 0; policy drop;
  meta l4proto tcp accept
  ip saddr 10.9.0.0/16 jump OTHER
  meta l4proto udp jump NAMES
 }
}
"""
#: What the two forms of a rule are called in the texts below.
WORDS = {
    "iptables": {
        "MARK_SHORT": "-p udp -m udp … -j MARK …",
        "MARK": "-p udp -m udp --dport 53 -j MARK --set-xmark 0x7/0xffffffff",
        "REDIRECT": "-p udp -m udp --dport 5353 -j REDIRECT --to-ports 53",
        "NAMES_RULE": "-p udp -j NAMES",
        "KILL": "-p udp -m udp --dport 53 -j DROP",
        "HANDLE": "",
        "TCP_1": "-p tcp -m tcp --dport 1 -j DROP",
        "TCP": "-p tcp -j ACCEPT",
        "OTHER": "-s 10.9.0.0/16 -j OTHER",
        "FRIEND_1": "-s 10.8.0.1/32 -j ACCEPT",
        "FRIEND_2": '-s 10.8.0.2/32 -m comment --comment "a friend" -j ACCEPT',
        "RETURN": "-j RETURN",
    },
    "nft": {
        "MARK_SHORT": "udp dport 53 meta mark set 0x00000007",
        "MARK": "udp dport 53 meta mark set 0x00000007",
        "REDIRECT": "udp dport 5353 redirect to :53",
        "NAMES_RULE": "meta l4proto udp jump NAMES",
        "KILL": "udp dport 53 drop",
        "HANDLE": ", handle 6",
        "TCP_1": "tcp dport 1 drop",
        "TCP": "meta l4proto tcp accept",
        "OTHER": "ip saddr 10.9.0.0/16 jump OTHER",
        "FRIEND_1": "ip saddr 10.8.0.1 accept",
        "FRIEND_2": 'ip saddr 10.8.0.2 accept comment "a friend"',
        "RETURN": "return",
    },
}


@pytest.fixture
def box(netns: Callable[..., str]) -> str:
    """Give a host with a sender beside it."""
    nets.veth(netns(SENDER), "eth0", "10.1.0.1/24", netns(BOX), "eth0", "10.1.0.2/24")
    return BOX


def _load(box: str, backend: str) -> None:
    nets.load_rules(box, backend, NATIVE if backend == "nftables" else IPTABLES)


def _send() -> None:
    """Send marked packets that a rule drops, redirected ones, and such as the policy drops."""
    for port, count, sport in ((53, 3, 4001), (5353, 2, 4002), (54, 2, 4003)):
        nets.send_udp(SENDER, "10.1.0.2", port, count, sport=sport)


def _lines(text: str) -> list[str]:
    """Return the lines, their columns set apart by one space each: widths differ by rules."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def _expected(backend: str, text: str) -> list[str]:
    """Return the lines of *text* in the words of *backend*, and without what it has no step for."""
    names = WORDS["nft" if backend == "nftables" else "iptables"]
    for name, words in names.items():
        text = text.replace(f"<{name}>", words)
    if backend == "legacy":
        text = text.replace("LEGACY ", "")
    return [line for line in _lines(text) if not line.startswith("LEGACY ")]


HEAD = "following udp 10.1.0.1 in box; Ctrl-C ends\n"
TAIL = """
7 packets:
   5  dropped by box filter NAMES rule 3: <KILL>
   2  dropped by box filter INPUT policy
Nothing lost. Ended: interrupted.
"""
KILLED = "✗ DROPPED in box, filter INPUT \u203a NAMES, rule 3<HANDLE>: <KILL>"
MARKED = f"""box UDP 10.1.0.1:4001 → 10.1.0.2:53 28 B
in eth0
PREROUTING
mangle PREROUTING 2 <MARK_SHORT> · continue
mark 0x0 ⇒ 0x7
PREROUTING policy ✓ accept
nat PREROUTING policy ✓ accept
INPUT
LEGACY mangle INPUT policy ✓ accept
filter INPUT 3 <NAMES_RULE> → jump
NAMES 3 <KILL> ✗ drop
{KILLED}
"""
REDIRECTED = f"""box UDP 10.1.0.1:4002 → 10.1.0.2:5353 28 B
in eth0
PREROUTING
mangle PREROUTING policy ✓ accept
nat PREROUTING 1 <REDIRECT> ✓ accept
dport 5353 ⇒ 53
INPUT
LEGACY mangle INPUT policy ✓ accept
filter INPUT 3 <NAMES_RULE> → jump
NAMES 3 <KILL> ✗ drop
{KILLED}
"""
REFUSED = """box UDP 10.1.0.1:4003 → 10.1.0.2:54 28 B
in eth0
PREROUTING
mangle PREROUTING policy ✓ accept
nat PREROUTING policy ✓ accept
INPUT
LEGACY mangle INPUT policy ✓ accept
filter INPUT 3 <NAMES_RULE> → jump
NAMES 4 <RETURN> ↩ return
INPUT policy ✗ drop
✗ DROPPED in box, filter INPUT, by the policy of the chain
"""


@BACKENDS
def test_equal_ways_fold(box: str, backend: str) -> None:
    """The first packet of a way is told whole, each other in one line; the summary adds up."""
    _load(box, backend)

    with follow_text(box, *UDP) as run:
        _send()
        text = run.finish_text("7  ")

    expected = f"""{HEAD}
1 TIME {MARKED}
2 TIME the same way, the same end (UDP, SOON)
3 TIME the same way, the same end (UDP, SOON)

4 TIME {REDIRECTED}
5 TIME the same way, the same end (UDP, SOON)

6 TIME {REFUSED}
7 TIME the same way, the same end (UDP, SOON)
{TAIL}"""
    assert _expected(backend, expected) == _lines(text)
    assert max(map(len, text.splitlines())) <= 100


@BACKENDS
def test_full_folds_nothing(box: str, backend: str) -> None:
    """With --full every packet is told whole, one after the other."""
    _load(box, backend)

    with follow_text(box, *UDP, "--full") as run:
        _send()
        text = run.finish_text("by the policy of the chain", 2)

    whole = [MARKED] * 3 + [REDIRECTED] * 2 + [REFUSED] * 2
    packets = "\n".join(f"{number} TIME {each}" for number, each in enumerate(whole, 1))
    assert _expected(backend, f"{HEAD}\n{packets}{TAIL}") == _lines(text)


@BACKENDS
def test_rules_passed_over_are_listed_with_their_table(box: str, backend: str) -> None:
    """With -v each visited chain's rules that did not match stand where they were tried."""
    _load(box, backend)

    with follow_text(box, *UDP, "-v") as run:
        _send()
        text = run.finish_text("7  ")

    tried = """INPUT
LEGACY mangle INPUT policy ✓ accept
filter INPUT 1 <TCP>
INPUT 2 <OTHER>
INPUT 3 <NAMES_RULE> → jump
NAMES 1 <FRIEND_1>
NAMES 2 <FRIEND_2>
"""
    expected = f"""{HEAD}
1 TIME box UDP 10.1.0.1:4001 → 10.1.0.2:53 28 B
in eth0
PREROUTING
mangle PREROUTING 1 <TCP_1>
PREROUTING 2 <MARK_SHORT> · continue
mark 0x0 ⇒ 0x7
PREROUTING policy ✓ accept
nat PREROUTING 1 <REDIRECT>
PREROUTING policy ✓ accept
{tried}NAMES 3 <KILL> ✗ drop
{KILLED}

2 TIME the same way, the same end (UDP, SOON)
3 TIME the same way, the same end (UDP, SOON)

4 TIME box UDP 10.1.0.1:4002 → 10.1.0.2:5353 28 B
in eth0
PREROUTING
mangle PREROUTING 1 <TCP_1>
PREROUTING 2 <MARK>
PREROUTING policy ✓ accept
nat PREROUTING 1 <REDIRECT> ✓ accept
dport 5353 ⇒ 53
{tried}NAMES 3 <KILL> ✗ drop
{KILLED}

5 TIME the same way, the same end (UDP, SOON)

6 TIME box UDP 10.1.0.1:4003 → 10.1.0.2:54 28 B
in eth0
PREROUTING
mangle PREROUTING 1 <TCP_1>
PREROUTING 2 <MARK>
PREROUTING policy ✓ accept
nat PREROUTING 1 <REDIRECT>
PREROUTING policy ✓ accept
{tried}NAMES 3 <KILL>
NAMES 4 <RETURN> ↩ return
INPUT policy ✗ drop
✗ DROPPED in box, filter INPUT, by the policy of the chain

7 TIME the same way, the same end (UDP, SOON)
{TAIL}"""
    assert _expected(backend, expected) == _lines(text)


@BACKENDS
def test_compact_is_a_line_for_each_packet(box: str, backend: str) -> None:
    """Time, place, packet, end and the rule stand in columns; what NAT made of it behind."""
    _load(box, backend)

    with follow_text(box, *UDP, "-o", "compact") as run:
        _send()
        text = run.finish_text("policy", 2)

    kill = "dropped filter NAMES 3 <KILL>"
    now = " (now 10.1.0.1:4002 → 10.1.0.2:53)"
    packets = (
        [f"TIME box udp - 10.1.0.1:4001 → 10.1.0.2:53 {kill}"] * 3
        + [f"TIME box udp - 10.1.0.1:4002 → 10.1.0.2:5353 {kill}{now}"] * 2
        + ["TIME box udp - 10.1.0.1:4003 → 10.1.0.2:54 dropped filter INPUT policy"] * 2
    )
    lines = "\n".join(packets)
    assert _expected(backend, f"{HEAD}\n{lines}\n{TAIL}") == _lines(text)


@BACKENDS
def test_a_passing_packet_fills_its_columns(box: str, backend: str) -> None:
    """Where no rule ended it the compact line says where it was last seen."""
    nets.load_rules(
        box,
        backend,
        "table ip f { chain IN { type filter hook input priority 0; udp dport 9 accept; }\n}\n"
        if backend == "nftables"
        else "*filter\n-A INPUT -p udp -m udp --dport 9 -j ACCEPT\nCOMMIT\n",
    )

    with follow_text(box, *UDP, "-o", "compact") as run:
        nets.send_udp(SENDER, "10.1.0.2", 9, 5, sport=4004)
        text = run.finish_text("unknown", 5)

    line = "TIME box udp - 10.1.0.1:4004 → 10.1.0.2:9 unknown - - - last seen leaving input"
    assert [f"{line} towards a local process (not observed)"] * 5 == _lines(text)[2:7]
