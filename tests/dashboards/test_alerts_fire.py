"""Each alert fires when it should and is silent when it should be, as promtool computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from dashboards.alerts.table import ALERTS
from tests.dashboards.promtool import run_rule_test
from tests.dashboards.test_alert_files import read_prometheus_rules

if TYPE_CHECKING:
    from pathlib import Path

RULES = {rule["alert"]: rule for rule in read_prometheus_rules()}
TARGET = {"job": "nftrace", "instance": "router"}
CHAIN = "FIREWALL_172.17.21.105"
PLACE = {"netns": "vr2", "engine": "nft", "family": "ip", "table": "mangle", "chain": CHAIN}
RULE = {**TARGET, **PLACE, "rule_id": "r1"}
COUNTED = {**RULE, "verdict": "drop", "source": "counter", "expected": "false"}
READ = {"rule": "5", "text": f"-A {CHAIN} -j DROP", "comment": ""}
INFO = {**RULE, **READ, "verdict": "drop", "expected": "false"}
POLICY = {**TARGET, **PLACE, "table": "filter", "chain": "FORWARD"}
KIND = {
    **TARGET,
    **dict.fromkeys(("engine", "family", "hook", "table"), ""),
    "netns": "vr2",
    "expected": "false",
}
SOURCE = {**TARGET, "source": "drops", "netns": ""}
GONE = "(gone, or counted together with others)"
MANGLE, NEW, FAR, POLICIES, OUTSIDE, DOWN, BLIND, LOST, SKIPPED = (one.name for one in ALERTS)
DAY_OF_MINUTES = 1440


def series(name: str, labels: dict[str, str], values: str) -> tuple[str, str]:
    """Return one input series as promtool writes it."""
    inner = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inner}}}", values


def rule(values: str, **labels: str) -> tuple[str, str]:
    """Return a rule's packets, at each scrape."""
    return series("nftrace_rule_packets_total", {**COUNTED, **labels}, values)


ALIVE = series("nftrace_build_info", {**TARGET, "version": "1", "kernel": "6"}, "1x6000")
TEXT = series("nftrace_rule_info", INFO, "1x6000")
CHANGES = {**TARGET, "netns": "vr2"}


class Case(NamedTuple):
    """What Prometheus scraped, and whether *alert* fires at *at*: by which labels and summary."""

    law: str
    alert: str
    at: str
    input: tuple[tuple[str, str], ...]
    labels: dict[str, str] | None = None
    summary: str = ""

    @property
    def interval(self) -> str:
        """How often it was scraped: what needs a day of the past, each minute."""
        return "1m" if self.alert == FAR else "15s"


AT_RULE = f"mangle {CHAIN}, rule 5: -A {CHAIN} -j DROP"
NAMED = {**RULE, **READ}
CASES = (
    Case(
        "three SYNs at a rule in mangle",
        MANGLE,
        "10m",
        (ALIVE, TEXT, rule("0x34 1 1 2 3x100")),
        NAMED,
        f"router, netns vr2: packets dropped by {AT_RULE} (3 in 5m)",
    ),
    Case(
        "a rule that was loaded and dropped between two scrapes",
        MANGLE,
        "10m",
        (ALIVE, TEXT, rule("_x37 7x100")),
        NAMED,
        f"router, netns vr2: packets dropped by {AT_RULE} (7 in 5m)",
    ),
    Case(
        "a scrape that was not answered since",
        MANGLE,
        "10m",
        (ALIVE, series("nftrace_rule_info", INFO, "1x38 stale"), rule("0x34 1 1 2 3 stale")),
        NAMED,
        f"router, netns vr2: packets dropped by {AT_RULE} (3 in 5m)",
    ),
    Case(
        "two places of the rule since, and a scrape that was not answered",
        MANGLE,
        "10m",
        (
            ALIVE,
            series("nftrace_rule_info", {**INFO, "rule": "4"}, "1x30 stale"),
            series("nftrace_rule_info", INFO, "_x30 1x100"),
            rule("0x34 1 1 2 3x100"),
        ),
        NAMED,
        f"router, netns vr2: packets dropped by {AT_RULE} (3 in 5m)",
    ),
    Case(
        "a rule that is gone since",
        MANGLE,
        "10m",
        (ALIVE, rule("0x37 11 11 stale")),
        {**RULE, "text": GONE},
        f"router, netns vr2: packets dropped by mangle {CHAIN}, rule : {GONE} (12 in 5m)",
    ),
    Case("drops that are over", MANGLE, "30m", (ALIVE, TEXT, rule("0x34 1 1 2 3x200"))),
    Case("drops that were there when we came", MANGLE, "4m", (ALIVE, TEXT, rule("7x100"))),
    Case("an expected rule", MANGLE, "10m", (ALIVE, TEXT, rule("0+3x100", expected="true"))),
    Case("a rule that accepts", MANGLE, "10m", (ALIVE, TEXT, rule("0+3x100", verdict="accept"))),
    Case("a rule of filter", MANGLE, "10m", (ALIVE, TEXT, rule("0+3x100", table="filter"))),
    Case(
        "a rule that is expected no more",
        MANGLE,
        "10m",
        (ALIVE, TEXT, rule("5x30 stale", expected="true"), rule("_x31 5x100")),
    ),
    Case(
        "the first drop of a rule's life",
        NEW,
        "30m",
        (ALIVE, TEXT, rule("0x110 1x100")),
        NAMED,
        f"router, netns vr2: a rule that did not drop before does: {AT_RULE} (1 in 15m)",
    ),
    Case(
        "the first drop since the ruleset changed",
        NEW,
        "2h",
        (
            ALIVE,
            TEXT,
            rule("5x460 6x100"),
            series("nftrace_ruleset_changes_total", CHANGES, "0x450 1x200"),
        ),
        NAMED,
        f"router, netns vr2: a rule that did not drop before does: {AT_RULE} (1 in 15m)",
    ),
    Case("a rule that dropped before", NEW, "2h", (ALIVE, TEXT, rule("5x460 6x100"))),
    Case(
        "a rule that drops all the time, and a change",
        NEW,
        "2h",
        (
            ALIVE,
            TEXT,
            rule("5+1x600"),
            series("nftrace_ruleset_changes_total", CHANGES, "0x450 1x200"),
        ),
    ),
    Case("a daemon that just came", NEW, "5m", (ALIVE, TEXT, rule("7+3x600"))),
    Case(
        "a daemon that just came, and a change",
        NEW,
        "20m",
        (
            ALIVE,
            TEXT,
            rule("7+3x600"),
            series("nftrace_ruleset_changes_total", CHANGES, "0x30 1x200"),
        ),
    ),
    Case(
        "2 drops a second where 1 a minute was usual",
        FAR,
        "24h30m",
        (ALIVE, TEXT, rule(f"0+1x{DAY_OF_MINUTES} 1440+120x60")),
        NAMED,
        f"router, netns vr2: far more dropped than usual by {AT_RULE} (2/s)",
    ),
    Case(
        "twice the usual",
        FAR,
        "24h30m",
        (ALIVE, TEXT, rule(f"0+120x{DAY_OF_MINUTES} 172800+240x60")),
    ),
    Case(
        "2 drops a second where 1 a minute was usual for two hours, the first that are known",
        FAR,
        "2h7m",
        (ALIVE, TEXT, rule("0+1x120 120+120x60")),
        NAMED,
        f"router, netns vr2: far more dropped than usual by {AT_RULE} (2/s)",
    ),
    Case("a rule without a past", FAR, "30m", (ALIVE, TEXT, rule("0+120x60"))),
    Case("counters that began anew", FAR, "24h30m", (ALIVE, TEXT, rule("9000+120x1440 0+120x60"))),
    Case("many times a trifle", FAR, "24h30m", (ALIVE, rule(f"0+0.04x{DAY_OF_MINUTES} 57+40x60"))),
    Case(
        "a policy that drops",
        POLICIES,
        "10m",
        (
            ALIVE,
            series(
                "nftrace_policy_drops_total",
                {**POLICY, "source": "attributed", "expected": "false"},
                "_x35 5x100",
            ),
        ),
        POLICY,
        "router, netns vr2: packets dropped by the policy of filter FORWARD (5 in 5m)",
    ),
    Case(
        "a policy that is meant to drop",
        POLICIES,
        "10m",
        (
            ALIVE,
            series(
                "nftrace_policy_drops_total",
                {**POLICY, "source": "counter", "expected": "true"},
                "0+5x100",
            ),
        ),
    ),
    Case(
        "packets without a route, as never before",
        OUTSIDE,
        "10m",
        (ALIVE, series("nftrace_drops_total", {**KIND, "reason": "IP_INNOROUTES"}, "_x35 17x100")),
        {**TARGET, "netns": "vr2", "reason": "IP_INNOROUTES"},
        "router, netns vr2: packets dropped by the kernel itself: IP_INNOROUTES (17 in 5m)",
    ),
    Case(
        "a full conntrack table: its hook drops",
        OUTSIDE,
        "10m",
        (
            ALIVE,
            series(
                "nftrace_drops_total",
                {**KIND, "engine": "hook", "hook": "prerouting", "reason": "NETFILTER_DROP"},
                "_x35 13x100",
            ),
        ),
        {**TARGET, "netns": "vr2", "reason": "NETFILTER_DROP"},
        "router, netns vr2: packets dropped by the kernel itself: NETFILTER_DROP (13 in 5m)",
    ),
    Case(
        "as many as always, and a daemon that just came",
        OUTSIDE,
        "4m",
        (ALIVE, series("nftrace_drops_total", {**KIND, "reason": "IP_INNOROUTES"}, "7+5x500")),
    ),
    Case(
        "as many without a route as always",
        OUTSIDE,
        "2h",
        (ALIVE, series("nftrace_drops_total", {**KIND, "reason": "IP_INNOROUTES"}, "0+5x500")),
    ),
    Case(
        "a handful without a route",
        OUTSIDE,
        "10m",
        (ALIVE, series("nftrace_drops_total", {**KIND, "reason": "IP_INNOROUTES"}, "_x35 7x100")),
    ),
    Case(
        "what nobody listens to",
        OUTSIDE,
        "10m",
        (ALIVE, series("nftrace_drops_total", {**KIND, "reason": "NO_SOCKET"}, "0+9x100")),
    ),
    Case(
        "drops by rules",
        OUTSIDE,
        "10m",
        (
            ALIVE,
            series(
                "nftrace_drops_total",
                {**KIND, "engine": "nft", "reason": "NETFILTER_DROP"},
                "0+9x100",
            ),
        ),
    ),
    Case(
        "a daemon that answers no more",
        DOWN,
        "10m",
        (
            series("nftrace_build_info", {**TARGET, "version": "1", "kernel": "6"}, "1x20 stale"),
            series("up", TARGET, "1x20 0x100"),
        ),
        TARGET,
        "router: nftrace does not answer; nobody watches what dies there",
    ),
    Case("another job that is down", DOWN, "10m", (ALIVE, series("up", {"job": "x"}, "0x100"))),
    Case("one scrape that was missed", DOWN, "10m", (ALIVE, series("up", TARGET, "1x37 0 1x20"))),
    Case(
        "a source that sees nothing",
        BLIND,
        "10m",
        (series("nftrace_source_up", SOURCE, "1x10 0x100"),),
        SOURCE,
        "router: nftrace sees nothing of drops (netns ; none: all)",
    ),
    Case("a source that sees", BLIND, "10m", (series("nftrace_source_up", SOURCE, "1x100"),)),
    Case(
        "events lost",
        LOST,
        "10m",
        (series("nftrace_events_lost_total", SOURCE, "0x30 20x100"),),
        SOURCE,
        "router: nftrace lost 20 events of drops (netns ; none: all)",
    ),
    Case("nothing lost", LOST, "10m", (series("nftrace_events_lost_total", SOURCE, "9x100"),)),
    Case(
        "tables not told",
        SKIPPED,
        "10m",
        (series("nftrace_tables_skipped", TARGET, "3x100"),),
        TARGET,
        "router: nftrace tells nothing of the rules of 3 tables: there are too many",
    ),
    Case("all tables told", SKIPPED, "10m", (series("nftrace_tables_skipped", TARGET, "0x100"),)),
)


def _expected(case: Case) -> list[dict[str, Any]]:
    if case.labels is None:
        return []
    alert = next(one for one in ALERTS if one.name == case.alert)
    said = {
        "summary": case.summary,
        "description": alert.description,
        "runbook_url": alert.runbook,
    }
    shown = {key: value for key, value in case.labels.items() if value}
    return [{"exp_labels": {**shown, "severity": alert.severity}, "exp_annotations": said}]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.law}")
def test_an_alert_fires_or_is_silent(case: Case, tmp_path: Path) -> None:
    """What was scraped makes the alert fire with these words, or not at all."""
    test = {
        "interval": case.interval,
        "input_series": [{"series": one, "values": values} for one, values in case.input],
        "alert_rule_test": [
            {"eval_time": case.at, "alertname": case.alert, "exp_alerts": _expected(case)}
        ],
    }

    run_rule_test(tmp_path, RULES[case.alert], test)


def test_every_alert_is_shown_firing_and_silent() -> None:
    """No alert of the table is without a case of each kind."""
    for fires in (True, False):
        shown = {case.alert for case in CASES if (case.labels is not None) is fires}

        assert {alert.name for alert in ALERTS} == shown
