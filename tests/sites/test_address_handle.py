"""The handle of an addressed model: steps, states, what it leaves alone, and what it refuses."""

import copy
import gc
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.random import MASK_VERSION, call_key, keep_mask
from dropkit.sites import Addressing, address
from tests.sites.zoo import Model, tensors

SEED = 2**63 + 5
NOISY = {"hand_written"}  # has normal noise besides, which is no dropout
SCRIPTED = {"scripted"}


def outputs(model: Model, network: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors(network(*model.inputs()))]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1), nn.Dropout(0.1))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, accumulate: int = 2) -> list[float]:
    losses = []
    for step in steps:
        for micro in range(accumulate):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + micro))
            loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def test_a_resumed_run_goes_on_with_the_masks_it_would_have_had(tmp_path: Any) -> None:
    model, path = network(), tmp_path / "state.pt"
    optimizer = adam(model)
    handle = address(model, 3)
    handle.follow(optimizer)
    trained(model, optimizer, range(3))
    assert handle.last_step == 3
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "masks": handle.state_dict()}
    torch.save(saved, path)
    wanted = trained(model, optimizer, range(3, 6))

    resumed = network()
    optimizer = adam(resumed)
    handle = address(resumed)
    handle.follow(optimizer)
    state = torch.load(path, weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.manual_seed(99)
    handle.load_state_dict(state["masks"])
    assert handle.seed == 3
    assert trained(resumed, optimizer, range(3, 6)) == wanted
    handle.load_state_dict({**state["masks"], "seed": 4})
    assert trained(resumed, optimizer, range(3, 6)) != wanted


def test_a_run_resumed_between_accumulated_batches() -> None:
    model, x = network(), torch.ones(8, 4)
    handle = address(model, 3)
    model(x)
    state = copy.deepcopy(handle.state_dict())
    wanted = model(x)
    assert dict(state["runs"]) == {"": 1, "0": 1, "1": 1, "2": 1, "3": 1, "4": 1}
    handle.close()
    handle = address(model)
    handle.load_state_dict(state)
    assert torch.equal(model(x), wanted)


def test_the_model_keeps_its_state_dict() -> None:
    model = network()
    before = list(model.state_dict())
    address(model)
    model(torch.ones(2, 4))
    assert list(model.state_dict()) == before
    assert list(copy.deepcopy(model).state_dict()) == before


def test_evaluation_is_plain() -> None:
    model, x = network().eval(), torch.ones(2, 4)
    plain = model(x)
    handle = address(model)
    assert torch.equal(model(x), plain)
    assert handle._keys._sites.keys() == {"1", "4"}


def test_sources_of_the_users_own_are_left_alone() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            given = keep_mask(9, x.shape, 0.5)
            drop, generator = dropkit.functional.dropout, torch.Generator().manual_seed(4)
            own = [drop(x, 0.5, key=8), drop(x, 0.5, mask=torch.from_numpy(given)), drop(x, 0.5, generator=generator)]
            return torch.stack([*own, torch.rand(40, generator=generator) * x])

    model, x = Own(), torch.ones(40)
    plain = model(x)
    address(model)
    assert torch.equal(model(x), plain)


def test_a_part_that_is_called_alone_and_a_model_inside_another() -> None:
    model, x = nn.Sequential(nn.Sequential(nn.Dropout(0.5))), torch.ones(50)
    address(model, 1)
    mask = (model[0](x) != 0).numpy()
    assert (mask == keep_mask(call_key(1, "0.0", 0), (50,), 0.5)).all()
    mask = (nn.Sequential(model)(x) != 0).numpy()
    assert (mask == keep_mask(call_key(1, "0.0", 0, 1), (50,), 0.5)).all()


def test_wrapped_models_have_the_names_of_what_they_wrap() -> None:
    class DistributedDataParallel(nn.Module):  # as PyTorch's, which needs processes
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    DistributedDataParallel.__module__ = "torch.nn.parallel.distributed"
    inner, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(50)
    address(DistributedDataParallel(inner), 1)
    assert ((inner(x) != 0).numpy() == keep_mask(call_key(1, "0", 0), (50,), 0.5)).all()


def test_exceptions_leave_the_model_as_it_was() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("on purpose")

    model, x = nn.Sequential(nn.Dropout(0.5), Failing()), torch.ones(50)
    handle = address(model, 1)
    for call in range(2):
        with pytest.raises(KeyError, match=r"on purpose"):
            model(x)
        assert dict(handle.state_dict()["runs"])["0"] == call + 1
    assert not torch.overrides._get_current_function_mode_stack()
    handle.step()


def test_finding_sites_moves_nothing() -> None:
    model, x = network(), torch.ones(8, 4)
    handle = address(model, 1)
    before = handle.state_dict()
    assert [site.name for site in dropkit.sites.find(model, x)] == ["1", "4"]
    assert handle.state_dict() == before


def test_close() -> None:
    model, x = network(), torch.ones(8, 4)
    handle = address(model)
    optimizer = adam(model)
    handle.follow(optimizer)
    handle.close()
    handle.close()
    optimizer.step()
    torch.manual_seed(1)
    found = model(x)
    torch.manual_seed(1)
    assert torch.equal(network()(x), found) is False  # network() draws its weights first
    assert handle.last_step == 0
    for act in (handle.step, lambda: handle.follow(optimizer), lambda: handle.load_state_dict(handle.state_dict())):
        with pytest.raises(UnsupportedError, match=r"was closed"):
            act()
    address(model)


def test_an_optimizer_is_followed_once_however_often_it_is_asked_for() -> None:
    model = network()
    handle, optimizer, other = address(model), adam(model), adam(model)
    hook = handle.follow(optimizer)
    assert handle.follow(optimizer) is hook
    with pytest.raises(ArgumentError, match=r"`optimizer` must be the optimizer that is followed, got 'Adam'.*remove"):
        handle.follow(other)
    optimizer.step()
    other.step()
    assert handle.last_step == 1
    hook.remove()
    handle.follow(other)
    optimizer.step()
    other.step()
    assert handle.last_step == 2
    del other, hook
    gc.collect()
    handle.follow(optimizer)
    optimizer.step()
    assert handle.last_step == 3


def test_addressing_twice() -> None:
    model = nn.Sequential(network(), nn.Dropout(0.5))
    handle = address(model[0])
    for again in (model[0], model, model[0][1]):
        with pytest.raises(ArgumentError, match=r"not addressed already"):
            address(again)
    handle.close()
    address(model)


def test_copies() -> None:
    model, x = network(), torch.ones(8, 4)
    handle = address(model, 1)
    copied = copy.deepcopy(model)
    before = handle.state_dict()
    torch.manual_seed(5)
    found = copied(x)
    torch.manual_seed(5)
    assert torch.equal(copied(x), found)
    assert handle.state_dict() == before
    own = address(copied, 1)
    assert torch.equal(copied(x), model(x))
    assert own.state_dict() == handle.state_dict()


def pickled(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))  # noqa: S301  # its own


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_of_a_handle_is_closed(copied: Any) -> None:
    """Also of one that a model keeps, or an object that has both and an optimizer."""
    model, x = network(), torch.ones(8, 4)
    model.handle = handle = address(model, 3)
    optimizer = adam(model)
    handle.follow(optimizer)
    model(x)
    before = handle.state_dict()
    own = copied({"model": model, "handle": handle, "optimizer": optimizer})
    copies = [own["handle"], own["model"].handle] if own["model"] is not model else [copied(handle)]
    for each in copies:
        assert repr(each) == "Addressing(seed=3, last_step=0, closed)"
        assert each.state_dict() == before
        acts = (each.step, lambda: each.follow(optimizer), lambda: each.load_state_dict(before), each.__enter__)  # noqa: B023
        for act in acts:
            with pytest.raises(UnsupportedError, match=r"was closed"):
                act()
        each.close()
    own["optimizer"].step()
    assert handle.state_dict() == (
        before if own["optimizer"] is not optimizer else {**before, "last_step": 1, "runs": ()}
    )
    if own["model"] is not model:
        own["model"](x)
        address(own["model"])


def test_a_handle_closes_at_the_end_of_a_block() -> None:
    model, x = nn.Dropout(0.5), torch.ones(50)
    with address(model, 5) as handle:
        assert repr(handle) == "Addressing(seed=5, last_step=0)"
        assert ((model(x) != 0).numpy() == keep_mask(call_key(5, "", 0), (50,), 0.5)).all()
        handle.step()
    assert repr(handle) == "Addressing(seed=5, last_step=1, closed)"
    assert not model._forward_pre_hooks
    with pytest.raises(UnsupportedError, match=r"was closed"), handle:
        pass


def test_a_model_that_is_gone_leaves_nothing() -> None:
    def use() -> None:
        model = network()
        address(model)
        model(torch.ones(8, 4))

    gc.collect()
    before = len(dropkit.sites.interception.checkpoints.watched())
    use()
    gc.collect()
    assert len(dropkit.sites.interception.checkpoints.watched()) == before


def colliding() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for name in (f"d{number}" for number in itertools.count()):
        other = seen.setdefault(dropkit.random.site(name), name)
        if other != name:
            return other, name
    raise AssertionError


def test_names_that_collide() -> None:
    first, second = colliding()
    model = nn.ModuleDict({first: nn.Dropout(0.5), second: nn.Dropout(0.5)})
    with pytest.raises(ArgumentError, match=rf"'{first}' and '{second}' have the same number"):
        address(model)
    assert not model[first]._forward_pre_hooks
    late = nn.ModuleDict({first: nn.Dropout(0.5)})
    handle = address(late)
    with pytest.raises(ArgumentError, match=rf"'{first}' and '{second}' have the same number"):
        handle._keys.site(second)


def in_forward(handle_of: list[Addressing], method: str, *args: Any) -> Iterator[nn.Module]:
    class Calling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            getattr(handle_of[0], method)(*args)
            return x

    model = nn.Sequential(Calling(), nn.Dropout(0.5))
    handle_of.append(address(model))
    yield model


@pytest.mark.parametrize("method", ["step", "close"])
def test_inside_a_forward(method: str) -> None:
    handles: list[Addressing] = []
    [model] = in_forward(handles, method)
    with pytest.raises(UnsupportedError, match=r"the model's forward is running"):
        model(torch.ones(3))
    assert handles[0].last_step == 0


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([], ArgumentTypeError, r"what Addressing.state_dict returned"),
        ({}, ArgumentError, r"what Addressing.state_dict returned"),
        ({"more": 1}, ArgumentError, r"what Addressing.state_dict returned"),
        ({"mask_version": MASK_VERSION + 1}, ArgumentError, r"mask_version.*go on with the one that saved it"),
        ({"seed": -1}, ArgumentError, r"seed.*\[0, 2\*\*64\)"),
        ({"seed": 1.5}, ArgumentTypeError, r"seed"),
        ({"last_step": -1}, ArgumentError, r"last_step"),
        ({"last_step": True}, ArgumentTypeError, r"last_step"),
        ({"runs": 3}, ArgumentTypeError, r"`state_dict\['runs'\]` must be pairs"),
        ({"runs": ["1"]}, ArgumentTypeError, r"must be pairs"),
        ({"runs": [("1", 2, 3)]}, ArgumentTypeError, r"must be pairs"),
        ({"runs": [([], 2)]}, ArgumentTypeError, r"must be pairs"),
        ({"runs": {1: 2}}, ArgumentTypeError, r"must be pairs"),
        ({"runs": [("1", 1.5)]}, ArgumentTypeError, r"runs.*'1'"),
        ({"runs": {"nobody": 1}}, ArgumentError, r"nobody.*saved for another one"),
        ({"runs": {"1": -1}}, ArgumentError, r"runs.*'1'"),
    ],
)
def test_bad_states(state: Any, error: type[Exception], message: str) -> None:
    handle = address(network(), 1)
    handle.step()
    before = handle.state_dict()
    given = {**before, **state} if state else state
    with pytest.raises(error, match=message):
        handle.load_state_dict(given)
    assert handle.state_dict() == before


@pytest.mark.parametrize("form", [dict, list, tuple])
def test_forms_of_runs(form: Any) -> None:
    """Pairs are saved, lists come out of JSON, and a mapping is what was saved before there were pairs."""
    handle = address(network(), 1)
    handle.load_state_dict({**handle.state_dict(), "runs": form([("", 3), ("1", 4)])})
    assert handle.state_dict()["runs"] == (("", 3), ("1", 4))


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch.nn.Module"):
        address(torch.ones)
    for seed, error in (
        (-1, ArgumentError),
        (2**64, ArgumentError),
        (0.5, ArgumentTypeError),
        (True, ArgumentTypeError),
    ):
        model = network()
        with pytest.raises(error, match=r"`seed` must be an integer in \[0, 2\*\*64\)"):
            address(model, seed)
        assert not model._forward_pre_hooks
    with pytest.raises(ArgumentTypeError, match=r"a torch.optim.Optimizer"):
        address(network()).follow(network())


def test_an_interrupted_forward_addresses_nothing_after_it() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            F.dropout(x)
            raise KeyboardInterrupt

    def draws() -> list[Tensor]:
        torch.manual_seed(0)
        return [torch.rand(9), F.dropout(x), x.clone().bernoulli_(0.5), dropkit.functional.dropout(x)]

    model, x = nn.Sequential(nn.Dropout(0.5), Cut()), torch.ones(50)
    plain, handle = draws(), address(model, SEED)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model(x)
        assert all(torch.equal(own, other) for own, other in zip(draws(), plain, strict=True))
    assert dict(handle.state_dict()["runs"]) == {"": 2, "0": 2, "1": 2}
    assert ((model[0](x) != 0).numpy() == keep_mask(call_key(SEED, "0", 0, 2), (50,), 0.5)).all()
