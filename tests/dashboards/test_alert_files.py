"""The alert files: as their table is, the same for Prometheus and Grafana, accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.alerts.table import ALERTS
from dashboards.files import render_files
from tests.dashboards.promtool import promtool

ROOT = Path(__file__).resolve().parents[2]
ALERT_FILES = ROOT / "dashboards" / "alerts"
RULES = ALERT_FILES / "nftrace.rules.yml"


def _read(name: str) -> Any:  # noqa: ANN401 - YAML of any shape
    return yaml.safe_load((ALERT_FILES / name).read_text(encoding="utf-8"))


def read_prometheus_rules() -> list[dict[str, Any]]:
    """Return the committed alert rules."""
    (group,) = _read("nftrace.rules.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def _grafana() -> list[dict[str, Any]]:
    (group,) = _read("grafana-alerting.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@pytest.mark.parametrize("name", render_files())
def test_the_committed_file_is_what_is_written(name: str) -> None:
    """Writing a generated file again changes nothing."""
    assert render_files()[name] == (ROOT / "dashboards" / name).read_text(encoding="utf-8")


def test_promtool_takes_the_rules() -> None:
    """Prometheus' own checker finds every alert of the table and nothing to complain of."""
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", RULES)


def test_grafana_and_prometheus_say_the_same() -> None:
    """Name, expression, duration, labels and annotations are equal, the value's name apart."""
    for ours, theirs in zip(read_prometheus_rules(), _grafana(), strict=True):
        query = theirs["data"][0]
        said = {
            key: text.replace("$values.A.Value", "$value")
            for key, text in theirs["annotations"].items()
        }

        assert ours["alert"] == theirs["title"]
        assert ours["expr"] == query["model"]["expr"]
        assert ours["for"] == theirs["for"]
        assert ours["labels"] == theirs["labels"]
        assert ours["annotations"] == said


def test_grafana_rules_are_whole() -> None:
    """Each has its own uid and a condition that a query in it leads to; no data is no alert."""
    rules = _grafana()

    assert len(rules) == len({rule["uid"] for rule in rules})
    for rule in rules:
        query, yes = rule["data"]
        assert re.fullmatch(r"[a-z0-9-]{1,40}", rule["uid"])
        assert (rule["condition"], "A") == (yes["refId"], yes["model"]["expression"])
        assert ("A", True) == (query["refId"], query["model"]["instant"])
        assert "OK" == rule["noDataState"]


def test_every_summary_names_what_the_alert_is_about() -> None:
    """Alerts of rules name host, netns, table, chain, number and text; the others their host."""
    for rule in read_prometheus_rules():
        words = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        if "nftrace_rule_packets_total" in rule["expr"]:
            assert {"instance", "netns", "table", "chain", "rule", "text"} <= words
        assert "instance" in words


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """runbook_url leads to a file of this tree and a heading in it."""
    for alert in ALERTS:
        file, _, anchor = alert.runbook.partition("#")
        headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text("utf-8"), re.MULTILINE)

        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
