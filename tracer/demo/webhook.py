"""What Alertmanager tells: a receiver of its webhooks."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Webhook"]

#: Alertmanager's messages are some kilobytes.
_BYTES_MAX: Final = 1 << 20


class Webhook:
    """A receiver on loopback; a context manager. Each firing alert is handed out once."""

    def __init__(self) -> None:
        alerts: SimpleQueue[dict[str, Any]] = SimpleQueue()

        class Handler(BaseHTTPRequestHandler):
            """Takes what is posted."""

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(min(length, _BYTES_MAX)))
                for alert in body["alerts"]:
                    if alert["status"] == "firing":
                        alerts.put(alert)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._alerts = alerts
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        """Begin to receive."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def find_next(self) -> Mapping[str, Any] | None:
        """Return the next alert that came: its labels, annotations, startsAt; None yet."""
        try:
            return self._alerts.get_nowait()
        except Empty:
            return None
