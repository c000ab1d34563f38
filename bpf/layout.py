"""numpy's view of every structure in records.h, in the same order."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = [
    "CONFIG",
    "DROP_COUNT",
    "DROP_KEY",
    "DROP_RECORD",
    "EVENT_RECORD",
    "EXEC_BYTES",
    "EXEC_RECORD",
    "FILTER_FLOW",
    "FILTER_NETNS",
    "FLOW",
    "FUNCTION_LEGACY",
    "LAYOUT",
    "LAYOUTS_MAX",
    "MARK",
    "MARK_KEY",
    "MARK_SOLE",
    "MATCH",
    "MATCHES",
    "MATCHES_MAX",
    "NO_HOOK",
    "NUMBERS",
    "PEEK",
    "PEEK_BYTES",
    "PLACE",
    "PLACE_KEY",
    "RULES",
    "RULES_MAX",
    "SEEN_RULES",
    "STACK",
    "STATS",
    "WINDOW_NS",
    "WORDS",
    "Mode",
    "Site",
    "Stat",
]

NO_HOOK = 255
#: Bits of nt_config.filters.
FILTER_NETNS, FILTER_FLOW = 1, 2
FUNCTION_LEGACY = 1
MARK_SOLE = 0xFFFF
LAYOUTS_MAX = 6
RULES_MAX = 128
MATCHES_MAX = 16
#: A window of time in which drops by legacy tables are few or many: NT_WINDOW_SHIFT.
WINDOW_NS = 1 << 27
WORDS = 128
PEEK_BYTES = 4096
_SITES = 4
_STATS = 8
_HEADER_BYTES = 60


class Site(IntEnum):
    """Where in the kernel a packet was freed: enum nt_site."""

    OTHER = 0
    HOOK = 1
    NFT_RULE = 2
    NFT_POLICY = 3


class Mode(IntEnum):
    """What else happens than counting: enum nt_mode."""

    OFF = 0
    COUNT = 1
    RECORD = 2
    SAMPLE = 3


class Stat(IntEnum):
    """What the program counts about itself: enum nt_stat."""

    SEEN = 0
    COUNTS_FULL = 1
    RESERVE_FAILED = 2
    RECORDED = 3
    UNLOCATED = 4
    PLACES_FULL = 5
    STALE_RULES = 6


DROP_KEY = np.dtype(
    [
        ("place", "<u8"),
        ("tag", "<u8"),
        ("rule", "<u8"),
        ("netns", "<u4"),
        ("reason", "<u4"),
        ("hook", "u1"),
        ("site", "u1"),
        ("family", "u1"),
        ("certain", "u1"),
        ("looks", "u1"),
        ("pad", "u1", (3,)),
    ]
)
DROP_COUNT = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
NUMBERS = np.dtype([("first", "<u4"), ("count", "<u4")])
PLACE_KEY = np.dtype([("place", "<u8"), ("tag", "<u8")])
PLACE = np.dtype(
    [
        ("function", "<u8"),
        ("table", "S32"),
        ("chain", "S32"),
        ("family", "u1"),
        ("pad", "u1", (7,)),
    ]
)
DROP_RECORD = np.dtype(
    [
        ("time_ns", "<u8"),
        ("key", DROP_KEY),
        ("ifindex", "<u4"),
        ("iif", "<u4"),
        ("mark", "<u4"),
        ("length", "<u4"),
        ("weight", "<u4"),
        ("protocol", "<u2"),
        ("ct", "u1"),
        ("pad", "u1"),
        ("rule_weight", "<u2"),
        ("lengths", "u1", (2,)),
        ("raw", "u1", (_HEADER_BYTES,)),
    ]
)
EVENT_RECORD = np.dtype(
    [
        ("time_ns", "<u8"),
        ("location", "<u8"),
        ("netns", "<u4"),
        ("ifindex", "<u4"),
        ("reason", "<u4"),
        ("mark", "<u4"),
        ("length", "<u4"),
        ("protocol", "<u2"),
        ("kind", "u1"),
        ("pad", "u1", (3,)),
        ("lengths", "u1", (2,)),
        ("raw", "u1", (_HEADER_BYTES,)),
    ]
)
EXEC_BYTES = 216
#: A program that began to run; *length* is that of all its arguments.
EXEC_RECORD = np.dtype(
    [
        ("time_ns", "<u8"),
        ("pid", "<u4"),
        ("parent", "<u4"),
        ("length", "<u4"),
        ("pad", "<u4"),
        ("process", "S16"),
        ("arguments", "u1", (EXEC_BYTES,)),
    ]
)
FLOW = np.dtype(
    [
        ("src", "<u4", (4,)),
        ("dst", "<u4", (4,)),
        ("sport", "<u2"),
        ("dport", "<u2"),
        ("family", "u1"),
        ("proto", "u1"),
        ("pad", "<u2"),
    ]
)
MATCH = np.dtype([("value", FLOW), ("mask", FLOW)])
MATCHES = np.dtype([("count", "<u4"), ("match", MATCH, (MATCHES_MAX,))])
LAYOUT = np.dtype(
    [
        ("caller_ip", "<u8"),
        ("location", "<u2"),
        ("caller", "<u2"),
        ("state", "<u2"),
        ("index", "<u2"),
        ("entries", "<u2"),
        ("rule", "<u2"),
        ("pad", "<u4"),
    ]
)
CONFIG = np.dtype(
    [
        ("location", "<u8", (_SITES,)),
        ("percpu_base", "<u8"),
        ("mode", "<u4"),
        ("sample", "<u4"),
        ("locate", "<u4"),
        ("rules", "<u4"),
        ("calm", "<u4"),
        ("filters", "<u4"),
        ("layout", LAYOUT, (_SITES, LAYOUTS_MAX)),
    ]
)
STATS = np.dtype([("count", "<u8", (_STATS,))])
RULES = np.dtype(
    [
        ("address", "<u8"),
        ("private", "<u8"),
        ("count", "<u4"),
        ("generation", "<u4"),
        ("counter", "<u8", (RULES_MAX,)),
    ]
)
SEEN_RULES = np.dtype([("private", "<u8"), ("skipped", "<u8"), ("packets", "<u8", (RULES_MAX,))])
STACK = np.dtype(
    [
        ("location", "<u8"),
        ("frame", "<u8"),
        ("dport", "<u2"),
        ("pad", "<u2", (3,)),
        ("word", "<u8", (WORDS,)),
        ("target", "<u8", (WORDS,)),
    ]
)
MARK_KEY = np.dtype(
    [("netns", "<u4"), ("ordinal", "<u2"), ("hook", "u1"), ("pf", "u1"), ("is_nft", "<u4")]
)
MARK = np.dtype(
    [
        ("function", "<u8"),
        ("private", "<u8"),
        ("hook", "u1"),
        ("pf", "u1"),
        ("doubtful", "u1"),
        ("pad", "u1", (5,)),
    ]
)
PEEK = np.dtype(
    [
        ("address", "<u8"),
        ("task", "<u8"),
        ("self", "<u8"),
        ("length", "<u4"),
        ("error", "<i4"),
        ("bytes", "u1", (PEEK_BYTES,)),
    ]
)
