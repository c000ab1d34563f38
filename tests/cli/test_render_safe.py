"""Foreign text on a terminal: escaped, measured, shortened and wrapped without a loss."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tracer.cli.render_packet import rule_text, shorten_rule
from tracer.cli.render_safe import cells, cut, escape, shorten, shorten_middle, wrap

TEXT = st.text(st.characters(), max_size=80)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\tb\nc", "a\\x09b\\x0ac"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("caf\udce9", "caf\\xe9"),
        ("Büro 東京", "Büro 東京"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("a\u00a0b", "a\\xa0b"),
    ],
)
def test_only_visible_glyphs_are_left(raw: str, shown: str) -> None:
    """Controls, direction marks, bytes that were no UTF-8 and odd spaces become escapes."""
    assert shown == escape(raw)


@given(TEXT)
def test_ascii_only_is_ascii(text: str) -> None:
    """For an output that knows ASCII only, that is all there is."""
    assert re.fullmatch(r"[ -~]*", escape(text, ascii_only=True))


@given(TEXT, st.integers(1, 60))
def test_shortened_text_fits(text: str, width: int) -> None:
    """Cut, shortened and middle-shortened text never takes more than its width."""
    shown = escape(text)

    for result in (
        cut(shown, width),
        shorten(shown, width, "…"),
        shorten_middle(shown, width, "…"),
        shorten_rule(shown, width, "…"),
    ):
        assert cell_len(result) <= width


@given(TEXT, st.integers(4, 60), st.integers(0, 2))
def test_wrap_loses_nothing_but_spaces(text: str, width: int, hang: int) -> None:
    """The lines joined are the text, none is wider than asked."""
    shown = escape(text)
    lines = [line.plain for line in wrap([(shown, ""), (shown, "bold")], width, hang)]

    assert (shown + shown).replace(" ", "") == "".join(lines).replace(" ", "")
    assert all(cells(line) <= width for line in lines)


def test_wrap_breaks_between_words() -> None:
    """A line ends where a word does; pieces of one word in several styles stay together."""
    lines = wrap([("one two", ""), ("three", "bold"), (" four", "")], 11, 2)

    assert ["one", "  twothree", "  four"] == [line.plain for line in lines]


@pytest.mark.parametrize("width", [0, 1, 3, 6])
def test_wrap_ends_where_there_is_no_room(width: int) -> None:
    """A screen narrower than the indent gets the narrowest lines that hold a wide character."""
    lines = [line.plain for line in wrap([("a東京", "")], width, 5)]

    assert "a東京" == "".join(lines).replace(" ", "")
    assert max(map(cells, lines)) <= 7


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, "-d 10.0.0.1/32 -p tcp -m tcp --dport 22 -j DNAT --to-destination 10.9.9.9"),
        (38, "-d 10.0.0.1/32 -p tcp … -j DNAT …"),
        (40, "-d 10.0.0.1/32 -p tcp -m tcp … -j DNAT …"),
        (24, "… --dport 22 -j DNAT …"),
        (12, "… -j DNAT …"),
        (6, "-d 10…"),
    ],
)
def test_rule_is_shortened_by_words_and_keeps_what_it_does(width: int, shown: str) -> None:
    """The target is the last thing to go, and no option is left without its value."""
    rule = "-d 10.0.0.1/32 -p tcp -m tcp --dport 22 -j DNAT --to-destination 10.9.9.9"

    assert shown == shorten_rule(rule, width, "…")


@pytest.mark.parametrize("chain", ["INPUT", "a b", "x:y"])
def test_rule_text_leaves_out_its_chain(chain: str) -> None:
    """The chain that a rule is appended to stands in another column, quoted or not."""
    assert rule_text(f"-A {chain} -j DROP", chain) == "-j DROP"
    assert rule_text(f'-A "{chain}" -j DROP', chain) == "-j DROP"
    assert rule_text("tcp dport 22 drop", chain) == "tcp dport 22 drop"
