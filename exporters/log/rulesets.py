"""Texts by content: each version of a ruleset once, under the SHA-256 of its text."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from typing import TYPE_CHECKING

from exporters.log.options import DIRECTORY_MODE, give_to_group, open_new

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["content_name", "read_text", "store_text"]

_NAME = re.compile("[0-9a-f]{64}")
_PIECE = 1 << 20


def content_name(text: str) -> str:
    """Return the name that *text* is stored under: its SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def store_text(log: Path, text: str, group: str) -> str:
    """
    Store *text* in the log's folder, or touch it where it is, and return its name.

    Errors: OSError where the disk refuses; nothing is left then.
    """
    name = content_name(text)
    path = log / "rulesets" / f"{name}.gz"
    if path.exists():
        os.utime(path)
        return name
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(DIRECTORY_MODE)
        give_to_group(path.parent, group)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    packed = gzip.compress(text.encode(errors="surrogateescape"), 6, mtime=0)
    try:
        with os.fdopen(open_new(temporary, group), "wb") as file:
            file.write(packed)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return name


def read_text(log: Path, name: str) -> str | None:
    """
    Return the text of that name; None where it is not there.

    Errors: ValueError where the file is not what the name says.
    """
    if not _NAME.fullmatch(name):
        return None
    path = log / "rulesets" / f"{name}.gz"
    try:
        with gzip.open(path) as file:
            content = b"".join(iter(lambda: file.read(_PIECE), b""))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error) as exc:
        raise ValueError(f"it cannot be unpacked: {exc}") from exc
    if hashlib.sha256(content).hexdigest() != name:
        raise ValueError("not the text that was stored")
    return content.decode(errors="surrogateescape")
