"""Dropout of any model on dropkit's kernels."""

import copy
import io
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit.errors import ArgumentTypeError
from dropkit.sites import accelerate
from dropkit.sites.calls.functions import Call
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.places import Place
from tests.sites.networks import Plain
from tests.sites.zoo import MODELS, Model

CASES = [pytest.param(model, id=name) for name, model in MODELS.items()]


class Watcher(Handler):
    """Notes what is called behind the acceleration."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def dropout(self, place: Place, call: Call) -> Any:
        self.calls.append(call)
        return call.run()

    def other(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return function(*args, **kwargs)


class Stock(torch.overrides.TorchFunctionMode):
    """Counts the active calls of PyTorch's functions that reach it."""

    def __init__(self) -> None:
        self.stock, self.own = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = dropkit.sites.calls.functions.find_call(func, args, kwargs or {})
        if call is not None and call.is_active:
            self.own += call.function.key is not None
            self.stock += call.function.key is None
        return func(*args, **(kwargs or {}))


def tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("model", CASES)
def test_all_sites_of_all_models_run_on_the_kernels(model: Model) -> None:
    network = model.build()
    keys, classes = list(network.state_dict()), [type(module) for module in network.modules()]
    with Stock() as plain:
        network(*model.inputs())
    handle = accelerate(network)
    with Stock() as watch:
        network(*model.inputs())
    rewritable = [site for site in model.sites if site.is_rewritable and site.in_train]
    if model.name == "compiled":  # which is left to the compiler
        rewritable = []
    rewritable = [site for site in rewritable if site.p is not None]  # not dropkit's own networks
    if rewritable:
        assert watch.own >= len(rewritable)
        kinds = {site.kind for site in model.sites}
        # None is known of TorchScript, and random numbers are not replaced.
        assert all(not one.reason for one in handle.report() if one.calls and one.kind in kinds)
    assert watch.stock == 0 or not rewritable
    assert plain.stock + plain.own >= watch.own
    assert keys == list(network.state_dict())
    assert classes == [type(module) for module in network.modules()]
    handle.remove()
    with Stock() as after:
        network(*model.inputs())
    assert (after.stock, after.own) == (plain.stock, plain.own)
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("model", CASES)
def test_evaluation_is_untouched(model: Model) -> None:
    network = model.build().eval()
    if any(site.in_eval for site in (*model.sites, *model.masks)):
        pytest.skip("it draws in evaluation")
    expected = tensors(network(*model.inputs()))
    with accelerate(network):
        found = tensors(network(*model.inputs()))
    assert all(map(torch.equal, found, expected))


def test_seeds_repeat_a_run() -> None:
    model, x = Plain(), torch.randn(5, 6)
    with accelerate(model):
        torch.manual_seed(3)
        one = model(x)
        torch.manual_seed(3)
        two, three = model(x), model(x)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_without_a_model_whatever_runs_within_is_accelerated() -> None:
    model, x = Plain(), torch.randn(5, 6)
    with Stock() as watch, accelerate() as handle:
        model(x)
        F.dropout(x, 0.5)
    assert (watch.stock, watch.own) == (0, 3)
    assert [(one.p, one.calls) for one in handle.report()] == [(0.25, 1), (0.5, 2)]
    assert not _get_current_function_mode_stack()


def test_the_report_names_modules_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    model = Plain()
    handle = accelerate(model, verbose=True)
    assert str(handle.report()) == "nothing has drawn dropout yet"
    model(torch.randn(5, 6))
    model(torch.randn(5, 6))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["drop  dropout  0.25 -> dropkit's kernels", "-  dropout  0.5 -> dropkit's kernels"]
    model.to("meta")(torch.empty(5, 6, device="meta"))
    assert str(handle.report()).splitlines() == [
        "module  kind     p     calls  runs on",
        "drop    dropout  0.25  2      dropkit's kernels",
        "-       dropout  0.5   2      dropkit's kernels",
        "drop    dropout  0.25  1      PyTorch: tensor on meta",
        "-       dropout  0.5   1      PyTorch: tensor on meta",
    ]


def test_parts_of_a_model_are_accelerated_when_they_run_alone() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), "drop": nn.Dropout(0.5)})
    with accelerate(model) as handle, Stock() as watch:
        model["body"](torch.randn(5, 6))
        model["drop"](torch.randn(5, 6))
    assert [one.path for one in handle.report()] == ["body.1", "drop"]
    assert watch.stock == 0


def test_layers_in_training_within_a_model_in_evaluation() -> None:
    model = Plain().eval()
    model.drop.train()
    with accelerate(model) as handle:
        model(torch.randn(5, 6))
    assert [one.path for one in handle.report()] == ["drop"]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("has_model", [True, False])
def test_checkpoints_recompute_the_same_masks(use_reentrant: bool, has_model: bool) -> None:
    class Checkpointed(Plain):
        is_checkpointed = True

        def forward(self, x: Tensor) -> Tensor:
            if self.is_checkpointed:
                return checkpoint(super().forward, x, use_reentrant=use_reentrant).square()
            return super().forward(x).square()

    model, x = Checkpointed().double(), torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    gradients = []
    handle = accelerate(model) if has_model else accelerate()
    for model.is_checkpointed in (True, False):
        torch.manual_seed(3)
        with nullcontext() if has_model else handle:
            y = model(x)
        y.sum().backward()  # where no mode is active
        gradients.append(x.grad)
        x.grad = None
    assert all(one.calls > 1 and not one.reason for one in handle.report())
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    handle.remove()


def test_a_forward_that_raises_leaves_nothing_behind() -> None:
    class Raising(Plain):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ValueError("no")

    model = Raising()
    with accelerate(model):
        with pytest.raises(ValueError, match="no"):
            model(torch.randn(5, 6))
        assert not _get_current_function_mode_stack()


def test_an_interrupted_forward_is_cleared_away_by_the_next() -> None:
    class Interrupted(Plain):
        is_first = True

        def forward(self, x: Tensor) -> Tensor:
            if self.is_first:
                self.is_first = False
                raise KeyboardInterrupt
            return super().forward(x)

    model = Interrupted()
    with accelerate(model) as handle:
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(5, 6))
        model(torch.randn(5, 6))
        assert not _get_current_function_mode_stack()
    assert len(handle.report()) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_forward_leaves_nothing_behind_the_statement(kind: type[BaseException]) -> None:
    class Interrupted(Plain):
        def forward(self, x: Tensor) -> Tensor:
            raise kind

    model, other = Interrupted(), Plain()
    with pytest.raises(kind), accelerate(other) as outer, accelerate(model):
        model(torch.randn(5, 6))
    outer.remove()
    assert not _get_current_function_mode_stack()


def test_copies_are_plain() -> None:
    model = Plain()
    with accelerate(model) as handle:
        copied = copy.deepcopy(model)
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=False)
        with Stock() as watch:
            copied(torch.randn(5, 6))
            loaded(torch.randn(5, 6))
    assert watch.stock == 4
    assert not handle.report()


def test_threads_have_each_their_own_place() -> None:
    model, problems = Plain(), []

    def work() -> None:
        try:
            for _ in range(20):
                model(torch.randn(5, 6))
            assert not _get_current_function_mode_stack()
        except Exception as error:  # noqa: BLE001  # to be told in the test's own thread
            problems.append(error)

    with accelerate(model) as handle:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert len(handle.report()) == 2


@pytest.mark.parametrize("is_first", [True, False])
def test_others_see_the_same_calls_whoever_came_first(is_first: bool) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 6, 3, dropout=0.5)
            self.heads = nn.MultiheadAttention(6, 2, dropout=0.5)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(x)
            return self.heads(y, y, y)[0]

    model, watcher = Both(), Watcher()
    handle = accelerate(model) if is_first else None
    with attached(model, watcher):
        handle = handle or accelerate(model)
        model(torch.randn(5, 2, 6))
    handle.remove()
    assert [call.function.kind for call in watcher.calls] == ["lstm", "multi_head_attention"]
    assert [one.kind for one in handle.report()] == ["lstm", "multi_head_attention"]


def test_switched_on_in_evaluation_it_is_accelerated_too() -> None:
    class On(Watcher):
        def dropout(self, place: Place, call: Call) -> Any:
            return call.switched(True).run()

    model = Plain().eval()
    with accelerate(model) as handle, attached(model, On()):
        model(torch.randn(5, 6))
    assert [one.reason for one in handle.report()] == ["", ""]


def test_twice_is_once() -> None:
    model = Plain()
    with accelerate(model) as one, accelerate(model) as two:
        model(torch.randn(5, 6))
    assert len(one.report()) + len(two.report()) == 2


def test_compiled_models_are_left_to_the_compiler() -> None:
    torch._dynamo.reset()
    model = Plain()
    handle = accelerate(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    y = compiled(torch.randn(50, 6))
    assert 0 < (y == 0).double().mean() < 1
    assert not handle.report()
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ["wrapped", "in place", "part"])
def test_the_report_says_that_compiled_code_is_left_to_the_compiler(way: str) -> None:
    torch._dynamo.reset()
    layer = nn.Dropout(0.5)
    model: nn.Module = nn.Sequential(torch.compile(layer, backend="eager") if way == "part" else layer)
    if way == "in place":
        model.compile(backend="eager")
    compiled = torch.compile(model, backend="eager") if way == "wrapped" else model
    handle = accelerate(compiled)
    compiled(torch.ones(50))
    note = "compiled code is left to the compiler, and what it draws is not counted"
    assert str(handle.report()) == f"nothing has drawn dropout in other code yet\n{note}"
    handle.remove()
    torch._dynamo.reset()


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentTypeError, match="accelerate: `model`"):
        accelerate("model")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="accelerate: `verbose`"):
        accelerate(Plain(), verbose=1)  # type: ignore[arg-type]


def test_masks_by_hand_are_left_alone_and_told() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.new_empty(len(x), 1).bernoulli_(0.5) / 0.5 if self.training else x

    model, x = nn.Sequential(nn.Dropout(0.1), DropPath()), torch.ones(20, 4)
    with accelerate(model) as handle:
        model(x)
        model.eval()(x)
        torch.rand(3)
    reason = "random numbers, of which the model may make a mask by hand"
    assert [(row.path, row.kind, row.p, row.calls, row.reason) for row in handle.report()] == [
        ("0", "dropout", 0.1, 1, ""),
        ("1", "bernoulli_", None, 1, reason),
    ]
    assert str(handle.report()).splitlines()[2].endswith(f"?    1      PyTorch: {reason}")
    with accelerate() as handle:
        torch.rand(3)
    assert not handle.report()
