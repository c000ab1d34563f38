"""The HTTP server that answers scrapes, with TLS and client certificates on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.prometheus import Exporter

__all__ = ["Served", "serve"]


class Served(NamedTuple):
    """A running server: the *address* and *port* it has, and how to *stop* it."""

    address: str
    port: int
    stop: Callable[[], None]


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
    raise NotImplementedError
