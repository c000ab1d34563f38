"""What is read out of C headers is what the C says, whatever surrounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from bpf.headers import parse_enumerators, read_drop_reasons

if TYPE_CHECKING:
    from pathlib import Path

_TEXT = """
#define DEFINE_DROP_REASON(FN, FNe) FN(NOT_SPECIFIED)
enum other { A, B };
/** enum skb_drop_reason - the reasons { */
enum skb_drop_reason {
	/** @SKB_NOT_DROPPED_YET: not yet, really */
	SKB_NOT_DROPPED_YET = 0,
	SKB_CONSUMED, // packet
	SKB_DROP_REASON_NOT_SPECIFIED,
	SKB_DROP_REASON_FAR = 0x10,
	SKB_DROP_REASON_NEXT,
	SKB_DROP_REASON_MASK = ~SKB_CONSUMED,
	SKB_DROP_REASON_LOST,
};
"""
_EXPECTED = {
    "SKB_NOT_DROPPED_YET": 0,
    "SKB_CONSUMED": 1,
    "SKB_DROP_REASON_NOT_SPECIFIED": 2,
    "SKB_DROP_REASON_FAR": 16,
    "SKB_DROP_REASON_NEXT": 17,
}


def test_enumerators_count_on_from_the_last_value() -> None:
    """Comments are passed over, values counted on; a value that is no number ends the list."""
    assert _EXPECTED == parse_enumerators(_TEXT, "skb_drop_reason")
    assert {} == parse_enumerators(_TEXT, "skb_drop")


def test_any_text_is_read_without_complaint() -> None:
    """Cut at every offset, what is read is a beginning of the whole list or nothing."""
    whole = list(_EXPECTED.items())
    for end in range(len(_TEXT)):
        found = list(parse_enumerators(_TEXT[:end], "skb_drop_reason").items())
        assert found == whole[: len(found)]


@given(st.text(alphabet="enumskb_drop{},=0x1/* \n"))
def test_nonsense_raises_nothing(text: str) -> None:
    """Whatever stands in a header, numbers come out or nothing."""
    assert all(value >= 0 for value in parse_enumerators(text, "skb_drop").values())


def test_the_newest_place_is_asked_first(tmp_path: Path) -> None:
    """Of several headers the newest layout's is taken; none is no error."""
    assert {} == read_drop_reasons((tmp_path,))
    for number, file in enumerate(("linux/skbuff.h", "net/dropreason-core.h")):
        path = tmp_path / "include" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"enum skb_drop_reason {{ SKB_DROP_REASON_{number} }};")

    assert {"SKB_DROP_REASON_1": 0} == read_drop_reasons((tmp_path / "gone", tmp_path))
