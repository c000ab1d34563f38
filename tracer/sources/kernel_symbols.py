"""The kernel's functions by address, as /proc/kallsyms lists them."""

from __future__ import annotations

import re
from pathlib import Path

from tracer.errors import KernelUnsupportedError

__all__ = ["find_legacy_functions"]

#: Up to 5.15 each table has a function of its own at its hooks, since then the walk itself.
_LEGACY = re.compile(rb"^([0-9a-f]+) [tT] (ip6?t_do_table|ip6?table_\w+_hook)\s", re.MULTILINE)


def find_legacy_functions() -> frozenset[int]:
    """
    Return the addresses of what may run a legacy table at a hook; empty where hidden.

    Errors: KernelUnsupportedError without /proc/kallsyms.
    """
    try:
        listed = Path("/proc/kallsyms").read_bytes()
    except OSError as exc:
        msg = f"the kernel does not list its functions ({exc.strerror})"
        raise KernelUnsupportedError(msg, "use a kernel with CONFIG_KALLSYMS") from exc
    return frozenset(int(address, 16) for address, _ in _LEGACY.findall(listed)) - {0}
