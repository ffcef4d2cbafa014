"""A model that ends in a sigmoid or a softmax returns no logits: that it is taken twice is refused, or warned of."""

import warnings
from types import SimpleNamespace

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


def checked(x: Tensor) -> Tensor:
    """A sigmoid, and a look at what it returns."""
    shares = x.sigmoid()
    if shares.isnan().any():
        raise ValueError("not a number")
    return shares


def written(x: Tensor) -> Tensor:
    """A sigmoid of values that something else has written into the same memory before and after views of it."""
    found = torch.empty_like(x)
    return found.copy_(x.mul_(2).sigmoid()).clamp_(1e-7, 1 - 1e-7).view(-1).view_as(x)


ENDS = {
    "torch": torch.sigmoid,
    "functional": nn.functional.sigmoid,
    "method": Tensor.sigmoid,
    "in place": torch.sigmoid_,
    "module": nn.Sigmoid(),
    "special": torch.special.expit,
    "hard": nn.functional.hardsigmoid,
    "shaped": lambda x: torch.sigmoid(x).squeeze(-1).unsqueeze(-1)[:, :].view(x.shape).float(),
    "turned": lambda x: torch.sigmoid(x).T.contiguous().transpose(0, 1).permute(0, 1).reshape(x.shape),
    "clamped": lambda x: torch.sigmoid(x).clamp(1e-7, 1 - 1e-7),
    "moved": lambda x: torch.sigmoid(x).detach().clone().cpu().to(torch.float32),
    "of a type": lambda x: torch.sigmoid(x).half().double().bfloat16().type_as(x).type(torch.float32),
    "checked": checked,
    "written": written,
    "headed": lambda x: torch.cat([nn.Sigmoid()(each) for each in x.split(1, 1)], 1),
    "stacked": lambda x: torch.stack([torch.sigmoid(each) for each in x.unbind(1)], 1).expand(-1, -1),
    "by name": lambda x: torch.cat(tensors=[torch.squeeze(input=x.sigmoid()).reshape(x.shape)], dim=1),
    "named": lambda x: {"logits": x.sigmoid(), "rows": len(x)},
    "beside others": lambda x: {"features": x, "logits": x.sigmoid(), "more": x.relu()},
    "attribute": lambda x: SimpleNamespace(loss=None, logits=x.sigmoid(), hidden=(x, x)),
    "of few types": lambda x: {"labels": x > 0, "scores": x.sigmoid()},
    "of the other class": lambda x: 1 - x.sigmoid(),
    "by rsub": lambda x: torch.rsub(x.sigmoid(), 1),
    "negative": lambda x: -x.sigmoid() + 1,
    "in place again": lambda x: x.sigmoid().neg_().add_(1),
    "mean of two": lambda x: (x.sigmoid() + (2 * x).sigmoid()) / 2,
    "weighted": lambda x: torch.add(0.3 * x.sigmoid(), (2 * x).sigmoid().multiply(0.7)),
    "mean of heads": lambda x: torch.stack([(k * x).sigmoid() for k in range(1, 4)]).mean(0),
    "sum of heads": lambda x: sum((k * x).sigmoid() for k in range(1, 4)) / 3,
    "summed heads": lambda x: torch.stack([(k * x).sigmoid() for k in range(1, 4)], -1).sum(dim=-1).div(3),
    "smoothed": lambda x: 0.9 * x.sigmoid() + 0.05,
    "away from 0": lambda x: x.sigmoid() + 1e-8,
    "rounded": lambda x: x.sigmoid().round(decimals=3),
    "percentages": lambda x: 100 * x.sigmoid(),
    "products": lambda x: x.sigmoid() * (2 * x).sigmoid(),
    "written into": lambda x: torch.mul(x.sigmoid(), 0.5, out=torch.empty_like(x)),
    "exponential": lambda x: nn.functional.logsigmoid(x).exp(),
    "logarithm and back": lambda x: x.sigmoid().clamp_min(1e-7).log().exp(),
    "masked": lambda x: x.sigmoid().masked_fill(x.isnan(), 0.0),
    "chosen": lambda x: torch.where(x > 0, x.sigmoid(), 0.0),
    "least": lambda x: torch.minimum(x.sigmoid(), (2 * x).sigmoid()),
}


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.filterwarnings("ignore:mc. passes over this model run one after another, for Python reads values")
def test_what_a_sigmoid_returns_is_refused(end: str, classes: int, rows: int, engine: str) -> None:
    model = Called(ENDS[end], classes)
    with pytest.raises(UnsupportedError, match=REFUSED) as error:
        mc(model, 10, task="classification", seed=0, engine=engine)(torch.randn(rows, 4))
    assert ("logits.unsqueeze(-1)" in str(error.value)) == (classes > 1)


SOFTMAXES = {
    "torch": lambda x: torch.softmax(x, -1),
    "functional": lambda x: nn.functional.softmax(x, -1).clamp_min(1e-7),
    "method": lambda x: {"logits": x.softmax(1), "features": x},
    "module": nn.Softmax(-1),
    "special": lambda x: torch.special.softmax(x, -1),
    "half": lambda x: x.softmax(-1).half().float(),
    "a part": lambda x: x.softmax(-1)[:, :2],
    "another axis": lambda x: torch.stack([x, x], 1).softmax(1),
    "one class": lambda x: x[:, :1].softmax(-1),
    "distribution": lambda x: torch.distributions.Categorical(logits=x, validate_args=False).probs,
    "logarithms": lambda x: x.log_softmax(-1).exp(),
    "module of logarithms": lambda x: torch.exp(nn.LogSoftmax(-1)(x)),
    "mean": lambda x: torch.mean(torch.stack([x.softmax(-1), (2 * x).softmax(-1)]), dim=0),
    "not": lambda x: 1 - x.softmax(-1),
    "rounded": lambda x: torch.round(x.softmax(-1), decimals=3),
    "percentages": lambda x: x.softmax(-1) * 100,
    "ordered": lambda x: x.softmax(-1).topk(3, -1).values,
    "of two classes": lambda x: torch.stack([1 - x.softmax(-1)[:, 0], x.softmax(-1)[:, 0]], -1),
}


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("end", SOFTMAXES)
def test_what_a_softmax_returns_is_refused(end: str, rows: int) -> None:
    with pytest.raises(UnsupportedError, match=r"a softmax returns them.*leave its softmax out; or leave `task` out"):
        mc(Called(SOFTMAXES[end], 3), 10, task="classification", seed=0)(torch.randn(rows, 4))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("by", ["hand", "script", "product"])
def test_what_looks_like_probabilities_is_warned_of(by: str, classes: int) -> None:
    """Where no sigmoid is seen, or nobody can tell what its values have become."""

    def by_hand(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.Sigmoid())
    ends = {"hand": by_hand, "script": script, "product": lambda x: x.sigmoid() @ torch.eye(classes)}
    taken = "sigmoid" if classes == 1 else "softmax"
    with pytest.warns(UserWarning, match=rf"all outputs of all passes lie in \[0, 1\].*their {taken} is taken") as told:
        mc(Called(ends[by], classes), 10, task="classification", seed=0)(torch.randn(20, 4))
    assert len(told) == 1
    mc(Called(ends[by], classes), 10, task="classification", seed=0)(torch.randn(7, 4))  # that may be chance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 20])
def test_what_looks_like_a_softmax_is_warned_of(rows: int, dtype: torch.dtype) -> None:
    model = Called(lambda x: x.exp() / x.exp().sum(-1, keepdim=True), 3).to(dtype)
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\] and sum to 1 over the classes.*If a softmax") as told:
        mc(model, 10, task="classification", seed=0)(torch.randn(rows, 4, dtype=dtype))
    assert len(told) == 1


@pytest.mark.parametrize("rows", [1, 20])
def test_a_tanh_from_0_to_1_is_refused(rows: int) -> None:
    """It is the sigmoid of twice what it is of."""
    ends = [lambda x: 0.5 * (1 + torch.tanh(x / 2)), lambda x: (nn.Tanh()(x) + 1).div(2).clamp(1e-6, 1 - 1e-6)]
    for end in ends:
        with pytest.raises(UnsupportedError, match=r"probabilities: a tanh returns them.*leave its tanh out"):
            mc(Called(end, 2), 10, task="classification", seed=0)(torch.randn(rows, 4))


def test_probabilities_of_two_classes_from_one_sigmoid_are_refused() -> None:
    end = Called(lambda x: torch.cat([1 - x.sigmoid(), x.sigmoid()], -1), 1)
    with pytest.raises(UnsupportedError, match="a sigmoid returns them"):
        mc(end, 10, task="classification", seed=0)(torch.randn(2, 4))


SCALED = {
    "multiples": (lambda x: 4 * x.softmax(-1), r"a softmax returns, and lie in \[0, 4\]"),
    "divided": (lambda x: x.sigmoid() / 0.07, r"a sigmoid returns, and lie in \[0, 14\.2857\]"),
    "sums": (lambda x: x.sigmoid() + (2 * x).sigmoid(), r"a sigmoid returns, and lie in \[0, 2\]"),
    "moved": (lambda x: x.sigmoid() + 5, r"a sigmoid returns, and lie in \[5, 6\]"),
    "votes": (lambda x: torch.stack([x.sigmoid()] * 3).sum(0), r"a sigmoid returns, and lie in \[0, 3\]"),
}


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("end", SCALED)
def test_multiples_and_sums_of_probabilities_are_warned_of(end: str, rows: int) -> None:
    call, message = SCALED[end]
    with pytest.warns(UserWarning, match=rf"mc: the outputs are computed from what {message}.*return logits") as told:
        mc(Called(call, 3), 10, task="classification", seed=0)(torch.randn(rows, 4))
    assert len(told) == 1


LOGARITHMS = {
    "logsigmoid": nn.functional.logsigmoid,
    "module": nn.LogSigmoid(),
    "by log": lambda x: x.sigmoid().log(),
    "clamped": lambda x: x.sigmoid().clamp_min(1e-7).log(),
    "moved from 0": lambda x: (x.sigmoid() + 1e-7).log(),
}


@pytest.mark.parametrize("end", LOGARITHMS)
def test_logarithms_of_a_sigmoid_are_logits_of_classes_that_exclude_one_another_alone(end: str) -> None:
    """Of one logit the sigmoid would be taken, which is never above one half."""
    x = torch.randn(2, 4)
    with pytest.raises(UnsupportedError, match=r"logarithms of probabilities, as logsigmoid .* leave its logsigmoid"):
        mc(Called(LOGARITHMS[end], 1), 10, task="classification", seed=0)(x)
    with pytest.warns(UserWarning, match=r"logarithms of probabilities of single labels.*softmax.*`logits.unsqueeze"):
        mc(Called(LOGARITHMS[end], 3), 10, task="classification", seed=0)(x)

    def of_both(logits: Tensor) -> Tensor:
        return torch.cat([LOGARITHMS[end](-logits), LOGARITHMS[end](logits)], -1)

    found = mc(Called(of_both, 1), 10, task="classification", seed=0)(x)  # whose softmax is right
    want = mc(Called(lambda logits: logits, 1), 10, task="classification", seed=0)(x)
    torch.testing.assert_close(found.mean[:, 1:], want.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "end",
    [lambda x: x.log_softmax(-1), lambda x: x.softmax(-1).log(), nn.LogSoftmax(-1)],
    ids=["log_softmax", "log", "module"],
)
def test_logarithms_of_a_softmax_are_logits(end) -> None:
    x = torch.randn(20, 4)
    found = mc(Called(end, 3), 10, task="classification", seed=0)(x)
    want = mc(Called(lambda logits: logits, 3), 10, task="classification", seed=0)(x)
    torch.testing.assert_close(found.mean, want.mean)
    several = Called(lambda x: (end(x) + end(2 * x)) / 2 - 0.1, 3)
    assert mc(several, 10, task="classification", seed=0)(x).mean.shape == (20, 3)


def test_the_remedies_are_right() -> None:
    """Logits, a class axis of one for each label, and no task at all give the mean of the probabilities."""
    x = torch.randn(20, 4)
    plain = mc(Called(torch.sigmoid, 3), 50, seed=0)(x).mean
    labels = mc(Called(lambda logits: logits.unsqueeze(-1), 3), 50, task="classification", seed=0)(x).mean
    torch.testing.assert_close(labels.squeeze(-1), plain)
    plain = mc(Called(torch.sigmoid, 1), 50, seed=0)(x).mean
    torch.testing.assert_close(mc(Called(lambda logits: logits, 1), 50, task="classification", seed=0)(x).mean, plain)


class Aside(Called):
    """Logits, of which a sigmoid is kept for others."""

    def forward(self, x: Tensor):
        logits = self.body(x)
        self.kept = self.call(logits)
        return logits


@pytest.mark.parametrize(
    "call",
    [lambda x: x.sigmoid().detach(), lambda x: x.mean().sigmoid(), lambda x: x.clone().sigmoid_()],
    ids=["all", "mean", "copy"],
)
def test_a_sigmoid_that_is_not_returned_is_nobodys_business(call) -> None:
    """Whatever the values of the logits: of a single row all often lie in [0, 1] by chance."""
    rows = torch.randn(40, 4).split(1)
    result = mc(Aside(call, 1), 10, task="classification", seed=0).batches(rows)
    torch.testing.assert_close(
        result.mean, mc(Called(nn.Identity(), 1), 10, task="classification", seed=0).batches(rows).mean
    )
    aside = Aside(call, 3)
    with torch.no_grad():
        aside.body[-1].weight *= 0.01
        aside.body[-1].bias.copy_(torch.tensor([0.3, 0.5, 0.7]))  # all logits lie in [0, 1]
    mc(aside, 10, task="classification", seed=0)(torch.randn(4, 4))


def scaled_beneath(x: Tensor) -> Tensor:
    """A sigmoid, of which a view is written into."""
    shares = x.sigmoid()
    shares.view(-1).mul_(9).sub_(4)
    return shares


@torch.inference_mode()
def scaled_in_inference(x: Tensor) -> Tensor:
    """A sigmoid that is written into, where tensors have no version."""
    return x.clone().sigmoid_().mul_(9).sub_(4)


@torch.inference_mode()
def overwritten_in_inference(x: Tensor) -> Tensor:
    """A sigmoid of which parts are written into."""
    shares = x.sigmoid().clone()
    shares[:] = 5 * x
    return shares


@torch.inference_mode()
def a_view_in_inference(x: Tensor) -> Tensor:
    shares = x.sigmoid()
    shares.view(-1).mul_(9).sub_(4)
    return shares


@torch.inference_mode()
def a_part_in_inference(x: Tensor) -> Tensor:
    shares = x.sigmoid()
    shares[..., :1] = 9 * shares[..., :1] - 4
    return shares


def small(x: Tensor) -> Tensor:
    """Numbers between 0 and 1 of which no sigmoid is told."""
    return 0.5 + 0.01 * x.tanh()


LOGITS = {
    "plain": lambda x: 5 * x,
    "positive": lambda x: 5 * x.relu(),
    "gated": lambda x: {"logits": 5 * x, "gate": x.sigmoid()},
    "product": lambda x: 5 * x * x.sigmoid(),
    "scaled": lambda x: x.sigmoid().mul_(9).sub_(4),
    "swish": nn.functional.silu,
    "joined": lambda x: torch.cat([5 * x, x.sigmoid()], 1),
    "logarithms": lambda x: 5 + x.sigmoid().log(),
    "mixture": lambda x: torch.stack([5 * x, -3 * x], -1).mul(torch.stack([x, -x], -1).softmax(-1)).sum(-1),
    "attention": lambda x: (x[:, :, None] * x[:, None]).softmax(-1).matmul(5 * x[..., None]).squeeze(-1),
    "excitation": lambda x: (5 * x) * x.mean(-1, keepdim=True).sigmoid(),
    "temperature": lambda x: 9 * x / (1 + x.mean(-1, keepdim=True).sigmoid()),
    "gate and its rest": lambda x: x.sigmoid() * 5 * x + (1 - x.sigmoid()) * -3 * x,
    "bounded": lambda x: 5 * x.tanh(),
    "shifted tanh": lambda x: 5 * x.tanh() + 5,
    "difference": lambda x: x.sigmoid() - (3 * x - 1).sigmoid(),
    "odds": lambda x: x.sigmoid().log() - (1 - x.sigmoid()).log(),
    "ratio": lambda x: 5 * x / x.sigmoid(),
    "of a tensor": lambda x: x.sigmoid() * torch.full_like(x, 9) - 4,
    "scaled beneath": scaled_beneath,
    "scaled in inference": scaled_in_inference,
    "overwritten in inference": overwritten_in_inference,
    "a view in inference": a_view_in_inference,
    "a part in inference": a_part_in_inference,
    "inverse": lambda x: x.sigmoid().logit(),
    "overwritten": lambda x: x.sigmoid().copy_(5 * x),
}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("end", LOGITS)
def test_logits_are_not_taken_for_probabilities(end: str, classes: int) -> None:
    """Nor where a sigmoid has the last word beside them; of few rows all may lie in [0, 1] by chance."""
    mc(Called(LOGITS[end], classes), 10, task="classification", seed=0)(torch.randn(20, 4))
    mc(Called(small, classes), 10, task="classification", seed=0)(torch.randn(4, 4))
    beside = Called(lambda x: {"logits": small(x), "gate": x.sigmoid()}, classes)
    mc(beside, 10, task="classification", seed=0)(torch.randn(4, 4))


class Gated(nn.Module):
    """Gates, attention and a recurrent layer before the last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.gate, self.last = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.recurrent(x)[0])
        hidden = (hidden @ hidden.transpose(1, 2)).softmax(-1) @ hidden
        return self.last(nn.functional.silu(hidden[:, -1]) * torch.sigmoid(self.gate(hidden[:, -1])))


@pytest.mark.parametrize("rows", [1, 20])
def test_gates_inside_a_model_are_no_outputs(rows: int) -> None:
    mc(Gated(), 10, task="classification", seed=0)(torch.randn(rows, 5, 4))


def test_each_path_is_judged_by_itself() -> None:
    """A model that returns logits of some inputs and probabilities of others is refused at the others."""
    predict = mc(Called(lambda x: 5 * x, 3), 10, task="classification", seed=0)
    predict.model.call = lambda x: x.sigmoid() if predict.model.ends else 5 * x
    for ends in (False, True, False, True):
        predict.model.ends = ends
        if not ends:
            predict(torch.randn(4, 4))
            continue
        with pytest.raises(UnsupportedError, match=REFUSED):
            predict(torch.randn(4, 4))


def test_a_task_of_none_takes_probabilities() -> None:
    assert mc(Called(torch.sigmoid, 3), 10, seed=0)(torch.randn(20, 4)).mean.shape == (20, 3)
    assert mc(Called(torch.sigmoid, 3), 10, task="regression", seed=0)(torch.randn(20, 4)).mean.shape == (20, 3)
    assert mc(Called(torch.sigmoid, 3), 10, task="classification", seed=0)(torch.randn(0, 4)).mean.shape == (0, 3)


def test_every_pass_counts() -> None:
    """The warning is of what lies in [0, 1] in all passes."""
    shares, logits = torch.rand(3, 9, 2, generator=torch.Generator().manual_seed(0)), torch.full((1, 9, 2), -0.5)
    for chunks in ([shares, logits], [logits, shares]):
        running = Running("classification")
        for chunk in chunks:
            running.add(shares[0], [chunk])
        running.tell_of_shares()
    running = Running("classification")
    running.add(shares[0], [shares])
    with pytest.warns(UserWarning, match="as probabilities do"):
        running.tell_of_shares()
