"""`nftrace check`: what this kernel and host can do, each No with its remedy."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tracer.cli.options import color_option, output_option
from tracer.cli.theme import make_console
from tracer.sources.capabilities import can_follow, probe_all
from tracer.sources.netns import entered, find_namespace
from tracer.sources.nf_log import repair

if TYPE_CHECKING:
    from rich.console import Console

    from tracer.sources.capabilities import Answer

__all__ = ["check"]

_REFUSED = 3
_STYLES = {"yes": "green", "no": "bold red", "unknown": "yellow"}


@click.command()
@click.option("--netns", metavar="NAME|PID", help="look at this network namespace")
@click.option("--repair", "put_right", is_flag=True, help="put right what a killed run left")
@output_option("text", "json")
@color_option
def check(*, netns: str | None, put_right: bool, output: str, color: str) -> int:
    """Say what this kernel and host can do; the status is 0 when follow can run."""
    console = make_console(color, file=sys.stdout)
    done = repair() if put_right else []
    if netns is None:
        answers = probe_all()
    else:
        with entered(find_namespace(netns)):
            answers = probe_all()
    ready = can_follow(answers)
    if output == "json":
        answer = {
            "schema": "nftrace.check/1",
            "can_follow": ready,
            "answers": [asdict(one) for one in answers],
            "repaired": done,
        }
        click.echo(json.dumps(answer))
    else:
        _print(console, answers, done, ready=ready)
    return 0 if ready else _REFUSED


def _print(console: Console, answers: list[Answer], done: list[str], *, ready: bool) -> None:
    for line in done:
        console.print(f"repaired: {line}")
    width = max(len(one.name) for one in answers)
    for one in answers:
        console.print(f"{one.name:<{width}}  ", end="")
        console.print(f"{one.value:<7}", style=_STYLES[one.value], end="")
        console.print(f"  {one.detail}")
        if one.value == "no" and one.remedy is not None:
            console.print(f"{'':<{width}}           → {one.remedy}")
    console.print()
    console.print("follow can run here" if ready else "follow cannot run here: see above")
