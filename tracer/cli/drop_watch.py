"""Watching drops interval by interval, and what is shown of each."""

from __future__ import annotations

import difflib
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.live import Live

from tracer.cli.drop_names import RuleNames
from tracer.cli.drop_table import DropRow, Seen, render_json, render_table
from tracer.core.drop_talkers import Talkers
from tracer.core.drops import DropCount, merge_counts
from tracer.core.filters import Filter
from tracer.errors import UsageError
from tracer.sources.drops import DropSource, Mode
from tracer.sources.kernel_places import enclosing_functions
from tracer.sources.netns import all_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import numpy.typing as npt
    from rich.console import Console, RenderableType

    from tracer.cli.run import Interrupts

__all__ = ["Choice", "DropWatch"]

_INTERRUPTED = 130
#: The ring is emptied this often.
_TURN_S = 0.05
#: Above so many records a second only one in a hundred is kept.
_RECORDS_MAX = 50_000
_SAMPLE = 100
#: Names of the kernel's functions that are kept: there are some hundred places that free.
_FUNCTIONS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Choice:
    """
    Which drops are shown, and which first.

    *wanted* is of packets and of places; *inodes* are namespaces, None for all.
    """

    wanted: Filter
    inodes: frozenset[int] | None
    reason: str | None
    sort: str

    @property
    def flow(self) -> Filter | None:
        """What is wanted of a packet's headers; None where any packet is."""
        one = self.wanted
        flow = Filter(src=one.src, dst=one.dst, sport=one.sport, dport=one.dport, proto=one.proto)
        return None if flow == Filter() else flow

    def takes(self, count: DropCount) -> bool:
        """Say whether *count* is to be shown, but for its packets' headers and its chain."""
        if self.inodes is not None and count.netns not in self.inodes:
            return False
        places = ((self.wanted.table, count.table), (self.wanted.hook, count.hook))
        if any(word is not None and word != has for word, has in places):
            return False
        return self.reason is None or self.reason.upper() == count.reason


class DropWatch:
    """One run of the command."""

    def __init__(self, source: DropSource, choice: Choice, words: Mapping[str, Any]) -> None:
        """
        Take an open *source*, and interval, timeout, once and output of the *words*.

        Errors: UsageError for a reason that this kernel does not have.
        """
        self._source = source
        self._choice = choice
        self._words = words
        self._talkers = Talkers()
        self._names = RuleNames()
        self._before: dict[DropCount, int] = {}
        #: With a filter of headers: what the records of wanted packets came to.
        self._of_flow: list[DropCount] = []
        self._functions: dict[int, str] = {}
        self._seen = False
        self._check_reason()

    def _check_reason(self) -> None:
        reason, known = self._choice.reason, sorted(self._source.reasons.values())
        if reason is None or not known or reason.upper() in known:
            return
        near = difflib.get_close_matches(reason.upper(), known, 3)
        remedy = f"perhaps {' or '.join(near)}" if near else "one of enum skb_drop_reason's"
        msg = f"--reason {reason}: this kernel drops nothing for that"
        raise UsageError(msg, remedy)

    def run(self, interrupts: Interrupts, console: Console) -> int:
        """Show tables until told to end; return the exit status."""
        once, interval_s = self._words["once"], self._words["interval"]
        end_s = time.monotonic() + self._words["timeout"] if self._words["timeout"] else None
        flow = self._choice.flow
        self._source.record_only(self._choice.inodes, () if flow is None else (flow,))
        self._source.set_mode(Mode.RECORD)
        live = Live(console=console, auto_refresh=False, transient=False)
        is_live = self._words["output"] == "text" and not once and console.is_terminal
        # Colours may be wanted in a file, where no cursor moves.
        is_live = is_live and console.file.isatty()
        if is_live:
            live.start()
        try:
            while True:
                elapsed_s = self._watch(interval_s, interrupts, end_s)
                rows = self._rows(elapsed_s)
                if self._words["output"] == "json":
                    render_json(sys.stdout, rows, self._about())
                elif is_live:
                    live.update(self._fitted(rows, console), refresh=True)
                else:
                    console.print(render_table(rows, self._about(), console))
                over = end_s is not None and time.monotonic() >= end_s
                if once or over or interrupts.reason is not None:
                    break
        finally:
            live.stop()
        if interrupts.reason == "interrupted":
            return _INTERRUPTED
        return 0 if self._seen else 1

    def _about(self, more: int = 0) -> Seen:
        is_all = self._choice == Choice(Filter(), None, None, self._choice.sort)
        here_only = self._choice.inodes is not None and not self._words.get("netns")
        source = self._source
        return Seen(source.losses(), source.standing, not is_all, here_only, more)

    def _fitted(self, rows: list[DropRow], console: Console) -> RenderableType:
        """Return as much of the table as the terminal has room for, and all that stands below."""
        shown = min(len(rows), console.height)
        while True:
            table = render_table(rows[:shown], self._about(len(rows) - shown), console)
            over = len(console.render_lines(table)) - console.height + 1
            if over <= 0 or shown <= 1:
                return table
            # A row has several lines, in a narrow window a dozen.
            shown = max(shown - max(over // 4, 1), 1)

    def _watch(self, interval_s: float, interrupts: Interrupts, end_s: float | None) -> float:
        """Take records for one interval; return how long it was."""
        start = time.monotonic()
        until = start + interval_s if end_s is None else min(start + interval_s, end_s)
        taken = 0
        self._talkers.forget()
        while True:
            records = self._source.read()
            taken += len(records)
            if len(records):
                self._take(records)
            if taken > _RECORDS_MAX * interval_s:
                self._source.set_mode(Mode.SAMPLE, _SAMPLE)
                taken = 0
            # Asked after reading: what came until the end is told with it.
            if time.monotonic() >= until or interrupts.reason is not None:
                break
            time.sleep(min(_TURN_S, max(until - time.monotonic(), 0)))
        return max(time.monotonic() - start, 1e-3)

    def _take(self, records: npt.NDArray[np.void]) -> None:
        kinds, indexes = self._source.kinds_of(records)
        self._talkers.add(kinds, indexes, records)
        if self._choice.flow is None:
            return
        weights = records["weight"].astype("i8")
        octets = records["length"].astype("i8") * weights
        rows = []
        for at, kind in enumerate(kinds):
            here = indexes == at
            packets = int(weights[here].sum())
            is_sample = packets != int(here.sum())
            size = int(octets[here].sum())
            rows.append(replace(kind, packets=packets, octets=size, sampled=is_sample))
        self._of_flow = merge_counts([*self._of_flow, *rows])

    def _rows(self, elapsed_s: float) -> list[DropRow]:
        named = {one.inode: one for one in all_namespaces()}
        counts = self._source.counts()
        if self._choice.flow is not None:
            counts = self._of_flow
        wanted = [count for count in counts if self._choice.takes(count)]
        self._learn_functions(wanted)
        self._names.look_anew()
        before, self._before = self._before, {c.kind_only: c.packets for c in counts}
        rows = []
        for count in wanted:
            kind = count.kind_only
            namespace = named.get(count.netns)
            rule = self._names.find(namespace, count)
            if self._choice.wanted.chain not in {None, rule.chain}:
                continue
            name = namespace.name if namespace else _unnamed(count.netns)
            rate = max(count.packets - before.get(kind, 0), 0) / elapsed_s
            function = self._functions.get(count.location or 0) or None
            rows.append(DropRow(count, name, rate, rule, self._talkers.top(kind), function))
        self._seen = self._seen or bool(rows)
        by_rate = self._choice.sort == "rate"
        return sorted(
            rows, key=lambda row: (row.rate if by_rate else 0, row.count.packets), reverse=True
        )

    def _learn_functions(self, counts: Iterable[DropCount]) -> None:
        """Name the functions of what neither a table nor a reason explains."""
        asked = {
            count.location
            for count in counts
            if count.location and (count.engine == "hook" or count.reason == "NOT_SPECIFIED")
        }
        missing = asked - set(self._functions)
        if not missing or len(self._functions) > _FUNCTIONS_MAX:
            return
        found = enclosing_functions(missing)
        # What has no name is not asked for again.
        self._functions |= {address: found.get(address, "") for address in missing}


def _unnamed(inode: int) -> str:
    # A packet may have neither a device nor a socket nor a route.
    return f"net:[{inode}]" if inode else "unknown"
