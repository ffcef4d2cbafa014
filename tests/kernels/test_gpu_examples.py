"""The example of a call's form launches what such calls launch; here in Triton's interpreter."""

import inspect
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dropkit.kernels import gpu, gpu_address, gpu_attention, gpu_examples, operators
from dropkit.kernels.attention import Weights
from dropkit.kernels.gpu_address import IN_MEMORY, SEVERAL, Address
from dropkit.random import uniform32
from dropkit.random.layout import layout
from tests.kernels import test_attention_operators
from tests.kernels.test_operators import SAMPLES

pytest.importorskip("triton")
from triton import language as tl
from triton.runtime.interpreter import InterpretedFunction

from dropkit.kernels import triton_dropout  # imports Triton
from tests.kernels.test_gpu import DEVICE, F32, FORMS, NAMES, PARTS, WHOLE, _nothing_compared  # noqa: F401  # a fixture


def test_draws_of_the_example_are_tied() -> None:
    drawn = uniform32(gpu_address.KEY, gpu_examples._TIED, stream=7).astype(int)
    rate = gpu_address.RATE
    assert sorted(drawn[drawn >> 16 == rate >> 16] >= rate) == [False, True]


@pytest.mark.parametrize("name", ["dropout", "keep_mask", "uniform", "dropout_add", "dropout_add_norm"])
def test_addresses_on_the_gpu_are_a_form_of_their_own(name: str) -> None:
    like = Address(IN_MEMORY, rate=IN_MEMORY)
    found = gpu_examples.example(name, torch.device("meta"), torch.float32, (*FORMS[name][0], like), gpu._portable)
    address = [each for each in found if isinstance(each, Tensor) and each.dtype == torch.int64]
    assert [each.is_meta for each in address] == [True, False, True][: len(address)]
    with FakeTensorMode():
        on_gpu = torch.empty((), dtype=torch.int64, device="cuda")
        given = (torch.empty(3, 40, device="cuda"), torch.empty(3, 40, device="cuda"), on_gpu, torch.tensor(1), on_gpu)
        assert gpu_examples.form("dropout_add", given) == (WHOLE, like)


# By operators: before which of their arguments a layout is taken apart.
LAYOUTS = {"dropout": 4, "keep_mask": 3, "keep_bits": 3, "integers": 2, "uniform": 2}
CALLS: list[Any] = [
    (name, sample)
    for name in NAMES
    for sample in SAMPLES.get(f"dropkit::{name}", {})
    if name != "uniform" or sample != "half"
]


def attentions() -> dict[str, tuple[Any, ...]]:
    """Queries, keys, values, a mask or None, whether there are bits, a `Mask` and `Weights`."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, (mask, weights) in test_attention_operators.CASES.items():
        found[name] = *test_attention_operators.inputs(weights), None, name == "several keys", mask, weights
    mask, weights = found["plain"][5], Weights(False, 5, 34)
    query, key = torch.randn(2, 2, 5, 20), torch.randn(2, 2, 34, 20)
    for name, of_masks in {
        "mask of a column": torch.randn(2, 2, 5, 1).expand(2, 2, 5, 34),
        "mask of columns": torch.randn(2, 2, 34, 5).mT > 0,
    }.items():
        found[name] = query, key, key[..., :12], of_masks, False, mask, weights
    narrow = torch.randn(2, 34, 2, 1).transpose(1, 2)  # heads side by side
    found["heads one wide"] = narrow[:, :, :5], narrow, narrow, None, False, mask, weights
    windows = torch.randn(2, 2, 53).unfold(2, 20, 1)
    found["windows"] = windows[:, :, :5], windows, windows, None, False, mask, weights
    found["one query"] = query[:, :, :1], key, key, None, True, mask, Weights(True, 1, 34)
    one = torch.randn(1, 1, 40, 20).expand(2, 2, 40, 20)[:, :, :34]
    found["one head expanded"] = one[:, :, :5], one, one, None, False, mask, weights
    return found


LONG = pytest.mark.slow  # for the interpreter takes seconds
QUICK = {
    "attention": ("plain", "mask of a column", "heads one wide"),
    "attention_backward": ("windows",),
    "attention_bits": ("plain", "packed"),
}
CALLS += [
    pytest.param(name, sample, marks=() if sample in quick else LONG)
    for name, quick in QUICK.items()
    for sample in attentions()
]


def arguments_of(name: str, sample: str) -> tuple[Any, ...]:
    """Return what an operator is given."""
    if not name.startswith("attention"):
        return SAMPLES[f"dropkit::{name}"][sample]
    *tensors, attn_mask, has_bits, mask, weights = attentions()[sample]
    drawn = tensors[0], *mask, *weights
    if name == "attention_bits":
        return drawn
    bits = gpu._portable("attention_bits")(*drawn) if has_bits else None
    given = *tensors, attn_mask, bits, *mask, *weights, 0.5
    if name == "attention":
        return given
    output, logs = gpu._portable("attention")(*given)
    return torch.ones(()).expand(output.shape), output, logs, *given


def compiled(kernel: Any, arguments: tuple[Any, ...]) -> tuple[str, ...]:
    """Return what Triton compiles a kernel apart for, but for what is divisible by 16."""
    found = []
    for (name, parameter), argument in zip(inspect.signature(kernel.fn).parameters.items(), arguments, strict=False):
        if isinstance(argument, Tensor):
            found.append(f"pointer to {argument.dtype}")
        elif isinstance(argument, float):
            found.append("float")
        elif argument is None or parameter.annotation is tl.constexpr:
            found.append(str(argument))
        elif argument == 1 and name not in (kernel.kwargs["do_not_specialize"] or ()):
            found.append("1")
        else:
            found.append(f"{argument.bit_length() // 32 * 32} bits")
    return tuple(found)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """What is launched from now on, in comparisons and in calls."""
    if DEVICE.type != "cpu":
        pytest.skip("launches are seen in the interpreter")
    found: dict[str, set[Any]] = {"compared": set(), "called": set()}
    launch = InterpretedFunction.__getitem__

    def noted(kernel: Any, grid: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            is_compared = threading.current_thread().name == "dropkit compares kernels"
            known = tuple(sorted((option, str(value)) for option, value in options.items()))
            found["compared" if is_compared else "called"].add((kernel.fn.__name__, compiled(kernel, arguments), known))
            return launch(kernel, grid)(*arguments, **options)

        return run

    monkeypatch.setattr(InterpretedFunction, "__getitem__", noted)
    return found


@pytest.mark.parametrize(("name", "sample"), CALLS)
def test_calls_launch_what_was_compared(launched: dict[str, set[Any]], name: str, sample: str) -> None:
    run = gpu.served(gpu._KERNELS[name][0], name, gpu._KERNELS[name][1])
    run = operators.of_place(run, LAYOUTS[name]) if name in LAYOUTS else run
    run(*arguments_of(name, sample))
    assert launched["called"] <= launched["compared"]


@pytest.mark.parametrize("columns", [100, 64])
@pytest.mark.parametrize(
    ("lengths", "keys", "rates"),
    [((3, 5), (3,), (1,)), ((3, 5), (3,), (3,)), ((1, 5), (1,), ()), ((2, 3), (2, 3), ()), ((1, 1), (1, 1), (1, 1))],
)
def test_examples_launch_what_calls_with_addresses_on_the_gpu_do(
    launched: dict[str, set[Any]], lengths: tuple[int, ...], keys: tuple[int, ...], rates: tuple[int, ...], columns: int
) -> None:
    """That have keys of slices, or rates, of which there may be one."""
    x, place = (*lengths, columns), layout("test", (*lengths, columns), slices=len(keys))
    with FakeTensorMode():
        key, rate = (torch.zeros(shape, dtype=torch.int64, device="cuda") for shape in (keys, rates))
        given = torch.zeros(x, device="cuda"), key, torch.zeros((1,) * len(keys), dtype=torch.int64), rate, place, True
        like = gpu_examples.form("dropout", given)
    assert gpu._differs("dropout", DEVICE, F32, like) is None
    key, stream = torch.arange(5, 5 + key.numel()).view(keys), torch.zeros((1,) * len(keys), dtype=torch.int64)
    triton_dropout.dropout(torch.randn(x), key, stream, torch.full(rates, 2**30), place, True)
    assert launched["called"] == launched["compared"]


def test_forms_are_told_in_words() -> None:
    told = [gpu_examples.described(name, like) for name in NAMES for like in FORMS[name] if like]
    assert not any(word in each for each in told for word in ("True", "False", "None", "Address", "torch"))
    address = Address(key=SEVERAL, rate=IN_MEMORY, lines="several")
    wanted: list[tuple[str, gpu_address.Form, str]] = [
        ("dropout", (False, "spread", (True, False), (1, 0)),
         "not scaled, rows spread, shared (yes, no), order (1, 0)"),
        ("keep_mask", (PARTS, address), "rows of parts, key several in memory, rate in memory, lines several"),
        ("attention", (40, 24, True, torch.bool, False, True, False),
         "width 40, values 24, grouped, mask bool, not causal, packed, no bits"),
        ("keep_bits", (), ""),
    ]  # fmt: skip
    for name, like, want in wanted:
        assert gpu_examples.described(name, like) == want


def test_forms_of_attention_are_constants_to_the_compiler_where_sizes_vary() -> None:
    found = []

    def is_served(like: gpu_address.Form) -> bool:
        found.append(like)
        return True

    is_served._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as that of attention by tiles

    @torch.compile(backend="eager", fullgraph=True, dynamic=True)
    def run(query: Tensor, value: Tensor) -> Tensor:
        like = gpu_attention.attention_form(query, value, None, True, False)
        return query + 1 if is_served(like) else query

    for width, heads in ((16, 4), (40, 4), (40, 2)):
        run(torch.zeros(2, heads, 5, width), torch.zeros(2, 2, 7, width))
    assert [like[:3] for like in found] == [(16, 16, True), (40, 40, True), (40, 40, False)]
