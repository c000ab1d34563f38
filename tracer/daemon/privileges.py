"""
Giving back what only the start needed.

Loading programs for every kernel, binding sockets and giving one to a group need more
than what goes on afterwards. What is dropped leaves the bounding set as well, so that no
program started by us has it either. Capabilities belong to a thread: this is called before
others are made, which inherit what is left.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from tracer.errors import KernelRefusedError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CAPABILITIES", "NEEDED", "keep_capabilities"]

#: include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYSLOG": 34,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

#: What running needs. NET_ADMIN reads and arms rules and sizes sockets; NET_RAW is what
#: iptables' own socket takes; SYS_ADMIN enters network namespaces; SYS_PTRACE sees those
#: of processes that may more than we; BPF and PERFMON read the programs' tables, and load
#: those of a follower, which finds the kernel's functions by SYSLOG.
NEEDED = frozenset(CAPABILITIES)

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522
_SETS = 6  # effective, permitted, inheritable: the low 32, then the high 32

_libc = ctypes.CDLL(None, use_errno=True)


def keep_capabilities(names: Collection[str]) -> None:
    """
    Keep those of the capabilities *names* that the calling thread has, and no other, for good.

    Errors: KernelRefusedError where the kernel does not let us drop one.
    """
    kept = {CAPABILITIES[name] for name in names}
    capability = 0
    # 1 where the set has it, 0 where not, -1 where the kernel has no more of them.
    while (bounded := _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0:
        # Dropping takes CAP_SETPCAP, which is not there where the unit has cut the set.
        is_over = bounded and capability not in kept
        if is_over and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            _refuse("PR_CAPBSET_DROP")
        capability += 1
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    now = (ctypes.c_uint32 * _SETS)()
    if _libc.capget(header, now) != 0:
        _refuse("capget")
    for word in range(2):
        mask = sum(1 << number % 32 for number in kept if number // 32 == word)
        permitted = now[3 * word + 1] & mask
        now[3 * word], now[3 * word + 1], now[3 * word + 2] = permitted, permitted, 0
    if _libc.capset(header, now) != 0:
        _refuse("capset")


def _refuse(call: str) -> None:
    said = os.strerror(ctypes.get_errno())
    message = f"capabilities cannot be given back: {call} ({said})"
    raise KernelRefusedError(message, "start as root, with CAP_SETPCAP")
