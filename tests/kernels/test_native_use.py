"""Compiled kernels in use: any number of threads, callers and processes, and tensors of any memory format."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from dropkit import functional, random
from dropkit.kernels import portable
from dropkit.kernels.native import library
from dropkit.kernels.native.operations import TYPES
from tests.helpers.arrangements import arrangements
from tests.helpers.native import Address, bits, dropped, keep_mask, reference

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

KEY = random.call_key(17, "native", step=4)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def flushed(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Let this thread's processor count subnormal numbers as 0, or not; put it back."""
    if request.param and not torch.set_flush_denormal(True):
        pytest.skip("this processor always keeps subnormal numbers")
    yield request.param
    torch.set_flush_denormal(False)


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(100_003,), (70_001, 3), (5, 7, 1000), (300, 301), (3, 40_001)])
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing(shape: tuple[int, ...]) -> None:
    x, address, t = torch.randn(shape), Address(KEY, shape), random.threshold(1 / 3)
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append((dropped(x, address, t), torch.from_numpy(keep_mask(address, t))))
    assert torch.equal(found[0][1], torch.from_numpy(reference(address, 1 / 3)))
    for out, keep in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(keep, found[0][1])


def test_several_callers_at_once() -> None:
    x = torch.randn(200, 301)
    want = {key: dropped(x, Address(key, (200, 301)), random.threshold(0.4)) for key in range(40)}

    def holds(key: int) -> bool:
        return torch.equal(dropped(x, Address(key, (200, 301)), random.threshold(0.4)), want[key])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(holds, [*want] * 5))


@needs_fork
@pytest.mark.usefixtures("threads")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("by", ["parent", "child"])
def test_a_forked_child_draws_the_same_masks_on_one_thread(by: str) -> None:
    """As a worker of PyTorch's data loader does, or under a parent that has gone down to one, after work on two."""
    x, address, t = torch.randn(300, 301), Address(KEY, (300, 301)), random.threshold(0.4)
    torch.set_num_threads(2)
    want = dropped(x, address, t)
    if by == "parent":
        torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # ends a child that hangs
        if by == "child":
            torch.set_num_threads(1)
        os._exit(0 if torch.equal(dropped(x, address, t), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_fork
def test_a_child_forked_before_pytorch_is_imported_needs_nothing(instruction_set: str) -> None:
    code = """\
import os, signal, sys
import numpy as np
from dropkit.numpy import dropout_forward
want = dropout_forward(np.ones((300, 301)), 0.4, rng=7)[0]
child = os.fork()
if child == 0:
    signal.alarm(120)
    os._exit(0 if (dropout_forward(np.ones((300, 301)), 0.4, rng=7)[0] == want).all() else 1)
assert "torch" not in sys.modules
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {library.ENVIRONMENT: instruction_set}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shared", [(), (2, 3), (0,), (1,)])
def test_the_functional_and_its_gradient_in_any_memory_format(dtype: torch.dtype, shared: tuple[int, ...]) -> None:
    shape = (3, 4, 7, 9)
    keep = torch.from_numpy(random.keep_mask(KEY, shape, 0.4, broadcast_dims=shared)).expand(shape)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = portable.survivor_scale(torch.tensor(random.threshold(0.4))).to(wide)

    def want(values: Tensor) -> Tensor:
        return torch.where(keep, (values.to(wide) * scale).to(dtype), 0)

    for name, values in arrangements(torch.randn(shape).to(dtype)).items():
        x = values.detach().requires_grad_()
        out = functional.dropout(x, 0.4, key=KEY, broadcast_dims=shared)
        assert torch.equal(bits(out.detach()), bits(want(values))), name
        assert out.stride() == torch.empty_like(x).stride(), name
        for gradient in arrangements(torch.randn(shape).to(dtype)).values():
            (found,) = torch.autograd.grad(out, x, gradient, retain_graph=True)
            assert torch.equal(bits(found), bits(want(gradient))), name


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 65), (10, 64)])
def test_subnormal_numbers_are_what_pytorchs_multiplication_makes_of_them(
    dtype: torch.dtype, shape: tuple[int, ...], flushed: bool, instruction_set: str
) -> None:
    """Whether the processor counts them as 0 or not, and the mask is the same."""
    integers = bits(torch.ones((), dtype=dtype)).dtype
    mantissas = torch.randint(1, int(1 / torch.finfo(dtype).eps), shape).to(integers)
    signed = torch.where(torch.rand(shape) < 0.5, mantissas, mantissas + torch.iinfo(integers).min)
    x, positive = signed.view(dtype), mantissas.view(dtype)
    keep = torch.from_numpy(random.keep_mask(KEY, shape, 0.4))
    scale = portable.survivor_scale(torch.tensor(random.threshold(0.4)))
    want = bits(torch.where(keep, x * scale.item(), 0))
    are_zeros = flushed and dtype != torch.float16  # which is computed in float32, where it is not subnormal
    assert (want & torch.iinfo(integers).max).any() != are_zeros
    leaf = x.clone().requires_grad_()
    found = functional.dropout(leaf, 0.4, key=KEY)
    found.backward(x)
    address = Address(KEY, shape)
    for name, out in {
        "forward": found.detach(),
        "gradient": leaf.grad,
        "given": functional.dropout(x, 0.4, mask=keep),
        "portable": portable.dropout(x, *address.tensors(random.threshold(0.4)), address.place()),
        "another order": functional.dropout(x.mT.contiguous().mT, 0.4, key=KEY) if x.dim() > 1 else found.detach(),
    }.items():
        assert torch.equal(bits(out), want), name
    want_positive = bits(torch.where(keep, positive * scale.item(), 0))
    assert torch.equal(bits(functional.dropout_add(positive, torch.zeros_like(x), 0.4, key=KEY)), want_positive)
    assert torch.equal(bits(functional.activation_dropout(positive, "relu", 0.4, key=KEY)), want_positive)
    assert torch.equal(functional.dropout(x, 0.4, key=KEY, return_mask=True)[1], keep)
