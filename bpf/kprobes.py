"""Kprobes by perf_event_open(2): nothing is written to tracefs, all ends with descriptors."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from pathlib import Path

from tracer.errors import KernelRefusedError, KernelUnsupportedError

__all__ = ["attach_kprobe"]

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
_PMU = Path("/sys/bus/event_source/devices/kprobe")
# include/uapi/linux/perf_event.h
_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
_FLAG_FD_CLOEXEC = 8
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408

_libc = ctypes.CDLL(None, use_errno=True)


def attach_kprobe(program: int, function: str, *, at_return: bool = False) -> int:
    """
    Run *program* at each call of *function*, or at its return; closing the result ends it.

    Errors: KernelUnsupportedError where the kernel has no kprobes or no such function,
    KernelRefusedError where permissions are missing.
    """
    event = _open_event(function, at_return=at_return)
    try:
        fcntl.ioctl(event, _IOC_SET_BPF, program)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except OSError as exc:
        os.close(event)
        msg = f"the kernel refused a program on {function}() ({exc.strerror})"
        raise KernelUnsupportedError(msg) from exc
    return event


def _open_event(function: str, *, at_return: bool) -> int:
    number = _SYS_PERF_EVENT_OPEN.get(platform.machine())
    try:
        kind = int((_PMU / "type").read_text(encoding="ascii"))
        bit = int((_PMU / "format/retprobe").read_text(encoding="ascii").split(":")[1])
    except OSError as exc:
        msg = "the kernel has no kprobes"
        raise KernelUnsupportedError(msg, "use a kernel with CONFIG_KPROBE_EVENTS") from exc
    if number is None:
        msg = f"perf_event_open(2) has no known number on {platform.machine()}"
        raise KernelUnsupportedError(msg)
    name = ctypes.create_string_buffer(function.encode())
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, kind, _ATTR_BYTES, int(at_return) << bit)
    struct.pack_into("=QQ", attr, 56, ctypes.addressof(name), 0)
    block = (ctypes.c_char * len(attr)).from_buffer(attr)
    # One CPU is named, and the probe fires on all.
    event = int(_libc.syscall(number, block, -1, 0, -1, _FLAG_FD_CLOEXEC))
    if event >= 0:
        return event
    code = ctypes.get_errno()
    msg = f"the kernel refused a kprobe on {function}() ({os.strerror(code)})"
    if code in {errno.EPERM, errno.EACCES}:
        raise KernelRefusedError(msg, "run as root")
    raise KernelUnsupportedError(msg)
