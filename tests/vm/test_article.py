"""The two routers' case on another kernel, by the commands that a user types."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow, way
from tracer.demo.lab import Backend, Lab

BACKENDS = pytest.mark.parametrize("backend", list(Backend))

_FIREWALL = "FIREWALL_172.17.21.105"
_DNAT = ("nat", "PREROUTING", 1, "accept")
_LAST = ("nat", "POSTROUTING", None, "accept")
_VR1 = (
    ("mangle", "PREROUTING", 1, "jump"),
    ("mangle", "VPN_61.146.164.120", 2, "return"),
    ("mangle", "PREROUTING", 2, "jump"),
    ("mangle", "FIREWALL_61.146.164.120", 2, "accept"),
    _DNAT,
    ("mangle", "FORWARD", None, "accept"),
    ("filter", "FORWARD", 10, "accept"),
    ("mangle", "POSTROUTING", None, "accept"),
    _LAST,
)
# The connection is known by its second SYN: no nat chain is passed any more.
_VR1_AGAIN = tuple(step for step in _VR1 if step not in {_DNAT, _LAST})
_VR2 = (("mangle", "PREROUTING", 1, "jump"), ("mangle", _FIREWALL, 5, "drop"))


def _place(ending: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(ending[name] for name in ("kind", "hook", "engine", "table", "chain", "rule"))


def _changes(journey: dict[str, Any]) -> dict[str, Any]:
    """Return what all steps of a journey changed."""
    return {name: pair for step in journey["steps"] for name, pair in step["changes"].items()}


def test_the_demo_finds_the_rule(netns: object) -> None:
    """The demo solves its case, and its status is 0."""
    del netns  # private namespaces are all that is wanted
    command = (str(nets.ROOT / ".venv/bin/nftrace"), "demo", "--backend", Backend.LEGACY)

    done = nets.run(*command, timeout_s=120)

    said = f"3 dropped by vr2 mangle {_FIREWALL} rule 5. Nothing lost."
    assert said in done.stdout, done.stdout


@BACKENDS
def test_each_packet_is_followed_step_by_step(backend: Backend) -> None:
    """Three SYNs, their way through both routers, and the fifth rule that ends them."""
    words = ("--netns", "vr1", "--netns", "vr2", "--dst", "172.17.21.105", "--dport", "22")
    with Lab(backend) as lab, follow("client", *words, armed_in=("vr1", "vr2")) as run:
        lab.attempt()
        told = run.finish(6, wait_s=20)
    vr1 = [one for one in told.journeys if one["netns"] == "vr1"]
    vr2 = [one for one in told.journeys if one["netns"] == "vr2"]

    assert [_VR1, _VR1_AGAIN, _VR1_AGAIN] == [way(one) for one in vr1]
    assert [_VR2] * 3 == [way(one) for one in vr2]
    translated = {"dst": ["61.146.164.120", "172.17.21.105"], "dport": [10174, 22]}
    assert [translated] * 3 == [_changes(one) for one in vr1]
    engine = "legacy" if backend is Backend.LEGACY else "nft"
    death = ("dropped", "prerouting", engine, "mangle", _FIREWALL, 5)
    assert [death] * 3 == [_place(one["ending"]) for one in vr2]
    assert {True} == {one["complete"] for one in told.journeys}
    counted = ("packets", "journeys", "lost", "malformed")
    assert (3, 6, 0, 0) == tuple(told.summary[key] for key in counted)
