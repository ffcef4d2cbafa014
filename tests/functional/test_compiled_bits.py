"""Compiled dropout by bits, which the compiler fuses with its neighbours: on GPUs in use, here forced on a CPU."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dropkit.functional import autograd, drop_connect, dropout, zoneout
from tests.functional.test_compile import CALLS, INDUCTOR, X, assert_equal

pytestmark = [
    # Of PyTorch's own making, while it traces.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
]
BACKENDS = pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])


@pytest.fixture(autouse=True)
def by_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(autograd, "_fuses", lambda _: True)
    if "narrow" not in request.node.name:  # rows are, in most tests
        monkeypatch.setattr(autograd, "has_few_words", lambda *_: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", CALLS)
def test_masks_are_those_of_eager_code(name: str, backend: str) -> None:
    found, want = torch.compile(CALLS[name], backend=backend, fullgraph=True)(X), CALLS[name](X)
    if backend == "inductor" and name in ("half", "bfloat16"):  # which it does not round to, between two operations
        torch.testing.assert_close(found, want)
        assert torch.equal(found == 0, want == 0)
    else:
        assert_equal(found, want)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64], ids=str)
def test_gradients_are_those_of_eager_code(dtype: torch.dtype, backend: str) -> None:
    gradients = []
    for call in (dropout, torch.compile(dropout, backend=backend, fullgraph=True)):
        x = X.to(dtype, copy=True).requires_grad_()
        out = call(x, 0.3, key=3)
        gradients.append(torch.autograd.grad(out, x, torch.ones_like(out))[0])
    assert_equal(*gradients)


@BACKENDS
def test_checkpoints_repeat_the_mask(backend: str) -> None:
    def block(x: Tensor) -> Tensor:
        return checkpoint(lambda v: dropout(v, 0.5).sin(), x, use_reentrant=False)

    x = torch.ones(500, requires_grad=True)
    out = torch.compile(block, backend=backend, fullgraph=True)(x)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)


def between(x: Tensor, residual: Tensor, key: Tensor) -> Tensor:
    return dropout(x.sin(), 0.3, key=key) * 2 + residual


@pytest.mark.slow
def test_a_mask_costs_an_eighth_of_a_byte_an_element_and_no_kernel_of_its_own() -> None:
    x, residual = torch.randn(64, 1024, requires_grad=True), torch.randn(64, 1024)
    kept: list[Tensor] = []
    compiled = torch.compile(between, fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        out, (forward, *_) = run_and_get_code(compiled, x, residual, torch.tensor(5))
    kernels = set(re.findall(r"fused\w+", forward))  # with the names of what they do
    assert [all(each in kernel for each in ("rshift", "sin", "add")) for kernel in kernels if "sin" in kernel] == [True]
    masks = [each for each in kept if each.shape != x.shape]
    assert sum(each.nbytes for each in masks) <= x.numel() / 8 + 64
    assert not any(each.dtype == torch.bool for each in kept)
    found = torch.autograd.grad(out.sum(), x)[0]
    want = torch.autograd.grad(between(x, residual, torch.tensor(5)).sum(), x)[0]
    torch.testing.assert_close(found, want)
    assert torch.equal(found == 0, want == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "shared"),
    [
        ((512, 3), ()),
        ((8, 40, 33), (2,)),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (((512, 1), ()), ((4, 8, 7, 7), ()), ((8, 6, 64), (1, 2)), ((64, 100), ()))
        ),
    ],
    ids=str,
)
def test_masks_of_narrow_rows_cost_no_more(shape: tuple[int, ...], shared: tuple[int, ...]) -> None:
    kept: list[Tensor] = []

    @torch.compile(fullgraph=True)
    def block(x: Tensor, key: Tensor) -> Tensor:
        return dropout(x.sin(), 0.3, key=key, broadcast_dims=shared) * 2

    x, key = torch.randn(shape, requires_grad=True), torch.tensor(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        out = block(x, key)
    assert sum(each.nbytes for each in kept if each.shape != x.shape) <= x.numel() / 8 + 64
    assert not any(each.dtype == torch.bool and each.shape == x.shape for each in kept)
    want = dropout(x.sin(), 0.3, key=5, broadcast_dims=shared) * 2
    torch.testing.assert_close(out, want)
    found, wanted = (torch.autograd.grad(each.sum(), x)[0] for each in (out, want))
    torch.testing.assert_close(found, wanted)


class Network(nn.Module):
    """Three layers, between which products of matrices lie, which the compiler does not fuse."""

    def __init__(self, drop: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.layers, self.drop = nn.ModuleList(nn.Linear(64, 64) for _ in range(3)), drop

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = self.drop(F.gelu(layer(x)), number)
        return x


DROPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "drawn": lambda x, _: dropout(x, 0.1),
    "streams": lambda x, number: dropout(x, 0.1, key=5, stream=number),
    "rates of a key": lambda x, number: dropout(x, 0.1 + number / 10, key=5),
    "a key": lambda x, number: F.pad(dropout(x[:, : 64 - number], 0.1, key=5), (0, number)),
    "zoneout": lambda x, number: zoneout(x, x.sin(), 0.1, key=number),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if "a key" in name else []) for name in DROPS]
)
def test_no_mask_of_a_network_is_kept_in_bytes(name: str) -> None:
    kept: list[Tensor] = []
    network, x = Network(DROPS[name]), torch.randn(32, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        out = torch.compile(network, fullgraph=True)(x)
    masks = [each for each in kept if not each.is_floating_point()]
    assert {each.dtype for each in masks} <= {torch.int32, torch.int64}
    assert sum(each.nbytes for each in masks) <= 3 * (32 * 64 / 8 + 256)
    if name == "drawn":
        return
    wanted = network(x)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (out, wanted)))


def test_a_mask_of_weights_is_kept_in_whole_words_a_row() -> None:
    kept: list[Tensor] = []
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((8, 40), (16, 40), (16,)))
    weight.requires_grad_()

    def connect(weight: Tensor) -> Tensor:
        return drop_connect(x, weight, bias, 0.3, key=5)

    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        out = torch.compile(connect, fullgraph=True, backend="aot_eager_decomp_partition")(weight)
    assert sum(each.nbytes for each in kept if not each.is_floating_point()) <= 8 * 16 * 2 * 4 + 256
    wanted = connect(weight)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), weight)[0] for each in (out, wanted)))


class Devices(TorchDispatchMode):
    """Gathers the devices of all that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **kwargs or {})
        if isinstance(out, Tensor):
            self.found.add(out.device.type)
        return out


@pytest.mark.parametrize("key", [None, 3])
def test_nothing_of_it_is_on_a_cpu_which_would_keep_it_out_of_cuda_graphs(
    monkeypatch: pytest.MonkeyPatch, key: int | None
) -> None:
    with FakeTensorMode(), Devices() as devices:
        x = torch.empty(8, 40, device="cuda")
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert dropout(x, 0.3, key=key).is_cuda
        monkeypatch.undo()
    assert devices.found == {"cuda"}


@pytest.mark.parametrize("lengths", [(64, 128, 96), (40, 70, 33)], ids=["words", "narrow"])
def test_new_keys_and_lengths_do_not_compile_again(lengths: tuple[int, ...]) -> None:
    compiled = torch.compile(between, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, columns in zip((3, 4, 9), lengths, strict=True):
            x, residual = torch.randn(2, rows, columns)
            for number in (5, 6):
                key = torch.tensor(number)
                assert_equal(compiled(x, residual, key), between(x, residual, key))
