"""`dropkit predict`: new rows through the model that a study recommends."""

from pathlib import Path
from typing import Annotated

import typer

from dropkit.errors import RunError

__all__ = ["HELP", "command"]

HELP = """Predict new rows with the model that a study recommends.

Writes CSV: the prediction, and for classes the probability of each.

\b
Examples:
  dropkit predict runs/churn new.csv                    to the screen
  dropkit predict runs/churn new.csv --output out.csv   to a file
"""


def command(
    run: Annotated[Path, typer.Argument(help="The directory of a study that has ended.")],
    data: Annotated[Path, typer.Argument(help="A CSV or Parquet file with the columns of the study's table.")],
    output: Annotated[Path | None, typer.Option(help="The file to write.", show_default="the screen")] = None,
) -> None:
    """Predict new rows with the model that a study recommends."""
    from dropkit.study._atomic import write_atomic
    from dropkit.study.prediction import predict

    text = predict(run, data).to_csv()
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomic(output, text)
    except OSError as error:
        raise RunError(f"{output} cannot be written: {error.strerror or error}. Choose another place.") from None
