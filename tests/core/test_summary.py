"""A run's counts: worst first, bounded, and a packet counted once however many hops it had."""

from __future__ import annotations

from dataclasses import replace

from tests.journeys import FILTER_CHAIN, article
from tracer.core.journey import Ending, EndingKind
from tracer.core.summary import ENDINGS_KEPT, NOTES_KEPT, SummaryBuilder


def test_packet_counts_once_at_its_last_hop() -> None:
    """Earlier hops are journeys; the packet is where it ended."""
    builder = SummaryBuilder()
    for number in range(7):
        first, last = article(number)
        builder.add(first, 0)
        builder.add(last)
    summary = builder.build(events=140, reason="timeout")

    assert (7, 14, 140, "timeout") == (
        summary.packets,
        summary.journeys,
        summary.events,
        summary.reason,
    )
    assert [(7, "vr2", FILTER_CHAIN)] == [
        (counted.count, counted.netns, counted.ending.chain) for counted in summary.endings
    ]


def test_endings_are_sorted_worst_first() -> None:
    """Drops come before everything, then rejects, the unknown, and at last what went well."""
    builder = SummaryBuilder()
    for kind in reversed(EndingKind):
        builder.add(replace(article()[0], ending=Ending(kind)), packets=3)
    builder.add(article()[1], packets=5)
    kinds = [counted.ending.kind.value for counted in builder.build().endings]

    expected = ["dropped", "dropped", "rejected", "unknown", "queued", "delivered", "sent"]
    assert expected == kinds
    assert builder.build().endings[0].count == 5


def test_a_reason_that_came_late_makes_no_second_ending() -> None:
    """A rule's drops are one ending, whether the kernel's word was known of each or not."""
    builder = SummaryBuilder()
    bare = replace(article()[1].ending, reason=None)
    builder.add_ending("vr2", bare, 3)
    builder.add_ending("vr2", replace(bare, reason="NETFILTER_DROP"), 5)
    builder.add_ending("vr2", Ending(EndingKind.DROPPED, reason="IP_INNOROUTES"), 7)
    builder.add_ending("vr2", Ending(EndingKind.DROPPED, reason="IP_RPFILTER"), 11)

    assert [(11, "IP_RPFILTER"), (8, "NETFILTER_DROP"), (7, "IP_INNOROUTES")] == [
        (counted.count, counted.ending.reason) for counted in builder.build().endings
    ]


def test_holes_are_counted() -> None:
    """Journeys that may lack steps, or began late, are counted as such."""
    builder = SummaryBuilder()
    builder.add(replace(article()[0], complete=False, lost=3), 0)
    builder.add(replace(article()[1], whole=False))
    builder.add_many("vr2", article()[1].ending, 11)
    builder.add_flaws(incomplete=2, began_late=5)
    summary = builder.build(lost=3)

    assert (12, 13, 3, 6) == (
        summary.packets,
        summary.journeys,
        summary.incomplete,
        summary.began_late,
    )


def test_memory_is_bounded_and_nothing_goes_uncounted() -> None:
    """Endings beyond the limit are counted together; the sum is the packets."""
    builder = SummaryBuilder()
    for rule in range(ENDINGS_KEPT + 13):
        builder.add(replace(article()[1], ending=Ending(EndingKind.DROPPED, rule=rule)))
    for number in range(NOTES_KEPT + 1):
        builder.note(f"note {number}")
        builder.note("note 0")
    summary = builder.build()

    assert len(summary.endings) == ENDINGS_KEPT
    assert summary.other_endings == 13
    assert summary.packets == sum(c.count for c in summary.endings) + summary.other_endings
    assert len(summary.notes) == NOTES_KEPT
