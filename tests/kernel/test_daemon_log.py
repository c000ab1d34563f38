"""What the daemon saw is in the event log: each drop as a row, each traced packet whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporters.log import LogReader
from tests.kernel import nets
from tests.kernel.daemon_helper import daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TO_B = "10.1.0.2"
_LEGACY = """*mangle
-A PREROUTING -p udp -m udp --dport 7002 -j DROP
COMMIT
"""


def test_drops_and_journeys_are_kept(tmp_path: Path, netns: Callable[..., str]) -> None:
    """13 drops are 13 rows with their namespace and device; the traced one is a journey."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    nets.load_rules("b", "legacy", _LEGACY)
    kept = tmp_path / "log"
    parts = {"log": {"directory": str(kept)}, "watch": {"rung": "reason"}}
    with daemon(tmp_path, "b", **parts) as watch:
        nets.send_udp("a", _TO_B, 7002, 1, sport=5001)
        # The metric counts a flow that is about to be traced; the set holds one that is.
        nets.wait_until(
            lambda: "elements" in nets.ip_netns_exec("b", "nft", "list", "ruleset").stdout,
            10,
            "arming",
        )
        nets.send_udp("a", _TO_B, 7002, 12, sport=5001)
        named = watch.until("rule_named")
        nets.wait_until(
            lambda: watch.sum_of("nftrace_events_total", source="event_log") >= 14, 10, "rows"
        )

        assert 1 == watch.sum_of("nftrace_source_up", source="event_log")
        assert 0 == watch.sum_of("nftrace_events_lost_total", source="event_log")
        assert 0 < watch.sum_of("nftrace_log_bytes")
    reader = LogReader(kept)
    try:
        rows = reader.query("select netns, in_device, dport, sum(weight) from drops group by all")
        journey = reader.journey(named["journey"])
    finally:
        reader.close()

    assert [("b", "b0", 7002, 13)] == rows
    assert journey is not None
    assert "-A PREROUTING -p udp -m udp --dport 7002 -j DROP" == journey.journey.ending.text


def test_drops_that_are_meant_are_marked(tmp_path: Path, netns: Callable[..., str]) -> None:
    """Of two rules the configuration names one: 13 rows have it, 7 have not, also after SIGHUP."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", f"{_TO_B}/24")
    rules = _LEGACY.replace("COMMIT", "-A PREROUTING -p udp -m udp --dport 7003 -j DROP\nCOMMIT")
    nets.load_rules("b", "legacy", rules)
    kept = tmp_path / "log"
    with daemon(tmp_path, "b", log={"directory": str(kept)}) as watch:
        watch.until("rules_read", timeout_s=30)
        entry = '[[expected]]\ntext = "*--dport 7002 -j DROP"\n'
        watch.reload(f"{watch.config.read_text(encoding='utf-8')}\n{entry}")
        watch.until("configuration_read")
        nets.send_udp("a", _TO_B, 7002, 13)
        nets.send_udp("a", _TO_B, 7003, 7)
        nets.wait_until(
            lambda: watch.sum_of("nftrace_events_total", source="event_log") >= 20, 10, "rows"
        )
    with LogReader(kept) as reader:
        rows = reader.query(
            "SELECT dport, sum(weight * expected) FROM drops GROUP BY ALL ORDER BY 1"
        )

    assert [(7002, 13), (7003, 0)] == rows
