"""`nftrace drops` names where packets die, in words and in JSON."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets

if TYPE_CHECKING:
    from collections.abc import Callable

_RUN = (
    "import sys; from tracer.cli.drops import drops; "
    "sys.exit(drops.main(sys.argv[1:], standalone_mode=False))"
)
_RULES = """*mangle
:FIREWALL_172.17.21.105 - [0:0]
-A PREROUTING -d 10.1.0.2/32 -j FIREWALL_172.17.21.105
-A FIREWALL_172.17.21.105 -p tcp -j RETURN
-A FIREWALL_172.17.21.105 -p udp -m udp --dport 7002 -j DROP
COMMIT
"""


def _watch(send: Callable[[], object], *words: str) -> tuple[str, int]:
    """Run the command with *words* while *send* goes on; return what it printed, and its status."""
    command = (sys.executable, "-c", _RUN, "--once", "--netns", "b", *words)
    with nets.spawn("b", *command, cwd=nets.ROOT) as process:
        while process.poll() is None:
            send()
            with contextlib.suppress(Exception):
                process.wait(0.02)
        out, err = process.communicate()
        assert not err, err
        return out, process.returncode


def _rows(send: Callable[[], object], *words: str) -> list[dict[str, Any]]:
    out, status = _watch(send, "-o", "json", "--interval", "0.5", *words)
    assert 0 == status
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.usefixtures("cable")
def test_the_killing_rule_is_named_unasked() -> None:
    """Table, hook, chain, number and text of the rule, and who lost the packets."""
    nets.load_rules("b", "legacy", _RULES)
    (row,) = _rows(lambda: nets.send_udp("a", "10.1.0.2", 7002))

    expected = {
        "schema": "nftrace.drops/1",
        "netns": "b",
        "reason": "NETFILTER_DROP",
        "engine": "legacy",
        "hook": "prerouting",
        "table": "mangle",
        "chain": "FIREWALL_172.17.21.105",
        "rule": 2,
        "text": "-A FIREWALL_172.17.21.105 -p udp -m udp --dport 7002 -j DROP",
        "certain": True,
        "top": "udp 10.1.0.1 → 10.1.0.2:7002",
    }
    assert expected == {name: row[name] for name in expected}


@pytest.mark.usefixtures("cable")
def test_below_the_highest_rung_candidates_are_listed() -> None:
    """Without the rule's counters no rule is claimed, those that may be it are listed."""
    nets.load_rules("b", "legacy", _RULES)
    (row,) = _rows(lambda: nets.send_udp("a", "10.1.0.2", 7002), "--rung", "hook")

    rule = "FIREWALL_172.17.21.105 2: -A FIREWALL_172.17.21.105 -p udp -m udp --dport 7002 -j DROP"
    assert (None, None, [rule]) == (row["rule"], row["text"], row["candidates"])


@pytest.mark.usefixtures("cable")
def test_a_closed_port_is_told_in_words() -> None:
    """What is no netfilter drop says what happened and what to look at."""
    out, status = _watch(lambda: nets.send_udp("a", "10.1.0.2", 7003), "--interval", "0.5")

    assert 0 == status
    assert "nobody listens on the port" in out
    assert "ss -lntup" in out


@pytest.mark.usefixtures("cable")
def test_rp_filter_and_missing_routes_are_told_apart() -> None:
    """A source that lies elsewhere and a destination that lies nowhere have their words."""
    nets.sysctl("b", {"net/ipv4/conf/b0/rp_filter": 1, "net/ipv4/ip_forward": 1})
    nets.route("a", "10.77.0.0/16", "via", "10.1.0.2")
    nets.ip_batch("a", ["address add 10.99.0.1/32 dev a0"])

    def send() -> None:
        nets.send_udp("a", "10.1.0.2", 7004, src="10.99.0.1")
        nets.send_udp("a", "10.77.0.1", 7004)

    reasons = {row["reason"] for row in _rows(send)}
    assert {"IP_RPFILTER"} < reasons
    assert reasons & {"IP_INADDRERRORS", "IP_INNOROUTES", "IP_OUTNOROUTES"}


@pytest.mark.usefixtures("cable")
def test_nothing_dropped_is_status_one() -> None:
    """A quiet interval says so and ends with 1."""
    out, status = _watch(lambda: None, "--interval", "0.2")

    assert 1 == status
    assert "nothing was dropped yet" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reason", "NO_SOKET"), "perhaps NO_SOCKET"),
        (("--src", "10.1.0.300"), "--src"),
        (("--dport", "70000"), "--dport"),
        (("--hook", "prerooting"), "--hook"),
        (("--netns", "nowhere"), "nowhere"),
        (("--netns", ""), "no network namespace ''"),
        (("--netns", ".."), "no network namespace '..'"),
        (("--interval", "nan"), "nan is no number of seconds"),
        (("--timeout", "inf"), "inf is no number of seconds"),
        (("--proto", "icmp", "--dport", "53"), "has no ports"),
    ],
)
@pytest.mark.usefixtures("cable")
def test_bad_words_have_one_line(words: tuple[str, ...], said: str) -> None:
    """What was wrong and what to do, no traceback, status 2."""
    done = nets.nftrace("b", "drops", "--once", *words)

    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr
    assert 1 == len(done.stderr.splitlines())


@pytest.mark.usefixtures("cable")
def test_chosen_packets_alone_are_shown() -> None:
    """--dport shows the drops of that port, and none of the others'."""

    def send() -> None:
        nets.send_udp("a", "10.1.0.2", 7003, 3)
        nets.send_udp("a", "10.1.0.2", 7005, 5)

    (row,) = _rows(send, "--dport", "7003")

    assert ("10.1.0.2:7003", 1.0) == (row["top_destination"], row["top_share"])


@pytest.mark.usefixtures("cable")
def test_a_low_window_shows_what_fits_and_how_much_does_not() -> None:
    """In ten lines the worst kind stands, the number of the others, and the line below all."""
    nets.send_udp("a", "10.1.0.2", 7003, 1)

    def send() -> None:
        nets.send_udp("a", "10.1.0.2", 7003, 5)
        nets.send_tcp_syn("a", "10.1.0.2", 7003, 2)
        nets.send_udp("a", "10.77.0.1", 7003, 3)

    nets.route("a", "10.77.0.0/16", "via", "10.1.0.2")
    command = f"{sys.executable} -m tracer.cli.main drops --netns b --interval 0.5 --timeout 1.5"
    # Readline, which pytest loads, tells the children of this process another window's size.
    window = "unset LINES COLUMNS; stty rows 10 cols 80"
    words = ("script", "-qefc", f"{window}; {command}", "/dev/null")
    with nets.spawn("b", *words, cwd=nets.ROOT, stdin=subprocess.DEVNULL) as process:
        while process.poll() is None:
            send()
            with contextlib.suppress(Exception):
                process.wait(0.02)
        out = process.communicate()[0]

    assert 0 == process.returncode, out
    last = out[out.rindex("per s") :]
    assert "nobody listens on the port" in last
    assert re.search(r"[12] more kinds of drop, in a higher window", last), out
    assert "drops on this machine, named by rule" in last


@pytest.mark.usefixtures("cable")
def test_no_output_at_all_has_one_line() -> None:
    """With standard output closed, one line says so, and the status is that of no output."""
    command = f"exec {sys.executable} -m tracer.cli.main drops --once >&-"
    done = nets.run("sh", "-c", command, check=False)

    assert (4, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "there is no output to write to" in done.stderr
