"""Finding sites: the right ones of every model, without a trace of the search."""

import inspect
import random
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit.sites import find
from dropkit.sites.interception.names import unwrapped
from tests.sites import networks
from tests.sites.zoo import CASES, MODELS, Model, facts, tensors


@contextmanager
def unfused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002


@pytest.mark.parametrize("model", CASES)
def test_every_site_of_every_model_is_found(model: Model) -> None:
    found = find(model.build(), *model.inputs())
    functions, masks = [], []
    for site in found:
        (masks if site.kind == "mask" else functions).append(facts(site))
    assert functions == [facts(site) for site in model.sites]
    assert masks == [facts(site) for site in model.masks]
    assert all(site.is_certain for site in found)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # of a checkpoint without gradients
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("model", CASES)
def test_outputs_are_those_of_a_forward_that_nobody_sees(model: Model, grad: bool) -> None:
    """Bit for bit, fused ways apart; of two copies, for TorchScript compiles another program at its second call.

    Our attention has a fused way too, on which nobody can look at the operators.
    """
    seen, plain, inputs = model.build(), model.build(), model.inputs()
    outputs: list[Any] = []
    unwrapped(seen).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.set_grad_enabled(grad):
        torch.manual_seed(3)
        find(seen, *inputs)
        with unfused(), torch.compiler.set_stance("force_eager"):
            for training, found in zip((True, False), outputs, strict=True):
                torch.manual_seed(3)
                rounding = 2e-6 if training and model.name == "our_encoder" else 0
                buffers = [buffer.clone() for buffer in plain.buffers()]
                expected = list(tensors(plain.train(training)(*inputs)))
                assert expected
                for one, other in zip(tensors(found), expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=rounding)
                for buffer, value in zip(plain.buffers(), buffers, strict=True):
                    buffer.copy_(value)


@pytest.mark.parametrize("model", CASES)
def test_nothing_is_left_of_the_search(model: Model) -> None:
    network, inputs = model.build(), model.inputs()
    for module in list(network.modules())[1::2]:
        module.eval()
    flags = [module.training for module in network.modules()]
    buffers = [(id(buffer), buffer.clone()) for buffer in network.buffers()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in network.modules()]
    first = next(network.parameters(), torch.empty(0))
    first.grad = torch.full_like(first, 7.0)
    before, keys = states(), list(network.state_dict())
    find(network, *inputs)
    assert states() == before
    assert [module.training for module in network.modules()] == flags
    assert [id(buffer) for buffer in network.buffers()] == [number for number, _ in buffers]
    assert all(torch.equal(buffer, value) for buffer, (_, value) in zip(network.buffers(), buffers, strict=True))
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in network.modules()] == hooks
    assert all(parameter.grad is None for parameter in list(network.parameters())[1:])
    assert (first.grad == 7.0).all()
    assert list(network.state_dict()) == keys
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()
    for value, same in zip(tensors(inputs), tensors(model.inputs()), strict=True):
        assert torch.equal(value, same)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_left_either() -> None:
    model, x = networks.mlp().cuda(), torch.randn(6, 8, device="cuda")
    before = torch.cuda.get_rng_state()
    assert [facts(site) for site in find(model, x)] == [facts(site) for site in MODELS["mlp"].sites]
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_of_a_library_change_no_site(use_reentrant: bool) -> None:
    model = MODELS["gpt2_sdpa"].build()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_activation_checkpointing
    found = find(model, *MODELS["gpt2_sdpa"].inputs())
    assert [facts(site) for site in found] == [facts(site) for site in MODELS["gpt2_sdpa"].sites]


@pytest.mark.parametrize("mode", [True, False])
def test_one_example_is_enough_for_batch_normalisation(mode: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train(mode)
    [one], [several] = find(model, torch.randn(1, 8)), find(model, torch.randn(4, 8))
    assert (one.name, one.kind, one.p, one.in_train, one.in_eval) == ("2", "dropout", 0.5, True, False)
    assert several == replace(one, shape=(4, 3))
    assert all(module.training is mode for module in model.modules())
    assert not model[1].running_mean.any()


def test_what_a_model_with_batch_normalisation_raises_is_its_own() -> None:
    class Targeted(nn.BatchNorm1d):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if targets is None:
                raise ValueError("no targets")
            return x

    with pytest.raises(ValueError, match="no targets"):
        find(Targeted(3), torch.randn(1, 3))


class Messy(nn.Module):
    """Moves whatever can be moved, and raises at a given call."""

    def __init__(self, raises_at: int, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.raises_at, self.error = raises_at, error
        self.calls = count(1)  # where an iterator is cannot be put back
        self.weight = nn.Parameter(torch.ones(3))
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(3))
        self.own = torch.Generator().manual_seed(1)
        self.numbers, self.digits = np.random.default_rng(1), random.Random(1)  # noqa: S311
        self.ours = dropkit.nn.Dropout(0.5, generator=torch.Generator().manual_seed(2))

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.calls)
        with torch.enable_grad():
            (self.weight * x).sum().backward()
        self.weight.requires_grad_(False)
        self.seen = self.seen + 1
        self.register_buffer("late", torch.zeros(1))
        self.norm.eval()
        torch.rand(2), random.random(), np.random.rand()  # noqa: NPY002, S311
        torch.rand(2, generator=self.own), self.numbers.random(), self.digits.random()
        x = self.ours(self.norm(self.drop(x.add_(1))))
        if call == self.raises_at:
            raise self.error("on purpose")
        return x

    def draws(self) -> tuple[Any, ...]:
        own = self.own.get_state().tolist(), self.ours.generator.get_state().tolist()
        return *own, str(self.numbers.bit_generator.state), self.digits.getstate()


@pytest.mark.parametrize("raises_at", [0, 1, 2])
def test_a_forward_that_moves_everything_and_raises_leaves_the_model_as_it_was(raises_at: int) -> None:
    model, x = Messy(raises_at), torch.ones(4, 3)
    model.weight.grad = torch.full((3,), 5.0)
    grad, seen, before, own = model.weight.grad, model.seen, states(), model.draws()
    if raises_at:
        with pytest.raises(RuntimeError, match="on purpose"):
            find(model, x)
    else:
        assert [site.name for site in find(model, x)] == ["drop", "ours"]
    assert next(model.calls) == (raises_at or 2) + 1
    assert model.weight.grad is grad
    assert (grad == 5.0).all()
    assert model.weight.requires_grad
    assert model.seen is seen
    assert (seen == 0).all()
    assert dict(model.named_buffers()).keys() == dict(Messy(0).named_buffers()).keys()
    assert all(module.training for module in model.modules())
    assert (states(), model.draws()) == (before, own)
    assert (x == 1).all()
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()


def test_the_line_that_draws_is_the_models_own() -> None:
    sites = find(networks.Functional(), torch.randn(6, 8))
    lines, start = inspect.getsourcelines(networks.Functional.forward)
    assert [site.file for site in sites] == [networks.__file__] * 3
    own = [lines[site.line - start].strip() for site in sites]
    for line, start_of in zip(own, ("x = F.dropout(", "x = torch.dropout(x, p=0.2", "return "), strict=True):
        assert line.startswith(start_of)


def test_without_code_of_the_models_own_the_line_is_that_of_the_layer() -> None:
    [site] = find(nn.Sequential(nn.Dropout(0.5)), torch.ones(3))
    assert site.file == inspect.getsourcefile(nn.Dropout)
    lines, start = inspect.getsourcelines(nn.Dropout.forward)
    assert "F.dropout(" in lines[site.line - start]


def test_a_call_that_moves_to_another_number_in_evaluation_stays_itself() -> None:
    first, second, third = find(networks.Shifted(), torch.ones(3))
    assert len({first.line, second.line, third.line}) == 3
    assert [(site.name, site.p, site.in_train, site.in_eval) for site in (first, second, third)] == [
        ("#0", 0.1, True, False),
        ("#1", 0.2, True, True),
        ("#2", 0.3, False, True),
    ]


def test_a_call_of_evaluation_alone_is_no_call_of_training() -> None:
    class Either(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return F.dropout(x, 0.1)
            return F.dropout2d(x, 0.2)

    train, evaluation = find(Either(), torch.ones(1, 2, 3, 3))
    assert (train.name, train.kind, train.p, train.in_train, train.in_eval) == ("#0", "dropout", 0.1, True, False)
    assert (evaluation.kind, evaluation.p, evaluation.in_train, evaluation.in_eval) == ("dropout2d", 0.2, False, True)


def test_an_interrupted_search_leaves_nothing() -> None:
    model = nn.Sequential(Messy(1, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        find(model, torch.zeros(4, 3))
    assert not _get_current_function_mode_stack()
    assert not _get_current_dispatch_mode_stack()
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_backward_pass_inside_the_forward_counts_no_call_twice() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = networks.Checkpointed(use_reentrant=False)

        def forward(self, x: Tensor) -> Tensor:
            output = checkpoint(self.masked, self.part(x), use_reentrant=False)
            (grad,) = torch.autograd.grad(output.sum(), self.part.first.linear.weight)
            return output + grad.sum()

        def masked(self, x: Tensor) -> Tensor:
            return (x * (torch.rand_like(x) > 0.5) / 0.5).sin()

    sites = find(Penalised(), torch.randn(6, 8))
    assert [(site.name, site.calls) for site in sites] == [
        ("part.first.drop", 1),
        ("part.second.drop", 1),
        ("part#0", 1),
        ("~0", 1),
    ]


@pytest.mark.parametrize("place", ["meta", "inference", "double", "half"])
def test_tensors_of_every_sort(place: str) -> None:
    model, x = networks.mlp(), torch.randn(6, 8)
    if place == "meta":
        model, x = model.to("meta"), x.to("meta")
    elif place in ("double", "half"):
        kind = {"double": torch.float64, "half": torch.bfloat16}[place]
        model, x = model.to(kind), x.to(kind)
    with torch.inference_mode(place == "inference"):
        assert [facts(site) for site in find(model, x)] == [facts(site) for site in MODELS["mlp"].sites]


def test_modules_that_contain_one_another() -> None:
    model = networks.mlp()
    model[0].whole = model
    assert [site.name for site in find(model, torch.randn(6, 8))] == ["3"]
    assert all(module.training for module in model.modules())


@dataclass(frozen=True)
class Batch:
    x: Tensor
    more: dict[str, list[Tensor]]


class Careless(nn.Module):
    """Works in place on whatever it is given."""

    def forward(self, batch: Any, times: int = 1, *, name: str = "", table: Any = None) -> Any:
        assert type(name) is str
        parts = [batch.x, batch.more["a"][0]] if isinstance(batch, Batch) else list(batch.values())
        for part in parts:
            part.mul_(0)
        return OrderedDict(y=[F.dropout(part, 0.5, self.training) for part in parts for _ in range(times)], n=3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one, other: Batch(one, {"a": [other]}),
        lambda one, other: {"one": one, "other": other},
        lambda one, other: UserDict(one=one, other=other),
    ],
    ids=["dataclass", "dict", "mapping"],
)
def test_inputs_of_any_structure_are_not_touched(wrap: Callable[[Tensor, Tensor], Any]) -> None:
    one, other = torch.ones(2, 3), torch.ones(3)
    given = wrap(one, other)
    sites = find(Careless(), given, 2, name="x", table=object())
    assert [site.name for site in sites] == ["#0", "#1", "#2", "#3"]
    assert [site.shape for site in sites] == [(2, 3), (2, 3), (3,), (3,)]
    assert (one == 1).all()
    assert (other == 1).all()
    parts = [given.x, given.more] if isinstance(given, Batch) else dict(given)
    assert all(part is one or part is other for part in tensors(parts))


def test_a_model_that_takes_no_tensor() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(5, 4)

        def forward(self, words: list[str]) -> Tensor:
            return F.dropout(self.rows.weight[: len(words)], 0.5, self.training)

    [site] = find(Table(), ["a", "b"])
    assert site.shape == (2, 4)


def test_one_tensor_given_twice_stays_one() -> None:
    seen = []

    class Same(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            seen.append((x is y, x is z))
            return x

    x = torch.ones(3)
    assert find(Same(), x, x, x.clone()) == []
    assert seen == [(True, False)] * 2


@pytest.mark.parametrize(
    "transform",
    [
        lambda drop, x: torch.func.vmap(drop, randomness="different")(x),
        lambda drop, x: torch.func.grad(lambda v: drop(v).sum())(x),
        lambda drop, x: torch.utils.checkpoint.checkpoint(drop, x, use_reentrant=False),
    ],
    ids=["vmap", "grad", "checkpoint"],
)
def test_dropout_inside_transforms(transform: Callable[..., Tensor]) -> None:
    class Transformed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return transform(lambda v: F.dropout(v, 0.5, self.training) * 1, x)

    sites = find(Transformed(), torch.ones(3, 4))
    assert [(site.name, site.p, site.in_eval) for site in sites] == [("#0", 0.5, False)]


def test_rates_in_tensors_and_rates_that_are_learned() -> None:
    layer = dropkit.nn.Dropout(0.25)
    layer.follow()
    model, x = nn.Sequential(layer, dropkit.nn.VariationalDropout(4)), torch.ones(3, 4)
    first, second = find(model, x)
    assert (first.p, second.p) == (0.25, None)
    assert [line.split()[2] for line in str(find(model, x)).splitlines()] == ["p", "0.25", "?"]
