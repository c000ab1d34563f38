"""
The daemon, Prometheus and Alertmanager, on the loopback of a private namespace.

All they write lies in one folder; what they say is kept there, too, to be told where one
ends by itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from tracer.demo.linux import die_with_parent
from tracer.errors import KernelRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["ALERTMANAGER", "DAEMON", "PROMETHEUS", "Services", "find_program", "wait_for"]

PROMETHEUS: Final = "127.0.0.1:9090"
ALERTMANAGER: Final = "127.0.0.1:9093"
DAEMON: Final = "127.0.0.1:10831"

_POLL_S: Final = 0.1
#: Prometheus on a busy machine takes seconds.
_ANSWER_S: Final = 20.0
#: Some seconds each; a machine that is busy with other things takes its time.
_START_S: Final = 120.0
_END_S: Final = 10.0

T = TypeVar("T")


def find_program(*names: str) -> str:
    """
    Return the path of the first of *names* that is installed.

    Errors: KernelRefusedError that says how to install it.
    """
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    remedy = "`./dev demo --watch` installs it; elsewhere: apt-get install " + names[-1]
    raise KernelRefusedError(f"{names[0]} is not installed", remedy)


def wait_for(what: str, timeout_s: float, find: Callable[[], T | None]) -> T:
    """
    Ask *find* ten times a second until it returns something, and return that.

    Errors: KernelRefusedError that names *what* where it does not come in time.
    """
    give_up_s = time.monotonic() + timeout_s
    while True:
        found = find()
        if found is not None:
            return found
        if time.monotonic() >= give_up_s:
            raise KernelRefusedError(f"{what} did not come within {timeout_s:.0f} s")
        time.sleep(_POLL_S)


class Services:
    """Processes with their files in *folder*; a context manager that ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """End them, the last one first."""
        self._stack.close()

    def start_daemon(self, namespaces: Sequence[str]) -> None:
        """Start `nftrace daemon` for *namespaces*, and wait until it answers a scrape."""
        config = self._write(
            "nftrace.toml",
            f"[watch]\nnamespaces = {json.dumps(list(namespaces))}\n"
            f"[metrics]\ntotals = {json.dumps(str(self.folder / 'totals.json'))}\n"
            "[control]\nenabled = false\n",
        )
        command = (sys.executable, "-m", "tracer.cli.main", "daemon", "--config", config)
        self._start("nftrace daemon", command)
        self.wait_for_answer("nftrace daemon", f"http://{DAEMON}/metrics", _START_S)

    def start_alertmanager(self, webhook: str) -> None:
        """Start Alertmanager, which sends each alert to *webhook* at once."""
        receiver = {"name": "webhook", "webhook_configs": [{"url": webhook}]}
        route = {
            "receiver": "webhook",
            "group_by": ["..."],
            "group_wait": "0s",
            "group_interval": "1s",
            "repeat_interval": "1h",
        }
        config = self._write(
            "alertmanager.json", json.dumps({"route": route, "receivers": [receiver]})
        )
        program = find_program("alertmanager", "prometheus-alertmanager")
        command = (
            *(program, f"--config.file={config}", f"--web.listen-address={ALERTMANAGER}"),
            # No cluster: it would look for an address of ours.
            *(f"--storage.path={self.folder / 'alertmanager'}", "--cluster.listen-address="),
        )
        self._start("alertmanager", command)
        self.wait_for_answer("alertmanager", f"http://{ALERTMANAGER}/-/ready", _START_S)

    def start_prometheus(self, rules: Path, host: str, *, scrape_s: int = 2) -> None:
        """
        Start Prometheus, which scrapes every *scrape_s* and evaluates *rules* each second.

        *host* is the label instance of what it scrapes.
        """
        scraped = {"targets": [DAEMON], "labels": {"instance": host}}
        tree = {
            "global": {"scrape_interval": f"{scrape_s}s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "nftrace", "static_configs": [scraped]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [ALERTMANAGER]}]}]},
        }
        # JSON is YAML.
        config = self._write("prometheus.json", json.dumps(tree))
        command = (
            *(find_program("prometheus"), f"--config.file={config}"),
            *(f"--storage.tsdb.path={self.folder / 'tsdb'}", "--log.level=warn"),
            f"--web.listen-address={PROMETHEUS}",
            # Told again soon where Alertmanager did not hear it; usual is a minute.
            "--rules.alert.resend-delay=5s",
        )
        self._start("prometheus", command)
        self.wait_for_answer("prometheus", f"http://{PROMETHEUS}/-/ready", _START_S)

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """
        Return Prometheus' answer now: each series with its `metric` and `value`.

        Errors: KernelRefusedError with its words where it does not take *expr*.
        """
        words = urllib.parse.urlencode({"query": expr})
        result: list[dict[str, Any]] = self._get(f"query?{words}")["result"]
        return result

    def knows_alertmanager(self) -> bool:
        """Say whether Prometheus has found the Alertmanager that it is to tell."""
        return bool(self._get("alertmanagers")["activeAlertmanagers"])

    def _get(self, path: str) -> dict[str, Any]:
        url = f"http://{PROMETHEUS}/api/v1/{path}"
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
                return data
        except urllib.error.HTTPError as exc:
            raise KernelRefusedError(f"prometheus: {exc.read().decode()}") from exc
        except OSError as exc:
            raise KernelRefusedError(f"prometheus does not answer ({exc})") from exc

    def end_daemon(self) -> None:
        """End the daemon in order; its metrics are gone then."""
        _end(self._running["nftrace daemon"])

    def signal_daemon(self, number: int) -> None:
        """Send the daemon a signal."""
        self._running["nftrace daemon"].send_signal(number)

    def wait_for_answer(self, name: str, url: str, timeout_s: float) -> None:
        """Wait until *url* answers; KernelRefusedError where its process ends instead."""

        def look() -> bool | None:
            self._demand_running(name)
            try:
                with urllib.request.urlopen(url, timeout=_ANSWER_S):  # noqa: S310 - as above
                    return True
            except OSError:
                return None

        wait_for(f"an answer of {name}", timeout_s, look)

    def _write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def _start(self, name: str, command: Sequence[str]) -> None:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, no lock is taken
        )
        self._running[name] = process
        self._stack.callback(_end, process)

    def _demand_running(self, name: str) -> None:
        status = self._running[name].poll()
        if status is None:
            return
        said = (self.folder / f"{name}.log").read_text("utf-8", "replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        raise KernelRefusedError(f"{name} ended with status {status}: {last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
