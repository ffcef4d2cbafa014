"""Switching sites: which, for how long, beside what, and what it refuses."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from dropkit.errors import UnsupportedError
from dropkit.sites import Site, address, switch
from tests.sites.networks import GatedAttention
from tests.sites.switched import Gate, X, is_on, many
from tests.sites.zoo import MODELS


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


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, of jvp
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.vmap(f, randomness="different")(x),
        lambda f, x: torch.func.grad(lambda v: f(v).sum())(x),
        lambda f, x: torch.vmap(torch.func.grad(lambda v: f(v).sum()), randomness="same")(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    ],
    ids=["vmap", "grad", "vmap of grad", "jvp"],
)
@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_switch_learns_inside_a_transform(mode: str, transform: Any) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8)).requires_grad_(False)
    model[0].train(mode == "off")
    model[1].eval()
    x = torch.ones(40, 8)
    with switch(model, mode) as handle:
        result = transform(lambda x: model(x.view(-1, 8)).view_as(x), x)
    assert bool((result == 0).any()) == (mode == "on")
    assert [site.name for site in handle.sites] == ["0"]
    assert x.grad is None


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


def test_empty_lists_of_a_switch_say_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with switch(model, "on") as opened:
        assert str(opened.sites) == str(opened.unswitched) == "no site is known before the first forward"
        opened.learn(torch.ones(2, 4))
        assert str(opened.unswitched) == "every site that was chosen is switched"
        assert [site.name for site in opened.sites] == ["1"]
    bare = nn.Linear(4, 4)
    with switch(bare, "off") as opened:
        opened.learn(torch.ones(2, 4))
        assert str(opened.sites) == "no site is switched"
