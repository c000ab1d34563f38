"""
bpf_rdonly_cast(): reading the kernel's memory by an instruction, where the verifier allows.

The C code calls it by a number that no helper has; `patch_casts()` turns these calls into
those of the kernel function, for which the compiler at hand has no relocation. Reading
plain memory, type 0, came with f2362a57aeff in Linux 6.17.
"""

from __future__ import annotations

import os
import struct

from bpf.syscalls import PROG_TYPE_RAW_TRACEPOINT, load_program
from tracer.errors import NftraceError

__all__ = ["CAST", "PLACEHOLDER", "can_cast", "patch_casts"]

#: The kernel function, in its BTF.
CAST = "bpf_rdonly_cast"
#: What the C code takes for the number of a helper.
PLACEHOLDER = 0x7FFFFF01
# include/uapi/linux/bpf.h: struct bpf_insn, and the instructions that can_cast() needs.
_INSTRUCTION = struct.Struct("<BBhi")
_CALL, _EXIT, _MOVE, _LOAD = 0x85, 0x95, 0xB7, 0x79
_KFUNC_CALL = 2


def can_cast(number: int) -> bool:
    """Say whether the kernel lets a program read by the function *number* of its BTF."""
    code = [
        (_LOAD, 1 << 4 | 1, 0, 0),  # r1 = context[0]
        (_MOVE, 2, 0, 0),
        (_CALL, 0, 0, PLACEHOLDER),
        (_LOAD, 0, 8, 0),  # r0 = r0[8]
        (_MOVE, 0, 0, 0),
        (_EXIT, 0, 0, 0),
    ]
    raw = b"".join(_INSTRUCTION.pack(*one) for one in code)
    try:
        fd = load_program(patch_casts(raw, number), PROG_TYPE_RAW_TRACEPOINT)
    except NftraceError:
        return False
    os.close(fd)
    return True


def patch_casts(code: bytes, number: int) -> bytes:
    """Return *code*, instructions of 8 bytes, with the calls of `PLACEHOLDER` replaced."""
    patched = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, offset, immediate = _INSTRUCTION.unpack_from(code, at)
        if operation == _CALL and not registers and immediate == PLACEHOLDER:
            _INSTRUCTION.pack_into(patched, at, _CALL, _KFUNC_CALL << 4, offset, number)
    return bytes(patched)
