"""Laws of what Prometheus is told."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from exporters.prometheus import METRICS, Exporter, render
from exporters.prometheus_metrics import BY_NAME
from exporters.prometheus_text import Family, Mark, make_series, write_text
from tests.exporters.watched import (
    ACCEPT,
    DROP,
    JOURNEY,
    NFT_DROP,
    NO_SOCKET,
    POLICY,
    RULES,
    UNCOUNTED,
    Watched,
    samples,
    table_of,
    values,
)
from tracer.core.expected import parse_expected
from tracer.core.health import Health
from tracer.core.journey import Verdict
from tracer.core.rule_ids import CountedRule

PACKETS = "nftrace_rule_packets_total"
PLACE = ("vr1", "nft", "inet", "t")
BY_COUNTER = (*PLACE, "in", "d4", "drop", "counter", "false")
BY_DROPS = (*PLACE, "in", "d5", "drop", "attributed", "false")
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def test_rules_are_told_by_their_counter_or_by_their_drops() -> None:
    """One source a rule, in packets and bytes; a rule that lets pass is not told."""
    exporter = Exporter(Watched())

    assert {BY_COUNTER: 13, BY_DROPS: 3} == values(exporter, PACKETS)
    assert {BY_COUNTER: 1300, BY_DROPS: 300} == values(exporter, "nftrace_rule_bytes_total")


def test_every_rule_is_told_where_that_is_wanted() -> None:
    """Accepting rules, too, but never a policy that accepts."""
    told = values(Exporter(Watched(), every_rule=True), PACKETS)

    assert {(*PLACE, "in", "a6", "accept", "counter", "false"): 7} == {
        labels: value for labels, value in told.items() if labels[6] == "accept"
    }


def test_what_is_not_known_is_not_told_as_0() -> None:
    """Without attribution a rule and a policy without a counter are missing."""
    watched = Watched(rows=[], told=Health())
    exporter = Exporter(watched)

    assert {BY_COUNTER: 13} == values(exporter, PACKETS)
    assert {} == values(exporter, "nftrace_policy_drops_total")


def test_what_is_known_to_be_nothing_is_told_as_0() -> None:
    """With attribution a dropping rule that dropped nothing has a series from the start."""
    exporter = Exporter(Watched(rows=[]))

    assert {BY_COUNTER: 13, BY_DROPS: 0} == values(exporter, PACKETS)
    assert {(*PLACE, "in", "attributed", "false"): 0} == values(
        exporter, "nftrace_policy_drops_total"
    )


def test_a_map_that_dropped_is_told_as_dropping() -> None:
    """Drops by a rule whose text does not tell its verdict are found beside all the others."""
    rule = CountedRule("in", 1, 5, "tcp dport vmap @m", "", None, "m5")
    exporter = Exporter(Watched(tables=(table_of((rule,), (0,), (False,)),)))

    assert {(*PLACE, "in", "m5", "drop", "attributed", "false"): 3} == values(exporter, PACKETS)


def test_policies_are_told_apart_from_rules() -> None:
    """A policy's drops by its counter, where the kernel keeps one."""
    table = table_of((DROP, POLICY), (13, 5), (True, True))

    assert {(*PLACE, "in", "counter", "false"): 5} == values(
        Exporter(Watched(tables=(table,))), "nftrace_policy_drops_total"
    )


def test_a_rules_text_is_read_by_people() -> None:
    """Number, text, comment and verdict of each rule that is told, quotes and all."""
    exporter = Exporter(Watched())

    assert {
        (*PLACE, "in", "d4", "1", DROP.text, "no", "drop", "false"): 1,
        (*PLACE, "in", "d5", "2", UNCOUNTED.text, "", "drop", "false"): 1,
    } == values(exporter, "nftrace_rule_info")


def test_a_long_text_is_cut() -> None:
    """A rule of many elements has a label that a server accepts."""
    rule = replace(DROP, text="drop " * 1000)
    (labels,) = values(
        Exporter(Watched(tables=(table_of((rule,), (1,), (True,)),))), "nftrace_rule_info"
    )

    assert (512, "…") == (len(labels[7]), labels[7][-1])


def test_drops_are_told_by_place_and_reason() -> None:
    """Netfilter's with hook and table, the others with the kernel's reason alone."""
    exporter = Exporter(Watched())

    assert {
        ("vr1", "nft", "inet", "input", "t", "NETFILTER_DROP", "false"): 3,
        ("vr1", "", "", "", "", "NO_SOCKET", "false"): 2,
    } == values(exporter, "nftrace_drops_total")


def test_expected_is_a_label_of_all_that_alerts_look_at() -> None:
    """Exchanged while running, the new expectation stands on what comes from then on."""
    watched = Watched()
    exporter = Exporter(watched)
    exporter.refresh()
    exporter.expected = parse_expected([{"chain": "in", "text": "udp*"}, {"reason": "NO_SOCKET"}])
    watched.drop(4)
    watched.rows[1] = replace(NO_SOCKET, packets=3)

    assert {BY_COUNTER: 13, (*BY_DROPS[:-1], "true"): 7} == values(exporter, PACKETS)
    assert {
        ("vr1", "nft", "inet", "input", "t", "NETFILTER_DROP", "false"): 3,
        ("vr1", "nft", "inet", "input", "t", "NETFILTER_DROP", "true"): 4,
        ("vr1", "", "", "", "", "NO_SOCKET", "false"): 2,
        ("vr1", "", "", "", "", "NO_SOCKET", "true"): 1,
    } == values(exporter, "nftrace_drops_total")


def test_a_drop_points_to_a_journey() -> None:
    """In OpenMetrics, and there alone, its rule and its kind carry the journey's id."""
    exporter = Exporter(Watched())

    marked = {
        sample.name: (sample.exemplar.labels, float(sample.exemplar.timestamp or 0))
        for sample in samples(exporter, openmetrics=True)
        if sample.exemplar
    }

    expected = ({"journey_id": "j-1"}, 1700000000.25)
    watched = Watched(marks=[replace(JOURNEY, rule=9, handle=99), replace(JOURNEY, table=None)])
    elsewhere = [s for s in samples(Exporter(watched), openmetrics=True) if s.exemplar]

    assert {PACKETS: expected, "nftrace_drops_total": expected} == marked
    assert ["nftrace_drops_total"] == [sample.name for sample in elsewhere]
    assert b"j-1" not in exporter.write(openmetrics=False)


def test_rules_beyond_the_limit_are_counted_together_and_said_to_be() -> None:
    """Of three rules two have series; the third's packets are in the fold, to the last one."""
    rules = tuple(replace(DROP, handle=n, number=n, rule_id=f"r{n}") for n in (1, 2, 3))
    watched = Watched(tables=(table_of(rules, (2, 3, 5), (True,) * 3),), rows=[])
    exporter = Exporter(watched, rules_max=2)
    first = values(exporter, PACKETS)
    watched.load(table_of(rules[1:], (4, 12), (True,) * 2))

    fold = (*PLACE, "", "other", "drop", "counter", "false")
    own = [(*PLACE, "in", f"r{n}", "drop", "counter", "false") for n in (1, 2)]
    assert {own[0]: 2, own[1]: 3, fold: 5} == first
    assert {own[1]: 4, fold: 12} == values(exporter, PACKETS)
    assert {PLACE: 1} == values(exporter, "nftrace_rules_folded")
    assert {PLACE: 2} == values(exporter, "nftrace_rules")


def test_policies_beyond_the_limit_are_counted_together() -> None:
    """A fold of policies has the chain `other`; it ends with its namespace."""
    watched = Watched(tables=(table_of((POLICY,), (5,), (True,)),), rows=[])
    exporter = Exporter(watched, rules_max=0)
    told = values(exporter, "nftrace_policy_drops_total")
    watched.names = {}

    assert {(*PLACE, "other", "counter", "false"): 5} == told
    assert {} == values(exporter, "nftrace_policy_drops_total")


def test_tables_beyond_the_limit_are_not_told_and_said_to_be_there() -> None:
    """With more tables than are told, those that were there first stay."""
    tables = [table_of((DROP,), (1,), (True,), name=f"t{n}") for n in range(2_003)]
    watched = Watched(tables=tuple(tables), rows=[])
    exporter = Exporter(watched)

    assert 2_000 == len(values(exporter, "nftrace_rules"))
    assert {(): 3} == values(exporter, "nftrace_tables_skipped")


def test_a_namespace_that_goes_takes_its_series_along() -> None:
    """Nothing of it is told any more but that it is not watched."""
    watched = Watched()
    exporter = Exporter(watched)
    exporter.refresh()
    watched.names = {}

    told = [sample for sample in samples(exporter) if sample.labels.get("netns")]

    assert [] == told
    assert {(): 0} == values(exporter, "nftrace_namespaces")


def test_a_namespace_that_cannot_be_read_keeps_its_last_values() -> None:
    """Until it can be read again its rules stand where they stood."""
    watched = Watched()
    exporter = Exporter(watched)
    exporter.refresh()
    watched.counters = list  # type: ignore[method-assign,assignment]

    assert {BY_COUNTER: 13, BY_DROPS: 3} == values(exporter, PACKETS)


def test_changes_and_resets_are_told() -> None:
    """A reload that counts anew goes on, and both counters say so."""
    watched = Watched()
    exporter = Exporter(watched)
    exporter.refresh()
    rules = tuple(replace(rule, handle=(rule.handle or 0) + 10) for rule in RULES[:3])
    watched.load(table_of(rules, (2, 0, 0), (True, False, True)))

    assert 15 == values(exporter, PACKETS)[BY_COUNTER]
    assert {("vr1",): 1} == values(exporter, "nftrace_ruleset_changes_total")
    assert {PLACE: 1} == values(exporter, "nftrace_rule_counter_resets_total")


def test_the_watch_tells_of_itself() -> None:
    """Sources, loop, scrapes, version, and what else the daemon names."""
    exporter = Exporter(Watched(), version="1.2", kernel="6.18")
    exporter.write(openmetrics=False)
    told = {
        sample.name: sample.value for sample in samples(exporter) if sample.name[:8] == "nftrace_"
    }

    assert (5, 1, 1) == tuple(
        told[f"nftrace_{name}"] for name in ("events_total", "events_lost_total", "source_up")
    )
    assert (0.5, 11) == (
        told["nftrace_loop_busy_seconds_sum"],
        told["nftrace_loop_busy_seconds_count"],
    )
    assert 1 == told["nftrace_scrape_seconds_count"]
    assert 2 == told["nftrace_trace_armed_flows"]
    assert {("1.2", "6.18"): 1} == values(exporter, "nftrace_build_info")


def test_a_value_that_is_no_metric_is_refused() -> None:
    """A name that dashboards cannot know is a mistake, found by the first scrape."""
    exporter = Exporter(Watched(told=Health(values={"nftrace_nonsense": 1})))

    with pytest.raises(ValueError, match="nftrace_nonsense"):
        exporter.write(openmetrics=False)


def test_all_that_is_told_is_declared() -> None:
    """Each sample is of a metric of the list, with its labels and no others."""
    declared = {name: set(metric.labels) for metric in METRICS for name in metric.samples}

    told = samples(Exporter(Watched(), every_rule=True))

    assert [] == [s.name for s in told if declared.get(s.name) != set(s.labels)]
    assert len(METRICS) == len(BY_NAME)


def test_promtool_has_no_complaint() -> None:
    """Names, types and help texts are as Prometheus' own linter wants them."""
    own = ("nftrace_trace", "nftrace_control", "nftrace_messages")
    more = {metric.name: 1 for metric in METRICS if metric.name.startswith(own)}
    told = replace(Watched().told, values=more)
    exporter = Exporter(Watched(told=told), every_rule=True)

    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exporter.write(openmetrics=False),
        capture_output=True,
        check=False,
    )

    assert (b"", b"", 0) == (done.stdout, done.stderr, done.returncode)


def test_prometheus_client_tells_the_same() -> None:
    """Registered as a collector, the exporter gives the same samples in either format."""
    exporter = Exporter(Watched(), every_rule=True)
    registry = CollectorRegistry()
    registry.register(exporter)
    theirs = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    for openmetrics in (False, True):
        ours = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for sample in samples(exporter, openmetrics=openmetrics)
        }
        assert theirs.keys() == ours.keys()
        changing = ("process_", "nftrace_scrape")
        assert {} == {
            key: (value, ours[key])
            for key, value in theirs.items()
            if value != ours[key] and not key[0].startswith(changing)
        }


def test_the_format_is_that_which_is_asked_for() -> None:
    """OpenMetrics where the request names it, else the text format of old."""
    exporter = Exporter(Watched())

    body, kind = render(exporter, OPENMETRICS)
    old_body, old_kind = render(exporter, "*/*")

    assert body.endswith(b"# EOF\n")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert b"# EOF" not in old_body
    assert old_kind.startswith("text/plain; version=0.0.4")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_label_comes_through(chain: str, text: str) -> None:
    """Whatever characters a name or a text has, a parser reads them back."""
    metric = BY_NAME["nftrace_policy_drops_total"]
    chain, text = (word.encode(errors="replace").decode() for word in (chain, text))
    series = make_series(metric, (text, "nft", "inet", "t", chain, "counter", "false"))
    mark = {0: Mark(text[:60], 1.5)}
    for openmetrics in (False, True):
        raw = write_text([Family(metric, [series], [7], marks=mark)], openmetrics=openmetrics)
        lines = [line for line in raw.decode().split("\n") if line[:1] not in ("#", "")]
        assert 1 == len(lines)
        assert lines[0].startswith(metric.name + series.text + " 7")
    (family,) = text_string_to_metric_families(
        write_text([Family(metric, [series], [7])], openmetrics=False).decode().replace("\r", "")
    )
    labels = family.samples[0].labels
    assert (text.replace("\r", ""), chain.replace("\r", "")) == (labels["netns"], labels["chain"])


def test_bytes_that_are_no_utf_8_are_told_as_numbers() -> None:
    """A chain's name that UTF-8 has no characters for does not stop a scrape."""
    rule = replace(DROP, chain="in\udcff", text="drop\udc80")
    exporter = Exporter(Watched(tables=(table_of((rule,), (1,), (True,)),), rows=[]))

    assert {(*PLACE, r"in\xff", "d4", "drop", "counter", "false"): 1} == values(exporter, PACKETS)


_EVENTS = st.one_of(
    st.tuples(st.just("rules"), st.lists(st.integers(0, 5), unique=True)),
    st.tuples(st.just("count"), st.lists(st.integers(0, 99), min_size=6, max_size=6)),
    st.tuples(st.just("drops"), st.lists(st.integers(0, 99), min_size=3, max_size=3)),
)


@given(st.lists(_EVENTS, max_size=15), st.integers(0, 6))
def test_no_counter_that_is_told_falls(events: list[tuple[str, list[int]]], rules_max: int) -> None:
    """Whatever rules come, go, count and begin anew, and however few have their series."""
    verdicts = (Verdict.DROP, Verdict.REJECT, None, Verdict.ACCEPT, Verdict.DROP, Verdict.DROP)
    every = [
        CountedRule("in", n, n + 1, f"rule {n}", "", verdict, f"r{n}")
        for n, verdict in enumerate(verdicts)
    ]
    has = np.array([True, True, False, True, False, True])
    present, counts = list(range(6)), [0] * 6
    watched = Watched()
    exporter = Exporter(watched, rules_max=rules_max, every_rule=True)
    before: dict[str, int] = {}
    for what, numbers in events:
        if what == "rules":
            present = numbers
        elif what == "count":
            counts = numbers
        else:
            watched.rows = [
                replace(NFT_DROP, handle=at + 1, packets=n, octets=n)
                for at, n in zip((2, 3, 4), numbers, strict=True)
            ]
        rules = tuple(every[at] for at in present)
        watched.load(table_of(rules, [counts[at] for at in present], has[present].tolist()))
        lines = exporter.write(openmetrics=False).decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if re.match(r"nftrace_\w+_total", line)]
        now = {series: int(value) for series, value in pairs}
        assert {} == {key: now[key] for key in before.keys() & now.keys() if now[key] < before[key]}
        before.update(now)


def test_a_kind_of_drop_is_no_row_of_its_own_place_twice() -> None:
    """Rules of one table, and certain and uncertain drops, add up to one series."""
    rows = [
        NFT_DROP,
        replace(NFT_DROP, handle=4, certain=False),
        replace(NFT_DROP, kind="policy", handle=None, chain="in"),
    ]

    assert {("vr1", "nft", "inet", "input", "t", "NETFILTER_DROP", "false"): 9} == values(
        Exporter(Watched(rows=rows)), "nftrace_drops_total"
    )


def test_a_rule_that_only_accepts_has_no_series_by_drops() -> None:
    """A rule that never dropped and never will is not in attributed series."""
    table = table_of((ACCEPT,), (0,), (False,))

    assert {} == values(Exporter(Watched(tables=(table,), rows=[]), every_rule=True), PACKETS)


def test_every_metric_is_documented() -> None:
    """The table in docs/metrics.md has each metric with its kind, its labels and its meaning."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(?:nftrace|process)_\w+` \| \w+ \|.*$", text, re.MULTILINE)

    labels = [", ".join(f"`{label}`" for label in one.labels) or "none" for one in METRICS]
    assert rows == [
        f"| `{one.name}` | {one.kind} | {words} | {one.help} |"
        for one, words in zip(METRICS, labels, strict=True)
    ]
