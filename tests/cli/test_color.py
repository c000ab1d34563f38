"""Colour is for terminals that have it and people who want it."""

from __future__ import annotations

import io

import pytest

from tracer.cli.options import wants_color


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("color", "term", "no_color", "is_wanted"),
    [
        ("auto", "xterm", "", True),
        ("auto", "xterm", "1", False),
        ("auto", "dumb", "", False),
        ("auto", "unknown", "", False),
        ("always", "dumb", "1", True),
        ("never", "xterm", "", False),
    ],
)
def test_color_is_for_terminals_that_have_it(
    monkeypatch: pytest.MonkeyPatch, color: str, term: str, no_color: str, *, is_wanted: bool
) -> None:
    """The option comes before the environment, and the environment before the terminal."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)

    assert is_wanted == wants_color(color, _Terminal())
    assert (color == "always") == wants_color(color, io.StringIO())
