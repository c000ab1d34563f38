"""
Maps by their descriptors: what programs and user space have in common.

Read and written as bytes, and as numpy's rows where a whole map is wanted.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bpf.syscalls import ATTR_BYTES, bpf

__all__ = ["MapFile", "possible_cpus"]

# include/uapi/linux/bpf.h
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _LOOKUP_BATCH = 1, 2, 3, 24


def possible_cpus() -> int:
    """Return how many parts a per-CPU value has; offline CPUs count."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(text.strip().replace("-", ",").split(",")[-1]) + 1


@dataclass
class MapFile:
    """
    A map by its descriptor, keys and values as bytes or numpy rows.

    *cpus* is the number of possible CPUs for a per-CPU map, whose values stand one after
    the other, and 1 for others. *value_bytes* is a multiple of 8 for per-CPU maps.
    """

    fd: int
    key_bytes: int
    value_bytes: int
    cpus: int = 1

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of *key*, None if it has none."""
        key_block = ctypes.create_string_buffer(key, self.key_bytes)
        value = ctypes.create_string_buffer(self.value_bytes * self.cpus)
        attr = bytearray(ATTR_BYTES)
        struct.pack_into(
            "=IIQQQ",
            attr,
            0,
            self.fd,
            0,
            ctypes.addressof(key_block),
            ctypes.addressof(value),
            0,
        )
        try:
            bpf(_MAP_LOOKUP, attr)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set *key*; *value* has one part for each CPU. Errors: OSError (E2BIG when full)."""
        key_block = ctypes.create_string_buffer(key, self.key_bytes)
        value_block = ctypes.create_string_buffer(value, self.value_bytes * self.cpus)
        attr = bytearray(ATTR_BYTES)
        struct.pack_into(
            "=IIQQQ",
            attr,
            0,
            self.fd,
            0,
            # A queue or a stack has no keys.
            ctypes.addressof(key_block) if self.key_bytes else 0,
            ctypes.addressof(value_block),
            0,
        )
        bpf(_MAP_UPDATE, attr)

    def delete(self, key: bytes) -> None:
        """Remove *key*, if it is there."""
        key_block = ctypes.create_string_buffer(key, self.key_bytes)
        attr = bytearray(ATTR_BYTES)
        struct.pack_into("=IIQ", attr, 0, self.fd, 0, ctypes.addressof(key_block))
        try:
            bpf(_MAP_DELETE, attr)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise

    def dump(self, entries_max: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """
        Read every key and value.

        Shape: keys `(n, key_bytes)`, values `(n, cpus, value_bytes)`, in no order.
        A hash map that changes meanwhile may show a key twice or miss a new one.
        Source: generic and htab batch lookup, since Linux 5.6 (057996380a42).
        """
        keys = np.zeros((entries_max, self.key_bytes), np.uint8)
        values = np.zeros((entries_max, self.cpus, self.value_bytes), np.uint8)
        # A hash map's position between batches is a bucket's number, an array's its index.
        tokens = [ctypes.create_string_buffer(max(self.key_bytes, 8)) for _ in range(2)]
        got, more = 0, True
        while more and got < entries_max:
            attr = bytearray(ATTR_BYTES)
            struct.pack_into(
                "=QQQQIIQQ",
                attr,
                0,
                ctypes.addressof(tokens[0]) if got else 0,
                ctypes.addressof(tokens[1]),
                keys[got:].ctypes.data,
                values[got:].ctypes.data,
                entries_max - got,
                self.fd,
                0,
                0,
            )
            try:
                bpf(_LOOKUP_BATCH, attr)
            except OSError as exc:
                if exc.errno != errno.ENOENT:  # ENOENT: that was the last batch
                    raise
                more = False
            count = int(struct.unpack_from("=I", attr, 32)[0])
            more = more and count > 0
            got += count
            tokens.reverse()
        return keys[:got], values[:got]
