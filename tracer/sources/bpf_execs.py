"""
Which programs began to run lately: who a process was, after it has ended.

The kernel tells each execve(); nothing of it is looked at before somebody asks. What is
remembered is bounded, the oldest forgotten first.
"""

from __future__ import annotations

import os
import shlex
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from bpf.layout import EXEC_BYTES, EXEC_RECORD
from bpf.loader import ObjectSpec, ProgramSpec, load
from bpf.ring import RingReader
from bpf.syscalls import PROG_TYPE_RAW_TRACEPOINT, attach_raw_tracepoint, close_all

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Exec", "Execs"]

#: 1 MB: 4,000 programs that begin between two looks, which are half a second apart.
_RING_PAGES: Final = 256
#: Programs that are remembered, 0.5 KB each.
_KNOWN_MAX: Final = 16_384
_SPEC: Final = ObjectSpec(
    source="execs.bpf.c",
    programs=(ProgramSpec("on_exec", PROG_TYPE_RAW_TRACEPOINT),),
    maps=("execs",),
    offsets=(
        "task_struct.real_parent",
        "task_struct.tgid",
        "task_struct.mm",
        "mm_struct.arg_start",
        "mm_struct.arg_end",
    ),
    defines={"NT_RING_PAGES": _RING_PAGES},
)


class Exec(NamedTuple):
    """A program that began: its process's name, its command line, and who began it."""

    process: str
    command: str
    parent: int


class Execs:
    """The programs that began since `open`, by process id as the first namespace has it."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Exec] = OrderedDict()
        self._descriptors: list[int] = []
        self._ring: RingReader | None = None

    def open(self) -> None:
        """
        Compile, load and attach.

        Errors: KernelUnsupportedError, KernelRefusedError; nothing is left open then.
        """
        loaded = load(_SPEC)
        self._descriptors += [*loaded.maps.values(), *loaded.programs.values()]
        try:
            size = _RING_PAGES * os.sysconf("SC_PAGE_SIZE")
            self._ring = RingReader(loaded.maps["execs"], size, EXEC_RECORD)
            link = attach_raw_tracepoint("sched_process_exec", loaded.programs["on_exec"])
            self._descriptors.append(link)
        except BaseException:
            self.close()
            raise

    def find(self, pid: int) -> Exec | None:
        """Return what last began as *pid*; None where that is not known."""
        self.read()
        return self._known.get(pid)

    def read(self) -> None:
        """Take in what began; called now and then, so that the ring has room."""
        if self._ring is None:
            return
        for record in self._ring.read():
            pid = int(record["pid"])
            self._known.pop(pid, None)
            self._known[pid] = _decode(record)
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    def close(self) -> None:
        """Detach and unload; harmless when repeated."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        close_all(self._descriptors)


def _decode(record: np.void) -> Exec:
    length = int(record["length"])
    raw = record["arguments"].tobytes()[: min(length, EXEC_BYTES)]
    words = raw.rstrip(b"\0").decode(errors="replace").split("\0") if raw else []
    command = shlex.join(words) + ("…" if length > EXEC_BYTES else "")
    return Exec(record["process"].decode(errors="replace"), command, int(record["parent"]))
