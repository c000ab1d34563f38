"""
Fixtures for tests on the running kernel.

The pytest process itself moves, once, into a network and a mount namespace of its
own. Whatever a test then makes with plain `ip netns add` is seen by nobody else, no
packet can reach the machine's network, and all of it ends with pytest, however that
ends: no test has to clean up for the machine's sake, only for the next test's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def private_machine() -> nets.Outside:
    """Leave the machine's network and mounts for private ones; root or failure."""
    if os.geteuid() != 0:
        pytest.exit("tests/kernel needs root (namespaces, netfilter): run as root", 2)
    return nets.enter_private_namespaces()


@pytest.fixture
def netns(private_machine: nets.Outside) -> Iterator[Callable[..., str]]:
    """Give a maker of named network namespaces that are removed after the test."""
    del private_machine
    made: list[str] = []

    def make(name: str, *, forward: bool = False) -> str:
        nets.add_netns(name, forward=forward)
        made.append(name)
        return name

    yield make
    for name in made:
        nets.delete_netns(name)


@pytest.fixture
def cable(netns: Callable[..., str]) -> None:
    """Lay a cable from a, 10.1.0.1, to b, 10.1.0.2."""
    nets.veth(netns("a"), "a0", "10.1.0.1/24", netns("b"), "b0", "10.1.0.2/24")


@pytest.fixture(scope="session")
def flood_program(private_machine: nets.Outside) -> Path:
    """Give the path of the compiled burst sender; nets.flood() is its usual caller."""
    del private_machine
    return nets.build_flood()


@pytest.fixture
def require() -> Callable[[str], None]:
    """Give nets.require: skip the test unless the kernel can do what is named."""
    return nets.require
