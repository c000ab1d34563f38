"""What the targets of xtables decide when their rule matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracer.core.journey import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TARGET_VERDICTS"]

#: By name; a target that is neither here nor a chain lets the packet go on to the next rule.
#: TPROXY returns NF_ACCEPT where it found a socket (net/netfilter/xt_TPROXY.c).
TARGET_VERDICTS: Final[Mapping[str, Verdict]] = {
    "ACCEPT": Verdict.ACCEPT,
    "DROP": Verdict.DROP,
    "REJECT": Verdict.REJECT,
    "RETURN": Verdict.RETURN,
    "QUEUE": Verdict.QUEUE,
    "NFQUEUE": Verdict.QUEUE,
    "DNAT": Verdict.ACCEPT,
    "SNAT": Verdict.ACCEPT,
    "MASQUERADE": Verdict.ACCEPT,
    "REDIRECT": Verdict.ACCEPT,
    "NETMAP": Verdict.ACCEPT,
    "SAME": Verdict.ACCEPT,
    "TPROXY": Verdict.ACCEPT,
    "SYNPROXY": Verdict.STOLEN,
    "TARPIT": Verdict.STOLEN,
}
