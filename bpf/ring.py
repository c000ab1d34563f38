"""
A BPF ring buffer as numpy sees it: no copy by a library, no object for a record.

The kernel maps the data pages twice in a row, so that a record that runs over the end is
contiguous; equal-sized records are one strided array. Positions only grow; a record is
its length with a busy and a discard bit, a word for the kernel, then the data, padded
to 8 bytes. Source: kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Mapping", "RingCursor", "RingReader", "RingTotals"]

_HEADER_BYTES = 8
_BUSY = 1 << 31
_DISCARD = 1 << 30
_LENGTH = _DISCARD - 1


@dataclass
class RingTotals:
    """What a ring gave: *records* of the expected size, *discarded*, and *odd* ones."""

    records: int = 0
    discarded: int = 0
    odd: int = 0


class Positions(Protocol):
    """The two counters of a ring, in bytes."""

    def load_producer(self) -> int:
        """Return how far the kernel has written or reserved."""

    def load_consumer(self) -> int:
        """Return how far user space has read."""

    def store_consumer(self, position: int) -> None:
        """Give everything before *position* back to the kernel."""


class RingCursor:
    """
    Take whole records off a ring whose bytes and positions are given.

    *data* is the data area twice over, `2 * size` bytes; *size* is a power of two.
    Records that are not of *dtype*'s size are counted as odd and passed over.
    """

    def __init__(
        self, data: npt.NDArray[np.uint8], positions: Positions, dtype: np.dtype[np.void]
    ) -> None:
        """Begin where *positions* say that user space had come."""
        self.totals = RingTotals()
        self._data = data
        self._mask = len(data) // 2 - 1
        self._positions = positions
        self._dtype = dtype
        self._stride = _HEADER_BYTES + (dtype.itemsize + 7 & ~7)
        self._framed = np.dtype(
            {
                "names": ["length", "record"],
                "formats": ["<u4", dtype],
                "offsets": [0, _HEADER_BYTES],
                "itemsize": self._stride,
            }
        )

    def read(self, records_max: int = 1 << 20) -> npt.NDArray[np.void]:
        """
        Return the records that are ready, `dtype (n,)`, oldest first, as a copy.

        It stops at the first busy record: those behind it come with the next call.
        Never raises for what stands in the ring.
        """
        runs: list[npt.NDArray[np.void]] = []
        position = self._positions.load_consumer()
        end = self._positions.load_producer()
        left = records_max
        while left > 0 and position < end:
            run = self._read_run(position, end, left)
            if len(run):
                runs.append(run)
                left -= len(run)
                position += len(run) * self._stride
            elif (step := self._pass_over(position, end)) == 0:
                break
            else:
                position += step
            # At once: what was copied is room for the kernel.
            self._positions.store_consumer(position)
        self.totals.records += records_max - left
        if len(runs) == 1:
            return runs[0]
        return np.concatenate(runs) if runs else np.empty(0, self._dtype)

    def _read_run(self, position: int, end: int, limit: int) -> npt.NDArray[np.void]:
        start = position & self._mask
        # At most one data area: beyond it the second mapping ends.
        count = min((end - position) // self._stride, limit, (self._mask + 1) // self._stride)
        framed = np.ndarray((count,), self._framed, buffer=self._data, offset=start)
        # Any other length has the busy or the discard bit, or is odd.
        other = framed["length"] != self._dtype.itemsize
        if other.any():
            count = int(np.argmax(other))
        copied: npt.NDArray[np.void] = framed["record"][:count].copy()
        return copied

    def _pass_over(self, position: int, end: int) -> int:
        """Return the length of the discarded or odd record here; 0 for busy or none."""
        start = position & self._mask
        length = int(self._data[start : start + 4].view("<u4")[0])
        if length & _BUSY:
            return 0
        step = _HEADER_BYTES + ((length & _LENGTH) + 7 & ~7)
        if length & _DISCARD:
            self.totals.discarded += 1
        elif length == self._dtype.itemsize:
            return 0  # it has become ready since the run was cut; the next call takes it
        else:
            self.totals.odd += 1
        # A record that claims to run past what was written is not to be believed.
        return min(step, end - position)


class Mapping:
    """The three mappings of a ring buffer's descriptor; they go with the object."""

    def __init__(self, fd: int, size: int) -> None:
        """Map the ring *fd* of *size* bytes of data; OSError if the kernel refuses."""
        page = os.sysconf("SC_PAGE_SIZE")
        self._consumer = mmap.mmap(
            fd, page, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        # mmap.mmap() asks for the descriptor's size, which a map's has not.
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._bytes = page + 2 * size
        base = self._libc.mmap(
            None,
            ctypes.c_size_t(self._bytes),
            mmap.PROT_READ,
            mmap.MAP_SHARED,
            fd,
            ctypes.c_long(page),
        )
        if base in {None, ctypes.c_void_p(-1).value}:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._base: int | None = base
        view = np.ctypeslib.as_array((ctypes.c_uint8 * self._bytes).from_address(base))
        self.data = view[page:]
        self._produced = view[:8].view("<u8")
        self._consumed = np.frombuffer(self._consumer, "<u8", 1)

    def load_producer(self) -> int:
        """Return how far the kernel has written or reserved."""
        return int(self._produced[0])

    def load_consumer(self) -> int:
        """Return how far user space has read."""
        return int(self._consumed[0])

    def store_consumer(self, position: int) -> None:
        """Give everything before *position* back to the kernel."""
        self._consumed[0] = position

    def close(self) -> None:
        """Unmap everything; arrays of `data` must not be used after it."""
        if self._base is None:
            return
        empty = np.empty(0, np.uint8)
        self.data, self._produced, self._consumed = empty, empty, empty
        self._consumer.close()
        self._libc.munmap(self._base, self._bytes)
        self._base = None


class RingReader:
    """A ring buffer map's records as arrays."""

    def __init__(self, fd: int, size: int, dtype: np.dtype[np.void]) -> None:
        """Map *size* bytes of data of the ring *fd*, whose records are of *dtype*."""
        self._mapping = Mapping(fd, size)
        self._cursor: RingCursor | None = RingCursor(self._mapping.data, self._mapping, dtype)
        self.totals = self._cursor.totals

    def read(self, records_max: int = 1 << 20) -> npt.NDArray[np.void]:
        """
        Return the records that are ready, `dtype (n,)`, oldest first, as a copy.

        Errors: ValueError after close().
        """
        if self._cursor is None:
            msg = "the ring is closed"
            raise ValueError(msg)
        return self._cursor.read(records_max)

    def close(self) -> None:
        """Unmap the ring; the map itself lives as long as its descriptor."""
        # The cursor holds an array of the mapping, which would be left dangling.
        self._cursor = None
        self._mapping.close()
