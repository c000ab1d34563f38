"""
Asking a running daemon: one need not be root then, and it gives way.

A daemon that traces for itself and one who works alone beside it would want the same
listener of the kernel's; who asks the daemon is let through.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tracer import __version__
from tracer.cli.options import wants_color
from tracer.cli.run import Interrupts
from tracer.core.control import known_words
from tracer.errors import KernelRefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ask_daemon", "daemon_option", "wants_daemon"]

#: Where a daemon listens unless its configuration says otherwise; $NFTRACE_SOCKET names
#: another.
DEFAULT_SOCKET = "/run/nftrace/nftrace.sock"
#: The parameters whose word on the command line is another.
_WORDS = {"in_device": "in", "out_device": "out"}
#: What is about asking and showing, not about what is asked.
_OWN = ("daemon", "color")
_READ_BYTES = 65_536
_TICK_S = 0.2
_QUEUE_S = 3
#: An answer is a piece of a follower's output, escaped.
_ANSWER_BYTES_MAX = 1 << 20

daemon_option = click.option(
    "--daemon/--no-daemon",
    default=None,
    help="ask the running daemon, or work alone (default: ask where one answers)",
)


def wants_daemon(do: str, words: Mapping[str, Any]) -> bool:
    """
    Tell whether the daemon is to be asked.

    Root works alone where none answers, or where it could not do what is asked.
    """
    if words["daemon"] is not None or os.geteuid() != 0:
        return words["daemon"] is not False
    if _only_alone(do):
        return False
    try:
        _connect("").close()
    except KernelRefusedError:
        return False
    return True


def ask_daemon(do: str, words: Mapping[str, Any], needs: str) -> int:
    """
    Have the daemon do it, show what it says, and return the exit status.

    *needs* says what working alone would take, for one who can do neither.
    Errors: KernelRefusedError where no daemon answers, UsageError for what it cannot do.
    """
    for option in _only_alone(do):
        raise UsageError(f"{option} cannot be had from the daemon", "run as root for that")
    with _connect(needs) as connection, Interrupts() as interrupts:
        _send(connection, _request(do, words))
        pending, has_stopped = b"", False
        while True:
            if interrupts.reason is not None and not has_stopped:
                has_stopped = True
                _send(connection, b'{"do": "stop"}\n')
            try:
                came = connection.recv(_READ_BYTES)
            except TimeoutError:
                continue
            except ConnectionError:
                came = b""
            pending += came
            *lines, pending = pending.split(b"\n")
            for line in lines:
                status = _show(line)
                if status is not None:
                    return status
            if not came or len(pending) > _ANSWER_BYTES_MAX:
                raise KernelRefusedError("the daemon went away", "see its journal, and try again")


def _only_alone(do: str) -> list[str]:
    """Return the options on the command line that a daemon does not know."""
    context = click.get_current_context()
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name is not None
        and _WORDS.get(parameter.name, parameter.name) not in {*known_words(do), *_OWN}
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def _send(connection: socket.socket, line: bytes) -> None:
    # Who is sent away at once has an answer to read, and nobody who takes what is sent.
    with contextlib.suppress(ConnectionError):
        connection.sendall(line)


def _connect(needs: str) -> socket.socket:
    path = os.environ.get("NFTRACE_SOCKET", DEFAULT_SOCKET)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # How long connect() waits where others wait, too: struct timeval.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _QUEUE_S, 0))
    try:
        connection.connect(path)
        connection.settimeout(_TICK_S)
    except PermissionError as exc:
        connection.close()
        message = f"{needs}, and {path} is not open to you"
        raise KernelRefusedError(message, "run it with sudo, or join group nftrace") from exc
    except BlockingIOError as exc:
        connection.close()
        message = f"{needs}, and the daemon at {path} has too many who ask"
        raise KernelRefusedError(message, "run it with sudo, or try again later") from exc
    except OSError as exc:
        connection.close()
        message = f"{needs}, and no daemon answers at {path} ({exc.strerror})"
        raise KernelRefusedError(message, "run it with sudo, or start `nftrace daemon`") from exc
    return connection


def _request(do: str, words: Mapping[str, Any]) -> bytes:
    asked: dict[str, object] = {}
    for name, value in words.items():
        word = _WORDS.get(name, name)
        if word in known_words(do) and value is not None and value is not False and value != ():
            asked[word] = list(value) if isinstance(value, tuple) else value
    color = wants_color(words["color"], sys.stdout)
    columns = min(1000, max(20, shutil.get_terminal_size().columns))
    request = {"do": do, "words": asked, "columns": columns, "color": color}
    return json.dumps(request).encode() + b"\n"


def _show(line: bytes) -> int | None:
    """Show one answer; return the exit status where it was the last."""
    try:
        answer = json.loads(line)
        end, out, err = (answer.get(name) for name in ("end", "out", "err"))
    except (ValueError, AttributeError, RecursionError) as exc:
        message = "what answers is no nftrace daemon"
        raise KernelRefusedError(message, "see $NFTRACE_SOCKET") from exc
    if isinstance(out, str):
        sys.stdout.write(out)
        sys.stdout.flush()
    if isinstance(err, str):
        click.echo(err, err=True, nl=False)
        version = answer.get("version", __version__)
        if version != __version__:
            said = f"the daemon is nftrace {version!s:.40}, this is {__version__}"
            click.echo(f"nftrace: {said}: restart it, if it is the older one", err=True)
    return end if isinstance(end, int) else None
