"""The smaller model: the same outputs, plain layers, and no unit that it can do without."""

import copy
import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dropkit
from dropkit.nn import ConcreteDropout, SparseVariationalConv2d, SparseVariationalLinear, pruned


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noisy(layer: Any, *units: int, axis: int = 0) -> Any:
    """Make what some units read (axis 0), or what reads them (axis 1), noise."""
    with torch.no_grad():
        layer.log_sigma2.index_fill_(axis, torch.tensor(units), 9.0)
    return layer


def dense(*sizes: int, activation: Any = nn.ReLU, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for count, out in pairwise(sizes):
        layers += [SparseVariationalLinear(count, out, bias), activation()]
    return nn.Sequential(*layers[:-1]).double()


def sizes(model: nn.Module) -> list[tuple[int, int]]:
    plain = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert all(type(layer) in {nn.Linear, nn.Conv2d} for layer in plain)
    for layer in plain:
        named = (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else (
            layer.out_channels, layer.in_channels)  # fmt: skip
        assert named == tuple(layer.weight.shape[:2])
        assert layer.bias is None or len(layer.bias) == len(layer.weight)
    return [tuple(layer.weight.shape[:2]) for layer in plain]


def check(model: nn.Module, x: Tensor, want: list[tuple[int, int]]) -> nn.Module:
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    small = pruned(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sizes(small) == want
    assert small.training == model.training
    torch.testing.assert_close(small.eval()(x), copy.deepcopy(model).eval()(x), rtol=1e-12, atol=1e-12)
    return small


def test_pruned_weights_are_zero_in_a_plain_layer() -> None:
    model = dense(4, 3)
    noisy(model[0], 1, axis=1)
    small = check(model, drawn(5, 4), [(3, 4)])
    assert (small[0].weight[:, 1] == 0).all()
    assert (small[0].weight[:, [0, 2, 3]] != 0).all()
    assert set(small.state_dict()) == {"0.weight", "0.bias"}
    assert type(pruned(model[0])) is nn.Linear
    convolution = SparseVariationalConv2d(2, 4, 3, 2, 1, 1, 2, False, "circular").double()
    plain = pruned(convolution)
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(drawn(1, 2, 5, 5)), convolution.eval()(drawn(1, 2, 5, 5)))


def test_units_that_nothing_reads_are_taken_out() -> None:
    model = dense(4, 6, 3)
    noisy(model[2], 0, 4, axis=1)
    check(model, drawn(5, 4), [(4, 4), (3, 4)])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Dropout, dropkit.nn.Dropout, nn.GELU],
                         ids=lambda kind: f"{kind.__module__}.{kind.__name__}")  # fmt: skip
def test_the_constant_of_a_unit_that_reads_nothing_moves_on(activation: Any) -> None:
    model = dense(4, 6, 3, activation=activation)
    noisy(model[0], 1, 2)
    check(model, drawn(5, 4), [(4, 4), (3, 4)])


def test_a_unit_less_may_leave_others_without_a_reader() -> None:
    model = dense(4, 6, 5, 3)
    noisy(model[4], 0, axis=1)  # so unit 0 of the second layer goes, the only one
    with torch.no_grad():
        model[2].log_sigma2[1:, 3] = 9.0  # that reads unit 3 of the first
    check(model, drawn(5, 4), [(5, 4), (4, 5), (3, 4)])


def test_without_a_bias_only_zeros_can_go() -> None:
    model = dense(4, 6, 3, activation=nn.Sigmoid, bias=False)
    noisy(model[0], 1, 2)
    check(model, drawn(5, 4), [(6, 4), (3, 6)])
    model = dense(4, 6, 3, activation=nn.Tanh, bias=False)
    noisy(model[0], 1, 2)
    check(model, drawn(5, 4), [(4, 4), (3, 4)])


def test_one_unit_stays_where_nothing_is_left() -> None:
    model = dense(4, 6, 3)
    for layer in (model[0], model[2]):
        noisy(layer, *range(len(layer.weight)))
    small = check(model, drawn(5, 4), [(1, 4), (3, 1)])
    assert all((layer.weight == 0).all() for layer in (small[0], small[2]))


def images(padding: int = 1, bias: bool = True, between: tuple[nn.Module, ...] = ()) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        SparseVariationalConv2d(2, 5, 3, padding=1, bias=bias), nn.Sigmoid(), *between,
        SparseVariationalConv2d(5, 6, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
        SparseVariationalLinear(6 * ((8 - 2 + 2 * padding) // 2) ** 2, 3),
    ).double()  # fmt: skip


def test_channels_are_taken_out() -> None:
    model = images()
    noisy(model[2], 0, 3, axis=1)
    last = model[-1]
    noisy(last, *range(16, 32), axis=1)  # the second channel's 4 x 4 places
    check(model, drawn(2, 2, 8, 8), [(3, 2), (5, 3), (3, 80)])


def test_constant_channels_are_moved_only_where_they_reach_all_places_alike() -> None:
    model = images(padding=1)
    noisy(model[0], 1)
    check(model, drawn(2, 2, 8, 8), [(5, 2), (6, 5), (3, 96)])  # zeros around the image are no constant
    model = images(padding=0)
    noisy(model[0], 1)
    check(model, drawn(2, 2, 8, 8), [(4, 2), (6, 4), (3, 54)])
    model = images(padding=0, between=(nn.AvgPool2d(3, 1, 1),))
    noisy(model[0], 1)
    check(model, drawn(2, 2, 8, 8), [(5, 2), (6, 5), (3, 54)])
    for pool in (
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, divisor_override=4),
    ):  # -4 becomes less, of which hardswish is not 0
        model = nn.Sequential(SparseVariationalConv2d(3, 4, 3), pool, nn.Hardswish(), SparseVariationalConv2d(4, 2, 3))
        noisy(model.double()[0], 1)
        with torch.no_grad():
            model[0].bias[1] = -4.0
        check(model, drawn(2, 3, 8, 8), [(4, 3), (2, 4)])
    model = images()
    noisy(model[2], 1)
    with torch.no_grad():
        model[2].bias[1] = 0.7
    check(model, drawn(2, 2, 8, 8), [(5, 2), (5, 5), (3, 80)])  # through pooling and flattening it stays one


@pytest.mark.parametrize("between", [nn.LayerNorm(6), nn.Softmax(-1), nn.Unflatten(-1, (2, 3))], ids=str)
def test_what_mixes_units_keeps_them(between: nn.Module) -> None:
    torch.manual_seed(0)
    second = SparseVariationalLinear(3 if isinstance(between, nn.Unflatten) else 6, 3)
    model = nn.Sequential(SparseVariationalLinear(4, 6), between, second).double()
    noisy(second, 0, axis=1)
    noisy(model[0], 2)
    check(model, drawn(5, 4), [(6, 4), tuple(second.weight.shape)])


def test_dropout_that_is_on_in_evaluation_keeps_units() -> None:
    model = dense(4, 6, 3, activation=dropkit.nn.Dropout)
    model[1].switch = "on"
    noisy(model[2], 0, axis=1)
    assert sizes(pruned(model)) == [(6, 4), (3, 6)]


def test_layers_in_several_places_keep_their_units() -> None:
    torch.manual_seed(0)
    shared = SparseVariationalLinear(4, 4).double()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    noisy(shared, 1)
    small = check(model, drawn(5, 4), [(4, 4)])
    assert small[0] is small[2]


def test_parameters_in_several_places_keep_their_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[:, 1] = 0
    small = check(model, drawn(5, 4), [(4, 4), (4, 4)])
    assert small[0].weight is small[2].weight


@pytest.mark.parametrize("widths", [(3, 0, 2), (3, 4, 0), (0, 4, 2)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
def test_layers_without_units(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:])).double()
    middle = 1 if widths[0] == 0 else widths[1]  # units that read nothing are constants
    check(model, drawn(5, widths[0]), [(middle, widths[0]), (widths[2], middle)])


def test_concrete_dropout_in_front_of_a_sparse_layer_knows_the_plain_one() -> None:
    sparse = noisy(SparseVariationalLinear(4, 3).double(), 1)
    model = nn.Sequential(ConcreteDropout(sparse, wraps=False), sparse)
    small = check(model, drawn(5, 4), [(3, 4)])
    with torch.no_grad():
        small[1].weight.mul_(1e4)
    assert torch.equal(small[0].kl(), ConcreteDropout(small[1], wraps=False).kl())
    assert small[0].kl() > model[0].kl()


def test_models_of_several_parts() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = dense(4, 6, 5), SparseVariationalLinear(5, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(x)))

    model = Model()
    noisy(model.body[2], 0, axis=1)
    noisy(model.head, 1, axis=1)
    small = check(model, drawn(3, 4), [(5, 4), (5, 5), (2, 5)])  # the head reads the body outside a Sequential
    assert set(small.state_dict()) == {name for name in model.state_dict() if not name.endswith("log_sigma2")}


def test_it_trains_on_saves_and_exports() -> None:
    model = dense(4, 6, 3)
    noisy(model[2], 0, axis=1)
    model[0].weight.requires_grad_(False)
    small = pruned(model)
    assert [value.requires_grad for value in small.parameters()] == [False, True, True, True]
    assert all(value.is_leaf for value in small.parameters())
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    assert buffer.tell() < 10_000
    exported = torch.export.export(small.eval(), (drawn(2, 4),)).module()
    torch.testing.assert_close(exported(drawn(2, 4)), small(drawn(2, 4)))


def test_a_model_without_sparse_layers_is_copied_and_shrunk_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    check(model, drawn(2, 3), [(3, 3), (2, 3)])
