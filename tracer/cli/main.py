"""The command `nftrace` and what all its verbs share: errors become one line and a status."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from tracer import __version__
from tracer.errors import NftraceError, OutputError

__all__ = ["cli", "main"]

_USAGE = 2
_INTERRUPTED = 130
#: Each is the command of that name in the module of that name.
_COMMANDS = ("drops", "follow", "daemon", "timeline", "blame", "show", "export", "check", "demo")


class _Commands(click.Group):
    """Imports the one command that is asked for: following must not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"tracer.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nftrace")
@click.option("--debug", is_flag=True, hidden=True, help="let tracebacks of errors through")
@click.pass_context
def cli(context: click.Context, *, debug: bool) -> None:
    """Tell where a packet died, which rule killed it, and since when."""
    # The group's context is gone when its command has raised: the run's own keeps it.
    context.obj["debug"] = debug


def main() -> None:
    """
    Run the command line and exit.

    Status: 0 seen or done, 1 nothing seen, 2 wrong usage, 3 the kernel or the permissions
    refuse, 4 the output cannot be written, 130 interrupted. A defect of our own is 1, said
    in one line; with `--debug` its traceback is shown.
    """
    asked: dict[str, bool] = {}
    if sys.stdout is None:
        click.echo("nftrace: there is no output to write to: open it, as with > FILE", err=True)
        sys.exit(OutputError.exit_status)
    try:
        status = _run(asked)
    except Exception as exc:
        if asked.get("debug", False):
            raise
        said = " ".join(str(exc).split()) or "no more is known"
        message = f"internal error: {type(exc).__name__}: {said}"
        click.echo(f"nftrace: {message}: run with `nftrace --debug` and report it", err=True)
        status = NftraceError.exit_status
    sys.exit(status)


def _run(asked: dict[str, bool]) -> int:  # noqa: PLR0911 - each way that a run can end
    try:
        status = _invoke(asked)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return _INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return _USAGE
    except click.ClickException as exc:
        hint = "see `nftrace --help`"
        if isinstance(exc, click.UsageError) and exc.ctx is not None:
            hint = f"see `{exc.ctx.command_path} --help`"
        click.echo(f"nftrace: {exc.format_message().rstrip('.')}: {hint}", err=True)
        return _USAGE
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except NftraceError as exc:
        click.echo(f"nftrace: {exc}", err=True)
        return exc.exit_status
    except OSError as exc:
        if exc.filename is not None:
            raise
        _silence_stdout()
        message = f"the output cannot be written ({exc.strerror})"
        click.echo(f"nftrace: {message}: make room, or write elsewhere", err=True)
        return OutputError.exit_status
    return int(status or 0)


def _invoke(asked: dict[str, bool]) -> int | None:
    # Not cli.main(): it ends with status 1 where the reader of our output went away.
    try:
        with cli.make_context("nftrace", sys.argv[1:], obj=asked) as context:
            status: int | None = cli.invoke(context)
    except (EOFError, KeyboardInterrupt) as exc:
        raise click.exceptions.Abort from exc
    except click.exceptions.Exit as exc:
        return exc.exit_code
    return status


def _silence_stdout() -> None:
    # What is left in the buffer must not fail again when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
