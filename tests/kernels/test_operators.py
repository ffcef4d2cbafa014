"""What PyTorch asks of an operator: a truthful schema, shape-only version and batching rule, for every one of ours."""

import importlib
import itertools
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dropkit import kernels, random
from dropkit.kernels import affine, fields, fused, gaussian, norms, operators
from dropkit.kernels.native import operations
from dropkit.random.layout import layout

for _module in pkgutil.iter_modules(kernels.__path__):
    if _module.name.startswith("triton_"):  # has kernels of operators that other modules make known
        continue
    importlib.import_module(f"dropkit.kernels.{_module.name}")  # each makes its operators known

KEY, STREAM, RATE = torch.tensor(77), torch.tensor(0), torch.tensor(random.threshold(0.4))
CPU = torch.device("cpu")


def place(shape: tuple[int, ...], *arguments: Any) -> tuple[Any, ...]:
    return tuple(layout("test", shape, *arguments))


INPUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(2, 3, 4, 5),
    "channels last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 3, 4, 2).transpose(0, 3),
    "expanded": lambda: torch.randn(2, 3, 1, 5).expand(2, 3, 4, 5),
    "strided": lambda: torch.randn(4, 3, 4, 10)[::2, ..., ::2],
    "shifted": lambda: torch.randn(2, 3, 4, 7)[..., 2:],
    "empty": lambda: torch.randn(2, 0, 4, 5),
    "float64": lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64),
    "float16": lambda: torch.randn(2, 3, 4, 5).half(),
    "bfloat16, channels last": lambda: torch.randn(2, 3, 4, 5).bfloat16().contiguous(memory_format=torch.channels_last),
    "complex": lambda: torch.randn(2, 3, 4, 5, dtype=torch.complex64),
    "complex, transposed": lambda: torch.randn(5, 3, 4, 2, dtype=torch.complex128).transpose(0, 3),
    "conjugated": lambda: torch.randn(2, 3, 4, 5, dtype=torch.complex64).conj(),
    "scalar": lambda: torch.randn(()),
}


def dropout_samples() -> dict[str, tuple[Any, ...]]:
    samples = {}
    for name, make in INPUTS.items():
        x = make()
        samples[name] = (x, KEY, STREAM, RATE, *place(x.shape), True)
    x = torch.randn(3, 4, 5)
    return samples | {
        "unscaled": (x, KEY, STREAM, RATE, *place(x.shape), False),
        "shared": (x, KEY, STREAM, RATE, *place(x.shape, (1,)), True),
        "shard": (x, KEY, STREAM, RATE, *place(x.shape, (), (1, 2, 3), (9, 9, 9)), True),
        "slices": (x, torch.arange(3), torch.tensor([0]), RATE, *place((4, 5)), True),
        "rates": (x, KEY, STREAM, RATE.expand(3).clone(), *place(x.shape), True),
    }


def mask_samples() -> dict[str, tuple[Any, ...]]:
    return {
        "plain": (KEY, STREAM, RATE, *place((3, 4, 5)), CPU),
        "scalar": (KEY, STREAM, RATE, *place(()), CPU),
        "empty": (KEY, STREAM, RATE, *place((0, 5)), CPU),
        "shared": (KEY, STREAM, RATE, *place((3, 4, 5), (0, 2)), CPU),
        "slices": (torch.arange(3), torch.tensor([0]), RATE, *place((4, 5)), CPU),
        "slices of shared draws": (torch.arange(3), torch.arange(3), RATE, *place((4, 5), (0,)), CPU),
        "rates": (KEY, STREAM, RATE.expand(3).clone(), *place((3, 4, 5)), CPU),
        "rates over a shared axis": (KEY, STREAM, RATE.expand(3).clone(), *place((3, 4, 5), (0,)), CPU),
    }


def field_samples(*options: Any) -> dict[str, tuple[Any, ...]]:
    return {
        "plain": (KEY, STREAM, *place((3, 4, 5)), CPU, *options),
        "scalar": (KEY, STREAM, *place(()), CPU, *options),
        "empty": (KEY, STREAM, *place((0, 5)), CPU, *options),
        "shared": (KEY, STREAM, *place((3, 4, 5), (0, 2)), CPU, *options),
        "shard": (KEY, STREAM, *place((3, 4, 5), (), (1, 2, 3), (9, 9, 9)), CPU, *options),
        "slices": (torch.arange(3), torch.tensor([0]), *place((4, 5)), CPU, *options),
    }


def affine_samples() -> dict[str, tuple[Any, ...]]:
    numbers = tuple(torch.tensor(value, dtype=torch.float64) for value in (0.9, 0.1, -1.4))
    samples = {}
    for name, make in INPUTS.items():
        x = make()
        if not x.is_complex():
            samples[name] = (x, KEY, STREAM, RATE, *numbers, *place(x.shape))
    x, several = torch.randn(3, 4, 5), [value * torch.arange(1, 4) for value in numbers]
    return samples | {
        "shared": (x, KEY, STREAM, RATE, *numbers, *place(x.shape, (1,))),
        "shared, channels last": (
            samples["channels last"][0],
            KEY,
            STREAM,
            RATE,
            *numbers,
            *place((2, 3, 4, 5), (2, 3)),
        ),
        "shard": (x, KEY, STREAM, RATE, *numbers, *place(x.shape, (), (1, 2, 3), (9, 9, 9))),
        "slices": (x, torch.arange(3), torch.tensor([0]), RATE, *numbers, *place((4, 5))),
        "rates": (x, KEY, STREAM, RATE.expand(3).clone(), *several, *place(x.shape)),
        "rates of shared draws": (x, KEY, STREAM, RATE.expand(3).clone(), *several, *place(x.shape, (2,))),
        "one rate, several maps": (x, KEY, STREAM, RATE, *several, *place(x.shape)),
        "too fine": (
            x[0, 0],
            KEY,
            STREAM,
            RATE.expand(5).clone(),
            *(value.expand(5) for value in numbers),
            *place((5,)),
        ),
    }


def gaussian_samples() -> dict[str, tuple[Any, ...]]:
    deviation, samples = torch.tensor(0.7, dtype=torch.float64), {}
    for name, make in INPUTS.items():
        x = make()
        samples[name] = (x, KEY, STREAM, deviation, *place(x.shape))
    x = torch.randn(3, 4, 5)
    return samples | {
        "shared": (x, KEY, STREAM, deviation, *place(x.shape, (1,))),
        "shard": (x, KEY, STREAM, deviation, *place(x.shape, (), (1, 2, 3), (9, 9, 9))),
        "slices": (x, torch.arange(3), torch.tensor([0]), deviation, *place((4, 5))),
        "rates": (x, KEY, STREAM, deviation * torch.arange(3), *place(x.shape)),
        "too fine": (x[0, 0], KEY, STREAM, deviation * torch.arange(5), *place((5,))),
    }


def grow_samples() -> dict[str, tuple[Any, ...]]:
    keep = torch.rand(2, 3, 6, 7) > 0.2
    return {
        "two axes": (keep, [3, 4]),
        "one axis": (keep, [5]),
        "of one place": (keep, [1, 1]),
        "channels last": (keep.contiguous(memory_format=torch.channels_last), [2, 1]),
    }


def add_samples() -> dict[str, tuple[Any, ...]]:
    x, residual = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    return {name: (make(), make(), KEY, STREAM, RATE) for name, make in INPUTS.items()} | {
        "other layouts": (x, torch.randn(5, 4, 3).transpose(0, 2), KEY, STREAM, RATE),
        "other stream": (x, residual, KEY, torch.tensor(2), RATE),
        "slices": (x, residual, torch.arange(3), torch.tensor([0]), RATE),
        "rates": (x, residual, KEY, STREAM, RATE.expand(3).clone()),
        "one rate, one axis": (x[0, 0], residual[0, 0], KEY, STREAM, RATE.expand(5).clone()),
    }


def activation_samples() -> dict[str, tuple[Any, ...]]:
    x = torch.randn(3, 4, 5)
    real = [name for name, make in INPUTS.items() if not make().is_complex()]
    return {f"relu, {name}": (INPUTS[name](), None, "relu", KEY, STREAM, RATE) for name in real} | {
        f"{activation}, bias": (x, torch.randn(5), activation, KEY, STREAM, RATE)
        for activation in operations.ACTIVATIONS
    } | {
        "strided bias": (x, torch.randn(10)[::2], "gelu", KEY, STREAM, RATE),
        "bias, transposed": (x.transpose(0, 1), torch.randn(5), "silu", KEY, STREAM, RATE),
        "slices": (x, torch.randn(5), "silu", torch.arange(3), torch.tensor([0]), RATE),
        "rates": (x, None, "gelu_tanh", KEY, STREAM, RATE.expand(3).clone()),
    }  # fmt: skip


def gradient_samples() -> dict[str, tuple[Any, ...]]:
    return {name: (torch.randn_like(x), x, *rest) for name, (x, *rest) in activation_samples().items()}


def norm_samples() -> dict[str, tuple[Any, ...]]:
    def of(x: Tensor, residual: Tensor, *address: Tensor, centred: bool = True, **columns: Any) -> tuple[Any, ...]:
        given = columns.get("weight"), columns.get("bias")
        return x, residual, *given, centred, 1e-5 if centred else 2e-7, x.dtype, *(address or (KEY, STREAM, RATE))

    x, residual, weight, bias = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.randn(5), torch.randn(5)
    return {
        "layer": of(x, residual, weight=weight, bias=bias),
        "layer, without weights": of(x, residual),
        "layer, bias alone": of(x, residual, bias=bias),
        "root mean square": of(x, residual, weight=weight, centred=False),
        "root mean square, without weights": of(x, residual, centred=False),
        "float64": of(x.double(), residual.double(), weight=weight.double(), bias=bias.double()),
        "mixed": of(x.bfloat16(), residual, weight=weight, bias=bias.bfloat16()),
        "float16": of(x.half(), residual.half(), weight=weight.half(), centred=False),
        "transposed": of(x.transpose(0, 1), torch.randn(4, 3, 5), weight=weight),
        "strided": of(torch.randn(3, 4, 10)[..., ::2], residual, weight=torch.randn(10)[::2]),
        "slices": of(x, residual, torch.arange(3), torch.tensor([0]), RATE, weight=weight),
        "rates": of(x, residual, KEY, STREAM, RATE.expand(3).clone(), bias=bias),
        "one axis": of(x[0, 0], residual[0, 0], weight=weight, bias=bias),
        "empty": of(x[:0], residual[:0], weight=weight, bias=bias),
    }


def norm_gradient_samples() -> dict[str, tuple[Any, ...]]:
    samples = {}
    for name, (x, residual, weight, bias, is_centred, eps, dtype, *address) in norm_samples().items():
        _, *saved = norms.forward(x, residual, weight, bias, is_centred, eps, dtype, *address)
        for of_sum in (None, torch.randn_like(saved[0])):
            given = torch.randn(x.shape).to(dtype), of_sum, saved[0], weight, *saved[1:], is_centred
            label = name if of_sum is None else f"{name}, of the sum too"
            samples[label] = (*given, [weight is not None, bias is not None], x.dtype, *address)
    return samples


def key_samples() -> dict[str, tuple[Any, ...]]:
    return {
        "plain": (KEY, torch.tensor(1)),
        "several fields": (KEY, torch.arange(3)),
        "several keys": (torch.arange(3), torch.tensor(2)),
        "several of both": (torch.arange(3), torch.arange(2).unsqueeze(-1)),
        "empty": (torch.arange(0), torch.tensor(1)),
    }


SAMPLES = {
    "dropkit::dropout": dropout_samples(),
    "dropkit::keep_mask": mask_samples(),
    "dropkit::keep_bits": mask_samples()
    | {
        "shard": (KEY, STREAM, RATE, *place((3, 40), (), (1, 3), (9, 99)), CPU),
    },
    "dropkit::affine_dropout": affine_samples(),
    "dropkit::gaussian_dropout": gaussian_samples(),
    "dropkit::grow": grow_samples(),
    "dropkit::fold": key_samples(),
    "dropkit::dropout_add": add_samples(),
    "dropkit::activation_dropout": activation_samples(),
    "dropkit::activation_dropout_backward": gradient_samples(),
    "dropkit::dropout_add_norm": norm_samples(),
    "dropkit::dropout_add_norm_backward": norm_gradient_samples(),
    "dropkit::integers": field_samples(),
    "dropkit::uniform": field_samples(torch.float32) | {"half": field_samples(torch.float16)["plain"]},
    "dropkit::normal": field_samples(torch.float64) | {"half": field_samples(torch.bfloat16)["plain"]},
}
CASES = [(operator, name) for operator, samples in SAMPLES.items() for name in samples]
LONG = [pytest.mark.slow, pytest.mark.exhaustive]
TRACED = [  # two samples of each operator, and the others where there is time: what is traced hardly depends on them
    pytest.param(operator, name, marks=LONG if place % (len(samples) - 1) else ())
    for operator, samples in SAMPLES.items()
    for place, name in enumerate(samples)
]


def resolve(operator: str) -> Any:
    return getattr(torch.ops.dropkit, operator.partition("::")[2]).default


def several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def registered() -> set[str]:
    return {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("dropkit::")}


def test_every_operator_is_checked() -> None:
    elsewhere = {f"dropkit::{name}" for name in ("attention", "attention_backward", "attention_bits")}
    assert registered() == SAMPLES.keys() | elsewhere  # by test_attention_operators.py


@pytest.mark.parametrize(("operator", "name"), CASES)
def test_operator_keeps_what_pytorch_expects(operator: str, name: str) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    outcomes = torch.library.opcheck(resolve(operator), SAMPLES[operator][name], test_utils=checks)
    assert outcomes == dict.fromkeys(checks, "SUCCESS")


@pytest.mark.parametrize(("operator", "name"), TRACED)
def test_operator_is_traced_with_sizes_that_change(operator: str, name: str) -> None:
    check = "test_aot_dispatch_dynamic"
    outcomes = torch.library.opcheck(resolve(operator), SAMPLES[operator][name], test_utils=check)
    assert outcomes == {check: "SUCCESS"}


@pytest.mark.parametrize(("operator", "name"), CASES)
def test_shape_only_versions_tell_the_truth(operator: str, name: str) -> None:
    arguments = SAMPLES[operator][name]
    real = resolve(operator)(*arguments)
    with FakeTensorMode() as mode:
        fake = resolve(operator)(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    for one, other in zip(several(fake), several(real), strict=True):
        for attribute in ("shape", "dtype", "device", "layout"):
            assert getattr(one, attribute) == getattr(other, attribute)
        assert one.stride() == other.stride()
        assert one.is_conj() == other.is_conj()


@pytest.mark.parametrize(("operator", "name"), CASES)
def test_meta_tensors_get_the_same_answer(operator: str, name: str) -> None:
    arguments = SAMPLES[operator][name]
    if any(isinstance(argument, torch.device) for argument in arguments):
        meta = resolve(operator)(*(torch.device("meta") if isinstance(a, torch.device) else a for a in arguments))
    else:
        alone = dict.fromkeys(
            ("dropkit::dropout", "dropkit::affine_dropout", "dropkit::gaussian_dropout", "dropkit::grow"), 1
        )
        norms_ = {"dropkit::dropout_add_norm": 4, "dropkit::dropout_add_norm_backward": 6}
        tensors = {**alone, **norms_, "dropkit::activation_dropout_backward": 3}.get(operator, 2)
        on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments[:tensors]]
        meta = resolve(operator)(*on_meta, *arguments[tensors:])
    for one, other in zip(several(meta), several(resolve(operator)(*arguments)), strict=True):
        assert one.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("name", ["channels last", "transposed", "complex, transposed", "bfloat16, channels last"])
def test_dense_memory_formats_are_kept(name: str) -> None:
    x = INPUTS[name]()
    assert operators.dropout(x, KEY, STREAM, RATE, *place(x.shape), True).stride() == x.stride()


def test_results_never_alias_the_input() -> None:
    x = torch.randn(4, 5)
    for threshold in (0, int(RATE), 2**32):
        for scaled in (True, False):
            before = x.clone()
            out = operators.dropout(x, KEY, STREAM, torch.tensor(threshold), *place(x.shape), scaled)
            assert out.data_ptr() != x.data_ptr()
            assert torch.equal(x, before)


@pytest.mark.parametrize(
    "batched",
    [(True, False, False, False), (False, True, False, False), (False, False, True, False), (False, False, False, True),
     (True, True, True, True)],
)  # fmt: skip
def test_batching_rules_equal_a_loop(batched: tuple[bool, ...]) -> None:
    x = torch.randn(4, 3, 5)
    full = (x, torch.arange(4), torch.arange(4), torch.tensor([random.threshold(p) for p in (0, 0.2, 0.7, 1)]))
    arguments = [value if b else value[1] for value, b in zip(full, batched, strict=True)]
    at = place((3, 5))

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return operators.dropout(*values, *at, True), operators.keep_mask(*values[1:], *at, CPU)

    out, keep = torch.vmap(run, in_dims=tuple(0 if b else None for b in batched))(*arguments)
    for i in range(4):
        want = run(*(value[i] if b else value for value, b in zip(arguments, batched, strict=True)))
        assert torch.equal(out[i], want[0])
        assert torch.equal(keep[i] if keep.dim() == 3 else keep, want[1])


@pytest.mark.parametrize("batched", [*itertools.product((True, False), repeat=4)][:-1])
def test_batching_rules_of_affine_and_gaussian_operators_equal_a_loop(batched: tuple[bool, ...]) -> None:
    rates = torch.tensor([random.threshold(p) for p in (0, 0.2, 0.7, 1)])
    full = (torch.randn(4, 3, 5), torch.arange(4), rates, torch.randn(4, dtype=torch.float64))
    arguments = [value if b else value[1] for value, b in zip(full, batched, strict=True)]
    at = place((3, 5))

    def run(x: Tensor, key: Tensor, rate: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        moved = affine.affine_dropout(x, key, STREAM, rate, number, 2 * number, -number, *at)
        return moved, gaussian.gaussian_dropout(x, key, STREAM, number, *at)

    outs = torch.vmap(run, in_dims=tuple(0 if b else None for b in batched))(*arguments)
    for i in range(4):
        want = run(*(value[i] if b else value for value, b in zip(arguments, batched, strict=True)))
        for found, wanted in zip(outs, want, strict=True):
            assert torch.equal(found[i], wanted)


@pytest.mark.parametrize("batched", [(True, False), (False, True), (True, True)])
def test_batching_rules_of_fields_equal_a_loop(batched: tuple[bool, bool]) -> None:
    full, at = (torch.arange(4), torch.arange(4) + 9), layout("test", (3, 5))
    arguments = [value if b else value[1] for value, b in zip(full, batched, strict=True)]

    def run(*address: Tensor) -> tuple[Tensor, ...]:
        return (
            fields.integers(*address, at, CPU),
            fields.uniform(*address, at, CPU, torch.float32),
            fields.normal(*address, at, CPU, torch.float16),
        )

    found = torch.vmap(run, in_dims=tuple(0 if b else None for b in batched))(*arguments)
    for i in range(4):
        want = run(*(value[i] if b else value for value, b in zip(arguments, batched, strict=True)))
        for several, one in zip(found, want, strict=True):
            assert torch.equal(several[i], one)


@pytest.mark.parametrize("batched", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shapes", [((), ()), ((2,), ()), ((), (3,)), ((2,), (3, 1))])
def test_the_batching_rule_of_keys_equals_a_loop(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], batched: tuple[bool, bool]
) -> None:
    fold, operands = resolve("dropkit::fold"), []
    for shape, is_batched in zip(shapes, batched, strict=True):
        whole = (4, *shape) if is_batched else shape
        operands.append(torch.randint(0, 2**40, whole, generator=torch.Generator().manual_seed(len(operands))))
    found = torch.vmap(fold, in_dims=tuple(0 if b else None for b in batched))(*operands)
    for i in range(4):
        want = fold(*(value[i] if b else value for value, b in zip(operands, batched, strict=True)))
        assert torch.equal(found[i], want)


def test_fields_compile_without_a_break_and_are_those_of_eager_code() -> None:
    def run(key: Tensor, x: Tensor) -> Tensor:
        at = layout("test", x.shape)
        drawn = fields.uniform(key, STREAM, at, CPU, x.dtype) + fields.normal(key, STREAM, at, CPU, x.dtype)
        return x * drawn * fields.keep_mask(key, STREAM, RATE, at, CPU) + fields.integers(key, STREAM, at, CPU)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((3, 5), (4, 7)):
        for key in (KEY, torch.tensor(-5)):
            x = torch.randn(shape)
            assert torch.equal(compiled(key, x), run(key, x))


@pytest.mark.parametrize("batched", [*itertools.product((True, False), repeat=5)])
def test_batching_rules_of_fused_operators_equal_a_loop(batched: tuple[bool, ...]) -> None:
    x, other, bias = torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.randn(4, 5)
    rates = torch.tensor([random.threshold(p) for p in (0, 0.2, 0.7, 1)])
    full = (x, other, bias, torch.arange(4), rates)
    arguments = [value if b else value[1] for value, b in zip(full, batched, strict=True)]

    def run(x: Tensor, other: Tensor, bias: Tensor, key: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        address = key, STREAM, rate
        return (
            fused.dropout_add(x, other, *address),
            fused.activation_dropout(x, bias, "gelu", *address),
            fused.activation_dropout_backward(x, other, bias, "gelu", *address),
        )

    if not any(batched):
        return
    outs = torch.vmap(run, in_dims=tuple(0 if b else None for b in batched))(*arguments)
    for i in range(4):
        want = run(*(value[i] if b else value for value, b in zip(arguments, batched, strict=True)))
        for found, wanted in zip(outs, want, strict=True):
            torch.testing.assert_close(found[i], wanted)
            assert torch.equal(found[i] == 0, wanted == 0)


@pytest.mark.parametrize("batched", [*itertools.product((True, False), repeat=5)][:-1])
def test_batching_rules_of_norms_equal_a_loop(batched: tuple[bool, ...]) -> None:
    rates = torch.tensor([random.threshold(p) for p in (0, 0.2, 0.7, 0.9)])
    full = (torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.randn(4, 5), torch.arange(4), rates)
    arguments = [value if b else value[1] for value, b in zip(full, batched, strict=True)]

    def run(x: Tensor, residual: Tensor, weight: Tensor, key: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        address = key, STREAM, rate
        out, *saved = norms.dropout_add_norm(x, residual, weight, None, True, 1e-5, x.dtype, *address)
        given = out, residual, saved[0], weight, *saved[1:], True, [True, False], x.dtype
        return out, *norms.dropout_add_norm_backward(*given, *address)

    found = torch.vmap(run, in_dims=tuple(0 if b else None for b in batched))(*arguments)
    for i in range(4):
        want = run(*(value[i] if b else value for value, b in zip(arguments, batched, strict=True)))
        for one, other in zip(found, want, strict=True):
            assert torch.equal(one[i], other)
