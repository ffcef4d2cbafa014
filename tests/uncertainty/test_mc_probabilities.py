"""A model that ends in a sigmoid returns no logits: that it is taken twice is refused, or warned of."""

import pytest
import torch
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import mc
from dropkit.uncertainty.results.running import Running

REFUSED = r"the outputs are probabilities: a sigmoid returns them\. Let the model return logits: leave its sigmoid out"


class Called(nn.Module):
    """What a function makes of logits of a network with dropout."""

    def __init__(self, call, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, classes))
        self.call = call

    def forward(self, x: Tensor):
        return self.call(self.body(x))


ENDS = {
    "torch": torch.sigmoid,
    "method": Tensor.sigmoid,
    "in place": torch.sigmoid_,
    "module": nn.Sigmoid(),
    "special": torch.special.expit,
    "hard": nn.functional.hardsigmoid,
    "shaped": lambda x: torch.sigmoid(x).squeeze(-1).unsqueeze(-1)[:, :].view(x.shape).float(),
    "named": lambda x: {"logits": x.sigmoid(), "rows": len(x)},
}


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("end", ENDS)
def test_what_a_sigmoid_returns_is_refused(end: str, classes: int, rows: int, engine: str) -> None:
    model = Called(ENDS[end], classes)
    with pytest.raises(UnsupportedError, match=REFUSED) as error:
        mc(model, 10, task="classification", seed=0, engine=engine)(torch.randn(rows, 4))
    assert ("logits.unsqueeze(-1)" in str(error.value)) == (classes > 1)


@pytest.mark.parametrize("classes", [1, 3])
def test_what_looks_like_probabilities_is_warned_of(classes: int) -> None:
    model = Called(lambda x: x.sigmoid().clamp(1e-6, 1 - 1e-6), classes)
    taken = "sigmoid" if classes == 1 else "softmax"
    with pytest.warns(UserWarning, match=rf"all outputs of all passes lie in \[0, 1\].*their {taken} is taken") as told:
        mc(model, 10, task="classification", seed=0)(torch.randn(20, 4))
    assert len(told) == 1


def test_the_remedies_are_right() -> None:
    """Logits, a class axis of one for each label, and no task at all give the mean of the probabilities."""
    x = torch.randn(20, 4)
    plain = mc(Called(torch.sigmoid, 3), 50, seed=0)(x).mean
    labels = mc(Called(lambda logits: logits.unsqueeze(-1), 3), 50, task="classification", seed=0)(x).mean
    torch.testing.assert_close(labels.squeeze(-1), plain)
    plain = mc(Called(torch.sigmoid, 1), 50, seed=0)(x).mean
    torch.testing.assert_close(mc(Called(lambda logits: logits, 1), 50, task="classification", seed=0)(x).mean, plain)


LOGITS = {
    "plain": lambda x: 5 * x,
    "positive": lambda x: 5 * x.relu(),
    "gated": lambda x: {"logits": 5 * x, "gate": x.sigmoid()},
}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("end", LOGITS)
def test_logits_are_not_taken_for_probabilities(end: str, classes: int) -> None:
    """Nor where a sigmoid has the last word beside them; of few rows all may lie in [0, 1] by chance."""
    mc(Called(LOGITS[end], classes), 10, task="classification", seed=0)(torch.randn(20, 4))
    mc(Called(lambda x: 0.5 + 0.01 * x.tanh(), classes), 10, task="classification", seed=0)(torch.randn(4, 4))
    beside = Called(lambda x: {"logits": 0.5 + 0.01 * x.tanh(), "gate": x.sigmoid()}, classes)
    mc(beside, 10, task="classification", seed=0)(torch.randn(4, 4))


def test_a_task_of_none_takes_probabilities() -> None:
    assert mc(Called(torch.sigmoid, 3), 10, seed=0)(torch.randn(20, 4)).mean.shape == (20, 3)
    assert mc(Called(torch.sigmoid, 3), 10, task="regression", seed=0)(torch.randn(20, 4)).mean.shape == (20, 3)
    assert mc(Called(torch.sigmoid, 3), 10, task="classification", seed=0)(torch.randn(0, 4)).mean.shape == (0, 3)


def test_every_pass_counts() -> None:
    shares, logits = torch.rand(3, 9, 2, generator=torch.Generator().manual_seed(0)), torch.full((1, 9, 2), -0.5)
    for chunks in ([shares, logits], [logits, shares]):
        running = Running("classification")
        for chunk in chunks:
            running.add(shares[0], [chunk])
        running.tell_of_shares([torch.sigmoid])
    running = Running("classification")
    running.add(shares[0], [shares])
    with pytest.raises(UnsupportedError, match=REFUSED):
        running.tell_of_shares([torch.relu, torch.sigmoid, Tensor.view])
