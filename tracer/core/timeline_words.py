"""A timeline in words: the sentences that the terminal, the page and other programs share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tracer.core.timeline_events import State, doer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

    from tracer.core.log_rows import Change, Loss
    from tracer.core.timeline_events import Cause, Killer
    from tracer.core.timeline_rules import DiffLine, TableDiff

__all__ = [
    "Clock",
    "change_words",
    "diff_lines",
    "end_words",
    "expected_words",
    "killer_words",
    "loss_words",
    "place_words",
    "sparkline",
    "what_happened",
]

_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = "_.-=+*#@"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMED: Final = 2  # chains that are named one by one


class Clock:
    """Writes moments for people: with the day where they are not all on *day*'s."""

    def __init__(self, zone: tzinfo | None, first_ns: int, last_ns: int) -> None:
        self._zone = zone
        first, last = (self._moment(one) for one in (first_ns, last_ns))
        self._has_day = first.date() != last.date()

    def _moment(self, time_ns: int) -> datetime:
        return (_EPOCH + timedelta(microseconds=time_ns // 1000)).astimezone(self._zone)

    def day(self, time_ns: int) -> str:
        """Return date, time and zone."""
        return f"{self._moment(time_ns):%Y-%m-%d %H:%M:%S %Z}".rstrip()

    def time(self, time_ns: int) -> str:
        """Return the time to the millisecond."""
        moment = self._moment(time_ns)
        text = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"
        return f"{moment:%b %d} {text}" if self._has_day else text

    def date_time(self, time_ns: int) -> str:
        """Return the moment as ISO 8601 has it, in UTC."""
        return f"{_EPOCH + timedelta(microseconds=time_ns // 1000):%Y-%m-%dT%H:%M:%S.%f}Z"


def sparkline(series: Iterable[int], *, ascii_only: bool = False) -> str:
    """Return one character a bucket: a space for nothing, else a bar as high as it was."""
    counts = list(series)
    bars, most = _ASCII_BARS if ascii_only else _BARS, max(counts, default=0)
    return "".join(bars[max(0, -(-n * len(bars) // most) - 1)] if n else " " for n in counts)


def killer_words(killer: Killer) -> str:
    """Say how many of what died: `9 SYNs of 3 clients`."""
    what = "SYN" if killer.syns == killer.packets else "packet"
    text = _count(killer.packets, what)
    if killer.clients:
        more = " or more" if killer.has_more_clients else ""
        text += f" of {_count(killer.clients, 'client')}{more}"
    return text


def expected_words(killer: Killer) -> str:
    """Say that drops are meant to be; empty where they are not."""
    if not killer.is_expected:
        return ""
    return "by the configuration these drops are meant"


def place_words(killer: Killer, inside: str = "›") -> str:  # noqa: RUF001 - the path sign is meant
    """Say where: namespace, table, base chain and chain, and the rule's number."""
    place = killer.place
    if not place.table:
        where = f", at {place.hook}" if place.hook else ""
        return f"{place.netns}{where}: {place.reason}"
    way = [one for one in dict.fromkeys((killer.base, killer.chain)) if one]
    text = f"{place.netns}, {_table(killer)} {f' {inside} '.join(way)}".rstrip()
    if place.kind == "policy":
        return f"{text}, policy"
    if killer.rule is not None:
        return f"{text}, rule {killer.rule.number}"
    return f"{text}, {f'rule {place.rule}' if place.rule else 'a rule that was not recorded'}"


def _table(killer: Killer) -> str:
    place = killer.place
    is_plain = place.family in {"ip", ""}
    return place.table if is_plain else f"{place.family} {place.table}"


def what_happened(cause: Cause, chain: str) -> str:
    """Say what a change did about the rule of *chain*: `chain X was installed`."""
    diff = cause.diff
    if cause.change.what != "ruleset":
        return change_words(cause.change)
    if chain in diff.policies:
        return f"the policy of chain {chain} became {diff.policies[chain][1] or 'none'}"
    if cause.brought:
        return _moved(diff, chain)
    if chain in diff.chains:
        return f"chain {chain} was changed"
    return change_words(cause.change, diff)


def _moved(diff: TableDiff, chain: str) -> str:
    if chain in diff.chains_added:
        return f"chain {chain} was installed"
    if chain in diff.chains_removed:
        return f"chain {chain} was removed"
    came = any(line.sign == "+" for line in diff.lines if line.chain == chain)
    return f"this rule was {'put into' if came else 'taken out of'} chain {chain}"


def change_words(change: Change, diff: TableDiff | None = None) -> str:
    """Say what a change was: `route 10.9.0.0/16: via 10.1.0.2 → via 10.1.0.3`."""
    subject = f"{change.what} {change.subject}"
    if change.what == "ruleset":
        return f"{change.engine} table {change.subject} {_table_words(change, diff)}"
    if change.what == "clock":
        return _clock_words(change)
    if change.what == "set":
        return f"elements of the set {change.subject} changed"
    if change.action == "new":
        return f"{subject} came{f': {change.after}' if change.after != change.subject else ''}"
    if change.action == "gone":
        was = f" (was {change.before})" if change.before != change.subject else ""
        return f"{subject} went{was}"
    return f"{subject}: {change.before or 'unknown'} → {change.after or 'none'}"


def _clock_words(change: Change) -> str:
    try:
        step_s = (int(change.after) - int(change.before)) / 1e9
    except ValueError:
        return "the clock was set"
    way = "forward" if step_s > 0 else "back"
    return f"the clock was set {way} by {abs(step_s):.1f} s: times before it are told as set since"


def _table_words(change: Change, diff: TableDiff | None) -> str:
    if change.action in {"new", "gone"}:
        return "was made" if change.action == "new" else "was removed"
    if diff is None:
        return "was changed"
    if not diff:
        return "was loaded again, no rule is another"
    if diff.chains_added and len(diff.chains_added) <= _NAMED:
        return f"was given chain {', '.join(diff.chains_added)}"
    chains = sorted(diff.chains)
    named = ", ".join(chains[:_NAMED]) + (" …" if len(chains) > _NAMED else "")
    return f"changed in {named}"


def diff_lines(diff: TableDiff, chain: str, text: str | None, most: int) -> list[str]:
    """
    Return the lines that differ, those of *chain* and of the rule *text* first.

    At most *most* of them; the last says how many more there are.
    """
    lines = [f"{sign} policy {name} {policy}" for name, policy, sign in _policies(diff)]
    ranked = sorted(
        enumerate(diff.lines),
        key=lambda one: (
            one[1].text != text,
            chain not in one[1].text,
            one[1].chain != chain,
            one[0],
        ),
    )
    shown = ranked if len(ranked) + len(lines) <= most else ranked[: max(1, most - len(lines) - 1)]
    # In the order of the chains again.
    lines += [_line(diff.lines[at]) for at, _ in sorted(shown)]
    if len(ranked) > len(shown):
        lines.append(f"… and {_count(len(ranked) - len(shown), 'line')} more")
    return lines


def _policies(diff: TableDiff) -> list[tuple[str, str, str]]:
    told = []
    for name, (before, after) in diff.policies.items():
        told += [(name, before, "-")] * bool(before) + [(name, after, "+")] * bool(after)
    return told


def _line(line: DiffLine) -> str:
    is_named = line.text.startswith("-A ")
    return f"{line.sign} {line.text}" if is_named else f"{line.sign} {line.chain}: {line.text}"


def end_words(killer: Killer, clock: Clock, seen_until_ns: int) -> str:
    """Say whether it is over, since when and why."""
    if killer.state == State.OVER and killer.fix is not None:
        change = killer.fix.change
        by = doer(change)
        return (
            f"over since {clock.time(change.time_ns)}: "
            f"{what_happened(killer.fix, killer.chain)}{f' by {by}' if by else ''}"
        )
    if killer.state == State.QUIET:
        quiet_s = (seen_until_ns - killer.last_ns) // 1_000_000_000
        return f"no drop for {_span(quiet_s)}, and nothing that ended it is known"
    return f"not over: the last drop was at {clock.time(killer.last_ns)}"


def loss_words(loss: Loss) -> str:
    """Say what is not in the log."""
    how = {"thinned": "thinned, others stand for them", "left_out": "left out"}
    return f"{_count(loss.count, loss.unit.removesuffix('s'))} {how.get(loss.what, loss.what)}"


def _span(seconds: int) -> str:
    if seconds < 120:  # noqa: PLR2004 - two minutes in seconds
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
