"""What only a GPU can show: its masks, CUDA graphs, memory, compiled code, and tensors that 32 bits do not number."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dropkit import nn, random
from dropkit.functional import (
    activation_dropout,
    dropout,
    dropout_add,
    dropout_add_layer_norm,
    dropout_add_rms_norm,
    scaled_dot_product_attention,
)

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

DEVICE = "cuda"
KEY = 0x720F_0000_1234_5678
HALVES = (torch.bfloat16, torch.float16)
SHAPE = (6, 8, 12, 40)
WAYS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "whole": (lambda x: x, {}),
    "rows of odd length": (lambda x: x[..., :39].contiguous(), {}),
    "flat": (torch.flatten, {}),
    "channels": (lambda x: x, {"broadcast_dims": (2, 3)}),
    "rows": (lambda x: x, {"broadcast_dims": -1}),
    "over time": (lambda x: x, {"broadcast_dims": 1}),
    "slices": (lambda x: x, {"key": range(SHAPE[0])}),
    "passes": (lambda x: x, {"stream": range(1, SHAPE[0] + 1)}),
    "a shard": (lambda x: x, {"offset": (1, 2, 0, 8), "full_shape": (9, 10, 12, 80)}),
    "channels last": (lambda x: x.contiguous(memory_format=torch.channels_last), {}),
    "transposed": (lambda x: x.transpose(0, 3), {}),
    "every other column": (lambda x: x[..., 1::2], {}),
    "part": (lambda x: x[:, 2:5, 1:, 3:], {"stream": 2}),
}


def definition(shape: Sequence[int], p: float, **options: Any) -> Tensor:
    """Return a mask by NumPy, with axes of length 1 that share."""
    key, stream = options.pop("key", KEY), options.pop("stream", 0)
    if isinstance(key, range):
        return torch.from_numpy(np.stack([random.keep_mask(each, shape[1:], p) for each in key]))
    if isinstance(stream, range):
        return torch.from_numpy(np.stack([random.keep_mask(key, shape[1:], p, stream=each) for each in stream]))
    return torch.from_numpy(random.keep_mask(key, shape, p, stream=stream, **options))


def on(device: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return options with keys and passes as tensors of a device."""
    given = {"key": KEY, **options}
    return {
        name: torch.tensor(value, device=device) if name in ("key", "stream") else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_masks_are_those_of_the_definition_forward_and_backward(dtype: torch.dtype, is_compiled: bool) -> None:
    def draw(x: Tensor, p: Tensor, options: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
        return {name: dropout(view(x), p, **options[name]) for name, (view, _) in WAYS.items()}

    run = torch.compile(draw, fullgraph=True) if is_compiled else draw
    values = (torch.rand(SHAPE) + 0.5).to(dtype)
    for p in (0.5, 0.1):
        x, rate = values.to(DEVICE).requires_grad_(), torch.tensor(p, dtype=torch.float64, device=DEVICE)
        found = run(x, rate, {name: on(DEVICE, options) for name, (_, options) in WAYS.items()})
        for name, (view, options) in WAYS.items():
            want = definition(view(values).shape, p, **options).expand_as(found[name])
            assert torch.equal(found[name].cpu() != 0, want), name
            assert torch.equal(found[name].cpu(), dropout(view(values), p, **on("cpu", options))), name
            grad = torch.ones_like(found[name])
            (backward,) = torch.autograd.grad(found[name], x, grad, retain_graph=True)
            assert torch.equal(view(backward.cpu()) != 0, want), name
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_numbers_and_tensors_are_the_same_addresses(dtype: torch.dtype) -> None:
    x = torch.rand(50, 72, device=DEVICE, dtype=dtype) + 0.5
    for key in (0, 7, KEY, 2**64 - 1):
        tensor = torch.tensor(key - 2**64 if key >= 2**63 else key, device=DEVICE)
        want = torch.from_numpy(random.keep_mask(key, x.shape, 0.3, stream=5))
        for given in (key, tensor, tensor.cpu()):
            assert torch.equal(dropout(x, 0.3, key=given, stream=5).cpu() != 0, want)


@pytest.mark.parametrize("is_strided", [False, True], ids=["contiguous", "strided"])
def test_more_elements_than_32_bits_number(is_strided: bool) -> None:
    """A dozen gigabytes and a half; the last rows, the first, and those that 32 bits would confuse with them."""
    rows, columns = 2**18 + 3, 2**13
    whole = torch.ones(rows, columns + 8 if is_strided else columns, dtype=torch.bfloat16, device=DEVICE)
    x = whole[:, 8:] if is_strided else whole
    x = x.detach().requires_grad_()
    output = dropout(x, 0.3, key=KEY)
    (grad,) = torch.autograd.grad(output, x, x.detach())
    for row in (0, 2**18 - 2, rows - 3):
        place = {"offset": (row, 0), "full_shape": (rows, columns)}
        want = torch.from_numpy(random.keep_mask(KEY, (3, columns), 0.3, **place))
        for found in (output, grad):
            assert torch.equal(found[row : row + 3].cpu() != 0, want)


Step = Callable[..., Tensor]
ROWS, COLUMNS = 32, 64
STEPS: dict[str, Step] = {
    "dropout": lambda x, p, key: dropout(x, p, key=key),
    "channels": lambda x, p, key: dropout(x.view(4, 8, ROWS * COLUMNS // 32), p, key=key, broadcast_dims=-1),
    "transposed": lambda x, p, key: dropout(x.mT, p, key=key),
    "dropout_add": lambda x, p, key: dropout_add(x, x.detach().sin(), p, key=key),
    "activation": lambda x, p, key: activation_dropout(x, "gelu", p, bias=x[0].detach(), key=key),
    "layer norm": lambda x, p, key: dropout_add_layer_norm(x, x.detach().sin(), p=p, key=key),
    "root mean square norm": lambda x, p, key: dropout_add_rms_norm(x, x.detach().sin(), p=p, key=key),
    "attention": lambda x, p, key: scaled_dot_product_attention(
        *(x[None, None].expand(2, 3, -1, -1) for _ in range(3)), dropout_p=p, dropout_key=key
    ),
}


def both(run: Step, x: Tensor, p: Any, key: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the result and the gradient."""
    output = run(x, p, key)
    (grad,) = torch.autograd.grad(output, x, torch.ones_like(output))
    return output.detach(), grad


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(ROWS, COLUMNS, device=DEVICE, dtype=dtype).requires_grad_()


def captured(run: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Return the tensors that a CUDA graph writes, and its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    return found, graph.replay


@pytest.mark.parametrize("name", STEPS)
def test_graphs_replay_the_masks_of_the_key_that_a_tensor_has(name: str) -> None:
    x, key, run = inputs(), torch.tensor(KEY, device=DEVICE), STEPS[name]
    found, replay = captured(lambda: both(run, x, 0.3, key))
    previous = None
    for step in range(3):
        replay()
        wanted = both(run, x, 0.3, torch.tensor(KEY + step, device=DEVICE))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        assert previous is None or not torch.equal(found[0], previous)
        previous = found[0].clone()
        key.add_(1)


@pytest.mark.parametrize("name", STEPS)
def test_graphs_draw_keys_anew(name: str) -> None:
    x = inputs()
    found, replay = captured(lambda: both(STEPS[name], x, 0.3, None))
    outputs = []
    for _ in range(3):
        replay()
        outputs.append(found[0].clone())
    assert len({output.cpu().numpy().tobytes() for output in outputs}) == 3


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Gather the names of the kernels that Triton compiles, or reads from its cache."""
    found: list[str] = []

    def hook(*_: Any, **options: Any) -> None:
        found.append(str(options["repr"]))

    knobs = triton.knobs.runtime
    before, knobs.jit_post_compile_hook = knobs.jit_post_compile_hook, hook
    yield found
    knobs.jit_post_compile_hook = before


@pytest.mark.parametrize("name", STEPS)
def test_keys_rates_and_steps_compile_nothing_anew(name: str, compilations: list[str]) -> None:
    run, x, key = STEPS[name], inputs(), torch.tensor(KEY, device=DEVICE)
    rate = torch.tensor(0.3, dtype=torch.float64, device=DEVICE)
    for p, given in itertools.product((0.3, rate), (KEY, key)):
        both(run, x, p, given)
    compilations.clear()
    for step, p in itertools.product(range(1, 4), (0.1, 0.5, 1 - 2.0**-20, rate.mul_(0.9))):
        for given in (random.call_key(KEY, "site", step), key.add_(step), None):
            both(run, x, p, given)
    assert not compilations


@pytest.mark.parametrize("place", [DEVICE, "cpu"])
def test_reduced_overhead_has_the_masks_of_eager_code_at_every_step(place: str) -> None:
    def model(x: Tensor, key: Tensor, p: Tensor) -> Tensor:
        x = dropout(F.gelu(x), p, key=key) + x
        x = dropout_add_layer_norm(x, x.sin(), p=p, key=key + 1)
        return dropout_add(x, x.cos(), p, key=key + 2).square()

    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    x = inputs()
    torch._dynamo.utils.counters.clear()
    outputs = []
    for step in range(5):
        key, p = torch.tensor(KEY + step, device=place), torch.tensor(0.1 + 0.1 * step, dtype=torch.float64).to(place)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            output = compiled(x, key, p).clone()
        (grad,) = torch.autograd.grad(output.sum(), x)
        wanted = model(x, key, p)
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
        (wanted_grad,) = torch.autograd.grad(wanted.sum(), x)
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-4)
        outputs.append(output.detach())
    assert place == "cpu" or not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    assert not any(torch.equal(one, outputs[0]) for one in outputs[1:])
    torch._dynamo.reset()


def block(x: Tensor, key: Tensor | None) -> Tensor:
    """Run all kinds of sites one after another."""
    keys = [None if key is None else key + step for step in range(3)]
    x = dropout(x.sin(), 0.3, key=keys[0])
    x = dropout_add_layer_norm(x, x.cos(), p=0.3, key=keys[1])
    return scaled_dot_product_attention(x, x, x, dropout_p=0.3, dropout_key=keys[2]).exp()


POLICIES: dict[str, Callable[..., Any]] = {
    "all again": lambda: None,
    "nothing again": lambda: CheckpointPolicy.MUST_SAVE,
    "dropout saved": lambda: (torch.ops.dropkit.dropout.default, torch.ops.dropkit.attention.default),
    "products saved": lambda: (torch.ops.aten.mm.default, torch.ops.aten.bmm.default),
}


@pytest.mark.parametrize("has_key", [True, False], ids=["a key", "drawn"])
@pytest.mark.parametrize("name", POLICIES)
def test_checkpoints_of_every_policy_have_the_masks_of_the_first_run(name: str, has_key: bool) -> None:
    policy, options = POLICIES[name](), {}
    if policy is not None:
        decide = list(policy) if isinstance(policy, tuple) else lambda *_, **__: policy
        options["context_fn"] = partial(create_selective_checkpoint_contexts, decide)
    x = torch.randn(2, 3, 40, 32, device=DEVICE).requires_grad_()
    key = torch.tensor(KEY, device=DEVICE) if has_key else None
    results = []
    for run in (block, partial(checkpoint, block, use_reentrant=False, **options)):
        torch.cuda.manual_seed(5)
        output = run(x, key)
        torch.rand(3, device=DEVICE)  # the generator moves on before the backward pass
        (grad,) = torch.autograd.grad(output.sum(), x)
        results.append((output.detach(), grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("index", range(max(torch.cuda.device_count(), 1)))
@pytest.mark.parametrize("name", STEPS)
def test_a_device_that_is_not_the_current_one(name: str, index: int) -> None:
    """With one GPU it is the current one."""
    wanted = both(STEPS[name], x := inputs(), 0.3, torch.tensor(KEY, device=DEVICE))
    there = torch.device(DEVICE, index)
    with torch.cuda.device((index + 1) % torch.cuda.device_count()):
        found = both(STEPS[name], x.detach().to(there).requires_grad_(), 0.3, torch.tensor(KEY, device=there))
    assert all(one.device == there for one in found)
    assert all(torch.equal(one.cpu(), other.cpu()) for one, other in zip(found, wanted, strict=True))


def test_autocast_takes_types_as_pytorch_does() -> None:
    x, half = inputs(), inputs(torch.bfloat16)
    weight = torch.ones(COLUMNS, device=DEVICE)
    query = x[None, None]
    with torch.autocast(DEVICE, torch.bfloat16):
        attended = scaled_dot_product_attention(query, query, query, dropout_p=0.3, dropout_key=KEY)
        added, normal = dropout_add(half, x, 0.3, key=KEY), dropout_add_layer_norm(half, x, weight, p=0.3, key=KEY)
        dropped = dropout(half, 0.3, key=KEY)
    narrow = query.bfloat16()
    assert torch.equal(attended, scaled_dot_product_attention(narrow, narrow, narrow, dropout_p=0.3, dropout_key=KEY))
    assert torch.equal(added, dropout_add(half.float(), x, 0.3, key=KEY))
    torch.testing.assert_close(normal, dropout_add_layer_norm(half.float(), x, weight, p=0.3, key=KEY))
    assert (attended.dtype, dropped.dtype) == (torch.bfloat16, torch.bfloat16)


def kept(run: Callable[[], Tensor]) -> int:
    """Return how many bytes a call keeps beside its result."""
    run()
    before = torch.cuda.memory_allocated()
    output = run()
    return torch.cuda.memory_allocated() - before - output.numel() * output.element_size()


def test_nothing_of_the_mask_is_kept_for_the_backward_pass() -> None:
    x = torch.randn(2**11, 2**12, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    residual, few = torch.randn_like(x), 2**12  # bytes of an address
    assert kept(lambda: dropout(x, 0.1)) <= few
    assert kept(lambda: dropout_add(x, residual, 0.1)) <= few
    assert kept(lambda: nn.Dropout(0.1).to(DEVICE)(x)) <= few
    compiled = torch.compile(lambda x: dropout(x.sin(), 0.1).tanh(), fullgraph=True)  # which keeps input and output
    assert kept(lambda: compiled(x)) <= x.numel() / 8 + few
    torch._dynamo.reset()
