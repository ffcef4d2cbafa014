"""The masks of a recurrent network: all fields of one key, each with rows for examples and steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dropkit.functional.address import check_source
from dropkit.functional.inputs import kept_by
from dropkit.functional.noise import Noise, find_noise
from dropkit.kernels import fields

__all__ = ["Site", "find_masks"]

_RAGGED = 2**32  # what time counts as, so that a mask does not depend on the length of a batch's longest sequence


class Site(NamedTuple):
    """A place in the network that draws a mask.

    Args:
        name: Its name, which is the mask's.
        rate: Probability of dropping.
        field: Number of its field of noise.
        shape: Shape of its mask: batch, steps or gates, units.
        middle: What axis 1 of the network's own values counts, of which a mask has all or 1.
        is_ragged: Whether axis 1 is time, however long.
    """

    name: str
    rate: float | Tensor
    field: int
    shape: tuple[int, int, int]
    middle: int
    is_ragged: bool = False


def find_masks(
    where: str,
    sites: Sequence[Site],
    given: Mapping[str, Tensor],
    input: Tensor,
    training: bool,
    key: int | Tensor | None,
    generator: torch.Generator | None,
    stream: int | Tensor,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mask and the threshold of every place that drops; all True in evaluation.

    Args:
        where: The network on whose behalf they are drawn.
        sites: All places that may draw.
        given: Checked masks to use instead of drawing, by name.
        input: The checked input, batch-first.
        training: Whether to draw.
        key: The key, or one an example.
        generator: Where to draw the key.
        stream: Number of the pass.
    """
    check_source(where, input, 0.0, key, generator, stream)
    live = [site for site in sites if isinstance(site.rate, Tensor) or site.rate > 0 or site.name in given]
    found, noise, noises = {}, None, {}
    for site in live:
        threshold, *_ = check_source(where, input, site.rate, None, None, 0)
        mask = given.get(site.name)
        if not training:
            mask = torch.ones(site.shape if mask is None else mask.shape, dtype=torch.bool, device=input.device)
        elif mask is not None:
            mask = kept_by(mask, threshold)
        else:
            if noise is None:
                _, noise = find_noise(where, input, 0.0, key, generator, stream)
                noises = _fields(noise, live)
            whole = (site.shape[0], _RAGGED, site.shape[2]) if site.is_ragged else None
            mask = noises[site.name].keep_mask(site.shape, threshold, full_shape=whole)
        found[site.name] = mask, threshold
    return found


def _fields(noise: Noise, sites: Sequence[Site]) -> dict[str, Noise]:
    """Return the noise of every site's field, as `Noise.field` does, with one fold of the key for all."""
    most = max(site.field for site in sites)
    numbers = torch.arange(most + 1, device=noise.key.device)  # of all, for a GPU would wait for a list of some
    keys = fields.keys(noise.key, numbers.reshape(-1, *(1,) * noise.key.dim()))
    return {site.name: noise._replace(key=keys[site.field]) for site in sites}
