"""Lines of JSON: the contract's fields in its order, one line each, the same by both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.json_lines import (
    JourneyTemplate,
    packet_format,
    render_journey,
    render_packet,
    render_start,
    render_summary,
    render_text,
)
from tests.journeys import START_NS, article, lone, step, syn
from tracer.core.journey import Ending, EndingKind, Packet, Verdict
from tracer.core.summary import Summary, SummaryBuilder

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "journey.schema.json").read_text(encoding="utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

CONTRACT = """\
{"schema":"nftrace.journey/1","id":"ID","fingerprint":"FP","host":"router","netns":"vr2",\
"start":"2026-11-23T17:22:14.031020Z","clock":"received","duration_us":null,\
"packet":{"family":"ipv4","proto":"tcp","src":"183.62.15.118","sport":22449,\
"dst":"172.17.21.105","dport":22,"length":52,"ttl":62,"ip_id":48368,"tcp_flags":"S",\
"tcp_seq":1049927226},"in":"eth2","out":null,"steps":[\
{"at_us":null,"hook":"prerouting","engine":"legacy","family":"ip","table":"mangle",\
"chain":"PREROUTING","kind":"rule","rule":1,"handle":null,\
"text":"-A PREROUTING -d 172.17.21.105/32 -j FIREWALL_172.17.21.105","form":"iptables",\
"verdict":"jump","target":"FIREWALL_172.17.21.105","changes":{}},\
{"at_us":null,"hook":"prerouting","engine":"legacy","family":"ip","table":"mangle",\
"chain":"FIREWALL_172.17.21.105","kind":"rule","rule":5,"handle":null,\
"text":"-A FIREWALL_172.17.21.105 -j DROP","form":"iptables","verdict":"drop",\
"target":null,"changes":{}}],\
"ending":{"kind":"dropped","hook":"prerouting","engine":"legacy","family":"ip",\
"table":"mangle","chain":"FIREWALL_172.17.21.105","rule":5,"handle":null,\
"text":"-A FIREWALL_172.17.21.105 -j DROP","reason":"NETFILTER_DROP"},\
"complete":true,"lost":0,"whole":true}"""


def test_schema_is_one() -> None:
    """The schema document is valid draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["$schema"].endswith("2020-12/schema")


def test_journey_is_the_contract_to_the_byte() -> None:
    """The article's drop has every field of `nftrace.journey/1` in its order."""
    journey = replace(article()[1], id="ID", fingerprint="FP")

    assert render_journey(journey) == CONTRACT


def test_changes_without_a_step_are_the_journeys() -> None:
    """What no step can hold is a field of its own, in the schema, and absent elsewhere."""
    renamed = {"dst": ("10.8.0.9", "10.2.0.2"), "dport": (79, 22)}
    told = json.loads(render_journey(replace(article()[0], steps=(), changes=renamed)))

    VALIDATOR.validate(told)
    assert {"dst": ["10.8.0.9", "10.2.0.2"], "dport": [79, 22]} == told["changes"]
    assert "changes" not in json.loads(render_journey(article()[0]))


def test_changes_and_device_are_told() -> None:
    """NAT stands in its step as before and after; a sent packet names the way out."""
    told = json.loads(render_journey(article()[0]))

    assert told["steps"][4]["changes"] == {
        "dst": ["61.146.164.120", "172.17.21.105"],
        "dport": [10174, 22],
    }
    assert (told["in"], told["out"], told["ending"]["kind"]) == ("eth2", "eth0", "sent")


def test_out_is_the_ending_device_where_the_journey_has_none() -> None:
    """The device that the packet left by is not lost."""
    journey = replace(article()[0], out_device=None)

    assert json.loads(render_journey(journey))["out"] == "eth0"


def test_template_gives_the_same_line() -> None:
    """A path's template filled with another packet's columns is that packet's line."""
    first, other = article()[0], article(17_000_000_000, sport=7)[0]
    tcp = ("src", "sport", "dst", "dport", "length", "ttl", "ip_id", "tcp_flags", "tcp_seq")
    columns = ('"183.62.15.118"', 7, '"61.146.164.120"', 10174, 52, 63, 48368, '"S"', 1049927226)
    packet = packet_format("ipv4", "tcp", tcp) % columns
    start = render_start(other.start_ns)
    template = JourneyTemplate(first)

    assert render_journey(other) == template.line(other.id, other.fingerprint, start, packet)
    hole = replace(other, complete=False, lost=3, whole=False)
    assert render_journey(hole) == template.line_in_full(
        other.id, other.fingerprint, start, packet, complete=False, lost=3, whole=False
    )


def test_packet_format_refuses_what_is_no_field() -> None:
    """A wrong name, or a wrong order, is our mistake and does not become a line."""
    for names in (("sport", "src"), ("payload",)):
        with pytest.raises(ValueError, match="order"):
            packet_format("ipv4", "tcp", names)


def test_fields_that_do_not_apply_are_absent() -> None:
    """ICMP has no ports and a frame no addresses, zero is a value."""
    icmp = Packet("ipv4", "icmp", "10.0.0.1", "10.0.0.2", icmp_type=0, icmp_code=0, icmp_id=7)

    assert list(json.loads(render_packet(icmp))) == [
        "family",
        "proto",
        "src",
        "dst",
        "icmp_type",
        "icmp_code",
        "icmp_id",
    ]
    assert render_packet(Packet("other", "arp")) == '{"family":"other","proto":"arp"}'


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (START_NS, "2026-11-23T17:22:14.030955Z"),
        (0, "1970-01-01T00:00:00.000000Z"),
        (999, "1970-01-01T00:00:00.000000Z"),
        (1_999_999_999, "1970-01-01T00:00:01.999999Z"),
    ],
)
def test_start_is_rfc_3339_in_utc(nanoseconds: int, text: str) -> None:
    """Microseconds are cut and not rounded, so no time lies in the future."""
    assert render_start(nanoseconds) == text


def test_every_kind_of_line_is_valid() -> None:
    """Journeys of each ending and protocol, and summaries, meet the schema."""
    packets = [
        syn("10.0.0.1", 22),
        Packet("ipv6", "icmpv6", "fd00::1", "fd00::2", icmp_type=128, icmp_id=7, icmp_seq=1),
        Packet("other", "34525"),
    ]
    builder = SummaryBuilder()
    lines = [render_summary(Summary(over_limit=None))]
    for kind in EndingKind:
        for packet in packets:
            journey = lone(packet, *article()[0].steps, ending=Ending(kind, reason="x"))
            builder.add(journey)
            lines.append(render_journey(journey))
    builder.note("a note")
    lines.append(render_summary(builder.build(events=7, reason="timeout")))

    assert [[]] * len(lines) == [list(VALIDATOR.iter_errors(json.loads(line))) for line in lines]


def test_schema_refuses_what_is_missing() -> None:
    """The schema is no rubber stamp: each field of the contract is required."""
    line = json.loads(render_journey(article()[1]))

    assert all(
        not VALIDATOR.is_valid({name: value for name, value in line.items() if name != left_out})
        for left_out in line
    )
    assert not VALIDATOR.is_valid({**line, "start": "2026-11-23 17:22:14"})


def test_summary_names_each_ending() -> None:
    """The summary has its counts and the places, worst first."""
    builder = SummaryBuilder()
    builder.add(article()[0], 2)
    builder.add(article()[1], 3)
    told = json.loads(render_summary(builder.build(events=60, lost=1, reason="interrupted")))

    assert ("nftrace.summary/1", 5, 60, 1, "interrupted") == (
        told["schema"],
        told["packets"],
        told["events"],
        told["lost"],
        told["reason"],
    )
    assert [(3, "vr2", "dropped", 5), (2, "vr1", "sent", None)] == [
        (one["count"], one["netns"], one["kind"], one["rule"]) for one in told["endings"]
    ]
    assert told["endings"][1]["out"] == "eth0"


def test_bytes_that_were_no_utf8_are_named() -> None:
    """Lone surrogates never reach the output; the rest of Unicode stays readable."""
    assert render_text("Büro \udce9 \ud800") == '"Büro \\\\xe9 \\\\ud800"'
    assert render_text(None) == "null"


@given(st.text(st.characters()))
def test_any_text_is_one_line_of_utf8(text: str) -> None:
    """Whatever a rule says, its line is one for every reader and says the same."""
    last = replace(step("input filter X", 2, None, Verdict.DROP), text=text, table=text)
    journey = replace(lone(syn("10.0.0.1", 22), last), netns=text, id=text)
    line = render_journey(journey)
    told = json.loads(line.encode("utf-8"))

    assert len(line.splitlines()) == 1
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert [text] * 3 == [told["netns"], told["id"], told["steps"][0]["text"]]
