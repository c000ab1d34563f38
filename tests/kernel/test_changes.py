"""What changed, and who did it: told by the kernel, or found by comparison, with its before."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.timeline_rules import diff_tables, parse_table
from tracer.sources.bpf_execs import Execs
from tracer.sources.changes import ChangeWatch
from tracer.sources.changes_conntrack import ConntrackChanges, Counters, read_counters
from tracer.sources.changes_process import WhoReader
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracer.core.log_rows import Change

_FIRST = """*filter
:INPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
_SECOND = """*filter
:INPUT ACCEPT [0:0]
:NEW - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j NEW
-A NEW -p udp -m udp --dport 7001 -j DROP
COMMIT
"""
_FIRST_NFT = """add table ip filter
delete table ip filter
table ip filter {
    chain INPUT { type filter hook input priority filter; policy accept; tcp dport 22 accept; }
}
"""
_SECOND_NFT = """add table ip filter
delete table ip filter
table ip filter {
    chain INPUT {
        type filter hook input priority filter; policy accept;
        tcp dport 22 accept
        jump NEW
    }
    chain NEW { udp dport 7001 drop; }
}
"""
_RULESETS = {
    "legacy": (_FIRST, _SECOND),
    "nft": (_FIRST, _SECOND),
    "nftables": (_FIRST_NFT, _SECOND_NFT),
}
_TOOLS = {
    "legacy": "iptables-legacy-restore",
    "nft": "iptables-nft-restore",
    "nftables": "nft -f",
}


class _Watched:
    """A watch of some namespaces, and what it has told until now."""

    def __init__(self, watch: ChangeWatch) -> None:
        self.watch = watch
        self.told: list[Change] = []

    def until(self, what: str, of: Callable[[Change], bool] = bool, number: int = 1) -> Change:
        """Wait for the *number*-th change of the kind *what* that *of* is true for."""

        def find() -> Change | None:
            self.told += self.watch.take()
            found = [one for one in self.told if one.what == what and of(one)]
            return found[number - 1] if len(found) >= number else None

        found = nets.wait_until(find, 10, f"a change of {what}")
        assert found is not None
        return found


@contextlib.contextmanager
def _watching(*names: str) -> Iterator[_Watched]:
    watch = ChangeWatch()
    watch.start()
    try:
        namespaces = [find_namespace(name) for name in names]
        watch.watch(namespaces)
        assert watch.wait_read(namespaces, 30)
        yield _Watched(watch)
        assert (0, [], 0) == (watch.losses.lost, watch.take_said(), watch.losses.unwatched)
    finally:
        watch.close()


def _script(folder: Path, backend: str, rules: str) -> str:
    """Write a script that loads *rules* as an operator's would, and return its path."""
    text = folder / "rules.txt"
    text.write_text(rules, encoding="utf-8")
    script = folder / "install-customer.sh"
    script.write_text(f"{_TOOLS[backend]} {text}\nexit $?\n", encoding="utf-8")
    return str(script)


@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_a_new_rule_is_told_with_its_diff_and_who_did_it(
    backend: str, netns: Callable[..., str], tmp_path: Path
) -> None:
    """Process, command and script of who loaded rules stand beside exactly what differs."""
    netns("a")
    nets.load_rules("a", backend, _RULESETS[backend][0])
    with _watching("a") as watched:
        stood = watched.until("ruleset", lambda one: one.action == "stands")
        script = _script(tmp_path, backend, _RULESETS[backend][1])
        assert watched.watch.wait_names(60)
        nets.ip_netns_exec("a", "bash", script)
        change = watched.until("ruleset", lambda one: one.action != "stands")

        diff = diff_tables(parse_table(change.before), parse_table(change.after))
        assert (stood.after, "ip filter", "a") == (change.before, change.subject, change.netns)
        assert ("NEW",) == diff.chains_added
        assert [("+", "INPUT", 2), ("+", "NEW", 1)] == [
            (line.sign, line.chain, line.number) for line in diff.lines
        ]
        assert "7001" in diff.lines[1].text
        assert change.pid > 0
        tool = _TOOLS[backend].split()[0]
        assert tool in f"{change.command} {change.process}" or change.process in tool
        assert script in change.detail


@pytest.mark.parametrize("backend", nets.BACKENDS)
def test_rules_loaded_again_without_a_difference_are_no_difference(
    backend: str, netns: Callable[..., str]
) -> None:
    """A reload of the same rules tells at most other handles, and no rule that differs."""
    netns("a")
    first, second = _RULESETS[backend]
    nets.load_rules("a", backend, first)
    with _watching("a") as watched:
        nets.load_rules("a", backend, first)
        nets.load_rules("a", backend, second)
        watched.until("ruleset", lambda one: "7001" in one.after)

        changes = [one for one in watched.told if one.action == "changed"]
        diffs = [diff_tables(parse_table(one.before), parse_table(one.after)) for one in changes]
        assert 1 == sum(map(bool, diffs))


def test_routes_addresses_links_and_switches_have_a_before(netns: Callable[..., str]) -> None:
    """Each change of the network's own is told once, with what was and what is."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.route("a", "10.9.0.0/16", "via", "10.1.0.2")
    with _watching("a") as watched:
        nets.ip_batch("a", ["route replace 10.9.0.0/16 via 10.1.0.3"])
        route = watched.until("route")
        nets.ip_batch("a", ["address add 10.1.0.9/24 dev a0"])
        address = watched.until("address")
        nets.sysctl("a", {"net/ipv4/ip_forward": 1, "net/ipv4/conf/a0/rp_filter": 2})
        forward = watched.until("sysctl")
        filtered = watched.until("sysctl", number=2)
        nets.ip_batch("a", ["link set a0 down"])
        link = watched.until("link", lambda one: one.after.startswith("down"))
        gone = watched.until("route", lambda one: one.subject == "10.9.0.0/16", number=2)

        assert ("10.9.0.0/16", "via 10.1.0.2 dev a0", "via 10.1.0.3 dev a0") == (
            route.subject,
            route.before,
            route.after,
        )
        assert ("new", "10.1.0.9/24 dev a0") == (address.action, address.after)
        assert ("net.ipv4.conf.all.forwarding", "0", "1") == (
            forward.subject,
            forward.before,
            forward.after,
        )
        assert ("net.ipv4.conf.a0.rp_filter", "2") == (filtered.subject, filtered.after)
        assert ("a0", True) == (link.subject, link.before.startswith("up"))
        assert ("gone", "via 10.1.0.3 dev a0") == (gone.action, gone.before)


def test_a_neighbour_that_fails_is_told_once(netns: Callable[..., str]) -> None:
    """Nobody answers for an address: told as failed, however often it is tried."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.sysctl("a", {"net/ipv4/neigh/a0/retrans_time_ms": 20})
    with _watching("a") as watched:
        nets.send_udp("a", "10.1.0.77", 7001, 1)
        failed = watched.until("neighbour")

        assert ("10.1.0.77 dev a0", "failed") == (failed.subject, failed.after)


def test_elements_of_a_set_are_told_with_who(netns: Callable[..., str]) -> None:
    """What is put into a set can kill as a rule does: it is told, and no rules are read."""
    netns("a")
    rules = "table ip t { set bad { type ipv4_addr; }; chain c { ip saddr @bad drop; }; }"
    nets.load_rules("a", "nftables", rules)
    with _watching("a") as watched:
        nets.ip_netns_exec("a", "nft", "add element ip t bad { 10.1.0.7 }")
        change = watched.until("set")

        assert ("ip t bad", "nft") == (change.subject, change.process)
        assert '"did":"came"' in change.detail


def test_the_kernel_shows_its_counters_of_connections(netns: Callable[..., str]) -> None:
    """Every counter that is watched is among those that this kernel shows in a namespace."""
    netns("a")
    # Where tracking is a module, a rule that asks for it loads it.
    nets.load_rules("a", "nftables", "table ip t { chain c { ct state new accept; }; }")
    with nets.in_netns("a"):
        found = read_counters()

    assert found is not None
    assert {"insert_failed": 0, "drop": 0, "early_drop": 0} == found.counts
    assert (0, False) == (found.held, found.is_full)
    assert found.limit > 0


def test_what_is_counted_of_connections_is_told_once(netns: Callable[..., str]) -> None:
    """Growth is told with before and after, not what stood; a flood is told in one line."""
    netns("a")
    told = iter(
        [
            Counters({"drop": 3}, 10, 100),
            Counters({"drop": 10}, 100, 100),
            Counters({"drop": 17}, 99, 100),
            Counters({"drop": 28}, 99, 100),
        ]
    )
    changes = ConntrackChanges(find_namespace("a"), lambda: next(told))

    assert [] == changes.look(0.0, 0)
    assert [] == changes.look(1.0, 0)
    assert [("drop", "3", "10"), ("table", "not full", "full (100 of 100)")] == [
        (one.subject, one.before, one.after) for one in changes.look(20.0, 0)
    ]
    assert [("table", "not full")] == [(one.subject, one.after) for one in changes.look(23.0, 0)]
    assert [("drop", "10", "28")] == [
        (one.subject, one.before, one.after) for one in changes.look(40.0, 0)
    ]


def test_who_it_was_is_known_after_it_ended(tmp_path: Path) -> None:
    """Command line and script of a process that is gone: as they were when it began."""
    said = tmp_path / "pid"
    script = tmp_path / "script.sh"
    script.write_text(f"bash -c 'echo $$ > {said}' word\nexit 0\n", encoding="utf-8")
    execs = Execs()
    execs.open()
    try:
        nets.run("bash", str(script))
        pid = int(said.read_text(encoding="ascii"))
        who = WhoReader(execs).read(pid)
        unknown = WhoReader().read(pid)
    finally:
        execs.close()

    assert (pid, "bash") == (who.pid, who.process)
    assert who.command.startswith("bash -c 'echo ")
    assert f"bash {script}" == who.parents[0]
    assert ("", ()) == (unknown.command, unknown.parents)


def test_many_namespaces_are_watched_and_let_go(netns: Callable[..., str]) -> None:
    """One thread watches several; what is no longer watched tells nothing more."""
    for name in ("a", "b", "c"):
        netns(name)
    with _watching("a", "b", "c") as watched:
        for name in ("a", "b", "c"):
            nets.load_rules(name, "nftables", "table ip t { chain c { drop; }; }")
            watched.until("ruleset", lambda one, name=name: one.netns == name)
        kept = find_namespace("c")
        watched.watch.watch([kept])
        nets.wait_until(lambda: watched.watch.watched == {kept.inode}, 10, "letting go")
        nets.load_rules("a", "nftables", "table ip u { chain c { drop; }; }")
        nets.load_rules("c", "nftables", "table ip u { chain c { drop; }; }")
        watched.until("ruleset", lambda one: (one.netns, one.subject) == ("c", "ip u"))

        assert [] == [one for one in watched.told if (one.netns, one.subject) == ("a", "ip u")]
