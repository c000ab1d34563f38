"""The kernel's functions by address, as /proc/kallsyms lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import KernelUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["find_functions", "find_legacy_functions", "name_functions"]

_LINE = re.compile(rb"^([0-9a-f]+) [tT] (\S+)", re.MULTILINE)
#: Up to 5.15 each table has a function of its own at its hooks, since then the walk itself.
_LEGACY = re.compile(rb"^([0-9a-f]+) [tT] (ip6?t_do_table|ip6?table_\w+_hook)\s", re.MULTILINE)


def _read() -> bytes:
    try:
        return Path("/proc/kallsyms").read_bytes()
    except OSError as exc:
        msg = f"the kernel does not list its functions ({exc.strerror})"
        raise KernelUnsupportedError(msg, "use a kernel with CONFIG_KALLSYMS") from exc


def find_legacy_functions() -> frozenset[int]:
    """
    Return the addresses of what may run a legacy table at a hook; empty where hidden.

    Errors: KernelUnsupportedError without /proc/kallsyms.
    """
    return frozenset(int(address, 16) for address, _ in _LEGACY.findall(_read())) - {0}


def find_functions(names: Collection[str]) -> Mapping[str, int]:
    """
    Return the addresses of the functions *names*, those that are there.

    Errors: KernelUnsupportedError without /proc/kallsyms.
    """
    wanted = {name.encode() for name in names}
    return {
        name.decode(): int(address, 16)
        for address, name in _LINE.findall(_read())
        if name in wanted
    }


def name_functions(addresses: Collection[int]) -> Mapping[int, str]:
    """
    Return the names of the functions that begin at *addresses*, those that are known.

    Errors: KernelUnsupportedError without /proc/kallsyms.
    """
    return {
        int(address, 16): name.decode()
        for address, name in _LINE.findall(_read())
        if int(address, 16) in addresses
    }
