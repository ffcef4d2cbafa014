"""On a GPU of shapes alone: examples that have numbers, transforms, second derivatives, checkpoints, autocast."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dropkit import functional, nn
from dropkit.functional import dropout
from dropkit.functional.examples import NumberedKey
from tests.helpers.gpus import SERVING, moved, on_gpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN:UserWarning"),
    pytest.mark.parametrize("serving", [SERVING[0], pytest.param(SERVING[1], marks=pytest.mark.exhaustive)]),
]
KEY = 0x720F_0000_1234_5678
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "dropout": dropout,
    "dropout, shared": lambda x, p=0.5, **o: dropout(x, p, broadcast_dims=1, **o),
    "dropout1d": functional.dropout1d,
    "locked_dropout": functional.locked_dropout,
    "alpha_dropout": functional.alpha_dropout,
    "gaussian_dropout": functional.gaussian_dropout,
    "drop_path": functional.drop_path,
    "drop_block1d": lambda x, p=0.5, **o: functional.drop_block1d(x, p, block_size=3, **o),
    "zoneout": lambda x, p=0.5, **o: functional.zoneout(x, x.neg(), p, **o),
    "dropout_add": lambda x, p=0.5, **o: functional.dropout_add(x, x.neg(), p, **o),
    "activation_dropout": lambda x, p=0.5, **o: functional.activation_dropout(x, "gelu", p, **o),
    "dropout_add_layer_norm": lambda x, p=0.5, **o: functional.dropout_add_layer_norm(x, x.neg(), p=p, **o),
    "dropout_add_rms_norm": lambda x, p=0.5, **o: functional.dropout_add_rms_norm(x, x.neg(), p=p, **o),
    "attention": lambda x, p=0.5, key=None, **o: functional.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], dropout_p=p, dropout_key=key, **o
    )[:, 0],
    "drop_connect": lambda x, p=0.5, **o: functional.drop_connect(x, x[0], None, p, **o),
    "word_dropout": functional.word_dropout,
    "concrete_dropout": lambda x, p=0.5, **o: functional.concrete_dropout(x, x.new_zeros(()), **o),
    "variational_dropout": lambda x, p=0.5, **o: functional.variational_dropout(x, x.new_zeros(8), **o),
}
NAMES = pytest.mark.parametrize("name", FUNCTIONS)


def data(*shape: int) -> Tensor:
    return torch.empty(shape or (4, 8, 8), device="cuda", requires_grad=True)


@NAMES
@pytest.mark.parametrize(
    "key",
    [NumberedKey(KEY, ((5, 4),)), NumberedKey(KEY, ((9, 1), (2, 3))), NumberedKey(KEY, ((5, 2),), (1, 2))],
    ids=["in order", "in runs", "passes"],
)
def test_examples_that_have_numbers(serving: str, name: str, key: NumberedKey) -> None:
    with on_gpu(serving) as gpu:
        x = data()
        FUNCTIONS[name](x, key=key).sum().backward()
        assert x.grad.is_cuda
    assert gpu.crossings == []


@NAMES
def test_a_mask_for_all_and_one_for_each_under_vmap(serving: str, name: str) -> None:
    with on_gpu(serving) as gpu, torch.no_grad():
        x, keys = data(3, 4, 8, 8), torch.empty(3, dtype=torch.int64, device="cuda")
        run = FUNCTIONS[name]
        for found in (
            torch.vmap(lambda each: run(each, key=KEY))(x),
            torch.vmap(run, randomness="different")(x),
            torch.vmap(lambda each, key: run(each, key=key))(x, keys),
        ):
            assert found.is_cuda
    assert [each for each in gpu.crossings if "aten" not in each] == []


@NAMES
def test_second_derivatives(serving: str, name: str) -> None:
    with on_gpu(serving) as gpu:
        x = data()
        (first,) = torch.autograd.grad(FUNCTIONS[name](x, key=KEY).sin().sum(), x, create_graph=True)
        first.square().sum().backward()
        assert x.grad.is_cuda
    assert gpu.crossings == []


@NAMES
def test_autocast(serving: str, name: str) -> None:
    torch.set_autocast_enabled("cuda", True)  # which `torch.autocast` would not do where there is no GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with on_gpu(serving) as gpu:
            x = data()
            FUNCTIONS[name](x).float().sum().backward()
            assert x.grad.dtype == torch.float32
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
    assert gpu.crossings == []


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_sequences_of_several_lengths(serving: str, kind: Any) -> None:
    layer = kind(8, 5, 2, input_p=0.3, recurrent_p=0.2, output_p=0.1, dropout=0.1, bidirectional=True)
    packed = pack_padded_sequence(torch.zeros(6, 4, 8), torch.tensor([6, 4, 4, 1]))
    active = torch.arange(4) < packed.batch_sizes.unsqueeze(1)
    places = active.reshape(-1).nonzero()  # whose length shapes alone do not tell
    with on_gpu(serving) as gpu, mock.patch.object(Tensor, "nonzero", return_value=places):
        layer = moved(layer)
        out, _ = layer(PackedSequence(torch.empty(15, 8, device="cuda"), packed.batch_sizes))
        assert out.data.is_cuda
    assert gpu.crossings == []


class Devices(TorchDispatchMode):
    """Gathers the devices of all that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **kwargs or {})
        self.found |= {each.device.type for each in pytree.tree_leaves(out) if isinstance(each, Tensor)}
        return out


@NAMES
def test_what_is_compiled_has_nothing_on_a_cpu_which_would_keep_it_out_of_cuda_graphs(serving: str, name: str) -> None:
    for number in (None, KEY):
        with on_gpu(serving) as gpu, Devices() as devices:
            x = data()
            key = None if number is None else torch.empty((), dtype=torch.int64, device="cuda")
            with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
                assert FUNCTIONS[name](x, key=key).is_cuda
        assert devices.found == {"cuda"}
        assert gpu.crossings == []
