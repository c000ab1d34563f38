"""Laws of the server that answers scrapes: to whom, how, and who cannot disturb it."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from exporters.prometheus import Exporter, serve
from tests.exporters.watched import Watched
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exporters.prometheus import Served


@contextlib.contextmanager
def served(exporter: Exporter | None = None, **options: str) -> Iterator[Served]:
    """Serve at a free port for the block."""
    server = serve(exporter or Exporter(Watched()), port=0, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.stop()


def get(
    server: Served,
    path: str = "/metrics",
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> tuple[dict[str, str], bytes]:
    """Give headers and body of an answer."""
    scheme = "http" if tls is None else "https"
    url = f"{scheme}://{server.address}:{server.port}{path}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=named)  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=10, context=tls) as answer:  # noqa: S310
        return dict(answer.headers), answer.read()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a server's and a client's certificate that sign themselves."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")),
            ],
            check=True,
            capture_output=True,
        )
    return folder


def client_of(folder: Path, name: str | None = None) -> ssl.SSLContext:
    """Give a client's side that trusts the server, and shows *name*'s certificate."""
    context = ssl.create_default_context(cafile=str(folder / "server.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_metrics_are_told_in_the_format_asked_for() -> None:
    """Prometheus' request has OpenMetrics, another's the text format."""
    with served() as server:
        headers, body = get(server, Accept="application/openmetrics-text;version=1.0.0,*/*;q=0.1")
        plain, text = get(server)

    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert b"# EOF" in body
    assert plain["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"# TYPE nftrace_drops_total counter" in text


def test_an_answer_is_compressed_where_that_is_accepted() -> None:
    """A router's uplink is not filled by texts of rules."""
    with served() as server:
        headers, body = get(server, Accept_Encoding="gzip")

    assert "gzip" == headers["Content-Encoding"]
    assert b"nftrace_drops_total{" in gzip.decompress(body)


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/nothing", 404), ("/metrics?x=1", 200)])
def test_other_paths_say_where_the_metrics_are(path: str, status: int) -> None:
    """The root names them, anything else is not there."""
    with served() as server:
        try:
            _, body = get(server, path)
            found = 200
        except urllib.error.HTTPError as exc:
            with exc:
                body, found = exc.read(), exc.code

    assert status == found
    assert b"metrics" in body


def test_nothing_can_be_written() -> None:
    """A request of another kind is refused."""
    with served() as server:
        request = urllib.request.Request(
            f"http://{server.address}:{server.port}/metrics", data=b"x", method="POST"
        )
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=10)  # noqa: S310
        with raised.value:
            assert 501 == raised.value.code


def test_silent_clients_do_not_hold_up_a_scrape() -> None:
    """With some connected that say nothing, an answer comes; with too many, one is told off."""
    exporter = Exporter(Watched())
    with served(exporter) as server, contextlib.ExitStack() as silent:
        for _ in range(7):
            silent.enter_context(socket.create_connection((server.address, server.port)))
        _, body = get(server)
        for _ in range(40):
            silent.enter_context(socket.create_connection((server.address, server.port)))
        # Those over the limit are closed at once: of the first 16 none is.
        over = silent.enter_context(socket.create_connection((server.address, server.port)))
        over.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert b"" == over.recv(1)

    assert b"nftrace_drops_total{" in body
    assert exporter.refused >= 32


def test_nonsense_is_answered_or_cut_off() -> None:
    """Bytes that are no request get an error, and the next request its answer."""
    with served() as server:
        for words in (
            b"\x16\x03\x01\x02\x00\n\n",
            b"GET\r\n\r\n",
            b"GET /metrics HTTP/9.9\r\n\r\n",
        ):
            with socket.create_connection((server.address, server.port), timeout=10) as client:
                client.sendall(words)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
        _, body = get(server)

    assert b"nftrace_drops_total{" in body


def test_several_scrape_at_once() -> None:
    """Each of seven has a whole answer, and no drop is counted twice."""
    answers: list[bytes] = []
    with served() as server:
        threads = [
            threading.Thread(target=lambda: answers.append(get(server)[1])) for _ in range(7)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert 7 == len(answers)
    line = b'reason="NETFILTER_DROP",expected="false"} 3\n'
    assert all(line in answer for answer in answers)


def test_by_tls_only_those_who_check_are_answered(certificates: Path) -> None:
    """With a certificate the metrics are told by TLS, and not without."""
    files = {
        "certificate": str(certificates / "server.pem"),
        "key": str(certificates / "server.key"),
    }
    with served(**files) as server:
        _, body = get(server, tls=client_of(certificates))
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            get(server)

    assert b"nftrace_drops_total{" in body


def test_only_clients_with_the_right_certificate_are_answered(certificates: Path) -> None:
    """One that shows none or a stranger's is cut off, and counted."""
    exporter = Exporter(Watched())
    files = {
        "certificate": str(certificates / "server.pem"),
        "key": str(certificates / "server.key"),
        "client_ca": str(certificates / "client.pem"),
    }
    with served(exporter, **files) as server:
        _, body = get(server, tls=client_of(certificates, "client"))
        for name in (None, "stranger"):
            with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
                get(server, tls=client_of(certificates, name))

    assert b"nftrace_drops_total{" in body
    assert exporter.refused >= 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "server.key"}, "without a certificate"),
        ({"client_ca": "client.pem"}, "without a certificate"),
        ({"certificate": "none.pem"}, "cannot be used for TLS"),
        ({"certificate": "server.pem", "key": "client.key"}, "cannot be used for TLS"),
        (
            {"certificate": "server.pem", "key": "server.key", "client_ca": "server.key"},
            "cannot be used to check clients",
        ),
    ],
)
def test_files_that_do_not_serve_are_named(
    certificates: Path, options: dict[str, str], said: str
) -> None:
    """What is wrong with a certificate is said at the start and not at the first scrape."""
    files = {name: str(certificates / file) for name, file in options.items()}

    with pytest.raises(UsageError) as raised:
        serve(Exporter(Watched()), port=0, **files)  # type: ignore[arg-type]

    assert said in raised.value.message
    assert raised.value.remedy


def test_an_address_that_cannot_be_had_is_named() -> None:
    """One that is taken, and one of another machine."""
    with served() as server:
        for address, port in ((server.address, server.port), ("192.0.2.1", 0), ("nonsense", 0)):
            with pytest.raises(UsageError, match=f"cannot be served at {address}"):
                serve(Exporter(Watched()), address, port)


def test_a_stopped_server_has_let_go_of_its_port() -> None:
    """The same port can be served again at once."""
    with served() as server:
        pass
    again = serve(Exporter(Watched()), port=server.port)
    again.stop()

    assert server.port == again.port
