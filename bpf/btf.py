"""
Kernel types, member offsets and enumerations out of BTF, by libbpf.

libbpf1 is a dependency of libbpfcc, so it is there wherever bcc is. Only the compiling
child imports this: the kernel's BTF takes 10 MB while it is open.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Btf", "BtfMissingError", "Function"]

# Kinds and the layout of struct btf_type: include/uapi/linux/btf.h.
_KIND_STRUCT, _KIND_UNION, _KIND_ENUM, _KIND_TYPEDEF, _KIND_FUNC = 4, 5, 6, 8, 12
_MODIFIERS = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
#: One printed declaration; longer ones are cut off by nobody: sk_buff takes 6 kB.
_PRINT_BYTES = 1 << 16
#: Anonymous structs and unions nested in one another, and typedefs of typedefs.
_DEPTH_MAX = 16


class BtfMissingError(Exception):
    """The kernel has no BTF, or libbpf is not there; the text says which."""


class _Type(ctypes.Structure):
    _fields_ = (
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
    )


class _Member(ctypes.Structure):
    _fields_ = (
        ("name_off", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    )


class _Parameter(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32))


class _Enumerator(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("value", ctypes.c_int32))


_PRINTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def _open_libbpf() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1")
    except OSError as exc:
        raise BtfMissingError(str(exc)) from exc
    pointer, number, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    for name, result, arguments in (
        ("btf__load_vmlinux_btf", pointer, []),
        ("btf__load_module_btf", pointer, [text, pointer]),
        ("btf__find_by_name_kind", ctypes.c_int32, [pointer, text, number]),
        ("btf__type_by_id", ctypes.POINTER(_Type), [pointer, number]),
        ("btf__name_by_offset", text, [pointer, number]),
        ("btf_dump__new", pointer, [pointer, _PRINTER, pointer, pointer]),
        ("btf_dump__dump_type", ctypes.c_int, [pointer, number]),
        ("libbpf_set_print", pointer, [pointer]),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    lib.libbpf_set_print(None)
    return lib


@dataclass(frozen=True, slots=True)
class Function:
    """A function by its number in the BTF of *owner* (vmlinux or a module)."""

    owner: str
    number: int
    first_parameter: str


@dataclass
class Btf:
    """
    The running kernel's types: vmlinux and, for what is not there, modules.

    Errors: BtfMissingError at once where there is no libbpf or no vmlinux BTF.
    """

    modules: tuple[str, ...] = ("nf_tables", "x_tables", "ip_tables", "ip6_tables")
    _lib: ctypes.CDLL = field(default_factory=_open_libbpf)
    _handles: list[int] = field(default_factory=list)
    _owners: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open what the kernel shows; a module that is built in has nothing of its own."""
        vmlinux = self._lib.btf__load_vmlinux_btf()
        if not vmlinux:
            msg = "the kernel shows no BTF (CONFIG_DEBUG_INFO_BTF)"
            raise BtfMissingError(msg)
        self._handles, self._owners = [vmlinux], ["vmlinux"]
        for name in self.modules:
            handle = self._lib.btf__load_module_btf(name.encode(), vmlinux)
            if handle:
                self._handles.append(handle)
                self._owners.append(name)

    def declare(self, structs: Iterable[str]) -> tuple[str, list[str]]:
        """
        Print C for *structs* and everything they need; second, those that nobody knows.

        Each declaration stands once, whichever BTF it came from.
        """
        wanted = list(structs)
        blocks: dict[str, None] = {}
        missing = []
        for handle in self._handles:
            present = [(self._lib.btf__find_by_name_kind(handle, n.encode(), 4), n) for n in wanted]
            for block in self._print(handle, [number for number, _ in present if number > 0]):
                blocks.setdefault(block)
            missing = [name for number, name in present if number <= 0]
            wanted = missing
        return "\n\n".join(blocks), missing

    def _print(self, handle: int, numbers: list[int]) -> list[str]:
        parts: list[bytes] = []
        libc = ctypes.CDLL(None)
        libc.vsnprintf.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t),
            *(ctypes.c_char_p, ctypes.c_void_p),
        ]
        buffer = ctypes.create_string_buffer(_PRINT_BYTES)

        def collect(_: object, form: bytes, arguments: int) -> None:
            length = libc.vsnprintf(buffer, _PRINT_BYTES, form, arguments)
            parts.append(buffer.raw[:length])

        printer = _PRINTER(collect)
        dump = self._lib.btf_dump__new(handle, printer, None, None)
        for number in numbers:
            self._lib.btf_dump__dump_type(dump, number)
        # libbpf separates top-level declarations by an empty line.
        text = b"".join(parts).decode()
        return [block.strip() for block in re.split(r"\n\n(?=\S)", text) if block.strip()]

    def offset(self, struct: str, member: str) -> int | None:
        """Return where *member* begins in *struct*, in bytes; None if there is none such."""
        for handle in self._handles:
            number = self._lib.btf__find_by_name_kind(handle, struct.encode(), _KIND_STRUCT)
            if number > 0:
                bits = self._find_member(handle, number, member.encode(), 0)
                return None if bits is None else bits // 8
        return None

    def function(self, name: str) -> Function | None:
        """Return where the function *name* is described; None if it is nowhere."""
        for handle, owner in zip(self._handles, self._owners, strict=True):
            number = self._lib.btf__find_by_name_kind(handle, name.encode(), _KIND_FUNC)
            if number > 0:
                return Function(owner, int(number), self._first_parameter(handle, number))
        return None

    def _first_parameter(self, handle: int, number: int) -> str:
        # A function's word of size holds the type of its prototype.
        prototype = self._lib.btf__type_by_id(handle, number).contents.size
        kind = self._lib.btf__type_by_id(handle, prototype)
        if not kind.contents.info & 0xFFFF:
            return ""
        first = ctypes.addressof(kind.contents) + ctypes.sizeof(_Type)
        parameter = ctypes.cast(first, ctypes.POINTER(_Parameter)).contents
        name: bytes = self._lib.btf__name_by_offset(handle, parameter.name_off)
        return name.decode()

    def tracepoint_arguments(self, name: str) -> int:
        """Return how many arguments the kernel's own tracepoint *name* has; 0 for none such."""
        handle = self._handles[0]
        typedef = f"btf_trace_{name}".encode()
        number = self._lib.btf__find_by_name_kind(handle, typedef, _KIND_TYPEDEF)
        if number <= 0:
            return 0
        # A pointer to a function, whose first parameter is the tracepoint's own.
        for _ in range(2):
            number = self._lib.btf__type_by_id(handle, number).contents.size
        return max(int(self._lib.btf__type_by_id(handle, number).contents.info & 0xFFFF) - 1, 0)

    def size(self, struct: str) -> int | None:
        """Return the size of *struct* in bytes; None if there is none such."""
        for handle in self._handles:
            number = self._lib.btf__find_by_name_kind(handle, struct.encode(), _KIND_STRUCT)
            if number > 0:
                return int(self._lib.btf__type_by_id(handle, number).contents.size)
        return None

    def _find_member(self, handle: int, number: int, name: bytes, depth: int) -> int | None:
        kind = self._lib.btf__type_by_id(handle, number)
        members = ctypes.cast(
            ctypes.addressof(kind.contents) + ctypes.sizeof(_Type), ctypes.POINTER(_Member)
        )
        for index in range(kind.contents.info & 0xFFFF):
            member = members[index]
            found = self._lib.btf__name_by_offset(handle, member.name_off)
            # With the kind flag, the upper byte of the offset is a bit field's width.
            offset = int(member.offset) & 0xFFFFFF if kind.contents.info >> 31 else member.offset
            if found == name:
                return int(offset)
            if not found and depth < _DEPTH_MAX:
                inner = self._aggregate(handle, member.type)
                nested = self._find_member(handle, inner, name, depth + 1) if inner else None
                if nested is not None:
                    return int(offset) + nested
        return None

    def _aggregate(self, handle: int, number: int) -> int | None:
        for _ in range(_DEPTH_MAX):
            kind = self._lib.btf__type_by_id(handle, number).contents
            code = kind.info >> 24 & 0x1F
            if code in {_KIND_STRUCT, _KIND_UNION}:
                return number
            if code not in _MODIFIERS:
                return None
            number = kind.size  # for modifiers the same word holds the type referred to
        return None

    def enumerators(self, name: str) -> dict[str, int]:
        """Return the names and values of *enum name*; empty if there is none such."""
        for handle in self._handles:
            number = self._lib.btf__find_by_name_kind(handle, name.encode(), _KIND_ENUM)
            if number > 0:
                kind = self._lib.btf__type_by_id(handle, number)
                first = ctypes.addressof(kind.contents) + ctypes.sizeof(_Type)
                values = ctypes.cast(first, ctypes.POINTER(_Enumerator))
                return {
                    self._lib.btf__name_by_offset(handle, values[i].name_off).decode(): int(
                        values[i].value
                    )
                    for i in range(kind.contents.info & 0xFFFF)
                }
        return {}
