"""Every public function and layer on a GPU of shapes alone: all is on it, nothing waits, forward or backward.

A real GPU refuses tensors of another device, and waits where a number is copied to it or read back, which its graphs
refuse. Both are found here without one; `make triton` and a real GPU tell of the kernels themselves.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from dropkit import functional, nn
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.contract.test_bad_input import GOOD, PUBLIC
from tests.helpers.gpus import SERVING, moved, on_gpu

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN:UserWarning")

KEY = 0x720F_0000_1234_5678
WAITS = {"dropkit.functional.skip_path"}  # runs the branch on what is kept, and has to know how much that is
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    name: (PUBLIC[name], good)
    for name, good in GOOD.items()
    if any(isinstance(value, Tensor) for value in good.values()) and name not in WAITS
}


def more() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Further arguments, by which calls take other ways."""
    x, image, weights = torch.ones(4, 3, 8), torch.ones(2, 3, 6, 6), {"weight": torch.ones(8), "bias": torch.ones(8)}
    yield "dropout, shared", functional.dropout, {"input": x, "broadcast_dims": 1}
    yield "dropout, a shard", functional.dropout, {"input": x, "offset": (0, 0, 3), "full_shape": (9, 9, 99)}
    yield "dropout, original", functional.dropout, {"input": x, "scale_at": "eval"}
    yield "dropout, transposed", functional.dropout, {"input": x.transpose(0, 2)}
    yield "dropout, channels last", functional.dropout, {"input": image.to(memory_format=torch.channels_last)}
    yield "dropout, complex", functional.dropout, {"input": torch.ones(4, 3, dtype=torch.complex64)}
    yield "dropout, original, in evaluation", functional.dropout, {"input": x, "scale_at": "eval", "training": False}
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        given = {"input": x, "activation": activation, "bias": torch.ones(8)}
        yield f"activation_dropout, {activation}", functional.activation_dropout, given
    norm = {"input": x, "residual": x, "prenorm": True}
    yield "dropout_add_layer_norm, with weights", functional.dropout_add_layer_norm, {**norm, **weights}
    yield "dropout_add_rms_norm, with weights", functional.dropout_add_rms_norm, {**norm, "weight": weights["weight"]}
    for mode in ("batch", "row"):
        yield f"drop_path, {mode}", functional.drop_path, {"input": x, "mode": mode}
    yield "drop_block2d, own", functional.drop_block2d, {"input": image, "block_size": 3, "share_channels": False}
    yield "drop_block2d, shared", functional.drop_block2d, {"input": image, "block_size": 3}
    tokens = torch.ones(4, 3, dtype=torch.int64)
    yield "word_dropout, tokens", functional.word_dropout, {"input": tokens, "unknown": 0, "spared": (2,)}
    for per in ("sequence", "batch"):
        given = {"input": x, "tokens": tokens, "words": 5, "per": per}
        yield f"embedding_dropout, {per}", functional.embedding_dropout, given
    yield "zoneout, in evaluation", functional.zoneout, {"new": x, "old": x, "training": False}
    yield from attention()
    yield from layers(x, image)


def attention() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    query, key = torch.ones(2, 4, 5, 8), torch.ones(2, 2, 6, 8)
    attend, four = functional.scaled_dot_product_attention, {"query": query, "key": query, "value": query}
    yield "attention, of groups", attend, {"query": query, "key": key, "value": key, "enable_gqa": True}
    yield "attention, causal", attend, {**four, "is_causal": True}
    yield "attention, bool mask", attend, {**four, "attn_mask": torch.ones(5, 5, dtype=torch.bool)}
    yield "attention, added mask", attend, {**four, "attn_mask": torch.zeros(2, 1, 5, 5)}
    x, padding = torch.ones(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    heads = nn.MultiheadAttention(8, 2, 0.3, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    given = {"query": x, "key": x, "value": x, "key_padding_mask": padding}
    yield "MultiheadAttention, weights", heads, given
    plain = nn.MultiheadAttention(8, 2, 0.3, batch_first=True)
    for name, option in (("padding", given), ("plain", {**given, "key_padding_mask": None})):
        yield f"MultiheadAttention, {name}", plain, {**option, "need_weights": False}
    for first in (False, True):
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True, norm_first=first, activation="gelu")
        yield f"TransformerEncoderLayer, norm_first={first}", layer, {"src": x, "src_key_padding_mask": padding}
        yield f"TransformerEncoderLayer, norm_first={first}, plain", layer, {"src": x}


def layers(x: Tensor, image: Tensor) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    noise: dict[str, Any] = {"input_p": 0.3, "recurrent_p": 0.2, "output_p": 0.1, "dropout": 0.1, "update_p": 0.2}
    two: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    state = torch.ones(4, 4, 5)
    yield "LSTM, all", nn.LSTM(8, 5, zoneout_c=0.2, zoneout_h=0.2, **two, **noise), {"input": x, "hx": (state, state)}
    yield "LSTM, projected", nn.LSTM(8, 5, proj_size=3, **two, **noise), {"input": x}
    yield "LSTM, of each step", nn.LSTM(8, 5, tied=False, **two, **noise), {"input": x}
    yield "GRU, all", nn.GRU(8, 5, zoneout=0.2, **two, **noise), {"input": x, "hx": state}
    yield "GRU, in evaluation", nn.GRU(8, 5, zoneout=0.2, **two, **noise).eval(), {"input": x}
    convolution = torch.nn.Conv2d(3, 4, 3)
    yield "ConcreteDropout, spatial", nn.ConcreteDropout(convolution, spatial=True), {"input": image}
    yield "DropConnect, in evaluation", nn.DropConnect(8, 5, activation=F.relu).eval(), {"input": x}
    yield "VariationalDropout, in evaluation", nn.VariationalDropout(8).eval(), {"input": x}
    yield "VariationalLinear, by weight", nn.VariationalLinear(8, 5, per="weight"), {"input": x}
    yield "SparseVariationalLinear, in evaluation", nn.SparseVariationalLinear(8, 5).eval(), {"input": x}
    yield "WeightDrop, convolution", nn.WeightDrop(copy.deepcopy(convolution)), {"input": image}
    for layer, given in ((nn.Dropout(0.3), x), (nn.DropBlock2d(0.3, 3), image), (nn.GaussianDropout(0.3), x)):
        layer.follow()
        yield f"{type(layer).__name__}, of a rate that moves", layer, {"input": given}


CALLS |= {name: (call, given) for name, call, given in more()}


def named(call: Callable[..., Any]) -> dict[str, str]:
    """What a call names its rate, key, stream and masks."""
    found = inspect.signature(call.forward if isinstance(call, torch.nn.Module) else call).parameters
    names: dict[str, tuple[str, ...]] = {
        "p": ("p", "dropout_p"),
        "key": ("dropout_key",) if "query" in found or "dropout_key" in found else ("key",),
        "stream": ("stream", "dropout_stream"),
        "return": ("return_mask", "return_noise", "return_dropout_mask", "return_masks"),
    }
    return {role: name for role, several in names.items() for name in several if name in found}


OPTIONS: dict[str, Callable[[dict[str, str], int], dict[str, Any]]] = {
    "drawn": lambda names, n: {},
    "key": lambda names, n: {names["key"]: KEY},
    "stream": lambda names, n: {names["key"]: KEY, names["stream"]: 3},
    "key in a tensor": lambda names, n: {names["key"]: torch.tensor(KEY)},
    "keys": lambda names, n: {names["key"]: torch.arange(n)},
    "streams": lambda names, n: {names["key"]: torch.tensor(KEY), names["stream"]: torch.arange(n)},
    "rate in a tensor": lambda names, n: {names["p"]: torch.tensor(0.3, dtype=torch.float64)},
    "rates": lambda names, n: {names["p"]: torch.linspace(0.1, 0.9, n, dtype=torch.float64)},
    "mask returned": lambda names, n: {names["return"]: True},
}


def run(call: Callable[..., Any], given: dict[str, Any]) -> list[Tensor]:
    """Call forward and backward; what is returned, then the gradients of what was given and of parameters."""
    found = [each for each in pytree.tree_leaves(call(**given)) if isinstance(each, Tensor)]
    floating = [each for each in found if each.requires_grad]
    if floating:
        sum(each.abs().sum() for each in floating).backward()
    leaves = [each for each in pytree.tree_leaves(given) if isinstance(each, Tensor)]
    modules = [each for each in (call, given.get("self")) if isinstance(each, torch.nn.Module)]
    leaves += [each for module in modules for each in module.parameters()]
    return [*found, *(each.grad for each in leaves if each.grad is not None)]


def described(found: list[Tensor]) -> list[Any]:
    return [(tuple(each.shape), each.dtype) for each in found]


def on_cpu(call: Callable[..., Any], given: dict[str, Any]) -> list[Tensor]:
    call, given = copy.deepcopy((call, given))
    for value in pytree.tree_leaves(given):
        if isinstance(value, Tensor) and (value.dtype == torch.float32 or value.is_complex()):
            value.requires_grad_()
    return run(call, given)


def check(call: Callable[..., Any], given: dict[str, Any], serving: str, dtype: torch.dtype | None = None) -> Any:
    """Call on the GPU, where nothing crosses; shapes and types of what is found."""
    copied = copy.deepcopy((call, given))
    with on_gpu(serving) as gpu:
        found = run(*moved(copied, dtype))
    assert gpu.crossings == []
    assert all(each.is_cuda for each in found)
    return described(found)


SLOW, EXHAUSTIVE = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.exhaustive]
MARKS = {option: [] if option == "drawn" else SLOW if option == "keys" else EXHAUSTIVE for option in OPTIONS}


@pytest.mark.parametrize("option", [pytest.param(option, marks=marks) for option, marks in MARKS.items()])
@pytest.mark.parametrize("name", CALLS)
def test_all_is_on_the_gpu_and_nothing_waits(name: str, option: str) -> None:
    call, given = CALLS[name]
    names = named(call)
    size = next(len(value) for value in given.values() if isinstance(value, Tensor))
    try:
        given = {**given, **OPTIONS[option](names, size)}
        wanted = described(on_cpu(call, given))
    except (KeyError, ArgumentError, ArgumentTypeError):
        assert option != "drawn"
        pytest.skip("it takes none")
    for serving in SERVING:
        assert check(call, given, serving) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=EXHAUSTIVE)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_halves(name: str, dtype: torch.dtype) -> None:
    call, given = CALLS[name]
    has_any = any(isinstance(value, Tensor) and value.dtype == torch.float32 for value in given.values())
    for serving in SERVING:
        assert dtype in {found for _, found in check(call, given, serving, dtype)} or not has_any


def test_what_crosses_is_noted() -> None:
    with on_gpu() as gpu:
        x, several = torch.ones(3, device="cuda", requires_grad=True), torch.ones(3)
        (x * torch.tensor(2.0)).sum().backward()
        assert gpu.crossings == []
        assert x.grad.is_cuda
        several.to("cuda:0")
        torch.where(x > 0, x, torch.tensor(2.0))
        assert ["_to_copy" in gpu.crossings[0], "where" in gpu.crossings[1]] == [True, True]
        with pytest.raises(RuntimeError, match="device"):
            x * several
        with pytest.raises(RuntimeError):  # to wait for it
            float(x[0])
