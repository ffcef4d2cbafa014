"""What every layer of the registry keeps, read from its row; what is special to one is proved in a file of its own."""

import copy
import inspect
import io
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode

import dropkit
from dropkit import random
from dropkit.nn.variants import VARIANTS, Variant
from tests.helpers.contract import CHECKS

KEY = 0x720F_0000_1234_5678
FUNCTIONS = {getattr(dropkit.functional, name) for name in dropkit.functional.__all__}
LAYERS = {name: row for name, row in VARIANTS.items() if row.is_layer}
BERNOULLI = {name: row for name, row in LAYERS.items() if row.noise == "Bernoulli"}
INVERTED = {name: row for name, row in LAYERS.items() if row.is_inverted_bernoulli and row.acts_on == "activations"}
ELEMENTWISE = {name: row for name, row in INVERTED.items() if row.takes_any_shape}

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def inputs(row: Variant, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in row.inputs]


def built(row: Variant, p: float | None = None, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)  # for layers with weights
    return row.build(p).to(dtype)


class Followed(torch.nn.Module):
    """A layer and what uses its result, for a graph needs a node."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *x: Tensor) -> Tensor:
        return torch.tanh(self.layer(*x))


class Together(torch.nn.Module):
    """All layers beside one another, each with inputs of its own: one graph is quicker made than one a layer."""

    def __init__(self, layers: dict[str, torch.nn.Module], counts: dict[str, int]) -> None:
        super().__init__()
        self.layers, self.counts = torch.nn.ModuleDict(layers), counts

    def forward(self, *x: Tensor) -> tuple[Tensor, ...]:
        given = iter(x)
        return tuple(layer(*itertools.islice(given, self.counts[name])) for name, layer in self.layers.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_says_everything(name: str) -> None:
    row = VARIANTS[name]
    assert getattr(dropkit.nn, name) is row.layer
    assert all(getattr(dropkit.nn, alias) is row.layer for alias in row.aliases)
    assert row.summary.endswith(".")
    assert row.paper
    for field in ("title", "noise", "shared", "acts_on", "evaluation", "formula", "symbol", "use"):
        assert getattr(row, field), field
    takes_rate = any(
        each in {"p", "dropout"} or each.endswith("_p") for each in inspect.signature(row.layer).parameters
    )
    assert takes_rate == bool(row.rates) == bool(row.at_one)
    assert takes_rate == ("at p = 1" in row.facts) == ("typical rates" in row.facts)
    assert all(0 < rate < 1 for rate in row.rates)


def test_every_layer_is_in_the_registry() -> None:
    public = {name for name in dropkit.nn.__all__ if isinstance(getattr(dropkit.nn, name), type)}
    aliases = {alias for row in VARIANTS.values() for alias in row.aliases}
    assert public - aliases == set(VARIANTS)


class Called(TorchFunctionMode):
    """Notes the functions of `dropkit.functional` that layers call, without those that these call in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[Any] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FUNCTIONS:
            self.functions.add(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_names_the_one_function_that_its_layer_calls(name: str) -> None:
    row = VARIANTS[name]
    dtype = torch.int64 if issubclass(row.layer, torch.nn.Embedding) else torch.float32
    layer = built(row, dtype=torch.float32)
    options = {"need_weights": False} if isinstance(layer, torch.nn.MultiheadAttention) else {}  # as in a transformer
    with Called() as called:
        layer(*(torch.ones(shape, dtype=dtype) for shape in row.inputs), **options)
    assert called.functions == {row.function} or (row.function is None and len(called.functions) != 1)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_contract_of_inverted_dropout(name: str, check: str) -> None:
    row = LAYERS[name]

    def operation(x: Tensor, p: float = 0.5, training: bool = True, **options: Any) -> Any:
        return row.build(p).train(training)(x, **options)

    CHECKS[check](operation)


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_draws_nothing(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row).eval(), inputs(row)
    state = torch.get_rng_state()
    found = layer(*x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, layer(*x))
    if row.evaluation == "identity":
        assert found is x[0]


@pytest.mark.parametrize("name", LAYERS)
def test_it_draws_and_a_key_repeats_the_draw(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), inputs(row)
    first, again, other = (layer(*x, key=key) for key in (KEY, KEY, KEY + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    drawn, state = layer(*x), torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(layer(*x), drawn)
    torch.set_rng_state(state)
    assert not torch.equal(layer(*x), drawn)


@pytest.mark.parametrize("name", LAYERS)
def test_the_switch_overrides_train_and_eval(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), inputs(row)
    training, evaluation = layer(*x, key=KEY), layer.eval()(*x)
    layer.switch = "on"
    assert torch.equal(layer(*x, key=KEY), training)
    layer.train().switch = "off"
    assert torch.equal(layer(*x), evaluation)
    layer.switch = "auto"
    assert torch.equal(layer(*x, key=KEY), training)
    with pytest.raises(dropkit.errors.ArgumentError, match=r"`switch` must be one of 'auto', 'on', 'off', got True"):
        layer.switch = True


@pytest.mark.parametrize("name", BERNOULLI)
def test_the_mask_is_the_definition(name: str) -> None:
    row = BERNOULLI[name]
    layer, x = built(row, 0.4), inputs(row)
    out, mask = layer(*x, key=KEY, return_mask=True)
    shape = mask.shape if row.acts_on == "weights" else x[0].shape
    shared = tuple(axis for axis in range(mask.dim()) if mask.shape[axis] == 1 != shape[axis])
    assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, shape, 0.4, broadcast_dims=shared)))
    rounding = 1e-12 if row.acts_on == "weights" else 0  # a product rounds as PyTorch's products do
    torch.testing.assert_close(layer(*x, mask=mask), out, rtol=rounding, atol=0)
    _, kept = layer.eval()(*x, return_mask=True)
    assert kept.shape == mask.shape
    assert kept.all()


@pytest.mark.parametrize("name", BERNOULLI)
def test_what_is_dropped_is_what_the_row_says_whatever_it_was(name: str) -> None:
    row = BERNOULLI[name]
    if isinstance(row.dropped, str) or row.acts_on != "activations":
        pytest.skip("its own test says what a dropped unit becomes")
    layer, x = built(row, 0.5), inputs(row)[0]
    _, mask = layer(x, key=KEY, return_mask=True)
    dropped = ~mask.expand(x.shape)
    bad = torch.where(
        dropped, torch.tensor([math.nan, math.inf, -math.inf]).double().repeat(x.numel())[: x.numel()].view(x.shape), x
    )
    bad.requires_grad_()
    out = layer(bad, key=KEY)
    assert torch.equal(out[dropped], layer(x, key=KEY)[dropped])
    (gradient,) = torch.autograd.grad(out.nan_to_num().sum(), bad)
    assert (gradient[dropped] == 0).all()
    assert not torch.signbit(gradient[dropped]).any()
    assert (gradient[~dropped] != 0).all()


@pytest.mark.parametrize("name", LAYERS)
def test_at_zero_and_one(name: str) -> None:
    row = LAYERS[name]
    x = inputs(row)
    without = built(row, 0.0 if row.evaluation == "expectation" else 0.5).eval()(*x)
    torch.testing.assert_close(built(row, 0.0)(*x), without)
    if row.evaluation == "identity":
        assert built(row, 0.0)(*x) is x[0]
    if row.at_one == "refused":
        with pytest.raises(dropkit.errors.ArgumentError, match="`p` must be a number in"):
            built(row, 1.0)
    elif row.at_one == "old state":
        assert torch.equal(built(row, 1.0)(*x), x[1])
    else:
        assert row.at_one.partition(";")[0] == "zeros"
        bad = [each.clone() for each in x]
        bad[0].view(-1)[0] = math.nan if row.acts_on in {"activations", "paths"} else 1.0
        out = built(row, 1.0)(*(each.requires_grad_() for each in bad))
        assert torch.equal(out, torch.zeros_like(out))
        assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), bad))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_computed_wide_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    row = LAYERS[name]
    if row.acts_on == "weights":
        pytest.skip("a product rounds as PyTorch's products do")
    if row.noise == "Gaussian" and dtype == torch.float32:
        pytest.skip("its normals are made of 23 bits, those of float64 of 32")
    narrow = [each.to(dtype) for each in inputs(row)]
    out = built(row, dtype=dtype)(*narrow, key=KEY)
    wide = built(row, dtype=torch.float64)(*(each.double() for each in narrow), key=KEY)
    assert out.dtype == dtype
    is_sum = row.dropped != 0 and not isinstance(row.dropped, str)  # which loses as many units as its larger term
    least = abs(row.dropped) if is_sum and dtype.itemsize == 4 else 1e-6
    unit = torch.finfo(dtype).eps * torch.exp2(wide.abs().clamp(min=least).log2().floor())
    worst = 0.502 if dtype.itemsize == 2 else 4  # half a unit, and what float32 itself has lost; or a few of its own
    assert ((out.double() - wide).abs() <= worst * unit).all()


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_first_and_second_order(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), [each.requires_grad_() for each in inputs(row)]
    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(lambda *v: layer(*v, key=KEY), x)
        assert torch.autograd.gradgradcheck(lambda *v: layer(*v, key=KEY), x)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_copied_pickled_saved_and_loaded(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), inputs(row)
    want, buffer = layer(*x, key=KEY), io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    other = built(row)
    other.load_state_dict(layer.state_dict(), strict=True)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),  # noqa: S301  # our own bytes
        torch.load(buffer, weights_only=False),
        other,
    ):
        assert torch.equal(twin(*x, key=KEY), want)
    assert repr(copy.deepcopy(layer)) == repr(layer)
    assert f"p={layer.p}" in repr(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_a_rate_that_moves_changes_no_state_and_compiles_once(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), inputs(row)
    before = list(layer.state_dict())
    layer.follow()
    torch._dynamo.reset()  # layers share a forward, of which Dynamo keeps eight versions at most
    graphs = CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    for step, p in enumerate((0.1, 0.5, 0.25)):
        layer.p = p
        key = torch.tensor(KEY + step)
        torch.testing.assert_close(compiled(*x, key=key), built(row, p)(*x, key=KEY + step))
    assert graphs.frame_count == 1
    assert list(layer.state_dict()) == before
    layer.unfollow()
    assert layer.p == 0.25
    torch.testing.assert_close(layer(*x, key=KEY), built(row, 0.25)(*x, key=KEY))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiled_code_draws_what_eager_code_draws() -> None:
    layers = {name: built(row) for name, row in LAYERS.items()}
    layers |= {name: getattr(dropkit.nn, name)(4, 3, input_p=0.3, recurrent_p=0.4).double() for name in ("LSTM", "GRU")}
    layers["TransformerEncoderLayer"] = dropkit.nn.TransformerEncoderLayer(4, 2, 8, 0.3, dtype=torch.float64)
    given = {name: inputs(row) for name, row in LAYERS.items()}
    sequence = torch.randn(5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(key: Tensor) -> dict[str, Tensor]:
        found = {name: layer(*given.get(name, [sequence]), key=key) for name, layer in layers.items()}
        return {name: out[0] if isinstance(out, tuple) else out for name, out in found.items()}

    torch._dynamo.reset()
    key = torch.tensor(KEY)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(run, fullgraph=True)(key)
    for name, want in run(key).items():
        torch.testing.assert_close(compiled[name], want, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "DropBlock3d")) for name in LAYERS]
)  # of whose blocks DropBlock2d tells as much in half the time
def test_it_compiles_for_sizes_that_change(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), inputs(row)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for examples in (len(x[0]), 2 * len(x[0]), 3 * len(x[0])):
        several = [torch.cat([each] * 3)[:examples] for each in x]
        torch.testing.assert_close(compiled(*several, key=torch.tensor(KEY)), layer(*several, key=KEY))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_exported(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row, dtype=torch.float32).eval(), inputs(row, torch.float32)
    network = Followed(layer)
    exported = torch.export.export(network, tuple(x)).module()
    torch.testing.assert_close(exported(*x), network(*x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")  # PyTorch's own
def test_they_are_exported_to_onnx() -> None:
    from onnxruntime import InferenceSession

    given = {name: inputs(row, torch.float32) for name, row in LAYERS.items()}
    networks = {name: Followed(built(row, dtype=torch.float32)) for name, row in LAYERS.items()}
    together = Together(networks, {name: len(x) for name, x in given.items()}).eval()
    x, buffer = tuple(itertools.chain(*given.values())), io.BytesIO()
    torch.onnx.export(together, x, dynamo=True, verbose=False).save(buffer)
    session = InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, (each.numpy() for each in x), strict=True)))
    for name, one, other in zip(LAYERS, found, together(*x), strict=True):
        wanted = other.detach()
        torch.testing.assert_close(torch.from_numpy(one), wanted, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_with_a_key_has_one_mask_for_all(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), inputs(row)
    several = [torch.stack([each, 2 * each, -each]) for each in x]
    found = torch.func.vmap(lambda *v: layer(*v, key=KEY))(*several)
    for i in range(3):
        torch.testing.assert_close(found[i], layer(*(each[i] for each in several), key=KEY))


@pytest.mark.parametrize("name", LAYERS)
def test_models_with_rates_and_keys_of_their_own(name: str) -> None:
    row = LAYERS[name]
    layer, x = built(row), [torch.stack([each, 2 * each]) for each in inputs(row)]
    layer.follow()
    ((rate, _),) = layer.named_buffers()
    thresholds, keys = torch.tensor([2**30, 2**31, 3 * 2**30]), torch.tensor([KEY, 5, -1])

    def model(threshold: Tensor, key: Tensor, *x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {rate: threshold}, x, {"key": key})

    alone = [torch.stack([model(*one, *v) for v in zip(*x, strict=True)]) for one in zip(thresholds, keys, strict=True)]
    rest, wanted = [None] * len(x), torch.stack(alone)
    models_first = torch.vmap(torch.vmap(model, (None, None, *[0] * len(x))), (0, 0, *rest))(thresholds, keys, *x)
    torch.testing.assert_close(models_first, wanted)
    inputs_first = torch.vmap(torch.vmap(model, (0, 0, *rest)), (None, None, *[0] * len(x)))(thresholds, keys, *x)
    torch.testing.assert_close(inputs_first, wanted.transpose(0, 1))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_a_wrong_rate_is_refused_when_it_is_assigned(name: str, p: Any) -> None:
    layer = built(LAYERS[name])
    before = layer.p
    with pytest.raises(dropkit.errors.ArgumentError, match=f"^{name}: `p` must be a number in"):
        layer.p = p
    assert layer.p == before
