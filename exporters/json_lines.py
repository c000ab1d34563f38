r"""
Journeys and summaries as JSON, one object a line: `nftrace.journey/1`, `nftrace.summary/1`.

Two ways lead to the same line. `render_journey` writes a `Journey`; `JourneyTemplate` writes
what all journeys of one path have in common once, and then each line is one format string
filled in. The tests hold them equal. `docs/journey.schema.json` describes both lines.

Lines are UTF-8 without control characters or line separators, also the ones that only some
readers split at (U+0085, U+2028); what was no UTF-8 where it came from is shown as `\x80`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.core.journey import Change, Ending, Journey, Packet, Step
    from tracer.core.summary import EndingCount, Summary

__all__ = [
    "JourneyTemplate",
    "packet_format",
    "render_journey",
    "render_packet",
    "render_start",
    "render_summary",
    "render_text",
]

_PACKET_FIELDS: Final = (
    "src",
    "sport",
    "dst",
    "dport",
    "length",
    "ttl",
    "ip_id",
    "tcp_flags",
    "tcp_seq",
    "icmp_type",
    "icmp_code",
    "icmp_id",
    "icmp_seq",
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SEPARATORS: Final = re.compile("[\x7f-\x9f\u2028\u2029]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
# What Python's surrogateescape makes of the bytes 0x80 to 0xff.
_SURROGATE_BYTES: Final = range(0xDC80, 0xDD00)


def render_text(text: str | None) -> str:
    """Return *text* as a JSON string, None as null."""
    if text is None:
        return "null"
    if text.isascii():
        return encode_basestring(text).replace("\x7f", "\\u007f")
    clean = _SURROGATES.sub(_name_surrogate, text)
    return _SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", encode_basestring(clean))


def _name_surrogate(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number in _SURROGATE_BYTES:
        return f"\\x{number - 0xDC00:02x}"
    return f"\\u{number:04x}"


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


def _bool(value: object) -> str:
    return "true" if value else "false"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def render_start(start_ns: int) -> str:
    """
    Return the time as RFC 3339 in UTC with microseconds: `2026-11-23T17:22:14.030955Z`.

    Units: *start_ns* is nanoseconds since the epoch.
    """
    seconds, rest = divmod(start_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


def render_packet(packet: Packet) -> str:
    """Return the packet's object; what the protocol does not have is absent."""
    values = ((name, getattr(packet, name)) for name in _PACKET_FIELDS)
    there = {name: value for name, value in values if value is not None}
    shown = [render_text(value) if isinstance(value, str) else value for value in there.values()]
    return packet_format(packet.family, packet.proto, tuple(there)) % tuple(shown)


@lru_cache(maxsize=256)
def packet_format(family: str, proto: str, names: tuple[str, ...]) -> str:
    """
    Return a %-format for packets of one kind that have the fields *names*.

    What is filled in are JSON values: `"…"` for addresses and flags, numbers as they are. The
    order is that of the line: src, sport, dst, dport, length, ttl, ip_id, tcp_flags, tcp_seq,
    icmp_type, icmp_code, icmp_id, icmp_seq.
    Errors: ValueError for a name that is none of these, or out of order.
    """
    if tuple(name for name in _PACKET_FIELDS if name in names) != names:
        message = f"{names} are not a packet's fields in their order"
        raise ValueError(message)
    kind = f'"family":{render_text(family)},"proto":{render_text(proto)}'.replace("%", "%%")
    fields = [kind, *(f'"{name}":%s' for name in names)]
    return f"{{{','.join(fields)}}}"


def _render_changes(changes: Mapping[str, Change]) -> str:
    return ",".join(
        f"{render_text(name)}:[{_value(before)},{_value(after)}]"
        for name, (before, after) in changes.items()
    )


def _value(value: str | int) -> str:
    return render_text(value) if isinstance(value, str) else str(value)


def _render_step(step: Step) -> str:
    # No engine stamps a step: nft's trace has no time at all, so none is invented.
    return (
        f'{{"at_us":null,"hook":{render_text(step.hook)},"engine":{render_text(step.engine)},'
        f'"family":{render_text(step.family)},"table":{render_text(step.table)},'
        f'"chain":{render_text(step.chain)},"kind":{render_text(step.kind)},'
        f'"rule":{_number(step.rule)},"handle":{_number(step.handle)},'
        f'"text":{render_text(step.text)},"form":{render_text(step.form)},'
        f'"verdict":{render_text(step.verdict.value)},"target":{render_text(step.target)},'
        f'"changes":{{{_render_changes(step.changes)}}}}}'
    )


def _render_ending(ending: Ending) -> str:
    return (
        f'{{"kind":{render_text(ending.kind.value)},"hook":{render_text(ending.hook)},'
        f'"engine":{render_text(ending.engine)},"family":{render_text(ending.family)},'
        f'"table":{render_text(ending.table)},"chain":{render_text(ending.chain)},'
        f'"rule":{_number(ending.rule)},"handle":{_number(ending.handle)},'
        f'"text":{render_text(ending.text)},"reason":{render_text(ending.reason)}}}'
    )


class JourneyTemplate:
    """
    The constant text of the lines of all journeys of one path.

    One path: the same host, namespace, clock and devices, equal steps with equal changes, an
    equal ending. Rendering a path once costs what `render_journey` does; each line after that
    is one format string.
    """

    def __init__(self, journey: Journey) -> None:
        """Take the path from *journey*; what is its alone is not kept."""
        self._host = (
            f'"host":{render_text(journey.host)},"netns":{render_text(journey.netns)},"start":"'
        )
        self._until = f'","clock":{render_text(journey.clock)},"duration_us":'
        self._clock = f'{self._until}null,"packet":'
        out = journey.out_device or journey.ending.device
        steps = ",".join(map(_render_step, journey.steps))
        changes = f'"changes":{{{_render_changes(journey.changes)}}},' if journey.changes else ""
        self._path = (
            f',"in":{render_text(journey.in_device)},"out":{render_text(out)},'
            f'"steps":[{steps}],{changes}"ending":{_render_ending(journey.ending)},"complete":'
        )
        self._end = f'{self._path}true,"lost":0,"whole":true}}'

    def line(self, journey_id: str, fingerprint: str, start: str, packet: str) -> str:
        """
        Return the line, without its end, of a journey that nothing is missing from.

        Its duration is not known.

        *journey_id* and *fingerprint* need no escapes; *start* is what `render_start`, *packet*
        what `render_packet` or a `packet_format` gives.
        """
        return (
            f'{{"schema":"nftrace.journey/1","id":"{journey_id}","fingerprint":"{fingerprint}",'
            f"{self._host}{start}{self._clock}{packet}{self._end}"
        )

    def line_in_full(  # noqa: PLR0913 - `line` and what is seldom to be said
        self,
        journey_id: str,
        fingerprint: str,
        start: str,
        packet: str,
        *,
        complete: bool,
        lost: int,
        whole: bool,
        duration_us: int | None = None,
    ) -> str:
        """Return the line of a journey that may have a hole, began late or has a duration."""
        end = f'{_bool(complete)},"lost":{lost},"whole":{_bool(whole)}}}'
        return (
            f'{{"schema":"nftrace.journey/1","id":"{journey_id}","fingerprint":"{fingerprint}",'
            f'{self._host}{start}{self._until}{_number(duration_us)},"packet":{packet}'
            f"{self._path}{end}"
        )


def render_journey(journey: Journey) -> str:
    """Return the journey as a line of `nftrace.journey/1`, without its end."""
    return JourneyTemplate(journey).line_in_full(
        render_text(journey.id)[1:-1],
        render_text(journey.fingerprint)[1:-1],
        render_start(journey.start_ns),
        render_packet(journey.packet),
        complete=journey.complete,
        lost=journey.lost,
        whole=journey.whole,
        duration_us=journey.duration_us,
    )


def _render_counted(counted: EndingCount) -> str:
    ending = _render_ending(counted.ending)
    return (
        f'{{"count":{counted.count},"netns":{render_text(counted.netns)},'
        f'"out":{render_text(counted.ending.device)},{ending[1:]}'
    )


def render_summary(summary: Summary) -> str:
    """Return the summary as a line of `nftrace.summary/1`, without its end."""
    endings = ",".join(map(_render_counted, summary.endings))
    notes = ",".join(map(render_text, summary.notes))
    return (
        f'{{"schema":"nftrace.summary/1","packets":{summary.packets},'
        f'"journeys":{summary.journeys},"endings":[{endings}],'
        f'"other_endings":{summary.other_endings},"events":{summary.events},'
        f'"lost":{summary.lost},"incomplete":{summary.incomplete},'
        f'"began_late":{summary.began_late},"over_limit":{_number(summary.over_limit)},'
        f'"evicted":{summary.evicted},"malformed":{summary.malformed},'
        f'"reason":{render_text(summary.reason)},"notes":[{notes}]}}'
    )
