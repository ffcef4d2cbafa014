"""Dropout under `torch.func`: batching with each randomness, and derivatives composed with it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import dropkit
from dropkit import random
from dropkit.functional import (
    alpha_dropout,
    drop_block1d,
    drop_path,
    dropout,
    dropout1d,
    feature_alpha_dropout,
    gaussian_dropout,
    locked_dropout,
    word_dropout,
    zoneout,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ONES = torch.ones(5, 64)


def distinct(out: Tensor) -> int:
    """How many different rows there are."""
    return len({tuple(row.tolist()) for row in out.reshape(-1, out.shape[-1])})


def drawn(x: Tensor) -> Tensor:
    return dropout(x, 0.5)


def keyed(x: Tensor) -> Tensor:
    return dropout(x, 0.5, key=3)


def test_drawn_keys_follow_the_randomness() -> None:
    assert distinct(vmap(drawn, randomness="different")(ONES)) == 5
    assert distinct(vmap(drawn, randomness="same")(ONES)) == 1
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
        vmap(drawn)(ONES)
    with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
        vmap(drawn, randomness="error")(ONES)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_an_explicit_key_has_one_mask_whatever_the_randomness(randomness: str) -> None:
    out = vmap(keyed, randomness=randomness)(ONES)
    assert torch.equal(out, dropout(ONES[0], 0.5, key=3).expand(5, 64))
    tensor = vmap(lambda x, key: dropout(x, 0.5, key=key), (0, None), randomness=randomness)(ONES, torch.tensor(3))
    assert torch.equal(tensor, out)


def test_evaluation_and_a_rate_of_zero_draw_nothing() -> None:
    assert torch.equal(vmap(lambda x: dropout(x, 0.5, False))(ONES), ONES)
    assert torch.equal(vmap(lambda x: dropout(x, 0.0))(ONES), ONES)


@pytest.mark.parametrize(
    ("outer", "inner", "count"),
    [("same", "same", 1), ("different", "different", 15), ("same", "different", 5), ("different", "same", 3)],
)
def test_nested_batching(outer: str, inner: str, count: int) -> None:
    x = torch.ones(3, 5, 64)
    out = vmap(vmap(drawn, randomness=inner), randomness=outer)(x)
    assert distinct(out) == count
    if outer == "same":
        assert torch.equal(out[0], out[2])


def test_batched_seeds_reproduce() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(vmap(drawn, randomness="different")(ONES))
    assert torch.equal(*runs)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_any_axis_may_be_batched(axis: int) -> None:
    x = torch.randn(4, 5, 6)
    out = vmap(keyed, axis, axis)(x)
    want = torch.stack([keyed(part) for part in x.unbind(axis)], axis)
    assert torch.equal(out, want)


def test_every_part_of_an_address_may_be_batched() -> None:
    x = torch.randn(4, 5, 6)
    p = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    key, stream, mask = torch.tensor([5, -1, 7, 2**40]), torch.tensor([0, 1, 2, 3]), torch.rand(4, 5, 6) > 0.5

    def call(x: Tensor, p: Tensor, key: Tensor, stream: Tensor) -> Tensor:
        return dropout(x, p, key=key, stream=stream, broadcast_dims=0)

    for dims in (
        (0, 0, 0, 0),
        (0, None, None, None),
        (None, 0, None, None),
        (None, None, 0, None),
        (None, None, None, 0),
    ):
        full = (x, p, key, stream)
        arguments = [value if dim == 0 else value[1] for value, dim in zip(full, dims, strict=True)]
        out = vmap(call, dims)(*arguments)
        for i in range(4):
            want = call(*(value[i] if dim == 0 else value for value, dim in zip(arguments, dims, strict=True)))
            assert torch.equal(out[i], want)
    injected = vmap(lambda x, p, mask: dropout(x, p, mask=mask, return_mask=True))(x, p, mask)
    for i in range(4):
        for found, want in zip(injected, dropout(x[i], p[i], mask=mask[i], return_mask=True), strict=True):
            assert torch.equal(found[i], want)


def test_slices_within_a_batch() -> None:
    keys = torch.arange(12).reshape(3, 4)
    rates = torch.rand(3, 4, dtype=torch.float64)
    x = torch.randn(3, 4, 8)
    out = vmap(lambda x, p, key: dropout(x, p, key=key))(x, rates, keys)
    for i in range(3):
        assert torch.equal(out[i], dropout(x[i], rates[i], key=keys[i]))


def shared_dropout(x: Tensor, p: Tensor, key: Tensor) -> Tensor:
    return dropout(x, p, key=key, broadcast_dims=-1)


def to_channels_last(x: Tensor, p: Tensor, key: Tensor) -> Tensor:
    return dropout(x.transpose(-2, -1), p, key=key)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "dropout": dropout,
    "shared axis": shared_dropout,
    "other order in memory": to_channels_last,
    "dropout1d": dropout1d,
    "alpha_dropout": alpha_dropout,
    "feature_alpha_dropout": feature_alpha_dropout,
    "gaussian_dropout": gaussian_dropout,
    "drop_block1d": lambda x, p, key: drop_block1d(x, p, block_size=2, key=key),
    "drop_path": drop_path,
    "locked_dropout": lambda x, p, key: locked_dropout(x[None], p, key=key),
    "word_dropout": lambda x, p, key: word_dropout(x[None], p, key=key),
    "zoneout": lambda x, p, key: zoneout(x, -x, p, key=key),
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_rates_and_keys_of_one_level_and_inputs_of_another(name: str, gradient: bool) -> None:
    x, rates = torch.randn(3, 4, 5), torch.tensor([0.2, 1.0, 0.7, 0.5, 0.0, 0.4], dtype=torch.float64).view(2, 3)
    keys = torch.tensor([[1, 5, -9], [0, 7, 5]])

    def operation(x: Tensor, p: Tensor, key: Tensor) -> Tensor:
        return OPERATIONS[name](x, p if name != "gaussian_dropout" else p / 2, key=key)

    call = operation if not gradient else grad(lambda x, p, key: operation(x, p, key).square().sum())

    for p, key in zip(rates, keys, strict=True):
        wanted = torch.stack([torch.stack([call(v, *one) for v in x]) for one in zip(p, key, strict=True)])
        addresses_first = vmap(vmap(call, (0, None, None)), (None, 0, 0))(x, p, key)
        assert torch.equal(addresses_first, wanted)
        inputs_first = vmap(vmap(call, (None, 0, 0)), (0, None, None))(x, p, key)
        assert torch.equal(inputs_first, wanted.transpose(0, 1))
        rates_first = vmap(vmap(call, (0, None, 0)), (None, 0, None))(x, p, key)
        apart = torch.stack([torch.stack([call(v, one, k) for v, k in zip(x, key, strict=True)]) for one in p])
        assert torch.equal(rates_first, apart)
    everything = vmap(vmap(vmap(call, (0, None, None)), (None, 0, 0)), (None, 0, 0))(x, rates, keys)
    assert torch.equal(everything[1], wanted)


def test_masks_are_handed_out_of_a_batch() -> None:
    out, keep = vmap(lambda x: dropout(x, 0.5, return_mask=True), randomness="different")(ONES)
    assert torch.equal(out != 0, keep)
    out, keep = vmap(lambda x: dropout(x, 0.5, key=3, return_mask=True))(ONES)
    assert torch.equal(out != 0, keep)
    assert keep.shape == ONES.shape


def test_a_batched_input_may_be_overwritten() -> None:
    x = torch.randn(5, 6)
    out = vmap(lambda row: dropout(row.clone(), 0.5, inplace=True, key=3))(x)
    assert torch.equal(out, vmap(keyed)(x))


def test_chunks_change_nothing_under_explicit_keys() -> None:
    x = torch.randn(7, 6)
    assert torch.equal(vmap(keyed, chunk_size=2)(x), vmap(keyed)(x))


X = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEEP = torch.from_numpy(random.keep_mask(3, (6,), 0.5))


def cube(x: Tensor) -> Tensor:
    return keyed(x).pow(3).sum()


def test_derivatives_have_their_closed_forms() -> None:
    scaled = 2.0 * KEEP
    assert torch.equal(grad(cube)(X), torch.where(KEEP, 24 * X**2, 0))
    assert torch.equal(hessian(cube)(X), torch.diag(torch.where(KEEP, 48 * X, 0)))
    assert torch.equal(jacrev(keyed)(X), torch.diag(scaled.double()))
    assert torch.equal(jacfwd(keyed)(X), torch.diag(scaled.double()))
    assert torch.equal(jvp(keyed, (X,), (torch.ones_like(X),))[1], scaled.double())
    assert torch.equal(vjp(keyed, X)[1](torch.ones_like(X))[0], scaled.double())
    assert torch.equal(grad(lambda x: grad(cube)(x).sum())(X), torch.where(KEEP, 48 * X, 0))
    assert torch.equal(jacfwd(jacrev(cube))(X), hessian(cube)(X))
    assert torch.equal(jacrev(jacfwd(cube))(X), hessian(cube)(X))


@pytest.mark.parametrize("transform", [jacfwd, jacrev])
def test_jacobians_of_a_drawn_mask_are_diagonal(transform: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    options = {"randomness": "same"} if transform is jacfwd else {}
    jacobian = transform(drawn, **options)(torch.ones(40))
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    assert set(jacobian.diagonal().tolist()) == {0.0, 2.0}


def test_gradients_of_drawn_masks_are_gated_by_them() -> None:
    gradient, out = torch.func.grad_and_value(lambda x: drawn(x).sum())(torch.ones(64))
    assert gradient.sum() == out

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        out = drawn(x)
        return out.sum(), out

    row_gradients, (_, rows) = vmap(torch.func.grad_and_value(total, has_aux=True), randomness="different")(ONES)
    assert torch.equal(row_gradients, rows)
    assert distinct(row_gradients) == 5


def test_dropped_infinities_stay_out_of_derivatives() -> None:
    x = torch.where(KEEP, X, torch.nan)
    assert torch.equal(grad(lambda v: keyed(v).nansum())(x), 2.0 * KEEP.double())
    assert torch.equal(jvp(keyed, (X,), (torch.where(KEEP, 1.0, torch.nan),))[1], 2.0 * KEEP.double())


def test_gradients_of_single_examples_of_a_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), dropkit.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    x = torch.randn(5, 6)

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, parameters, (row,)).sum()

    gradients = vmap(grad(loss), (None, 0), randomness="same")(parameters, x)
    different = vmap(grad(loss), (None, 0), randomness="different")(parameters, x)
    dropped = gradients["3.weight"].squeeze(1) == 0
    assert gradients["0.weight"].shape == (5, 8, 6)
    assert torch.equal(gradients["0.bias"] != 0, ~dropped)
    assert distinct((different["3.weight"] == 0).squeeze(1)) > 1


def test_ensembles_of_packed_models_equal_single_ones() -> None:
    weights, x, keys = torch.randn(4, 10, 6), torch.randn(10, 6), torch.arange(4)

    def predict(weight: Tensor, key: Tensor) -> Tensor:
        return dropout(x * weight, 0.3, key=key)

    out = vmap(predict)(weights, keys)
    assert torch.equal(out, torch.stack([predict(w, k) for w, k in zip(weights, keys, strict=True)]))
    assert torch.equal(out, dropout(x * weights, 0.3, key=keys))
