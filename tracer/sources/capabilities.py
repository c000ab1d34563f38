"""
What this kernel and host can do: probes with three answers, each No with its remedy.

A probe answers yes, no, or could not tell; only the first two are facts. Nothing here
changes anything: what would have to be switched to find out is left unknown. Which rung
names drops is found out as `nftrace drops` does it, in a namespace that ends with it.
"""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from tracer.core.drops import Rung
from tracer.errors import NftraceError
from tracer.sources.drops import DropSource
from tracer.sources.holders import find_nflog_holder, find_trace_listeners
from tracer.sources.netns import all_namespaces, current_namespace
from tracer.sources.nf_log import leftovers, read_logger
from tracer.sources.ruleset import legacy_tables, read_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Answer", "can_follow", "probe_all"]

_NAMED = 8  # namespaces that are listed by name
_NET_ADMIN, _SYS_ADMIN = 12, 21  # include/uapi/linux/capability.h


@dataclass(frozen=True, slots=True)
class Answer:
    """
    One probe's answer.

    *value* is yes, no or unknown; *detail* what was found; *remedy* what to do about a
    no. *needed*: follow cannot run without it.
    """

    name: str
    value: str
    detail: str
    remedy: str | None = None
    needed: bool = False


def probe_all() -> list[Answer]:
    """Return all answers for the calling thread's namespace, what follow needs first."""
    return [answer for probe in _PROBES for answer in probe()]


def can_follow(answers: list[Answer]) -> bool:
    """Tell whether follow can run: nothing that it needs is a no."""
    return not any(answer.needed and answer.value == "no" for answer in answers)


def _yes(condition: object) -> str:
    return "yes" if condition else "no"


def _kernel() -> Iterator[Answer]:
    release = platform.release()
    yield Answer("kernel", "yes", f"Linux {release} on {platform.machine()}")


def _permissions() -> Iterator[Answer]:
    status = Path("/proc/self/status").read_text()
    effective = int(
        next(line.split()[1] for line in status.splitlines() if line[:7] == "CapEff:"), 16
    )
    needed = {"CAP_NET_ADMIN": _NET_ADMIN, "CAP_SYS_ADMIN": _SYS_ADMIN}
    missing = [name for name, bit in needed.items() if not effective >> bit & 1]
    detail = f"missing {', '.join(missing)}" if missing else "CAP_NET_ADMIN, CAP_SYS_ADMIN"
    yield Answer("permissions", _yes(not missing), detail, "run it with sudo", needed=True)


def _nf_tables() -> Iterator[Answer]:
    try:
        generation = read_generation()
    except NftraceError as exc:
        yield Answer("nf_tables", "unknown", str(exc), needed=True)
        return
    detail = "the kernel has none" if generation is None else f"generation {generation}"
    remedy = "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES"
    yield Answer("nf_tables", _yes(generation is not None), detail, remedy, needed=True)


def _tools() -> Iterator[Answer]:
    tools = {
        "nft": ("nft", "apt install nftables", True),
        "libnftables for Python": (None, "apt install python3-nftables", True),
        "iptables-nft-save": ("iptables-nft-save", "apt install iptables", False),
        "iptables-legacy-save": ("iptables-legacy-save", "apt install iptables", False),
    }
    for name, (program, remedy, needed) in tools.items():
        if program is None:
            found = importlib.util.find_spec("nftables") is not None
            detail = "the module nftables" if found else "no module nftables"
        else:
            path = which(program)
            found, detail = path is not None, path or "not on PATH"
        yield Answer(name, _yes(found), detail, remedy, needed=needed)


def _legacy() -> Iterator[Answer]:
    listed = [f"{family} {name}" for family, names in legacy_tables().items() for name in names]
    if not listed:
        yield Answer("legacy tables", "yes", "none in use here: nothing to switch")
        return
    yield Answer("legacy tables", "yes", f"in use: {', '.join(listed)}")
    loggers = {family: read_logger(family) for family in ("ip", "ip6")}
    known = all(loggers.values())
    detail = ", ".join(f"{family}: {logger}" for family, logger in loggers.items())
    yield Answer("nf_log", _yes(known), detail, "modprobe nfnetlink_log", needed=True)
    holder = find_nflog_holder()
    free = holder is None
    yield Answer(
        "NFLOG group 0",
        _yes(free),
        "free" if free else f"held by {holder}",
        "it takes one listener: end that one before following legacy tables",
        needed=True,
    )


def _btf() -> Iterator[Answer]:
    has = Path("/sys/kernel/btf/vmlinux").exists()
    detail = "/sys/kernel/btf/vmlinux" if has else "none"
    yield Answer("BTF", _yes(has), detail, "a kernel with CONFIG_DEBUG_INFO_BTF")


def _bcc() -> Iterator[Answer]:
    found = importlib.util.find_spec("bcc") is not None
    detail = "the module bcc" if found else "no module bcc"
    yield Answer("bcc", _yes(found), detail, "apt install python3-bpfcc")


def _drops() -> Iterator[Answer]:
    source = DropSource()
    try:
        source.open()
        standing = source.standing
    except NftraceError as exc:
        yield Answer("drops", "no", exc.message, exc.remedy)
        return
    finally:
        source.close()
    missing = "".join(f"; not {rung}: {why}" for rung, why in standing.why.items())
    detail = f"by {standing.rung}, which costs {standing.cost}{missing}"
    # Without time for a proof nothing is known of the rungs.
    value = "unknown" if source.retry else _yes(standing.rung is not Rung.REASON)
    remedy = "try again while the machine is idle, or see docs/drops.md for what each rung needs"
    yield Answer("drops", value, detail, remedy)


def _namespaces() -> Iterator[Answer]:
    names = [one.name for one in all_namespaces()]
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    yield Answer("namespaces", "yes", f"here is {current_namespace().name}; seen: {shown}")


def _other_tracers() -> Iterator[Answer]:
    listeners = find_trace_listeners()
    detail = f"also listening: {', '.join(listeners)}" if listeners else "nobody else listens"
    yield Answer("other tracers", "yes", detail)


def _leftovers() -> Iterator[Answer]:
    left = leftovers()
    detail = f"nf_log still switched: {', '.join(left)}" if left else "nothing to put right"
    yield Answer("leftovers", _yes(not left), detail, "nftrace check --repair")


_PROBES: tuple[Callable[[], Iterator[Answer]], ...] = (
    _kernel,
    _permissions,
    _nf_tables,
    _tools,
    _legacy,
    _btf,
    _bcc,
    _drops,
    _namespaces,
    _other_tracers,
    _leftovers,
)
