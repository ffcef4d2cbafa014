"""`dropkit study`: the study from the command line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import category

import typer
from typer.core import TyperCommand, TyperOption

from dropkit.cli.options import in_options, number, whole
from dropkit.cli.progress import progress_shown
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.study import api
from dropkit.study.loading import data_name
from dropkit.study.methods import METHODS_WITH_A_FILE

if TYPE_CHECKING:
    from dropkit.study.result import Result

__all__ = ["HELP", "Command", "command"]

_RUNS = Path("runs")
_METHODS = ", ".join(name for name in METHODS_WITH_A_FILE if name != "none")
_OPTIONS = {"data": "DATA", "directory": "--name", "hidden": "--network"}

HELP = """Find out on real data whether dropout helps, at which rate, and against which alternative.

Trains networks without regularisation, with dropout and with weight decay, chooses each strength on some seeds and
confirms it on fresh ones, and ends in a table, a sentence of advice, and a report to open in a browser.

\b
Examples:
  dropkit study                     the embedded MNIST sample: some two minutes on two cores
  dropkit study churn               the embedded table of 7,043 customers
  dropkit study table.csv --target churned   a table of your own, CSV or Parquet
  dropkit study --seed 1 --name b   another seed, into runs/b
  dropkit study --resume runs/b     go on after Ctrl-C or a crash, to the same results
  dropkit study --json              the results as JSON, for other programs
"""


class Command(TyperCommand):
    """The command, whose help names the layers that are methods once it is asked for: their registry needs PyTorch."""

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        from dropkit.study.methods import METHODS

        layers = ", ".join(name for name, method in METHODS.items() if method.on_request)
        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "methods":
                option.help = f"What is compared with none, with commas between: {_METHODS}; or layers: {layers}."
        return super().get_help(ctx)


def command(
    data: Annotated[
        str | None,
        typer.Argument(help="mnist, churn, or a CSV or Parquet file. [default: mnist]", show_default=False),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column of the file to predict.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="How large the study is. [default: quick]", show_default=False)
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="<int>", help="Decides every split, weight, shuffle and mask. [default: 0]", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Directory in runs/. [default: the data source and the time]", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="classification or regression. [default: as the target looks]", show_default=False),
    ] = None,
    test_size: Annotated[
        str | None,
        typer.Option(
            metavar="<number>",
            help="Rows of the file to set aside: a share below 1, or a number. [default: 0.2]",
            show_default=False,
        ),
    ] = None,
    group: Annotated[str | None, typer.Option(help="A column whose equal values stay on one side of a split.")] = None,
    time: Annotated[str | None, typer.Option(help="A column of times; later rows are predicted.")] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="<widths>", help="Hidden layers, such as 512-512; or all layers.", show_default=False),
    ] = None,
    epochs: Annotated[str | None, typer.Option(metavar="<int>", help="The last epoch.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="<int>", help="Rows a step.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="<names>",
            help="What is compared with none, with commas between.",
        ),
    ] = None,
    rates: Annotated[
        str | None, typer.Option(metavar="<numbers>", help="Dropout rates to try, such as 0.2,0.5.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="<int>", help="Fresh seeds that confirm the winners, 2 or more.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="<path>", help="Go on with the run in this directory.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the advice alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, and nothing else.")] = False,
) -> None:
    """Find out on real data whether dropout helps, at which rate, and against which alternative."""
    options: dict[str, Any] = {
        "target": target,
        "task": task,
        "test_size": number("--test-size", test_size),
        "group": group,
        "time": time,
        "network": _list("--network", network, "-", int),
        "epochs": whole("--epochs", epochs),
        "batch_size": whole("--batch-size", batch_size),
        "methods": _list("--methods", methods, ",", str),
        "rates": _list("--rates", rates, ",", float),
        "seeds": whole("--seeds", seeds),
    }
    given = {name: value for name, value in options.items() if value is not None}
    chosen = whole("--seed", seed)
    name = None if name is None else name.strip()
    path = _new(data, name) if resume is None else _resumed(resume, data, budget, chosen, name, given)
    heading = f"{'Results go to' if resume is None else 'Going on with'} {path}"
    try:
        with progress_shown(heading, quiet=quiet or as_json) as progress:
            if resume is not None:
                result = api.resume(path, progress=progress)
            else:
                result = api.run(
                    "mnist" if data is None else data,
                    budget="quick" if budget is None else budget,
                    seed=chosen or 0,
                    directory=path,
                    progress=progress,
                    **given,
                )
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(in_options(str(error), _OPTIONS)) from None
    except KeyboardInterrupt:
        goes_on = f"Go on with: dropkit study --resume {path}" if path.exists() else "Nothing was written."
        typer.echo(f"Stopped. {goes_on}", err=True)
        raise typer.Exit(130) from None
    _show(result, quiet=quiet, as_json=as_json)


def _list(option: str, text: str | None, separator: str, kind: Callable[[str], Any]) -> list[Any] | None:
    """Return the parts of a text such as 512-512 or 0.2,0.5."""
    if text is None:
        return None
    try:
        return [kind(part.strip()) for part in text.split(separator)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ArgumentError(f"{option} must be {what} with {separator!r} between them, got {text!r}.") from None


def _new(data: str | None, name: str | None) -> Path:
    """Return the directory of a new run."""
    if name is None:
        return api.run_directory(data_name("mnist" if data is None else data))
    control = any(category(sign) == "Cc" for sign in name)
    if not name or control or Path(name).name != name or name in (".", ".."):
        raise ArgumentError(
            "--name must be one directory name, not blank, without slashes or control characters, "
            f"got {name!r}. It is made in {_RUNS}/."
        )
    return _RUNS / name


def _resumed(
    directory: str, data: str | None, budget: str | None, seed: int | None, name: str | None, others: Mapping[str, Any]
) -> Path:
    """Return the directory to go on with; what was given beside it must be what the run's plan says."""
    from dropkit.study.storage import read_plan

    if not directory:
        raise ArgumentError("--resume must be the directory of a run, got ''. Name one in runs/.")
    path = Path(directory)
    plan = read_plan(path)
    for option in others:
        raise ArgumentError(
            f"--{option.replace('_', '-')} is settled by the plan of {path}. Leave it out to go on, or start a new run."
        )
    origin = plan.data.get("origin") or {}
    planned = {
        "DATA": origin.get("path", plan.data["name"]),
        "--budget": plan.budget.name,
        "--seed": plan.seed,
        "--name": path.name,
    }
    if data is not None and origin:
        data = str(Path(data).resolve())
    given = {"DATA": data, "--budget": budget, "--seed": seed, "--name": name}
    for option, value in given.items():
        if value is not None and value != planned[option]:
            raise ArgumentError(
                f"{option} {value!r} differs from {planned[option]!r}, with which {path} began. "
                "Leave it out to go on, or start a new run."
            )
    return path


def _show(result: "Result", *, quiet: bool, as_json: bool) -> None:
    if as_json:
        from dropkit.study.output import as_json as to_data

        typer.echo(json.dumps({"directory": str(result.directory), **to_data(result.findings)}, ensure_ascii=False))
        return
    if quiet:
        typer.echo(result.verdict.sentence)
        return
    from rich.console import Console
    from rich.text import Text

    from dropkit.study.statements import statement_on_test_rows
    from dropkit.study.table import notes, rich_table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(rich_table(result.findings, console.width))
    console.print(Text(" ".join(notes(result.findings, console.width)), style="dim"))
    for caution in result.cautions:
        console.print(Text(f"\nCaution: {caution}", style="yellow"))
    console.print(Text(f"\n{statement_on_test_rows(result.findings)}", style="dim"))
    console.print(Text(f"\n{result.verdict.sentence}", style="bold"))
    console.print(f"\nReport: {result.report}", soft_wrap=True)
