"""The few system calls behind namespaces that Python 3.11 has no names for."""

from __future__ import annotations

import ctypes
import os
import signal

from tracer.errors import KernelRefusedError

__all__ = [
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "die_with_parent",
    "make_mounts_private",
    "mount",
    "unshare",
]

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x0002_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# include/uapi/linux/mount.h
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """
    Leave the namespaces of the kinds in *flags* for new ones.

    Only the calling thread moves, and for CLONE_NEWPID only its later children.
    Errors: KernelRefusedError where the kernel says no, as for want of CAP_SYS_ADMIN.
    Source: unshare(2).
    """
    _check(_libc.unshare(flags), "unshare")


def mount(kind: str, target: str, options: str = "") -> None:
    """
    Mount a new file system of *kind* (tmpfs, proc, …) on *target*.

    Errors: KernelRefusedError with the kernel's reason.
    Source: mount(2).
    """
    _check(
        _libc.mount(kind.encode(), target.encode(), kind.encode(), 0, options.encode()),
        f"mount of {kind} on {target}",
    )


def make_mounts_private() -> None:
    """
    Let nothing that is mounted here from now on show in another mount namespace.

    Errors: KernelRefusedError where the kernel says no.
    Source: mount_namespaces(7).
    """
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate")


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """
    Have the kernel send *sig* to this process when the thread that forked it ends.

    It holds until the process gains privileges through exec; children do not inherit it.
    Source: PR_SET_PDEATHSIG in prctl(2).
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0), "prctl")


def _check(result: int, call: str) -> None:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelRefusedError(f"{call}: {reason}", "namespaces are made by root")
