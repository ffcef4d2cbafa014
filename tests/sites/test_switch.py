"""Switching sites: which, for how long, beside what, and what it refuses."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.sites import Site, address, find, switch
from tests.sites.networks import Block, GatedAttention
from tests.sites.zoo import MODELS

X = torch.linspace(-1, 1, 48).reshape(6, 8)


class Many(nn.Module):
    """Draws in a layer, in a function, in a gated attention and in a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.attention = Block(), GatedAttention()
        self.network = nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        ones = torch.ones(6, 5, 8)
        parts = [self.block(x), F.dropout(x, 0.5, self.training), self.attention(ones), self.network(ones)[0]]
        return [part.detach() for part in parts]


def many() -> Many:
    torch.manual_seed(1)
    return Many().eval()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"where": "block.drop"}, [0]),
        ({"where": "block*"}, [0]),
        ({"where": "#0"}, [1]),
        ({"where": "attention"}, [2]),  # by the module's name
        ({"where": ["attention#0", "network*"]}, [2, 3]),
        ({"where": lambda site: site.p < 0.5}, [0, 2]),
        ({"kind": "dropout"}, [0, 1]),
        ({"kind": ("lstm", "scaled_dot_product_attention")}, [2, 3]),
        ({"where": "[bn]*", "kind": "dropout"}, [0]),
    ],
)
def test_only_what_is_chosen_is_touched(choice: dict[str, Any], expected: list[int]) -> None:
    model = many()
    before = model(X)
    with switch(model, "on", **choice) as handle:
        after = model(X)
    assert [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)] == expected
    assert len(handle.sites) == len(expected)
    assert not handle.unswitched
    assert all(isinstance(site, Site) for site in handle.sites)


def test_what_is_not_chosen_of_a_module_that_sees_another_mode_is_left_alone() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            rate = 0.5 if self.training else 0.0
            q = x.view(1, 1, 6, 8)
            return F.dropout(x, 0.5, self.training), F.scaled_dot_product_attention(q, q, q, dropout_p=rate)

    model = Two().eval()
    before = model(X)
    with switch(model, "on", kind="scaled_dot_product_attention"):
        after = model(X)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_names_are_those_of_training_where_calls_have_other_numbers_in_evaluation() -> None:
    model = MODELS["shifted"].build().eval()
    x = torch.ones(1000)
    with switch(model, "off", where="#1"):
        assert model(x).unique().tolist() == pytest.approx([0, 1 / 0.7])
    with switch(model, "off", where="#2"):
        assert model(x).unique().tolist() == pytest.approx([0, 1 / 0.8])
    with switch(model, "on", where="#0"):
        values = model(x).unique().tolist()
    assert values == pytest.approx([0, 1 / (0.9 * 0.8 * 0.7)])


def test_a_switch_holds_at_once_until_it_is_closed() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    handle = switch(model, "on")
    assert bool((model(X) == 0).any())
    assert repr(handle) == "Switch('on', 1 sites)"
    handle.close()
    handle.close()
    assert model(X) is X
    with pytest.raises(UnsupportedError, match="closed"), handle:
        pass
    with pytest.raises(UnsupportedError, match="closed"):
        handle.learn(X)


def is_on(model: nn.Module) -> bool:
    return bool((model(X) == 0).any())


def test_of_nested_switches_the_last_decides() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).train()
    with switch(model, "off"):
        assert not is_on(model)
        with switch(model, "on"):
            assert is_on(model)
            with switch(model, "auto"):
                assert is_on(model)
                model.eval()
                assert not is_on(model)
            assert is_on(model)
        model.train()
        assert not is_on(model)
    assert is_on(model)


def test_switches_may_be_closed_in_any_order() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    first, second, third = switch(model, "on"), switch(model, "off"), switch(model, "on")
    assert is_on(model)
    second.close()
    assert is_on(model)
    third.close()
    assert is_on(model)
    first.close()
    assert not is_on(model)


@pytest.mark.parametrize("part_first", [True, False])
def test_a_switch_of_a_part_and_one_of_the_whole(part_first: bool) -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(0.5)), GatedAttention()).train()
    handles = (
        [switch(model[0], "on"), switch(model, "off")] if part_first else [switch(model, "off"), switch(model[0], "on")]
    )
    x = torch.ones(6, 5, 8)
    assert bool((model[0](x) == 0).any()) is not part_first
    seen: list[Tensor] = []
    hook = model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    seen.clear()
    model.eval()
    model(x)
    assert bool((seen[-1] == 0).any()) is not part_first
    hook.remove()
    for handle in handles:
        handle.close()


def test_gated_attention_follows_nested_switches() -> None:
    model, x = GatedAttention().eval(), torch.randn(3, 5, 8)
    before = model(x)
    with switch(model, "on"):
        assert not torch.equal(model(x), before)
        with switch(model, "off"):
            assert torch.equal(model(x), before)
            with switch(model, "on"):
                assert not torch.equal(model(x), before)
        with switch(model, "auto"):
            assert torch.equal(model(x), before)


def test_nothing_remains() -> None:
    model = many()
    names, flags = list(model.state_dict()), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    handle = switch(model, "off")
    model(X)
    assert list(model.state_dict()) == names
    handle.close()
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not _get_current_function_mode_stack()


def test_copies_are_plain() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    handle = switch(model, "on")
    model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301  # made here
        assert not is_on(twin)
    assert is_on(model)
    handle.close()


def test_hooks_of_others_stay() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    model.register_forward_hook(lambda module, args, output: output + 1)
    with switch(model, "on"):
        assert set(model(torch.ones(100)).tolist()) == {1.0, 3.0}
    assert set(model(torch.ones(100)).tolist()) == {2.0}


def test_a_batch_of_one_is_enough_beside_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    with switch(model, "on"):
        assert torch.stack([model(X[:1]) for _ in range(20)]).std(0).max() > 0
    assert int(model[1].num_batches_tracked) == 0


def test_batch_norm_goes_on_in_training() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    with switch(model, "off"):
        model(X)
        model(X)
    assert int(model[1].num_batches_tracked) == 2


class Gate(nn.Module):
    """A module whose forward is a function of it."""

    def __init__(self, function: Callable[["Gate", Tensor], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def test_a_layer_that_is_called_in_training_alone() -> None:
    model = Gate(lambda self, x: self.parts[0](x) if self.training else x, nn.Dropout(0.5)).eval()
    with switch(model, "on"):
        assert is_on(model)
    assert not is_on(model)


def test_gates_within_gates() -> None:
    inner = Gate(lambda self, x: F.dropout(x, 0.5) if self.training else x)
    model = nn.Sequential(Gate(lambda self, x: self.parts[0](x) if self.training else x, inner)).eval()
    with switch(model, "on"):
        assert is_on(model)
    assert not any(module.training for module in model.modules())


def test_a_gate_that_would_move_a_buffer_raises() -> None:
    def forward(self: Gate, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.mean, self.variance, training=self.training)
        return F.dropout(x, 0.5) if self.training else x

    model = Gate(forward).eval()
    before = copy.deepcopy(model.state_dict())
    handle = switch(model, "on")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="buffers change: mean, variance"):
            model(X)
    handle.close()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(X), F.batch_norm(X, model.mean, model.variance))


def test_a_gate_that_would_return_something_else_raises() -> None:
    model = Gate(lambda self, x: (F.dropout(x, 0.5), x) if self.training else x).eval()
    with switch(model, "on"), pytest.raises(UnsupportedError, match="another structure"):
        model(X)
    assert model(X) is X


def test_a_gate_that_draws_other_noise_is_reported() -> None:
    model = MODELS["hand_written"].build().eval()
    before = model(X)
    with switch(model, "on") as handle:
        with pytest.warns(UserWarning, match=r"cannot be switched 'on' and stay as they are: ~0 \(mask\), ~2 \(mask\)"):
            assert torch.equal(model(X), before)
        assert [site.name for site in handle.unswitched] == ["~0", "~2"]
        assert not handle.sites


def test_masks_are_left_out_and_other_noise_is_not() -> None:
    model = MODELS["hand_written"].build()
    plain = model.eval()(X)
    model.train()
    with switch(model, "off"), torch.no_grad():
        noise = (torch.stack([model(X) for _ in range(200)]) - plain) / 0.1
    # 9600 standard normals: mean and variance within 5 standard errors, 1e-6 false alarms.
    assert abs(float(noise.mean())) < 5 / 9600**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / 9600) ** 0.5
    model.eval()
    assert torch.equal(model(X), plain)


def test_of_one_module_a_mask_is_left_out_and_attention_is_not() -> None:
    def forward(self: Gate, x: Tensor) -> tuple[Tensor, Tensor]:
        q, rate = x.view(1, 1, 6, 8), 0.5 if self.training else 0.0
        kept = torch.rand_like(x) > 0.5 if self.training else torch.ones_like(x)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=rate), x * kept

    model = Gate(forward)
    with switch(model, "off", kind="mask") as handle:
        first, second = model(X), model(X)
    assert torch.equal(first[1], X)
    assert not torch.equal(first[0], second[0])
    assert not handle.unswitched
    model.eval()
    with (
        switch(model, "on", kind="scaled_dot_product_attention"),
        pytest.warns(UserWarning, match="cannot be switched"),
    ):
        assert torch.equal(model(X)[1], X)


def test_a_mask_is_gated_where_it_is_drawn() -> None:
    seen: list[bool] = []

    def child(self: Gate, x: Tensor) -> Tensor:
        seen.append(self.training)
        return x[0] * x[1]

    def forward(self: Gate, x: Tensor) -> Tensor:
        kept = (torch.rand_like(x) > 0.5) / 0.5 if self.training else torch.ones_like(x)
        return self.parts[0]((x, kept))

    model = Gate(forward, Gate(child)).eval()
    with switch(model, "on") as handle:
        handle.learn(X)
        seen.clear()
        assert is_on(model)
    assert seen == [False]


def test_a_mask_that_is_always_on_is_left_out() -> None:
    model = Gate(lambda self, x: x * (torch.rand_like(x) > 0.5) / 0.5).eval()
    assert is_on(model)
    generator = torch.get_rng_state()
    with switch(model, "off"):
        assert torch.equal(model(X), X)
    assert torch.equal(torch.get_rng_state(), generator)
    with switch(model, "on"):
        assert is_on(model)


def test_what_is_only_perhaps_dropout_is_left_alone() -> None:
    def forward(self: Gate, labels: Tensor) -> Tensor:
        """Drop whole examples, unscaled, as for classifier-free guidance."""
        kept = torch.rand(len(labels), 1) > 0.5
        return F.dropout(labels * kept, 0.3, self.training)

    model = Gate(forward).train()
    [perhaps] = [site for site in find(model, X) if not site.is_certain]
    assert perhaps.kind == "mask"
    with switch(model, "off"):
        output = torch.stack([model(torch.ones(50, 4)) for _ in range(5)])
    assert set(output.unique().tolist()) == {0.0, 1.0}


def test_a_script_module_is_reported() -> None:
    model = MODELS["scripted"].build()
    inputs = MODELS["scripted"].inputs()
    with switch(model, "off") as handle:
        with pytest.warns(UserWarning, match="cannot be switched 'off'.*part~0"):
            model(*inputs)
        assert [site.name for site in handle.sites] == ["drop"]
        assert [site.name for site in handle.unswitched] == ["part~0"]
    with warnings.catch_warnings(), switch(model, "off", where="drop"):
        model(*inputs)


def test_nothing_to_switch_on_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 2), nn.Dropout(0.0))
    with switch(model, "on"), pytest.warns(UserWarning, match="nothing to switch on"):
        model(X)
    with switch(model, "off"):
        model(X)


def test_a_site_that_is_met_later_is_switched() -> None:
    model = Gate(
        lambda self, x: F.dropout(x, 0.5, self.training) if x.mean() > 0 else self.parts[0](x), GatedAttention()
    )
    model.eval()
    with switch(model, "on"):
        model(torch.zeros(6, 5, 8) - 1)
        assert bool((model(torch.ones(6, 8)) == 0).any())
    attention = torch.randn(6, 5, 8) - 9
    before = model(attention)
    with switch(model, "on") as handle:
        model(torch.ones(6, 8))
        assert not torch.equal(model(attention), before)
    assert {site.name for site in handle.sites} == {"#0", "parts.0#0"}


def test_parts_are_switched_where_they_are_called_by_themselves() -> None:
    model = many()
    with switch(model, "on"):
        assert not torch.equal(model.attention(torch.ones(6, 5, 8)), many().attention(torch.ones(6, 5, 8)))
        model(X)


def test_wrapped_models() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    with switch(nn.DataParallel(model), "on", where="0"):
        assert is_on(model)


def test_own_switches_of_layers_are_put_back() -> None:
    model = MODELS["our_encoder"].build().eval()
    model.layers[0].dropout1.switch = "off"
    x = torch.randn(3, 5, 8)
    with switch(model, "on"):
        model(x)
    assert model.layers[0].dropout1.switch == "off"
    assert model.layers[0].self_attn.switch == "auto"


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_are_recomputed_as_they_were_switched(use_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.attention = nn.Linear(8, 8), GatedAttention()

        def inner(self, x: Tensor) -> Tensor:
            return F.dropout(self.attention.forward(self.layer(x)), 0.5, self.training).sin()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=use_reentrant)

    torch.manual_seed(1)
    model, x = Checkpointed().double().eval(), torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)

    def gradients(loss: Tensor) -> list[Tensor]:
        return (
            torch.autograd.grad(loss, [*model.parameters()], allow_unused=False)
            if not use_reentrant
            else backward(loss)
        )

    def backward(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    wanted = gradients(model.inner(x).sum())
    model.train()
    model.attention.norm.eval()
    with switch(model, "off"):
        found = gradients(model(x).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_gate_sees_the_wanted_mode_in_a_recomputation(use_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        is_checkpointed = False

        def inner(self, x: Tensor) -> Tensor:
            q, rate = x.view(1, 1, 6, 8), 0.5 if self.training else 0.0
            return F.scaled_dot_product_attention(q, q, q, dropout_p=rate).sin()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=use_reentrant) if self.is_checkpointed else self.inner(x)

    model, found = Checkpointed().eval(), []
    with switch(model, "on"):
        for model.is_checkpointed in (False, True):
            x = X.double().requires_grad_()
            model(x)
            torch.manual_seed(7)
            model(x).sum().backward()
            found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_an_addressed_model_draws_the_same_masks_where_it_is_switched_on() -> None:
    model = many().train()
    model.attention.norm.eval()
    handle = address(model, seed=3)
    wanted = model(X)
    handle.load_state_dict({**handle.state_dict(), "runs": {}})
    model.eval()
    with switch(model, "on"):
        found = model(X)
    handle.close()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Dropout(), "maybe"), ArgumentError, "`mode` must be one of 'auto', 'on', 'off', got maybe|'maybe'"),
        ((F.dropout, "on"), ArgumentTypeError, "`model` must be a torch.nn.Module"),
        ((nn.Dropout(), "on", 3), ArgumentTypeError, "`where` must be a pattern of names"),
        ((nn.Dropout(), "on", []), ArgumentTypeError, "`where` must be"),
        ((nn.Dropout(), "on", ["a", 3]), ArgumentTypeError, "`where` must be"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        switch(*arguments)
    with pytest.raises(ArgumentTypeError, match="`kind` must be"):
        switch(nn.Dropout(), "on", kind=b"x")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"where": "head.*"},
            r"`where` must be such that it chooses a site, got \('head.\*',\).*There are: block.drop",
        ),
        ({"kind": "gru"}, r"`kind` must be such that it chooses a site, got \('gru',\).*network#0 \(lstm\)"),
        ({"where": lambda site: False}, "`where` must be"),
    ],
)
def test_a_choice_of_nothing_raises_at_the_first_forward(choice: dict[str, Any], message: str) -> None:
    model = many()
    handle = switch(model, "on", **choice)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            model(X)
    handle.close()
    model(X)


def test_a_forward_that_raises_raises_its_own_error() -> None:
    model = many()
    before = copy.deepcopy(model.state_dict())
    with switch(model, "on"):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model(torch.ones(6, 7))
        model(X)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not _get_current_function_mode_stack()


def test_a_forward_that_raises_in_the_other_mode_alone() -> None:
    class Needy(nn.Module):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("targets")
            return F.dropout(x, 0.5, self.training)

    model = Needy().eval()
    with switch(model, "on") as handle:
        with pytest.raises(UnsupportedError, match=r"raised ValueError in training mode.*learn") as caught:
            model(X)
        assert isinstance(caught.value.__cause__, ValueError)
        handle.learn(X, targets=X)
        assert is_on(model)
    assert not model.training


def test_a_predicate_that_raises() -> None:
    model = many()
    with switch(model, "on", where=lambda site: 1 / 0), pytest.raises(ZeroDivisionError):
        model(X)
    model(X)


def test_a_forward_that_is_interrupted() -> None:
    state = {"interrupt": False}

    def forward(self: Gate, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5) if self.training else x
        if state["interrupt"]:
            raise KeyboardInterrupt
        return x

    model = nn.Sequential(Gate(forward)).eval()
    handle = switch(model, "on")
    assert is_on(model)
    state["interrupt"] = True
    with pytest.raises(KeyboardInterrupt):
        model(X)
    handle.close()
    assert not _get_current_function_mode_stack()
    assert not any(module.training for module in model.modules())


def test_two_threads_at_once() -> None:
    ready, go = threading.Event(), threading.Event()

    def forward(self: Gate, x: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            ready.set()
            go.wait(10)
        return F.dropout(x, 0.5) if self.training else x

    model = nn.Sequential(Gate(forward)).eval()
    results: list[bool] = []
    with switch(model, "on"):
        assert is_on(model)
        thread = threading.Thread(target=lambda: results.append(is_on(model)))
        thread.start()
        ready.wait(10)
        with pytest.raises(UnsupportedError, match="two threads"):
            model(X)
        go.set()
        thread.join(10)
    assert results == [True]
    assert not any(module.training for module in model.modules())
    assert not is_on(model)


class Attentive(nn.Module):
    """Attention that gates its rate, in operations that are compiled as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.norm = nn.Linear(8, 24), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(self.norm(x)).view(3, 5, 3, 8).unbind(2)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.attention = Block(0.5), Attentive()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.attention(self.block(x)), 0.5, self.training)


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", ["wrapper", "inner", "function"])
def test_compiled_models_are_one_graph_and_not_compiled_again_from_call_to_call(form: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch.manual_seed(1)
    model, x = Stack().eval(), torch.randn(3, 5, 8)

    def step(x: Tensor) -> Tensor:
        return model(x)

    compiled = torch.compile(step if form == "function" else model, backend=counter, fullgraph=True)
    plain = compiled(x)
    handle = switch(compiled if form == "wrapper" else model, "on")
    if form != "wrapper":
        handle.learn(x)  # which the hook of the wrapper does on its own, outside of the graph
    outputs = [compiled(x) for _ in range(2)]
    compilations = counter.frame_count
    outputs += [compiled(x) for _ in range(4)]
    assert counter.frame_count == compilations
    assert len({float(output.detach().sum()) for output in outputs}) == 6
    assert 0.3 < float((outputs[-1] == 0).float().mean()) < 0.7
    assert [site.name for site in handle.sites] == ["block.drop", "attention#0", "#0"]
    assert not any(module.training for module in model.modules())
    handle.close()
    assert torch.equal(compiled(x), plain)
    model.train().attention.norm.eval()
    assert not torch.equal(compiled(x), plain)
    with switch(model, "off") as handle:
        handle.learn(x)
        assert torch.equal(compiled(x), plain)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_that_has_not_learned_breaks_its_graph_once() -> None:
    model, x = Stack().eval(), torch.randn(3, 5, 8)
    compiled = torch.compile(model, backend="eager")
    with switch(model, "on"):
        outputs = [compiled(x) for _ in range(3)]
    assert len({float(output.detach().sum()) for output in outputs}) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_masks_that_have_to_be_left_out_raise() -> None:
    model = Gate(lambda self, x: x * (torch.rand_like(x) > 0.5) / 0.5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with switch(compiled, "off") as handle:
        handle.learn(X)
        with pytest.raises(Exception, match="cannot be switched off in compiled code"):
            compiled(X)
