"""The demo's network: the killing rule is named with nobody having asked for the flow."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest
from rich.console import Console

from bpf.layout import Mode
from tests.kernel import nets
from tracer.cli.drop_watch import Choice, DropWatch
from tracer.cli.run import Interrupts
from tracer.core.filters import Filter
from tracer.demo.lab import Backend, Lab
from tracer.sources.drops import DropSource
from tracer.sources.netns import all_namespaces, find_namespace

_CHAIN = "FIREWALL_172.17.21.105"
_RULE = ("vr2", "prerouting", "mangle", _CHAIN, 5, True)


def _place(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("netns", "hook", "table", "chain", "rule", "certain"))


@pytest.mark.parametrize("backend", Backend)
def test_the_rule_is_named_and_its_packets_counted(
    backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    """One attempt is three SYNs: vr2's only row is mangle, the chain, rule 5, three packets."""
    with Lab(backend) as lab, contextlib.closing(DropSource(all_namespaces())) as source:
        source.open()
        source.set_mode(Mode.RECORD)
        lab.attempt()
        choice = Choice(Filter(), frozenset({find_namespace("vr2").inode}), None, "total")
        words = {"once": True, "interval": 0.1, "timeout": None, "output": "json"}
        with Interrupts() as interrupts:
            status = DropWatch(source, choice, words).run(interrupts, Console())
        (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert (0, _RULE, 3) == (status, _place(row), row["packets"])
    # In the words of iptables, or of nft.
    assert "drop" in row["text"].lower()
    assert ("183.62.15.118", "172.17.21.105:22") == (row["top_source"], row["top_destination"])


def test_the_command_names_it_for_all_namespaces() -> None:
    """`nftrace drops --once --netns all`, and nothing else said, tells it in words."""
    command = (sys.executable, "-m", "tracer.cli.main", "drops", "--once", "--netns", "all")
    with Lab(Backend.LEGACY) as lab, nets.spawn("vr1", *command, cwd=nets.ROOT) as process:
        while process.poll() is None:
            lab.attempt()
        out, err = process.communicate()

    told = " ".join(out.split())
    assert (0, "") == (process.returncode, err)
    assert f"vr2 prerouting › mangle › {_CHAIN} rule 5 -A {_CHAIN} -j DROP" in told  # noqa: RUF001
