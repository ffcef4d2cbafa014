"""What a model draws in training alone, and that is no site: passes warn of it, and of nothing else."""

import random
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import ArgumentError
from dropkit.uncertainty import mc


class Block(nn.Module):
    """A layer, and noise that a function draws of it."""

    def __init__(self, noise: Callable[["Block", Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.noise, self.rng = nn.Linear(8, 24), noise, np.random.default_rng(1)
        self.logit = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self, self.linear(x).relu())


class Net(nn.Module):
    """Noise, and dropout of a layer behind it."""

    def __init__(self, noise: Callable[[Block, Tensor], Tensor], p: float = 0.1) -> None:
        super().__init__()
        self.block, self.drop, self.last = Block(noise), nn.Dropout(p), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.block(x)))


def numpy_mask(self: Block, x: Tensor) -> Tensor:
    return x * torch.from_numpy((np.random.rand(*x.shape) > 0.3).astype("float32")) if self.training else x  # noqa: NPY002


def numpy_binomial(self: Block, x: Tensor) -> Tensor:
    return x * torch.tensor(np.random.binomial(1, 0.7, x.shape)) / 0.7 if self.training else x  # noqa: NPY002


def numpy_generator(self: Block, x: Tensor) -> Tensor:
    return x * torch.tensor(self.rng.random(x.shape) > 0.3) if self.training else x


def python_mask(self: Block, x: Tensor) -> Tensor:
    return x * float(random.random() > 0.3) if self.training else x  # noqa: S311  # no cryptography


def concrete(self: Block, x: Tensor) -> Tensor:
    if not self.training:
        return x
    u = torch.rand_like(x)
    logit = self.logit + (u + 1e-7).log() - (1 + 1e-7 - u).log()
    return x * (1 - (logit / 0.1).sigmoid()) / (1 - self.logit.sigmoid())


def gaussian(self: Block, x: Tensor) -> Tensor:
    return x * (1 + 0.5 * torch.randn_like(x)) if self.training else x


def patches(self: Block, x: Tensor) -> Tensor:
    parts = x.view(-1, 6, 4)
    if self.training:
        kept = torch.argsort(torch.randn(len(x), 6), -1)[:, :3, None].expand(-1, -1, 4)
        parts = parts.gather(1, kept)
    return parts.mean(1).repeat(1, 6)


def words(self: Block, x: Tensor) -> Tensor:
    tokens = (x * 3).long()
    if self.training:
        tokens = tokens.masked_fill(torch.rand(tokens.shape) < 0.3, 1)
    return x + tokens


def zoneout(self: Block, x: Tensor) -> Tensor:
    new = x.tanh()
    return torch.where(torch.rand_like(x) < 0.3, x, new) if self.training else 0.3 * x + 0.7 * new


def skipped(self: Block, x: Tensor) -> Tensor:
    return x if self.training and float(torch.rand(())) < 0.5 else 2 * x


def noise_of(x: Tensor) -> Tensor:
    return x * torch.randn_like(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    scripted_noise = torch.jit.script(noise_of)


def scripted(self: Block, x: Tensor) -> Tensor:
    return scripted_noise(x) if self.training else x


@torch.library.custom_op("dropkit_tests::noise", mutates_args=())
def operator_noise(x: Tensor) -> Tensor:
    return noise_of(x)


def own_operator(self: Block, x: Tensor) -> Tensor:
    return operator_noise(x) if self.training else x


NOISE = {
    numpy_mask: "numbers of NumPy's random in 'block'",
    numpy_binomial: "numbers of NumPy's random in 'block'",
    numpy_generator: "numbers of a generator that the model keeps in 'block'",
    python_mask: "numbers of Python's random in 'block'",
    concrete: "rand_like in 'block' (test_mc_noise.py:{})",
    gaussian: "randn_like in 'block' (test_mc_noise.py:{})",
    patches: "randn in 'block' (test_mc_noise.py:{})",
    words: "rand in 'block' (test_mc_noise.py:{})",
    zoneout: "rand_like in 'block' (test_mc_noise.py:{})",
    skipped: "rand in 'block' (test_mc_noise.py:{})",
    scripted: "randn_like in 'block' (test_mc_noise.py:{})",
    own_operator: "numbers of PyTorch's random in 'block'",
}
KINDS = [pytest.param(noise, told, id=noise.__name__) for noise, told in NOISE.items()]


def expected(noise: Callable[..., Tensor], told: str) -> str:
    """Return a pattern of what is told of noise, whose line is one of the function's."""
    lines = [number for *_, number in noise.__code__.co_lines() if number is not None]  # type: ignore[attr-defined]
    return re.escape(told).replace(r"\{\}", "|".join(map(str, lines))).replace(":", ":(").replace(r"\)", r")\)")


@pytest.mark.parametrize(("noise", "told"), KINDS)
def test_noise_of_training_alone_is_told_once(noise: Callable[..., Tensor], told: str) -> None:
    model, x = Net(noise), torch.randn(5, 8)
    predict = mc(model, 3, seed=0)
    states = np.random.get_state()[1:3], random.getstate(), model.block.rng.bit_generator.state  # type: ignore[index]  # noqa: NPY002
    message = (
        f"^mc: in training mode alone, this Net draws {expected(noise, told)}. That may be dropout.*torch.bernoulli"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        result = predict(x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [site.name for site in result.facts["sites"]] == ["drop"]
    predict(x)
    predict(x[:2])
    now = np.random.get_state()[1:3], random.getstate(), model.block.rng.bit_generator.state  # type: ignore[index]  # noqa: NPY002
    np.testing.assert_equal(now, states)


@pytest.mark.parametrize(("noise", "told"), KINDS)
def test_where_nothing_else_drops_an_error_tells_of_noise(noise: Callable[..., Tensor], told: str) -> None:
    message = f"^mc: nothing in this Net surely drops .* It draws {expected(noise, told)}, which may.*torch.bernoulli"
    with pytest.raises(ArgumentError, match=message) as caught:
        mc(Net(noise, p=0.0), 3)(torch.randn(5, 8))
    assert "rate above 0" not in str(caught.value)


def latent(self: Block, x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def numpy_latent(self: Block, x: Tensor) -> Tensor:
    return x + torch.tensor(np.random.randn(*x.shape)).float()  # noqa: NPY002


def masked_by_hand(self: Block, x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) > 0.3) / 0.7 if self.training else x


def rate_of_zero(self: Block, x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) >= 0.0) if self.training else x


def bernoulli_of_one(self: Block, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.ones_like(x)) if self.training else x


def skipped_at_a_rate_of_zero(self: Block, x: Tensor) -> Tensor:
    return x if self.training and torch.rand([]) < 0.0 else 2 * x


def slopes(self: Block, x: Tensor) -> Tensor:
    return F.rrelu(x - 0.5, training=self.training)


def shuffled(self: Block, x: Tensor) -> Tensor:
    return x[:, torch.randperm(24)].sort(1).values


SILENT = (latent, numpy_latent, masked_by_hand, rate_of_zero, bernoulli_of_one, skipped_at_a_rate_of_zero, slopes)


@pytest.mark.parametrize("noise", [*SILENT, shuffled], ids=lambda noise: noise.__name__)
def test_what_cannot_be_dropout_is_not_told(noise: Callable[..., Tensor]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mc(Net(noise), 3, seed=0)(torch.randn(5, 8))
    assert not [each for each in caught if "in training mode alone" in str(each.message)]


def test_of_noise_elsewhere_than_where_sites_are_chosen_nothing_is_told() -> None:
    model, x = Net(gaussian), torch.randn(5, 8)
    mc(model, 3, seed=0, where="drop")(x)
    with pytest.warns(UserWarning, match="in training mode alone"):
        mc(model, 3, seed=0, where=("drop", "bl*"))(x)


class Frozen(nn.Module):
    """A backbone that stays in evaluation, and a head."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.Dropout(p), nn.Linear(16, 2))

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def test_a_frozen_backbone_is_computed_once_and_does_not_drop() -> None:
    model, x = Frozen(), torch.randn(5, 8)
    result = mc(model, 6, seed=0, keep_samples=True)(x)
    assert result.facts["engine"] == "prefix"
    assert [site.name for site in result.facts["sites"]] == ["head.0"]
    alone = nn.Sequential(OrderedDict(head=model.head))
    with torch.no_grad():
        features = model.backbone.eval()(x)
    torch.testing.assert_close(mc(alone, 6, seed=0, keep_samples=True)(features).samples, result.samples)


def test_of_a_frozen_backbone_alone_the_error_leads_to_what_freezes_it() -> None:
    with pytest.raises(
        ArgumentError, match=r"dropout of backbone.2 is off in training mode, too, where a method `train`"
    ):
        mc(Frozen(p=0.0), 3)(torch.randn(5, 8))


def modality(self: Block, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.full((len(x), 1), 0.7)) if self.training else x


def scaled_modality(self: Block, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.full((len(x), 1), 0.7)) / 0.7 if self.training else x


def units(self: Block, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.full_like(x, 0.7)) if self.training else x


def test_what_drops_whole_examples_and_scales_none_is_told_how_to_be_written() -> None:
    x = torch.randn(5, 8)
    with pytest.warns(UserWarning, match="draws bernoulli in 'block'.* divided by 1 - p where it drops whole examples"):
        mc(Net(modality), 3, seed=0)(x)
    for noise in (scaled_modality, units):
        assert len(mc(Net(noise), 3, seed=0)(x).facts["sites"]) == 2
