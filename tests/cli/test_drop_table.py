"""The table of drops: all of it in any width, nothing claimed that is not known."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from tracer.cli.drop_names import RuleName
from tracer.cli.drop_table import DropRow, Seen, render_json, render_table
from tracer.core.drop_reasons import explain, explain_hook
from tracer.core.drop_talkers import Talker
from tracer.core.drops import DropCount, Rung
from tracer.sources.drops import DropLosses, Standing

_TEXT = "-A FIREWALL_172.17.21.105 -p udp -m udp --dport 7002 -m comment --comment why -j DROP"
_TALKER = Talker("udp", "10.1.0.1", "10.1.0.2:7002", "10.1.0.2", 0.73, expired=False)
_LEGACY = DropCount(
    7, "NETFILTER_DROP", 1409, 70_000, "rule", "prerouting", "legacy", "ip", "mangle"
)
_RULE = DropRow(_LEGACY, "vr2", 203.0, RuleName("FIREWALL_172.17.21.105", 5, _TEXT), _TALKER)
_STANDING = Standing(Rung.RULE, "nothing", {}, ())
_QUIET = DropLosses(1409, 0, 0, 0, 0, 0)


def _shown(*rows: DropRow, width: int = 80, losses: DropLosses = _QUIET) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(render_table(rows, Seen(losses, _STANDING), console))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 139, 140, 200])
def test_all_is_there_in_any_width(width: int) -> None:
    """Namespace, place, rule and its text, who lost most: whole, and no line is too long."""
    out = _shown(_RULE, width=width)
    # A cell that is folded goes on in its column.
    words = "".join(out.split())

    assert max(map(len, out.splitlines())) <= width
    for part in ("vr2", "prerouting", "mangle", "FIREWALL_172.17.21.105", "rule 5", "203", "1,409"):
        assert part in out
    assert "10.1.0.1" in words
    assert "DROP" in words.split("7002", 1)[1]


def test_what_is_known_of_a_rule_is_said_and_no_more() -> None:
    """Several rules may be it: each is a perhaps; one of two that moved is in doubt."""
    names = RuleName(None, candidates=("INPUT 1: -j DROP", "INPUT 2: -j REJECT"))
    unknown = DropRow(DropCount(**_fields(_LEGACY, kind="table")), "b", 1.0, names, None)
    doubtful = DropRow(DropCount(**_fields(_LEGACY, certain=False)), "b", 1.0, _RULE.rule, None)

    assert ["perhaps INPUT 1: -j DROP", "perhaps INPUT 2: -j REJECT"] == [
        line.strip() for line in _shown(unknown).splitlines() if "perhaps" in line
    ]
    assert "rule" not in _shown(unknown).split("one of the table's rules")[0].split("why")[1]
    assert "(or another that dropped at that moment)" in " ".join(_shown(doubtful).split())


def _fields(count: DropCount, **changes: object) -> dict[str, object]:
    return {name: getattr(count, name) for name in DropCount.__slots__} | changes


def test_rules_that_cannot_be_read_are_said_to_be_so() -> None:
    """Where nothing leads into the namespace, that is why no rule is named."""
    row = DropRow(DropCount(**_fields(_LEGACY, kind="table")), "net:[7]", 1.0, RuleName(), None)
    unread = dataclasses.replace(row, rule=RuleName(unread=True))

    assert "its rules cannot be read" in _shown(unread)
    assert "its rules cannot be read" not in _shown(row)


def test_estimates_are_marked() -> None:
    """Numbers out of a sample have a ~, which the last line explains; JSON says estimated."""
    row = DropRow(DropCount(**_fields(_LEGACY, sampled=True)), "b", 203.0, _RULE.rule, None)
    out, lines = _shown(row), io.StringIO()
    render_json(lines, [row], Seen(_QUIET, _STANDING))

    assert "~203" in out
    assert "~1,409" in out
    assert "~ is estimated from a sample" in out
    assert json.loads(lines.getvalue())["estimated"] is True
    assert "~" not in _shown(_RULE)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("missed", "13 not seen"),
        ("uncounted", "13 not told apart"),
        ("unrecorded", "13 without addresses"),
        ("unlocated", "13 by netfilter at a place that is not known"),
        ("stale", "13 by a table that had just changed"),
        ("unplaced", "13 kinds without a name"),
        ("coarse", "13 long ago, told less exactly"),
    ],
)
def test_every_loss_is_shown(field: str, said: str) -> None:
    """What was not seen, told apart, recorded or named stands below the table."""
    assert said in " ".join(_shown(_RULE, losses=_QUIET._replace(**{field: 13})).split())
    assert said not in " ".join(_shown(_RULE).split())


def test_losses_are_in_every_object() -> None:
    """What was not seen or told apart stands in the JSON, and nothing where nothing was."""
    lines = io.StringIO()
    for losses in (_QUIET, _QUIET._replace(missed=3, unlocated=7)):
        render_json(lines, [_RULE], Seen(losses, _STANDING))
    quiet, loud = (json.loads(line)["losses"] for line in lines.getvalue().splitlines())

    assert ({}, {"missed": 3, "unlocated": 7}) == (quiet, loud)


def test_what_is_not_shown_is_pointed_at() -> None:
    """Other namespaces have a word where nothing is here; what has no room has its number."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for rows, seen in (
        ([], Seen(_QUIET, _STANDING, filtered=True, here_only=True)),
        ([_RULE], Seen(_QUIET, _STANDING, filtered=True, here_only=True, more=5)),
    ):
        console.print(render_table(rows, seen, console))
    empty, full = console.file.getvalue().split("per s")

    assert "1,409 drops on this machine, named by rule; of every namespace: --netns all" in empty
    assert "5 more kinds of drop" in full
    assert "--netns all" not in full


def test_addresses_are_filled_into_what_to_look_at() -> None:
    """The command to type next has the source and destination that lost most."""
    count = DropCount(7, "IP_INNOROUTES", 7, 420)

    assert "ip route get 10.1.0.2 from 10.1.0.1" in _shown(
        DropRow(count, "b", 1.0, RuleName(), _TALKER), width=120
    )


@pytest.mark.parametrize("expired", [True, False])
def test_a_packet_without_ttl_is_no_malformed_one(expired: bool) -> None:  # noqa: FBT001 - pytest's
    """The kernel has one reason for both; the packets' own TTL tells which."""
    count = DropCount(7, "IP_INHDR", 7, 420)
    talker = _TALKER._replace(expired=expired)
    out = _shown(DropRow(count, "b", 1.0, RuleName(), talker), width=120)

    assert expired == ("no TTL left: too many routers" in out)
    assert expired != ("malformed" in out)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("ipv4_conntrack_in", "connection tracking: its table is full"),
        ("nf_confirm", "connection tracking: another connection"),
        ("ipv4_confirm", "connection tracking: another connection"),
        ("nf_nat_ipv4_pre_routing", "NAT"),
        ("selinux_ip_forward", "SELinux"),
        ("my_module_hook", "a netfilter hook that is no table's: my_module_hook()"),
        (None, "a netfilter hook that is no table's"),
    ],
)
def test_hooks_that_are_no_tables_are_told_by_their_function(
    function: str | None, what: str
) -> None:
    """What sits at the hook says what it dropped for, as a full connection table."""
    assert explain_hook(function).what.startswith(what)


def test_a_reason_of_a_newer_kernel_is_spelled_as_it_is() -> None:
    """What has no words here comes in lower case, with nothing invented."""
    assert ("some new reason", "") == explain("SOME_NEW_REASON")


def test_what_a_ruleset_says_moves_no_cursor() -> None:
    """Control characters in a chain's name and a rule's text are shown, not sent."""
    evil = RuleName("a\x1b[2Jb", 1, "-m comment --comment \x1b]0;x\x07 -j DROP")
    out = _shown(DropRow(_LEGACY, "n\x1b[1m", 1.0, evil, None))

    assert not [character for character in out if ord(character) < 32 and character != "\n"]
