"""
The control socket: members of its group ask, and are answered by a process of their own.

One thread serves all. A follower is `nftrace follow` or `nftrace drops`, started with
arguments that only `tracer.core.control` makes; what it prints is handed on. Nobody is
waited for: a client that does not send is cut off after a while, one that does not read
when its buffer is full, and one too many at once; each is told so, and counted. Nor does
anybody get more of the thread's time than a few lines and so many connections a second:
what this thread computes, the watch cannot.
"""

from __future__ import annotations

import codecs
import contextlib
import grp
import json
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tracer import __version__
from tracer.core.control import REQUEST_BYTES_MAX, Limits, arguments_of, parse_request
from tracer.daemon.control_followers import Followers
from tracer.errors import OutputError, UsageError

if TYPE_CHECKING:
    from tracer.daemon.settings import ControlSettings

__all__ = ["ControlServer", "Peer"]

#: A client says what it wants within this time, and takes its last answer within it.
_PATIENCE_S = 5.0
_READ_BYTES = 65_536
_TICK_S = 0.5
_BACKLOG = 16
#: Connections taken in a second; the others wait in the backlog.
_ACCEPTS_PER_S = 50
#: What one connection may say: one request, and that it be stopped.
_LINES_MAX = 2
#: Root could have as much without us.
_ROOT = Limits(packets_per_second=None, duration_s=None)
_ROOT_BUFFER_BYTES = 64 << 20


class Peer(NamedTuple):
    """Who is at the other end, by the kernel's word."""

    pid: int
    uid: int
    gid: int


@dataclass(eq=False)
class _Client:
    """
    One connection.

    *until_s* is when patience ends, None while a follower runs; *closing* says that what
    is in *out* is the last.
    """

    socket: socket.socket
    peer: Peer
    until_s: float | None
    asked: bytearray = field(default_factory=bytearray)
    lines: int = 0
    out: bytearray = field(default_factory=bytearray)
    follower: subprocess.Popen[bytes] | None = None
    pipes: int = 0
    closing: bool = False


class ControlServer:
    """
    Serves the socket in a thread of its own from `start` to `stop`.

    *clients* counts those connected now, *followers* the processes that run for them;
    *accepted*, *refused* and *cut* count all there were. Any thread may read them, and
    give it another *log*.
    """

    def __init__(
        self,
        settings: ControlSettings,
        log: Any,  # noqa: ANN401 - structlog's
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self.accepted = 0
        self.refused = 0
        self.cut = 0
        self.followers = 0
        self._settings = settings
        self.log = log
        self._patience_s = patience_s
        self._limits = Limits(settings.packets_per_second, settings.duration_s)
        self._path = Path(settings.socket)
        self._listener: socket.socket | None = None
        self._clients: set[_Client] = set()
        self._followers = Followers()
        self._taken, self._taken_since_s = 0, 0.0
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._thread: threading.Thread | None = None

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def bind(self) -> None:
        """
        Make the socket; it takes the privilege to give it to the group.

        Errors: UsageError where another daemon has it, OutputError where it cannot be made.
        """
        if _answers(self._path):
            message = f"another daemon listens at {self._path}"
            raise UsageError(message, "end that one, or name another socket in [control]")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            before = os.umask(0o777)
            try:
                # Nobody may come in before it is given to the group.
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            os.chown(self._path, 0, self._find_group())
            self._path.chmod(0o660)
        except OSError as exc:
            listener.close()
            message = f"no control socket at {self._path} ({exc.strerror or exc})"
            raise OutputError(message, "name another in [control], or enabled = false") from exc
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        self._listener = listener

    def _find_group(self) -> int:
        try:
            return grp.getgrnam(self._settings.group).gr_gid
        except KeyError:
            self.log.warning("group_missing", group=self._settings.group, then="root alone can ask")
            return 0

    def start(self) -> None:
        """Begin to answer."""
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End followers, tell their clients, remove the socket; harmless when repeated."""
        if self._thread is not None:
            self._waker.send(b"x")
            self._thread.join()
            self._thread = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def _serve(self) -> None:
        try:
            self._answer_all()
        finally:
            # Were it by a defect of ours: who asks then is refused, and does not wait.
            if self._listener is not None:
                self._listener.close()

    def _answer_all(self) -> None:
        while True:
            for key, events in self._selector.select(_TICK_S):
                if key.fileobj is self._woken:
                    self._end_all()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Client):
                    self._attend(key.data, events)
                else:
                    self._relay(key.fileobj, *key.data)
            self._look_around(time.monotonic())
            self.followers = len(self._followers)

    def _accept(self) -> None:
        if self._listener is None:
            return
        self._taken += 1
        if self._taken > _ACCEPTS_PER_S:
            # Until the second is over, see _look_around.
            self._selector.unregister(self._listener)
            return
        try:
            connection, _ = self._listener.accept()
        except OSError as exc:
            # Out of descriptors, or gone again: others are still served.
            self.log.warning("accept_refused", why=exc.strerror)
            return
        connection.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        client = _Client(
            connection, Peer(*struct.unpack("=iII", raw)), time.monotonic() + self._patience_s
        )
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        if len(self._clients) > self._settings.clients:
            self.refused += 1
            self.log.warning("client_refused", **client.peer._asdict())
            self._finish(client, f"{self._settings.clients} clients are connected already", 3)
            return
        self.accepted += 1

    def _attend(self, client: _Client, events: int) -> None:
        if events & selectors.EVENT_WRITE and client in self._clients:
            # It may have been dropped since these events were told.
            self._flush(client)
        if events & selectors.EVENT_READ and client in self._clients:
            self._read(client)

    def _read(self, client: _Client) -> None:
        try:
            came = client.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._drop(client)
            return
        client.asked += came
        while not client.closing and (end := client.asked.find(b"\n")) >= 0:
            line = bytes(client.asked[:end])
            del client.asked[: end + 1]
            self._do(client, line)
        if not client.closing and len(client.asked) > REQUEST_BYTES_MAX:
            self._do(client, bytes(client.asked))

    def _do(self, client: _Client, line: bytes) -> None:
        client.lines += 1
        try:
            request = parse_request(line)
            if client.lines > _LINES_MAX or (client.follower is None) == (request.do == "stop"):
                self._finish(client, "one thing at a time: ask, then stop; connect anew", 2)
            elif request.do == "stop":
                self._end_follower(client)
            elif len(self._followers) >= self._settings.followers:
                self.refused += 1
                self._finish(client, f"{self._settings.followers} others follow already", 3)
            else:
                limits = self._limits if client.peer.uid else _ROOT
                arguments = arguments_of(request, limits, str(client.peer.pid))
                peer = client.peer._asdict()
                self.log.info("client_asked", arguments=" ".join(arguments), **peer)
                self._start(client, arguments, request.columns)
        except UsageError as exc:
            self._finish(client, str(exc), exc.exit_status)
        except OSError as exc:
            self._finish(client, f"no follower could be started ({exc.strerror})", 3)

    def _start(self, client: _Client, arguments: list[str], columns: int) -> None:
        follower = self._followers.start(arguments, columns)
        client.follower, client.until_s = follower, None
        for name, pipe in (("out", follower.stdout), ("err", follower.stderr)):
            if pipe is not None:
                # A character may come in two pieces.
                decoder = codecs.getincrementaldecoder("utf-8")("replace")
                self._selector.register(pipe, selectors.EVENT_READ, (client, name, decoder))
                client.pipes += 1

    def _relay(
        self,
        pipe: Any,  # noqa: ANN401 - a selector's
        client: _Client,
        name: str,
        decoder: codecs.IncrementalDecoder,
    ) -> None:
        try:
            came = os.read(pipe.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        text = decoder.decode(came, final=not came)
        if text and not client.closing:
            self._tell(client, {name: text})
        if came:
            return
        self._selector.unregister(pipe)
        pipe.close()
        client.pipes -= 1
        if client.pipes == 0 and client.follower is not None:
            self._note_end(client, client.follower)

    def _note_end(self, client: _Client, follower: subprocess.Popen[bytes]) -> None:
        # Its outputs are closed, as the kernel does when a process is gone.
        status = 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = follower.wait(1)
        if not client.closing:
            self._end(client, status if status >= 0 else 1)

    def _tell(self, client: _Client, answer: dict[str, object]) -> None:
        client.out += json.dumps(answer, ensure_ascii=False).encode() + b"\n"
        kept = self._settings.buffer_kb << 10 if client.peer.uid else _ROOT_BUFFER_BYTES
        if len(client.out) > kept:
            self.cut += 1
            self.log.warning("client_cut", why="it reads too slowly", **client.peer._asdict())
            # What is half sent must end as the line that it is.
            del client.out[client.out.find(b"\n") + 1 :]
            self._finish(client, "cut off: you read too slowly; narrow the filter", 1)
            return
        self._flush(client)

    def _finish(self, client: _Client, sentence: str, status: int) -> None:
        """Say why it ends, and end."""
        answer = {"err": f"nftrace: {sentence}\n", "version": __version__}
        client.out += json.dumps(answer).encode() + b"\n"
        self._end(client, status)

    def _end(self, client: _Client, status: int) -> None:
        client.closing, client.until_s = True, time.monotonic() + self._patience_s
        client.out += json.dumps({"end": status}).encode() + b"\n"
        self._end_follower(client)
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                while client.out:
                    del client.out[: client.socket.send(client.out)]
            except (BrokenPipeError, ConnectionError):
                self._drop(client)
                return
        if client.closing and not client.out:
            self._drop(client)
            return
        # What one who is sent away still says is not read.
        wanted = 0 if client.closing else selectors.EVENT_READ
        self._selector.modify(
            client.socket, wanted | (selectors.EVENT_WRITE if client.out else 0), client
        )

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        self._selector.unregister(client.socket)
        client.socket.close()
        client.closing = True
        self._end_follower(client)

    def _end_follower(self, client: _Client) -> None:
        if client.follower is not None:
            self._followers.end(client.follower)

    def _look_around(self, now_s: float) -> None:
        for pid in self._followers.look_around(now_s):
            self.log.error("follower_killed", pid=pid)
        if self._listener is not None and now_s >= self._taken_since_s + 1:
            if self._taken > _ACCEPTS_PER_S:
                self._selector.register(self._listener, selectors.EVENT_READ)
                self.log.warning("connections_held_up", taken_per_second=_ACCEPTS_PER_S)
            self._taken, self._taken_since_s = 0, now_s
        for client in list(self._clients):
            if client.until_s is not None and now_s >= client.until_s:
                self.cut += 1
                peer = client.peer._asdict()
                self.log.warning("client_cut", why="it did not send or read in time", **peer)
                if client.closing:
                    self._drop(client)
                else:
                    self._finish(client, "cut off: you did not ask in time", 1)

    def _end_all(self) -> None:
        for client in list(self._clients):
            if not client.closing:
                self._finish(client, "the daemon ends", 1)
            self._drop(client)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, tuple):
                # Nobody reads any more: a follower that writes still must not wait for us.
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        self._followers.end_all()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        try:
            asking.connect(str(path))
        except OSError as exc:
            # Too many wait to be taken: there is one who does.
            return isinstance(exc, BlockingIOError)
        return True
