"""`nftrace drops`: where traffic dies, worst first."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Any

import click

from tracer.cli.drop_watch import Choice, DropWatch
from tracer.cli.options import Seconds, color_option, namespaces_of, output_option, read_filter
from tracer.cli.remote import ask_daemon, daemon_option, wants_daemon
from tracer.cli.run import Interrupts
from tracer.cli.theme import make_console
from tracer.core.drops import Rung
from tracer.errors import KernelRefusedError
from tracer.sources.drops import CALIBRATE_S, RULE_RATE, DropSource

__all__ = ["drops"]


@click.command()
@click.option("--src", metavar="ADDR", help="only packets from this address or prefix")
@click.option("--dst", metavar="ADDR", help="only packets to this address or prefix")
@click.option("--sport", metavar="PORT", help="only packets from this port")
@click.option("--dport", metavar="PORT", help="only packets to this port")
@click.option("--proto", metavar="NAME", help="only tcp, udp, icmp, … or a number")
@click.option(
    "--netns", metavar="NAME|PID|all", multiple=True, help="these namespaces (default: this one)"
)
@click.option("--reason", metavar="NAME", help="only this kernel reason, as NO_SOCKET")
@click.option("--table", metavar="NAME", help="only drops in this table")
@click.option("--chain", metavar="NAME", help="… in this chain")
@click.option("--hook", metavar="NAME", help="… at this hook")
@click.option("--once", is_flag=True, help="watch for one interval, print once, end")
@click.option(
    "--interval",
    type=Seconds(0.1),
    default=2.0,
    metavar="S",
    help="seconds between two tables (default: 2)",
)
@click.option("--timeout", type=Seconds(0.1), metavar="S", help="end after S seconds")
@click.option("--sort", type=click.Choice(["rate", "total"]), default="rate", help="worst by what")
@click.option(
    "--rule-rate",
    type=click.IntRange(0),
    metavar="N",
    help="look for the legacy rule at every drop up to N a second on each CPU, "
    f"then in a sample (default: {RULE_RATE})",
)
@click.option(
    "--rung", type=click.Choice([r.value for r in Rung]), help="force how drops are named"
)
@click.option(
    "--calibrate",
    type=Seconds(0.1),
    default=CALIBRATE_S,
    metavar="S",
    help=f"prove with S seconds of a processor how drops are named (default: {CALIBRATE_S:g})",
)
@output_option("text", "json")
@color_option
@daemon_option
def drops(**words: Any) -> int:  # noqa: ANN401 - click hands over what its options say
    """Show where packets die on this machine, live: rule, policy, or the kernel's reason."""
    if wants_daemon("drops", words):
        return ask_daemon("drops", words, "seeing drops needs root")
    if os.geteuid() != 0:
        message = "seeing drops needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN)"
        raise KernelRefusedError(message, "run it with sudo")
    nowhere = dict.fromkeys(("in_device", "out_device", "verdict"))
    wanted = read_filter({**words, **nowhere})
    namespaces = namespaces_of(words["netns"])
    everywhere = "all" in words["netns"]
    rung = Rung(words["rung"]) if words["rung"] else None
    source = DropSource(namespaces, rung, words["calibrate"])
    if words["rule_rate"] is not None:
        source.set_rule_rate(words["rule_rate"])
    source.open()
    with closing(source), Interrupts() as interrupts:
        inodes = None if everywhere else frozenset(one.inode for one in namespaces)
        choice = Choice(wanted, inodes, words["reason"], words["sort"])
        console = make_console(words["color"], file=sys.stdout)
        return DropWatch(source, choice, words).run(interrupts, console)
