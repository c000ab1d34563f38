"""
The rungs that watch the deciding functions: fexit and fentry, or kprobes.

They are for kernels whose saved registers are not found, and cost every packet at every
table: a trampoline some 20 ns, a kprobe with its return some 300. nft tells of verdicts
only while some rule of the machine says `meta nftrace set`, so one such rule stands in a
chain that is hooked nowhere, in a namespace of our own that ends with its descriptor.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from bpf.kprobes import attach_kprobe
from bpf.layout import FUNCTION_LEGACY
from bpf.loader import ProgramSpec
from bpf.syscalls import (
    ATTACH_FENTRY,
    ATTACH_FEXIT,
    PROG_TYPE_KPROBE,
    PROG_TYPE_TRACING,
    attach_trampoline,
    close_all,
)
from tracer.core.drops import Rung
from tracer.errors import KernelUnsupportedError, NftraceError
from tracer.sources.bpf_calibrate import aside
from tracer.sources.bpf_range import enter_new_namespace
from tracer.sources.kernel_symbols import find_legacy_functions

if TYPE_CHECKING:
    from bpf.loader import Loaded

__all__ = ["FUNCTIONS", "PROGRAMS", "TYPES", "KprobeRung", "TrampolineRung"]

#: Whose first parameter tells which shape the kernel has.
FUNCTIONS = ("ipt_do_table", "ip6t_do_table", "__nft_trace_packet")
TYPES = (
    *("pt_regs", "nft_traceinfo", "nft_pktinfo", "nft_base_chain", "nft_verdict"),
    *("nft_rule_dp",),
)
_TRAMPOLINES = {
    "on_ipt_exit": ("ipt_do_table", ATTACH_FEXIT),
    "on_ip6t_exit": ("ip6t_do_table", ATTACH_FEXIT),
    "on_nft_entry": ("__nft_trace_packet", ATTACH_FENTRY),
}
#: Program, function, and whether it runs at the return.
_KPROBES = (
    ("on_ipt_entry", "ipt_do_table", False),
    ("on_table_return", "ipt_do_table", True),
    ("on_ip6t_entry", "ip6t_do_table", False),
    ("on_table_return", "ip6t_do_table", True),
    ("on_nft_call", "__nft_trace_packet", False),
)
PROGRAMS = (
    *(
        ProgramSpec(name, PROG_TYPE_TRACING, kind, optional=True, function=function)
        for name, (function, kind) in _TRAMPOLINES.items()
    ),
    *(
        ProgramSpec(name, PROG_TYPE_KPROBE, optional=True)
        for name in dict.fromkeys(name for name, _, _ in _KPROBES)
    ),
)
_KEY = "add table ip key\nadd chain ip key idle\nadd rule ip key idle meta nftrace set 1\n"
_KEY_TIMEOUT_S = 10.0


def _turn_key() -> int:
    """Make nft tell of its verdicts until the descriptor that is returned is closed."""
    enter_new_namespace()
    try:
        subprocess.run(
            ["nft", "-f", "-"],
            input=_KEY.encode(),
            capture_output=True,
            check=True,
            timeout=_KEY_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        msg = f"nft's verdicts cannot be had: no rule with `meta nftrace set` can be made ({exc})"
        raise KernelUnsupportedError(msg, "apt install nftables") from exc
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class TrampolineRung:
    """Hook, table and nft's rule by fexit of ipt_do_table(), fentry of __nft_trace_packet()."""

    name = Rung.FEXIT
    cost = "some 20 ns for each packet and table, and for each of nft's verdicts"
    tracepoints: tuple[str, ...] = ()
    knows_handle = True
    families: frozenset[int] | None = None

    def __init__(self, loaded: Loaded) -> None:
        """Take the programs of *loaded*; nothing is attached yet."""
        self._loaded = loaded
        self._descriptors: list[int] = []
        self._legacy: frozenset[int] = frozenset()

    @property
    def legacy(self) -> frozenset[int]:
        """The functions that run legacy tables, and what the programs put for them."""
        if not self._legacy:
            self._legacy = find_legacy_functions() | {FUNCTION_LEGACY}
        return self._legacy

    def open(self) -> None:
        """
        Attach to what the kernel has of both engines.

        Errors: KernelUnsupportedError where that is nothing.
        """
        whys: dict[str, None] = {}
        for attach in self._attachers():
            try:
                self._descriptors.append(attach())
            except NftraceError as exc:
                whys[exc.message] = None
        if not self._descriptors:
            raise KernelUnsupportedError("; ".join(whys))
        # Without nft's verdicts the legacy tables' are as good; the proof tells.
        with contextlib.suppress(KernelUnsupportedError):
            self._descriptors.append(aside(_turn_key))

    def look(self) -> None:
        """Nothing changes with the rules."""

    def close(self) -> None:
        """Detach; harmless when repeated."""
        close_all(self._descriptors)

    def _attachers(self) -> list[Attacher]:
        return [Attacher(self._loaded, name) for name in _TRAMPOLINES]


class KprobeRung(TrampolineRung):
    """The same by kprobes, where functions cannot be patched."""

    name = Rung.KPROBE
    cost = "some 300 ns for each packet and table, 140 for each of nft's verdicts"

    def _attachers(self) -> list[Attacher]:
        return [
            Attacher(self._loaded, name, function, at_return=at_return)
            for name, function, at_return in _KPROBES
        ]


class Attacher:
    """One program and where it goes; calling it attaches and returns the descriptor."""

    def __init__(
        self, loaded: Loaded, program: str, function: str = "", *, at_return: bool = False
    ) -> None:
        """Without *function* the program was loaded for one."""
        self._loaded = loaded
        self._program = program
        self._function = function
        self._at_return = at_return

    def __call__(self) -> int:
        """Attach. Errors: KernelUnsupportedError, KernelRefusedError."""
        program = self._loaded.programs.get(self._program)
        if program is None:
            raise KernelUnsupportedError(self._loaded.refused.get(self._program, "not loaded"))
        if not self._function:
            return attach_trampoline(program)
        return attach_kprobe(program, self._function, at_return=self._at_return)
