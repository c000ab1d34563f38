"""
`nftrace demo --watch`: nobody looks, and the alert arrives.

The two-router network, the daemon in it, Prometheus and Alertmanager on the loopback of
the same private namespaces. The case's SYNs are sent; what Alertmanager posts is printed,
with Prometheus' numbers beside those of the firewall's own tool.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tracer.demo.conclusion import KNOWN_CHAIN, KNOWN_END
from tracer.demo.drawing import draw_network
from tracer.demo.lab import CONNECT_TIMEOUT_S, PUBLIC, ROUTERS, SSH_PORT, Backend, Lab
from tracer.demo.page import Page
from tracer.demo.private import run_in_private
from tracer.demo.services import DAEMON, Services, find_program, wait_for
from tracer.demo.webhook import Webhook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

__all__ = ["ALERT", "run_watch"]

#: The alert that the case is known to end with.
ALERT: Final = "NftraceUnexpectedDropInMangle"
_WITHIN_S: Final = 60.0
_FOLDER: Final = Path("/run/nftrace-demo")
_LAST_RULE: Final = f'nftrace_rule_packets_total{{netns="vr2", chain="{KNOWN_CHAIN}"}}'
_UNSEEN: Final = 1


def run_watch(backend: Backend, console: Console) -> int:
    """
    Tell the case as the watch tells it, and return the exit status.

    Status: 0 the alert arrived and the numbers agree, 1 it arrived and they do not, 130
    interrupted, or that of the NftraceError that ended it: 3 where a program is missing.
    """
    return run_in_private(lambda _pid: _tell(backend, Page(console)))


def _tell(backend: Backend, page: Page) -> int:
    find_program("prometheus")
    find_program("alertmanager", "prometheus-alertmanager")
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    with Lab(backend) as lab, Webhook() as webhook, Services(_FOLDER) as services:
        _introduce(page)
        services.start_daemon(ROUTERS)
        services.start_alertmanager(webhook.url)
        rules = resources.files("dashboards") / "alerts" / "nftrace.rules.yml"
        with resources.as_file(rules) as file:
            services.start_prometheus(file, socket.gethostname())
            _wait_until_scraped(services)
            return _attempt(page, lab, services, webhook)


def _introduce(page: Page) -> None:
    page.heading("the network", "namespaces with no way out")
    page.verbatim(draw_network(fixed=False), indent=0)
    page.heading("who watches")
    page.shell("router#", f"nftrace daemon    # metrics at {DAEMON}")
    page.shell("router#", "prometheus        # scrapes it every 2 s, evaluates alerts every second")
    page.shell("router#", "alertmanager      # posts what fires to a webhook, which prints it")


def _wait_until_scraped(services: Services) -> None:
    """Wait until the rule was seen twice, so that an increase has a beginning."""
    seen = f"count_over_time({_LAST_RULE}[1m]) >= 2"
    wait_for("a second scrape", _WITHIN_S, lambda: services.ask(seen) or None)
    wait_for("its Alertmanager", _WITHIN_S, lambda: services.knows_alertmanager() or None)


def _attempt(page: Page, lab: Lab, services: Services, webhook: Webhook) -> int:
    page.heading("somebody tries, nobody looks")
    page.shell("client$", f"ssh -o ConnectTimeout={CONNECT_TIMEOUT_S:.0f} -p {SSH_PORT} {PUBLIC}")
    started_s = time.monotonic()
    pending = lab.start_attempt()

    def find() -> Mapping[str, Any] | None:
        alert = webhook.find_next()
        if alert is not None:
            _print_alert(page, alert, time.monotonic() - started_s)
            if alert["labels"]["alertname"] == ALERT:
                return alert
        return None

    alert = wait_for(f"the alert {ALERT}", _WITHIN_S, find)
    while not pending.is_over(wait_s=CONNECT_TIMEOUT_S):
        pass
    agree = _compare(page, lab, services)
    _conclude(page, alert["labels"], pending.outcome().error)
    return 0 if agree and _is_known(alert["labels"]) else _UNSEEN


def _is_known(labels: Mapping[str, str]) -> bool:
    """Say whether the alert names the rule that the case is known to end at."""
    place = labels["netns"], labels["chain"], int(labels.get("rule") or 0)
    return place == KNOWN_END


def _print_alert(page: Page, alert: Mapping[str, Any], elapsed_s: float) -> None:
    labels, said = alert["labels"], alert["annotations"]
    page.heading("an alert arrives", f"{elapsed_s:.1f} s after the first SYN left")
    page.item(labels["severity"], labels["alertname"])
    page.item("", said["summary"])
    page.item("", said["description"])
    page.item("runbook", said["runbook_url"])


def _compare(page: Page, lab: Lab, services: Services) -> bool:
    """Print the rule's counter as Prometheus has it and as the tool has; say if they agree."""
    counted = _count_by_tool(lab)

    def find() -> int | None:
        told = services.ask(f"sum({_LAST_RULE})")
        value = int(float(told[0]["value"][1])) if told else None
        return value if value == counted else None

    told = wait_for(f"the number {counted} in Prometheus", _WITHIN_S, find)
    page.heading("the numbers")
    page.item("Prometheus", f"{_LAST_RULE}  {told}")
    page.item("vr2 itself", f"{_tool(lab)}  {counted}")
    for one in services.ask("sum by (netns, hook, table, reason) (nftrace_drops_total) > 0"):
        place = one["metric"]
        words = [place[key] for key in ("netns", "hook", "table", "reason") if place.get(key)]
        page.item("by eBPF", f"{' '.join(words)}  {one['value'][1]}")
    return told == counted


def _tool(lab: Lab) -> str:
    return {
        Backend.LEGACY: "iptables-legacy-save -c",
        Backend.NFT: "iptables-nft-save -c",
        Backend.NFTABLES: "nft list ruleset",
    }[lab.backend]


def _count_by_tool(lab: Lab) -> int:
    """Return how many packets met rules of the known chain that drop, as its tool says."""
    listing = lab.rules("vr2", counters=True)
    chain = re.escape(KNOWN_CHAIN)
    saved = re.findall(rf"^\[(\d+):\d+\] -A {chain} .*-j DROP$", listing, re.MULTILINE)
    if saved:
        return sum(map(int, saved))
    body = re.search(rf"chain {chain} {{\n(.*?)^\t}}", listing, re.DOTALL | re.MULTILINE)
    counted = re.findall(r"counter packets (\d+) bytes \d+ drop", body[1] if body else "")
    return sum(map(int, counted))


def _conclude(page: Page, labels: Mapping[str, str], error: str | None) -> None:
    page.heading("conclusion")
    page.paragraph(f"✗ ssh: {error}. The alert said why, to people who had not looked:", "bold red")
    page.item(
        "Where",
        f"{labels['netns']}, {labels['table']} {labels['chain']}, rule {labels['rule']}:",
        [labels["text"]],
    )
