"""The configuration file: everything has a default, and what is wrong is refused by line."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.daemon.settings import Settings
from tracer.daemon.settings_file import parse_settings, read_settings, render_settings
from tracer.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_printed_can_be_loaded() -> None:
    """The printed configuration is a file that says just the defaults."""
    assert Settings() == parse_settings(render_settings(Settings()), "printed")


def test_every_setting_is_printed_below_its_reason() -> None:
    """Each setting's line follows a comment, and there is one line for each."""
    lines = render_settings(Settings()).splitlines()
    settings = [at for at, line in enumerate(lines) if " = " in line and line[0] != "#"]

    names = [one.name for one in fields(Settings()) if one.name != "expected"]
    parts = [getattr(Settings(), name) for name in names]
    assert [f"{one.name} = " for part in parts for one in fields(part)] == [
        f"{lines[at].split(' = ')[0]} = " for at in settings
    ]
    assert all(lines[at - 1].startswith("# ") for at in settings)


def test_expected_drops_are_kept_in_their_order() -> None:
    """What is meant to be dropped comes back from the printed file as it was."""
    text = "[[expected]]\ntable = 'mangle'\n[[expected]]\ncomment = '~^a\"b'\nnetns = 'x'\n"
    settings = parse_settings(text, "f")

    assert ({"table": "mangle"}, {"comment": '~^a"b', "netns": "x"}) == settings.expected
    assert settings == parse_settings(render_settings(settings), "printed")


def test_an_empty_file_says_the_defaults() -> None:
    """Nothing has to be written."""
    assert Settings() == parse_settings("", "empty")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1", "f:1: there is no setting 'a'"),
        ("\n[wach]\n", "f:2: there is no setting 'wach'"),
        ("watch = 3", "f:1: 'watch' is a part of the file"),
        ("[watch]\n\nrang = 'hook'", "f:3: there is no setting 'rang' in [watch]"),
        ("[watch]\nrung = 'x'", "f:2: rung = 'x': give one of auto, reason, "),
        ("watch.rung = 'x'", "f:1: rung = 'x'"),
        ("watch = { rung = 3 }", "f:1: rung = 3: give a string in quotes"),
        ("[watch]\nnamespaces = []", "f:2: namespaces = []: give a list of strings, not empty"),
        ("[watch]\nnamespaces = 'a'", "f:2: namespaces = 'a': give a list"),
        ("[metrics]\nport = true", "f:2: port = true: give a whole number"),
        ("[metrics]\nport = 65536", "f:2: port = 65536: give a number from 0 to 65535"),
        ("[trace]\ncpu_percent = nan", "f:2: cpu_percent = nan: give a number from 0.1 to 100"),
        ("[trace]\nenabled = 1", "f:2: enabled = 1: give true or false"),
        ("[metrics]\n[x", "f:2: not TOML"),
        ("expected = 3", "f:1: 'expected' is a list"),
        ("[watch]\n[[expected]]\ntabel = 'x'", "f:2: expected drop 1 has an unknown key 'tabel'"),
        ("[metrics]\n# why\nkey = 'k'", "f:3: key is given, and certificate is not"),
        # The same word in two parts: the line is that of the part meant.
        ("[watch]\n[trace]\nflows = 1\n[control]\nflows = 2", "f:5: there is no setting 'flows'"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text: str, said: str) -> None:
    """The message begins with file and line, and says what is wrong."""
    with pytest.raises(UsageError) as caught:
        parse_settings(text, "f")

    assert str(caught.value).startswith(said)
    assert caught.value.remedy


@given(st.text(max_size=200))
def test_no_text_is_worse_than_refused(text: str) -> None:
    """Whatever the file holds, it is loaded or refused with its name and a line."""
    said = "f:"
    try:
        parse_settings(text, "f")
    except UsageError as exc:
        said = str(exc)

    assert said.startswith("f:")


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3),
)
def test_any_words_come_back(word: str, words: list[str]) -> None:
    """What is printed of strings and lists is what is read, whatever is in them."""
    default = Settings()
    settings = replace(
        default,
        watch=replace(default.watch, namespaces=tuple(words)),
        control=replace(default.control, group=word),
    )

    assert settings == parse_settings(render_settings(settings), "f")


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"\n\xff", ":2: not UTF-8"), (b"#" * (1 << 20) + b"\n", ": more than")],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    """Bytes that are no UTF-8, or no end of them, are refused by name."""
    path = tmp_path / "c.toml"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=said):
        read_settings(path)
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "none")
