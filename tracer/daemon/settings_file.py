"""
The configuration file: TOML with a table for each part.

What is not known, or not as it should be, is refused with file, line and one sentence;
`render_settings` prints everything there is as a file that can be loaded.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tracer.core.expected import parse_expected
from tracer.daemon.settings import Settings
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracer.daemon.settings import Rule

__all__ = ["parse_settings", "read_settings", "render_expected", "render_settings"]

#: A configuration is written by hand; more than this is another file.
_BYTES_MAX = 1 << 20
_WIDTH = 88
_EXPECTED = """\
# Drops that are meant to happen: each entry names some of netns, engine, family, table,
# chain, text, comment and reason, by patterns: * is any run of characters, and a pattern
# that begins with ~ is a regular expression. Alerts look at the others.
#
# [[expected]]
# netns = "vr1"
# comment = "*scanners*"
"""

_WORDS = {
    "str": "a string in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[str, ...]": "a list of strings, not empty",
}


def read_settings(path: Path) -> Settings:
    """
    Read the configuration file *path*.

    Errors: UsageError with file and line where it cannot be read or says what is not known.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES_MAX + 1)
    except OSError as exc:
        remedy = "name a file that can be read; `nftrace daemon --print-config` prints one"
        raise UsageError(f"{path}: {exc.strerror}", remedy) from exc
    if len(raw) > _BYTES_MAX:
        raise UsageError(f"{path}: more than {_BYTES_MAX} bytes", "this is no configuration")
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8", "save the file as UTF-8") from exc
    return parse_settings(text, str(path))


def parse_settings(text: str, name: str) -> Settings:
    """
    Return what *text*, the file called *name*, says.

    Errors: UsageError that begins with file and line; nothing else, whatever *text* is.
    """
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as exc:
        said, at = " ".join(str(exc).split()) or "too deep", re.search(r"at line (\d+)", str(exc))
        line = at[1] if at else str(text.count("\n") + 1)
        message = f"{name}:{line}: not TOML ({said})"
        raise UsageError(message, "see `nftrace daemon --print-config`") from exc
    default = Settings()
    sections: dict[str, Any] = {}
    known = [one.name for one in fields(default) if one.name != "expected"]
    for section, values in found.items():
        place = f"{name}:{_find_line(text, section, None)}"
        if section == "expected":
            sections[section] = _read_expected(values, place)
            continue
        if section not in known:
            message = f"{place}: there is no setting {section!r}"
            raise UsageError(message, f"give one of [{'], ['.join(known)}]")
        if not isinstance(values, Mapping):
            message = f"{place}: {section!r} is a part of the file"
            raise UsageError(message, f"write [{section}], and its settings below")
        _check_section(section, getattr(default, section), values, (text, name))
        typed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        sections[section] = replace(getattr(default, section), **typed)
    settings = replace(default, **sections)
    _check_together(settings, text, name)
    return settings


def _read_expected(entries: object, place: str) -> tuple[Mapping[str, object], ...]:
    """Return the entries of [[expected]], each proved to be understood."""
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise UsageError(f"{place}: 'expected' is a list", "write [[expected]] above each entry")
    try:
        parse_expected(entries)
    except UsageError as exc:
        raise UsageError(f"{place}: {exc.message}", exc.remedy) from exc
    return tuple(entries)


def _check_section(
    section: str,
    default: Any,  # noqa: ANN401 - the settings of any part
    values: Mapping[str, object],
    source: tuple[str, str],
) -> None:
    text, name = source
    known = {one.name: one for one in fields(default)}
    for key, value in values.items():
        place = f"{name}:{_find_line(text, section, key)}"
        if key not in known:
            message = f"{place}: there is no setting {key!r} in [{section}]"
            raise UsageError(message, f"give one of {', '.join(known)}")
        fault = _find_fault(str(known[key].type), known[key].metadata["rule"], value)
        if fault is not None:
            raise UsageError(f"{place}: {key} = {_shorten(value)}", f"give {fault}")


def _find_fault(kind: str, rule: Rule, value: object) -> str | None:
    """Return what the setting should be; None where *value* is that."""
    if not _is_of_kind(kind, value):
        return _WORDS[kind]
    if rule.among and value not in rule.among:
        return f"one of {', '.join(rule.among)}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and rule.low is not None and rule.high is not None:
        # So that nan, which compares with nothing, is refused.
        if rule.low <= value <= rule.high:  # type: ignore[operator]
            return None
        return f"a number from {rule.low:g} to {rule.high:g}"
    return None


def _is_of_kind(kind: str, value: object) -> bool:
    if kind == "tuple[str, ...]":
        return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {"str": str, "bool": bool}[kind])


def _check_together(settings: Settings, text: str, name: str) -> None:
    """Refuse what is right word by word and makes no sense together."""
    metrics = settings.metrics
    for one, other in (("certificate", "key"), ("key", "certificate"), ("client_ca", "key")):
        if getattr(metrics, one) and not getattr(metrics, other):
            line = _find_line(text, "metrics", one)
            message = f"{name}:{line}: {one} is given, and {other} is not"
            raise UsageError(message, "TLS needs certificate and key")


def _find_line(text: str, section: str, key: str | None) -> int:
    """
    Return the line, counted from 1, where a setting stands; 1 where it cannot be told.

    tomllib does not say where it found what; this reads tables' heads and plain keys.
    """
    here, best = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        head = re.match(r"\s*\[+\s*[\"']?([^\]\"'.]+?)[\"']?\s*[\].]", line)
        if head:
            here = head[1]
            if here == section:
                best = number
                if key is None:
                    return number
        plain = re.match(r"\s*([A-Za-z0-9_.\"'-]+?)\s*=", line)
        if not plain or (key is None and here):
            continue
        word = plain[1].replace('"', "").replace("'", "")
        wanted = {f"{section}.{key}", section} if not here else {key}
        if (here in {"", section}) and word in wanted:
            return number
    return best


def _shorten(value: object) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + "…"


def render_settings(settings: Settings) -> str:
    """Print *settings* as TOML that `parse_settings` reads back, each below its reason."""
    parts = []
    for section in fields(settings):
        if section.name == "expected":
            continue
        made = getattr(settings, section.name)
        lines = [f"# {type(made).__doc__}", f"[{section.name}]"]
        for one in fields(made):
            rule: Rule = one.metadata["rule"]
            lines += textwrap.wrap(
                f"{rule.reason}{_render_range(rule)}.",
                _WIDTH,
                initial_indent="# ",
                subsequent_indent="# ",
            )
            lines.append(f"{one.name} = {_render_value(getattr(made, one.name))}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, _EXPECTED, render_expected(settings.expected)])


def render_expected(entries: Iterable[Mapping[str, object]]) -> str:
    """Print *entries*, each of them one [[expected]], as TOML."""
    return "\n".join(
        "\n".join(
            [
                "[[expected]]",
                *(f"{_quote(key)} = {_render_value(value)}" for key, value in entry.items()),
                "",
            ]
        )
        for entry in entries
    )


def _render_range(rule: Rule) -> str:
    if rule.among:
        return f" ({', '.join(rule.among)})"
    return f" ({rule.low:g} to {rule.high:g})" if rule.high is not None else ""


def _render_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_render_value, value))}]"
    if isinstance(value, str):
        return _quote(value)
    return repr(value)


def _quote(word: str) -> str:
    """Return *word* as a TOML basic string."""
    shown = "".join(
        f"\\{c}" if c in '\\"' else c if c.isprintable() else f"\\U{ord(c):08X}" for c in word
    )
    return f'"{shown}"'
