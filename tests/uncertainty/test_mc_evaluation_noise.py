"""Noise that is drawn in evaluation, too: passes draw it anew, and are compared without it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import mc

PASSES, SCALE = 4000, 0.7
Noise = Callable[[Tensor], Tensor]


class Noisy(nn.Module):
    """Dropout, and noise in any mode, before it or after it."""

    def __init__(self, noise: Noise, is_before: bool = False) -> None:
        super().__init__()
        self.drop, self.noise, self.is_before = nn.Dropout(0.5), noise, is_before

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.noise(x * 1)) if self.is_before else self.noise(self.drop(x * 1))


def like(x: Tensor) -> Tensor:
    return x + SCALE * torch.randn_like(x)


def filled(x: Tensor) -> Tensor:
    return x + torch.empty_like(x).normal_(0, SCALE)


def around(x: Tensor) -> Tensor:
    return torch.normal(x, SCALE)


def of_all(x: Tensor) -> Tensor:
    return x + SCALE * torch.randn(1, x.shape[-1])


@pytest.mark.parametrize("is_before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("noise", [like, filled, around])
def test_passes_with_noise_run_together_with_the_law_of_the_model(noise: Noise, is_before: bool) -> None:
    """Dropout by half doubles the second moment of what it is given."""
    torch.manual_seed(0)
    x = torch.randn(6, 8)
    result = mc(Noisy(noise, is_before), PASSES, seed=0)(x)
    assert result.facts["engine"] != "loop"
    variance = x.square() + SCALE**2 * (2 if is_before else 1)
    assert bool(((result.mean - x).abs() < 5 * (variance / PASSES).sqrt()).all())
    torch.testing.assert_close(result.std.square(), variance, rtol=0.25, atol=0)


@pytest.mark.parametrize("engine", ["auto", "batched", "loop"])
def test_examples_with_noise_share_masks_and_no_noise(engine: str) -> None:
    torch.manual_seed(0)
    x = torch.full((1, 8), 10.0).expand(6, 8).contiguous()
    samples = mc(Noisy(like), 200, seed=0, masks="shared", keep_samples=True, engine=engine)(x).samples
    dropped = samples.abs() < 5
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert 0.4 < float(dropped.float().mean()) < 0.6
    noise = samples - samples[:, :1]
    assert float(noise[:, 1:].std()) == pytest.approx(2**0.5 * SCALE, rel=0.1)


def test_noise_that_all_examples_share_keeps_passes_apart() -> None:
    torch.manual_seed(0)
    x = torch.zeros(6, 8)
    with pytest.warns(UserWarning, match=r"one value of all of them, by randn\(\)"):
        samples = mc(Noisy(of_all), 50, seed=0, keep_samples=True)(x).samples
    torch.testing.assert_close(samples, samples[:, :1].expand_as(samples))
    assert float(samples[1:].sub(samples[:-1]).abs().max()) > 0.1


def choose(x: Tensor) -> Tensor:
    return x * torch.multinomial(x.softmax(-1), 1)


def test_noise_that_cannot_be_left_out_is_the_reason() -> None:
    model, x = Noisy(choose, is_before=True), torch.randn(6, 8)
    reason = "the model draws multinomial in evaluation, too, so that no two passes can be compared"
    with pytest.warns(UserWarning, match=f"places in tensors .* {reason}"):
        mc(model, 3, seed=0)(x)
    with pytest.raises(UnsupportedError, match=f"cannot share masks: {reason}"):
        mc(model, 3, seed=0, masks="shared")(x)
    with pytest.warns(UserWarning, match=f"one after another, for {reason}"):
        result = mc(model, 3, seed=0, masks="shared", batch_dim=0, keep_samples=True)(torch.ones(6, 8))
    assert result.facts["engine"] == "loop"


@pytest.mark.parametrize("noise", [F.gumbel_softmax, F.rrelu])
def test_noise_of_what_it_is_given(noise: Noise) -> None:
    result = mc(Noisy(noise), 9, seed=0, masks="shared")(torch.randn(6, 8))
    assert result.facts["engine"] != "loop"
    assert result.mean.shape == (6, 8)
