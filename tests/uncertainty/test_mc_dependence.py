"""Monte Carlo passes where values decide what runs, or examples depend on one another: as in a plain loop."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import mc

MASKS = ("per_example", "shared")


class Base(nn.Module):
    """Has dropout, and something behind it that a test decides on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5)), None, None
        self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 3)


class EarlyExit(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        y = self.a(hidden)
        return 10 * y if y.softmax(-1).max() > 0.45 else self.b(hidden)


class Item(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y * (2.0 if y.max().item() > 0.3 else 1.0)


class OfArray(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y + torch.from_numpy(y.numpy()).clamp(min=0.2)


class OfList(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y * (1 + len([row for row in y.tolist() if row[0] > 0]))


class Rows(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        chosen = y[:, 0] > 0
        y[chosen] = self.b(self.body(x))[chosen]
        return y


class Unpacked(Base):
    """Writes into a view, and looks at what the view is of."""

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_zeros(len(x), 4)
        whole[:, 1:] += self.a(self.body(x))
        return whole * 2 if (whole > 0.5).any() else whole


READING = {
    EarlyExit: r"bool\(\)", Item: r"item\(\)", OfArray: r"numpy\(\)", OfList: r"tolist\(\)", Rows: r"getitem\(\)",
    Unpacked: r"bool\(\)",
}  # fmt: skip


@pytest.mark.parametrize("model", READING)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("count", [1, 6])
def test_passes_whose_values_are_read_run_one_after_another(model: type[nn.Module], masks: str, count: int) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(count, 8)
    with pytest.warns(UserWarning, match=f"one after another, for Python reads values .* by {READING[model]}"):
        found = mc(net, 30, seed=0, masks=masks, keep_samples=True)(x)
    assert found.facts["engine"] == "loop"
    assert torch.equal(found.samples, mc(net, 30, seed=0, masks=masks, engine="loop", keep_samples=True)(x).samples)


def test_early_exits_have_the_mean_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    net, x = EarlyExit(), torch.randn(1, 8)
    with pytest.warns(UserWarning, match="one after another"):
        result = mc(net, 400, seed=1)(x)
    net.train()
    with torch.no_grad():
        plain = torch.stack([net(x) for _ in range(4000)])
    error = (plain.var(0) / 4000 + plain.var(0) / 400).sqrt()
    assert bool(((result.mean - plain.mean(0)).abs() < 5 * error).all())


class ReadBefore(Base):
    """Reads what comes before its dropout, what it is given, and shapes."""

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any() or not x.tolist():
            return x
        y = self.a(self.body(x))
        assert y.shape[0] == len(x)
        if x.abs().max() > 100:
            y = y - y.mean(0)
        zeros = torch.zeros_like(y[0]).expand_as(y)
        return y + zeros if bool(zeros.sum() == 0) else y


@pytest.mark.parametrize("masks", MASKS)
def test_passes_whose_inputs_are_read_run_together(masks: str) -> None:
    net, x = ReadBefore(), torch.randn(6, 8)
    found = mc(net, 9, seed=0, masks=masks, keep_samples=True)(x)
    assert found.facts["engine"] == "prefix"
    want = mc(net, 9, seed=0, masks=masks, engine="loop", keep_samples=True)(x)
    torch.testing.assert_close(found.samples, want.samples)


class Clipped(Base):
    """Scales all examples by their largest value, which few passes have to."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y / y.abs().max().clamp(min=1.0)


class ClippedByColumn(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y / y.abs().amax(0, keepdim=True).clamp(min=1.0)


class Written(Base):
    """Keeps one value of all examples, and uses it later."""

    def forward(self, x: Tensor) -> Tensor:
        state = torch.ones(1)
        y = self.a(self.body(x))
        state[0] = y.max().clamp(min=1.0)
        return y.div_(state)


class Returned(Base):
    """Returns, besides, one value of all examples that hardly ever differs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(self.body(x))
        return y, y.abs().max().clamp(min=1.0)


class Filled(Base):
    """Fills a tensor with one value of all examples."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y / torch.full_like(y, y.max().clamp(min=1.0))


class NewFilled(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y / y.new_full((3,), y.max().clamp(min=1.0))


class Running(Base):
    """Clips by the largest value of the examples so far, which few passes have to."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y - (y.cummax(0).values - 3).relu()


class Survivors(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y * (y[:, :1] < 2).float().cumprod(dim=-2)


class Pairs(Base):
    """Takes the mean of examples that are almost equal, of which there are few."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        near = (torch.cdist(y, y) < 1e-3).float()
        return near @ y / near.sum(-1, keepdim=True)


USED = "examples depend on one value of all of them, by"
JOINT = {
    Clipped: rf"{USED} max\(\)", ClippedByColumn: rf"{USED} amax\(\)", Written: rf"{USED} max\(\)",
    Returned: r"output\[1\] is one value of all examples, by max\(\)",
    Filled: rf"{USED} max\(\)", NewFilled: rf"{USED} max\(\)",
    Running: r"depend on others by their order, by cummax\(\)",
    Survivors: r"depend on others by their order, by cumprod\(\)", Pairs: r"examples meet one another, by cdist\(\)",
}  # fmt: skip


@pytest.mark.parametrize("model", JOINT)
@pytest.mark.parametrize("scale", [0.3, 1.5])
@pytest.mark.parametrize("masks", MASKS)
def test_one_value_of_all_examples_keeps_passes_apart(model: type[nn.Module], scale: float, masks: str) -> None:
    torch.manual_seed(1)
    net, x = model(), scale * torch.randn(6, 8)
    with pytest.warns(UserWarning, match="one after another, for "):
        found = mc(net, 30, seed=0, masks=masks, keep_samples=True)(x)
    want = mc(net, 30, seed=0, masks=masks, engine="loop", keep_samples=True)(x)
    torch.testing.assert_close(found.samples, want.samples, rtol=0, atol=0)


@pytest.mark.parametrize("model", JOINT)
def test_the_message_names_the_function(model: type[nn.Module]) -> None:
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=JOINT[model]):
        mc(model(), 3, seed=0)(0.1 * torch.randn(6, 8))
    with pytest.raises(UnsupportedError, match=JOINT[model]):
        mc(model(), 3, seed=0, engine="batched")(0.1 * torch.randn(6, 8))


class Logged(Base):
    """Computes a value of all examples that nothing depends on."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        self.last = y.mean()
        return y / y.abs().amax(1, keepdim=True)


def test_a_value_that_nothing_depends_on_does_not_matter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mc(Logged(), 3, seed=0)(torch.randn(6, 8)).facts["engine"] == "prefix"


class AlongFeatures(Base):
    """Sorts, sums up and multiplies within each example."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        products = y.unsqueeze(2) @ y.unsqueeze(1)
        return y.sort().values.cumsum(1) + products.sum(-1) + y.t().argsort(0).t()


def test_orders_and_products_within_examples_do_not_matter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mc(AlongFeatures(), 3, seed=0)(torch.randn(6, 8)).facts["engine"] == "prefix"


class Slotted:
    """An option without a dictionary."""

    __slots__ = ("__hidden",)

    def __init__(self, *, is_centred: bool) -> None:
        self.__hidden = is_centred

    def __bool__(self) -> bool:
        return self.__hidden


class Option:
    """An option of a forward, of a class that nobody knows."""

    def __init__(self, *, is_centred: bool) -> None:
        self.is_centred = is_centred

    def __bool__(self) -> bool:
        return self.is_centred


class Centred(Base):
    """Takes the mean over the batch off where it is told to, behind its dropout."""

    def forward(self, x: Tensor, option: Any = None) -> Tensor:
        y = self.a(self.body(x))
        is_centred = bool(x.abs().max() > 10) if option is None else bool(option)
        return y - y.mean(0) if is_centred else y


OPTIONS: dict[str, tuple[Any, Any]] = {
    "object": (Option(is_centred=False), Option(is_centred=True)),
    "flag": (torch.tensor(False), torch.tensor(True)),
    "number": (torch.zeros(1), torch.ones(1)),
    "constant": (False, True),
    "numpy": (np.bool_(0), np.bool_(1)),
    "slots": (Slotted(is_centred=False), Slotted(is_centred=True)),
    "data": (None, None),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("masks", MASKS)
def test_what_was_verified_of_one_branch_is_not_taken_for_another(option: str, masks: str) -> None:
    torch.manual_seed(0)
    net, x = Centred(), torch.randn(6, 8)
    predict, plain = (mc(net, 9, seed=0, masks=masks, engine=e, keep_samples=True) for e in ("auto", "loop"))
    for turn in (0, 1, 0, 1):
        given = (x * 20, None) if option == "data" and turn else (x, OPTIONS[option][turn])
        with pytest.warns(UserWarning, match="one after another") if turn else warnings.catch_warnings():
            found = mc(net, 9, seed=0, masks=masks, keep_samples=True)(*given)
        assert found.facts["engine"] == ("loop" if turn else "prefix")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = predict(*given)
        assert kept.facts["engine"] == found.facts["engine"]
        torch.testing.assert_close(kept.samples, plain(*given).samples)


def test_a_branch_that_was_met_before_is_not_verified_again() -> None:
    calls = []
    net, x = Centred(), torch.randn(6, 8)
    net.a.register_forward_hook(lambda *_: calls.append(1))
    predict = mc(net, 9, seed=0)
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scale in (1, 20, 1, 20, 20):
            calls.clear()
            predict(scale * x)
            counts.append(len(calls))
    assert counts[2] <= 3  # the first pass in the other way, and then in its own with all others together
    assert counts[4] == 9


class Lazy(Base):
    """Computes something on its first forward, and keeps it, as tables of positions are kept."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(8.0).sin()
        return self.a(self.body(x + self.table))


def test_what_only_a_first_forward_does_is_verified_twice_at_most() -> None:
    calls = []
    net, x = Lazy(), torch.randn(6, 8)
    net.a.register_forward_hook(lambda *_: calls.append(1))
    predict, counts = mc(net, 9, seed=0), []
    for _ in range(3):
        calls.clear()
        predict(x)
        counts.append(len(calls))
        net.table = None
    assert counts[2] == 2


class ByCount(Base):
    """Goes another way where it is given many rows."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.body(x))
        return y - y.mean(0) if len(x) > 20 else y


def test_more_passes_together_than_were_verified_take_the_same_path_or_run_alone() -> None:
    net, x = ByCount(), torch.randn(6, 8)
    with pytest.warns(UserWarning, match="more passes together call other functions"):
        found = mc(net, 9, seed=0, keep_samples=True)(x)
    want = mc(net, 9, seed=0, engine="loop", keep_samples=True)(x)
    torch.testing.assert_close(found.samples, want.samples)


class Distributed(nn.Module):
    """Returns a distribution, which reads what it is given to check it, and may read more itself."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.body, self.reads = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)), reads

    def forward(self, x: Tensor) -> torch.distributions.Normal:
        mean = self.body(x)
        scale = mean.exp() if not self.reads or mean.sum() > 1e6 else mean.exp() + 1
        return torch.distributions.Normal(mean, scale, validate_args=True)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_what_distributions_check_keeps_no_passes_apart(reads: bool) -> None:
    model, x = Distributed(reads), torch.randn(5, 8)
    found, want = (mc(model, 9, task="regression", seed=0, engine=engine)(x) for engine in ("auto", "loop"))
    assert (found.facts["engine"] == "loop") == reads
    torch.testing.assert_close(found.mean, want.mean)
    torch.testing.assert_close(found.std, want.std)


class Packed(nn.Module):
    """A text classifier that drops before it packs."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(20, 8), nn.Dropout(0.3)
        self.recurrent, self.last = kind(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        words = self.drop(self.words(text))
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        _, states = self.recurrent(packed)
        return self.last((states[0] if isinstance(states, tuple) else states)[-1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_sequences_that_are_packed_after_dropout_are_said_to_be(kind: type[nn.Module]) -> None:
    """Their sizes are of lengths, though they come with what depends on masks."""
    with pytest.warns(UserWarning, match=r"packed after dropout, by pack_padded_sequence\(\).* That is right"):
        mc(Packed(kind), 3, seed=0)(torch.randint(0, 20, (4, 7)), torch.tensor([4, 7, 2, 6]))
