"""
Get compiled, loaded programs and maps without becoming a compiler.

`load()` describes what is wanted to `bpf.child`, which ends when it has answered; the
descriptors that come back live as long as this process keeps them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.errors import KernelRefusedError, KernelUnsupportedError, NftraceError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Loaded", "ObjectSpec", "ProgramSpec", "load"]

#: As in bpf.child, which must not be imported here: it is the other process's.
_MESSAGE_BYTES = 1 << 18
#: SCM_MAX_FD is 253; the largest object has fewer than twenty.
_DESCRIPTORS_MAX = 64
#: Ten seconds under emulation, forty with the headers package; a child that hangs must not
#: hang its parent.
_TIMEOUT_S = 120.0
_ERRORS = {
    "KernelRefusedError": KernelRefusedError,
    "KernelUnsupportedError": KernelUnsupportedError,
}


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """
    A function of the C file and what the kernel shall take it for.

    An *optional* one is left out of `Loaded.programs` where the kernel does not know its
    type or refuses it; `Loaded.refused` says why. *function* is the one that a program of
    type tracing is for.
    """

    name: str
    kind: int
    attach_type: int = 0
    optional: bool = False
    function: str = ""


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """
    What to compile and load: describable, printable, without a kernel.

    *source* is a C file of this folder, or several joined by +, compiled as one.
    *functions* are those whose first parameter's name tells the C their shape: each defines
    NT_ARG0_FUNCTION_PARAMETER. *types* are the kernel structs that the C needs, *offsets*
    names like `xt_table.private` (each that exists also defines NT_OFFSET_XT_TABLE_PRIVATE),
    *enums* and *sizes* what is to be told back.
    """

    source: str
    programs: tuple[ProgramSpec, ...]
    maps: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    enums: tuple[str, ...] = ()
    offsets: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    defines: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Loaded:
    """
    Descriptors by name, and what BTF said.

    *enums* maps an enumeration to its names and values, empty without BTF. *missing* are
    the wanted types and functions that no BTF has, as those of modules that are not loaded.
    Closing it unloads everything that nothing else holds.
    """

    maps: dict[str, int]
    programs: dict[str, int]
    enums: dict[str, dict[str, int]]
    offsets: dict[str, int | None]
    sizes: dict[str, int | None]
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Close every descriptor; harmless when repeated."""
        for descriptor in (*self.maps.values(), *self.programs.values()):
            os.close(descriptor)
        self.maps.clear()
        self.programs.clear()


def load(spec: ObjectSpec) -> Loaded:
    """
    Compile and load *spec* in a child process, and wait for that to end.

    Errors: KernelUnsupportedError (no eBPF, no BTF and no headers, no bcc) and
    KernelRefusedError (permissions, the verifier), with the remedy.
    """
    request = {
        "source": spec.source,
        "programs": [
            [p.name, p.kind, p.attach_type, p.optional, p.function] for p in spec.programs
        ],
        "maps": spec.maps,
        "types": spec.types,
        "enums": spec.enums,
        "offsets": spec.offsets,
        "sizes": spec.sizes,
        "functions": spec.functions,
        "defines": dict(spec.defines),
    }
    answer, descriptors, words = _ask_child(json.dumps(request).encode())
    if "error" in answer:
        kind = _ERRORS.get(str(answer["error"]), NftraceError)
        refusal = kind(answer["message"], answer["remedy"])
        # Shown with the traceback only: the compiler's own words are for developers.
        refusal.add_note(words)
        raise refusal
    names = [*spec.maps, *answer["programs"]]
    by_name = dict(zip(names, descriptors, strict=True))
    return Loaded(
        maps={name: by_name[name] for name in spec.maps},
        programs={name: by_name[name] for name in answer["programs"]},
        enums=answer["enums"],
        offsets=answer["offsets"],
        sizes=answer["sizes"],
        missing=answer["missing"],
        refused=answer["refused"],
    )


def _ask_child(request: bytes) -> tuple[Any, list[int], str]:
    # What `site` would find out anew takes a while, and what -m puts in front, the folder
    # that we were started in, may be anybody's.
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, sys.path)])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", "bpf.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            ours.settimeout(_TIMEOUT_S)
            ours.send(request)
            message, descriptors, _, _ = socket.recv_fds(
                ours, _MESSAGE_BYTES, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError as exc:
            msg = f"compiling for eBPF took longer than {_TIMEOUT_S:.0f} s"
            raise KernelUnsupportedError(msg) from exc
        finally:
            child.kill()
            words = child.communicate()[1].decode(errors="replace")
    if not message:
        msg = f"the process that compiles for eBPF died: {words[-500:]}"
        raise KernelUnsupportedError(msg, "apt install --reinstall python3-bpfcc libbpf1")
    return json.loads(message), descriptors, words
