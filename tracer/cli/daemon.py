"""`nftrace daemon`: the watch that runs all year."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tracer.daemon.settings import Settings
from tracer.daemon.settings_file import read_settings, render_settings
from tracer.errors import KernelRefusedError

__all__ = ["daemon"]


@click.command()
@click.option("--config", metavar="FILE", help="the configuration, TOML (default: all defaults)")
@click.option(
    "--print-config", is_flag=True, help="print every setting with its reason, as TOML, and end"
)
@click.option("--check-config", is_flag=True, help="read the configuration, and end")
@click.option(
    "--learn",
    type=click.FloatRange(0.1, 86_400),
    metavar="S",
    help="watch for S seconds, print what is dropped as [[expected]] entries, and end",
)
def daemon(
    *, config: str | None, print_config: bool, check_config: bool, learn: float | None
) -> int:
    """Watch where packets die, name the rules, serve the numbers; SIGHUP reloads."""
    path = None if config is None else Path(config)
    if print_config or check_config:
        settings = Settings() if path is None else read_settings(path)
        if print_config:
            click.echo(render_settings(settings), nl=False)
        return 0
    if os.geteuid() != 0:
        message = "watching drops needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN)"
        raise KernelRefusedError(message, "run it by its unit, or with sudo")
    # numpy's library of linear algebra, which is not used, would start threads that keep
    # the capabilities that this one gives back.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # numpy and the sources take a while to import: not for a look at the settings.
    if learn is not None:
        return _learn(Settings() if path is None else read_settings(path), learn)
    from tracer.daemon.run import Daemon  # noqa: PLC0415

    return Daemon(path).run()


def _learn(settings: Settings, seconds: float) -> int:
    from tracer.daemon.learning import learn  # noqa: PLC0415
    from tracer.daemon.messages import Messages  # noqa: PLC0415

    click.echo(learn(settings, Messages(settings.messages), seconds), nl=False)
    return 0
