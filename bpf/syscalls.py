"""
bpf(2) by ctypes: what the parent does with the descriptors that the child handed over.

Neither bcc nor libbpf is needed for it: both would stay in memory for as long as we run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracer.errors import KernelRefusedError, KernelUnsupportedError

__all__ = [
    "ATTACH_FENTRY",
    "ATTACH_FEXIT",
    "ATTACH_NETFILTER",
    "PROG_TYPE_KPROBE",
    "PROG_TYPE_NETFILTER",
    "PROG_TYPE_RAW_TRACEPOINT",
    "PROG_TYPE_TRACING",
    "MapFile",
    "attach_netfilter",
    "attach_raw_tracepoint",
    "attach_trampoline",
    "close_all",
    "find_module_btf",
    "load_program",
    "possible_cpus",
    "program_misses",
    "run_program",
]

# include/uapi/linux/bpf.h
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 1, 2, 3, 4
_PROG_LOAD, _PROG_TEST_RUN, _OBJ_GET_INFO = 5, 10, 15
_RAW_TRACEPOINT_OPEN, _LOOKUP_BATCH, _LINK_CREATE = 17, 24, 28
_BTF_GET_FD_BY_ID, _BTF_GET_NEXT_ID = 19, 23
PROG_TYPE_KPROBE = 2
PROG_TYPE_RAW_TRACEPOINT = 17
PROG_TYPE_TRACING = 26
PROG_TYPE_NETFILTER = 32
ATTACH_FENTRY = 24
ATTACH_FEXIT = 25
ATTACH_NETFILTER = 45
_ATTR_BYTES = 128
#: A refused program's log is kept to its last lines, where the reason stands.
_LOG_BYTES = 1 << 18
_LOG_SHOWN = 2000

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytearray) -> int:
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


def possible_cpus() -> int:
    """Return how many parts a per-CPU value has; offline CPUs count."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(text.strip().replace("-", ",").split(",")[-1]) + 1


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
        attr = bytearray(_ATTR_BYTES)
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
            return _bpf(_PROG_LOAD, attr)
        except OSError as exc:
            refusal = exc
            if exc.errno in {errno.EPERM, errno.ENOSYS}:
                break
    raise _load_error(refusal, log.value.decode(errors="replace"), kind)


def _load_error(refusal: OSError, log: str, kind: int) -> Exception:
    if refusal.errno == errno.EPERM:
        return KernelRefusedError(
            "the kernel does not let this process load eBPF programs",
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
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("=QI", attr, 0, ctypes.addressof(text), program)
    try:
        return _bpf(_RAW_TRACEPOINT_OPEN, attr)
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
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("=QI", attr, 0, 0, program)
    try:
        return _bpf(_RAW_TRACEPOINT_OPEN, attr)
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
        attr = bytearray(_ATTR_BYTES)
        struct.pack_into("=I", attr, 0, number)
        try:
            _bpf(_BTF_GET_NEXT_ID, attr)
            number = int(struct.unpack_from("=I", attr, 4)[0])
            attr = bytearray(_ATTR_BYTES)
            struct.pack_into("=I", attr, 0, number)
            descriptor = _bpf(_BTF_GET_FD_BY_ID, attr)
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
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, descriptor, len(info), ctypes.addressof(block))
    _bpf(_OBJ_GET_INFO, attr)
    return name.value.decode()


def attach_netfilter(program: int, family: int, hook: int, priority: int) -> int:
    """
    Link *program* to a hook of this thread's network namespace; closing it unlinks.

    *family* is NFPROTO (2 for IPv4, 10 for IPv6).
    Errors: KernelUnsupportedError before Linux 6.4 or without CONFIG_NETFILTER_BPF_LINK,
    KernelRefusedError otherwise.
    """
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into(
        "=IIIIIIiI", attr, 0, program, 0, ATTACH_NETFILTER, 0, family, hook, priority, 0
    )
    try:
        return _bpf(_LINK_CREATE, attr)
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
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("=I", attr, 0, program)
    # test.ctx_size_in and test.ctx_in
    struct.pack_into("=I", attr, 40, len(arguments))
    struct.pack_into("=Q", attr, 48, ctypes.addressof(context) if arguments else 0)
    _bpf(_PROG_TEST_RUN, attr)
    return int(struct.unpack_from("=I", attr, 4)[0])


def program_misses(program: int) -> int:
    """Return how often *program* was passed over because it was running on that CPU."""
    info = bytearray(256)
    block = (ctypes.c_char * len(info)).from_buffer(info)
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, program, len(info), ctypes.addressof(block))
    _bpf(_OBJ_GET_INFO, attr)
    # struct bpf_prog_info.recursion_misses, since Linux 5.12 (9ed9e9ba2337); 0 before.
    return int(struct.unpack_from("=Q", info, 208)[0])


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
        attr = bytearray(_ATTR_BYTES)
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
            _bpf(_MAP_LOOKUP, attr)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set *key*; *value* has one part for each CPU. Errors: OSError (E2BIG when full)."""
        key_block = ctypes.create_string_buffer(key, self.key_bytes)
        value_block = ctypes.create_string_buffer(value, self.value_bytes * self.cpus)
        attr = bytearray(_ATTR_BYTES)
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
        _bpf(_MAP_UPDATE, attr)

    def delete(self, key: bytes) -> None:
        """Remove *key*, if it is there."""
        key_block = ctypes.create_string_buffer(key, self.key_bytes)
        attr = bytearray(_ATTR_BYTES)
        struct.pack_into("=IIQ", attr, 0, self.fd, 0, ctypes.addressof(key_block))
        try:
            _bpf(_MAP_DELETE, attr)
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
            attr = bytearray(_ATTR_BYTES)
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
                _bpf(_LOOKUP_BATCH, attr)
            except OSError as exc:
                if exc.errno != errno.ENOENT:  # ENOENT: that was the last batch
                    raise
                more = False
            count = int(struct.unpack_from("=I", attr, 32)[0])
            more = more and count > 0
            got += count
            tokens.reverse()
        return keys[:got], values[:got]
