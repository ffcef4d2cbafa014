"""What commutes with masks and with max pooling is exact, or taken in the better order."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.uncertainty import moments
from tests.uncertainty.masks import enumerated, moments_of
from tests.uncertainty.written import Written, drop

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "square": lambda x: x**2,
    "in_turn": lambda x: F.relu(torch.tanh(x)) ** 3,
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], float, float]] = {  # of which each keeps x as scale * x + shift
    "dropout": (lambda: nn.Dropout(0.2), 1 / 0.8, 0.0),
    "unscaled": (lambda: dropkit.nn.Dropout(0.2, scale_at="eval"), 1.0, 0.0),
}


@pytest.mark.parametrize("width", [64, 65, 300])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_function_of_a_mask_is_exact(name: str, layer: str, width: int) -> None:
    torch.manual_seed(0)
    function, (build, scale, shift) = ACTIVATIONS[name], LAYERS[layer]
    first, last = nn.Linear(5, width).double(), nn.Linear(width, 3).double()
    model = nn.Sequential(first, build(), Written(lambda self, x: function(x)), last)
    x = torch.randn(4, 5).double()
    found = moments(model)(x)
    h = first(x).detach()
    kept, dropped = function(scale * h + shift), function(torch.zeros_like(h))
    expected = 0.8 * kept + 0.2 * dropped
    weight = last.weight.detach()
    covariance = torch.einsum("on,bn,pn->bop", weight, 0.16 * (kept - dropped) ** 2, weight)
    torch.testing.assert_close(found.mean, last(expected).detach(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-7, atol=1e-10)


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(3)
    nn.init.uniform_(made.running_mean, -1, 1)
    nn.init.uniform_(made.running_var, 0.5, 2)
    nn.init.uniform_(made.bias, -1, 1)
    return made


MAPS: dict[str, Callable[[], list[nn.Module]]] = {
    "relu": lambda: [nn.Dropout2d(0.25), nn.ReLU()],
    "max_pooling": lambda: [nn.Dropout2d(0.25), nn.MaxPool2d(2)],
    "padded": lambda: [nn.Dropout2d(0.25), nn.MaxPool2d(3, 2, padding=1)],
    "relu_first": lambda: [nn.ReLU(), nn.Dropout2d(0.25), nn.MaxPool2d(2)],
    "relu_last": lambda: [nn.Dropout2d(0.25), nn.MaxPool2d(2), nn.ReLU()],
    "norm": lambda: [nn.Dropout2d(0.25), norm(), nn.ReLU(), nn.MaxPool2d(2)],
    "alpha": lambda: [nn.FeatureAlphaDropout(0.25), nn.SELU(), nn.MaxPool2d(2)],
    "paths": lambda: [dropkit.nn.DropPath(0.25), nn.GELU(), nn.MaxPool2d(2)],
    "elements": lambda: [nn.Dropout(0.25), norm(), nn.SiLU()],
}


@pytest.mark.parametrize("name", MAPS)
def test_dropped_channels_are_followed_up_to_the_next_convolution(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*MAPS[name](), nn.Conv2d(3, 2, 2)).double()
    x = torch.randn(2, 3, 4, 4).double() if name != "elements" else torch.randn(1, 3, 2, 2).double()
    shape = {"paths": (1, 1, 1), "elements": (3, 2, 2)}.get(name, (3, 1, 1))
    found, site = moments(model)(x), "1" if name == "relu_first" else "0"
    frozen = copy.deepcopy(model)
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # enumeration runs in training mode
            module.training = False
    for i, example in enumerate(x.split(1)):
        mean, covariance = moments_of(*enumerated(frozen, example, {site: shape}, {site: 0.25}))
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.covariance[i], covariance, rtol=1e-7, atol=1e-9)
    assert found.error == 0.0


def test_a_mask_of_what_is_random_is_exact_where_that_is() -> None:
    """One mask is followed exactly, so what is dropped after it is, too."""
    torch.manual_seed(0)
    layers = nn.Dropout(0.3), nn.Linear(1, 4), nn.Dropout(0.25), nn.ReLU(), nn.Linear(4, 2)
    model = nn.Sequential(*layers).double()
    x = torch.randn(4, 1).double()
    found = moments(model)(x)
    for i, example in enumerate(x.split(1)):
        parts = enumerated(model, example, {"0": (1,), "2": (4,)}, {"0": 0.3, "2": 0.25})
        mean, covariance = moments_of(*parts)
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.covariance[i], covariance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True], ids=["elements", "blocks"])
def test_a_masked_tensor_and_a_function_of_it_are_correlated(shared: bool) -> None:
    """Far above 0 a rectifier is the identity, so a tensor less its rectified self is 0, and their sum is twice it."""
    torch.manual_seed(0)
    layer, start = nn.Linear(4, 8).double(), nn.Linear(3, 4).double()

    def run(self: Written, x: Tensor, sign: float) -> Tensor:
        h = 100 + layer(drop(self, start(x), 0.25))
        p = 0.5 if self.training else 0.0
        h = dropkit.functional.dropout(h.view(-1, 2, 4), p, self.training, broadcast_dims=(2,) if shared else ())
        rectified = F.relu(F.leaky_relu(h, 0.2))  # before h is mixed with anything, for its mask is forgotten then
        return (sign * h + rectified).flatten(1)

    model, x = Written(run, layer, start), torch.randn(2, 3).double()
    twice, nothing, once = (moments(model)(x, sign) for sign in (1.0, -1.0, 0.0))
    torch.testing.assert_close(twice.covariance, 4 * once.covariance, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(nothing.covariance, torch.zeros_like(once.covariance), rtol=0, atol=1e-6)
    assert float(once.covariance[0, 0, 5].abs()) > 1e-3


INCREASING: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "elu": nn.ELU(),
    "celu": nn.CELU(0.5),
    "selu": nn.SELU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
}


@pytest.mark.parametrize("name", INCREASING)
def test_max_pooling_comes_before_what_increases(name: str) -> None:
    torch.manual_seed(0)
    head = nn.Dropout2d(0.25), nn.Conv2d(2, 3, 3)
    x = torch.randn(2, 2, 8, 8).double()
    function, pool = INCREASING[name], nn.MaxPool2d(2)
    one, other = (moments(nn.Sequential(*head, *pair).double())(x) for pair in ((function, pool), (pool, function)))
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=0)
    torch.testing.assert_close(one.covariance, other.covariance, rtol=0, atol=0)


def test_max_pooling_stays_after_what_does_not_increase() -> None:
    torch.manual_seed(0)
    head = nn.Dropout2d(0.25), nn.Conv2d(2, 3, 3)
    x = torch.randn(2, 2, 8, 8).double()
    pool = nn.MaxPool2d(2)
    absolute = Written(lambda self, x: x.abs())
    one, other = (
        moments(nn.Sequential(*head, function, pool).double())(x) for function in (nn.LeakyReLU(-1.0), absolute)
    )
    exchanged = moments(nn.Sequential(*head, pool, absolute).double())(x)
    torch.testing.assert_close(one.mean, other.mean)
    assert float((exchanged.mean < one.mean - 1e-3).double().mean()) > 0.5


def test_slopes_of_each_channel() -> None:
    torch.manual_seed(0)
    slopes = torch.tensor([0.1, 0.7, -0.4]).double()
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(2, 3, 2), nn.PReLU(3)).double()
    model[2].weight.data = slopes
    x = torch.randn(2, 2, 3, 3).double()
    found = moments(model)(x)
    for channel, slope in enumerate(slopes.tolist()):
        alone = moments(nn.Sequential(*model[:2], nn.LeakyReLU(slope)))(x)
        torch.testing.assert_close(found.mean[:, channel], alone.mean[:, channel])
        torch.testing.assert_close(found.variance[:, channel], alone.variance[:, channel])


@pytest.mark.parametrize("convolution_first", [False, True], ids=["pooling_first", "convolution_first"])
def test_dropped_channels_are_followed_beside_a_convolution(convolution_first: bool) -> None:
    torch.manual_seed(0)

    def run(self: Written, x: Tensor) -> Tensor:
        h = self.layers[0](x)
        one = self.layers[1](h) if convolution_first else None
        other = F.max_pool2d(F.relu(h), 2)
        return torch.cat([(self.layers[1](h) if one is None else one).flatten(1), other.flatten(1)], 1)

    model = Written(run, nn.Dropout2d(0.25), nn.Conv2d(3, 2, 2)).double()
    x = torch.randn(2, 3, 4, 4).double()
    found = moments(model)(x)
    for i, example in enumerate(x.split(1)):
        mean, covariance = moments_of(*enumerated(model, example, {"layers.0": (3, 1, 1)}, {"layers.0": 0.25}))
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.covariance[i], covariance, rtol=1e-7, atol=1e-9)


def test_a_dropped_path_is_followed_through_layers() -> None:
    torch.manual_seed(0)
    layers = dropkit.nn.DropPath(0.3), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)
    model = nn.Sequential(*layers).double()
    x = torch.randn(4, 3).double()
    found = moments(model)(x)
    for i, example in enumerate(x.split(1)):
        mean, covariance = moments_of(*enumerated(model, example, {"0": (1,)}, {"0": 0.3}))
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.covariance[i], covariance, rtol=1e-6, atol=1e-9)


UNUSUAL = "ignore:dropout[23]d"


@pytest.mark.filterwarnings(UNUSUAL)
@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        pytest.param(nn.Dropout2d(0.25), (2, 4), (), id="vectors"),
        pytest.param(nn.Dropout2d(0.25), (2, 3, 4), (2,), id="sequences"),
        pytest.param(nn.Dropout2d(0.25), (2, 3, 2, 2, 2), (2, 3, 4), id="volumes"),
        pytest.param(nn.Dropout3d(0.25), (2, 4), (1,), id="3d_of_vectors"),
        pytest.param(nn.Dropout3d(0.25), (2, 3, 4), (1, 2), id="3d_of_sequences"),
        pytest.param(nn.Dropout3d(0.25), (2, 3, 2, 2), (1, 2, 3), id="3d_of_images"),
    ],
)
def test_draws_are_shared_as_pytorch_shares_them_in_any_shape(
    layer: nn.Module, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """One draw of each block of elements, whose sums vary as the squares of what the blocks add."""
    torch.manual_seed(0)
    x = torch.rand(shape).double()
    found = moments(nn.Sequential(layer, nn.Flatten(), Written(lambda self, h: h.sum(1, keepdim=True))))(x)
    blocks = x.sum(axes, keepdim=True) if axes else x
    torch.testing.assert_close(found.mean, x.flatten(1).sum(1, keepdim=True))
    torch.testing.assert_close(
        found.variance, 0.25 / 0.75 * blocks.flatten(1).square().sum(1, keepdim=True), rtol=1e-8, atol=0
    )


@pytest.mark.filterwarnings(UNUSUAL)
def test_volumes_of_dropped_channels_are_pooled_exactly() -> None:
    x = torch.rand(1, 2, 2, 2, 2)
    found = moments(nn.Sequential(nn.Dropout2d(0.4), nn.MaxPool3d(2), nn.Flatten()))(x)
    largest = x.amax((2, 3, 4))
    torch.testing.assert_close(found.mean, largest)
    torch.testing.assert_close(found.variance, 0.4 / 0.6 * largest**2)
