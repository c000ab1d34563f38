"""
A small machine that a real systemd runs, with nftrace's unit installed in it.

    with booted(folder) as machine:
        machine.run("systemctl", "start", "nftrace")
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = ["Machine", "booted"]

_BOOT = Path(__file__).with_name("unit_boot.sh")
_SYSTEMD = Path("/lib/systemd/systemd")
_CONFIG = "/etc/nftrace/nftrace.toml"
#: Compiling, reading rules and the like on a busy machine.
_START_S = 120.0


class Machine:
    """The machine; *pid* is its systemd as we see it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(
        self, *command: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* as root in it."""
        return nets.run(*self._within(command), stdin=stdin, check=check, timeout_s=_START_S)

    def spawn(self, *command: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Start *command* as root in it, in the background; it is killed at the block's end."""
        return nets.spawn(str(os.getpid()), *self._within(command))

    def _within(self, command: tuple[str, ...]) -> tuple[str, ...]:
        enter = ("nsenter", f"--target={self.pid}", "--all")
        path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return (*enter, "env", "-i", path, *command)

    def show(self, name: str) -> str:
        """Return what systemd says of a property of the unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", "nftrace").stdout[:-1]

    def write(self, path: str, text: str) -> None:
        """Write a file in it."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1"', "sh", path, stdin=text)

    def start(self, config: str = "") -> int:
        """Start the unit anew with *config*, and return its process, as the machine sees it."""
        self.write(_CONFIG, config)
        self.run("systemctl", "reset-failed", "nftrace", check=False)
        self.run("systemctl", "restart", "nftrace")
        assert "active" == self.show("ActiveState")
        return int(self.show("MainPID"))

    def journal(self, pid: int) -> list[dict[str, Any]]:
        """Return the entries of one process of the unit, in their order."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "-o", "json", "--unit=nftrace", f"_PID={pid}").stdout
        return [json.loads(line) for line in out.splitlines()]

    def now(self) -> str:
        """Return where the journal stands, for `waiting`."""
        return self.run("journalctl", "--lines=0", "--show-cursor").stdout.split()[-1]

    def waiting(
        self, text: str, after: str
    ) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Start what ends when the unit's journal has *text* *after* `now`; asking costs more."""
        script = (
            'exec grep -m1 -F -e "$1" < <(journalctl -fu nftrace -o cat --after-cursor="$2" 2>&1)'
        )
        return self.spawn("bash", "-c", script, "bash", text, after)

    def wait(self, text: str, after: str) -> None:
        """Wait for that."""
        with self.waiting(text, after) as process:
            assert 0 == process.wait(_START_S)

    def status_of(self, pid: int) -> dict[str, str]:
        """Return /proc/PID/status, by name."""
        lines = self.run("cat", f"/proc/{pid}/status").stdout.splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def send(self, dport: int, count: int) -> None:
        """Send *count* UDP packets by the cable from a to b."""
        program = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
            f"s.bind(('10.1.0.1', 5000)); "
            f"[s.sendto(b'x', ('10.1.0.2', {dport})) for _ in range({count})]"
        )
        self.run("ip", "netns", "exec", "a", "/usr/bin/python3", "-c", program)

    def metrics(self) -> str:
        """Return what the daemon tells Prometheus."""
        fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10831/metrics')"
        return self.run("/usr/bin/python3", "-c", f"{fetch}.read().decode())").stdout

    def packets_of(self, *texts: str) -> list[float]:
        """Return what the metrics say of the rules in b with each of *texts* in their own."""
        told = [one for one in self.metrics().splitlines() if 'netns="b"' in one]
        counts = [one for one in told if one.startswith("nftrace_rule_packets_total{")]
        sums = []
        for text in texts:
            infos = [one for one in told if one.startswith("nftrace_rule_info{") and text in one]
            rules = [re.findall(r'rule_id="\w+"', one)[0] for one in infos]
            found = [one for one in counts if any(rule in one for rule in rules)]
            sums.append(sum(float(one.rsplit(" ", 1)[1]) for one in found))
        return sums

    def lay_cable(self) -> None:
        """Make a and b, 10.1.0.1 and 10.1.0.2, with a cable between them."""
        for name in ("a", "b"):
            self.run("ip", "netns", "add", name)
        peer = ("type", "veth", "peer", "name", "b0", "netns", "b")
        self.run("ip", "-n", "a", "link", "add", "a0", *peer)
        for name, address in (("a", "10.1.0.1/24"), ("b", "10.1.0.2/24")):
            self.run("ip", "-n", name, "address", "add", address, "dev", f"{name}0")
            self.run("ip", "-n", name, "link", "set", f"{name}0", "up")


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """
    Boot it with the unit, its group and a member of that; all of it ends with the block.

    Skips where there is no systemd, no cgroup2 or no overlay.
    """
    if not _SYSTEMD.exists():
        pytest.skip(f"no systemd: {_SYSTEMD} is not there")
    for kind in ("cgroup2", "overlay"):
        if f"\t{kind}\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
            pytest.skip(f"no {kind} in /proc/filesystems")
    command = ("bash", str(_BOOT), str(folder), str(nets.ROOT), sys.prefix)
    log = folder / "boot.log"
    try:
        with (
            log.open("w", encoding="utf-8") as out,
            nets.spawn(str(os.getpid()), *command, stdout=out, stderr=out) as process,
        ):
            machine = Machine(nets.wait_until(lambda: _find_systemd(process, log), 120, "systemd"))
            is_up = ("systemctl", "is-active", "tests.target")
            nets.wait_until(
                lambda: machine.run(*is_up, check=False).returncode == 0, 60, "its target"
            )
            machine.run("groupadd", "--system", "nftrace")
            machine.run("useradd", "--no-create-home", "--groups=nftrace", "member")
            yield machine
    finally:
        nets.wait_until(lambda: _is_removed(folder), 20, "the end of the machine's processes")


def _find_systemd(process: subprocess.Popen[str], log: Path) -> int:
    assert process.poll() is None, log.read_text(encoding="utf-8")
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = listed.read_text(encoding="ascii").split()
    names = [Path(f"/proc/{one}/comm").read_text(encoding="ascii") for one in children]
    return int(children[0]) if names == ["systemd\n"] else 0


def _is_removed(folder: Path) -> bool:
    group = Path((folder / "group").read_text(encoding="utf-8").strip())
    for path in sorted((one.parent for one in group.rglob("cgroup.procs")), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    return not group.exists()
