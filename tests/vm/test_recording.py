"""What this kernel says of a mixed ruleset is what the recorded kernels said."""

from __future__ import annotations

from tests.core.test_kernels import EXPECTED, read_ruleset, tell
from tests.vm.record import record


def test_the_same_packets_have_the_same_journeys(private_machine: object) -> None:
    """Every step of both engines, ends of chains, marks, NAT, a reject, policies: none differs."""
    del private_machine

    recording = record()

    rules = read_ruleset(recording.legacy, recording.native)
    assert EXPECTED == tell(recording.messages, rules, 1000)
