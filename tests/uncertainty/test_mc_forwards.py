"""Monte Carlo passes over forwards of every habit: that write, look at values, branch, skip, or keep something."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.uncertainty import mc


class OfTheBatch(nn.Module):
    """Has a mean over the batch behind its dropout, so that passes cannot run together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        return self.last(x - x.mean(0))


class InPlace(nn.Module):
    """Writes, behind its dropout, into what comes before it, and into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x), inplace=True)
        before = hidden.clone()
        hidden += self.drop(hidden)
        x.zero_()
        hidden[:, 0] = before[:, 1]
        return self.last(hidden) + before[:, :3] + x[:, :3]


class OfAView(nn.Module):
    """Writes into a view of what comes before its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        view = hidden[:, :4]
        view += self.drop(view)
        return hidden


class Captured(nn.Module):
    """Notes lengths before its first site, as many attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        rows = torch.arange(batch)
        hidden = self.drop(self.first(x)).view(batch, length, 2, 4)
        return hidden[rows, 0] + x.new_zeros(batch, 1, 4)


class Filled(nn.Module):
    """Makes a tensor, and writes what comes before its dropout into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.zeros(len(x), 10)
        padded[:, 1:9] = self.first(x)
        return self.drop(padded)


class Branching(nn.Module):
    """Looks at values before its dropout, and goes on by them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if bool((hidden > 0).any()) and hidden.sum().item() < 1e6 and len(hidden.tolist()) == len(x):
            hidden = hidden * 2
        return self.drop(hidden)


class Early(nn.Module):
    """Returns, besides, what comes before its dropout, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor, name: str = "a") -> dict[str, Any]:
        hidden = self.first(x)
        return {"hidden": hidden, "dropped": self.drop(hidden), "name": name, "length": hidden.shape[0]}


class Windowed(nn.Module):
    """Brings windows of an example to the axis of examples, as windowed attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.first(x).unflatten(1, (3, 2)).flatten(0, 1)
        return self.drop(windows).unflatten(0, (-1, 3)).flatten(1, 2)


OWN = {
    "of_the_batch": (OfTheBatch, (6, 8), "loop"),
    "in_place": (InPlace, (6, 8), "prefix"),
    "of_a_view": (OfAView, (6, 8), "batched"),
    "captured": (Captured, (6, 5, 8), "prefix"),
    "filled": (Filled, (6, 8), "prefix"),
    "branching": (Branching, (6, 8), "prefix"),
    "windowed": (Windowed, (5, 6, 8), "prefix"),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_forwards_that_are_not_pure(name: str) -> None:
    make, shape, engine = OWN[name]
    model, x = make(), torch.randn(shape)
    given = x.clone()
    found = {each: mc(model, 5, seed=1, engine=each, keep_samples=True)(x) for each in ("auto", "loop")}
    assert torch.equal(x, given)
    torch.testing.assert_close(found["auto"].samples, found["loop"].samples)
    assert found["auto"].facts["engine"] == engine


@pytest.mark.parametrize("masks", ["per_example", "shared"])
def test_windows_have_masks_of_their_example(masks: str) -> None:
    model, x = Windowed(), torch.randn(5, 6, 8)
    predict = mc(model, 4, seed=1, masks=masks, keep_samples=True)
    whole, parts = predict(x).samples, predict.batches(x.split([2, 3])).samples
    torch.testing.assert_close(whole, parts)
    dropped = whole[:, :, :2] == 0
    assert torch.equal(dropped[:, 0], dropped[:, 1]) == (masks == "shared")
    assert not torch.equal(dropped, whole[:, :, 2:4] == 0)


def test_passes_that_cannot_run_together_say_so() -> None:
    with pytest.warns(
        UserWarning, match=r"run one after another, for examples depend on one value of all of them, by mean\(\)"
    ):
        mc(OfTheBatch(), 3, seed=0)(torch.randn(6, 8))
    with pytest.raises(UnsupportedError, match="engine='batched' is not right for this model"):
        mc(OfTheBatch(), 3, seed=0, engine="batched")(torch.randn(6, 8))


def test_what_all_passes_share_comes_from_the_first() -> None:
    result = mc(Early(), 40, seed=0)(torch.randn(6, 8), name="b")
    assert set(result.mean) == {"hidden", "dropped", "name", "length"}
    assert (result.mean["name"], result.mean["length"]) == ("b", 6)
    assert type(result.mean["hidden"]) is Tensor
    assert float(result.std["hidden"].max()) == 0.0 < float(result.std["dropped"].min())


class Longer(nn.Module):
    """Drops more where it is given more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(8, 8), nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        return self.other(x) if x.shape[1] > 3 else x


def test_a_site_that_later_inputs_come_to_is_learned_then() -> None:
    predict = mc(Longer(), 4, seed=0)
    for length, names in ((2, ["one"]), (5, ["one", "other"]), (2, ["one"])):
        assert [site.name for site in predict(torch.randn(3, length, 8)).facts["sites"]] == names
    assert sorted(site.name for site in predict.sites) == ["one", "other"]


class Filtered(nn.Module):
    """Returns as many rows as its dropout leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        return x[x[:, 0] != 0]


class Skipping(nn.Module):
    """Leaves layers out at random in training, as models with LayerDrop do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not (self.training and float(torch.rand(())) < 0.5):
                x = x + layer(x)
        return x


@pytest.mark.filterwarnings("ignore:mc. in training mode alone, this Skipping draws rand")
@pytest.mark.parametrize("seed", range(6))
def test_layers_that_training_skips_at_random_drop(seed: int) -> None:
    model, x = Skipping(), torch.randn(6, 8)
    torch.manual_seed(seed)
    result = mc(model, 4, seed=0)(x)
    assert [site.name for site in result.facts["sites"]] == [f"layers.{i}.1" for i in range(4)]
    torch.manual_seed(seed + 100)
    torch.testing.assert_close(mc(model, 4, seed=0)(x).mean, result.mean)


class Cache:
    """What a forward may write into, of no class that anybody knows."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = [torch.ones(6, 8)]


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.kept.append(self.first(x))
        return self.drop(torch.stack(cache.kept).sum(0))


@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_an_object_that_a_forward_writes_into_is_as_it_was() -> None:
    model, x, cache = Cached(), torch.randn(6, 8), Cache()
    found = [mc(model, 5, seed=0, engine=engine)(x, cache).mean for engine in ("auto", "loop")]
    assert len(cache.kept) == 1
    torch.testing.assert_close(*found)


class Targeted(nn.Module):
    """Wants targets in training, as models of detection do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("no targets")
        return self.drop(self.first(x))


def test_a_model_that_wants_targets_in_training() -> None:
    model, x = Targeted(), torch.randn(6, 8)
    with pytest.warns(UserWarning, match="does not run on these inputs in training mode.* These sites do: drop"):
        result = mc(model, 50, seed=0)(x)
    torch.testing.assert_close(
        result.std, mc(nn.Sequential(model.first, model.drop), 50, seed=0)(x).std, rtol=0.5, atol=0.1
    )


class OfArrays(nn.Module):
    """Asks for arrays of NumPy, which tensors with gradients have not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.drop(x + torch.from_numpy(x.numpy() ** 2))


def test_a_forward_that_asks_for_arrays() -> None:
    found = [mc(OfArrays(), 5, seed=0)(torch.randn(6, 8)).n]
    assert found == [5]


class OfNoTensor(OfArrays):
    def forward(self, x: Tensor) -> float:
        return float(self.drop(self.first(x)).sum())


@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_an_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="returned no tensor, but a float"):
        mc(OfNoTensor(), 5, seed=0)(torch.randn(6, 8))


def test_an_empty_batch() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    assert mc(model, 5, seed=0)(torch.randn(0, 8)).mean.shape == (0, 8)


@pytest.mark.filterwarnings("ignore:mc. passes over")
def test_outputs_of_many_shapes_have_no_mean() -> None:
    with pytest.raises(UnsupportedError, match="that there is no mean over passes"):
        mc(Filtered(), 20, seed=0)(torch.randn(6, 8))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_whatever_the_mode_of_gradients(context: Any) -> None:
    model, x = Captured(), torch.randn(6, 5, 8, requires_grad=True)
    predict = mc(model, 5, seed=0)
    want = predict(x).mean
    with context():
        found = predict(x)
        again = mc(model, 5, seed=0)(torch.randn(6, 5, 8))
    assert not found.mean.requires_grad
    torch.testing.assert_close(found.mean, want)
    assert (found.facts["engine"], again.facts["engine"]) == ("prefix", "prefix")


def test_the_first_call_alone_runs_the_model_to_learn_it() -> None:
    calls = []
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[0].register_forward_hook(lambda *_: calls.append(1))
    predict, x = mc(model, 20, seed=0), torch.randn(6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(x)
    calls.clear()
    predict(x)
    assert len(calls) == 2  # the pass that is recorded, and all others together, which take the tape


def test_weights_that_drop_have_passes_one_after_another() -> None:
    model, x = dropkit.nn.WeightDrop(nn.LSTM(8, 6, batch_first=True), names="weight_hh_l0"), torch.randn(3, 5, 8)
    with pytest.warns(UserWarning, match="run one after another, for .* is noise that all examples of a pass share"):
        result = mc(model, 5, seed=0)(x)
    assert bool((result.std[0] > 0).any())
