"""What changed a packet, and the step that it is told at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.core.trace_kernel import (
    ROUTED,
    Header,
    Kernel,
    Said,
    batch_of,
    make_chain,
    make_ruleset,
    packet_rows,
)
from tracer.core.assemble import Assembler
from tracer.core.changes import changed_events
from tracer.core.events import EVENT
from tracer.core.journey import Verdict
from tracer.core.paths import PathBook
from tracer.core.step_book import StepBook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.core.journey import Change
    from tracer.core.ruleset import Ruleset

ACCEPT, CONTINUE = Verdict.ACCEPT, Verdict.CONTINUE
DST = {"dst": ("10.0.0.2", "10.9.9.9"), "dport": (80, 22)}
SRC = {"src": ("10.0.0.1", "10.7.7.7")}

NFT = make_ruleset(
    ("nft", "nat", [
        make_chain("dst", ("dnat to 10.9.9.9:22", ACCEPT), hook="prerouting", priority=-100,
                   kind="nat"),
        make_chain("src", ("masquerade", ACCEPT), hook="postrouting", priority=100, kind="nat"),
    ]),
    ("nft", "filter", [
        make_chain("pre", ("meta mark set 7", CONTINUE), hook="prerouting", priority=-150),
        make_chain("fwd", ("meta mark set 7", CONTINUE), ("accept", ACCEPT), hook="forward",
                   priority=0),
    ]),
)  # fmt: skip
LEGACY = make_ruleset(
    ("legacy", "mangle", [
        make_chain("PREROUTING", ("-j MARK --set-mark 7", CONTINUE), hook="prerouting",
                   priority=-150, legacy=True),
    ]),
    ("legacy", "nat", [
        make_chain("PREROUTING", ("-j DNAT --to-destination 10.9.9.9:22", ACCEPT),
                   hook="prerouting", priority=-100, kind="nat", legacy=True),
        make_chain("POSTROUTING", ("-j MASQUERADE", ACCEPT), hook="postrouting", priority=100,
                   kind="nat", legacy=True),
    ]),
    ("legacy", "filter", [
        make_chain("FORWARD", hook="forward", priority=0, legacy=True),
    ]),
)  # fmt: skip

ALONE = make_ruleset(
    ("nft", "nat", [
        make_chain("dst", ("dnat to 10.9.9.9:22", ACCEPT), hook="prerouting", priority=-100,
                   kind="nat"),
        make_chain("src", ("masquerade", ACCEPT), hook="postrouting", priority=100, kind="nat"),
    ]),
)  # fmt: skip

Told = tuple[str, int | None, dict[str, "Change"]]


def _header() -> Header:
    return Header(5, src=0x0100000A, dst=0x0200000A)


def _tell(kernel: Kernel, said: Sequence[Said]) -> list[Told]:
    """Return (chain, rule, changes) of the steps of one packet."""
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    first = assembler.add(batch_of([(one, 1) for one in said]), book, 1)
    journeys = first if len(first) else assembler.flush(book)
    [path] = PathBook(book, lambda _: False).read(journeys)
    return [(step.chain, step.rule, dict(step.changes)) for step in path.steps]


def _walk(ruleset: Ruleset, *, is_new: bool, marks_end: bool = True) -> list[Told]:
    kernel = Kernel(ruleset, marks_end=marks_end)
    said = kernel.walk(_header(), lambda _: True, hooks=ROUTED, is_new=is_new)
    return [one for one in _tell(kernel, said) if one[2]]


def test_nft_rules_own_their_changes() -> None:
    """The first packet's translations stand at the NAT rules, a mark at the rule that set it."""
    expected = [
        ("pre", 1, {"mark": (0, 7)}),
        ("dst", 1, DST),
        ("fwd", 1, {"mark": (7, 14)}),
        ("src", 1, SRC),
    ]

    assert expected == _walk(NFT, is_new=True)


def test_later_packets_changes_show_at_the_next_step() -> None:
    """Where no NAT chain is passed the translation stands in the step where it shows."""
    expected = [("pre", 1, {"mark": (0, 7)}), ("fwd", 1, {**DST, "mark": (7, 14)}), ("fwd", 2, SRC)]

    assert expected == _walk(NFT, is_new=False)


def test_later_packets_without_a_step_have_changes_of_their_own() -> None:
    """Where nat chains are all there is, the journey itself says what was translated."""
    kernel = Kernel(ALONE)
    said = kernel.walk(_header(), lambda _: True, hooks=ROUTED, is_new=False)
    assembler, book = Assembler(), StepBook(kernel.table, kernel.ruleset)
    journeys = assembler.add(batch_of([(one, 1) for one in said]), book, 1)
    [path] = PathBook(book, lambda _: False).read(journeys)

    assert () == path.steps
    assert {**DST, **SRC} == path.changes


def test_legacy_rules_own_their_changes() -> None:
    """A mark set before the next event is the legacy rule's; the first packet's NAT the rules'."""
    expected = [
        ("PREROUTING", 1, {"mark": (0, 7)}),
        ("PREROUTING", 1, DST),
        ("POSTROUTING", 1, SRC),
    ]

    assert expected == _walk(LEGACY, is_new=True)


def test_later_legacy_packets_show_at_the_next_step() -> None:
    """The same for later packets: the next step has the destination, our last chain the source."""
    expected = [("PREROUTING", 1, {"mark": (0, 7)}), ("FORWARD", None, {**DST, **SRC})]

    assert expected == _walk(LEGACY, is_new=False)


def test_the_source_shows_only_behind_it() -> None:
    """Without our last chain nobody sees what the source was translated to."""
    told = _walk(LEGACY, is_new=True, marks_end=False)

    assert "src" not in {name for _, _, changes in told for name in changes}


@pytest.mark.parametrize(
    ("ttl", "changes"),
    [(64, {}), (63, {}), (62, {"ttl": (64, 62)}), (255, {"ttl": (64, 255)})],
)
def test_routing_alone_is_no_change(ttl: int, changes: dict[str, Change]) -> None:
    """One hop less is routing; any other TTL is a change, at the step that could make it."""
    kernel = Kernel(NFT, marks_end=False)
    said = kernel.walk(_header(), lambda _: False, hooks=("forward",), armed=False)
    moved = [replace(one, header=replace(_header(), ttl=ttl)) for one in said if one.header]
    before = kernel.walk(
        replace(_header(), ttl=64), lambda _: True, hooks=("prerouting",), armed=False
    )
    told = _tell(kernel, [*before, *moved])

    found = [step[2]["ttl"] for step in told if "ttl" in step[2]]
    assert list(changes.values()) == found


@pytest.mark.parametrize("text", ["ip ttl set 9", "ip6 hoplimit set 9"])
def test_nft_headers_are_those_behind_the_rule(text: str) -> None:
    """A rule that sets the TTL has it: in nft its own event shows the new one."""
    ruleset = make_ruleset(
        ("nft", "one", [make_chain("pre", hook="prerouting", priority=-150)]),
        ("nft", "two", [make_chain("pre", ("x", CONTINUE), (text, CONTINUE), hook="prerouting",
                                   priority=-100)]),
    )  # fmt: skip
    kernel = Kernel(ruleset)
    said = kernel.walk(_header(), lambda rule: rule.number == 2, hooks=("prerouting",))
    at = next(i for i, one in enumerate(said) if kernel.table.steps[one.step].handle == 12)
    said[at:] = [
        replace(one, header=one.header and replace(one.header, ttl=9)) for one in said[at:]
    ]

    assert [("pre", 2, {"ttl": (64, 9)})] == [one for one in _tell(kernel, said) if one[2]]


def test_a_legacy_ttl_shows_behind_its_rule() -> None:
    """Legacy events come before the target: the next event's TTL is the rule's doing."""
    ruleset = make_ruleset(
        ("legacy", "mangle", [
            make_chain("PREROUTING", ("-j TTL --ttl-set 9", CONTINUE), ("-j MARK", CONTINUE),
                       hook="prerouting", priority=-150, legacy=True),
        ]),
    )  # fmt: skip
    kernel = Kernel(ruleset)
    said = kernel.walk(_header(), lambda _: True, hooks=("prerouting",))
    said[2:] = [replace(one, header=one.header and replace(one.header, ttl=9)) for one in said[2:]]

    assert {"ttl": (64, 9)} == _tell(kernel, said)[0][2]


def test_a_mark_nobody_shown_set_stands_where_it_shows() -> None:
    """A mark that changed before any legacy rule stands in the step where it shows."""
    kernel = Kernel(LEGACY)
    said = kernel.walk(_header(), lambda _: False, hooks=("forward",))
    said[1:] = [replace(one, mark=3) for one in said[1:]]

    assert [("FORWARD", None, {"mark": (0, 3)})] == _tell(kernel, said)


def test_changes_of_one_field_are_one() -> None:
    """Two translations that stand in one step are told from the first value to the last."""
    kernel = Kernel(LEGACY)
    said = kernel.walk(_header(), lambda _: False, hooks=("forward",))
    hop = replace(said[1], header=replace(_header(), dst=0x0300000A))
    last = replace(said[-1], header=replace(_header(), dst=0x0400000A))

    assert {"dst": ("10.0.0.2", "10.0.0.4")} == _tell(kernel, [said[0], hop, last])[0][2]


def test_columns_find_what_changed() -> None:
    """The quick look over all events says where, and never between two packets."""
    rows = np.zeros(7, EVENT)
    rows["packet"] = [0, -1, 1, 2, 3, 4, 5]
    rows["mark"] = [0, 1, 1, 0, 0, 0, 0]
    packets = packet_rows(
        [
            _header(),
            replace(_header(), ttl=63),
            _header(),
            replace(_header(), sport=9),
            replace(_header(), sport=9, ttl=60),
            replace(_header(), sport=9, ttl=60, dst=7),
        ]
    )
    owner = np.array([0, 0, 0, 1, 1, 1, 2])

    assert [False, True, False, False, True, True, False] == changed_events(
        rows, packets, owner
    ).tolist()
    assert [False] == changed_events(rows[:1], packets, owner[:1]).tolist()
