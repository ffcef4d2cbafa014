"""What every layer that learns its noise keeps, read from the registry, and the term that all of them add to a loss."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import dropkit
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.nn.learned import LearnedMixin
from dropkit.nn.variants import VARIANTS, Variant

KEY = 0x720F_0000_1234_5678
ROWS = {name: row for name, row in VARIANTS.items() if row.family == "learned"}
LEARNED = {
    "ConcreteDropout": {"p_logit"}, "VariationalDropout": {"log_alpha"}, "VariationalLinear": {"log_alpha"},
    "SparseVariationalLinear": {"log_sigma2"}, "SparseVariationalConv2d": {"log_sigma2"},
}  # fmt: skip
every = pytest.mark.parametrize("name", ROWS)


def test_all_of_them_are_tested_here() -> None:
    assert LEARNED.keys() == ROWS.keys()
    assert all(issubclass(row.layer, LearnedMixin) and not row.is_layer for row in ROWS.values())


def inputs(row: Variant, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(row.inputs[0], dtype=dtype, generator=torch.Generator().manual_seed(0))


def at(layer: Any, key: int | Tensor, stream: int = 0) -> dict[str, Any]:
    """Return the address of a call, which has other names where a wrapped layer may take some of its own."""
    prefix = "dropout_" if isinstance(layer, dropkit.nn.ConcreteDropout) else ""
    return {f"{prefix}key": key, f"{prefix}stream": stream}


def built(row: Variant, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return row.build(*row.rates[-1:]).to(dtype)


@every
def test_evaluation_draws_nothing(name: str) -> None:
    layer, x = built(ROWS[name]).eval(), inputs(ROWS[name])
    state = torch.get_rng_state()
    found = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, layer(x))
    assert (found is x) == (ROWS[name].evaluation == "identity")


@every
def test_it_draws_and_a_key_repeats_the_draw(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    first, again, other, passed = (
        layer(x, **at(layer, KEY)),
        layer(x, **at(layer, KEY)),
        layer(x, **at(layer, 3)),
        layer(x, **at(layer, KEY, 1)),
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, passed)
    torch.manual_seed(3)
    drawn, state = layer(x), torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(layer(x), drawn)
    torch.set_rng_state(state)
    assert not torch.equal(layer(x), drawn)


@every
def test_a_generator_of_its_own(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    layer.generator = torch.Generator().manual_seed(4)
    state = torch.get_rng_state()
    first = layer(x)
    layer.generator.manual_seed(4)
    assert torch.equal(layer(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert "generator=..." in repr(layer)
    layer(x, **at(layer, KEY))  # a key takes the generator's place


@every
def test_the_switch_overrides_train_and_eval(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    training, evaluation = layer(x, **at(layer, KEY)), layer.eval()(x)
    layer.switch = "on"
    assert torch.equal(layer(x, **at(layer, KEY)), training)
    layer.train().switch = "off"
    assert torch.equal(layer(x), evaluation)
    assert "switch='off'" in repr(layer)
    with pytest.raises(ArgumentError, match=r"`switch` must be one of 'auto', 'on', 'off', got True"):
        layer.switch = True


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
@every
def test_derivatives_with_respect_to_input_and_all_parameters(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name]).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def apply(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), at(layer, KEY))

    assert torch.autograd.gradcheck(apply, (x, *values), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, (x, *values), fast_mode=True)
    gradients = torch.autograd.grad(layer(x, **at(layer, KEY)).square().sum(), list(layer.parameters()))
    assert all((gradient != 0).all() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
@every
def test_directional_derivatives_and_curvature(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,), at(layer, KEY)).square().sum()

    ones = {key: torch.ones_like(value) for key, value in parameters.items()}
    gradient_of = torch.func.grad(loss)
    _, slope = torch.func.jvp(loss, (parameters,), (ones,))
    torch.testing.assert_close(slope, sum(gradient.sum() for gradient in gradient_of(parameters).values()))
    _, forward = torch.func.jvp(gradient_of, (parameters,), (ones,))
    backward = torch.func.grad(lambda at: sum(each.sum() for each in gradient_of(at).values()))(parameters)
    for key, value in backward.items():
        torch.testing.assert_close(forward[key], value)


@every
def test_what_it_learns_is_a_parameter_and_is_saved(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    assert LEARNED[name] <= set(dict(layer.named_parameters())) == set(layer.state_dict())
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    (layer(x, **at(layer, KEY)).square().mean() + dropkit.nn.regularization(layer, 10)).backward()
    optimiser.step()
    want, buffer = layer(x, **at(layer, KEY)), io.BytesIO()
    other = built(ROWS[name])
    assert not torch.equal(other(x, **at(other, KEY)), want)
    torch.save(layer, buffer)
    buffer.seek(0)
    other.load_state_dict(layer.state_dict(), strict=True)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),  # noqa: S301  # our own bytes
        torch.load(buffer, weights_only=False),
        other,
    ):
        assert torch.equal(twin(x, **at(twin, KEY)), want)
        assert torch.equal(twin.kl(), layer.kl())
        assert repr(twin) == repr(layer)


@every
def test_it_compiles_once_while_it_learns(name: str) -> None:
    torch._dynamo.reset()
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    graphs = CompileCounter()

    def objective(x: Tensor, key: Tensor) -> Tensor:
        return layer(x, **at(layer, key)).square().mean() + dropkit.nn.regularization(layer, 10)

    compiled = torch.compile(objective, backend=graphs, fullgraph=True)
    for step in range(3):
        key = torch.tensor(KEY + step)
        torch.testing.assert_close(compiled(x, key), objective(x, key))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(0.9)
    assert graphs.frame_count == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # PyTorch's own
@pytest.mark.slow
@every
def test_compiled_gradients_are_those_of_eager_code(name: str) -> None:
    torch._dynamo.reset()
    layer, x, key = built(ROWS[name]), inputs(ROWS[name]), torch.tensor(KEY)

    def objective(x: Tensor, key: Tensor) -> Tensor:
        return layer(x, **at(layer, key)).square().mean() + dropkit.nn.regularization(layer, 10)

    found, want = (
        torch.autograd.grad(function(x, key), list(layer.parameters()))
        for function in (torch.compile(objective, fullgraph=True), objective)
    )
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other)


@every
def test_it_is_made_without_data_and_shown(name: str) -> None:
    with torch.device("meta"):
        layer = ROWS[name].build(*ROWS[name].rates[-1:])
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert ("p=?" in repr(layer)) == hasattr(layer, "p")


@every
def test_it_is_exported(name: str) -> None:
    row = ROWS[name]
    network = torch.nn.Sequential(built(row, torch.float32), torch.nn.Tanh()).eval()
    x = inputs(row, torch.float32)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")  # PyTorch's own
def test_they_are_exported_to_onnx() -> None:
    from onnxruntime import InferenceSession

    class Together(torch.nn.Module):
        """All layers in one graph, for making one takes most of the time here."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(built(row, torch.float32) for row in ROWS.values())

        def forward(self, *x: Tensor) -> tuple[Tensor, ...]:
            return tuple(layer(each).tanh() for layer, each in zip(self.layers, x, strict=True))

    x = tuple(inputs(row, torch.float32) for row in ROWS.values())
    together, buffer = Together().eval(), io.BytesIO()
    torch.onnx.export(together, x, dynamo=True, verbose=False).save(buffer)
    session = InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, (each.numpy() for each in x), strict=True)))
    for name, one, other in zip(ROWS, found, together(*x), strict=True):
        wanted = other.detach()
        torch.testing.assert_close(torch.from_numpy(one), wanted, msg=lambda text, name=name: f"{name}: {text}")


@every
def test_vmap_with_a_key_has_one_noise_for_all(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    several = torch.stack([x, 2 * x, -x])
    found = torch.func.vmap(lambda v: layer(v, **at(layer, KEY)))(several)
    for i in range(3):
        torch.testing.assert_close(found[i], layer(several[i], **at(layer, KEY)))


@every
def test_per_example_gradients(name: str) -> None:
    layer, x = built(ROWS[name]), inputs(ROWS[name])
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        out = torch.func.functional_call(layer, parameters, (x.unsqueeze(0),), at(layer, KEY))
        return out.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    want = torch.func.grad(loss)(parameters, x[1])
    for key, value in want.items():
        torch.testing.assert_close(found[key][1], value)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(name: str, dtype: torch.dtype) -> None:
    row = ROWS[name]
    layer, x = built(row, dtype), inputs(row).to(dtype)
    wide = copy.deepcopy(layer).double()
    out = layer(x, **at(layer, KEY))
    assert out.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), wide(x.double(), **at(wide, KEY)), rtol=tolerance, atol=tolerance)
    assert layer.kl().dtype == torch.float32
    torch.testing.assert_close(layer.kl().double(), wide.kl(), rtol=1e-2, atol=1e-2)


@every
def test_autocast_runs_it(name: str) -> None:
    row = ROWS[name]
    layer, x = built(row, torch.float32), inputs(row, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, **at(layer, KEY))
        assert out.dtype == (torch.float32 if name == "VariationalDropout" else torch.bfloat16)
    torch.testing.assert_close(out.float(), layer(x, **at(layer, KEY)), rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@every
def test_torchscript_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^{name}: TorchScript cannot express addressed masks"):
        torch.jit.script(built(ROWS[name]))


def everything() -> torch.nn.Sequential:
    return torch.nn.Sequential(*(built(row) for row in ROWS.values()), torch.nn.Linear(2, 2), dropkit.nn.Dropout())


def test_the_term_is_the_sum_of_all_divergences_over_the_rows() -> None:
    model = everything()
    terms = [layer.kl() for layer in model if isinstance(layer, LearnedMixin)]
    assert len(terms) == len(ROWS)
    torch.testing.assert_close(dropkit.nn.regularization(model, 1), sum(terms))
    torch.testing.assert_close(dropkit.nn.regularization(model, 60_000), sum(terms) / 60_000)
    torch.testing.assert_close(dropkit.nn.regularization(model[0], 7), terms[0] / 7)


def test_steps_of_an_epoch_add_up_to_the_objective_of_the_data_set() -> None:
    torch.manual_seed(0)
    layer = dropkit.nn.SparseVariationalLinear(3, 4).double().eval()
    x, labels = torch.randn(12, 3, dtype=torch.float64), torch.randint(4, (12,))
    whole = torch.nn.functional.cross_entropy(layer(x), labels, reduction="sum") + layer.kl()
    steps = [
        torch.nn.functional.cross_entropy(layer(x[batch]), labels[batch]) + dropkit.nn.regularization(layer, 12)
        for batch in torch.arange(12).split(4)
    ]
    torch.testing.assert_close(12 * torch.stack(steps).mean(), whole)


def test_a_layer_used_twice_counts_once_and_a_model_without_any_has_none() -> None:
    layer = dropkit.nn.VariationalLinear(3, 3)
    assert torch.equal(dropkit.nn.regularization(torch.nn.Sequential(layer, layer), 5), layer.kl() / 5)
    assert dropkit.nn.regularization(torch.nn.Linear(2, 2), 5).item() == 0


def test_the_term_has_a_gradient_for_everything_learned() -> None:
    model = everything()
    dropkit.nn.regularization(model, 100).backward()
    for layer, row in zip(model, ROWS.values(), strict=False):
        for learned in LEARNED[row.name]:
            assert (getattr(layer, learned).grad != 0).all()
