"""
A real Prometheus scrapes a real daemon over real drops: numbers, dashboards, alerts.

The story is told once: packets die at a rule in mangle, at a rule that never dropped, at a
policy and for want of a route, a ruleset is loaded anew, more die than the stopped daemon
has room for, the log's disk fills, somebody makes thousands of tables, the daemon ends.
The tests look at what Prometheus had to say of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dashboards.alerts.table import Pace, make_alerts
from dashboards.alerts.write import render_prometheus
from tests.dashboards.expressions import asked_by_dashboards
from tests.kernel import nets
from tracer.demo.lab import PUBLIC, Backend, Lab
from tracer.demo.services import PROMETHEUS, Services, wait_for
from tracer.errors import KernelRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.dashboards.expressions import Asked

CHAIN = "FIREWALL_172.17.21.105"
AT_PORT_9 = "-A PREROUTING -p udp -m udp --dport 9 -j DROP"
#: As the alerts are, in seconds instead of minutes and hours.
PACE = Pace(window="15s", fresh="15s", quiet="30s", past="30s", wait="0s")
SYNS, AT_NEW_RULE, AT_POLICY, WITHOUT_ROUTE = 3, 43, 5, 17
WATCHED = ("vr1", "vr2", "inet")
_PACKETS = 'nftrace_rule_packets_total{source="counter", verdict=~"drop|reject"}'
#: On a machine that is busy with other things, too.
_WITHIN_S = 150.0
#: Where the daemon keeps its log by default, on a disk of the test's own.
_LOG = Path("/var/lib/nftrace")
#: More than there is room for: 116,000 records, 2,000 tables.
_FLOOD, _TABLES = 150_001, 2_003


@dataclass
class Story:
    """What Prometheus told, and what the firewall's own tools did."""

    told: dict[tuple[str, str], int] = field(default_factory=dict)
    saved: dict[tuple[str, str], int] = field(default_factory=dict)
    policies: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    died: float = 0
    died_in_panel: float = 0
    empty: list[str] = field(default_factory=list)
    fired: dict[str, list[dict[str, str]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def story(
    private_machine: nets.Outside, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Let it happen, in about half a minute."""
    del private_machine
    folder = tmp_path_factory.mktemp("watch")
    rules = folder / "rules.yml"
    rules.write_text(render_prometheus(make_alerts(PACE)), encoding="utf-8")
    with _small_disk(), Lab(Backend.NFT) as lab, Services(folder) as services:
        _prepare()
        services.start_daemon(WATCHED)
        services.start_prometheus(rules, "router")
        _wait_until(services, f"nftrace_build_info offset {PACE.fresh}")
        made = Story()
        _kill_packets(lab)
        _count(made, lab, services)
        _load_anew(lab, services)
        _look_at_dashboards(made, services)
        _blind(services)
        services.end_daemon()
        _collect_alerts(made, services)
        yield made


@contextlib.contextmanager
def _small_disk() -> Iterator[None]:
    _LOG.mkdir(parents=True, exist_ok=True)
    nets.run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(_LOG))
    try:
        yield
    finally:
        nets.run("umount", "--lazy", str(_LOG))


def _prepare() -> None:
    nets.route("inet", "172.17.21.200/32", "via", PUBLIC)
    drop = f"-t raw -I {AT_PORT_9.removeprefix('-A ')}"
    nets.ip_netns_exec("vr1", "iptables-nft", *drop.split())


def _kill_packets(lab: Lab) -> None:
    pending = lab.start_attempt()
    nets.send_udp("client", PUBLIC, 9, AT_NEW_RULE)
    nets.send_udp("inet", "172.17.21.200", 53, AT_POLICY)
    nets.send_udp("client", "192.0.2.1", 53, WITHOUT_ROUTE)
    assert nets.wait_until(pending.is_over, 10, "the end of the attempt")


def _wait_until(services: Services, expr: str) -> None:
    wait_for(expr, _WITHIN_S, lambda: services.ask(expr) or None)


def _count(made: Story, lab: Lab, services: Services) -> None:
    named = f"{_PACKETS} * on (netns, table, chain, rule_id) group_left (text) nftrace_rule_info"
    _wait_until(services, f"sum({_PACKETS}) == {SYNS + AT_NEW_RULE}")
    made.told = {
        (one["metric"]["netns"], one["metric"]["text"]): int(one["value"][1])
        for one in wait_for(named, _WITHIN_S, lambda: services.ask(named) or None)
    }
    for router in ("vr1", "vr2"):
        lines = lab.rules(router, counters=True).splitlines()
        found = [re.fullmatch(r"\[(\d+):\d+\] (-A .* -j DROP)", line) for line in lines]
        made.saved |= {(router, one[2]): int(one[1]) for one in found if one is not None}
    # What eBPF counted is scraped by the same scrape, or by the next.
    _wait_until(services, f"sum(nftrace_policy_drops_total) == {AT_POLICY}")
    made.policies = _by(services, "netns", "nftrace_policy_drops_total")
    made.reasons = _by(services, "netns", 'nftrace_drops_total{reason="IP_INNOROUTES"}')


def _by(services: Services, label: str, metric: str) -> dict[str, int]:
    rows = services.ask(f"sum by ({label}) ({metric}) > 0")
    return {one["metric"][label]: int(float(one["value"][1])) for one in rows}


def _load_anew(lab: Lab, services: Services) -> None:
    nets.load_rules("vr2", "nft", lab.rules("vr2"))
    _wait_until(services, "nftrace_ruleset_changes_total > 0")


def _look_at_dashboards(made: Story, services: Services) -> None:
    known = f'nftrace_rule_info{{chain="{CHAIN}"}}'
    (rule,) = wait_for(known, _WITHIN_S, lambda: services.ask(known) or None)
    # Grafana's rate interval is four scrapes; on a busy machine some of them are late.
    chosen = {"rule": rule["metric"]["rule_id"], "__rate_interval": "10s"}
    asked = list(asked_by_dashboards(**chosen))

    (shown,) = [one for one in asked if "Packets that died in" in one.where]
    made.died = _value(services, "sum(nftrace_drops_total)")
    made.died_in_panel = _value(services, shown.expr)

    def is_answered() -> bool | None:
        asked[:] = [one for one in asked if not _answer(services, one)]
        return True if not asked else None

    # What began with the last scrape has a rate with the next.
    with contextlib.suppress(KernelRefusedError):
        wait_for("an answer to every expression", 20, is_answered)
    made.empty = [one.where for one in asked]


def _value(services: Services, expr: str) -> float:
    # None for a moment where a scrape was not answered in time.
    (only,) = wait_for(expr, _WITHIN_S, lambda: services.ask(expr) or None)
    return float(only["value"][1])


def _answer(services: Services, asked: Asked) -> list[object]:
    """Return Prometheus' answer, for now or for each second of the last two minutes."""
    if not asked.over_time:
        return list(services.ask(asked.expr))
    now_s = time.time()
    words = {"query": asked.expr, "start": now_s - 120, "end": now_s, "step": 1}
    url = f"http://{PROMETHEUS}/api/v1/query_range?{urllib.parse.urlencode(words)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        return list(json.load(answer)["data"]["result"])


def _blind(services: Services) -> None:
    """Give the daemon more than it has time, disk and room for, each until it is told."""
    with contextlib.suppress(OSError), (_LOG / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    services.signal_daemon(signal.SIGSTOP)
    nets.flood("client", PUBLIC, 9, _FLOOD)
    services.signal_daemon(signal.SIGCONT)
    _wait_until(services, _firing("NftraceEventsLost", source="drop_records"))
    _wait_until(services, _firing("NftraceSourceDown", source="event_log"))
    many = "".join(f"add table ip t{number}\n" for number in range(_TABLES))
    nets.load_rules("inet", "nftables", many)
    _wait_until(services, _firing("NftraceTablesNotTold"))


def _firing(alert: str, **labels: str) -> str:
    chosen = {"alertname": alert, "alertstate": "firing", **labels}
    return f"ALERTS{{{', '.join(f'{name}={json.dumps(v)}' for name, v in chosen.items())}}}"


def _collect_alerts(made: Story, services: Services) -> None:
    _wait_until(services, _firing("NftraceDown"))
    for one in services.ask('max_over_time(ALERTS{alertstate="firing"}[5m])'):
        labels = one["metric"]
        made.fired.setdefault(labels["alertname"], []).append(labels)


def test_prometheus_has_the_numbers_of_iptables_save(story: Story) -> None:
    """Each dropping rule's packets, by namespace and text, are those of iptables-save -c."""
    assert story.saved == story.told
    assert sorted(story.saved.values()) == [SYNS, AT_NEW_RULE]


def test_prometheus_has_the_numbers_of_what_was_sent(story: Story) -> None:
    """Packets that a policy and the routing dropped are as many as were sent there."""
    assert story.policies == {"vr1": AT_POLICY}
    assert story.reasons == {"inet": WITHOUT_ROUTE}


def test_drops_of_a_kind_that_never_was_are_shown(story: Story) -> None:
    """
    The panel counts kinds that began above 0 from 0 on: all that died since the start.

    Prometheus extrapolates what came after a beginning, by no more than a tenth here.
    """
    assert story.died >= SYNS + AT_NEW_RULE + AT_POLICY + WITHOUT_ROUTE
    assert story.died <= story.died_in_panel + 0.5
    assert story.died_in_panel <= 1.1 * story.died + 1


def test_every_expression_of_the_dashboards_has_an_answer(story: Story) -> None:
    """No panel, variable or annotation is empty once there were drops and a new ruleset."""
    assert "" == "; ".join(story.empty)


@pytest.mark.parametrize(
    ("alert", "labels"),
    [
        (
            "NftraceUnexpectedDropInMangle",
            {"netns": "vr2", "table": "mangle", "chain": CHAIN, "text": f"-A {CHAIN} -j DROP"},
        ),
        (
            "NftraceNewDroppingRule",
            {
                "netns": "vr1",
                "table": "raw",
                "rule": "1",
                "text": AT_PORT_9,
            },
        ),
        ("NftraceDropRateFarAbovePast", {"netns": "vr1", "table": "raw", "chain": "PREROUTING"}),
        ("NftracePolicyDrops", {"netns": "vr1", "table": "filter", "chain": "FORWARD"}),
        ("NftraceDropsOutsideNetfilterRose", {"netns": "inet", "reason": "IP_INNOROUTES"}),
        ("NftraceDown", {}),
        ("NftraceSourceDown", {"source": "event_log"}),
        ("NftraceEventsLost", {"source": "drop_records"}),
        ("NftraceTablesNotTold", {}),
    ],
)
def test_an_alert_fires_by_its_real_cause(story: Story, alert: str, labels: dict[str, str]) -> None:
    """What was dropped, or that nobody watches all of it, fires the alert with its place."""
    wanted = {"instance": "router", **labels}

    assert any(wanted.items() <= fired.items() for fired in story.fired.get(alert, []))
