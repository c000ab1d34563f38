"""
The rung of netfilter links: a mark before each table that can drop.

Linux 6.4 and newer. Each link costs every packet that passes it 22 to 33 ns, so there is
none in a namespace whose family has one table, at one hook, that can drop.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import MARK, MARK_KEY, MARK_SOLE
from bpf.loader import ProgramSpec
from bpf.maps import MapFile
from bpf.syscalls import (
    ATTACH_NETFILTER,
    PROG_TYPE_NETFILTER,
    PROG_TYPE_RAW_TRACEPOINT,
    attach_netfilter,
    close_all,
)
from tracer.core.droppers import has_foreign_droppers, plan_marks
from tracer.core.drops import Rung
from tracer.errors import KernelRefusedError, KernelUnsupportedError, NftraceError
from tracer.sources.bpf_hooks import FAMILIES, read_hooks
from tracer.sources.kernel_symbols import find_legacy_functions
from tracer.sources.netns import entered
from tracer.sources.ruleset import read_ruleset

if TYPE_CHECKING:
    from bpf.loader import Loaded
    from tracer.core.droppers import Mark
    from tracer.sources.bpf_peek import Peek
    from tracer.sources.netns import Netns
    from tracer.sources.ruleset import RulesetRead

__all__ = ["MARKS_MAX", "PROGRAMS", "LinkRung"]

#: Programs in links.bpf.c: tables that one hook tells apart.
_ORDINALS = 12
#: Two hundred namespaces with ten marks for each family.
MARKS_MAX = 4096
_TRACEPOINT = "on_kfree_skb_mark"
PROGRAMS = (
    ProgramSpec(_TRACEPOINT, PROG_TYPE_RAW_TRACEPOINT, optional=True),
    *(
        ProgramSpec(f"on_mark_{ordinal}", PROG_TYPE_NETFILTER, ATTACH_NETFILTER, optional=True)
        for ordinal in range(_ORDINALS)
    ),
)


@dataclass
class _Covered:
    """One namespace's marks, and of which rules and hooks they are."""

    rules: RulesetRead
    states: dict[int, tuple[int, ...]] = field(default_factory=dict)
    links: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


class LinkRung:
    """Hook, table and base chain by links; the rule of a legacy table by its counters."""

    name = Rung.LINKS
    cost = "22 to 33 ns for each packet and link; as many links as tables that can drop"
    tracepoints: tuple[str, ...] = (_TRACEPOINT,)
    knows_handle = False
    families: frozenset[int] | None = frozenset(FAMILIES)

    def __init__(self, loaded: Loaded, peek: Peek) -> None:
        """Take the programs of *loaded*; nothing is linked yet."""
        self._loaded = loaded
        self._peek = peek
        self._marks = MapFile(loaded.maps["marks"], MARK_KEY.itemsize, MARK.itemsize)
        self._covered: dict[int, _Covered] = {}
        self._namespaces: list[Netns] = []
        self.legacy: frozenset[int] = frozenset()

    def open(self) -> None:
        """
        See whether the kernel has what is needed; links come with the namespaces.

        Errors: KernelUnsupportedError.
        """
        for spec in PROGRAMS:
            if spec.name not in self._loaded.programs:
                raise KernelUnsupportedError(self._loaded.refused.get(spec.name, "not loaded"))
        if self._peek.offset("nf_hook_ops.priority") is None:
            msg = "the kernel's BTF does not say where hooks have their priority"
            raise KernelUnsupportedError(msg)
        self.legacy = find_legacy_functions()

    @property
    def links(self) -> int:
        """How many links stand."""
        return sum(len(one.links) for one in self._covered.values())

    def cover(self, namespace: Netns) -> None:
        """Link in *namespace* what its rules ask for; one that is gone is passed over."""
        self._namespaces.append(namespace)
        with contextlib.suppress(KernelRefusedError), entered(namespace):
            self.cover_here()

    def cover_here(self) -> None:
        """
        Link in the calling thread's namespace, or anew there.

        Errors: KernelUnsupportedError where links are not to be had, KernelRefusedError
        where somebody else's program is in the place of one.
        """
        inode = Path("/proc/thread-self/ns/net").stat().st_ino
        self._uncover(inode)
        read = read_ruleset(with_nat=False)
        covered = self._covered[inode] = _Covered(read)
        for family in FAMILIES:
            hooks = read_hooks(self._peek, family, self.legacy, read.ruleset)
            marks = plan_marks(hooks.droppers, hooks.priorities, _ORDINALS)
            if has_foreign_droppers(read.ruleset):
                marks = [replace(m, doubtful=m.doubtful or m.entry.is_nft) for m in marks]
            for mark in marks:
                self._set(inode, family, mark, covered)
            # Two marks of one ordinal, for either engine, are one link.
            places = {(m.entry.hook, m.ordinal, m.priority) for m in marks}
            for hook, ordinal, priority in places:
                if priority is not None:
                    program = self._loaded.programs[f"on_mark_{ordinal}"]
                    covered.links.append(attach_netfilter(program, family, hook, priority))
            covered.states[family] = read_hooks(self._peek, family, self.legacy, read.ruleset).state

    def _set(self, inode: int, family: int, mark: Mark, covered: _Covered) -> None:
        key, value = np.zeros(1, MARK_KEY), np.zeros(1, MARK)
        entry = mark.entry
        is_sole = mark.priority is None
        key["netns"], key["pf"], key["is_nft"] = inode, family, entry.is_nft
        key["hook"] = 0 if is_sole else entry.hook
        key["ordinal"] = MARK_SOLE if is_sole else mark.ordinal
        value["function"], value["private"] = entry.function, entry.private
        value["hook"], value["pf"], value["doubtful"] = entry.hook, family, mark.doubtful
        self._marks.update(key.tobytes(), value.tobytes())
        covered.keys.append(key.tobytes())

    def look(self) -> None:
        """Link anew in the namespaces whose rules or hooks are others by now."""
        for namespace in self._namespaces:
            # One that is gone by now has no drops to name.
            with contextlib.suppress(NftraceError), entered(namespace):
                if self._is_stale(self._covered.get(namespace.inode)):
                    self.cover_here()

    def _is_stale(self, covered: _Covered | None) -> bool:
        if covered is None or covered.rules.is_stale():
            return True
        rules = covered.rules.ruleset
        return any(
            read_hooks(self._peek, family, self.legacy, rules).state != state
            for family, state in covered.states.items()
        )

    def _uncover(self, inode: int) -> None:
        covered = self._covered.pop(inode, None)
        if covered is not None:
            close_all(covered.links)
            for key in covered.keys:
                self._marks.delete(key)

    def forget_here(self) -> None:
        """Take the links of the calling thread's namespace away."""
        self._uncover(Path("/proc/thread-self/ns/net").stat().st_ino)

    def close(self) -> None:
        """Unlink everything; harmless when repeated."""
        for inode in list(self._covered):
            self._uncover(inode)
        self._namespaces.clear()
