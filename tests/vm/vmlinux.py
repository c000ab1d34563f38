"""
Unpack a kernel image: `vmlinux.py BZIMAGE ELF`.

An emulator starts the ELF file directly, which spares each guest the unpacking.
Source: Documentation/arch/x86/boot.rst of the kernel (setup_sects, payload_offset,
payload_length).
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

_SETUP_SECTS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_SECTOR = 512

#: How the payload begins, and what unpacks it; what follows the stream is no error.
_UNPACKERS = {
    b"\xfd7zX": ("xz", "-dc", "--single-stream"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-dcq"),
    b"\x1f\x8b\x08\x00": ("gzip", "-dcq"),
}


def unpack(image: bytes) -> bytes:
    """Return the ELF file inside a bzImage; ValueError where there is none."""
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        message = "not a kernel image"
        raise ValueError(message)
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    # Zero sectors mean four; the boot sector comes on top.
    start = ((image[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length]
    command = _UNPACKERS.get(payload[:4])
    if command is None:
        message = f"packed in an unknown way: {payload[:4].hex()}"
        raise ValueError(message)
    # The image's size stands behind the stream, which unpackers complain about.
    found = subprocess.run(command, input=payload, capture_output=True, check=False).stdout
    if found[:4] != b"\x7fELF":
        message = "no ELF file in it"
        raise ValueError(message)
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(unpack(Path(sys.argv[1]).read_bytes()))
