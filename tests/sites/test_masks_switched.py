"""Hand-written masks switched: bit for bit, and nothing else that is random."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropkit.sites import switch
from tests.sites import disguises
from tests.sites.disguises import PLAIN, SCALED, rows
from tests.sites.lookalikes import NO_DROPOUT, PERHAPS


class Noise(nn.Module):
    """What is random, but no dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rand_like(x)


class Gated(nn.Module):
    """Something random between two linear layers, in training alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last, self.noise = nn.Linear(5, 5), function, nn.LazyLinear(2), Noise()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        if self.training:
            x = self.function(x)
        return self.last(x.to(self.last.weight.dtype)), self.noise(x)


class Always(Gated):
    """The same in evaluation too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.function(self.first(x))
        return self.last(x.to(self.last.weight.dtype)), self.noise(x)


def seeded(model: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(0)
    outputs = model(x)
    return (*outputs, torch.get_rng_state())


def assert_same(first: Any, second: Any) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("function", [*SCALED, *PLAIN], ids=lambda function: function.__name__)
def test_off_in_training_is_evaluation_and_on_in_evaluation_is_training(function: Callable[[Tensor], Tensor]) -> None:
    """Bit for bit, other draws and the generator's state included."""
    exact = function is not disguises.half  # which rounds what it is given in training alone
    model, x = Gated(function), rows()
    model(x)
    with switch(model, "off"):
        off = seeded(model.train(), x)
    if exact:
        assert_same(off, seeded(model.eval(), x))
    with switch(model, "on"):
        on = seeded(model.eval(), x)
    assert_same(on, seeded(model.train(), x))
    assert not torch.equal(on[0], off[0])


@pytest.mark.parametrize("function", [*SCALED, *PLAIN], ids=lambda function: function.__name__)
def test_masks_of_evaluation_too_are_switched_off(function: Callable[[Tensor], Tensor]) -> None:
    if function is disguises.half:
        pytest.skip("rounds what it is given")
    model, x = Always(function), rows()
    model(x)
    expected = model.last(model.first(x))
    for training in (True, False):
        with switch(model.train(training), "off"):
            output, noise, state = seeded(model, x)
        assert torch.equal(output, expected)
        torch.manual_seed(0)
        assert torch.equal(noise, torch.rand(6, 5))
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("function", [*NO_DROPOUT, *PERHAPS], ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore:switch. these sites cannot be switched")
def test_what_is_not_surely_dropout_is_left_alone(function: Callable[[Tensor], Tensor]) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> tuple[Any]:
            return (function(self.drop(x)),)

    model, x = Mixed(), rows()
    with switch(model, "off"):
        off = seeded(model, x)
    model.drop.p = 0.0
    assert_same(off, seeded(model, x))


class Followed(nn.Module):
    """A mask of training alone, and after it something random in both modes, perhaps more in training."""

    def __init__(self, after: Callable[[Tensor], Tensor], more: bool = False) -> None:
        super().__init__()
        self.after, self.more = after, more

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = disguises.bernoulli(x)
        if self.training and self.more:
            x = x + torch.rand_like(x)
        return self.after(x)


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x) + torch.randn_like(x)


@pytest.mark.parametrize("after", [noisy, disguises.compared], ids=["noise", "mask"])
def test_what_is_random_after_a_gated_mask_has_another_number_and_is_the_same(
    after: Callable[[Tensor], Tensor],
) -> None:
    model, x = Followed(after), rows()
    torch.manual_seed(0)
    train = model.train()(x)
    torch.manual_seed(0)
    evaluation = model.eval()(x)
    with switch(model, "on") as handle:
        torch.manual_seed(0)
        assert torch.equal(model(x), train)
    assert [site.name for site in handle.sites] == ["~0", "~1"][: 1 + (after is disguises.compared)]
    assert not handle.unswitched
    with switch(model.train(), "off") as handle:
        torch.manual_seed(0)
        assert torch.equal(model(x), x if after is disguises.compared else evaluation)
    assert not handle.unswitched


def test_a_gated_mask_that_would_bring_other_noise_along_stays_off() -> None:
    model, x = Followed(noisy, more=True).eval(), rows()
    with switch(model, "on"):
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="cannot be switched 'on' and stay as they are: ~0"):
            output = model(x)
    torch.manual_seed(0)
    assert torch.equal(output, model(x))


class Begins(nn.Module):
    """A mask that drops nothing before its rate rises, or before its branch is taken."""

    def __init__(self, has_branch: bool) -> None:
        super().__init__()
        self.rate, self.has_branch = 0.0, has_branch

    def forward(self, x: Tensor) -> Tensor:
        if self.has_branch and not self.rate:
            return x
        return x * (torch.rand_like(x) >= self.rate) / (1 - self.rate)


@pytest.mark.parametrize("has_branch", [False, True])
def test_a_mask_that_begins_to_drop_after_its_module_was_learned_is_told(has_branch: bool) -> None:
    model, x = nn.Sequential(nn.Dropout(0.1), Begins(has_branch)), torch.ones(20, 20)
    with switch(model, "off") as handle:
        assert torch.equal(model(x), x)
        model[1].rate = 0.5
        with pytest.warns(UserWarning, match="began to drop after it learned their modules, and are not off: 1~0"):
            assert not torch.equal(model(x), x)
        [site] = handle.unswitched
        assert (site.name, site.kind, site.p, [each.name for each in handle.sites]) == ("1~0", "mask", 0.5, ["0"])
        handle.learn(x)
        assert torch.equal(model(x), x)
        assert not handle.unswitched
        assert [each.name for each in handle.sites] == ["0", "1~0"]


def test_noise_that_begins_later_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    model, x = Followed(noisy, more=True).eval(), rows()
    with switch(nn.Sequential(nn.Dropout(0.1), model), "off") as handle:
        model(x)
        model.after = lambda x: noisy(x) * (1 + torch.randn_like(x))
        model(x)
    assert not handle.unswitched
    assert not [warning for warning in recwarn if "began" in str(warning.message)]
