"""Rules of drops by name: from a ruleset as it stood at the look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.cli.drop_names import RuleName, RuleNames
from tracer.core.drops import DropCount
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

_RULES = "*mangle\n-A INPUT -p udp --dport {} -j DROP\n-A INPUT -p tcp -j DROP\nCOMMIT\n"


@pytest.fixture
def count(netns: Callable[..., str]) -> DropCount:
    """Make a namespace with two dropping rules; return a drop by the second."""
    netns("b")
    nets.load_rules("b", "legacy", _RULES.format(7001))
    place = {"engine": "legacy", "family": "ip", "table": "mangle", "chain": "INPUT"}
    inode = find_namespace("b").inode
    return DropCount(inode, "NETFILTER_DROP", 1, 28, "rule", "input", rule=2, **place)


def test_a_rule_has_the_text_of_the_last_look(count: DropCount) -> None:
    """What changed is found after the next look, and not before: a frame is of one moment."""
    names, namespace = RuleNames(), find_namespace("b")
    names.look_anew()
    before = names.find(namespace, count)
    nets.load_rules("b", "legacy", _RULES.format(7001).replace("-p tcp", "-p sctp"))
    meanwhile = names.find(namespace, count)
    names.look_anew()

    assert RuleName("INPUT", 2, "-A INPUT -p tcp -j DROP") == before
    assert before == meanwhile
    assert RuleName("INPUT", 2, "-A INPUT -p sctp -j DROP") == names.find(namespace, count)


def test_a_rule_that_is_not_there_keeps_its_number(count: DropCount) -> None:
    """Of a rule that was removed what the kernel said of it is told, and no other's text."""
    names, namespace = RuleNames(), find_namespace("b")
    nets.load_rules("b", "legacy", "*mangle\n-A INPUT -p udp -j DROP\nCOMMIT\n")

    assert RuleName("INPUT", 2) == names.find(namespace, count)
