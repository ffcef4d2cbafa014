"""Augmentation: closed forms of every change, the laws of the draws, and independence of the rest of the pack."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.study import METHODS, Budget, Dataset
from dropkit.study.augmentation import augmented, drawn, mixed, padded_windows, resampled
from dropkit.study.dataset import IMAGE_CHANGES
from dropkit.study.methods import Recipe
from dropkit.study.packed import Model, _Pack, train
from dropkit.study.splits import Split
from tests.helpers.studies import splits_of

FALSE_ALARM = 1e-6
DRAWS = 20000


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(0.1, 1, size=(2, 5, 6, 6)))


def filled(value: float) -> torch.Tensor:
    return torch.full((2, 5), value, dtype=torch.float64)


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3), (360, 0)])
def test_quarter_turns_are_rot90(images: torch.Tensor, degrees: float, turns: int) -> None:
    found = resampled(images, filled(degrees), None)
    torch.testing.assert_close(found, torch.rot90(images, turns, (2, 3)), rtol=0, atol=1e-12)


def test_a_turn_keeps_distances_where_the_sides_differ() -> None:
    image = torch.zeros(1, 1, 5, 9, dtype=torch.float64)
    image[0, 0, 2, 6] = 1.0  # two pixels right of the middle: a quarter turn puts it two above
    found = resampled(image, torch.full((1, 1), 90.0, dtype=torch.float64), None)[0, 0]
    expected = torch.zeros(5, 9, dtype=torch.float64)
    expected[0, 4] = 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_crop_of_the_whole_is_the_image(images: torch.Tensor) -> None:
    whole = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(2, 5, 3)
    torch.testing.assert_close(resampled(images, None, whole), images, rtol=0, atol=1e-12)


def test_a_crop_of_half_a_plane_is_the_plane_at_half_the_slope() -> None:
    """Of a linear image a bilinear window is exact, away from the margin."""
    down, right = torch.meshgrid(torch.arange(8.0).double(), torch.arange(8.0).double(), indexing="ij")
    plane = (10 * down + right)[None, None]
    window = torch.tensor([[[0.5, 0.25, -0.25]]], dtype=torch.float64)  # its middle is 1 pixel down, 1 pixel left
    expected = 10 * (0.5 * (down - 3.5) + 3.5 + 1) + 0.5 * (right - 3.5) + 3.5 - 1
    torch.testing.assert_close(resampled(plane, None, window)[0, 0], expected, rtol=0, atol=1e-11)


def test_a_flip_is_its_own_inverse_and_only_of_those_drawn(images: torch.Tensor) -> None:
    draws = {"flip": torch.tensor([[0.0, 1, 1, 0, 1], [1, 0, 0, 0, 1]])}
    once = augmented(images, draws)
    assert torch.equal(augmented(once, draws), images)
    is_same = (once == images).flatten(2).all(-1)
    assert torch.equal(is_same, draws["flip"] == 0)
    assert torch.equal(once[0, 1], images[0, 1].fliplr())


def test_brightness_is_a_factor_of_the_row(images: torch.Tensor) -> None:
    factors = torch.linspace(0.5, 1.5, 10, dtype=torch.float64).reshape(2, 5)
    found = augmented(images, {"brightness": factors})
    torch.testing.assert_close(found / images, factors[..., None, None].expand_as(images))
    assert torch.equal(augmented(images, {"brightness": filled(1.0)}), images)


def test_mixup_of_equal_rows_is_the_row() -> None:
    row = torch.tensor([0.1, -3.7, 1e6]).expand(1, 4, 3)
    assert torch.equal(mixed(row, torch.tensor([[0.2, 0.9, 0.0, 0.33]])), row)
    values = torch.tensor([[1.0, 2.0, 5.0]])
    assert torch.equal(mixed(values, torch.ones(1, 3)), values)
    assert torch.equal(mixed(values, torch.zeros(1, 3)), torch.tensor([[2.0, 5.0, 1.0]]))


def test_the_middle_window_is_the_image(images: torch.Tensor) -> None:
    assert torch.equal(padded_windows(images, 2)[:, :, 2, 2], images)


def check_law(values: np.ndarray, law: object) -> None:
    """Kolmogorov and Smirnov's test; a right law fails at a rate of `FALSE_ALARM`, on a key fixed beforehand."""
    assert stats.kstest(values, law).pvalue > FALSE_ALARM


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 4.0])
def test_mixup_shares_follow_beta(alpha: float) -> None:
    check_law(drawn(1, Recipe(mixup=alpha), DRAWS, 0)["mixup"], stats.beta(alpha, alpha).cdf)


def test_laws_of_the_image_draws() -> None:
    recipe = Recipe(rotation=15.0, crop=0.6, flip=True, brightness=0.3, shift=2)
    found = drawn(2, recipe, DRAWS, 5)
    check_law(found["rotation"], stats.uniform(-15, 30).cdf)
    check_law(found["brightness"], stats.uniform(0.7, 0.6).cdf)
    side, *middle = found["crop"].T
    check_law(side, stats.uniform(0.6, 0.4).cdf)
    for place in middle:
        check_law(place / (1 - side), stats.uniform(-1, 2).cdf)
        assert (np.abs(place) + side <= 1 + 1e-12).all(), "windows lie inside the image"
    assert stats.binomtest(int(found["flip"].sum()), DRAWS).pvalue > FALSE_ALARM
    counts = np.unique(found["shift"], return_counts=True)
    assert counts[0].tolist() == [-2, -1, 0, 1, 2]
    assert stats.chisquare(counts[1]).pvalue > FALSE_ALARM


def test_draws_are_new_for_every_key_epoch_and_change() -> None:
    recipe = Recipe(rotation=1.0, brightness=1.0)
    draws = [drawn(key, recipe, 500, epoch) for key in (1, 2) for epoch in (0, 1)]
    several = [one["rotation"] for one in draws] + [one["brightness"] - 1 for one in draws]
    correlations = np.corrcoef(several)[np.triu_indices(len(several), 1)]
    limit = stats.norm.isf(FALSE_ALARM / 2 / len(correlations)) / np.sqrt(500)
    assert np.abs(correlations).max() < limit


CHANGES = (Recipe(rotation=20.0), Recipe(crop=0.7), Recipe(flip=True), Recipe(brightness=0.5))


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    rng = np.random.default_rng(5)
    pixels = rng.uniform(size=(500, 20)).astype(np.float32)
    return Dataset("images", "Images", pixels, rng.integers(0, 2, 500), image_shape=(4, 5))


@pytest.fixture(scope="module")
def splits(pictures: Dataset, tiny: Budget) -> dict[int, Split]:
    return splits_of(pictures, tiny, 2)


@pytest.mark.parametrize("recipe", [*CHANGES, Recipe(mixup=0.4)])
def test_the_others_of_a_pack_do_not_matter(
    recipe: Recipe, pictures: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    models = [Model(key, recipe) for key in splits]
    together = train(models, pictures, splits, tiny)
    plain = train([Model(key, Recipe()) for key in splits], pictures, splits, tiny)
    for model, training, without in zip(models, together, plain, strict=True):
        (alone,) = train([model], pictures, splits, tiny)
        np.testing.assert_allclose(training.curves.validation_loss, alone.curves.validation_loss, rtol=0, atol=2e-5)
        assert training.curves.validation_loss != without.curves.validation_loss


@pytest.mark.parametrize("recipe", CHANGES)
def test_a_batch_holds_the_rows_of_its_model_as_they_were_drawn(
    recipe: Recipe, pictures: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    key = next(iter(splits))
    pack = _Pack([Model(key, recipe)], pictures, splits, tiny)
    rows = torch.from_numpy(splits[key].train)[None]
    draws = {name: torch.from_numpy(values)[None] for name, values in drawn(key, recipe, rows.shape[1], 3).items()}
    whole = torch.from_numpy(pictures.inputs[rows[0]]).reshape(1, -1, 4, 5)
    found = pack._batch(rows[:, 32:64], {name: values[:, 32:64] for name, values in pack._drawn(200, 3).items()})
    torch.testing.assert_close(found.reshape(1, 32, 4, 5), augmented(whole, draws)[:, 32:64], rtol=0, atol=1e-6)


def test_only_changes_that_the_label_survives_are_tried(pictures: Dataset, toy: Dataset) -> None:
    def of(data: Dataset) -> set[str]:
        return {method.change for method in METHODS.values() if method.fits(data)} - {""}

    assert of(pictures) == set(IMAGE_CHANGES) - {"flip"}
    assert of(replace(pictures, label_survives=("flip",))) == {"flip"}
    assert of(replace(pictures, label_survives=())) == set()
    assert of(toy) == set()
    assert METHODS["mixup"].fits(toy)
    assert not METHODS["mixup"].fits(pictures)


def test_unknown_changes_are_refused(pictures: Dataset) -> None:
    with pytest.raises(ArgumentError, match=r"label_survives.*'flip'"):
        replace(pictures, label_survives=("mirror",))
    with pytest.raises(ArgumentTypeError, match="label_survives"):
        replace(pictures, label_survives="flip")
