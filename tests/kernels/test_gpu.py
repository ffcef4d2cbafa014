"""Kernels for GPUs are compared with portable operations before they serve; here in Triton's interpreter."""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import dropkit.functional  # noqa: F401  # all operators
from dropkit import kernels
from dropkit.errors import UnsupportedError
from dropkit.kernels import gpu, gpu_examples, operators, portable
from dropkit.kernels.gpu_address import IN_MEMORY, SEVERAL, Address, Form
from dropkit.kernels.native import library
from dropkit.random.layout import layout

pytest.importorskip("triton")

from dropkit.kernels import triton_attention, triton_dropout  # import Triton

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
NAMES = sorted(gpu._KERNELS)
X = torch.randn(3, 40)
ADDRESS = torch.tensor(5), torch.tensor(0), torch.tensor(2**31)
PLACE = layout("test", X.shape)


@pytest.fixture(autouse=True)
def _nothing_compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu, "_FOUND", {})
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(triton_attention, "tile_of", lambda *_: triton_attention.Tile(16, 32, 4, 1))
    gpu._why_none.cache_clear()
    yield
    gpu._why_none.cache_clear()


def drop(x: Tensor = X) -> Tensor:
    """Apply dropout as the operator does to tensors of GPUs."""
    run = gpu.served("triton_dropout", "dropout", portable.dropout)
    found: Tensor = run(x.to(DEVICE), *ADDRESS, PLACE, True)
    return found.cpu()


WANTED = portable.dropout(X, *ADDRESS, PLACE, True)


WHOLE, PARTS, NARROW = "of whole draws", "of parts", "narrow"
F32, BF16 = torch.float32, torch.bfloat16
SLICES, RATES, SHARDS = (
    (address,)
    for address in (
        Address(key=SEVERAL, lines="several"),
        Address(rate=SEVERAL, lines="of places"),
        Address(lines="of places"),
    )
)
MOVED = (Address(IN_MEMORY, IN_MEMORY, IN_MEMORY),)
ADDRESSES = [(), SLICES, RATES, SHARDS, MOVED, (Address(SEVERAL, SEVERAL, SEVERAL, "several"),)]
FIELDS = SLICES, SHARDS
ACTIVATED = [(WHOLE, True, "gelu"), (PARTS, False, "silu"), (NARROW, False, "relu"), (PARTS, True, "gelu_tanh")]
FORMS: dict[str, list[Form]] = {
    "dropout": [
        *((True, rows, *address) for rows in (WHOLE, PARTS) for address in ADDRESSES),
        (False, NARROW),
        (True, "spread", (False, False, True, True), (0, 1, 2, 3)),
        (False, "spread", (False, False, False, False), (0, 2, 3, 1)),
        (True, "spread", (), ()),
    ],
    "keep_mask": [(WHOLE, *address) for address in ADDRESSES] + [(PARTS,)],
    "keep_bits": ADDRESSES,
    "integers": [(WHOLE,), (NARROW,), *((PARTS, *address) for address in FIELDS)],
    "uniform": [(WHOLE,), (PARTS, *FIELDS[0])],
    "dropout_add": [(WHOLE,), (PARTS,), (NARROW,), (PARTS, *SLICES), (WHOLE, *RATES)],
    "activation_dropout": [*ACTIVATED, (WHOLE, True, "silu", *RATES)],
    "activation_dropout_backward": [*ACTIVATED, (WHOLE, True, "silu", *SLICES)],
    "dropout_add_norm": [
        (1032, F32, F32, F32, F32, True, 1e-5), (20, F32, None, None, F32, False, 1e-7),
        (16400, F32, F32, None, F32, True, 1e-5), (24, F32, BF16, None, BF16, True, 1e-5, *SLICES),
        (20, BF16, F32, F32, F32, False, 1.0, *RATES),
    ],
    "dropout_add_norm_backward": [
        (1032, F32, F32, F32, F32, True, (True, True)), (20, None, F32, F32, F32, False, (True, False)),
        (8200, None, F32, None, F32, True, (False, False)), (24, None, BF16, F32, F32, True, (True, True), *RATES),
        (24, BF16, BF16, F32, BF16, True, (True, True), *SLICES),
        *((1, total, F32, F32, F32, True, (True, True)) for total in (None, F32)),  # gradients of 0 but for rounding
    ],
    "attention": [
        (64, 64, True, None, True, False, False), (16, 32, False, torch.bool, False, False, False),
        (32, 16, True, F32, False, False, True), (16, 16, False, None, True, True, False),
        (16, 16, True, None, True, False, False, *SLICES), (24, 1, False, None, False, False, False, *SHARDS),
    ],
    "attention_backward": [
        (16, 16, True, None, True, False, False), (16, 16, False, torch.bool, False, False, False),
        (16, 16, True, None, False, True, False), (24, 1, False, None, False, False, False, *SHARDS),
    ],
    "attention_bits": [(False, False), (True, True), (False, False, *SLICES), (True, True, *SHARDS)],
}  # fmt: skip


def cases() -> list[Any]:
    found = []
    for name, forms in FORMS.items():
        is_attention = name.startswith("attention")
        for dtype in gpu_examples.TYPES[: 3 if is_attention else None]:  # attention by tiles takes no float64
            # Of bfloat16 the interpreter multiplies no matrices.
            marks = [pytest.mark.gpu] if is_attention and dtype == torch.bfloat16 else []
            is_first = dtype == torch.float32
            found += [pytest.param(name, dtype, form, marks=marks) for form in (forms if is_first else forms[:1])]
    return found


@pytest.mark.parametrize(("name", "dtype", "form"), cases())
def test_right_kernels_pass(name: str, dtype: torch.dtype, form: Form) -> None:
    assert gpu._differs(name, DEVICE, dtype, form) is None


def spoilt(found: Any) -> Any:
    """A kernel's results, one element of the last of which is wrong."""
    if not isinstance(found, Tensor):
        return *found[:-1], spoilt(found[-1])
    one = found.view(-1)[found.numel() // 3]
    one.copy_(~one if found.dtype == torch.bool else one + 1)
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "attention_backward"])
def test_wrong_kernels_are_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By one element."""
    right = gpu._kernel(name)
    monkeypatch.setattr(gpu, "_kernel", lambda _: lambda *arguments: spoilt(right(*arguments)))
    assert gpu._differs(name, DEVICE, torch.float32, FORMS[name][0]) == "does not compute what they do"


def test_every_example_has_its_operator() -> None:
    assert sorted(gpu_examples._EXAMPLES) == sorted(gpu_examples._FORMS) == sorted(FORMS) == NAMES


def test_a_kernel_that_passes_serves_and_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    right = triton_dropout.dropout

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return right(*arguments)

    monkeypatch.setattr(triton_dropout, "dropout", counted)
    for _ in range(3):
        assert torch.equal(drop(), WANTED)
    assert len(calls) == 4
    assert torch.equal(drop(X.to(torch.complex64)).real, WANTED)  # types of no kernel are not compared anew
    assert len(calls) == 5


@pytest.mark.parametrize("failure", ["wrong", "raises"])
def test_a_kernel_that_fails_is_named_once_and_portable_operations_serve(
    monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def kernel(input: Tensor, *_: Any) -> Tensor:
        if failure == "raises":
            raise RuntimeError("no code\nfor this GPU")
        return input.clone()

    monkeypatch.setattr(triton_dropout, "dropout", kernel)
    with pytest.warns(UserWarning, match="portable operations") as caught:
        assert torch.equal(drop(), WANTED)
    assert [each.filename for each in caught] == [__file__]
    said = "fails (RuntimeError: no code for this GPU)" if failure == "raises" else "does not compute what they do"
    assert f"Triton's dropout for torch.float32 (scaled, rows of whole draws) {said}. Another version of Triton" in str(
        caught[0].message
    )
    assert torch.equal(drop(), WANTED)  # and does not warn again
    assert said in kernels.info().gpus
    assert kernels.info().gpus.startswith("triton; portable (on ")


def test_a_kernel_that_was_asked_for_and_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ENVIRONMENT, "triton")
    assert torch.equal(drop(), WANTED)
    monkeypatch.setattr(gpu, "_FOUND", {})
    monkeypatch.setattr(triton_dropout, "dropout", lambda x, *_: x.clone())
    with pytest.raises(UnsupportedError, match=r"DROPKIT_KERNEL=triton, and on .* does not compute .*Unset DROPKIT"):
        drop()


@pytest.mark.parametrize("outcome", ["warning", "warning that is an error", "error"])
def test_a_kernel_that_another_calls_is_named_alone(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    right = triton_dropout.keep_mask
    monkeypatch.setattr(triton_dropout, "keep_mask", lambda *address: ~right(*address))
    keep_mask = operators.of_place(gpu.served("triton_dropout", "keep_mask", portable.keep_mask), 3)
    monkeypatch.setattr(operators, "keep_mask", keep_mask)
    said = "Triton's keep_mask for torch.float32 (rows of whole draws) does not compute what they do"
    if outcome == "warning":
        with pytest.warns(UserWarning, match="keep_mask") as caught:
            assert torch.equal(drop(X.T.contiguous().T), WANTED)
        assert [each.filename for each in caught] == [__file__]
        assert str(caught[0].message).count("Triton's") == 1
        assert said in str(caught[0].message)
    elif outcome == "error":
        monkeypatch.setenv(library.ENVIRONMENT, "triton")
        with pytest.raises(UnsupportedError, match=re.escape(said)):
            drop(X.T.contiguous().T)
    else:  # as they are in tests
        with pytest.raises(UserWarning, match=re.escape(said)):
            drop(X.T.contiguous().T)
    assert len([reason for reason in gpu.failures() if "keep_mask" not in reason]) == 0


def test_portable_operations_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ENVIRONMENT, "portable")
    monkeypatch.setattr(gpu, "_kernel", None)
    assert torch.equal(drop(), WANTED)
    assert kernels.info().gpus == "portable (DROPKIT_KERNEL=portable)"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]  # a module's own import
    assert kernels.info().gpus == "portable (Triton is not installed)"
    with pytest.warns(UserWarning, match="Triton is not installed. Install it") as caught:
        assert torch.equal(drop(), WANTED)
    assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(drop(), WANTED)
        gpu.why_portable("keep_mask", DEVICE, torch.float32, (WHOLE,))
    monkeypatch.setenv(library.ENVIRONMENT, "triton")
    for ask in (library.why_no_triton, kernels.info):
        with pytest.raises(UnsupportedError, match=r"and Triton is not installed\. Install it"):
            ask()


def within(context: Any) -> Callable[[Callable[[], object]], object]:
    def run(compare: Callable[[], object]) -> None:
        with context:
            compare()

    return run


@pytest.mark.parametrize(
    "around",
    [
        within(torch.inference_mode()),
        within(torch.autocast("cpu")),
        within(torch.device("meta")),
        within(FakeTensorMode()),
        lambda compare: torch.vmap(lambda x: (x, compare())[0])(X),
        lambda compare: torch.func.grad(lambda x: (x, compare())[0])(torch.tensor(1.0)),
    ],
    ids=["inference mode", "autocast", "another default device", "fake mode", "vmap", "grad"],
)
def test_nothing_that_the_caller_is_doing_matters(around: Callable[[Callable[[], object]], object]) -> None:
    found, state = [], torch.get_rng_state()
    around(lambda: found.append(gpu._differs("dropout_add", DEVICE, torch.float32, (WHOLE,))))
    assert found == [None]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
def test_nothing_is_compared_while_a_graph_is_captured() -> None:
    x, graph = X.cuda(), torch.cuda.CUDAGraph()
    run = gpu.served("triton_dropout", "dropout", portable.dropout)
    triton_dropout.dropout(x, *ADDRESS, PLACE, True)  # which compiles it
    with torch.cuda.graph(graph):
        found = run(x, *ADDRESS, PLACE, True)
    graph.replay()
    assert torch.equal(found.cpu(), WANTED)
    assert not gpu._FOUND


def test_masks_are_drawn_on_the_device_asked_for_wherever_their_address_is() -> None:
    def kernel(name: str) -> Callable[..., Any]:
        return lambda *arguments: (name, *arguments)

    run = operators.drawn_on(kernel("portable"), cpu=kernel("cpu"), cuda=kernel("cuda"))
    for name, device in (("cpu", "cpu"), ("cuda", "cuda:1"), ("portable", "meta")):
        assert run(*ADDRESS, PLACE, torch.device(device)) == (name, *ADDRESS, PLACE, torch.device(device))
