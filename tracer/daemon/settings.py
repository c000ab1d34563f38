"""
What the daemon can be told, each setting with its default, its reason and its limits.

`tracer.daemon.settings_file` reads and prints them: a field added here is in the file,
in its checks and in `--print-config` without more.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - a dataclass field
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tracer.core.drops import Rung

__all__ = [
    "ControlSettings",
    "LogSettings",
    "MessageSettings",
    "MetricSettings",
    "Rule",
    "Settings",
    "TraceSettings",
    "WatchSettings",
]

T = TypeVar("T")


class Rule(NamedTuple):
    """What a setting is for, and which values it may have beside its type."""

    reason: str
    low: float | None = None
    high: float | None = None
    among: tuple[str, ...] = ()


def _setting(
    reason: str,
    low: float | None = None,
    high: float | None = None,
    *,
    default: T,
    among: tuple[str, ...] = (),
) -> T:
    made: T = field(default=default, metadata={"rule": Rule(reason, low, high, among)})
    return made


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """Where drops are looked for."""

    namespaces: tuple[str, ...] = _setting(
        "names of `ip netns list`, process ids, `host`, or `all`; those that come later are "
        "watched when they come. Drops elsewhere are neither counted nor traced",
        default=("all",),
    )
    rung: str = _setting(
        "how drops are named: auto takes the highest that this kernel proves; any other "
        "word forces one, and the daemon does not start where it does not hold",
        among=("auto", *(rung.value for rung in Rung)),
        default="auto",
    )
    scan_s: float = _setting(
        "seconds between two looks for namespaces that have a process but no name; those "
        "with a name are seen at once. A look costs some 10 us a process",
        0.1,
        3600,
        default=10.0,
    )


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """Where Prometheus finds the numbers."""

    address: str = _setting(
        "the rules' texts are in the metrics: open it to other hosts with TLS only",
        default="127.0.0.1",
    )
    port: int = _setting(
        "0 takes a free one, which the first message names", 0, 65535, default=10831
    )
    certificate: str = _setting("a PEM file: the metrics are served by TLS, then", default="")
    key: str = _setting("the certificate's key, a PEM file", default="")
    client_ca: str = _setting(
        "a PEM file: only clients whose certificate it signed are answered", default=""
    )
    totals: str = _setting(
        "where the counters' totals are kept, so that they go on after a restart; empty keeps none",
        default="/run/nftrace/totals.json",
    )
    every_rule: bool = _setting(
        "counters of rules that drop nothing, too: one series each, so it is your choice",
        default=False,
    )


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """How rules are named that eBPF does not name at once."""

    enabled: bool = _setting(
        "a flow that just lost a packet is traced, so that its next packet names the rule; "
        "nothing stands in any packet's way while no flow waits for its name",
        default=True,
    )
    records_per_second: int = _setting(
        "drops on the whole machine that are looked at one by one; above it one in so many is, "
        "so that a flood costs no more than some 5 % of a core. Counts stay exact",
        1000,
        10_000_000,
        default=50_000,
    )
    packets_per_second: int = _setting(
        "packets traced at most, on the whole machine; the kernel itself stops there. One "
        "traced packet costs some 3 us",
        1,
        100_000,
        default=400,
    )
    cpu_percent: float = _setting(
        "of one core, at most, on average of ten seconds: above it no flow is armed",
        0.1,
        100,
        default=5.0,
    )
    flows: int = _setting(
        "flows that wait for their next packet at a time, on the whole machine",
        1,
        65_536,
        default=256,
    )
    namespaces: int = _setting(
        "namespaces in which flows wait at a time: each has a buffer and a share of "
        "packets_per_second",
        1,
        256,
        default=8,
    )
    wait_s: float = _setting(
        "seconds that a flow is waited for: TCP sends again after 1, 3 and 7", 1, 600, default=8.0
    )
    answers: int = _setting(
        "rules remembered by kind of flow, so that the same is not asked twice",
        16,
        1_000_000,
        default=4096,
    )
    example_s: float = _setting(
        "seconds after which a rule that eBPF names by itself, and that still drops, has one of "
        "its packets traced again, so that alerts lead to a packet's whole way; 0: never",
        0,
        31_536_000,
        default=3600.0,
    )
    twice_seen_syns: bool = _setting(
        "also trace, in the packet path, connections whose SYN is seen twice within ten "
        "seconds: that names where connections end behind this machine, and costs every "
        "packet some 100 ns",
        default=False,
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The event log, which `nftrace timeline` and `nftrace show` read."""

    directory: str = _setting(
        "where it is; empty keeps none, and then metrics are all there is",
        default="/var/lib/nftrace/log",
    )
    keep_days: float = _setting("after which the oldest is removed", 0.01, 3650, default=30.0)
    size_gb: float = _setting(
        "beyond which the oldest is removed, too; a recorded drop takes some 11 bytes",
        0.01,
        100_000,
        default=8.0,
    )
    group: str = _setting("who may read it", default="nftrace")


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """Who may ask a running daemon, and how much."""

    enabled: bool = _setting("members of the group follow packets without being root", default=True)
    socket: str = _setting("its mode is 0660", default="/run/nftrace/nftrace.sock")
    group: str = _setting(
        "where there is no such group, root alone may ask: `groupadd --system nftrace`",
        default="nftrace",
    )
    clients: int = _setting(
        "connections at a time; one more is told so and closed", 1, 1024, default=16
    )
    followers: int = _setting(
        "`follow` and `drops` at a time: each is a process of some 60 MB", 1, 64, default=4
    )
    packets_per_second: int = _setting("that one follower may trace", 1, 1_000_000, default=5000)
    duration_s: int = _setting("seconds that one follower may go on", 1, 604_800, default=3600)
    buffer_kb: int = _setting(
        "kept for a client that does not read; beyond it the client is cut off",
        16,
        65_536,
        default=1024,
    )


@dataclass(frozen=True, slots=True)
class MessageSettings:
    """What the daemon says about itself, on standard error."""

    format: str = _setting(
        "auto: for people on a terminal and in the journal, which adds the time itself, JSON "
        "elsewhere",
        among=("auto", "console", "json"),
        default="auto",
    )
    level: str = _setting(
        "the least that is said", among=("debug", "info", "warning", "error"), default="info"
    )
    repeat_s: float = _setting(
        "seconds in which the same complaint is said once; the others are counted",
        0,
        86_400,
        default=60.0,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it; *expected* are the drops that are meant, as `parse_expected` takes them."""

    watch: WatchSettings = field(default_factory=WatchSettings)
    metrics: MetricSettings = field(default_factory=MetricSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)
    log: LogSettings = field(default_factory=LogSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    messages: MessageSettings = field(default_factory=MessageSettings)
    expected: tuple[Mapping[str, object], ...] = ()
