"""
Seeing delivery on kernels whose netfilter takes no links: probes behind the input hook.

Which function is called there is up to the compiler, which may have made one part of
another. So each is tried with a packet of our own, over lo of a namespace that ends with
the trial, and the first that tells of it exactly once is taken: trampolines before
kprobes, which cost more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bpf.kprobes import attach_kprobe
from bpf.loader import ProgramSpec
from bpf.syscalls import ATTACH_FENTRY, PROG_TYPE_KPROBE, PROG_TYPE_TRACING, attach_trampoline
from tracer.core.drop_events import SkbEventKind
from tracer.core.filters import Filter
from tracer.errors import KernelUnsupportedError, NftraceError
from tracer.sources.bpf_calibrate import aside
from tracer.sources.bpf_range import enter_new_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from bpf.loader import Loaded

__all__ = ["PROGRAMS", "Trial", "attach_delivery"]

#: By family: functions that each see every delivered packet, and their kprobe's program.
_FUNCTIONS = {
    socket.AF_INET: (
        ("ip_local_deliver_finish", "on_call_third"),
        ("ip_protocol_deliver_rcu", "on_call_second"),
    ),
    socket.AF_INET6: (
        ("ip6_input_finish", "on_call_third"),
        ("ip6_protocol_deliver_rcu", "on_call_second"),
    ),
}
_LO = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
#: A packet takes microseconds, and on a busy machine until its softirq's thread runs.
_TRIAL_S, _TURN_S = 2.0, 0.001
_PORT = 9  # discard: nobody listens in a namespace of our own
PROGRAMS = (
    *(
        ProgramSpec(
            f"on_entry_{name}", PROG_TYPE_TRACING, ATTACH_FENTRY, optional=True, function=name
        )
        for functions in _FUNCTIONS.values()
        for name, _ in functions
    ),
    *(
        ProgramSpec(name, PROG_TYPE_KPROBE, optional=True)
        for name in ("on_call_third", "on_call_second")
    ),
)


class Trial(NamedTuple):
    """How to have one namespace told, arm a filter, and read what was told."""

    tell: Callable[[int], None]
    forget: Callable[[int], None]
    arm: Callable[[tuple[Filter, ...]], None]
    read: Callable[[], npt.NDArray[np.void]]


def attach_delivery(loaded: Loaded, trial: Trial) -> list[int]:
    """
    Attach one program for each family, and return the descriptors.

    Errors: KernelUnsupportedError where a family has no function that tells of each
    packet once; nothing is left attached then.
    """
    return aside(lambda: _try_families(loaded, trial))


def _try_families(loaded: Loaded, trial: Trial) -> list[int]:
    enter_new_namespace()
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as kept:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            # SIOCSIFFLAGS, IFF_UP
            fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))
        trial.tell(inode)
        undo.callback(trial.forget, inode)
        trial.arm((Filter(dport=_PORT, proto=socket.IPPROTO_UDP),))
        undo.callback(trial.arm, ())
        found = []
        for family in _FUNCTIONS:
            found.append(_try_functions(loaded, trial, family))
            kept.callback(os.close, found[-1])
        kept.pop_all()
        return found


def _try_functions(loaded: Loaded, trial: Trial, family: socket.AddressFamily) -> int:
    whys = []
    functions = _FUNCTIONS[family]
    for program, function in (
        *((f"on_entry_{name}", "") for name, _ in functions),
        *((program, name) for name, program in functions),
    ):
        try:
            descriptor = _attach(loaded, program, function)
        except NftraceError as exc:
            whys.append(exc.message)
            continue
        if _count(trial, family) == 1:
            return descriptor
        os.close(descriptor)
        whys.append(f"{program} does not tell of each packet once")
    why = "; ".join(dict.fromkeys(whys))
    msg = f"netfilter takes no eBPF programs here, as it does from Linux 6.4 on, and {why}"
    raise KernelUnsupportedError(msg)


def _attach(loaded: Loaded, program: str, function: str) -> int:
    if program not in loaded.programs:
        raise KernelUnsupportedError(loaded.refused.get(program, f"{program} was not loaded"))
    if function:
        return attach_kprobe(loaded.programs[program], function)
    return attach_trampoline(loaded.programs[program])


def _count(trial: Trial, family: socket.AddressFamily) -> int:
    """Send one packet over lo; return how often its delivery was told."""
    trial.read()
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"nftrace", (_LO[family], _PORT))
    delivered, end_s = 0, time.monotonic() + _TRIAL_S
    while time.monotonic() < end_s:
        kinds = trial.read()["kind"]
        delivered += int((kinds == SkbEventKind.DELIVERED).sum())
        # With nobody listening, it is dropped when all that can be told was told.
        if (kinds == SkbEventKind.DROPPED).any():
            break
        time.sleep(_TURN_S)
    return delivered
