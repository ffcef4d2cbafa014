"""`dropkit predict`: new rows through the model that a study recommends."""

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from dropkit.cli.options import in_options, number, whole
from dropkit.cli.streams import discard_output, print_data
from dropkit.errors import ArgumentError, ArgumentTypeError, RunError

__all__ = ["HELP", "command"]

_SLASHES = tuple(filter(None, (os.sep, os.altsep)))
_ARCHIVES = (".gz", ".bz2", ".xz", ".zst", ".zip")
_OTHER_FORMATS = (*_ARCHIVES, ".parquet", ".pq", ".arrow", ".feather", ".json", ".jsonl", ".xlsx", ".xls", ".ods")

HELP = """Predict new rows with the model that a study recommends, or with the networks of another of its methods.

Writes CSV in UTF-8: the prediction, and for classes the probability of each. With --samples, the networks of the model
drop as they did in training, that many times each, and every value is the mean of these samples. Behind the values
come the ends of the interval that holds the --level of the samples in the middle, and the column "unsure":

\b
  classes   "yes" where the predicted class is the likeliest in less than the --level of the samples
  numbers   "yes" where half of the interval is wider than the --tolerance

It says that the samples disagree. They may agree and be wrong, also on rows unlike the study's, which are counted on
standard error; only where nothing is known of a row is it "yes" whatever they say. The level is a share of the samples
and not of the targets: how many of these the intervals held on the study's test rows, or how many classes were right
where samples agreed, is told on standard error too.

\b
Examples:
  dropkit predict runs/churn new.csv                    to the screen
  dropkit predict runs/churn new.csv --output out.csv   to a file
  dropkit predict runs/churn new.csv --samples 100      with intervals, and which rows are unsure
  dropkit predict runs/churn new.csv --samples 100 --method dropout   whatever the study recommends
"""


def command(
    run: Annotated[Path, typer.Argument(help="The directory of a study that has ended.")],
    data: Annotated[Path, typer.Argument(help="A CSV or Parquet file with the columns of the study's table.")],
    output: Annotated[
        str | None,
        typer.Option(
            metavar="<file>",
            help="The file to write, with tabs between its fields if its name ends in .tsv; - is the screen.",
            show_default="the screen",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="<name>",
            help="A method of the study whose networks predict, such as dropout. [default: as advised]",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(metavar="<int>", help="Passes with dropout over each network, 2 or more.", show_default=False),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="<number>", help="Share of the samples in an interval. [default: 0.9]", show_default=False
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="<number>",
            help="Of numbers, the widest half of a sure interval. [default: the RMSE on the study's test rows]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(metavar="<int>", help="What the samples drop. [default: 0]", show_default=False),
    ] = None,
) -> None:
    """Predict new rows with the model that a study recommends."""
    from dropkit.study.prediction import predict

    path = None if output in (None, "-") else _checked(str(output), data)
    count = whole("--samples", samples)
    options = {
        "level": number("--level", level),
        "tolerance": number("--tolerance", tolerance),
        "seed": whole("--seed", seed),
    }
    given = {name: value for name, value in options.items() if value is not None}
    if given and count is None:
        raise ArgumentError(f"--{next(iter(given))} is of samples: give --samples too, such as --samples 100.")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            found = predict(run, data, method=method, samples=count, **given)  # type: ignore[arg-type]  # each has its own
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(in_options(str(error))) from None
    warned = [str(one.message) for one in told if one.category is UserWarning]
    for message in dict.fromkeys((*warned, *found.notes)):
        typer.echo(f"dropkit: {' '.join(message.split())}", err=True)
    if path is None:
        _print(found.to_csv())
    else:
        _write(path, found.to_csv("\t" if path.suffix.lower() == ".tsv" else ","))


def _checked(output: str, data: Path) -> Path:
    """Return the file to write, if that can be done, before any work; what is there stays as it is."""
    from dropkit.study._atomic import check_writable

    path = Path(output)
    if not output.strip():
        raise ArgumentError(f"--output must be a file, or - for the screen, got {output!r}.")
    if output.endswith(_SLASHES):
        raise ArgumentError(f"--output {output} names a folder. Add the name of a file to it.")
    if path.suffix.lower() in _OTHER_FORMATS:
        raise ArgumentError(f"--output {output}: CSV is written. Name it .csv, or .tsv for tabs between the fields.")
    if _is_same(path, data):
        raise ArgumentError(f"--output {output} is the data themselves, which would be lost. Choose another file.")
    try:
        check_writable(path)
    except OSError as error:
        raise _cannot_be_written(path, error) from None
    return path


def _is_same(path: Path, data: Path) -> bool:
    """Return whether two paths are one file; what is wrong with either is for those to tell who use it."""
    try:
        return path.samefile(data)
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    from dropkit.study._atomic import write_atomic

    try:
        write_atomic(path, text)
    except BrokenPipeError:  # who reads the pipe has had enough
        raise
    except OSError as error:
        raise _cannot_be_written(path, error) from None


def _print(text: str) -> None:
    try:
        print_data(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise RunError(f"The predictions cannot be written: {error.strerror}. Make room, or write elsewhere.") from None


def _cannot_be_written(path: Path, error: OSError) -> RunError:
    return RunError(f"--output {path} cannot be written: {error.strerror or error}. Choose another place.")
