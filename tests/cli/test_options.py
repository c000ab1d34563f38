"""The filter words: what each may be, and what is said of one that may not."""

from __future__ import annotations

import ipaddress
import os

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.cli.options import filter_options, namespaces_of, read_filter
from tracer.core.filters import Filter
from tracer.errors import UsageError
from tracer.sources.netns import current_namespace

WORDS = (
    "src", "dst", "sport", "dport", "proto", "in_device", "out_device", "table", "chain", "hook",
    "verdict",
)  # fmt: skip


def _read(**words: str) -> Filter:
    return read_filter(dict.fromkeys(WORDS) | words)


def _refused(**words: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        _read(**words)
    assert caught.value.remedy
    return caught.value


def test_no_words_are_everything() -> None:
    """Without a word the filter chooses nothing."""
    assert Filter() == _read()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"src": "10.0.0.1"}, {"src": ipaddress.ip_network("10.0.0.1/32")}),
        ({"dst": "10.0.0.1/8"}, {"dst": ipaddress.ip_network("10.0.0.0/8")}),
        ({"dst": "2001:db8::1"}, {"dst": ipaddress.ip_network("2001:db8::1/128")}),
        ({"sport": "0"}, {"sport": 0}),
        ({"dport": "65535"}, {"dport": 65535}),
        ({"dport": "ssh"}, {"dport": 22}),
        ({"proto": "TCP"}, {"proto": 6}),
        ({"proto": "icmpv6"}, {"proto": 58}),
        ({"proto": "0"}, {"proto": 0}),
        ({"proto": "255"}, {"proto": 255}),
        ({"in_device": "e" * 15}, {"in_device": "e" * 15}),
        ({"out_device": "br-lan.7@x"}, {"out_device": "br-lan.7@x"}),
        ({"hook": "PREROUTING"}, {"hook": "prerouting"}),
        ({"verdict": "Drop"}, {"verdict": "drop"}),
        ({"table": "Mangle", "chain": "a:b"}, {"table": "Mangle", "chain": "a:b"}),
        ({"proto": "sctp", "dport": "9"}, {"proto": 132, "dport": 9}),
    ],
)
def test_words_are_read(words: dict[str, str], expected: dict[str, object]) -> None:
    """Each word becomes what the filter holds; names of tables and chains stay as they are."""
    assert Filter(**expected) == _read(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"src": "10.0.0.256"}, "--src 10.0.0.256"),
        ({"dst": "10.0.0.0/33"}, "--dst 10.0.0.0/33"),
        ({"dst": ""}, "--dst"),
        ({"dst": "example.org"}, "--dst example.org"),
        ({"sport": "65536"}, "--sport 65536"),
        ({"sport": "-1"}, "--sport -1"),
        ({"dport": ""}, "--dport"),
        ({"dport": "no such service"}, "--dport no such service"),
        ({"dport": "a\0b"}, "--dport"),
        ({"dport": "٣"}, "--dport ٣"),
        ({"proto": "256"}, "--proto 256"),
        ({"proto": "tpc"}, "--proto tpc"),
        ({"in_device": ""}, "--in ''"),
        ({"out_device": "ä" * 8}, "--out"),
        ({"hook": "inputs"}, "--hook inputs"),
        ({"verdict": "dropped"}, "--verdict dropped"),
        ({"src": "10.0.0.1", "dst": "::1"}, "different IP versions"),
        ({"proto": "icmp", "dport": "22"}, "--proto icmp has no ports"),
    ],
)
def test_wrong_words_are_named(words: dict[str, str], named: str) -> None:
    """What makes no sense is refused with the word itself and what it should be."""
    error = _refused(**words)

    assert named in error.message
    assert 2 == error.exit_status


@settings(deadline=None)
@given(st.sampled_from(WORDS), st.text(max_size=20))
def test_any_text_is_read_or_refused(word: str, text: str) -> None:
    """Whatever is typed, the answer is a filter or a usage error."""
    found: Filter | str | None
    try:
        found = _read(**{word: text})
    except UsageError as error:
        found = error.remedy

    assert found


def test_commands_get_all_words() -> None:
    """The decorator gives a command every option, in the order of the help text."""

    @click.command()
    @filter_options
    def command(**words: object) -> None:
        click.echo(f"{read_filter(words)} {words['netns']}")

    told = CliRunner().invoke(
        command, ["--src", "10.0.0.1", "--in", "eth0", "--netns", "a", "--netns", "7"]
    )
    shown = CliRunner().invoke(command, ["--help"]).output
    places = [shown.index(f"--{one} ") for one in ("src", "dst", "proto", "netns", "verdict")]

    assert 0 == told.exit_code, told.output
    assert "10.0.0.1/32" in told.output
    assert "in_device='eth0'" in told.output
    assert "('a', '7')" in told.output
    assert sorted(places) == places


def test_namespaces_are_named_once() -> None:
    """No word is the current namespace, and two words for one are one."""
    here = current_namespace()
    mine = str(os.getpid())

    assert [here.inode] == [one.inode for one in namespaces_of([])]
    assert [here.inode] == [one.inode for one in namespaces_of([mine, mine])]
    assert here.inode in {one.inode for one in namespaces_of(["all", mine])}


def test_unknown_namespaces_are_refused() -> None:
    """A namespace that does not exist is a usage error that says which there are."""
    with pytest.raises(UsageError) as caught:
        namespaces_of(["no-such-namespace"])

    assert "no-such-namespace" in caught.value.message
