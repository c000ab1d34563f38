"""
A real `nftrace daemon` beside a test: started, waited for, scraped, ended.

    with daemon(tmp_path, "router") as watch:
        nets.send_udp("client", "10.1.0.1", 22, 7)
        watch.until("rule_named")
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from tests.kernel import nets

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Daemon", "daemon", "spawn_daemon", "write_config"]

#: Under emulation, on a busy machine, compiling alone takes most of a minute.
_START_S = 180.0
_END_S = 20.0


class Daemon:
    """The running process, and what it says."""

    def __init__(self, process: subprocess.Popen[str], config: Path, log: Path) -> None:
        self.process = process
        self.config = config
        self.socket = config.with_suffix(".sock")
        self._log = log

    def messages(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return what it has said until now, of one event or all."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        # The last one may be on its way, and one is cut where a disk is full.
        whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
        told = [json.loads(line) for line in whole]
        return [one for one in told if event in {None, one["event"]}]

    def until(
        self,
        event: str,
        of: Callable[[dict[str, Any]], bool] = bool,
        timeout_s: float = 15,
        number: int = 1,
    ) -> dict[str, Any]:
        """Wait for the *number*-th message *event* that *of* is true for, and return it."""

        def find() -> dict[str, Any] | None:
            found = [one for one in self.messages(event) if of(one)]
            if len(found) < number:
                assert self.process.poll() is None, self._log.read_text(encoding="utf-8")
                return None
            return found[number - 1]

        found = nets.wait_until(find, timeout_s, event)
        assert found is not None
        return found

    def scrape(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return every sample by (name, sorted labels)."""
        port = self.messages("metrics_served")[-1]["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def sum_of(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels; 0 for none."""
        return sum(
            value
            for (metric, has), value in self.scrape().items()
            if metric == name and labels.items() <= dict(has).items()
        )

    def reload(self, text: str) -> None:
        """Write another configuration and send SIGHUP."""
        self.config.write_text(text, encoding="utf-8")
        self.process.send_signal(signal.SIGHUP)

    def end(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.process.terminate()
        return self.process.wait(_END_S)


def write_config(folder: Path, name: str, parts: Mapping[str, Mapping[str, object]]) -> Path:
    """
    Write a configuration whose files all lie in *folder*, on a free port.

    JSON's strings, numbers, lists and booleans are TOML's as well.
    """
    base: dict[str, dict[str, object]] = {
        "watch": {},
        "metrics": {"port": 0, "totals": str(folder / f"{name}.json")},
        "log": {"directory": ""},
        "control": {"socket": str(folder / f"{name}.sock")},
        "messages": {"format": "json", "level": "debug"},
        # Another test's flood on the same machine must not hide the one packet of this one.
        "trace": {"records_per_second": 10_000_000},
    }
    for part, values in parts.items():
        base[part] = {**base.get(part, {}), **values}
    lines = []
    for part, values in base.items():
        lines.append(f"[{part}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def spawn_daemon(
    folder: Path,
    namespaces: tuple[str, ...],
    name: str = "d",
    env: Mapping[str, str] | None = None,
    within: tuple[str, ...] = (),
    **parts: Mapping[str, object],
) -> Iterator[Daemon]:
    """
    Start a daemon and do not wait for it; it is killed at the end if it still runs.

    *env* is added to its environment, *within* a command that it is started by.
    """
    watch = {"namespaces": list(namespaces), **parts.pop("watch", {})}
    config = write_config(folder, name, {**parts, "watch": watch})
    log = folder / f"{name}.log"
    command = (*within, sys.executable, "-m", "tracer.cli.main", "daemon", "--config", str(config))
    options = {"cwd": nets.ROOT, "env": {**os.environ, **(env or {})}}
    with (
        log.open("w", encoding="utf-8") as err,
        nets.spawn(str(os.getpid()), *command, stderr=err, **options) as process,
    ):
        yield Daemon(process, config, log)


@contextlib.contextmanager
def daemon(folder: Path, *namespaces: str, **options: Any) -> Iterator[Daemon]:  # noqa: ANN401
    """Start a daemon, wait until it watches, and demand that it ends well."""
    with spawn_daemon(folder, namespaces, **options) as running:
        running.until("ready", timeout_s=_START_S)
        yield running
        if running.process.poll() is None:
            assert 0 == running.end(), running.messages()
