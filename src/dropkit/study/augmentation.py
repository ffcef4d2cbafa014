"""Data augmentation: every row changes anew in every epoch, by draws that its key, the epoch and its place address.

A place is that of the row in the epoch's order, so the draws depend neither on the batch size nor on the models that
train beside its own. All functions work on many models side by side, of shape (models, rows, ...).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.random import call_key, uniform
from dropkit.study.methods import Recipe

__all__ = ["augmented", "changed", "drawn", "mixed", "padded_windows", "resampled"]

Array = npt.NDArray[np.float64]


def drawn(key: int, recipe: Recipe, rows: int, epoch: int) -> dict[str, Array]:
    """Draw how each row of one model changes in an epoch.

    Args:
        key: The key of the model's seed.
        recipe: Which changes there are, and how strong.
        rows: Number of training rows.
        epoch: Number of the epoch, from 0.

    Returns:
        For each change of the recipe its draws, of shape (rows,) or (rows, several): ``"shift"`` in pixels down and
        right; ``"rotation"`` in degrees; ``"crop"``, the share of the sides and the middle of the window, down and
        right of the image's, in half sides; ``"flip"``, 1 or 0; ``"brightness"``, a factor; ``"mixup"``, the share
        of the row itself.

    Examples:
        >>> drawn(7, Recipe(shift=2, flip=True), 3, 0)["shift"].shape
        (3, 2)

    References:
        Zhang, Cisse, Dauphin and Lopez-Paz (2018), "mixup: beyond empirical risk minimization", section 2, which draws
        the share from Beta(alpha, alpha).
    """

    def draw(name: str, *shape: int) -> Array:
        return uniform(call_key(key, name, epoch), (rows, *shape))

    found = {}
    if recipe.shift:
        found["shift"] = np.floor(draw("shift", 2) * (2 * recipe.shift + 1)) - recipe.shift
    if recipe.rotation:
        found["rotation"] = recipe.rotation * (2 * draw("rotation") - 1)
    if recipe.crop < 1:
        numbers = draw("crop", 3)
        side = 1 - (1 - recipe.crop) * numbers[:, :1]
        found["crop"] = np.concatenate([side, (1 - side) * (2 * numbers[:, 1:] - 1)], axis=1)
    if recipe.flip:
        found["flip"] = np.floor(2 * draw("flip"))
    if recipe.brightness:
        found["brightness"] = 1 + recipe.brightness * (2 * draw("brightness") - 1)
    if recipe.mixup:
        from scipy.special import betaincinv

        found["mixup"] = betaincinv(recipe.mixup, recipe.mixup, draw("mixup"))
    return found


def padded_windows(images: Tensor, most: int) -> Tensor:
    """Return a view of every window of images with a black margin of `most` pixels.

    Args:
        images: Of shape (seeds, rows, height, width).
        most: The largest shift.

    Returns:
        Of shape (seeds, rows, 2 * most + 1, 2 * most + 1, height, width); the window at (most, most) is the image.
    """
    height, width = images.shape[2:]
    return F.pad(images, [most] * 4).unfold(2, height, 1).unfold(3, width, 1)


def augmented(images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Turn, crop, flip and brighten images; shifts and mixup are not among these changes.

    Args:
        images: Of shape (models, rows, height, width).
        draws: As of `drawn`, with a first axis of models.

    Returns:
        Images of the same shape.

    Examples:
        >>> images = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> augmented(images, {"flip": torch.ones(1, 1, dtype=torch.float64)})
        tensor([[[[1., 0.],
                  [3., 2.]]]])
    """
    if "rotation" in draws or "crop" in draws:
        images = resampled(images, draws.get("rotation"), draws.get("crop"))
    if "flip" in draws:
        images = torch.where(draws["flip"][..., None, None] > 0, images.flip(-1), images)
    if "brightness" in draws:
        images = images * draws["brightness"][..., None, None].to(images.dtype)
    return images


def changed(images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Shift, turn, crop, flip and brighten the images of one model; mixup is not among these changes.

    Args:
        images: Of shape (rows, height, width).
        draws: As of `drawn`.

    Returns:
        Images of the same shape; a shift leaves zeros behind it.

    Examples:
        >>> changed(torch.tensor([[[1.0, 2.0]]]), {"shift": torch.tensor([[0.0, 1.0]])})
        tensor([[[0., 1.]]])
    """
    if "shift" in draws:
        most = int(draws["shift"].abs().max())
        corner = most - draws["shift"].long()
        images = padded_windows(images[None], most)[0, torch.arange(len(images)), corner[:, 0], corner[:, 1]]
    return augmented(images[None], {name: values[None] for name, values in draws.items()})[0]


def resampled(images: Tensor, degrees: Tensor | None, crops: Tensor | None) -> Tensor:
    """Turn images counter-clockwise, or cut windows out of them and stretch these to the whole.

    Between pixels the value is bilinear, outside the image it is 0.

    Args:
        images: Of shape (models, rows, height, width).
        degrees: Of shape (models, rows). Default (None): images are not turned.
        crops: Of shape (models, rows, 3), as of `drawn`. Default (None): windows are the whole images.

    Returns:
        Images of the same shape.
    """
    height, width = images.shape[2:]
    shape = images.shape[:2]
    angle = torch.zeros(shape, dtype=torch.float64) if degrees is None else degrees.deg2rad()
    whole = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    side, down, right = (whole.expand(*shape, 3) if crops is None else crops).unbind(-1)
    cos, sin = side * angle.cos(), side * angle.sin()
    # Where each pixel is taken from, in half sides of the image: so the turn needs the ratio of the sides.
    places = [cos, -sin * (height / width), right, sin * (width / height), cos, down]
    maps = torch.stack(places, dim=-1).reshape(-1, 2, 3).to(images.dtype)
    flat = images.reshape(-1, 1, height, width)
    grid = F.affine_grid(maps, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view_as(images)


def mixed(values: Tensor, share: Tensor) -> Tensor:
    """Mix every row with the next of its batch, the last with the first; the order of an epoch is random.

    Args:
        values: Rows, of shape (models, rows) or (models, rows, columns).
        share: Of each row itself in the mixture, of shape (models, rows).

    Returns:
        Of the same shape as `values`.

    Examples:
        >>> mixed(torch.tensor([[0.0, 4.0]]), torch.tensor([[0.75, 0.5]]))
        tensor([[1., 2.]])
    """
    own = share.to(values.dtype).reshape(*share.shape, *[1] * (values.dim() - 2))
    return torch.lerp(values.roll(-1, dims=1), values, own)
