"""The pages of the variants are what the registry and the docstrings say today, and their pictures are the masks."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from dropkit import random
from dropkit.nn.variants import VARIANTS
from dropkit.study.methods.variants import methods
from tools.variant_pages import FOLDER, KEY, NEAR, pages, pictures

PAGES = pages()
MASKS = {
    file: (row, drawn)
    for row in VARIANTS.values()
    for file, drawn in pictures(row).items()
    if drawn.cells.dtype == torch.bool
}
# Axes along which a mask is the same everywhere.
SHARED = {"Dropout1d": {2}, "Dropout2d": {2, 3}, "Dropout3d": {2, 3, 4}, "FeatureAlphaDropout": {2, 3}}
SHARED |= {"LockedDropout": {1}, "WordDropout": {2}, "EmbeddingDropout": {2}, "DropPath": {1, 2}}
SHARED |= {name: {1} for name in ("LSTM", "LSTM-2", "LSTM-6", "GRU", "GRU-2", "GRU-5")}
STALE = "The registry or a docstring changed: `make docs` writes the pages anew, which belong to the change."


def test_what_is_there_is_what_would_be_written() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES), STALE
    for name, text in PAGES.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: {STALE}"


def test_pages_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    assert pages() == PAGES


@pytest.mark.parametrize("name", VARIANTS)
def test_a_page_says_all_that_the_row_says(name: str) -> None:
    row, page = VARIANTS[name], PAGES[f"{name}.md"]
    assert row.summary in " ".join(page.split())
    assert f"```math\n{row.formula}\n```" in page
    assert f"**Where to use it.** {row.use}" in page
    assert all(text.replace("|", "\\|") in page for text in row.facts.values())
    assert f"[`{name}`]({name}.md)" in PAGES["index.md"]
    drawn = [file for file in PAGES if re.fullmatch(rf"{name}(-\d)?\.svg", file)]
    assert drawn == re.findall(r"!\[.*\]\((.*)\)", page)
    assert drawn


def test_a_page_names_the_method_of_a_study_by_the_studys_own_name() -> None:
    said = {row: re.findall(r"`dropkit study --methods (\w+)`", PAGES[f"{row}.md"]) for row in VARIANTS}
    assert {row: names for row, names in said.items() if names} == {
        method.recipe(0.5).variant: [name] for name, method in methods().items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_a_page_names_the_function_of_its_layer(name: str) -> None:
    function = VARIANTS[name].function
    said = re.findall(r"\[`dropkit\.functional\.(\w+)`\]", PAGES[f"{name}.md"])
    assert said == ([function.__name__] if function is not None else [])


def cells(picture: str) -> set[tuple[int, int]]:
    """Column and row, in pixels, of every full cell."""
    found = set()
    for x, y, inner in re.findall(r'<g transform="translate\((\d+) (\d+)\)">(.*?)</g>', picture, flags=re.DOTALL):
        for path in re.findall(r'fill-opacity="1" d="(.*?)"', inner):
            found |= {(int(x) + int(a), int(y) + int(b)) for a, b in re.findall(r"M(\d+) (\d+)h", path)}
    return found


def test_the_picture_of_dropout_is_its_mask() -> None:
    layer = VARIANTS["Dropout"].build(0.5)
    _, mask = layer(torch.ones(8, 32), key=KEY, return_mask=True)
    assert cells(PAGES["Dropout.svg"]) == {(12 * column, 12 * row) for row, column in mask.nonzero().tolist()}


def test_what_shares_a_draw_is_drawn_alike() -> None:
    mask = pictures(VARIANTS["Dropout2d"])["Dropout2d.svg"].cells
    examples, channels, height, width = mask.shape
    want = {
        (70 * c + 12 * w, 46 * n + 12 * h)
        for n in range(examples)
        for c in range(channels)
        if mask[n, c, 0, 0]
        for h in range(height)
        for w in range(width)
    }
    assert cells(PAGES["Dropout2d.svg"]) == want
    assert 0 < len(want) < mask.numel()


@pytest.mark.parametrize("file", MASKS)
def test_a_picture_of_a_mask_drops_nearly_the_rate(file: str) -> None:
    row, drawn = MASKS[file]
    p = row.rates[0]
    dropped = (~drawn.cells).double().mean().item()
    assert p * (1 - NEAR) <= dropped <= p * (1 + NEAR)
    assert len(cells(PAGES[file])) == drawn.cells.sum(), "not all of it is drawn"


@pytest.mark.parametrize("file", MASKS)
def test_a_picture_shows_what_shares_a_draw(file: str) -> None:
    drawn = MASKS[file][1].cells
    longer = [axis for axis, size in enumerate(drawn.shape) if size > 1]
    alike = {axis for axis in longer if torch.equal(drawn, drawn.narrow(axis, 0, 1).expand(drawn.shape))}
    assert alike == SHARED.get(file.removesuffix(".svg"), set())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_picture_of_blocks_is_made_of_whole_blocks(dims: int) -> None:
    dropped = (~MASKS[f"DropBlock{dims}d.svg"][1].cells).double().flatten(0, 1)
    pool: Any = getattr(torch.nn.functional, f"max_pool{dims}d")
    whole = -pool(-dropped, 3, stride=1)  # where all of a block is dropped
    assert torch.equal(pool(torch.nn.functional.pad(whole, (2, 2) * dims), 3, stride=1), dropped)


def test_captions_say_what_axes_count_and_what_zoneout_keeps() -> None:
    page, elements = PAGES["LSTM.md"], "at p = 0.25, 3 examples x 10 steps x 8 units"
    assert f"*Its mask `recurrent_l0` {elements}: dark is kept, light is dropped.*" in page
    told = "dark (True in the mask) takes the new state, light is left at the old one"
    assert f"*Its mask `zoneout_c_l0` {elements}: {told}.*" in page
    assert told in PAGES["Zoneout.md"]
    assert "is kept" not in PAGES["Zoneout.md"]


def test_noise_is_drawn_in_levels() -> None:
    drawn = pictures(VARIANTS["GaussianDropout"])["GaussianDropout.svg"]
    assert abs(float(drawn.cells.mean()) - 1) < 5 / 256**0.5  # a false alarm in 10**6, of a deviation of 1 a cell
    opacities = set(re.findall(r'fill-opacity="([\d.]+)"', PAGES["GaussianDropout.svg"]))
    assert opacities <= {f"{level / 10:g}" for level in range(1, 11)}
    assert len(opacities) > 5


def test_noise_of_layers_with_weights_is_seen_alone() -> None:
    for row in (row for row in VARIANTS.values() if row.family == "learned"):
        ((_, drawn),) = pictures(row).items()
        assert drawn.cells.isfinite().all()
        spread = drawn.cells.double().std().item()
        assert spread > 0.1, row.name
        assert abs(drawn.cells.double().mean() - 1) < 5 * spread / drawn.cells.numel() ** 0.5  # a false alarm in 10**6


def test_a_row_too_small_for_its_rate_is_refused() -> None:
    row = replace(VARIANTS["LockedDropout"], shown_inputs=((1, 3, 1),))  # drops all or nothing
    with pytest.raises(ValueError, match=r"LockedDropout: no picture of its size drops about 0\.5"):
        pictures(row)


def test_an_encoder_layer_has_a_picture_of_every_mask() -> None:
    drawn = pictures(VARIANTS["TransformerEncoderLayer"])
    files = ("TransformerEncoderLayer.svg", *(f"TransformerEncoderLayer-{number}.svg" for number in (2, 3, 4)))
    for number, name, place in zip(range(4), files, ("self_attn", "dropout1", "dropout", "dropout2"), strict=True):
        mask = drawn[name].cells
        assert torch.equal(mask, torch.from_numpy(random.keep_mask(random.field(KEY, number), mask.shape, 0.1)))
        assert f"*Its mask `{place}` at p = 0.1" in PAGES["TransformerEncoderLayer.md"]
        assert len(cells(PAGES[name])) == mask.sum()
