"""Writes `docs/variants`: a page and pictures for each row of the registry, and a table of them all.

Everything on a page comes from the row, the docstring and the layer itself: a new row needs no line here. `make docs`
runs it, and a test compares what it would write with what is there.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

import dropkit.nn  # fills the registry  # noqa: F401
from dropkit.nn.variants import FAMILIES, VARIANTS, Variant, ordered
from dropkit.study.methods.variants import methods

__all__ = ["FOLDER", "KEY", "NEAR", "Picture", "pages", "pictures"]

FOLDER = Path(__file__).parents[1] / "docs" / "variants"
KEY = 2014
NEAR = 1 / 3  # how far, over the rate, the share that a picture drops may be from the rate
_WIDE = (8, 32)  # of a picture of a layer that takes any shape
_TRIES = 200
_CELL, _GAP, _WIDTH, _MOST = 12, 10, 640, 48  # pixels, and panels
_ABOVE = ("use", "typical rates")  # of the table
_NOTE = "<!-- Written by `make docs` from the registry and the docstring. -->"
_INTRODUCTION = """# Variants

Every kind of dropout that `dropkit.nn` has, from the registry that `dropkit variants` prints. In all of them `p` is the
probability of dropping. [Where to put dropout, and how much](../placement.md) says which to begin with.
"""


class Picture(NamedTuple):
    """What a picture shows: bools or factors, what they are, and what their colours mean."""

    cells: Tensor
    what: str
    colours: str


def pages(rows: Iterable[Variant] = tuple(VARIANTS.values())) -> dict[str, str]:
    """Return the text of every file, by its name in the folder."""
    rows = ordered(rows)
    found = {"index.md": _index(rows)}
    for row in rows:
        drawn = pictures(row)
        found[f"{row.name}.md"] = _page(row, drawn)
        found |= {name: _svg(each.cells, row.name) for name, each in drawn.items()}
    return found


def _index(rows: Iterable[Variant]) -> str:
    parts = [_NOTE, _INTRODUCTION]
    for family, title in FAMILIES.items():
        own = [_line(row) for row in rows if row.family == family]
        if own:
            heading = [f"## {title}", "", "| class | where | rates | paper |", "|---|---|---|---|"]
            parts.append("\n".join([*heading, *own, ""]))
    return "\n".join(parts)


def _line(row: Variant) -> str:
    cells = (f"[`{row.name}`]({row.name}.md)", row.use, row.facts.get("typical rates", "-"), row.citation)
    return f"| {' | '.join(map(_cell, cells))} |"


def _page(row: Variant, drawn: Mapping[str, Picture]) -> str:
    names = " or ".join(f"`dropkit.nn.{name}`" for name in (row.name, *row.aliases))
    parts = [_NOTE, f"# {row.name}", f"{row.title[:1].upper()}{row.title[1:]}: {names}.", *row.description]
    rates = f" Typical rates: {row.facts['typical rates']}." if row.rates else ""
    parts += [f"```math\n{row.formula}\n```", f"**Where to use it.** {row.use}{rates}"]
    for name, each in drawn.items():
        parts += [f"![{_caption(row, each)}]({name})", f"*{_caption(row, each)}*"]
    lines = [f"| {heading} | {_cell(text)} |" for heading, text in row.facts.items() if heading not in _ABOVE]
    parts += ["\n".join(["| | |", "|---|---|", *lines]), *_elsewhere(row)]
    return "\n\n".join(parts) + "\n"


def _elsewhere(row: Variant) -> list[str]:
    found = [f"Arguments, errors and examples: [`dropkit.nn.{row.name}`](../api/nn.md#dropkit.nn.{row.name})."]
    if row.function is not None:
        name, file = row.function.__name__, row.function.__module__
        place = f"{file}.{name}" if file.endswith(f".{name}") else f"dropkit.functional.{name}"  # of its entry
        found.append(f"As a function: [`dropkit.functional.{name}`](../api/functional.md#{place}).")
    found += [f"A study compares it: `dropkit study --methods {name}`." for name in methods({row.name: row})]
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _caption(row: Variant, drawn: Picture) -> str:
    sizes = drawn.cells.shape
    if len(row.axes) == len(sizes):
        elements = " x ".join(f"{size} {axis}" for size, axis in zip(sizes, row.axes, strict=True))
    else:
        elements = f"{' x '.join(map(str, sizes))} elements"
    rate = f" at p = {row.usual:g}" if row.rates else ""
    return f"{drawn.what}{rate}, {elements}: {drawn.colours}."


def pictures(row: Variant) -> dict[str, Picture]:
    """Return what a row's pictures show, by file: its masks, or else factors of its output.

    They are those of the first key from `KEY` on at which every mask drops nearly the share that it drops on average:
    of few draws, most keys show something else.
    """
    for key in range(KEY, KEY + _TRIES):
        drawn = _draw(row, key)
        if all(_is_typical(row, each) for each in drawn):
            break
    else:
        raise ValueError(f"{row.name}: no picture of its size drops about {row.usual}. Let `shown` be larger.")
    files = [f"{row.name}.svg", *(f"{row.name}-{number}.svg" for number in range(2, len(drawn) + 1))]
    return dict(zip(files, drawn, strict=True))


def _is_typical(row: Variant, drawn: Picture) -> bool:
    dropped = 1 - drawn.cells.double().mean()
    return drawn.cells.dtype != torch.bool or abs(float(dropped) / row.rates[0] - 1) <= NEAR


def _draw(row: Variant, key: int) -> list[Picture]:
    torch.manual_seed(0)  # for layers with weights
    layer = (row.shown or row.build)(row.usual)
    for name, parameter in layer.named_parameters():
        if name.endswith(("weight", "bias")):
            torch.nn.init.constant_(parameter, name.endswith("weight"))
    shapes = row.shown_inputs or ((_WIDE,) * len(row.inputs) if row.takes_any_shape else row.inputs)
    inputs = [torch.ones(shape, dtype=row.dtype) for shape in shapes]
    arguments = inspect.signature(layer.forward).parameters
    keys = {name: key for name, each in arguments.items() if each.kind is each.KEYWORD_ONLY and name.endswith("key")}
    asked = {name: True for name in arguments if name.startswith("return_") and "mask" in name}
    with torch.no_grad():
        found = layer(*inputs, **keys, **asked)
        if not asked:
            factors = found / layer.eval()(*inputs)  # which is far from 0, for the weights are 1
            return [Picture(factors, "What its output is multiplied by", "the darker, the larger")]
    masks = found[-1] if isinstance(found[-1], Mapping) else {"": found[-1]}
    return [_mask(row, layer, mask, name, inputs[0].shape) for name, mask in masks.items()]


def _mask(row: Variant, layer: Module, mask: Tensor, name: str, shape: Sequence[int]) -> Picture:
    """Return the picture of a mask, at the size of what shares it."""
    if isinstance(layer, torch.nn.Embedding):
        mask = mask.unsqueeze(-1).expand(*mask.shape, layer.embedding_dim)
    elif mask.dim() == len(shape):
        mask = mask.expand([all_of if own == 1 else own for own, all_of in zip(mask.shape, shape, strict=True)])
    colours = "dark is kept, light is dropped"
    if row.dropped == "old state" or name.startswith("zoneout"):
        colours = "dark (True in the mask) takes the new state, light is left at the old one"
    return Picture(mask, f"Its mask `{name}`" if name else "Its mask", colours)


def _svg(drawn: Tensor, name: str) -> str:
    """Draw the last two axes as panels, one for each index of the others."""
    columns = drawn.shape[-1]
    grids = drawn.reshape(-1, drawn.shape[-2] if drawn.dim() > 1 else 1, columns)[:_MOST]
    count, height, width = len(grids), grids.shape[1] * _CELL, columns * _CELL
    fit = max(1, (_WIDTH + _GAP) // (width + _GAP))
    across = min(fit, drawn.shape[-3] if drawn.dim() > 2 else 1)
    whole = (across * (width + _GAP) - _GAP, -(-count // across) * (height + _GAP) - _GAP)
    size = f'viewBox="0 0 {whole[0]} {whole[1]}" width="{whole[0]}" height="{whole[1]}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<title>{name}</title>"]
    for number, grid in enumerate(grids):
        x, y = number % across * (width + _GAP), number // across * (height + _GAP)
        parts.append(f'<g transform="translate({x} {y})">')
        parts.append(f'<rect width="{width}" height="{height}" fill="#dfe3ee"/>')
        parts += [f'<path fill="#2f4b8f" fill-opacity="{opacity:g}" d="{path}"/>' for opacity, path in _paths(grid)]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _paths(grid: Tensor) -> list[tuple[float, str]]:
    """Return a path of cells for each level of darkness; factors from 0 to 2.5 have ten."""
    tenths = grid.int() * 10 if grid.dtype == torch.bool else (grid * 4).round().clamp(0, 10).int()
    found = []
    for level in sorted(set(tenths.flatten().tolist()) - {0}):
        cells = (tenths == level).nonzero().tolist()
        path = "".join(f"M{column * _CELL} {row * _CELL}h{_CELL - 1}v{_CELL - 1}h{1 - _CELL}z" for row, column in cells)
        found.append((level / 10, path))
    return found


def main() -> None:
    """Write the folder anew."""
    FOLDER.mkdir(exist_ok=True)
    found = pages()
    for path in FOLDER.iterdir():
        if path.name not in found:
            path.unlink()
    for name, text in found.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
