"""
The tools that print rulesets, run in the calling thread's network namespace.

They are processes of their own so that a crash of theirs is not ours, and they run side
by side, each printing into memory that has no reader to wait for.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tracer.errors import KernelRefusedError, KernelUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Tool", "find_iptables_save", "find_nft"]

#: Where administrators' programs are when root's PATH does not say so.
_FOLDERS: Final = "/usr/local/sbin:/usr/sbin:/sbin"
#: 20,000 rules take half a second; what takes longer than this hangs.
_TIMEOUT_S: Final = 60.0


class Tool:
    """One run of a tool that prints, from its start to its output."""

    def __init__(self, command: Sequence[str]) -> None:
        """
        Start *command*, the program's path first.

        Errors: KernelRefusedError if it does not start.
        """
        self._command = tuple(command)
        self._output = os.memfd_create("output", os.MFD_CLOEXEC)
        self._errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                env={**os.environ, "LC_ALL": "C"},
                # Ctrl-C is for us: a tool that it ends would look like one that was refused.
                process_group=0,
            )
        except OSError as exc:
            self._close()
            message = f"{self._command[0]} does not start ({exc.strerror})"
            raise KernelRefusedError(message, "run as root") from exc

    def read(self) -> str:
        """
        Wait for the end and return what was printed; bytes that are no UTF-8 as surrogates.

        Errors: KernelRefusedError with the tool's own words where it ends with an error
        or not at all.
        """
        try:
            self._wait()
            if self._process.returncode != 0:
                raise self._refusal()
            return _read_all(self._output)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the run, however far it is; nothing happens the second time."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        self._close()

    def _wait(self) -> None:
        # Popen.wait() with a timeout sleeps up to 50 ms too long.
        handle = os.pidfd_open(self._process.pid)
        try:
            ended, _, _ = select.select([handle], [], [], _TIMEOUT_S)
        finally:
            os.close(handle)
        if not ended:
            command = " ".join(self._command)
            message = f"`{command}` did not end within {_TIMEOUT_S:.0f} s"
            raise KernelRefusedError(message, "run it by hand and see what it waits for")
        self._process.wait()

    def _refusal(self) -> KernelRefusedError:
        command = " ".join(self._command)
        said = _read_all(self._errors).strip().splitlines()
        words = said[0] if said else f"exit status {self._process.returncode}"
        return KernelRefusedError(f"`{command}` was refused: {words}", "run as root")

    def _close(self) -> None:
        for descriptor in (self._output, self._errors):
            if descriptor >= 0:
                os.close(descriptor)
        self._output = self._errors = -1


def _read_all(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    # One pread returns at most 2 GB; a ruleset's listing is far below.
    return os.pread(descriptor, size, 0).decode("utf-8", "surrogateescape")


def find_nft() -> str:
    """
    Return the path of nft.

    Errors: KernelUnsupportedError if it is not installed.
    """
    found = _which("nft")
    if found is None:
        message = "the program nft is missing, which reads the rules of nf_tables"
        raise KernelUnsupportedError(message, "install it: apt install nftables")
    return found


def find_iptables_save(family: str, engine: str) -> str | None:
    """
    Return the path of the iptables-save for *family* (ip, ip6) and *engine* (legacy, nft).

    That is iptables-legacy-save or iptables-nft-save, or iptables-save where that one is
    of the engine; None if there is none.
    """
    tool = "ip6tables" if family == "ip6" else "iptables"
    found = _which(f"{tool}-{engine}-save")
    if found is not None:
        return found
    plain = _which(f"{tool}-save")
    return plain if plain is not None and _find_engine(plain) == engine else None


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_FOLDERS}")


@lru_cache(maxsize=8)
def _find_engine(path: str) -> str:
    # Before 1.8 there was only legacy, and -V named no engine.
    return "nft" if "nf_tables" in Tool([path, "-V"]).read() else "legacy"
