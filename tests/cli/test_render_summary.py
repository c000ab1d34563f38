"""The summary in words: one sentence when there is one ending, a list when there are more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.journeys import article
from tracer.cli.render_summary import ENDINGS_SHOWN, render_summary_text
from tracer.cli.theme import UNICODE
from tracer.core.journey import Ending, EndingKind
from tracer.core.summary import EndingCount, Summary


def text_of(summary: Summary, width: int = 80) -> list[str]:
    """Return the summary's lines."""
    return [line.plain for line in render_summary_text(summary, width, UNICODE)]


def test_no_packet_is_said() -> None:
    """A run that saw nothing says so, and why it ended."""
    assert text_of(Summary(reason="timeout")) == [
        "no packet was seen. Nothing lost. Ended: timeout."
    ]


def test_several_endings_are_listed_with_their_rules() -> None:
    """Each ending has a line with its count and, for drops, the rule's text."""
    endings = (
        EndingCount("vr2", article()[1].ending, 97),
        EndingCount("vr2", Ending(EndingKind.DROPPED, reason="NO_SOCKET"), 11),
        EndingCount("vr2", Ending(EndingKind.UNKNOWN, "input", reason="not observed"), 7),
        EndingCount("vm", Ending(EndingKind.DELIVERED), 3),
        EndingCount("vr1", Ending(EndingKind.SENT, device="eth0"), 2),
    )

    assert text_of(Summary(packets=120, endings=endings)) == [
        "120 packets:",
        "   97  dropped by vr2 mangle FIREWALL_172.17.21.105 rule 5: -j DROP",
        "   11  dropped by vr2 itself (NO_SOCKET)",
        "    7  last seen in vr2, input (not observed)",
        "    3  delivered in vm",
        "    2  sent out eth0 of vr1",
        "Nothing lost.",
    ]


def test_what_was_not_seen_is_said() -> None:
    """Losses, the rate limit, evictions and malformed messages each have their words."""
    summary = Summary(lost=17, incomplete=1, over_limit=5, evicted=3, malformed=2, began_late=1)
    told = " ".join(text_of(summary, 400))

    assert "17 events lost; 1 journey may have a hole; 5 packets not traced because" in told
    assert "3 journeys given up: too many were open at once; 2 messages not understood." in told
    assert "1 journey not seen from the first hook on." in told
    assert "Nothing lost" not in told


def test_unknown_rate_limit_count_is_not_called_nothing() -> None:
    """Where nobody counted what the rate limit left out, the summary says that."""
    assert "rate limit left out is not known" in text_of(Summary(over_limit=None), 200)[0]


@pytest.mark.parametrize("reason", [None, "count reached", "reader gone"])
def test_expected_ends_need_no_word(reason: str | None) -> None:
    """A run that ended as asked does not explain itself."""
    assert "Ended" not in " ".join(text_of(Summary(reason=reason)))


def test_long_list_is_cut_and_the_rest_counted() -> None:
    """Beyond the endings shown, the packets are added up in one line."""
    ending = article()[1].ending
    endings = tuple(
        EndingCount("vr2", replace(ending, rule=n), 2) for n in range(1, ENDINGS_SHOWN + 4)
    )
    lines = text_of(Summary(packets=51, endings=endings, other_endings=5))

    assert lines[-2] == "   11  ended elsewhere"
    assert len(lines) == ENDINGS_SHOWN + 3
