"""Monte Carlo passes of forwards that run layers on some of their rows, as many as values say."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.uncertainty import mc


def head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


class Filled(nn.Module):
    """Runs its head on the rows that hold something."""

    def __init__(self) -> None:
        super().__init__()
        self.head = head()

    def forward(self, x: Tensor) -> Tensor:
        out, is_filled = x.new_zeros(len(x), 3), x.abs().sum(-1) > 0
        out[is_filled] = self.head(x[is_filled])
        return out


class Experts(nn.Module):
    """A sparse mixture of experts: each row goes to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(head() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out, which = x.new_zeros(len(x), 3), x[:, :3].argmax(-1)
        for number, expert in enumerate(self.experts):
            rows = (which == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return out


class EarlyExit(nn.Module):
    """Goes on with the rows that it is not sure of."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(5, 3), nn.Dropout(rate), head()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.first(x))
        goes_on = y.softmax(-1).amax(-1) < 0.6
        y[goes_on] += self.last(x[goes_on])
        return y


def of_all(model: nn.Module) -> Tensor:
    """Return rows that all go the same way."""
    x = 0.01 * torch.randn(8, 5)
    x[:, 0] += 1.0 if isinstance(model, Experts) else 0.0
    return x


def of_some(model: nn.Module) -> Tensor:
    x = 3 * torch.randn(8, 5)
    x[2] *= 0.0 if isinstance(model, Filled) else 1.0
    return x


CASES: dict[str, Any] = {
    "filled": (Filled, "batched"),
    "experts": (Experts, "batched"),
    "early_exit": (lambda: EarlyExit(0.0), "batched"),
    "early_exit_by_masks": (lambda: EarlyExit(0.2), "loop"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_other_rows_than_before_are_learned_of_anew(case: str, engine: str) -> None:
    torch.manual_seed(0)
    build, shared = CASES[case]
    model = build()
    batches = [of_all(model), of_some(model), of_all(model)]
    predict = mc(model, 30, seed=0, engine=engine, keep_samples=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = predict(batches[0])
    assert first.facts["engine"] == (shared if engine == "auto" else "loop")
    with pytest.warns(UserWarning, match="belong to places .* cannot be told apart: axis 0"):
        kept = predict(batches[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = mc(model, 30, seed=0, engine=engine, keep_samples=True)(batches[1])
        assert kept.facts["engine"] == fresh.facts["engine"] == "loop"
        assert torch.equal(kept.samples, fresh.samples)
        again = predict(batches[0])
        assert predict.batches(batches).mean.shape == (24, 3)
    assert again.facts["engine"] == first.facts["engine"]
    torch.testing.assert_close(again.samples, first.samples)


def test_rows_of_passes_have_the_mean_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    model = EarlyExit(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict = mc(model, 500, seed=0)
        predict(of_all(model))
        result = predict(x := of_some(model))
    with torch.no_grad():
        plain = torch.stack([model.train()(x) for _ in range(2000)])
    error = (plain.var(0) / 2000 + plain.var(0) / 500).sqrt()
    assert bool(((result.mean - plain.mean(0)).abs() <= 5 * error + 1e-6).all())


@pytest.mark.parametrize("case", ["filled", "experts", "early_exit"])
def test_what_was_asked_for_is_refused_in_its_own_words(case: str) -> None:
    torch.manual_seed(0)
    model = CASES[case][0]()
    cannot = r"cannot be told apart: axis 0 of a tensor of shape \(\d, 8\)"
    for options, error, match in (
        ({"engine": "batched"}, UnsupportedError, f"mc: engine='batched' is not right for this model: .*{cannot}"),
        ({"masks": "shared"}, UnsupportedError, f"mc: examples cannot be told apart.*share masks: .*{cannot}"),
        ({"batch_dim": 0}, ArgumentError, f"mc: `batch_dim` must be an axis .* It is none, for .*{cannot}"),
    ):
        predict: Any = mc(model, 30, seed=0, **options)
        first = predict(x := of_all(model))
        with pytest.raises(error, match=match):
            predict(of_some(model))
        assert torch.equal(predict(x).mean, first.mean)


def test_a_loader_of_rows_that_may_be_empty() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 5)
    x[10] = 0
    with pytest.warns(UserWarning, match="belong to places"):
        found = mc(Filled(), 9, seed=0).batches(DataLoader(x, batch_size=8))  # type: ignore[arg-type]  # a tensor is a data set
    assert found.mean.shape == (16, 3)
    assert not found.mean[10].any()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Filled(), r"what comes before its first site cannot be shared \("),
        (
            nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)),
            "it has nothing before its first site that passes could share",
        ),
    ],
    ids=["written", "nothing"],
)
def test_why_passes_cannot_share_what_comes_before_their_sites(model: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=f"engine='prefix' is not right for this model: {reason}"):
        mc(model, 3, seed=0, engine="prefix")(torch.randn(8, 5))


@pytest.mark.parametrize(("axis", "reason"), [(5, "no input has an axis 5"), ((0, None), "These have 1")])
def test_an_axis_that_no_input_has_is_named(axis: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        mc(head(), 3, seed=0, batch_dim=axis)(torch.randn(8, 5))


class Routed(nn.Module):
    """Each row goes to one of two networks, both of which drop."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        output, chosen = x.new_zeros(len(x), 3), (x[:, 0] > 0).long()
        for number, network in enumerate(self.networks):
            rows = (chosen == number).nonzero().flatten()
            output = output.index_add(0, rows, network(x[rows]))
        return output


class Leaving(nn.Module):
    """Rows below 0 leave before anything drops."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(6, 2), nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        output, stays = self.first(x), x[:, 0] > 0
        if stays.any():
            output = output.clone()
            output[stays] = self.rest(x[stays])
        return output


@pytest.mark.filterwarnings("ignore:mc")
def test_batches_of_a_data_loader_are_joined_where_examples_go_apart() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    predict = mc(Routed(), n=6, seed=0)
    loader = DataLoader(TensorDataset(x), batch_size=8)
    found = predict.batches(loader)
    assert found.mean.shape == (64, 3)
    assert torch.equal(found.mean, torch.cat([each.mean for each in predict.each(loader)]))
    with pytest.raises(ArgumentError, match="axis the examples of output lie"):  # which nobody has stacked
        predict.batches([(batch,) for batch in x.split(8)])


def test_batches_of_which_no_example_comes_to_a_site() -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    x[:, 0] = torch.linspace(1.0, -1.0, 12)
    model = Leaving().eval()
    predict = mc(model, n=6, seed=0)
    with pytest.warns(UserWarning, match="rest.1 drops on these inputs.*no example takes the way"):
        found = predict.batches(DataLoader(TensorDataset(x), batch_size=1))
    assert (found.std[:6] > 0).all()
    assert not found.std[6:].any()
    torch.testing.assert_close(found.mean[6:], model(x[6:]).detach())
    with pytest.raises(ArgumentError, match="nothing in this Leaving drops on these inputs"):
        mc(model, n=6, seed=0)(x[6:])
