"""Every error that nftrace reports, each with the exit status it leads to."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "KernelRefusedError",
    "KernelUnsupportedError",
    "MalformedMessageError",
    "NftraceError",
    "OutputError",
    "UsageError",
]


class NftraceError(Exception):
    """
    Base of everything that nftrace says went wrong; one line for the reader.

    *remedy* is what to do about it, in the imperative, or None.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}: {self.remedy}"


class UsageError(NftraceError):
    """The command line asks for something that makes no sense."""

    exit_status = 2


class KernelUnsupportedError(NftraceError):
    """The kernel lacks what was asked for."""

    exit_status = 3


class KernelRefusedError(NftraceError):
    """The kernel or the permissions refuse."""

    exit_status = 3


class OutputError(NftraceError):
    """The output cannot be written."""

    exit_status = 4


class MalformedMessageError(NftraceError):
    """
    Bytes from the kernel that are not what they claim to be.

    *offset* counts bytes from the start of the message. It is counted and passed
    over where it is met, and never reaches a user as an error.
    """

    def __init__(self, source: str, offset: int, reason: str) -> None:
        super().__init__(f"{source}: {reason} at byte {offset}")
        self.source = source
        self.offset = offset
        self.reason = reason
