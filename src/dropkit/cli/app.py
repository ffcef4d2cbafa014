"""The `dropkit` command: its subcommands, and how mistakes reach the user."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

# Idle threads that spin take the cores from threads that work, tenfold on a busy machine. Torch reads this on loading.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from typer.exceptions import TyperException

from dropkit import __version__
from dropkit.cli import predict, sites, study, variants
from dropkit.cli.streams import discard_output, plain_where_needed
from dropkit.errors import DropkitError

__all__ = ["app"]

_commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_commands.command("study", cls=study.Command, help=study.HELP)(study.command)
_commands.command("predict", help=predict.HELP)(predict.command)
_commands.command("variants", help=variants.HELP)(variants.command)
_commands.command("sites", help=sites.HELP)(sites.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dropkit {__version__}")
        raise typer.Exit


@_commands.callback(invoke_without_command=True)
def _dropkit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Dropout, judged: does it help on these data, at which rate, and against which alternative?"""
    if context.invoked_subcommand is None:
        print(context.get_help())


def app(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake of the user's is one line on stderr and exit code 2."""
    plain_where_needed()
    try:
        code = typer.main.get_command(_commands)(arguments, prog_name="dropkit", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        _fail(error.format_message() if hasattr(error, "format_message") else str(error), "Try: dropkit --help")
    except DropkitError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        discard_output()
        _fail(f"The output cannot be written: {error.strerror}.", "What a run has found is in its directory.")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, remedy: str = "") -> NoReturn:
    line = " ".join(f"{message} {remedy}".split())
    print(f"dropkit: {line}", file=sys.stderr)
    sys.exit(2)
