"""Attribution on rulesets that nobody wrote, held against the kernel's own counters."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets, random_rules
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.follow_helper import Told

_TO = "10.2.0.2"
_SPORT = 20_000
_ROUNDS = 13
_EACH = 3
_PACKETS = _EACH * len(random_rules.DPORTS)


@pytest.fixture
def road(netns: Callable[..., str]) -> Iterator[None]:
    """Lay a way from a over r to b, who takes everything, with nothing else on it."""
    for name in ("a", "b"):
        netns(name)
    netns("r", forward=True)
    for name in ("a", "r", "b"):
        nets.sysctl(name, {"net/ipv6/conf/all/disable_ipv6": 1})
    nets.veth("a", "a0", "10.1.0.2/24", "r", "r0", "10.1.0.1/24")
    nets.veth("r", "r1", "10.2.0.1/24", "b", "b0", f"{_TO}/24")
    nets.route("a", "default", "via", "10.1.0.1")
    nets.route("b", "default", "via", "10.2.0.1")
    with contextlib.ExitStack() as listeners:
        for dport in random_rules.DPORTS:
            listeners.enter_context(nets.udp_listener("b", dport))
        yield


def _load(backend: str, seed: int) -> None:
    make = random_rules.make_nftables if backend == "nftables" else random_rules.make_iptables
    nets.load_rules("r", backend, make(seed))


def _send(seed: int) -> None:
    """Send packets that tell the seed."""
    for dport in random_rules.DPORTS:
        nets.send_udp("a", _TO, dport, _EACH, sport=_SPORT + seed)


def _check(told: Told, expected: dict[int, Counter[random_rules.Key]]) -> None:
    """Demand that rules were told as often as they counted, of each ruleset's packets."""
    found: dict[int, Counter[random_rules.Key]] = {seed: Counter() for seed in expected}
    sent: Counter[int] = Counter()
    for journey in told.journeys:
        seed = journey["packet"]["sport"] - _SPORT
        sent[seed] += journey["complete"]
        found[seed].update(
            (step["table"], step["chain"], step["rule"])
            for step in journey["steps"]
            if step["kind"] == "rule"
        )
    assert dict.fromkeys(expected, _PACKETS) == sent
    for seed, counters in expected.items():
        assert counters == found[seed], f"ruleset {seed}"


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("seed", [101, 103, 107, 109, 113])
@pytest.mark.parametrize("backends", ["legacy", "nft", "nftables", "legacy nftables"])
def test_the_rules_told_are_those_that_counted(backends: str, seed: int) -> None:
    """Of each packet exactly the rules are told whose counters moved, of one engine or both."""
    for backend in backends.split():
        _load(backend, seed)
    with follow("r", "--dst", _TO) as run:
        _send(seed)
        told = run.finish(_PACKETS)

    counters = sum((random_rules.counted("r", one) for one in backends.split()), Counter())
    _check(told, {seed: counters})


@pytest.mark.usefixtures("road")
@pytest.mark.parametrize("backend", ["nft", "nftables"])
def test_rulesets_that_replace_each_other_are_told_apart(backend: str) -> None:
    """Every packet is told by the rules that it met, however often tables are made anew."""
    expected: dict[int, Counter[random_rules.Key]] = {}
    with follow("r", "--dst", _TO) as run:
        for seed in range(_ROUNDS):
            _load(backend, seed)
            _send(seed)
            expected[seed] = random_rules.counted("r", backend)
            # Rules that were replaced before anybody read them would have no number.
            count = (seed + 1) * _PACKETS
            nets.wait_until(lambda count=count: run.count_lines() >= count, 5, "the journeys")
        told = run.finish(_ROUNDS * _PACKETS)

    _check(told, expected)
