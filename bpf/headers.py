"""What BTF would say, out of the headers package: the kernel's drop reasons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["parse_enumerators", "read_drop_reasons"]

#: Where the enumeration has stood since it came with Linux 5.17.
_FILES = (
    "include/net/dropreason-core.h",
    "include/net/dropreason.h",
    "include/linux/skbuff.h",
)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DECIMAL_OR_HEX = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")


def read_drop_reasons(folders: tuple[Path, ...]) -> dict[str, int]:
    """
    Return names and numbers of `enum skb_drop_reason`; empty where no header has it.

    *folders* are those that hold `include/` of the kernel.
    """
    for file in _FILES:
        for folder in folders:
            path = folder / file
            if path.exists():
                found = parse_enumerators(path.read_text(errors="replace"), "skb_drop_reason")
                if found:
                    return found
    return {}


def parse_enumerators(text: str, name: str) -> dict[str, int]:
    """
    Return the enumerators of *enum name* in C *text*; empty where it is not in it.

    One whose value is no plain number, and those behind it, are left out.
    """
    plain = _COMMENT.sub("", text)
    found = re.search(rf"\benum\s+{re.escape(name)}\s*\{{([^}}]*)\}}", plain)
    values: dict[str, int] = {}
    following = 0
    for part in found[1].split(",") if found else ():
        word, _, value = (piece.strip() for piece in part.partition("="))
        if not word.isidentifier():
            break
        if value:
            if not _DECIMAL_OR_HEX.fullmatch(value):
                break
            following = int(value, 0)
        values[word] = following
        following += 1
    return values
