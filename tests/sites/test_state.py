"""State that a forward keeps in plain attributes: found, switched or converted, a model has what it had."""

import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.sites import convert, find, switch
from dropkit.sites.interception import attributes

X = torch.ones(3, 4)


class Meter:
    """What a user's model may count with."""

    def __init__(self) -> None:
        self.total, self.parts = 0.0, {"last": [0.0]}

    def add(self, value: float) -> None:
        self.total += value
        self.parts["last"].append(value)


class Keeping(nn.Module):
    """Changes one attribute in its forward, by a function."""

    def __init__(self, value: Any, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.linear, self.drop, self.change = nn.Linear(4, 4), nn.Dropout(0.5), change
        self.kept = value

    def forward(self, x: Tensor) -> Tensor:
        changed = self.change(self.kept)
        if changed is not None:
            self.kept = changed
        return self.linear(self.drop(x).relu())


def moved(tensor: Tensor) -> None:
    tensor.mul_(0.9).add_(1)


def moved_beside_the_version(tensor: Tensor) -> None:
    tensor.data.add_(1)


def moved_array(array: Any) -> None:
    array += 1


def counted(box: Any) -> None:
    box.n += 1


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "counter": (lambda: 3, lambda n: n + 1, lambda n: n),
    "tensor": (lambda: torch.arange(3.0), moved, Tensor.tolist),
    "data of a tensor": (lambda: torch.arange(3.0), moved_beside_the_version, Tensor.tolist),
    "another tensor": (lambda: torch.arange(3.0), lambda tensor: tensor + 1, Tensor.tolist),
    "list": (lambda: [1, 2], lambda one: one.append(3), list),
    "tensors in a list": (lambda: [torch.zeros(2)], lambda one: moved(one[0]), lambda one: one[0].tolist()),
    "lists in a dict": (lambda: {"a": [1]}, lambda one: one["a"].append(2), str),
    "tuple of lists": (lambda: ([1], [2]), lambda one: one[1].clear(), str),
    "dict": (lambda: {"a": 1, "b": 2}, lambda one: one.update(a=one.pop("a") + 1), lambda one: list(one.items())),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda one: one.move_to_end("a"), list),
    "dict with defaults": (lambda: defaultdict(int, a=1), lambda one: void(one["b"]), dict),
    "counts": (lambda: Counter("aab"), lambda one: one.update("b"), dict),
    "set": (lambda: {1, 2}, lambda one: one.add(3), sorted),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda one: one.append(3), lambda one: (list(one), one.maxlen)),
    "array": (lambda: np.zeros(3), moved_array, lambda one: one.tolist()),
    "namespace": (lambda: SimpleNamespace(n=1), counted, lambda one: one.n),
    "object": (Meter, lambda one: one.add(1.0), lambda one: (one.total, str(one.parts))),
    "objects in a list": (lambda: [Meter()], lambda one: one[0].add(1.0), lambda one: one[0].total),
    "hidden module": (lambda: [nn.BatchNorm1d(4)], lambda one: void(one[0](X)), lambda one: str(one[0].state_dict())),
}  # fmt: skip


def void(_: Any) -> None:
    return


class Owner:
    """Keeps another object, whose insides are not looked at for its sake."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter


@pytest.mark.parametrize("is_first", [False, True])
def test_an_object_is_a_modules_own_whoever_else_has_it(is_first: bool) -> None:
    meter = Meter()
    kept = [meter, Owner(meter)] if is_first else [Owner(meter), meter]
    find(Keeping(kept, lambda _: meter.add(1.0)), X)
    assert (meter.total, meter.parts) == (0.0, {"last": [0.0]})


def test_views_that_nothing_can_be_written_into_are_as_what_they_are_views_of() -> None:
    base = torch.zeros(1)
    for kept in ([base, base.expand(3)], [base.expand(3), base]):
        find(Keeping(kept, lambda _: void(base.add_(1))), X)
        assert all((tensor == 0).all() for tensor in kept)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", STATES)
def test_a_search_puts_back_what_modules_keep(name: str, inference: bool) -> None:
    make, change, seen = STATES[name]
    with torch.inference_mode(inference):
        model = nn.Sequential(Keeping(make(), change))
        kept, before = model[0].kept, seen(make())
        assert [site.name for site in find(model, X)] == ["0.drop"]
        assert model[0].kept is kept
        assert seen(kept) == before
        model(X)
        assert seen(model[0].kept) != before  # the model was left able to change it


def test_learning_a_switch_counts_no_forward() -> None:
    model = Keeping(0, lambda n: n + 1).eval()
    with switch(model, "on"):
        for _ in range(3):
            model(X)
    assert model.kept == 3


def test_planning_and_checking_of_a_conversion_count_no_forward() -> None:
    model = Keeping(0, lambda n: n + 1)
    convert(model, "srivastava", X)
    assert model.kept == 0


class Lazy(nn.Module):
    """Makes attributes, a buffer, a parameter and a module in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.late: Any = None
        self.cache: dict[Any, Tensor] = {}
        self.early = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.late is None:
            self.late = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.ones(4))
            self.register_buffer("seen", torch.ones(4), persistent=False)
            self.positions = torch.arange(4)
        mask = self.cache.setdefault(tuple(x.shape), torch.ones(4))
        return self.late(self.early(F.dropout(x, 0.5, self.training))) * self.weight * mask + self.positions


@pytest.mark.parametrize("training", [True, False])
def test_what_a_forward_first_makes_is_gone_again_and_is_made_when_it_is_wanted(training: bool) -> None:
    model = Lazy().train(training)
    names, keys = set(vars(model)), list(model.state_dict())
    assert [site.name for site in find(model, X)] == ["#0"]
    assert model.late is None
    assert not model.cache
    assert set(vars(model)) == names
    assert list(model.state_dict()) == keys
    assert not model._non_persistent_buffers_set
    with switch(model, "on"):
        model(X)
    assert isinstance(model.late, nn.Linear)
    assert list(model.state_dict()) == ["weight", *keys, "late.weight", "late.bias"]


def test_a_forward_that_raises_leaves_attributes_too() -> None:
    def raises(kept: list[int]) -> None:
        kept.append(1)
        raise RuntimeError("on purpose")

    model = Keeping([], raises)
    with pytest.raises(RuntimeError, match="on purpose"):
        find(model, X)
    assert model.kept == []


@pytest.mark.parametrize("resized", [False, True])
def test_a_tensor_that_cannot_be_put_back_is_told(resized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tensor: Tensor) -> None:
        tensor.resize_(3) if resized else tensor.add_(1)

    model = nn.Sequential(Keeping(torch.zeros(2), change))
    if not resized:
        monkeypatch.setattr(attributes, "_MOST_BYTES", 7)
    with pytest.warns(UserWarning, match="changed `kept` of `0`, a tensor that is sparse"):
        find(model, X)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", ["sparse", "jagged", "meta"])
def test_tensors_of_every_sort_may_be_kept(layout: str) -> None:
    kept = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        "meta": lambda: torch.zeros(3, device="meta"),
    }[layout]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find(Keeping(kept, lambda _: None), X)
    if layout == "sparse":
        with pytest.warns(UserWarning, match="changed `kept` of the model, a tensor that is sparse"):
            find(Keeping(kept, lambda _: void(kept.mul_(2))), X)


@pytest.mark.parametrize("before", [0, 12])
@pytest.mark.parametrize("after", [0, 12])
def test_tensors_whose_memory_comes_and_goes_are_left_to_whoever_frees_it(before: int, after: int) -> None:
    kept = torch.zeros(3)
    kept.untyped_storage().resize_(before)
    find(Keeping(kept, lambda tensor: void(tensor.untyped_storage().resize_(after))), X)
    assert kept.untyped_storage().nbytes() == after


def test_objects_that_answer_no_question_may_be_kept() -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    class Slotted:
        __slots__ = ("total",)

    class Posing:
        @property
        def __dict__(self) -> Any:
            raise ZeroDivisionError

    assert find(Keeping([Silent(), Slotted(), Posing()], lambda _: None), X)


def test_a_graph_from_before_a_search_is_sound() -> None:
    """What it has saved is what it was, in values and in version."""

    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.kept = nn.Dropout(0.5), torch.tensor(3.0)
            self.weight = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("seen", torch.tensor(5.0))

        def forward(self, x: Tensor) -> Tensor:
            self.kept.add_(1)
            self.seen.add_(1)
            return self.drop(x) + self.weight * self.kept * self.seen

    model = Power()
    result = model(X).sum()
    find(model, X)
    result.backward()
    assert float(model.weight.grad) == 12 * 4.0 * 6.0


def test_a_large_tensor_that_does_not_change_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "_MOST_BYTES", 7)
    model = Keeping(torch.zeros(2), lambda tensor: void(tensor + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find(model, X)


def replaced(owner: nn.Module) -> None:
    owner.held = nn.Parameter(owner.held + 1)


WRITES: dict[str, Callable[[nn.Module], Any]] = {
    "data replaced": lambda owner: setattr(owner.held, "data", owner.held.data * 0.9 + 0.1),
    "data in place": lambda owner: owner.held.data.mul_(0.9),
    "in place": lambda owner: owner.held.mul_(0.9),
    "object": replaced,
    "written and replaced": lambda owner: (owner.held.data.mul_(0.9), setattr(owner.held, "data", owner.held.data * 2)),
}


class Hooked(nn.Module):
    """Registers hooks in its first forward, and notes that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop, self.seen = nn.Linear(4, 4), nn.Dropout(0.5), 0

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "is_hooked"):
            self.linear.register_forward_hook(self.count, always_call=True)
            self.drop.register_forward_pre_hook(self.count, with_kwargs=True)
            self.is_hooked = True
        return self.drop(self.linear(x))

    def count(self, *_: Any) -> None:
        self.seen += 1


def test_hooks_that_a_forward_registers_are_there_once() -> None:
    model = Hooked()
    model.linear.register_forward_hook(model.count)
    for _ in range(3):
        assert len(find(model, X)) == 1
    assert (len(model.linear._forward_hooks), len(model.drop._forward_pre_hooks)) == (1, 0)
    assert not model.linear._forward_hooks_always_called
    assert not model.drop._forward_pre_hooks_with_kwargs
    model(X)
    model(X)
    assert model.seen == 6  # three hooks, twice


class Moving(nn.Module):
    """Writes a parameter in its forward, as a momentum encoder does."""

    def __init__(self, write: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.linear, self.drop, self.write = nn.Linear(4, 4), nn.Dropout(0.5), write
        self.held = nn.Parameter(torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self)
        return self.drop(self.linear(x)) + self.held


def looked(model: nn.Module, by: str) -> None:
    if by == "find":
        find(model, X)
    elif by == "switch":
        with switch(model, "on") as opened:
            opened.learn(X)
    else:
        convert(model, "srivastava", X, dry_run=True)


@pytest.mark.parametrize("by", ["find", "switch", "convert"])
@pytest.mark.parametrize("write", WRITES)
def test_parameters_hold_what_they_held_where_they_held_it(write: str, by: str) -> None:
    model = nn.Sequential(Moving(WRITES[write]))
    held = model[0].held
    version, pointer, optimizer = held._version, held.data_ptr(), torch.optim.SGD(model.parameters(), lr=0.1)
    looked(model, by)
    assert model[0].held is held
    assert held.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (held._version, held.data_ptr()) == (version, pointer)
    assert any(each is held for each in optimizer.param_groups[0]["params"])
    assert [name for name, _ in model.named_parameters()] == ["0.held", "0.linear.weight", "0.linear.bias"]


def test_a_parameter_of_a_module_that_is_hidden_in_a_list_is_put_back() -> None:
    inner = Moving(WRITES["in place"])
    model = Keeping([inner], lambda kept: void(kept[0](X)))
    find(model, X)
    assert inner.held.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("write", ["data replaced", "in place"])
def test_a_large_parameter_that_changes_is_told(write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "_MOST_BYTES", 7)
    with pytest.warns(UserWarning, match="changed `held` of `0`, a parameter that is too large to be copied"):
        find(nn.Sequential(Moving(WRITES[write])), X)


@pytest.mark.parametrize("most", [7, 2**30])
def test_a_parameter_that_does_not_change_is_nothing_to_tell(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "_MOST_BYTES", most)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find(Moving(lambda owner: void(owner.held + 1)), X)


class Dropped(nn.Module):
    """Drops from a weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5, self.training)


def test_a_cache_of_parametrized_weights_neither_hides_a_site_nor_keeps_what_is_dropped() -> None:
    layer, x = nn.Linear(8, 8), torch.ones(3, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", Dropped())
    model = nn.Sequential(layer).eval()
    expected = model(x)
    for is_cached in (False, True):
        with nn.utils.parametrize.cached():
            if is_cached:
                model(x)
            assert [site.p for site in find(model, x)] == [0.5]
            assert torch.equal(model(x), expected)
    assert not nn.utils.parametrize._cache


class OfGenerators(nn.Module):
    """Draws noise of its own from generators that it is given, and that it keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.kept = nn.Dropout(0.2), [torch.Generator(), np.random.default_rng(0)]

    def forward(self, x: Tensor, generator: torch.Generator, rng: np.random.Generator, array: np.ndarray) -> Tensor:
        array += 1
        noise = torch.randn(x.shape, generator=generator) + torch.randn(x.shape, generator=self.kept[0])
        return self.drop(x + noise + float(rng.normal()) + float(self.kept[1].normal()) + float(array.sum()))


def given() -> dict[str, Any]:
    return {
        "generator": torch.Generator().manual_seed(0), "rng": np.random.default_rng(1), "array": np.zeros(3)
    }  # fmt: skip


def test_generators_and_arrays_that_a_forward_is_given_are_as_they_were() -> None:
    model, x = OfGenerators().eval(), torch.randn(4, 8)
    inputs, kept = given(), [model.kept[0].get_state(), model.kept[1].bit_generator.state]
    before = inputs["generator"].get_state(), inputs["rng"].bit_generator.state
    find(model, x, **inputs)
    assert torch.equal(inputs["generator"].get_state(), before[0])
    assert inputs["rng"].bit_generator.state == before[1]
    assert not inputs["array"].any()
    assert torch.equal(model.kept[0].get_state(), kept[0])
    assert model.kept[1].bit_generator.state == kept[1]


def test_the_first_forward_of_a_switch_is_that_of_the_model() -> None:
    x, found = torch.randn(4, 8), []
    for is_switched in (False, True):
        model = OfGenerators().eval()
        model.kept[0].manual_seed(3)
        with switch(model, "off") if is_switched else nullcontext():
            found.append(model(x, **given()))
    assert torch.equal(*found)
