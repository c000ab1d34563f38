"""
The short-lived process that compiles and loads, and hands the descriptors over.

It is started with the number of a socket as its one argument, reads one request from it,
and answers with one message that carries the descriptors. LLVM's 100 MB end with it.
Run by `bpf.loader`; imports nothing of the parent's but `bpf`.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf.btf import Btf, BtfMissingError, Function
from bpf.casts import CAST, PLACEHOLDER, can_cast, patch_casts
from bpf.headers import read_drop_reasons
from bpf.syscalls import find_module_btf, load_program
from tracer.errors import KernelUnsupportedError, NftraceError

__all__ = ["serve"]

_HERE = Path(__file__).resolve().parent
#: One datagram holds a request or an answer; the reasons' names are most of an answer.
MESSAGE_BYTES = 1 << 18
_REASONS = "skb_drop_reason"
#: Set to anything, it makes us compile with the headers package, as where there is no BTF.
_NO_BTF = "NFTRACE_NO_BTF"
#: No debug information, which nobody reads; and the optimizer once: bcc has it run over
#: what clang makes anyway.
_FLAGS = ("-w", "-std=gnu11", "-g0", "-Xclang", "-disable-llvm-passes")
# include/uapi/linux/sched.h, include/uapi/linux/mount.h
_CLONE_NEWNS = 0x0002_0000
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_WITHOUT_BTF = "boot a kernel with BTF, or install its headers (linux-headers-$(uname -r))"


def serve(channel: socket.socket) -> None:
    """Answer the one request that comes on *channel*."""
    request = json.loads(channel.recv(MESSAGE_BYTES))
    try:
        answer, descriptors = _build(request)
    except NftraceError as exc:
        kind = type(exc).__name__
        answer, descriptors = {"error": kind, "message": exc.message, "remedy": exc.remedy}, []
    socket.send_fds(channel, [json.dumps(answer).encode()], descriptors)


def _build(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    kernel = _ask_kernel(request)
    facts = kernel.facts
    defines = {**request["defines"], **kernel.defines, **_shape(facts)}
    compiled = _compile(kernel.types, request["source"], defines)
    maps = [compiled[name].map_fd for name in request["maps"]]
    programs: dict[str, int] = {}
    facts["refused"] = {}
    for name, kind, attach_type, optional, traced in request["programs"]:
        try:
            code = _code(compiled, name)
            if "NT_CAST" in defines:
                code = patch_casts(code, kernel.functions[CAST].number)
            target = _target(kernel.functions, traced) if traced else (0, 0)
            programs[name] = load_program(code, kind, attach_type, *target)
        except NftraceError as exc:
            if not optional:
                raise
            facts["refused"][name] = exc.message
    facts["programs"] = list(programs)
    return facts, [*maps, *programs.values()]


@dataclass
class _Kernel:
    """What the kernel says of itself: for the parent, for the compiler, and its types in C."""

    facts: dict[str, Any]
    defines: dict[str, object]
    types: str = ""
    functions: dict[str, Function] = field(default_factory=dict)


def _ask_kernel(request: dict[str, Any]) -> _Kernel:
    try:
        btf = _open_btf()
    except BtfMissingError as exc:
        return _ask_headers(request, _require_headers(str(exc)))
    os.environ["BCC_KERNEL_SOURCE"] = str(_HERE)
    types, missing = btf.declare(request["types"])
    traced = (name for *_, name in request["programs"] if name)
    wanted = {CAST, *request["functions"], *traced}
    found = {name: btf.function(name) for name in wanted}
    functions = {name: one for name, one in found.items() if one is not None}
    missing += [name for name in request["functions"] if name not in functions]
    defines: dict[str, object] = {
        "LINUX_VERSION_CODE": _version_code(platform.release()),
        "NT_KFREE_SKB_ARGS": btf.tracepoint_arguments("kfree_skb"),
    }
    defines |= _shape_of_functions(functions)
    if CAST in functions and can_cast(functions[CAST].number):
        defines["NT_CAST"] = PLACEHOLDER
    defines |= {f"NT_MISSING_{name.upper()}": 1 for name in missing}
    facts = {
        "enums": {name: btf.enumerators(name) for name in request["enums"]},
        "offsets": {name: btf.offset(*name.split(".")) for name in request["offsets"]},
        "sizes": {name: btf.size(name) for name in request["sizes"]},
        "missing": missing,
    }
    return _Kernel(facts, defines, types, functions)


def _ask_headers(request: dict[str, Any], folders: tuple[Path, ...]) -> _Kernel:
    reasons = read_drop_reasons(folders)
    enums = {name: reasons if name == _REASONS else {} for name in request["enums"]}
    facts = {"enums": enums, "offsets": {}, "sizes": {}, "missing": []}
    return _Kernel(facts, {"NT_HEADERS": 1})


def _open_btf() -> Btf:
    if os.environ.get(_NO_BTF):
        msg = f"the kernel's BTF is left aside ({_NO_BTF} is set)"
        raise BtfMissingError(msg)
    return Btf()


def _code(compiled: Any, name: str) -> bytes:  # noqa: ANN401 - bcc ships no types
    try:
        code: bytes = compiled.dump_func(name.encode())
    except Exception as exc:  # bcc raises Exception itself
        msg = f"{name}() makes no sense on this kernel, which lacks what it reads"
        raise KernelUnsupportedError(msg) from exc
    return code


def _target(functions: dict[str, Function], name: str) -> tuple[int, int]:
    """Return the number of the function *name* and the descriptor of its BTF."""
    if name not in functions:
        msg = f"the kernel's BTF has no function {name}()"
        raise KernelUnsupportedError(msg)
    found = functions[name]
    # The descriptor ends with this process.
    owner = 0 if found.owner == "vmlinux" else find_module_btf(found.owner)
    return found.number, owner


def _shape_of_functions(functions: dict[str, Function]) -> dict[str, int]:
    return {
        f"NT_ARG0_{name.upper()}_{one.first_parameter.upper()}": 1
        for name, one in functions.items()
    }


def _shape(facts: dict[str, Any]) -> dict[str, int]:
    """Turn what BTF says is there into the switches that the C code looks at."""
    reasons = facts["enums"].get(_REASONS, {})
    shape = {
        f"NT_OFFSET_{name.replace('.', '_').upper()}": offset
        for name, offset in facts["offsets"].items()
        if offset is not None
    }
    if reasons:
        # The argument came with the enumeration: c504e5c2f964 in v5.17.
        shape["NT_HAS_REASON"] = 1
    if "SKB_CONSUMED" in reasons:
        shape["NT_REASON_CONSUMED"] = reasons["SKB_CONSUMED"]
    return shape


def _require_headers(why: str) -> tuple[Path, ...]:
    """Return the folders of the kernel's headers; Debian parts them into two."""
    # bcc's own variable, for headers that lie elsewhere.
    named = os.environ.get("BCC_KERNEL_SOURCE")
    build = Path(named) if named else Path("/lib/modules", platform.release(), "build")
    if not build.exists():
        msg = f"{why}, and {build} with the kernel's headers is not there either"
        raise KernelUnsupportedError(msg, _WITHOUT_BTF)
    return build, build.parent / "source"


def _version_code(release: str) -> int:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    major, minor, patch = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    return (major << 16) + (minor << 8) + min(patch, 255)


def _compile(types: str, source: str, defines: dict[str, object]) -> Any:  # noqa: ANN401
    # Any: bcc ships no types.
    try:
        from bcc import BPF  # noqa: PLC0415 - without it, a sentence says what to install
    except ImportError as exc:
        msg = "Python's bcc is not installed"
        raise KernelUnsupportedError(msg, "apt install python3-bpfcc") from exc
    _hide_symbols()
    flags = [f"-D{name}={value}" for name, value in defines.items()]
    # bcc only rewrites map accesses in the text itself, so headers hold none.
    parts = [(_HERE / part).read_text(encoding="ascii") for part in source.split("+")]
    try:
        return BPF(text="\n".join([types, *parts]), cflags=[*flags, f"-I{_HERE}", *_FLAGS])
    except Exception as exc:  # bcc raises Exception itself
        msg = f"{source} does not compile on this kernel ({exc})"
        remedy = "run again with --debug for the compiler's words, and report them"
        raise KernelUnsupportedError(msg, remedy) from exc


def _hide_symbols() -> None:
    """
    Put a list of one symbol in the place of the kernel's 120,000, for this process alone.

    bcc reads all of them to learn whether bpf_probe_read_kernel() is there, as it is since
    Linux 5.5, and that takes as long as compiling. It is left to do so where we may not.
    """
    libc = ctypes.CDLL(None)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        return
    libc.mount(bytes(_HERE / "symbols.txt"), b"/proc/kallsyms", None, _MS_BIND, None)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    # bcc's atexit work would only undo what the parent now holds.
    os._exit(0)
