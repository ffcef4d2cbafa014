"""Compiled dropout: whole graphs, the masks of eager code, and nothing compiled twice."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import dropout
from dropkit.kernels import fields

pytestmark = [
    # Of PyTorch's own making, while it traces and scripts.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
]

INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)
BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager", INDUCTOR])
LONG = [pytest.mark.slow, pytest.mark.exhaustive]  # for Inductor begins with all that it does
MANY = pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=LONG), INDUCTOR])
X = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
KEYS = torch.arange(6)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A back end that counts the graphs it is given and runs them eagerly."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return module.forward


def assert_equal(first: Any, second: Any) -> None:
    if isinstance(first, tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first.dtype == second.dtype
        assert first.stride() == second.stride()
        assert torch.equal(first, second)


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return dropout(x @ x.T, 0.4, key=3)


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "key": lambda x: dropout(x, 0.4, key=2**64 - 1),
    "key in a tensor": lambda x: dropout(x, 0.4, key=KEYS[3]),
    "slices": lambda x: dropout(x, KEYS.double() / 6, key=KEYS, stream=KEYS),
    "shared": lambda x: dropout(x, 0.4, key=3, broadcast_dims=-1, return_mask=True),
    "shard": lambda x: dropout(x, 0.4, key=3, offset=(2**64 - 6, 2**34 - 9), full_shape=(2**64, 2**34)),
    "mask": lambda x: dropout(x, 0.4, mask=torch.ones(6, 9, dtype=torch.bool).triu(), return_mask=True),
    "in place": lambda x: dropout(x * 2, 0.4, inplace=True, key=3),
    "original form": lambda x: (
        dropout(x, 0.4, key=3, scale_at="eval"),
        dropout(x, 0.4, False, scale_at="eval"),
    ),
    "everything": lambda x: dropout(x, 1.0, key=3),
    "nothing": lambda x: (dropout(x, 0.0) + 1, dropout(x, 0.4, False) + 1),
    "complex": lambda x: dropout(torch.complex(x, x), 0.4, key=3),
    "half": lambda x: dropout(x.half(), 0.1, key=3),
    "bfloat16": lambda x: dropout(x.bfloat16(), 0.1, key=3),
    "double": lambda x: dropout(x.double(), 0.1, key=3),
    "transposed": lambda x: dropout(x.T, 0.4, key=3),
    "vmap": lambda x: vmap(lambda row, key: dropout(row, 0.4, key=key))(x, KEYS),
    "vmap, one key": vmap(lambda row: dropout(row, 0.4, key=3)),
    "vmap, masks": lambda x: vmap(lambda row, mask: dropout(row, 0.4, mask=mask))(x, torch.ones(6, 9) > 0),
    "grad": grad(lambda x: dropout(x, 0.4, key=3).pow(2).sum()),
    "grad of grad": grad(lambda x: grad(lambda v: dropout(v, 0.4, key=3).pow(3).sum())(x).sum()),
    "vmap of grad": lambda x: vmap(grad(lambda row, key: dropout(row, 0.4, key=key).pow(2).sum()))(x, KEYS),
    "jvp": lambda x: jvp(lambda v: dropout(v, 0.4, key=3).pow(2), (x,), (x + 1,)),
    "autocast": autocast,
}


@MANY
@pytest.mark.parametrize("name", CALLS)
def test_compiled_equals_eager_under_explicit_keys(name: str, backend: str) -> None:
    want = CALLS[name](X)
    assert_equal(torch.compile(CALLS[name], backend=backend, fullgraph=True)(X), want)


@MANY
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str
)
def test_compiled_gradients_equal_eager_ones(dtype: torch.dtype, backend: str) -> None:
    values = X.to(dtype)
    gradients = []
    for call in (dropout, torch.compile(dropout, backend=backend, fullgraph=True)):
        x = values.clone().requires_grad_()
        out = call(x, 0.3, key=3)
        gradients.append(torch.autograd.grad(out, x, torch.ones_like(out))[0])
    assert_equal(*gradients)


@BACKENDS
def test_compiled_in_place_dropout_overwrites_its_input(backend: str) -> None:
    x = X.clone()
    out = torch.compile(lambda v: dropout(v, 0.4, inplace=True, key=3), backend=backend, fullgraph=True)(x)
    assert out.data_ptr() == x.data_ptr()
    assert torch.equal(x, dropout(X, 0.4, key=3))


@BACKENDS
def test_drawn_masks_follow_the_seed_and_gate_the_gradient(backend: str) -> None:
    call = torch.compile(lambda v: dropout(v, 0.5), backend=backend, fullgraph=True)
    x = torch.ones(500, requires_grad=True)
    runs = []
    for _ in range(2):
        torch.manual_seed(2)
        runs.append([call(x), call(x)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[0][1])
    runs[0][0].sum().backward()
    assert torch.equal(x.grad, runs[0][0].detach())


@BACKENDS
@pytest.mark.parametrize("key", [None, 3])
def test_compiled_checkpoints_repeat_the_mask(backend: str, key: int | None) -> None:
    def block(x: Tensor) -> Tensor:
        return checkpoint(lambda v: dropout(v, 0.5, key=key).sin(), x, use_reentrant=False)

    x = torch.ones(500, requires_grad=True)
    out = torch.compile(block, backend=backend, fullgraph=True)(x)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)


def test_one_graph_for_all_rates_keys_streams_and_steps() -> None:
    counter = Counter()
    call = torch.compile(
        lambda x, p, key, stream: dropout(x, p, key=key, stream=stream), backend=counter, fullgraph=True
    )
    for step, p in enumerate((0.0, 2.0**-32, 0.3, 0.9, 1.0)):
        tensors = (torch.tensor(p, dtype=torch.float64), torch.tensor(step - 2), torch.tensor(step))
        assert torch.equal(call(X, *tensors), dropout(X, tensors[0], key=tensors[1], stream=tensors[2]))
    assert counter.graphs == 1


def test_one_graph_for_all_rates_of_slices() -> None:
    counter = Counter()
    call = torch.compile(lambda x, p, key: dropout(x, p, key=key), backend=counter, fullgraph=True)
    for step in range(4):
        p, keys = torch.rand(6, dtype=torch.float64), KEYS * step
        assert torch.equal(call(X, p, keys), dropout(X, p, key=keys))
    assert counter.graphs == 1


def test_one_graph_for_all_sizes() -> None:
    counter = Counter()
    call = torch.compile(lambda x: dropout(x, 0.4, key=3), backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 3), (4, 9), (7, 16), (5, 5)):
        x = torch.randn(shape)
        assert torch.equal(call(x), dropout(x, 0.4, key=3))
    assert counter.graphs == 1


def test_drawn_masks_compile_once() -> None:
    counter, layer = Counter(), dropkit.nn.Dropout(0.5)
    call = torch.compile(layer, backend=counter, fullgraph=True)
    outs = [call(X) for _ in range(4)]
    assert counter.graphs == 1
    assert not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("p", [(0.1, 0.2, 0.3, 0.4)])
def test_python_rates_compile_no_more_than_twice(p: tuple[float, ...]) -> None:
    counter, layer = Counter(), dropkit.nn.Dropout()
    call = torch.compile(layer, backend=counter, fullgraph=True)
    for rate in p:
        layer.p = rate
        assert torch.equal(call(X, key=3), dropout(X, rate, key=3))
    assert counter.graphs <= 2


@pytest.mark.parametrize("key", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_python_keys_of_any_size_compile(key: int) -> None:
    call = torch.compile(lambda x, key: dropout(x, 0.4, key=key), backend="eager", fullgraph=True)
    call(X, 5)
    assert torch.equal(call(X, key), dropout(X, 0.4, key=key))


def test_rates_that_cannot_be_read_count_as_the_nearest_end() -> None:
    call = torch.compile(lambda x, p: dropout(x, p, key=3), backend="eager", fullgraph=True)
    for p, want in ((-1.0, X), (2.0, torch.zeros_like(X)), (torch.nan, torch.zeros_like(X))):
        assert torch.equal(call(X, torch.tensor(p, dtype=torch.float64)), want)


@BACKENDS
def test_second_derivatives_through_compiled_forward(backend: str) -> None:
    def penalty(x: Tensor) -> Tensor:
        return grad(lambda v: dropout(v, 0.5, key=3).pow(3).sum())(x).square().sum()

    x, y = X.double().requires_grad_(), X.double().requires_grad_()
    torch.compile(penalty, backend=backend, fullgraph=True)(x).backward()
    penalty(y).backward()
    torch.testing.assert_close(x.grad, y.grad)


class Keyed(torch.nn.Module):
    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        return dropout(x, 0.3, key=key)


def test_export_keeps_the_key_an_input() -> None:
    sizes = {"x": {0: torch.export.Dim("batch")}, "key": None}
    program = torch.export.export(Keyed(), (X, torch.tensor(1)), dynamic_shapes=sizes)
    x = torch.randn(11, 9)
    for key in (9, -5):
        assert torch.equal(program.module()(x, torch.tensor(key)), dropout(x, 0.3, key=torch.tensor(key)))


def test_export_draws_anew_in_training_and_not_at_all_in_evaluation() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 50), dropkit.nn.Dropout(0.5))
    training = torch.export.export(model.train(), (X,)).module()
    assert not torch.equal(training(X), training(X))
    torch.manual_seed(1)
    first = training(X)
    torch.manual_seed(1)
    assert torch.equal(training(X), first)
    evaluation = torch.export.export(model.eval(), (X,))
    assert torch.equal(evaluation.module()(X), model(X))
    assert not [node for node in evaluation.graph.nodes if "dropkit" in str(node.target) or "rand" in str(node.target)]


def test_make_fx_records_the_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x, key: dropout(x, 0.4, key=key), tracing_mode="fake")(X, torch.tensor(3))
    assert "dropkit.dropout" in graph.code
    assert torch.equal(graph(X, torch.tensor(8)), dropout(X, 0.4, key=8))


def test_compiled_vmap_of_drawn_masks_takes_another_batch() -> None:
    torch.compiler.reset()
    over_batch = torch.func.vmap(lambda v: dropout(v, 0.5), randomness="different")
    compiled = torch.compile(over_batch, backend="eager")
    for batch in (6, 7, 8):
        assert compiled(torch.ones(batch, 64)).shape == (batch, 64)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "rate": lambda x: dropout(x, 1.5),
    "list of rates": lambda x: dropout(x, [0.1, 0.2]),
    "type of rate": lambda x: dropout(x, x.new_tensor(0.5)),
    "axes of keys": lambda x: dropout(x, 0.5, key=x[:, :1].long()),
    "number of keys": lambda x: dropout(x, 0.5, key=x[:2, 0].long()),
    "key beside a mask": lambda x: dropout(x, 0.5, key=3, mask=x > 0),
    "stream beside a mask": lambda x: dropout(x, 0.5, mask=x > 0, stream=KEYS),
    "residual": lambda x: dropkit.functional.dropout_add(x, x[1:]),
    "bias": lambda x: dropkit.functional.activation_dropout(x, bias=x),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_compiler_says_of_a_wrong_argument_holds_our_message(name: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError)) as eager:
        WRONG[name](X)
    with pytest.raises(torch._dynamo.exc.Unsupported) as compiled:
        torch.compile(WRONG[name], backend="eager", fullgraph=True)(X)
    assert str(eager.value) in str(compiled.value)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (1,), (3,), (19,)])
def test_keys_of_further_fields_are_those_of_eager_code(shape: tuple[int, ...]) -> None:
    keys = torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([1, 2, 7])
    compiled = torch.compile(lambda key: (fields.keys(key, 1), fields.keys(key.unsqueeze(-1), numbers)), fullgraph=True)
    one, several = compiled(keys)
    for place, key in enumerate(keys.flatten().tolist()):
        assert int(one.flatten()[place]) % 2**64 == dropkit.random.field(key % 2**64, 1)
        want = [dropkit.random.field(key % 2**64, number) for number in numbers.tolist()]
        assert [number % 2**64 for number in several.reshape(-1, 3)[place].tolist()] == want
