"""
bpf(2) by ctypes: loading and attaching programs. `bpf.maps` has maps.

Neither bcc nor libbpf is needed for it: both would stay in memory for as long as we run.
Nor is numpy, which the compiling child would only wait for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from tracer.errors import KernelRefusedError, KernelUnsupportedError, NftraceError

__all__ = [
    "ATTACH_FENTRY",
    "ATTACH_FEXIT",
    "ATTACH_NETFILTER",
    "ATTR_BYTES",
    "PROG_TYPE_KPROBE",
    "PROG_TYPE_NETFILTER",
    "PROG_TYPE_RAW_TRACEPOINT",
    "PROG_TYPE_TRACING",
    "attach_netfilter",
    "attach_raw_tracepoint",
    "attach_trampoline",
    "close_all",
    "find_module_btf",
    "is_link",
    "knows_program_type",
    "load_program",
    "program_misses",
    "run_program",
]

# include/uapi/linux/bpf.h
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_PROG_LOAD, _PROG_TEST_RUN, _OBJ_GET_INFO = 5, 10, 15
_RAW_TRACEPOINT_OPEN, _LINK_CREATE = 17, 28
_BTF_GET_FD_BY_ID, _BTF_GET_NEXT_ID = 19, 23
PROG_TYPE_KPROBE = 2
PROG_TYPE_RAW_TRACEPOINT = 17
PROG_TYPE_TRACING = 26
PROG_TYPE_NETFILTER = 32
ATTACH_FENTRY = 24
ATTACH_FEXIT = 25
ATTACH_NETFILTER = 45
#: Of the argument of bpf(2): what any of the commands here has, and room.
ATTR_BYTES = 128
#: A refused program's log is kept to its last lines, where the reason stands.
_LOG_BYTES = 1 << 18
_LOG_SHOWN = 2000

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attr: bytearray) -> int:
    """Have the kernel do *command*; its answer may be in *attr*, too. Errors: OSError."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        msg = f"bpf(2) has no known number on {platform.machine()}"
        raise KernelUnsupportedError(msg, "run nftrace without eBPF")
    block = (ctypes.c_char * len(attr)).from_buffer(attr)
    result = int(_libc.syscall(number, command, block, len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def close_all(descriptors: list[int]) -> None:
    """Close *descriptors*, the last first, and empty the list."""
    while descriptors:
        os.close(descriptors.pop())


def is_link(descriptor: int) -> bool:
    """Tell whether *descriptor* is a link: a program is attached while that is open."""
    try:
        # Without pathlib, which the compiling child would wait for, too.
        shown = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:
        return False
    return shown.startswith("anon_inode:bpf")


def load_program(
    code: bytes, kind: int, attach_type: int = 0, function: int = 0, btf: int = 0
) -> int:
    """
    Load *code* and return its descriptor.

    *function* is the number of the traced one in the BTF of descriptor *btf*, which is 0
    for the kernel's own.
    Errors: KernelRefusedError with the end of the verifier's log, KernelUnsupportedError
    where the kernel does not know the program type.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(b"GPL")
    # Without a log first: writing one costs more than the check itself.
    for log_bytes in (0, _LOG_BYTES):
        log = ctypes.create_string_buffer(max(log_bytes, 1))
        attr = bytearray(ATTR_BYTES)
        struct.pack_into(
            "=IIQQIIQ",
            attr,
            0,
            kind,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(license_),
            1 if log_bytes else 0,
            log_bytes,
            ctypes.addressof(log) if log_bytes else 0,
        )
        struct.pack_into("=I", attr, 68, attach_type)
        # attach_btf_id, attach_btf_obj_fd: modules' since Linux 5.11 (290248a5b7d8)
        struct.pack_into("=II", attr, 108, function, btf)
        try:
            return bpf(_PROG_LOAD, attr)
        except OSError as exc:
            refusal = exc
            if exc.errno in {errno.EPERM, errno.ENOSYS}:
                break
    raise _load_error(refusal, log.value.decode(errors="replace"), kind)


def knows_program_type(kind: int, attach_type: int = 0) -> bool:
    """Say whether this process may load a program of type *kind* that does nothing."""
    # It returns NF_ACCEPT.
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
    try:
        os.close(load_program(code, kind, attach_type))
    except NftraceError:
        return False
    return True


def _load_error(refusal: OSError, log: str, kind: int) -> Exception:
    if refusal.errno == errno.EPERM:
        which = " at functions' entry and exit" if kind == PROG_TYPE_TRACING else ""
        return KernelRefusedError(
            f"the kernel does not let this process load eBPF programs{which}",
            "run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN",
        )
    if refusal.errno == errno.ENOSYS:
        return KernelUnsupportedError(
            "the kernel has no eBPF", "use a kernel with CONFIG_BPF_SYSCALL"
        )
    if refusal.errno == errno.EINVAL and not log:
        return KernelUnsupportedError(f"the kernel has no eBPF programs of type {kind}")
    return KernelRefusedError(f"the kernel refused an eBPF program: {log[-_LOG_SHOWN:].strip()}")


def attach_raw_tracepoint(name: str, program: int) -> int:
    """
    Attach *program* to the raw tracepoint *name*; closing the result detaches it.

    Errors: KernelUnsupportedError where the tracepoint does not exist or has fewer
    arguments than the program reads, KernelRefusedError otherwise.
    """
    text = ctypes.create_string_buffer(name.encode())
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=QI", attr, 0, ctypes.addressof(text), program)
    try:
        return bpf(_RAW_TRACEPOINT_OPEN, attr)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.EINVAL}:
            msg = f"the kernel has no raw tracepoint {name} of the shape that is needed"
            raise KernelUnsupportedError(msg) from exc
        msg = f"the kernel refused a program on the raw tracepoint {name} ({exc.strerror})"
        raise KernelRefusedError(msg, "run as root") from exc


def attach_trampoline(program: int) -> int:
    """
    Attach *program*, loaded for a function's entry or exit; closing the result detaches it.

    Errors: KernelUnsupportedError.
    """
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=QI", attr, 0, 0, program)
    try:
        return bpf(_RAW_TRACEPOINT_OPEN, attr)
    except OSError as exc:
        msg = f"the kernel refused a program at a function's entry or exit ({exc.strerror})"
        raise KernelUnsupportedError(msg) from exc


def find_module_btf(module: str) -> int:
    """
    Return a descriptor of the BTF of a loaded *module*.

    Errors: KernelUnsupportedError where there is none such.
    """
    number = 0
    while True:
        attr = bytearray(ATTR_BYTES)
        struct.pack_into("=I", attr, 0, number)
        try:
            bpf(_BTF_GET_NEXT_ID, attr)
            number = int(struct.unpack_from("=I", attr, 4)[0])
            attr = bytearray(ATTR_BYTES)
            struct.pack_into("=I", attr, 0, number)
            descriptor = bpf(_BTF_GET_FD_BY_ID, attr)
        except OSError as exc:
            msg = f"the kernel shows no BTF of the module {module} ({exc.strerror})"
            raise KernelUnsupportedError(msg) from exc
        if _btf_name(descriptor) == module:
            return descriptor
        os.close(descriptor)


def _btf_name(descriptor: int) -> str:
    name = ctypes.create_string_buffer(64)
    # struct bpf_btf_info: btf, btf_size, id, name, name_len, kernel_btf
    info = bytearray(32)
    struct.pack_into("=QI", info, 16, ctypes.addressof(name), len(name))
    block = (ctypes.c_char * len(info)).from_buffer(info)
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, descriptor, len(info), ctypes.addressof(block))
    bpf(_OBJ_GET_INFO, attr)
    return name.value.decode()


def attach_netfilter(program: int, family: int, hook: int, priority: int) -> int:
    """
    Link *program* to a hook of this thread's network namespace; closing it unlinks.

    *family* is NFPROTO (2 for IPv4, 10 for IPv6).
    Errors: KernelUnsupportedError before Linux 6.4 or without CONFIG_NETFILTER_BPF_LINK,
    KernelRefusedError otherwise.
    """
    attr = bytearray(ATTR_BYTES)
    struct.pack_into(
        "=IIIIIIiI", attr, 0, program, 0, ATTACH_NETFILTER, 0, family, hook, priority, 0
    )
    try:
        return bpf(_LINK_CREATE, attr)
    except OSError as exc:
        if exc.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
            msg = "the kernel cannot link eBPF programs to netfilter hooks"
            remedy = "use Linux 6.4 or newer with CONFIG_NETFILTER_BPF_LINK"
            raise KernelUnsupportedError(msg, remedy) from exc
        msg = f"the kernel refused a netfilter link ({exc.strerror})"
        raise KernelRefusedError(msg) from exc


def run_program(program: int, arguments: bytes = b"") -> int:
    """Run *program* once on this CPU with *arguments* as its context; return its result."""
    context = ctypes.create_string_buffer(arguments, max(len(arguments), 1))
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=I", attr, 0, program)
    # test.ctx_size_in and test.ctx_in
    struct.pack_into("=I", attr, 40, len(arguments))
    struct.pack_into("=Q", attr, 48, ctypes.addressof(context) if arguments else 0)
    bpf(_PROG_TEST_RUN, attr)
    return int(struct.unpack_from("=I", attr, 4)[0])


def program_misses(program: int) -> int:
    """Return how often *program* was passed over because it was running on that CPU."""
    info = bytearray(256)
    block = (ctypes.c_char * len(info)).from_buffer(info)
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, program, len(info), ctypes.addressof(block))
    bpf(_OBJ_GET_INFO, attr)
    # struct bpf_prog_info.recursion_misses, since Linux 5.12 (9ed9e9ba2337); 0 before.
    return int(struct.unpack_from("=Q", info, 208)[0])
