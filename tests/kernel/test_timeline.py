"""The day after, from the log alone: what began it, which rule, who brought it, is it over."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.daemon_helper import daemon
from tracer.demo.lab import Backend, Lab

if TYPE_CHECKING:
    from pathlib import Path


_CHAIN = "FIREWALL_172.17.21.105"
_TOOLS = {
    Backend.LEGACY: "iptables-legacy-restore",
    Backend.NFT: "iptables-nft-restore",
    Backend.NFTABLES: "nft -f",
}
#: The rules as they were before the customer's chain.
_BEFORE = re.compile(rf"^.*{re.escape(_CHAIN)}.*\n", re.MULTILINE)


def _rules(backend: Backend, name: str = "vr2") -> str:
    suffix = "nft" if backend is Backend.NFTABLES else "rules"
    return (resources.files("tracer.demo") / "rules" / f"{name}.{suffix}").read_text("utf-8")


def _before(backend: Backend) -> str:
    """Return vr2's rules without the chain and what leads there."""
    text = _rules(backend)
    if backend is Backend.NFTABLES:
        text = re.sub(rf"\tchain {re.escape(_CHAIN)} \{{.*?\n\t\}}\n", "", text, flags=re.DOTALL)
    return _BEFORE.sub("", text)


def _script(folder: Path, name: str, command: str, rules: str) -> str:
    (folder / f"{name}.txt").write_text(rules, encoding="utf-8")
    script = folder / f"{name}.sh"
    script.write_text(f"{command} {folder / name}.txt\nexit $?\n", encoding="utf-8")
    return str(script)


def _timeline(folder: Path, *args: str) -> str:
    command = (sys.executable, "-m", "tracer.cli.main", "timeline", "--log", str(folder))
    return nets.run(*command, *args).stdout


@pytest.mark.parametrize("backend", Backend)
def test_the_first_ten_lines_hold_the_answer(backend: Backend, tmp_path: Path) -> None:
    """
    Began at, because of which chain by whom (with its diff), how many of whom, over since when.

    Two unrelated changes stand between the true one and the first drop; it is named first.
    """
    log = tmp_path / "log"
    tool = _TOOLS[backend]
    install = _script(tmp_path, "bind-address", tool, _rules(backend))
    with Lab(backend) as lab:
        nets.ip_netns_exec("vr2", "bash", _script(tmp_path, "early", tool, _before(backend)))
        assert lab.attempt().error is None
        options = {"log": {"directory": str(log), "group": "root"}}
        with daemon(tmp_path, "vr2", **options) as watch:
            watch.until("rules_read", timeout_s=30)
            watch.until("processes_known", timeout_s=60)
            nets.ip_netns_exec("vr2", "bash", install)
            nets.ip_batch("vr2", ["route add 10.77.0.0/16 via 10.1.1.69"])
            nets.ip_batch("vr2", ["link add v8 type veth peer name v9"])
            assert lab.attempt().greeting is None
            lab.fix()
            assert lab.attempt().error is None
        shutil.copytree(log, tmp_path / "copy")
        text = _timeline(tmp_path / "copy", "--dst", "172.17.21.105", "--dport", "22")
        told = json.loads(_timeline(log, "--dst", "172.17.21.105", "--dport", "22", "-o", "json"))

    head = "\n".join(text.splitlines()[:10])
    assert "3 SYNs of 1 client died in vr2, mangle PREROUTING" in head, text
    assert f"{_CHAIN}, rule 5" in head
    assert re.search(r"^  began +\d\d:\d\d:\d\d", head, re.MULTILINE)
    because = rf"because +chain {re.escape(_CHAIN)} was installed at \d\d:\d\d:\d\d"
    assert re.search(because, head), text
    assert install in head, text
    assert re.search(r"^ +\+ .*(-j DROP|counter drop)$", head, re.MULTILINE)
    assert re.search(r"^ +over since \d\d:\d\d:\d\d", head, re.MULTILINE)
    (killer,) = told["killers"]
    assert (3, 3, 1, 5) == tuple(killer[one] for one in ("packets", "syns", "clients", "rule"))
    assert killer["cause"]["brought"]
    assert {"route", "link"} <= {one["what"] for one in killer["others"]}
