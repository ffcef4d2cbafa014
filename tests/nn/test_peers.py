"""Other libraries' layers, given the same mask: theirs is read off a tensor of ones, drawn with the same seed."""

import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dropkit
from benchmarks import peers
from dropkit import random

pytestmark = pytest.mark.slow  # their imports take seconds

SHAPES = {1: (4, 6, 5), 2: (4, 6, 9, 10), 3: (4, 6, 3, 4, 2)}


def found(of: Callable[[], ModuleType | None], name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs are not ours to mend
        module = of()
    return module or pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def timm() -> Any:
    return found(peers.timm_drop, "timm")


@pytest.fixture(scope="module")
def keras() -> Any:
    return found(peers.keras_layers, "Keras")


def values(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def seeded(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a result, and the mask that it was drawn with."""
    torch.manual_seed(5)
    mask = call(torch.ones_like(x)) != 0
    torch.manual_seed(5)
    assert 0 < mask.sum() < mask.numel()
    return call(x), mask


@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_drop_path_of_timm(timm: Any, scale_by_keep: bool) -> None:
    x = values((16, 3, 4))
    want, mask = seeded(timm.DropPath(0.4, scale_by_keep).train(), x)
    layer = dropkit.nn.DropPath(0.4, scale_by_keep=scale_by_keep)
    torch.testing.assert_close(layer(x, mask=mask[:, :1, :1]), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer(x, mask=mask), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("share_channels", [True, False])
@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_drop_block_of_timm(timm: Any, size: int, share_channels: bool) -> None:
    x = values((4, 6, 9, 10))
    want, mask = seeded(timm.DropBlock2d(0.1, size, couple_channels=share_channels).train(), x)
    out = dropkit.nn.DropBlock2d(0.1, size, share_channels)(x, mask=mask[:, :1] if share_channels else mask)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("depth", [2, 12])
def test_rates_over_depth_of_timm(timm: Any, depth: int) -> None:
    torch.testing.assert_close(
        dropkit.functional.linear_rates(0.3, depth), timm.calculate_drop_path_rates(0.3, depth), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_spatial_dropout_of_keras(keras: Any, dims: int) -> None:
    """Their one-dimensional layer has channels last, which is locked dropout here."""
    x = values(SHAPES[dims])
    options = {} if dims == 1 else {"data_format": "channels_first"}

    def theirs(x: Tensor) -> Tensor:
        return getattr(keras, f"SpatialDropout{dims}D")(0.4, seed=7, **options)(x, training=True)

    want, mask = seeded(theirs, x)
    layer = dropkit.nn.LockedDropout(0.4) if dims == 1 else getattr(dropkit.nn, f"Dropout{dims}d")(0.4)
    places = (slice(None), slice(1)) if dims == 1 else (..., *(slice(1),) * dims)
    torch.testing.assert_close(layer(x, mask=mask[places]), want, rtol=1e-6, atol=0)


def test_shared_axes_of_keras(keras: Any) -> None:
    x = values((4, 6, 5))

    def theirs(x: Tensor) -> Tensor:
        return keras.Dropout(0.4, noise_shape=(4, 1, 5), seed=7)(x, training=True)

    want, mask = seeded(theirs, x)
    out = dropkit.nn.Dropout(0.4, broadcast_dims=1)(x, mask=mask[:, :1])
    torch.testing.assert_close(out, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_gaussian_dropout_of_keras(keras: Any, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their normals are replaced by those of our key, so that mean and deviation of the noise are theirs."""
    x, key = values((64, 6)), 11
    normals = torch.from_numpy(random.normal(key, x.shape, dtype=np.float32))
    sizes = []

    def drawn(mean: float, deviation: float, size: tuple[int, ...], **_: Any) -> Tensor:
        sizes.append(tuple(size))
        return mean + deviation * normals

    monkeypatch.setattr(torch, "normal", drawn)
    want = keras.GaussianDropout(p)(x, training=True)
    assert sizes == [(64, 6)]
    layer = dropkit.nn.GaussianDropout(p)
    torch.testing.assert_close(layer(x, key=key), want, rtol=1e-6, atol=4e-5)  # normals agree to 4e-6
    noise = 1 + math.sqrt(p / (1 - p)) * normals
    torch.testing.assert_close(layer(x, noise=noise), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shared", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_alpha_dropout_of_keras(keras: Any, p: float, shared: tuple[int, ...]) -> None:
    x = values((16, 6, 3, 4))
    noise_shape = tuple(1 if axis in shared else length for axis, length in enumerate(x.shape))

    def theirs(x: Tensor) -> Tensor:
        return keras.AlphaDropout(p, noise_shape=noise_shape, seed=7)(x, training=True)

    mask = theirs(torch.ones_like(x)) != theirs(torch.zeros_like(x))  # what is dropped does not depend on the input
    assert 0 < mask.sum() < mask.numel()
    layer = (dropkit.nn.FeatureAlphaDropout if shared else dropkit.nn.AlphaDropout)(p)
    own = mask[..., :1, :1] if shared else mask
    torch.testing.assert_close(layer(x, mask=own), theirs(x), rtol=1e-6, atol=1e-6)
