"""
Rule counters of network namespaces, read at each scrape.

Nothing is locked against the firewall's own tools: nft's rules and chains come in one
netlink dump each, legacy tables by the getsockopt() that iptables-save uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.core.rule_reading import NetnsCounters
    from tracer.sources.netns import Netns

__all__ = ["CounterReader"]


class CounterReader:
    """
    Reads counters; remembers each namespace's rules until they change.

    Not for several threads at once: an `Exporter` asks one at a time.
    """

    def read(self, namespace: Netns) -> NetnsCounters:
        """
        Read all rules' and policies' counters of *namespace*.

        The rules' texts are read only where the rules are not those of the last time:
        then it takes as long as the tools need to print them.
        Errors: KernelRefusedError and KernelUnsupportedError; the next call tries again.
        """
        raise NotImplementedError

    def keep_only(self, inodes: Iterable[int]) -> None:
        """Forget the rules of all other namespaces."""
