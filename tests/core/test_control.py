"""What clients may ask: nothing but what the tables name gets through."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.control import (
    REQUEST_BYTES_MAX,
    Limits,
    Request,
    arguments_of,
    parse_request,
)
from tracer.errors import UsageError

_LIMITS = Limits(packets_per_second=500, duration_s=60)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["do", "words", "columns", "color", "dport", "netns", "rate", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
_WORDS = st.dictionaries(
    st.sampled_from(["src", "dport", "netns", "rate", "timeout", "both", "count", "output", "x"]),
    _JSON | st.sampled_from(["--pcap=/etc/passwd", "-v", "a b", "x\ny", "\0"]),
    max_size=5,
)


@given(st.binary(max_size=300) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_are_worse_than_refused(line: bytes) -> None:
    """Any line is a request or a usage error with a remedy."""
    outcome: object = None
    try:
        outcome = parse_request(line)
    except UsageError as exc:
        outcome = exc.remedy

    assert outcome


def test_a_request_cut_anywhere_is_refused() -> None:
    """No beginning of a request is taken for one."""
    line = json.dumps({"do": "follow", "words": {"dport": "22"}, "columns": 100}).encode()
    for end in range(len(line)):
        with pytest.raises(UsageError):
            parse_request(line[:end])

    assert Request("follow", {"dport": "22"}, 100) == parse_request(line)


@given(_WORDS)
def test_values_are_never_options(words: dict[str, object]) -> None:
    """Every argument is the verb, or a known option with its value in the same word."""
    try:
        request = parse_request(json.dumps({"do": "follow", "words": words}).encode())
    except UsageError:
        return
    verb, *options = arguments_of(request, _LIMITS, "77")

    assert verb == "follow"
    for option in options:
        name = re.match(r"--([a-z]+)(=|$)", option)
        assert name is not None
        assert name[1] in {
            *("color", "src", "dport", "netns", "rate", "timeout", "both", "count", "output"),
        }
        assert option.isprintable()


@given(
    st.none() | st.integers(0, 10**9) | st.floats(0, 1e9),
    st.none() | st.integers(0, 10**9) | st.floats(0, 1e9),
)
def test_nobody_gets_more_than_the_limits(rate: float | None, timeout_s: float | None) -> None:
    """Whatever is asked, a rate and an end are set, and are within bounds."""
    asked = {"rate": rate, "timeout": timeout_s}
    words = {name: value for name, value in asked.items() if value is not None}
    arguments = arguments_of(
        parse_request(json.dumps({"do": "follow", "words": words}).encode()), _LIMITS, "77"
    )
    told = dict(one[2:].split("=") for one in arguments[1:])

    assert 1 <= int(told["rate"]) <= 500
    assert 0 < float(told["timeout"]) <= 60
    assert told["netns"] == "77"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{}", "there is nothing called None to do"),
        (b"[]", "the request is no object"),
        (b'{"do": "reboot"}', "there is nothing called 'reboot' to do"),
        (b'{"do": "follow", "as": "root"}', "the request is no object of"),
        (b'{"do": "follow", "words": {"pcap": "x"}}', "follow has no word 'pcap'"),
        (b'{"do": "follow", "words": {"dport": 22}}', "dport is 22"),
        (b'{"do": "follow", "words": {"count": true}}', "count is True"),
        (b'{"do": "follow", "words": {"count": NaN}}', "count is nan"),
        (b'{"do": "follow", "columns": 10000}', "columns or color is not"),
        (b" " * (REQUEST_BYTES_MAX + 1), "a request of more than"),
        (b"[" * 5000, "the request is not JSON"),
    ],
)
def test_what_is_wrong_is_said(line: bytes, said: str) -> None:
    """The client learns which word it was."""
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_request(line)


def test_without_limits_nothing_is_added() -> None:
    """What is not asked for is left to the command's own defaults."""
    request = parse_request(b'{"do": "follow", "words": {"netns": ["b"], "rate": 0}}')
    unlimited = Limits(packets_per_second=None, duration_s=None)

    assert ["follow", "--color=never", "--netns=b", "--rate=0"] == arguments_of(
        request, unlimited, "77"
    )
