"""One reading of a namespace's rule counters, as columns beside what does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tracer.core.rule_ids import CountedRule

__all__ = ["NetnsCounters", "TableCounters"]


@dataclass(frozen=True, slots=True, eq=False)
class TableCounters:
    """
    The counters of one table's rules and policies at one moment.

    Shape: *rules* has n members, rules and policies, and is the same object from one
    reading to the next while the rules are the same; *packets* and *octets* `uint64 (n,)`,
    *counted* `bool (n,)`: False where the kernel keeps no counter, whose columns mean
    nothing. *handle* is nft's number of the table: another one is another table.
    Units: *octets* are bytes of IP packets, as the kernel counts them.
    """

    engine: str
    family: str
    table: str
    rules: tuple[CountedRule, ...]
    packets: npt.NDArray[np.uint64]
    octets: npt.NDArray[np.uint64]
    counted: npt.NDArray[np.bool_]
    handle: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NetnsCounters:
    """
    All rule counters of one namespace.

    *netns* is its name, *inode* its number. *version* counts the rulesets that were seen
    in it, from 1. *exact* is False where the rules changed while they were read.
    *elapsed_ns* is what the reading took.
    """

    netns: str
    inode: int
    version: int
    tables: tuple[TableCounters, ...]
    exact: bool
    elapsed_ns: int
