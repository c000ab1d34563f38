"""Reading the kernel's memory through an eBPF program, a few bytes at a time."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

import numpy as np

from bpf.layout import PEEK, PEEK_BYTES
from bpf.maps import MapFile
from bpf.syscalls import run_program

if TYPE_CHECKING:
    from bpf.loader import Loaded

__all__ = ["Peek"]


class Peek:
    """Reads kernel memory at addresses that came from the kernel. Safe between threads."""

    def __init__(self, loaded: Loaded) -> None:
        """Take the program and the map of *loaded*; they stay its own."""
        self._program = loaded.programs["on_peek"]
        self._map = MapFile(loaded.maps["peeked"], 4, PEEK.itemsize)
        self._offsets = loaded.offsets
        self._lock = threading.Lock()

    def read(self, address: int, length: int) -> bytes | None:
        """Return *length* bytes at *address*; None where any of them cannot be read."""
        parts = []
        for start in range(0, length, PEEK_BYTES):
            part = self._read_part(address + start, min(length - start, PEEK_BYTES))
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def word(self, address: int) -> int:
        """Return the eight bytes at *address* as a number, 0 where they cannot be read."""
        return int(struct.unpack("<Q", self.read(address, 8) or bytes(8))[0])

    def text(self, address: int, size: int) -> str:
        """Return the C string at *address*, at most *size* bytes; empty if unreadable."""
        raw = self.read(address, size) or b""
        return raw.split(b"\0", 1)[0].decode(errors="replace")

    def follow(self, address: int, *members: str) -> int:
        """Go from pointer to pointer by members such as `task_struct.nsproxy`; 0 if broken."""
        for member in members:
            offset = self._offsets.get(member)
            address = self.word(address + offset) if address and offset is not None else 0
        return address

    def offset(self, member: str) -> int | None:
        """Return where *member* lies in its structure, None where that is not known."""
        return self._offsets.get(member)

    def at(self, address: int, member: str) -> int:
        """Return the address of *member* of the structure at *address*; 0 if not known."""
        offset = self._offsets.get(member)
        return 0 if offset is None else address + offset

    def task(self) -> int:
        """Return the calling thread's task_struct."""
        block = self._ask(0, 0)
        return int(block["task"])

    def scratch(self) -> int:
        """Return the address of this CPU's value in the map *scratches*."""
        return int(self._ask(0, 0)["self"])

    def _read_part(self, address: int, length: int) -> bytes | None:
        block = self._ask(address, length)
        return None if block["error"] else block["bytes"][:length].tobytes()

    def _ask(self, address: int, length: int) -> np.void:
        request = np.zeros(1, PEEK)
        request["address"], request["length"] = address, length
        with self._lock:
            self._map.update(bytes(4), request.tobytes())
            run_program(self._program)
            answer = np.frombuffer(self._map.lookup(bytes(4)) or b"", PEEK)
        block: np.void = answer[0]
        return block
