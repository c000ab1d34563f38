"""
The HTTP server that answers scrapes, with TLS and client certificates on request.

Each connection has a thread, an end in time, and is one request: so a slow or silent
client holds one of a few threads for seconds and nothing else. The TLS handshake is done
in that thread, too.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.prometheus import Exporter

__all__ = ["Served", "render", "serve"]

#: Two Prometheus servers and a few curious people.
_CONNECTIONS_MAX: Final = 16
_CLIENT_S: Final = 10.0
_POLL_S: Final = 0.2
_REMEDY: Final = "set another address or port for the metrics"


class Served(NamedTuple):
    """A running server: the *address* and *port* it has, and how to *stop* it."""

    address: str
    port: int
    stop: Callable[[], None]


def render(exporter: Exporter, accept: str = "") -> tuple[bytes, str]:
    """
    Return an answer to a scrape and its content type.

    *accept* is the request's header: OpenMetrics, with exemplars, where it is wanted.
    """
    if "application/openmetrics-text" in accept:
        body = exporter.write(openmetrics=True)
        return body, "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return exporter.write(openmetrics=False), "text/plain; version=0.0.4; charset=utf-8"


def serve(  # noqa: PLR0913 - settings, each with its default
    exporter: Exporter,
    address: str = "127.0.0.1",
    port: int = 10831,
    *,
    certificate: str = "",
    key: str = "",
    client_ca: str = "",
) -> Served:
    """
    Answer GET /metrics in threads of its own until stopped.

    *port* 0 takes a free one. *certificate* and *key* (PEM files): by TLS 1.2 or newer
    only; *client_ca*: only clients that show a certificate signed by it.
    Errors: UsageError where the address is taken or none of this machine's, or a file
    does not hold what it should.
    """
    tls = _make_context(certificate, key, client_ca)
    try:
        server = _Server(exporter, address, port, tls)
    except (OSError, OverflowError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        message = f"the metrics cannot be served at {address} port {port} ({reason})"
        raise UsageError(message, _REMEDY) from exc
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
    )
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return Served(str(server.server_address[0]), int(server.server_address[1]), stop)


def _make_context(certificate: str, key: str, client_ca: str) -> ssl.SSLContext | None:
    if not certificate:
        if key or client_ca:
            message = "a key or a client CA without a certificate does nothing"
            raise UsageError(message, "set the metrics' certificate, too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key or None, password="")
    except (OSError, ValueError) as exc:
        message = f"{certificate} and {key or 'the key in it'} cannot be used for TLS ({exc})"
        raise UsageError(message, "give a certificate and its key without password, PEM") from exc
    if client_ca:
        try:
            context.load_verify_locations(client_ca)
        except OSError as exc:
            message = f"{client_ca} cannot be used to check clients ({exc})"
            raise UsageError(message, "give the certificate of a CA, PEM") from exc
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Server(ThreadingHTTPServer):
    # Longer than there are threads, so that whoever is too many is told at once.
    request_queue_size = 4 * _CONNECTIONS_MAX
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, exporter: Exporter, address: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.exporter = exporter
        self._tls = tls
        self._free = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for our name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "nftrace", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        if not self._free.acquire(blocking=False):
            self.exporter.refused += 1
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            request.settimeout(_CLIENT_S)
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True)
            self.finish_request(request, client_address)
        except OSError:
            # It went away, was too slow, or did not show the certificate that it needs.
            self.exporter.refused += 1
        finally:
            self._free.release()
            self.shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "nftrace"
    sys_version = ""
    timeout = _CLIENT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(b"nftrace: the metrics are at /metrics\n", "text/plain; charset=utf-8")
        elif path == "/metrics":
            body, kind = render(self.server.exporter, ",".join(self.headers.get_all("Accept", [])))
            self._answer(body, kind)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "only /metrics is here")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: each request is counted."""
