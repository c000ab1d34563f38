"""The service on the customer's machine: greets whoever gets through, and hangs up."""

from __future__ import annotations

import contextlib
import selectors
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import socket

__all__ = ["serve"]


def serve(sockets: list[socket.socket]) -> NoReturn:
    """
    Accept on each listening socket for ever, greet and close.

    It is the whole life of a forked process: interrupts are left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ, sock)
        while True:
            for key, _ in selector.select():
                _greet(key.data)


def _greet(listening: socket.socket) -> None:
    # A client that is gone again is no matter of ours.
    with contextlib.suppress(OSError):
        connection, peer = listening.accept()
        with connection:
            host, port = connection.getsockname()
            line = f"vm {host}:{port} greets {peer[0]}:{peer[1]}\r\n"
            if port == 22:  # noqa: PLR2004 - ssh's
                line = f"SSH-2.0-vm {line}"
            connection.sendall(line.encode())
