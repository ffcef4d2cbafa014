"""`dropkit variants`: the registry of the layers, as a table or one in full."""

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from dropkit.cli.formulas import plain
from dropkit.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import Console

    from dropkit.nn.variants import Variant

__all__ = ["HELP", "command"]

_PIPED = 120  # columns where there is no terminal
_WIDE = 100  # columns of a terminal that has room for the table

HELP = """List the kinds of dropout that dropkit has, or show one in full.

\b
Examples:
  dropkit variants              what each drops, the paper, where it is meant to be used, typical rates
  dropkit variants Dropout      one of them, with its formula
"""


def command(
    name: Annotated[str | None, typer.Argument(help="A class of dropkit.nn.", show_default="all")] = None,
) -> None:
    """List the kinds of dropout that dropkit has, or show one in full."""
    from rich.console import Console

    import dropkit.nn  # fills the registry  # noqa: F401
    from dropkit.nn.variants import VARIANTS, ordered

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPED
    rows = ordered(VARIANTS.values())
    if name is not None:
        _show_one(console, _named(name, rows))
    elif console.width < _WIDE:
        _show_list(console, rows)
    else:
        _show_table(console, rows)


def _named(name: str, rows: Iterable["Variant"]) -> "Variant":
    """Return the row of a name or alias, whatever its case, or raise with the nearest."""
    known = {each.lower(): (each, row) for row in rows for each in (row.name, *row.aliases)}
    if name.lower() in known:
        return known[name.lower()][1]
    near = [known[each][0] for each in get_close_matches(name.lower(), known, n=3)]
    advice = f"Did you mean {' or '.join(near)}?" if near else "`dropkit variants` lists them."
    raise ArgumentError(f"There is no variant {name!r}. {advice}")


def _show_table(console: "Console", rows: Iterable["Variant"]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    for heading, widest in {"acts on": 12, "share a draw": 22, "where": None, "rates": 9, "paper": 20}.items():
        table.add_column(heading, max_width=widest)
    family = None
    for row in rows:
        if family not in (None, row.family):
            table.add_section()
        family = row.family
        table.add_row(row.name, row.acts_on, row.shared, row.use, row.facts.get("typical rates", "-"), row.citation)
    console.print(table)


def _show_list(console: "Console", rows: Iterable["Variant"]) -> None:
    """Print a block a row: a narrow terminal has no room for columns."""
    from rich.padding import Padding
    from rich.text import Text

    for row in rows:
        console.print(Text(row.name, style="bold"))
        rates = [f"Rates: {row.facts['typical rates']}"] if row.rates else []
        for line in (f"{row.acts_on}; share a draw: {row.shared}", row.use, *rates, row.citation):
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _show_one(console: "Console", row: "Variant") -> None:
    from rich.table import Table
    from rich.text import Text

    names = " = ".join(f"dropkit.nn.{name}" for name in (row.name, *row.aliases))
    console.print(Text(names, style="bold"))
    console.print(Text(f"{row.summary}\n\n{plain(row.formula)}\n"))
    facts = row.facts | {"call": f"{row.name}{_arguments(row)}"}
    if row.function is not None:
        facts["function"] = f"{row.function.__module__.rpartition('.')[0]}.{row.function.__name__}"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, text in facts.items():
        table.add_row(heading, Text(text))
    console.print(table)


def _arguments(row: "Variant") -> str:
    """Return the arguments of the class, without types."""
    signature = inspect.signature(row.layer)
    plain = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))
